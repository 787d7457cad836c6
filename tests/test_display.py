"""What a run shows; a real terminal is in test_fit.py."""

import io
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

import torchcls as tc
from torchcls.display import Display

BATCHES = [(torch.eye(3), torch.tensor([1, 0, 2]))]


def test_the_names_of_the_columns_stand_above_the_first_row_that_is_shown(capsys):
    display = Display(None, 5, None)
    display.say("going on")
    display.show(tc.Record(epoch=3, train_loss=0.5, time=1.0))
    display.show(tc.Record(epoch=4, train_loss=0.25, time=1.0))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines] == [
        ["going", "on"],
        ["epoch", "train_loss", "time"],
        ["3", "0.500000", "1.00s"],
        ["4", "0.250000", "1.00s"],
    ]


def test_where_nothing_is_to_be_shown_nothing_is(capsys):
    display = Display(False, 1, None)
    display.say("going on")
    display.show(tc.Record(epoch=0, train_loss=0.5, time=1.0))
    assert capsys.readouterr() == ("", "")


# --- what goes wrong with the stream ends no run ----------------------------------------------


def fit(**arguments):
    arguments = {"epochs": 2, "device": "cpu", "check": "off", **arguments}
    return tc.fit(nn.Linear(3, 3), BATCHES, BATCHES, loss_fn=nn.CrossEntropyLoss(), **arguments)


class Failing(io.StringIO):
    def __init__(self, error):
        super().__init__()
        self.error, self.calls = error, 0

    def write(self, text):
        self.calls += 1
        raise self.error


class Mute:
    """No more than what print needs: no encoding, no isatty, no flush."""

    def __init__(self):
        self.text = ""

    def write(self, text):
        self.text += text


@pytest.mark.parametrize("progress", [None, True])
@pytest.mark.parametrize(
    "error", [BrokenPipeError(), OSError(28, "No space left"), ValueError("closed"), KeyError(1)]
)
def test_a_stream_that_raises_is_written_to_no_more_and_the_run_goes_on(
    monkeypatch, progress, error
):
    stream = Failing(error)
    monkeypatch.setattr(sys, "stdout", stream)
    assert len(fit(progress=progress)) == 2
    assert stream.calls == 1


def test_a_closed_stream_and_none_are_no_terminals(monkeypatch):
    closed = io.StringIO()
    closed.close()
    for stream in (closed, None):
        monkeypatch.setattr(sys, "stdout", stream)
        assert len(fit()) == 2


def test_a_stream_that_can_only_write_gets_the_table(monkeypatch):
    stream = Mute()
    stream.flush = lambda: None
    monkeypatch.setattr(sys, "stdout", stream)
    fit()
    assert [line.split()[0] for line in stream.text.splitlines()] == ["epoch", "0", "1"]


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
@pytest.mark.parametrize("progress", [None, True])
def test_a_name_that_the_stream_cannot_encode_is_escaped(monkeypatch, encoding, progress):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    fit(metrics={"猫\udce9": tc.accuracy}, progress=progress)
    name = "猫" if encoding == "utf-8" else "\\u732b"
    assert f"{name}\\udce9" in stream.buffer.getvalue().decode(encoding)


@pytest.mark.system
def test_a_reader_that_leaves_the_pipe_costs_the_table_alone(tmp_path):
    code = """
import torch, torchcls as tc
batches = [(torch.eye(3), torch.arange(3))]
loss_fn = torch.nn.CrossEntropyLoss()
tc.fit(torch.nn.Linear(3, 3), batches, loss_fn=loss_fn, epochs=3, device="cpu").to_csv("h.csv")
"""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-W", "error", "-c", code]
    environment = {**os.environ, "PYTHONPATH": os.path.dirname(os.path.dirname(tc.__file__))}
    subprocess.run(command, stdout=writer, cwd=tmp_path, env=environment, check=True, timeout=120)
    os.close(writer)
    assert len((tmp_path / "h.csv").read_text().splitlines()) == 4


# --- notes ------------------------------------------------------------------------------------


class Idle(nn.Module):
    """A model with layers that take no part: a note for each."""

    def __init__(self):
        super().__init__()
        self.used, self.idle = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, inputs):
        return self.used(inputs)


@pytest.mark.parametrize("progress", [None, False])
def test_notes_are_counted_in_one_line_at_the_end_of_a_run(capsys, progress):
    run = tc.epochs(
        Idle(), BATCHES, loss_fn=nn.CrossEntropyLoss(), epochs=2, device="cpu", progress=progress
    )
    next(run)
    assert "note" not in capsys.readouterr().out  # not yet at its end
    list(run)
    assert [finding.severity for finding in run.history.findings] == ["note"]
    shown = capsys.readouterr().out.splitlines()
    assert shown[-1:] == ([] if progress is False else ["1 note: history.findings"])
    list(run)
    assert capsys.readouterr().out == ""  # said once


def test_a_run_without_notes_says_nothing_of_them(capsys):
    fit()
    assert "history.findings" not in capsys.readouterr().out
