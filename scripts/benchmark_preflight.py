"""What the preflight costs: at the start of a run, in every step, and when it is called by itself.

Runs with ``check="error"`` and ``check="off"`` take turns in one process; what is reported is the
median of the differences between neighbours. Everything that a run looks at only once is in the
time from its start to the end of its first epoch.
"""

import copy
import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import torch
from benchmark_loops import Task

import torchcls as tc

TURNS = 9
EPOCHS = 3  # the first has the look at the first step, the others only what every step costs


def measure_preflight(task: Task, *, smoke: bool) -> dict[str, Any]:
    """Seconds that checking adds to the start and to a step, and those of one ``check``."""
    turns = 1 if smoke else TURNS
    train, valid = task.ready_batches()
    batches = (train if task.ready else train[:4]), valid  # differences of little work show best
    steps = len(batches[0])
    starts, each = [], []
    for _ in range(turns):
        (start_on, step_on), (start_off, step_off) = (
            _run(task, batches, steps, check) for check in ("error", "off")
        )
        starts.append(start_on - start_off)
        each.append(step_on - step_off)
    batch = batches[0][0]
    plain = median(_timed(lambda: _forward_and_backward(task, batch), 2 * turns))
    alone = median(
        _timed(lambda: tc.check(task.model, batch, task.loss_fn, [tc.accuracy]), 2 * turns)
    )
    return {
        "seconds": [median(starts)],
        "step": median(each),
        "check": alone,
        "forward and backward": plain,
    }


def _run(task: Task, batches: Any, steps: int, check: str) -> tuple[float, float]:
    """Seconds up to the end of the first epoch, and of a later step."""
    model = copy.deepcopy(task.model)
    started = time.perf_counter()
    run = tc.epochs(
        model,
        batches[0],
        batches[1][:1],
        loss_fn=task.loss_fn,
        epochs=EPOCHS,
        metrics=[tc.accuracy],
        device="cpu",
        check=check,
        progress=False,
    )
    next(run)
    first = time.perf_counter()
    for _ in run:
        pass
    return first - started, (time.perf_counter() - first) / (EPOCHS - 1) / steps


def _forward_and_backward(task: Task, batch: Any) -> None:
    inputs, targets = batch
    parameters = list(task.model.parameters())
    torch.autograd.grad(task.loss_fn(task.model(inputs), targets), parameters)


def _timed(act: Callable[[], Any], times: int) -> Iterator[float]:
    act()
    for _ in range(times):
        started = time.perf_counter()
        act()
        yield time.perf_counter() - started
