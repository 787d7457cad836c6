"""One part of ``gpu.py``, in a process of its own: writes a line of JSON for each row.

    python scripts/gpu_parts.py '{"part": "lecture", "smoke": false, "rows": "FILE"}'

Everyone gets the same weights and the same batches, cut beforehand on the device, so that what
differs is the loop. The last epoch of a run is profiled, and not timed.
"""

import gc
import json
import os
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from benchmark import is_installed
from benchmark_child import LECTURE_BATCH, LECTURE_VALID_BATCH, SEED, step_task
from benchmark_loops import Clock, Result, Split, Task, adamw, cut, plain_loop, torchcls_on
from benchmark_peers import fastai
from lecture import lecture_network
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import torchcls as tc

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ON_CUDA = DEVICE.type == "cuda"
PRECISION = "bfloat16" if ON_CUDA else "float32"  # many CPUs emulate bfloat16, slowly
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
ITEM = "aten::_local_scalar_dense"  # .item(), float(), bool(): a wait where the tensor is on CUDA

Contestant = Callable[[Task, Clock], Result]

# --- what is measured -----------------------------------------------------------------------------


class DeviceClock:
    """Seconds of each epoch but the last, what that one waits for, and the device's memory."""

    def __init__(self, epochs: int) -> None:
        self._timed = epochs - 1
        self._profiler: profile | None = None

    def start(self) -> None:
        """Begin; the memory that is held now, such as the data, counts."""
        self.seconds: list[float] = []
        self._of_profiler = counted(started_profiler())  # it waits for the device itself
        if ON_CUDA:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        self._last = now()

    def lap(self) -> None:
        """End an epoch."""
        if self._profiler is not None:
            found = counted(self._profiler)
            self.counts = {name: found[name] - self._of_profiler[name] for name in found}
            return
        self.seconds.append(now() - self._last)
        if len(self.seconds) == self._timed:
            self._peak = torch.cuda.max_memory_reserved() if ON_CUDA else None
            self._profiler = started_profiler()
        self._last = now()

    def report(self) -> dict[str, Any]:
        """Without the first epoch, which compiles, captures and picks algorithms.

        Memory is what torch reserved: of a CUDA graph's the allocator calls most of it free.
        """
        # Where no launch was seen the driver is not traced, and 0 waits would be a lie.
        is_traced = any("Launch" in name for name in self.counts)
        return {
            "seconds": self.seconds[1:],
            "first": self.seconds[0],
            "waits": sum(self.counts.get(name, 0) for name in WAITS) if is_traced else None,
            "items": self.counts.get(ITEM, 0),
            "peak": self._peak,
        }


def now() -> float:
    """The time when the device has done all it was given."""
    if ON_CUDA:
        torch.cuda.synchronize()
    return time.perf_counter()


