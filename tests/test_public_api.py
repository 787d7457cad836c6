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

DATA = {"data." + file.stem for file in (PACKAGE / "data").glob("*.py")} - {"data.__init__"}
DATA |= {"arguments"}
PUBLIC = {"torchcls"}  # the public names, as `import torchcls as tc` gives them

# What each room may know of the package.
MAY_KNOW = {
    "version": set(),
    "warn": set(),
    "arguments": set(),
    "functional": set(),
    "metrics": set(),
    "structure": set(),
    "optim": set(),
    "history": set(),
    "plots": set(),
    "hooks": set(),
    "losses": {"functional", "hooks"},
    "heads": {"functional", "losses"},
    "averaging": {"losses", "structure"},
    "device": {"structure"},
    "modes": {"device"},
    "checkpoint": set(),
    "scorers": {"averaging", "metrics"},
    "checks": {"checks.check", "checks.findings"},
    "checks.findings": {"warn"},
    "checks.graph": set(),
    "checks.untouched": {"device"},
    "checks.failure": {"checks.findings", "structure"},
    "checks.finite": {"checks.findings", "checks.graph", "structure"},
    "checks.training": {"checks.contract", "checks.findings", "checks.graph", "step"},
    "checks.contract": {"checks.findings", "checks.graph", "heads", "losses", "step"},
    "checks.scores": {
        "checks.contract",
        "checks.findings",
        "checks.graph",
        "heads",
        "metrics",
        "scorers",
        "step",
    },
    "checks.sources": {
        "checks.contract",
        "checks.findings",
        "data.batches",
        "losses",
        "step",
    },
    "checks.check": {
        "averaging",
        "checks.contract",
        "checks.failure",
        "checks.findings",
        "checks.finite",
        "checks.scores",
        "checks.sources",
        "checks.training",
        "checks.untouched",
        "device",
        "loops",
        "modes",
        "scorers",
        "step",
        "structure",
    },
    "checks.preflight": {
        "averaging",
        "checks.check",
        "checks.contract",
        "checks.findings",
        "checks.finite",
        "checks.graph",
        "checks.scores",
        "checks.sources",
        "checks.training",
        "checks.untouched",
        "losses",
        "scorers",
        "step",
        "structure",
    },
    "data": DATA,
    "data.batches": DATA,
    "data.digits": DATA,
    "data.folder": DATA,
    "data.drawn": DATA,
    "data.generators": DATA,
    "data.idx": DATA,
    "data.loaders": DATA,
    "data.mnist": DATA,
    "data.nearby": DATA,
    "data.png": DATA,
    "layers": {"hooks"},
    "pieces": {"arguments", "averaging", "device", "layers", "structure"},
    "precision": {"layers", "structure"},
    "step": {"averaging", "layers", "pieces", "precision", "structure"},
    "loops": {
        "averaging",
        "data.batches",
        "data.loaders",
        "device",
        "modes",
        "pieces",
        "step",
    },
    "evaluation": {
        "arguments",
        "heads",
        "averaging",
        "device",
        "loops",
        "modes",
        "pieces",
        "precision",
        "scorers",
        "step",
        "structure",
    },
    "keeper": {"checkpoint", "version", "warn"},
    "checksum": set(),
    "randomness": set(),
    "held": {"checksum", "data.batches", "randomness"},
    "replay": {"checksum", "data.batches", "data.loaders", "randomness"},
    "resume": {
        "checkpoint",
        "checksum",
        "data.batches",
        "loops",
        "losses",
        "metrics",
        "scorers",
        "step",
        "warn",
    },
    "display": {"history", "loops"},
    "fit": {
        "arguments",
        "averaging",
        "checks.findings",
        "checks.preflight",
        "data.nearby",
        "device",
        "display",
        "evaluation",
        "held",
        "history",
        "keeper",
        "loops",
        "modes",
        "optim",
        "pieces",
        "precision",
        "randomness",
        "replay",
        "resume",
        "scorers",
        "step",
        "warn",
    },
    "task": PUBLIC,
    "cli": PUBLIC | {"plots", "task"},
    "__main__": {"cli"},
    "torchcls": {
        "checkpoint",
        "checks",
        "checks.check",  # which is the function here, as data.mnist is
        "data",
        "data.mnist",  # which is the function here: its file has the same name
        "device",
        "evaluation",
        "fit",
        "functional",
        "heads",
        "history",
        "loops",
        "metrics",
        "optim",
        "version",
    },
}


def room_of(file):
    """``data.idx`` for data/idx.py, ``data`` for its __init__, ``torchcls`` for the top one."""
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    if parts[-1] == "__init__":
        parts = parts[:-1]
    return ".".join(parts) or "torchcls"


ROOMS = {room_of(file) for file in FILES}


def imports_of(source):
    """Every module a source imports, also inside functions; ``from a import b`` as ``a:b``."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield from (f"{module}:{alias.name}" for alias in node.names)


def rooms_known_by(source, may_know):
    """The rooms a source imports from; a public name is the package itself to who may know it."""
    for name in imports_of(source):
        module, _, member = name.partition(":")
        if module.split(".")[0] != "torchcls":
            continue
        room = module.removeprefix("torchcls").removeprefix(".")
        if may_know >= PUBLIC and not room and member in {*tc.__all__, "__version__"}:
            yield "torchcls"
        elif f"{room}.{member}".lstrip(".") in ROOMS:  # from torchcls import heads
            yield f"{room}.{member}".lstrip(".")
        else:
            yield room or "torchcls"


def test_the_table_of_imports_names_every_file():
    assert not ROOMS - set(MAY_KNOW), "say in MAY_KNOW what the new file may import"


@pytest.mark.parametrize("file", FILES, ids=room_of)
def test_imports_point_one_way(file):
    may_know = MAY_KNOW[room_of(file)]
    assert set(rooms_known_by(file.read_text("utf-8"), may_know)) <= may_know


@pytest.mark.parametrize(
    ("source", "rooms"),
    [
        ("import torchcls.loops", ["loops"]),
        ("import torchcls.loops as l", ["loops"]),
        ("import torchcls as tc", ["torchcls"]),
        ("from torchcls import heads, fit", ["heads", "fit"]),
        ("from torchcls import accuracy", ["torchcls"]),
        ("from torchcls.data import Batches, idx", ["data", "data.idx"]),
        ("from torchcls.data.idx import read_idx", ["data.idx"]),
        ("def f():\n    from torchcls.fit import Run", ["fit"]),
        ("import torch, os.path", []),
    ],
)
def test_the_reader_of_imports_sees_every_form(source, rooms):
    assert list(rooms_known_by(source, set())) == rooms


def test_no_room_knows_a_room_that_knows_it():
    for room, known in MAY_KNOW.items():
        if room.startswith("data") or room in ("task", "cli", "__main__", "torchcls"):
            continue
        reached, left = set(), list(known)
        while left:
            other = left.pop()
            if other not in reached:
                reached.add(other)
                left += MAY_KNOW[other]
        assert room not in reached


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
