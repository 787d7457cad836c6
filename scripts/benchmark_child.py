"""One measurement of the benchmark, in a process of its own: prints one line of JSON.

    python scripts/benchmark_child.py '{"table": "epoch", "contestant": "torchcls", ...}'

``benchmark.py`` starts these; the fields are those of its ``Spec``. What is measured starts when
everything is imported, loaded and built, and it ends with the last epoch.
"""

import contextlib
import importlib
import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# torch and torchcls are imported where they are used: how long that takes is one of the tables.

SEED = 0
LECTURE_BATCH, LECTURE_VALID_BATCH = 1862, 3147  # a tenth of the training images; all of the others
NETWORK_SAMPLES, NETWORK_VALID, NETWORK_BATCH = 6000, 1000, 128
STEPS, VALID_STEPS, STEP_BATCH = 2000, 200, 32  # batches ready before the clock starts
SCALING_BATCH = 1024
SCALING_AT_LEAST = 100_000  # samples in a run: short epochs are repeated, or noise is what is timed
PIXELS = 28 * 28
KIB = 1024


class Clock:
    """Seconds between laps, and the memory of the process from the start on."""

    def start(self) -> None:
        """Begin; what is resident now was loaded before and is no work of the contestant."""
        self.seconds: list[float] = []
        self._loaded = memory("VmRSS")
        self._peak_before = memory("VmHWM")
        with contextlib.suppress(OSError):  # from now on the peak is the training's own
            Path("/proc/self/clear_refs").write_text("5")
        self._last = time.perf_counter()

    def lap(self) -> None:
        """End an epoch."""
        now = time.perf_counter()
        self.seconds.append(now - self._last)
        self._last = now

    def report(self) -> dict[str, Any]:
        """Seconds of each epoch; bytes of the process at its peak, and of that above the data."""
        peak = memory("VmHWM")
        return {
            "seconds": self.seconds,
            "peak": max(peak, self._peak_before),  # NaN stays NaN
            "working": peak - self._loaded,
        }


def memory(field: str) -> float:
    """``VmRSS`` or ``VmHWM`` of this process in bytes; NaN where there is no /proc.

    Not getrusage: its maximum is inherited from the process that started this one.
    """
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * KIB
    return math.nan


# --- tasks ----------------------------------------------------------------------------------------


def measure_task(spec: dict[str, Any]) -> dict[str, Any]:
    """Train one contestant on one task; its epochs, memory, loss and accuracy."""
    import torch
    from benchmark_peers import CONTESTANTS

    # The first optimizer of a process makes torch load its compiler, for seconds and 100 MB.
    torch.optim.SGD([torch.zeros(1)])
    clock = Clock()
    task = TASKS[spec["table"]](spec)
    steps = math.ceil(len(task.train[0]) / task.batch_size)
    loss, accuracy = CONTESTANTS[spec["contestant"]](task, clock)
    return {**clock.report(), "steps": steps, "loss": float(loss), "accuracy": float(accuracy)}


def lecture_task(spec: dict[str, Any]) -> Any:
    """The lecture's three-digit run: class by class, nothing shuffled, the small batch kept."""
    from benchmark_loops import Task
    from lecture import lecture_network

    train, valid = digits(spec, (0, 1, 2))
    sizes = (40, len(valid[0])) if spec["smoke"] else (LECTURE_BATCH, LECTURE_VALID_BATCH)
    return Task(lecture_network(3), train, valid, *sizes, spec["epochs"])


def network_task(spec: dict[str, Any]) -> Any:
    """A network that people really use on small images, on the first images of all ten digits."""
    import torch
    from benchmark_loops import Task
    from benchmark_networks import NETWORKS

    train, valid = digits(spec)
    train, valid = first(train, NETWORK_SAMPLES), first(valid, NETWORK_VALID)
    torch.manual_seed(SEED)
    model = NETWORKS[spec["variant"]]()
    return Task(model, train, valid, NETWORK_BATCH, len(valid[0]), spec["epochs"])


def step_task(spec: dict[str, Any]) -> Any:
    """Linear(20, 3) on batches of 32: almost nothing to compute, so what is left is overhead."""
    import torch
    from benchmark_loops import Task

    generator = torch.Generator().manual_seed(SEED)
    steps = (20, 4) if spec["smoke"] else (STEPS, VALID_STEPS)
    teacher = torch.randn(20, 3, generator=generator)
    train, valid = (torch.randn(n * STEP_BATCH, 20, generator=generator) for n in steps)
    torch.manual_seed(SEED)
    return Task(
        torch.nn.Linear(20, 3),
        (train, (train @ teacher).argmax(dim=1)),
        (valid, (valid @ teacher).argmax(dim=1)),
        STEP_BATCH,
        STEP_BATCH,
        spec["epochs"],
        ready=True,
    )