def started_profiler() -> profile:
    """The profiler, from now on; of the device's side it sees what the host asked for."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if ON_CUDA else [])]
    profiler = profile(activities=activities)
    profiler.start()
    return profiler


def counted(profiler: profile) -> Counter[str]:
    """Stop; how often each operation and call of the driver was seen."""
    profiler.stop()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder, "trace.json")
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    kinds = ("cpu_op", "cuda_runtime", "cuda_driver")
    return Counter(event["name"] for event in events if event.get("cat") in kinds)


# --- loops by hand --------------------------------------------------------------------------------


def quiet_loop(
    task: Task,
    clock: Clock,
    *,
    optimizer: torch.optim.Optimizer | None = None,
    schedule: Callable[[float], float] = lambda progress: 1.0,
    as_graph: bool = False,
) -> Result:
    """The plain loop of one who knows CUDA: sums stay on the device, one wait for each split."""
    train, valid = task.batches()
    optimizer = optimizer or adamw(task.model, fused=True, capturable=as_graph)
    rates = [group["lr"] for group in optimizer.param_groups]

    def step(inputs: Tensor, targets: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = task.loss_fn(task.model(inputs), targets)
        loss.backward()
        optimizer.step()
        return loss.detach()

    task.model.train()
    taken = captured(step, task, optimizer, *train[0]) if as_graph else step
    steps, history = len(train), []
    clock.start()
    for epoch in range(task.epochs):
        task.model.train()
        total, seen = torch.zeros((), device=task.device), 0
        for i, (inputs, targets) in enumerate(train):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * schedule((epoch * steps + i) / (task.epochs * steps))
            total += taken(inputs, targets) * len(targets)
            seen += len(targets)
        history.append((total.item() / seen, *quiet_validation(task, valid)))
        clock.lap()
    return history[-1][1:]


def quiet_validation(task: Task, valid: Iterable[Split]) -> Result:
    task.model.eval()
    sums, seen = torch.zeros(2, device=task.device), 0
    with torch.no_grad():
        for inputs, targets in valid:
            outputs = task.model(inputs)
            correct = (outputs.argmax(dim=1) == targets).sum()
            sums += torch.stack([task.loss_fn(outputs, targets) * len(targets), correct])
            seen += len(targets)
    loss, accuracy = (sums / seen).tolist()
    return loss, accuracy


def captured(
    step: Callable[[Tensor, Tensor], Tensor],
    task: Task,
    optimizer: torch.optim.Optimizer,
    inputs: Tensor,
    targets: Tensor,
) -> Callable[[Tensor, Tensor], Tensor]:
    """The step as a CUDA graph, as torch's documentation does it; no weight has moved afterwards.

    A batch of another size than this one, as the last, is taken without the graph.
    """
    before = {name: value.clone() for name, value in task.model.state_dict().items()}
    inputs, targets = inputs.clone(), targets.clone()  # what the graph reads, every time
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):
            step(inputs, targets)
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = step(inputs, targets)
    task.model.load_state_dict(before)
    for state in optimizer.state.values():  # AdamW's begins with zeros
        for value in state.values():
            value.zero_()

    def replayed(new_inputs: Tensor, new_targets: Tensor) -> Tensor:
        if new_inputs.shape != inputs.shape:
            return step(new_inputs, new_targets)
        inputs.copy_(new_inputs)
        targets.copy_(new_targets)
        graph.replay()
        return loss

    return replayed


def ours(task: Task, clock: Clock, **options: Any) -> Result:
    if isinstance(task.model, InBfloat16):
        task.model, options = task.model.net, {**options, "precision": PRECISION}
    return torchcls_on(task, clock, *task.batches(), **options)


def ours_from_the_host(task: Task, clock: Clock) -> Result:
    """As it is mostly written: the data in the host's memory, and ``Batches`` that cut it."""
    train, valid = (tuple(part.cpu() for part in split) for split in (task.train, task.valid))
    return torchcls_on(
        task,
        clock,
        tc.Batches(*train, batch_size=task.batch_size),
        tc.Batches(*valid, batch_size=task.valid_batch_size),
    )


ROWS: dict[str, Contestant | str] = {
    "plain loop": partial(plain_loop, fused=True),
    "plain loop, no waits": quiet_loop,
    "torchcls": ours,
    "fastai": fastai if is_installed("fastai") else "is not installed",
}
GRAPH: dict[str, Contestant | str] = {  # the last row: what is captured may crash its process
    "CUDA graph by hand": partial(quiet_loop, as_graph=True) if ON_CUDA else "needs CUDA"
}

# --- the parts ------------------------------------------------------------------------------------

Part = tuple[Callable[[], Task], dict[str, Contestant | str]]  # or why a row is left out


def lecture_part(spec: dict[str, Any]) -> Part:
    """The lecture's three-digit run; on drawn digits where there are none of MNIST's."""
    classes, smoke = (0, 1, 2), spec["smoke"]
    sizes, batches = (18_623, 3_147), (LECTURE_BATCH, LECTURE_VALID_BATCH)  # MNIST's, the lecture's
    if smoke:
        sizes = batches = (300, 90)
    try:
        train, valid = tc.mnist(os.environ.get("TORCHCLS_MNIST"), classes=classes)
    except FileNotFoundError:
        train, valid = (tc.drawn_digits(n, classes=classes, seed=n) for n in sizes)

    def task() -> Task:
        epochs = 3 if smoke else 12
        return Task(lecture_network(3), train, valid, *batches, epochs, ready=True)

    return task, {**ROWS, "torchcls, Batches on the host": ours_from_the_host, **GRAPH}


