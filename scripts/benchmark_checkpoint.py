"""What keeping a run costs: whole runs with a folder for checkpoints and without, in turns.

At the default interval, 60 seconds, a short run writes its state at the start and at the end of
every epoch, and the weights of the best epoch beside it; in every step it notes what a later
process would need.
"""

import copy
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from benchmark_loops import Task

import torchcls as tc

TURNS = 3
EPOCHS = 3


def measure_checkpoint(task: Task, *, smoke: bool) -> dict[str, Any]:
    """Seconds of a run that is kept, what that adds to it, and the bytes of its state."""
    turns = 1 if smoke else TURNS
    train, valid = task.ready_batches()
    batches = train if task.ready or not smoke else train[:4]
    kept, added, size = [], [], 0
    for _ in range(turns):
        with tempfile.TemporaryDirectory(dir=".") as folder:
            plain = _run(task, batches, valid, None)
            seconds = _run(task, batches, valid, folder)
            size = Path(folder, "last.pt").stat().st_size
        kept.append(seconds)
        added.append(seconds - plain)
    steps = EPOCHS * len(batches)
    return {
        "seconds": [median(kept)],
        "added": median(added),
        "plain": median(k - a for k, a in zip(kept, added, strict=True)),
        "epochs": EPOCHS,
        "steps": steps,
        "bytes": size,
    }


def _run(task: Task, train: Any, valid: Any, folder: str | None) -> float:
    model = copy.deepcopy(task.model)
    started = time.perf_counter()
    tc.fit(
        model,
        train,
        valid[:1],
        loss_fn=task.loss_fn,
        epochs=EPOCHS,
        metrics=[tc.accuracy],
        device="cpu",
        checkpoint=folder,
        progress=False,
    )
    return time.perf_counter() - started
