"""scripts/processes_peers.py: ours is exact over two processes, and the usual loop is not."""

import json
import math
import subprocess
from pathlib import Path

import pytest

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results.md"


@pytest.fixture
def script(load):
    return load("processes_peers")


@pytest.mark.system
def test_torchcls_is_exact_over_two_processes_and_the_usual_loop_is_not(script, capsys):
    assert "python scripts/processes_peers.py" in script.__doc__
    assert script.main(["--smoke"]) == 0
    printed = capsys.readouterr().out
    *lines, said = printed.splitlines()
    assert said.startswith("ok: torchcls: off by ")
    rows = {name: cells for name, *cells in (line.strip("| ").split(" | ") for line in lines[3:])}
    assert rows.keys() == {"torchcls", "plain DDP, means averaged", "plain DDP, sums added up"}
    assert rows["torchcls"] == [f"{number:.4f} (exact)" for number in script.exact_numbers()]
    header = [" ".join(line.split()) for line in script.__doc__.splitlines()]
    for name in ("plain DDP, means averaged", "plain DDP, sums added up"):
        assert all("off by" in cell for cell in rows[name])
        assert " ".join([name, *(cell.split(" ")[0] for cell in rows[name])]) in header
    assert set(lines[2:]) <= set(RESULTS.read_text().splitlines()), "the page has what is printed"


def test_the_exact_numbers_count_every_sample_once(script):
    assert script.exact_numbers()[::2] == pytest.approx([6 / 7, 9 / 11], abs=1e-15)
    for n, loss in zip(script.SIZES, script.exact_numbers()[1::2], strict=True):
        inputs, targets = script.samples(n)
        rows = inputs.double()[:, :3]  # the model's scores
        each = rows.exp().sum(dim=1).log() - rows[range(n), targets]
        assert loss == pytest.approx(each.sum().item() / n, abs=1e-12)


@pytest.mark.parametrize("wrong", [lambda right: [*right[:3], 0.7322], lambda _: [math.nan] * 4])
def test_a_wrong_number_of_ours_fails_the_claim(script, monkeypatch, capsys, wrong):
    rows = {"torchcls": wrong(script.exact_numbers())}
    monkeypatch.setattr(script, "over_two_processes", lambda *names: rows)
    assert script.main(["--smoke"]) == 1
    assert "FAILED: torchcls: off by" in capsys.readouterr().out


def test_peers_that_are_missing_or_fail_are_listed_and_not_judged(script, monkeypatch, capsys):
    peers = {"Lightning": ("no_such_module", "-"), "Accelerate": ("torch", "torch")}
    monkeypatch.setattr(script, "PEERS", peers)

    def run(command, **kwargs):
        if command[-1] == "Accelerate":
            words = "Traceback\n[rank1]: a.b.BoomError: no\nagent\nx.ChildFailedError: \n==\n"
            return subprocess.CompletedProcess(command, 1, "", words)
        rows = {"torchcls": script.exact_numbers()}
        Path(command[-3], "rows.json").write_text(json.dumps(rows))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    assert script.main([]) == 0
    printed = capsys.readouterr().out
    assert "| Lightning | not installed |" in printed
    assert "| Accelerate | did not run: a.b.BoomError: no |" in printed


def test_a_run_of_ours_that_fails_fails_the_claim(script, monkeypatch, capsys):
    failed = subprocess.CompletedProcess([], 1, "", "ValueError: n\n")
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: failed)
    assert script.main(["--smoke"]) == 1
    assert "FAILED: torchcls did not run: ValueError: n" in capsys.readouterr().out