def digits(spec: dict[str, Any], classes: tuple[int, ...] | None = None) -> Any:
    """MNIST's images of ``classes``, of all in the order of the file; drawn ones for a smoke."""
    import torchcls as tc

    if spec["smoke"]:
        chosen = range(10) if classes is None else classes
        return tuple(tc.drawn_digits(80 - 40 * seed, classes=chosen, seed=seed) for seed in (0, 1))
    return tc.mnist(spec["data"], classes=classes)


def first(split: Any, n: int) -> Any:
    """The first n samples, copied: the rest of the file does not stay in memory."""
    return tuple(part[:n].clone() for part in split)


TASKS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "epoch": lecture_task,
    "networks": network_task,
    "step": step_task,
}


# --- growth with the number of samples ------------------------------------------------------------


def measure_scaling(spec: dict[str, Any]) -> dict[str, Any]:
    """Epochs over n samples of uint8 in memory; memory over what they and one batch take."""
    import torch

    def data(n: int) -> Any:
        generator = torch.Generator().manual_seed(SEED)
        size = (n, 1, 28, 28)
        images = torch.randint(256, size, dtype=torch.uint8, generator=generator)
        return images, torch.randint(3, (n,), generator=generator)

    train_linear(*data(2 * SCALING_BATCH), epochs=1)  # torch's own threads and kernels get loaded
    clock = Clock()
    clock.start()
    images, targets = data(spec["variant"])
    clock.lap()
    at_least = 0 if spec["smoke"] else SCALING_AT_LEAST
    epochs = max(spec["epochs"], at_least // len(images))
    seconds = train_linear(images, targets, epochs=epochs)
    stored = images.nbytes + targets.nbytes
    batch = min(SCALING_BATCH, len(images)) * PIXELS * 4  # as float32
    return {**clock.report(), "seconds": seconds, "stored": stored, "batch": batch}


def train_linear(images: Any, targets: Any, epochs: int) -> list[float]:
    """Seconds of each epoch of a linear model on shuffled batches, scaled as they are cut."""
    import torch

    import torchcls as tc

    torch.manual_seed(SEED)
    history = tc.fit(
        torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(PIXELS, 3)),
        tc.Batches(
            images,
            targets,
            batch_size=SCALING_BATCH,
            shuffle=True,
            transform=lambda inputs, targets: (inputs.float().div_(255), targets),
        ),
        loss_fn=torch.nn.CrossEntropyLoss(),
        epochs=epochs,
        device="cpu",
        progress=False,
    )
    return [record.time for record in history]


# --- the preflight --------------------------------------------------------------------------------

PREFLIGHT = {"lecture": lecture_task, "step": step_task}  # and the networks


def measure_look(spec: dict[str, Any]) -> dict[str, Any]:
    """What checking costs on one task."""
    from benchmark_preflight import measure_preflight

    task = PREFLIGHT.get(spec["variant"], network_task)(spec)
    return measure_preflight(task, smoke=spec["smoke"])


def measure_keeping(spec: dict[str, Any]) -> dict[str, Any]:
    """What checkpoints cost on one task."""
    from benchmark_checkpoint import measure_checkpoint

    task = PREFLIGHT.get(spec["variant"], network_task)(spec)
    return measure_checkpoint(task, smoke=spec["smoke"])


# --- many processes -------------------------------------------------------------------------------


def measure_many(spec: dict[str, Any]) -> dict[str, Any]:
    """What a step over processes costs."""
    from benchmark_processes import measure_processes

    return measure_processes(spec)


# --- imports --------------------------------------------------------------------------------------


def measure_import(spec: dict[str, Any]) -> dict[str, Any]:
    """Seconds of ``import torch``, and of the library's import after it."""
    started = time.perf_counter()
    importlib.import_module("torch")
    between = time.perf_counter()
    importlib.import_module(spec["variant"])
    return {"torch": between - started, "seconds": [time.perf_counter() - between]}


# --- the process ----------------------------------------------------------------------------------


def measure(spec: dict[str, Any]) -> dict[str, Any]:
    """Take the measurement that ``spec`` describes."""
    if spec["table"] == "imports":
        return measure_import(spec)
    if spec["table"] == "preflight":
        return measure_look(spec)
    if spec["table"] == "checkpoint":
        return measure_keeping(spec)
    if spec["table"] == "processes":
        return measure_many(spec)
    return measure_scaling(spec) if spec["table"] == "scaling" else measure_task(spec)


def main() -> None:
    spec = json.loads(sys.argv[1])
    if spec["threads"] is not None:
        import torch

        torch.set_num_threads(spec["threads"])
    print(json.dumps(measure(spec)))


if __name__ == "__main__":
    main()
