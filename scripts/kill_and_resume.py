"""A run that is killed at random moments ends with the bits of the run that was never stopped.

    python scripts/kill_and_resume.py --times 30

Trains a small network with dropout, momentum, a one-cycle schedule, shuffling and micro-batches,
once in peace and then again and again under SIGKILL: each time the process is killed at a random
moment, started again with ``resume=True``, killed again with a chance of one half, and so on until
it comes to its end. The weights, the optimizer's state and the history (without the times) must
equal those of the run in peace, bit for bit. Fed by ``Batches``, by a DataLoader that draws in the
process of the training, by one with worker processes, and by torchdata's StatefulDataLoader where
that is installed. Exits with 1 where a run differs.
"""

import argparse
import hashlib
import importlib.util
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import torchcls as tc

EPOCHS = 3
SAVE_EVERY = 0.02  # seconds: a run lasts about half of one
SOURCES = ["Batches", "DataLoader", "DataLoader with workers"]
if importlib.util.find_spec("torchdata") is not None:
    SOURCES.append("StatefulDataLoader")


class Noisy(Dataset[tuple[Tensor, Tensor]]):
    """Points that get other noise at each look, from all three generators that people use."""

    def __init__(self, inputs: Tensor, targets: Tensor) -> None:
        self._inputs, self._targets = inputs, targets

    def __len__(self) -> int:
        return len(self._inputs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        noise = torch.randn(8) + random.random() + float(np.random.randn())
        return self._inputs[index] + 0.1 * noise, self._targets[index]


def source(name: str) -> Any:
    """The training batches: 15 of 32 points."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(480, 8, generator=generator)
    targets = inputs[:, :4].argmax(1)
    if name == "Batches":
        return tc.Batches(inputs, targets, batch_size=32, shuffle=True)
    if name == "StatefulDataLoader":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torchdata calls what newer torch has deprecated
            from torchdata.stateful_dataloader import StatefulDataLoader

            return StatefulDataLoader(Noisy(inputs, targets), batch_size=32, shuffle=True)
    workers = 2 if name.endswith("workers") else 0
    return DataLoader(Noisy(inputs, targets), batch_size=32, shuffle=True, num_workers=workers)


def train(name: str, folder: Path | None) -> str:
    """Train, or go on training; returns a fingerprint of all that came of it."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    model = nn.Sequential(
        nn.Linear(8, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(0.2), nn.Linear(64, 4)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    history = tc.fit(
        model,
        source(name),
        list(zip(torch.ones(5, 60, 8), torch.zeros(5, 60, dtype=torch.int64), strict=True)),
        loss_fn=nn.CrossEntropyLoss(),
        epochs=EPOCHS,
        metrics=[tc.accuracy],
        optimizer=optimizer,
        schedule=tc.one_cycle(),
        micro_batch=12,  # 12 + 12 + 8
        ignore=["batch-statistics"],  # which pieces have, and which are kept like the rest
        device="cpu",
        checkpoint=folder,
        resume=folder is not None,
        save_every=SAVE_EVERY,
        progress=False,
    )
    digest = hashlib.sha256()
    for value in [*model.state_dict().values(), *_tensors(optimizer.state_dict())]:
        digest.update(value.numpy().tobytes())
    for record in history:
        digest.update(json.dumps({**record, "time": 0}).encode())
    return digest.hexdigest()


def _tensors(state: dict[str, Any]) -> list[Tensor]:
    held = [value for entry in state["state"].values() for value in entry.values()]
    return [value for value in held if isinstance(value, Tensor)]


# ------------------------------------------------------------------ processes


def in_child(work: Callable[[], str], answer: Path, patience: float | None) -> bool:
    """Do it in a process of its own; whether it came to its end before it was killed.

    A fork spares the import of torch. This process has never computed with torch, so there are no
    threads that a fork would lose.
    """
    child = os.fork()
    if child == 0:
        os.setsid()  # the workers of a loader shall go with it
        status = 1
        try:
            answer.write_text(work())
            status = 0
        finally:
            sys.stderr.flush()
            os._exit(status)
    ends = None if patience is None else time.monotonic() + patience
    while ends is None or time.monotonic() < ends:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            if status != 0:
                raise RuntimeError(f"the child failed with status {status}")
            return True
        time.sleep(0.001)
    try:
        os.killpg(child, signal.SIGKILL)
    except ProcessLookupError:  # not in a group of its own yet
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def kill_and_resume(
    name: str, chance: random.Random, seconds: float, work: Path
) -> tuple[str, int]:
    """One run under fire; returns its fingerprint and how often it was killed."""
    folder, answer = work / "run", work / "answer"
    shutil.rmtree(folder, ignore_errors=True)
    kills = 0
    patience: float | None = chance.uniform(0, seconds)
    while not in_child(lambda: train(name, folder), answer, patience):
        kills += 1
        patience = chance.uniform(0, seconds) if chance.random() < 0.5 else None
    return answer.read_text(), kills


def main(argv: Sequence[str] | None = None) -> int:
    """Kill and compare; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--times", type=int, default=30, help="runs under fire for each source")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--smoke", action="store_true", help="one run for each source")
    options = parser.parse_args(argv)
    times = 1 if options.smoke else options.times
    # What torch imports late it shall import once, and not in every child before its first step.
    torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1)
    chance, failures = random.Random(options.seed), 0
    with tempfile.TemporaryDirectory() as work:
        for name in SOURCES:
            answer = Path(work, "answer")
            started = time.monotonic()
            in_child(lambda name=name: train(name, None), answer, None)  # type: ignore[misc]
            expected, seconds = answer.read_text(), time.monotonic() - started
            kills = same = 0
            for _ in range(times):
                found, killed = kill_and_resume(name, chance, seconds, Path(work))
                kills += killed
                same += found == expected
            failures += times - same
            print(
                f"{name}: {same} of {times} runs equal to the bit, killed {kills} times", flush=True
            )
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
