"""Every block of Python in the README and in docs/ runs and prints what the page shows."""

import re
import signal
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import misuse
import pytest
import torch
from helpers import BLOCK, can_run
from PIL import Image
from torchvision.models import resnet18

import torchcls as tc
from torchcls import looking
from torchcls.preflight.findings import CODES

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "torchcls"
README = (ROOT / "README.md").read_text("utf-8")
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text("utf-8")
    for path in (
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        ROOT / "CHANGELOG.md",
        *sorted((ROOT / "docs").rglob("*.md")),
    )
}


def same_output(printed: str, shown: str) -> bool:
    """Whether the words are the same and the numbers close: they differ a little by machine."""
    lengths = ([len(line.split()) for line in text.splitlines()] for text in (printed, shown))
    return next(lengths) == next(lengths) and all(map(_same_word, printed.split(), shown.split()))


def _same_word(ours: str, theirs: str) -> bool:
    seconds, number = r"\d+\.\d\ds", r"\d+\.\d{6}"
    if re.fullmatch(seconds, ours) and re.fullmatch(seconds, theirs):
        return True
    if re.fullmatch(number, ours) and re.fullmatch(number, theirs):
        return abs(float(ours) - float(theirs)) < 0.05
    return ours == theirs


@pytest.fixture
def at_home(tmp_path, monkeypatch):
    """A folder for what a page writes, with the images that the README reads."""
    monkeypatch.chdir(tmp_path)
    handler = signal.getsignal(signal.SIGTERM)
    yield tmp_path
    signal.signal(signal.SIGTERM, handler)


class Writer:
    """Stands in for TensorBoard's where that is not installed."""

    written: ClassVar[list[tuple[str, float, int]]] = []

    def __init__(self, folder):
        self.written.clear()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def add_scalar(self, name, value, step):
        self.written.append((name, float(value), step))


def write_digits(folder, n, seed):
    images, targets = tc.drawn_digits(n, classes=(0, 1, 2), seed=seed)
    for number, (image, target) in enumerate(zip(images, targets, strict=True)):
        path = folder / str(int(target)) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image[0] * 255).round().to(torch.uint8).numpy()).save(path)


# --- examples -------------------------------------------------------------------------------------


# WebDataset leaves its files to be closed by the garbage collector.
@pytest.mark.filterwarnings("ignore:Exception ignored in. <_io.FileIO name='digits-")
@pytest.mark.parametrize("page", [page for page, text in PAGES.items() if "```python" in text])
def test_every_python_block_of_a_page_runs_in_order_and_prints_what_is_shown(
    page, at_home, capsys, load, monkeypatch
):
    if "digits/train" in PAGES[page]:
        write_digits(at_home / "digits" / "train", 2000, seed=0)
        write_digits(at_home / "digits" / "valid", 500, seed=1)
    if "photos/train" in PAGES[page]:
        draw_photos = load("photos").draw_photos
        draw_photos(at_home / "photos" / "train", 8, seed=0)
        draw_photos(at_home / "photos" / "valid", 4, seed=1)
    if "resnet18.pth" in PAGES[page]:
        torch.save(resnet18().state_dict(), at_home / "resnet18.pth")
    if find_spec("tensorboard") is None:
        stand_in = SimpleNamespace(SummaryWriter=Writer)
        monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", stand_in)
    namespace: dict[str, object] = {}
    with torch.random.fork_rng([]):
        for number, (code, shown) in enumerate(BLOCK.findall(PAGES[page])):
            if not can_run(code):
                continue
            exec(compile(code, f"{page}, block {number}", "exec"), namespace)
            printed = capsys.readouterr().out
            assert not shown or same_output(printed, shown), printed
    assert "run" not in namespace or namespace["run"].history
    if page == "docs/tutorial.md":
        shown = re.findall(r"\]\(pictures/(.*)\)", PAGES[page])
        assert sorted(path.name for path in at_home.glob("*.png")) == sorted(shown)
    if page == "docs/recipes.md":
        (at_home / "resnet18.pth").unlink()  # 45 MB, of which pytest would keep three
        names = [name for name, _, _ in Writer.written]
        assert find_spec("tensorboard") or names == ["loss/train", "loss/train", "loss/valid"] * 2


