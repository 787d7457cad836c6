"""What a step over processes costs, beside DistributedDataParallel in a loop written by hand.

Two gloo processes of one thread each train an MLP in three ways: the loop by hand, torchcls's
``train_one_epoch``, and ``epochs``, whose loop ``fit`` is. Batches, optimizer and first weights are
the same, and so the losses are. The three take turns in the same processes, an epoch each, in
another order each time. A step is timed from where its batch is asked for to where the next one is;
what an epoch takes before its first batch and after its last step is reported by itself.
"""

import json
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from benchmark_loops import Split, adamw, cut
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import torchcls as tc

SIZE = 2  # processes
BATCH = 64 * SIZE
PIXELS, CLASSES = 784, 10
NETWORKS = {"1M": (680, 60), "9M": (2640, 12)}  # units of a hidden layer, and steps of an epoch
TURNS = 8
MEETINGS = 200
SEED = 0

Epoch = Callable[[], float]  # trains for one, and gives its mean loss


def measure_processes(spec: dict[str, Any]) -> dict[str, Any]:
    """Seconds of a step by hand, ratios to it, and what an epoch and a meeting take."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(
            measure_in_process, (folder, spec["variant"], spec["smoke"]), nprocs=SIZE
        )
        return json.loads(Path(folder, "found.json").read_text())


def measure_in_process(rank: int, folder: str, network: str, smoke: bool) -> None:
    """Measure as one of the processes; the first leaves a file with what it found."""
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", SIZE)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=SIZE)
    width, steps = NETWORKS[network]
    found = take_turns(width, *((3, 1) if smoke else (steps, TURNS)))
    if rank == 0:
        Path(folder, "found.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def take_turns(width: int, steps: int, turns: int) -> dict[str, Any]:
    """Let the contestants train, an epoch each in turns."""
    group, contestants = tc.processes(), [by_hand, by_train_one_epoch, by_epochs]
    sources = [Watched(cut(data(steps), BATCH)) for _ in contestants]
    epochs = [
        contestant(mlp(width), source, turns)
        for contestant, source in zip(contestants, sources, strict=True)
    ]
    rounds, losses = [], []
    for turn in range(1 + turns):
        found: dict[int, tuple[Timed, float]] = {}
        for i in range(len(contestants)):
            place = (turn + i) % len(contestants)
            dist.barrier()
            found[place] = time_epoch(epochs[place], sources[place])
        timed, lost = zip(*(found[place] for place in sorted(found)), strict=True)
        losses.append(lost)
        if turn > 0:  # engines are built in the first one, and fit looks at its first step
            rounds.append(timed)
    hand, small, fit = zip(*rounds, strict=True)
    by_turn = torch.tensor(losses)
    return {
        "seconds": [median(one.step for one in hand)],
        "train_one_epoch": median(a.step / b.step for a, b in zip(small, hand, strict=True)),
        "fit": median(a.step / b.step for a, b in zip(fit, hand, strict=True)),
        "around": median(one.around for one in fit),
        "meeting": median(time_meeting(group) for _ in range(MEETINGS)),
        "gap": (by_turn - by_turn[:, :1]).abs().max().item(),
    }


def data(steps: int) -> Split:
    """Batches for some steps: what they hold does not matter, but it can be learnt."""
    generator = torch.Generator().manual_seed(SEED)
    inputs = torch.randn(steps * BATCH, PIXELS, generator=generator)
    return inputs, inputs[:, :CLASSES].argmax(dim=1)


def mlp(width: int) -> nn.Sequential:
    """Two hidden layers, with the same weights in every call."""
    torch.manual_seed(SEED)
    return nn.Sequential(
        nn.Linear(PIXELS, width),
        nn.ReLU(),
        nn.Linear(width, width),
        nn.ReLU(),
        nn.Linear(width, CLASSES),
    )


# --- contestants ----------------------------------------------------------------------------------


def by_hand(model: nn.Module, batches: "Watched", turns: int) -> Epoch:
    """The loop that people write: each process takes its rows of a batch, and torch averages."""
    engine, loss_fn = DistributedDataParallel(model), nn.CrossEntropyLoss()
    optimizer = adamw(model, fused=True)
    share = BATCH // SIZE
    mine = slice(dist.get_rank() * share, (dist.get_rank() + 1) * share)

    def epoch() -> float:
        engine.train()
        total, seen = 0.0, 0
        for inputs, targets in batches:
            optimizer.zero_grad()
            loss = loss_fn(engine(inputs[mine]), targets[mine])
            loss.backward()
            optimizer.step()
            total, seen = total + loss.item() * share, seen + share
        sums = torch.tensor([total, seen], dtype=torch.float64)
        dist.all_reduce(sums)
        return float(sums[0] / sums[1])

    return epoch


def by_train_one_epoch(model: nn.Module, batches: "Watched", turns: int) -> Epoch:
    """The small loop, with a group."""
    optimizer, group, loss_fn = adamw(model, fused=True), tc.processes(), nn.CrossEntropyLoss()
    return lambda: tc.train_one_epoch(model, batches, loss_fn, optimizer, group=group)


def by_epochs(model: nn.Module, batches: "Watched", turns: int) -> Epoch:
    """The loop of ``fit``, without a folder and without validation."""
    run = tc.epochs(
        model,
        batches,
        loss_fn=nn.CrossEntropyLoss(),
        epochs=1 + turns,
        optimizer=adamw(model, fused=True),
        device="cpu",
        progress=False,
    )
    return lambda: next(run).train_loss


# --- clocks ---------------------------------------------------------------------------------------


class Timed(NamedTuple):
    """Seconds of a step, and of an epoch without its steps."""

    step: float
    around: float


class Watched:
    """A list of batches that notes when the first is asked for and when there is no more."""

    def __init__(self, batches: list[Split]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Split]:
        self.began = time.perf_counter()
        yield from self.batches
        self.ended = time.perf_counter()

    def __len__(self) -> int:
        return len(self.batches)


def time_epoch(epoch: Epoch, batches: Watched) -> tuple[Timed, float]:
    """Train for an epoch; its times and its loss."""
    started = time.perf_counter()
    loss = epoch()
    whole, steps = time.perf_counter() - started, batches.ended - batches.began
    return Timed(steps / len(batches), whole - steps), loss


def time_meeting(group: Any) -> float:
    """Seconds of one sum of 9 numbers, as every step of torchcls has one."""
    started = time.perf_counter()
    group.sum(*range(9))
    return time.perf_counter() - started
