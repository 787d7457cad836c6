"""Every block of Python in the README runs, one after the other in one namespace."""

import re
from pathlib import Path

import misuse
import pytest
import torch

from torchcls.checks.findings import CODES

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_every_python_block_of_the_readme_runs_in_order():
    namespace: dict[str, object] = {}
    with torch.random.fork_rng([]):
        for number, block in enumerate(blocks("python")):
            exec(compile(block, f"README.md, block {number}", "exec"), namespace)
    assert namespace["run"].history
    assert namespace["predictions"].targets is not None


def test_the_readme_prints_the_header_of_a_real_table(capsys):
    exec(blocks("python")[0], {})
    assert capsys.readouterr().out.splitlines()[0] == blocks("text")[0].rstrip("\n")


def test_the_readme_has_the_two_commands_that_ci_runs_word_for_word():
    commands = re.findall(r"^python3 -m venv .*$", README, flags=re.MULTILINE)
    assert len(commands) == 2
    assert commands[0].endswith("torchcls train")
    assert commands[1].endswith("-m pytest")


def test_the_readme_lists_every_public_name():
    import torchcls

    classes = {"Evaluation", "Predictions", "Record", "Run"}  # what the functions return
    for name in set(torchcls.__all__) - classes:
        suffix = name.removeprefix("binary_cross_entropy") or name
        assert re.search(rf"\b{re.escape(name)}\b", README) or suffix in README, name


@pytest.mark.parametrize("path", sorted((ROOT / "torchcls").rglob("*.py")))
def test_the_reading_order_names_every_file_of_the_package(path):
    name = path.relative_to(ROOT / "torchcls").as_posix()
    assert path.name in ("__init__.py", "__main__.py") or f"`{name}`" in README


def test_the_table_of_misuse_is_that_of_the_tests():
    assert misuse.table() in README


def test_the_readme_lists_every_code_of_a_finding():
    for codes in CODES.values():
        for code in codes:
            assert f"`{code}`" in README, code