@pytest.mark.parametrize("page", PAGES)
def test_every_block_of_text_is_what_the_block_before_it_prints(page):
    shown = [text for _, text in BLOCK.findall(PAGES[page]) if text]
    assert len(shown) == PAGES[page].count("```text")


def test_another_output_is_not_the_same():
    shown = "epoch  loss    time\n    0  0.500000   1.00s\n"
    assert same_output(shown.replace("1.00s", "2.50s").replace("0.500000", "0.510000"), shown)
    assert not same_output(shown.replace("0.500000", "0.600000"), shown)
    assert not same_output(shown.replace("loss", "accuracy"), shown)
    assert not same_output(shown + "    1  0.500000   1.00s\n", shown)
    assert not same_output(shown.splitlines()[0], shown)


def test_the_pages_show_a_whole_run_the_loop_every_step_and_one_function():
    code = "\n".join(code for code, _ in BLOCK.findall(README))
    for said in ("tc.fit(", "for epoch in run:", "for at in run.steps():", "tc.backward("):
        assert said in code, said


# --- commands and links ---------------------------------------------------------------------------


def test_the_readme_has_the_two_commands_that_ci_runs_word_for_word():
    commands = re.findall(r"^python3 -m venv .*$", README, flags=re.MULTILINE)
    assert len(commands) == 2
    assert commands[0].endswith("torchcls train")
    assert commands[1].endswith("-m pytest")


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_to_a_file_and_a_heading(page):
    folder = (ROOT / page).parent
    for path, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", PAGES[page]):
        target = (folder / path).resolve() if path else ROOT / page
        assert target.is_file(), path
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text("utf-8"), flags=re.MULTILINE)
            slugs = [re.sub(r"[^\w\- ]", "", one.lower()).replace(" ", "-") for one in headings]
            assert anchor in slugs, anchor


# --- what the README names ------------------------------------------------------------------------


def test_the_readme_is_at_most_150_lines():
    assert len(README.splitlines()) <= 150


def test_the_readme_lists_every_public_name():
    classes = {"Evaluation", "LRCurve", "Predictions", "Record", "Run"}  # what the functions return
    for name in set(tc.__all__) - classes:
        suffix = name.removeprefix("binary_cross_entropy") or name
        assert re.search(rf"\b{re.escape(name)}\b", README) or suffix in README, name


def test_the_reading_order_of_the_readme_is_ten_files_with_their_line_counts():
    listed = re.findall(r"`(\w+\.py)` \((\d+)\)", README)
    assert len(listed) == 10
    found = {name: (PACKAGE / name).read_text("utf-8").count("\n") for name, _ in listed}
    wrong = {
        name: found[name] for name, n in listed if abs(int(n) - found[name]) > found[name] / 10
    }
    assert not wrong, f"write the counts into the README: {wrong}"


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")))
def test_the_page_on_the_code_names_every_file_or_its_folder(path):
    page = PAGES["docs/reading-the-code.md"]
    name = path.relative_to(PACKAGE).as_posix()
    named = f"`{name}`" in page or f"`{name.split('/')[0]}/`" in page
    assert path.name in ("__init__.py", "__main__.py") or named, name


def test_the_reference_has_every_public_name_once():
    """By the path where it is defined: for torchcls.check the page would show a module."""
    pages = "\n".join(text for page, text in PAGES.items() if page.startswith("docs/reference/"))
    public = [getattr(module, name) for module in (tc, looking) for name in module.__all__]
    paths = [
        one.__name__ if one is tc.heads else f"{one.__module__}.{one.__name__}" for one in public
    ]
    assert sorted(re.findall(r"^::: (\S+)$", pages, flags=re.MULTILINE)) == sorted(paths)


# --- tables ---------------------------------------------------------------------------------------


def test_the_table_of_misuse_is_that_of_the_tests():
    assert misuse.table() in PAGES["docs/results.md"]


def test_the_page_on_the_checks_lists_every_code_of_a_finding_where_it_belongs():
    page = PAGES["docs/preflight.md"]
    for about, codes in CODES.items():
        assert f"| {about} | {', '.join(f'`{code}`' for code in codes)} |" in page, about


def test_the_readme_quotes_the_mistake_as_it_is_printed():
    ((_, shown),) = [block for block in BLOCK.findall(PAGES["docs/preflight.md"]) if block[1]]
    assert shown.split(" [")[0] in README
