"""What keeping a run costs: an epoch with a folder for checkpoints, and one without, in turns.

At the default interval, 60 seconds, a short epoch ends with a state of the run, and where it is the
best one with its weights; in every step the run notes what a later process would need.
"""

import copy
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from benchmark_loops import Task

import torchcls as tc

PAIRS = 8


def measure_checkpoint(task: Task, *, smoke: bool) -> dict[str, Any]:
    """Seconds of an epoch that is not kept, what keeping it adds, and the bytes of the state."""
    pairs = 1 if smoke else PAIRS
    train, valid = task.ready_batches()
    plain, added = [], []
    with tempfile.TemporaryDirectory(dir=".") as folder:
        kept, free = (_run(task, train, valid, place, pairs) for place in (folder, None))
        _seconds(kept), _seconds(free)  # the first epoch has the look at the first step
        for pair in range(pairs):
            order = (kept, free) if pair % 2 else (free, kept)
            seconds = {run: _seconds(run) for run in order}
            plain.append(seconds[free])
            added.append(seconds[kept] - seconds[free])
        size = Path(folder, "last.pt").stat().st_size
    return {"seconds": [median(plain)], "added": median(added), "bytes": size}


def _run(task: Task, train: Any, valid: Any, folder: str | None, pairs: int) -> Any:
    return tc.epochs(
        copy.deepcopy(task.model),
        train,
        valid,
        loss_fn=task.loss_fn,
        epochs=1 + pairs,
        metrics=[tc.accuracy],
        device="cpu",
        checkpoint=folder,
        progress=False,
    )


def _seconds(run: Any) -> float:
    started = time.perf_counter()
    next(run)
    return time.perf_counter() - started
