"""What the package shows, who knows whom in it, and that importing it changes nothing."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import torchcls as tc

PACKAGE = Path(tc.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

# --- names ----------------------------------------------------------------------------------


def test_all_is_sorted_and_without_doubles():
    assert tc.__all__ == sorted(set(tc.__all__))


def test_all_is_complete_and_importable():
    public = {
        name
        for name, value in vars(tc).items()
        if not name.startswith("_") and not isinstance(value, ModuleType)
    }
    assert set(tc.__all__) == public | {"heads"}  # the one module that is a public name


def test_public_names_have_a_docstring_and_know_where_they_live():
    for name in tc.__all__:
        value = getattr(tc, name)
        assert value.__doc__, name
        if not isinstance(value, ModuleType):
            assert value.__module__.split(".")[0] == "torchcls", name


def test_the_version_is_that_of_the_newest_heading_in_the_changelog():
    changelog = PACKAGE.parent / "CHANGELOG.md"
    if not changelog.exists():
        pytest.skip("no CHANGELOG.md")
    heading = re.search(r"^## \[?v?(\d+\.\d+\.\d+)", changelog.read_text("utf-8"), re.MULTILINE)
    assert heading is not None, "CHANGELOG.md has no heading with a version"
    assert heading[1] == tc.__version__


# --- one-way imports ------------------------------------------------------------------------

# Four floors (docs/reading-the-code.md): a file imports from its own floor or from one below, and
# an attachment of floor 3 never another one. Folders count as one room.
FLOORS = {
    1: ("functional", "metrics", "heads", "batches", "averaging"),
    2: ("device", "state", "step", "loops", "evaluation", "history", "prediction", "run", "group"),
    3: ("data", "speed", "preflight", "survival", "optim", "precision", "display", "processes"),
    4: ("fit", "find_lr", "export", "looking", "cli", "__main__", "torchcls"),
}
EVERYWHERE = {"version", "warn"}  # nine lines and one number
# Lines with docstrings. Floors 1 and 2 are read by a newcomer in an hour; no file but functional
# and metrics is longer than 500.
BUDGETS = {
    "preflight": 2730,
    "survival": 1180,
    "processes": 820,
    "speed": 600,
    "data": 1515,
    "looking": 915,
    "cli": 1551,
}
FLOOR_OF = {room: number for number, rooms in FLOORS.items() for room in rooms}


def room_of(file):
    """``data`` for data/idx.py, ``torchcls`` for the top __init__."""
    first = file.relative_to(PACKAGE).with_suffix("").parts[0]
    return "torchcls" if first == "__init__" else first


def imports_of(source):
    """Every module a source imports, also inside functions; ``from a import b`` as ``a:b``."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield from (f"{module}:{alias.name}" for alias in node.names)


def rooms_known_by(source):
    """The rooms a source imports from; ``torchcls`` for the public names."""
    for name in imports_of(source):
        module, _, member = name.partition(":")
        top, _, rest = module.partition(".")
        if top == "torchcls":
            inner = rest.partition(".")[0]
            yield inner or (member if member in FLOOR_OF else "torchcls")


def test_every_file_has_its_floor():
    assert {room_of(file) for file in FILES} - EVERYWHERE == set(FLOOR_OF)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(PACKAGE).as_posix())
def test_imports_point_one_way(file):
    room = room_of(file)
    known = set(rooms_known_by(file.read_text("utf-8"))) - {room} - EVERYWHERE
    if room in EVERYWHERE:
        assert not known
        return
    floor = FLOOR_OF[room]
    assert not {other for other in known if FLOOR_OF[other] > floor}
    if floor == 3:
        assert not {other for other in known if FLOOR_OF[other] == 3}


def test_no_two_rooms_of_a_floor_need_each_other():
    known = {}
    for file in FILES:
        found = set(rooms_known_by(file.read_text("utf-8"))) - EVERYWHERE
        known.setdefault(room_of(file), set()).update(found)
    for room in set(FLOOR_OF) - {"torchcls", "cli", "__main__"}:
        reached, left = set(), list(known[room] - {room})
        while left:
            other = left.pop()
            if other not in reached:
                reached.add(other)
                left += known[other] - {other}
        assert room not in reached, room


