"""Several processes: one is killed, another number of them goes on, an error in one ends all."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from in_processes import in_processes
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import torchcls as tc

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "kill_processes.py"
SOURCES = ["Batches", "loader", "list"]
EPOCHS, STEPS = 3, 7  # 6 batches of 8 samples, and 2 samples

# ------------------------------------------------------------------ a run


def source_of(name):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(50, 6, generator=generator, dtype=torch.float64)
    targets = inputs[:, :3].argmax(1)
    if name == "Batches":
        return tc.Batches(inputs, targets, batch_size=8, shuffle=True)
    if name == "loader":
        return DataLoader(TensorDataset(inputs, targets), batch_size=8, shuffle=True)
    return list(zip(inputs.split(8), targets.split(8), strict=True))


def run_of(name, folder=None):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)).double()
    return tc.epochs(
        model,
        source_of(name),
        [(torch.ones(5, 6, dtype=torch.float64), torch.zeros(5, dtype=torch.int64))],
        loss_fn=nn.CrossEntropyLoss(),
        epochs=EPOCHS,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        schedule=tc.one_cycle(),
        device="cpu",
        checkpoint=folder,
        resume=folder is not None,
        save_every=0.001,
        progress=False,
    )


def numbers(run):
    """All that came of a run: weights, momentum and history."""
    states = run.optimizer.state_dict()["state"].values()
    tensors = [*run.model.state_dict().values(), *(state["momentum_buffer"] for state in states)]
    found = [number for tensor in tensors for number in tensor.flatten().tolist()]
    return found + [row[name] for row in run.history for name in row if name != "time"]


def undisturbed(name):
    run = run_of(name)
    list(run)
    return numbers(run)


def check_same(found, expected):
    assert len(found) == len(expected)
    assert found == pytest.approx(expected, rel=1e-12, abs=1e-12)


# ------------------------------------------------------------------ killed


def killed_once(folder):
    """In a process of the launcher: the first time, the second process is killed in epoch 1."""
    run = run_of("Batches", folder)
    begun = run.position[:2]
    is_first_time = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
    for at in run.steps():
        if is_first_time and run.group.rank == 1 and (at.epoch, at.step) == (1, 4):
            os.kill(os.getpid(), signal.SIGKILL)
    return run.group.size, begun, numbers(run)


def launched(folder):
    """What torchrun does, in a process that has imported torch already, which its forks share."""
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    torch.optim.SGD([torch.zeros(1)], lr=1)  # imports what every fork would import
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=2,
        run_id="one",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=1,
        monitor_interval=0.05,
        start_method="fork",
    )
    return elastic_launch(config, killed_once)(folder)


def test_a_run_goes_on_where_one_of_its_processes_was_killed(tmp_path):
    (ends,) = in_processes(1, "test_processes_survival:launched", str(tmp_path), timeout=300)
    assert not isinstance(ends, RuntimeError), ends
    expected = undisturbed("Batches")
    for rank in range(2):
        size, begun, found = ends[rank]
        # The first process has saved that step or the one before.
        assert size == 2
        assert (1, 2) <= begun <= (1, 4)
        check_same(found, expected)


@pytest.mark.long
@pytest.mark.parametrize("options", [[], ["--hosts", "--processes", "1"]])
def test_the_script_kills_one_under_torchrun_and_on_two_hosts(options):
    command = [sys.executable, str(SCRIPT), "--smoke", *options]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    if "skipped: " in done.stdout:
        pytest.skip(done.stdout.strip())
    assert "1 runs with a process killed, 0 runs with other numbers" in done.stdout


def test_the_script_says_what_two_hosts_take(load, monkeypatch, capsys):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)
    assert load("kill_processes").main(["--hosts"]) == 0
    assert capsys.readouterr().out.startswith("skipped: two hosts are made of network namespaces")


# ------------------------------------------------------------------ another number of processes


def left_inside_an_epoch(folder):
    for name in SOURCES:
        for at in run_of(name, f"{folder}/{name}").steps():
            if (at.epoch, at.step) == (1, 3):
                break


def gone_on(folder):
    ends = []
    for name in SOURCES:
        run = run_of(name, f"{folder}/{name}")
        begun = run.position[:2]
        taken = sum(at.record is None for at in run.steps())
        ends.append((begun, taken, numbers(run)))
    return ends


@pytest.mark.long
def test_another_number_of_processes_goes_on_at_the_same_batch(tmp_path):
    left = in_processes(
        2, "test_processes_survival:left_inside_an_epoch", f"{tmp_path}/of 2", timeout=300
    )
    assert left == [None, None]
    for size in (1, 3):
        shutil.copytree(tmp_path / "of 2", tmp_path / f"of {size}")
    with pytest.warns(UserWarning, match="to rounding.* processes was 2, is 1") as warned:
        alone = gone_on(f"{tmp_path}/of 1")
    assert len(warned) == len(SOURCES), "no epoch has begun again"
    three = in_processes(3, "test_processes_survival:gone_on", f"{tmp_path}/of 3", timeout=300)
    for ends in [alone, *three]:
        assert not isinstance(ends, RuntimeError), ends
        for name, (begun, taken, found) in zip(SOURCES, ends, strict=True):
            assert begun == (1, 3), name
            assert taken == EPOCHS * STEPS - STEPS - 3, name
            check_same(found, undisturbed(name))


# ------------------------------------------------------------------ an error in one


class Failing(Dataset):
    """Points of which one cannot be read."""

    def __init__(self, *, fails):
        self.fails = fails

    def __len__(self):
        return 12

    def __getitem__(self, index):
        if self.fails and index == 11:
            raise OSError("sample 11 cannot be read")
        return torch.full((6,), float(index)), index % 3


class Net(nn.Linear):
    """Fails in the third forward pass of a kind, or in the backward pass of that."""

    def __init__(self, error, *, when):
        super().__init__(6, 3)
        self.error, self.when, self.calls = error, when, 0

    def forward(self, inputs):
        self.calls += self.training == (self.when != "validating")
        outputs = super().forward(inputs)
        if self.error is not None and self.calls == 3:
            if self.when != "backward":
                raise self.error
            outputs.register_hook(self.fail)
        return outputs

    def fail(self, gradient):
        raise self.error


def failing_loss(outputs, targets):
    if failing_loss.is_here and outputs.requires_grad:
        failing_loss.calls += 1
        if failing_loss.calls == 3:
            raise ValueError("no loss")
    return nn.functional.cross_entropy(outputs, targets)


class FailingSGD(torch.optim.SGD):
    calls, fails = 0, False

    def step(self, *arguments):
        self.calls += 1
        if self.fails and self.calls == 3:
            raise ArithmeticError("no step")
        return super().step(*arguments)


# What fails, in which process, with which words, after how many whole steps.
FAULTS = [
    ("dataset", 1, "OSError: sample 11 cannot be read", 2),
    ("training", 0, "ValueError: no forward", 2),
    ("interrupt", 1, "KeyboardInterrupt: ", 2),
    ("validating", 1, "ValueError: no forward", 3),
    ("loss", 1, "ValueError: no loss", 2),
    ("optimizer", 1, "ArithmeticError: no step", 2),
    ("folder", 0, "checkpoint must be a folder that can be written", 0),
]


def failed(what, rank, folder):
    """What a run raises here, when, and after how many steps."""
    is_here = int(os.environ["RANK"]) == rank
    error = KeyboardInterrupt() if what == "interrupt" else ValueError("no forward")
    is_of_model = is_here and what in ("training", "interrupt", "validating", "backward")
    model = Net(error if is_of_model else None, when=what)
    optimizer = FailingSGD(model.parameters(), lr=0.1)
    optimizer.fails = is_here and what == "optimizer"
    failing_loss.is_here, failing_loss.calls = is_here and what == "loss", 0
    taken = 0
    try:
        run = tc.epochs(
            model,
            DataLoader(Failing(fails=is_here and what == "dataset"), batch_size=4),
            DataLoader(Failing(fails=False), batch_size=4),
            loss_fn=failing_loss if what == "loss" else nn.CrossEntropyLoss(),
            epochs=2,
            optimizer=optimizer,
            check="off",
            device="cpu",
            checkpoint=folder if what == "folder" else None,
            progress=False,
        )
        for at in run.steps():
            taken += at.record is None
    except BaseException as failure:
        return f"{type(failure).__name__}: {failure}", time.time(), taken
    return "nothing", time.time(), taken


def interrupted_while_saving(folder):
    """What fit raises where the first process is interrupted between two steps."""

    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    train = source_of("Batches")
    model = nn.Linear(6, 3).double()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("torchcls.survival.keep.Survival._keep_best", interrupted)
        if os.environ["RANK"] != "0":
            patched.undo()
        try:
            tc.fit(model, train, loss_fn=nn.CrossEntropyLoss(), checkpoint=folder, progress=False)
        except BaseException as failure:
            return f"{type(failure).__name__}: {failure}"
    return "nothing"


def all_failed(faults, folder):
    """The one start of processes for all of them takes longer than they do."""
    found = [failed(what, rank, f"{folder}/file/run") for what, rank, *_ in faults]
    return found, interrupted_while_saving(f"{folder}/run")


@pytest.mark.system
def test_an_error_in_one_process_ends_all_in_the_same_step_with_its_words(tmp_path):
    Path(tmp_path, "file").touch()
    ends = in_processes(2, "test_processes_survival:all_failed", FAULTS, str(tmp_path), timeout=300)
    for end in ends:
        assert not isinstance(end, RuntimeError), end
    (here, first), (there, second) = ends
    assert first == "KeyboardInterrupt: "
    assert (
        second == "RuntimeError: the first process was interrupted or has failed, and so all end."
    )
    for (what, rank, words, steps), *found in zip(FAULTS, here, there, strict=True):
        own, other = found[rank], found[1 - rank]
        assert words in own[0], what
        start = f"RuntimeError: another process has failed, and so all end: process {rank} with "
        assert other[0].startswith(start), (what, other)
        assert words in other[0], what
        assert abs(own[1] - other[1]) < 3, f"{what}: seconds from the one to the other"
        assert own[2] == steps, what
        # The others have taken the step that only the optimizer of one has failed in.
        assert other[2] == steps + (what == "optimizer"), what


@pytest.mark.long
def test_an_error_in_the_backward_pass_of_one_ends_the_others_when_it_ends(tmp_path):
    other, own = in_processes(
        2, "test_processes_survival:failed", "backward", 1, str(tmp_path), timeout=300
    )
    assert own[0] == "ValueError: no forward"
    assert other[0].startswith("RuntimeError: ")
    assert "Connection" in other[0]  # closed or reset, in the words of torch
    assert own[2] == other[2] == 2
    assert other[1] - own[1] < 30, "seconds, of which Python takes some to end"