def step_part(spec: dict[str, Any]) -> Part:
    """Linear(20, 3) on batches of 32: all that is measured is what a step costs the host."""
    return lambda: step_task({**spec, "epochs": 3 if spec["smoke"] else 5}), {**ROWS, **GRAPH}


class InBfloat16(nn.Module):
    """A network under autocast, with float32 outputs: what ``precision="bfloat16"`` means."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits, (N, 10)."""
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=ON_CUDA):
            outputs = self.net(inputs)
        return outputs.float()


def pictures(n: int) -> Split:
    """Images of CIFAR-10's shape: for each class a smooth pattern, under noise; channels last."""
    patterns = torch.randn(10, 3, 4, 4, generator=torch.Generator().manual_seed(SEED))
    patterns = nn.functional.interpolate(patterns, size=32, mode="bilinear").to(DEVICE)
    draw = torch.Generator(DEVICE).manual_seed(n)
    targets = torch.randint(10, (n,), generator=draw, device=DEVICE)
    images = torch.randn(n, 3, 32, 32, generator=draw, device=DEVICE).add_(patterns[targets])
    return images.contiguous(memory_format=torch.channels_last), targets


def resnet_part(spec: dict[str, Any]) -> Part:
    """ResNet-18 for 32 x 32: channels last and, on CUDA, bfloat16 and ``model.compile()``."""
    from torchvision.models import resnet18

    samples, batch = ((8, 4), 4) if spec["smoke"] else ((25_600, 5_120), 512)
    train, valid = map(pictures, samples)

    def task() -> Task:
        torch.manual_seed(SEED)
        net = resnet18(num_classes=10)
        net.conv1, net.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
        net.to(memory_format=torch.channels_last)
        if ON_CUDA:
            net.compile()
        epochs = 3 if spec["smoke"] else 5
        return Task(InBfloat16(net), train, valid, batch, batch, epochs, ready=True)

    return task, {**ROWS, **GRAPH}


# --- airbench94 -----------------------------------------------------------------------------------


class Recipe(Task):
    """Training images shuffled and flipped on the device, with the same draws for everyone."""

    def batches(self) -> tuple[tc.Batches, list[Split]]:
        """All training batches have one size."""
        torch.manual_seed(SEED)
        train = tc.Batches(
            *self.train,
            batch_size=self.batch_size,
            shuffle=True,
            drop_last=True,
            transform=flipped,
        )
        return train, cut(self.valid, self.valid_batch_size)


def flipped(images: Tensor, targets: Tensor) -> Split:
    """Flip about every other image."""
    chosen = torch.rand(len(images), 1, 1, 1, device=images.device) < 0.5
    return torch.where(chosen, images.flip(3), images), targets


def airbench_part(spec: dict[str, Any]) -> Part:
    """Network, loss, optimizer and schedule of airbench94, for ten epochs.

    Left out, of everyone: the averaging of weights, shifted images, and what only accuracy asks
    for: filters that whiten (here they are orthogonal), and its flips at test time.
    Keller Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU" (2024), arXiv:2404.00498.
    """
    sizes, batch, epochs = ((24, 8), 8, 3) if spec["smoke"] else ((50_000, 10_000), 1024, 10)
    train, valid = map(pictures, sizes)
    loss_fn = nn.CrossEntropyLoss(label_smoothing=0.2)

    def task() -> Task:
        return Recipe(InBfloat16(airbench()), train, valid, batch, batch, epochs, loss_fn=loss_fn)

    def with_recipe(loop: Callable[..., Result]) -> Contestant:
        return lambda task, clock: loop(
            task, clock, optimizer=nesterov(task.model), schedule=triangle
        )

    return task, {"plain loop, no waits": with_recipe(quiet_loop), "torchcls": with_recipe(ours)}