@pytest.mark.parametrize(
    ("source", "rooms"),
    [
        ("import torchcls.loops", ["loops"]),
        ("import torchcls.loops as l", ["loops"]),
        ("import torchcls as tc", ["torchcls"]),
        ("from torchcls import heads, fit", ["heads", "fit"]),
        ("from torchcls import accuracy", ["torchcls"]),
        ("from torchcls.data import Batches, idx", ["data", "data"]),
        ("from torchcls.data.idx import read_idx", ["data"]),
        ("def f():\n    from torchcls.fit import fit", ["fit"]),
        ("import torch, os.path", []),
    ],
)
def test_the_reader_of_imports_sees_every_form(source, rooms):
    assert list(rooms_known_by(source)) == rooms


def lines(room):
    path = PACKAGE / room
    files = path.rglob("*.py") if path.is_dir() else [path.with_suffix(".py")]
    return sum(len(file.read_text("utf-8").splitlines()) for file in files)


@pytest.mark.parametrize("room", BUDGETS)
def test_a_folder_keeps_to_its_budget(room):
    assert lines(room) <= BUDGETS[room]


def test_no_file_is_longer_than_five_hundred_lines():
    long = {file.stem for file in FILES if len(file.read_text("utf-8").splitlines()) > 500}
    assert long <= {"functional", "metrics"}


@pytest.mark.parametrize("room", ["functional", "metrics"])
def test_a_file_to_copy_out_imports_torch_and_the_standard_library_only(room):
    names = imports_of((PACKAGE / f"{room}.py").read_text("utf-8"))
    tops = {name.partition(":")[0].split(".")[0] for name in names}
    assert tops - set(sys.stdlib_module_names) == {"torch"}


def test_no_import_is_relative():
    for file in FILES:
        assert not [name for name in imports_of(file.read_text("utf-8")) if name[0] == "."], file


# --- importing changes nothing --------------------------------------------------------------

LOOK = """
import json, logging, os, random, signal, sys, warnings
import numpy, torch

def look():
    return {
        "default dtype": str(torch.get_default_dtype()),
        "default device": str(torch.get_default_device()),
        "threads": [torch.get_num_threads(), torch.get_num_interop_threads()],
        "grad mode": [torch.is_grad_enabled(), torch.is_inference_mode_enabled()],
        "torch rng": torch.get_rng_state().tolist(),
        "python rng": repr(random.getstate()),
        "numpy rng": repr(numpy.random.get_state()),
        "deterministic": [
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
            torch.utils.deterministic.fill_uninitialized_memory,
            torch.backends.cudnn.deterministic,
            torch.backends.cudnn.benchmark,
            torch.backends.cudnn.enabled,
        ],
        "precision": [
            torch.get_float32_matmul_precision(),
            torch.backends.cuda.matmul.allow_tf32,
            torch.backends.cudnn.allow_tf32,
        ],
        "accelerator in use": torch.cuda.is_initialized(),
        "warnings filters": repr(warnings.filters),
        "signal handlers": {s.name: repr(signal.getsignal(s)) for s in signal.valid_signals()
                            if isinstance(s, signal.Signals)},
        "hooks": repr([sys.excepthook, sys.displayhook, sys.stdout.write, print]),
        "logging": repr([logging.root.handlers, logging.root.level]),
        "environment": dict(os.environ),
        "folder": os.getcwd(),
    }

before, loaded = look(), set(sys.modules)
import torchcls
after = look()
new = sorted(set(sys.modules) - loaded)
print(json.dumps({"changed": [k for k in before if before[k] != after[k]], "new": new}))
"""


@pytest.fixture(scope="module")
def imported():
    """What `import torchcls` changed and loaded in a fresh interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", LOOK],
        capture_output=True,
        text=True,
        check=True,
        cwd=PACKAGE.parent,
        timeout=120,
    )
    assert done.stderr == ""
    return json.loads(done.stdout)  # and nothing else was printed


def test_importing_changes_no_state(imported):
    assert imported["changed"] == []


def test_importing_loads_nothing_heavy(imported):
    tops = {name.split(".")[0] for name in imported["new"]}
    assert "torchcls" in tops
    assert (
        tops & {"torchvision", "matplotlib", "tqdm", "pandas", "PIL", "sklearn", "scipy"} == set()
    )
    assert tops - set(sys.stdlib_module_names) == {"torchcls"}
