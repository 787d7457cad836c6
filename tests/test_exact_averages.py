"""scripts/exact_averages.py: it runs, a wrong average fails its claim, no peer is dropped."""

import importlib
import math
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import torchcls as tc

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"


@pytest.fixture
def script(load):
    return load("exact_averages")


def rows_of(printed):
    """The cells of each row of the printed table, by the first one."""
    lines = [line.strip("| ").split(" | ") for line in printed.splitlines() if line[:1] == "|"]
    return {cells[0]: cells[1:] for cells in lines}


def test_it_runs_in_smoke_mode(script, capsys):
    assert "python scripts/exact_averages.py" in script.__doc__
    assert script.main(["--smoke"]) == 0
    printed = capsys.readouterr().out
    assert "FAILED" not in printed
    rows = rows_of(printed)
    loss = f"{script.exact_loss():.5f} (exact)"
    assert rows["torchcls.fit"] == [loss, "exact", "exact", "exact"]
    assert rows["torchcls, its small loops"] == [loss, "exact", "exact", "exact"]
    assert all("off by" in cell for cell in rows["plain loop"])
    assert not any(peer in printed for peer in script.PEERS)


def test_the_header_has_the_figures_that_are_printed(script, capsys):
    script.main(["--smoke"])
    rows = rows_of(capsys.readouterr().out)
    header = [" ".join(line.split()) for line in script.__doc__.splitlines()]
    for name in ("in float64", "plain loop"):
        loss, *steps = rows[name]
        loss = loss.split(" ")[0]
        steps = [] if name == "in float64" else [step.removeprefix("off by ") for step in steps]
        assert " ".join([name, loss, *steps]) in header


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("evaluate", lambda *args, **kwargs: SimpleNamespace(loss=2.2047)),
        ("evaluate", lambda *args, **kwargs: SimpleNamespace(loss=math.nan)),
        ("train_one_epoch", lambda *args, **kwargs: None),
        ("fit", lambda *args, **kwargs: [SimpleNamespace(valid_loss=2.2138)]),  # but no step
    ],
)
def test_a_wrong_number_of_ours_fails_the_claim(script, monkeypatch, capsys, name, wrong):
    monkeypatch.setattr(tc, name, wrong)
    assert script.main(["--smoke"]) == 1
    assert "FAILED: torchcls" in capsys.readouterr().out


def test_the_usual_accumulation_in_our_place_fails_the_claim(script, monkeypatch, capsys):
    def accumulate(model, batch, loss_fn, optimizer, *, micro_batch):
        batches = torch.utils.data.DataLoader(batch.dataset, batch_size=micro_batch)
        script.step_of_plain_loop(model, batches, loss_fn, 3)

    monkeypatch.setattr(tc, "train_one_epoch", accumulate)
    assert script.main(["--smoke"]) == 1
    assert "FAILED: torchcls, its small loops: steps off by" in capsys.readouterr().out


def test_peers_that_are_missing_or_fail_are_listed_and_not_judged(script, monkeypatch, capsys):
    monkeypatch.setattr(
        script,
        "PEERS",
        {
            "missing": ("no_such_module", "no-such-module"),
            "failing": ("torch", "torch"),
            "working": ("torch", "torch"),
        },
    )

    def run(command, **kwargs):
        if command[-1] == "failing":
            return subprocess.CompletedProcess(command, 1, "", "Traceback\nBoom: no\n")
        result = script.Result(2.0, {"full": 1.0, "partial": 0.2})
        return subprocess.CompletedProcess(command, 0, f"noise\n{script.as_json(result)}\n", "")

    monkeypatch.setattr(subprocess, "run", run)
    assert script.main([]) == 0
    rows = rows_of(capsys.readouterr().out)
    assert rows["missing"][0] == "not installed"
    assert rows[f"failing {version('torch')}"][0] == "did not run: Boom: no"
    steps = rows[f"working {version('torch')}"][1:]
    assert steps == ["no step", "n/a", "off by 20 %"]


def test_every_peer_has_its_ways(script):
    ways = importlib.import_module("exact_averages_peers").WAYS
    assert ways.keys() == script.PEERS.keys()
    assert not {"fastai", "lightning", "ignite", "keras"} & sys.modules.keys()