def airbench() -> nn.Sequential:
    """Fixed filters of 2 x 2, three groups of two convolutions, and logits scaled by 1/9."""
    torch.manual_seed(SEED)
    filters = nn.Conv2d(3, 24, 2)
    nn.init.orthogonal_(filters.weight.requires_grad_(False))
    return nn.Sequential(
        filters,  # (N, 24, 31, 31)
        nn.GELU(),
        *group(24, 64),  # (N, 64, 15, 15)
        *group(64, 256),  # (N, 256, 7, 7)
        *group(256, 256),  # (N, 256, 3, 3)
        nn.MaxPool2d(3),
        nn.AvgPool2d(1, divisor_override=9),  # every value by 9, and so the logits
        nn.Flatten(),
        nn.Linear(256, 10, bias=False),
    ).to(memory_format=torch.channels_last)


def group(channels_in: int, channels: int) -> list[nn.Module]:
    """Convolve, halve, convolve; the filters begin as the identity as far as that goes."""
    first = nn.Conv2d(channels_in, channels, 3, padding=1, bias=False)
    second = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
    norms = [nn.BatchNorm2d(channels, eps=1e-12, momentum=0.4) for _ in range(2)]
    for convolution, norm in zip((first, second), norms, strict=True):
        nn.init.dirac_(convolution.weight.data[: convolution.in_channels])
        norm.weight.requires_grad_(False)
    return [first, nn.MaxPool2d(2), norms[0], nn.GELU(), second, norms[1], nn.GELU()]


def nesterov(model: nn.Module) -> torch.optim.SGD:
    """SGD in which the biases of BatchNorm learn 64 times faster, and decay as the others do.

    airbench adds the losses of a batch up; these are its rates for the mean of 1,024.
    """
    lr, decay, momentum = 1.5, 0.0153 / 11.5, 0.85  # 1.5 is 11.5 / (1 + 1 / (1 - momentum))
    norms = {module.bias for module in model.modules() if isinstance(module, nn.BatchNorm2d)}
    others = [p for p in model.parameters() if p.requires_grad and p not in norms]
    groups = [
        {"params": list(norms), "lr": 64 * lr, "weight_decay": decay / 64},
        {"params": others, "lr": lr, "weight_decay": decay},
    ]
    return torch.optim.SGD(groups, momentum=momentum, nesterov=True, fused=True)


def triangle(progress: float) -> float:
    """The scale of the learning rate: from 0.2 up to 1 at 23 % of the run, and down to 0.07."""
    if progress < 0.23:
        return 0.2 + 0.8 * progress / 0.23
    return 1 - 0.93 * (progress - 0.23) / 0.77


PARTS: dict[str, Callable[[dict[str, Any]], Part]] = {
    "lecture": lecture_part,
    "step": step_part,
    "airbench": airbench_part,
    "resnet": resnet_part,
}

# --- the process ----------------------------------------------------------------------------------


def measured(task: Callable[[], Task], contestant: Contestant | str) -> dict[str, Any]:
    """One row: what was measured, or why it was not."""
    if isinstance(contestant, str):
        return {"left out": contestant}
    gc.collect()
    if ON_CUDA:
        torch.compiler.reset()  # or the fifth ResNet meets torch's limit of recompilations
    try:
        job = task()
        job.model.to(DEVICE)
        job.train, job.valid = (
            (inputs.to(DEVICE), targets.to(DEVICE)) for inputs, targets in (job.train, job.valid)
        )
        clock = DeviceClock(job.epochs)
        loss, accuracy = contestant(job, clock)
        steps = len(job.batches()[0])
        return {
            **clock.report(),
            "steps": steps,
            "loss": float(loss),
            "accuracy": float(accuracy),
        }
    except Exception as error:
        line = (str(error).strip().splitlines() or [""])[0]
        return {"error": f"{type(error).__name__}: {line}", "trace": traceback.format_exc()}


def main() -> None:
    spec = json.loads(sys.argv[1])
    if spec["smoke"]:
        torch.set_num_threads(1)
    # A profiler that detaches from the driver may crash at the next replay of a CUDA graph.
    os.environ |= {"TEARDOWN_CUPTI": "0", "DISABLE_CUPTI_LAZY_REINIT": "1"}
    task, contestants = PARTS[spec["part"]](spec)
    with open(spec["rows"], "a") as file:
        for name, contestant in contestants.items():
            print(json.dumps({"row": name, **measured(task, contestant)}), file=file, flush=True)


if __name__ == "__main__":
    main()
