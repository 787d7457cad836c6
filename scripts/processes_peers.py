"""Validation over two processes: torchcls reports what one process does, the usual ways do not.

    python scripts/processes_peers.py

Expected: torchcls within 1e-6 of the exact numbers (measured: 2e-9), nobody else in every column:

                                     accuracy  loss    accuracy  loss
                                     of 7      of 7    of 11     of 11
    one process, in float64          0.8571    0.7955  0.8182    0.7442
    torchcls                         exact     exact   exact     exact
    plain DDP, means averaged        0.9167    0.7072  0.8333    0.7322
    plain DDP, sums added up         0.8750    0.7711  0.8333    0.7322
    Lightning, self.log              0.8750    0.7711  0.8333    0.7322
    Lightning, torchmetrics          0.8750    0.7711  0.8333    0.7322
    Accelerate, gather               0.9167    0.7571  0.8333    0.7322
    Accelerate, gather_for_metrics   exact     0.8078  exact     0.7440

A fixed model, batches of 3; every way gets the same DataLoader and is started by torchrun. All but
torchcls repeat the first samples until each process has as many: they score 8 or 12 in place of 7,
12 in place of 11. What ``gather_for_metrics`` gathers sample by sample loses them again, the mean
over a batch does not. The first samples are ones that the model gets right, so accuracies come out
too high. Measured with torch 2.14.1, Lightning 2.6.6, torchmetrics 1.9.0 and Accelerate 1.15.0 on a
CPU, in a minute on two busy cores.

Peers are measured where they are installed; only torchcls is judged. The data are drawn from a
seed, 0; other data give other figures for the rest.
"""

import argparse
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import torch
import torch.distributed as dist
from exact_averages import EXACT, PEERS, Loader, off
from lecture import verdict
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import torchcls as tc

SIZES = (7, 11)  # samples: neither can be dealt out to two processes evenly
BATCH_SIZE = 3
TORCHRUN = ("torch.distributed.run", "--standalone", "--local-addr=127.0.0.1", "--nproc-per-node=2")

Numbers = list[float]  # accuracy and loss, for each of SIZES


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--smoke", action="store_true", help="torchcls and plain DDP alone")
    smoke = parser.parse_args(argv).smoke
    rows = over_two_processes("torchcls", "plain DDP")
    for name in () if smoke else ("Lightning", "Accelerate"):
        if importlib.util.find_spec(PEERS[name][0]) is None:
            rows[name] = "not installed"
        else:
            rows |= over_two_processes(name)
    print(table(rows))
    ours = rows["torchcls"]
    if isinstance(ours, str):
        return verdict(False, f"torchcls {ours}")
    errors = relative_errors(ours)
    exact = all(error <= EXACT for error in errors)  # a NaN is not
    return verdict(exact, f"torchcls: off by {', '.join(f'{error:.0e}' for error in errors)}")


# --- data and model -------------------------------------------------------------------------------


def samples(n: int) -> tuple[Tensor, Tensor]:
    """Four features and one of three classes, (N, 4) and (N,): what the model says, or drawn."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(n, 4, generator=generator)
    targets = torch.randint(3, (n,), generator=generator)
    is_drawn = torch.rand(n - 1, generator=generator) < 0.5
    said = inputs[:, :3].argmax(dim=1)
    is_drawn = torch.cat(
        [torch.tensor([False]), is_drawn]
    )  # padding repeats the first: it is right
    return inputs, torch.where(is_drawn, targets, said)


def loader(n: int) -> Loader:
    return DataLoader(TensorDataset(*samples(n)), batch_size=BATCH_SIZE)


def network() -> nn.Linear:
    """The first three features are the scores."""
    model = nn.Linear(4, 3, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.eye(3, 4))
    return model


def exact_numbers() -> Numbers:
    """Accuracy and loss of all samples at once, in float64."""
    numbers = []
    for inputs, targets in map(samples, SIZES):
        outputs = network().double()(inputs.double())
        right = outputs.argmax(dim=1) == targets
        numbers += [right.double().mean().item(), cross_entropy(outputs, targets).item()]
    return numbers


# --- how everyone validates -----------------------------------------------------------------------
# Called in each of two processes. Returns accuracy and loss as they are reported, for each way to
# get them: by what the table adds to the name.


def validate_torchcls(model: nn.Module, batches: Loader) -> dict[str, Numbers]:
    found = tc.evaluate(
        model,
        batches,
        loss_fn=nn.CrossEntropyLoss(),
        metrics=[tc.accuracy],
        group=tc.processes(),
    )
    return {"": [found.metrics["accuracy"], found.loss]}


def validate_plain_ddp(model: nn.Module, batches: Loader) -> dict[str, Numbers]:
    if not dist.is_initialized():
        dist.init_process_group("gloo")
    model = DistributedDataParallel(model).eval()
    sampler = DistributedSampler(batches.dataset, shuffle=False)
    means, sums, n = [], torch.zeros(2), torch.tensor(0)
    with torch.no_grad():
        for inputs, targets in DataLoader(batches.dataset, BATCH_SIZE, sampler=sampler):
            outputs = model(inputs)
            accuracy = (outputs.argmax(dim=1) == targets).float().mean()
            means.append(torch.stack([accuracy, cross_entropy(outputs, targets)]))
            sums += means[-1] * len(targets)
            n += len(targets)
    mean = torch.stack(means).mean(dim=0)
    for summed in (mean, sums, n):
        dist.all_reduce(summed)
    return {
        ", means averaged": (mean / dist.get_world_size()).tolist(),
        ", sums added up": (sums / n).tolist(),
    }


def validate_lightning(model: nn.Module, batches: Loader) -> dict[str, Numbers]:
    import lightning as L
    from torchmetrics import Accuracy, MeanMetric

    class Module(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = model
            self.accuracy = Accuracy(task="multiclass", num_classes=3)
            self.loss = MeanMetric()

        def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
            inputs, targets = batch
            outputs = self.model(inputs)
            loss = cross_entropy(outputs, targets)
            accuracy = (outputs.argmax(dim=1) == targets).float().mean()
            self.log("logged accuracy", accuracy, sync_dist=True)
            self.log("logged loss", loss, sync_dist=True)
            self.accuracy(outputs, targets)
            self.loss(loss, len(targets))
            self.log("accuracy", self.accuracy)
            self.log("loss", self.loss)

    trainer = L.Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    found = trainer.validate(Module(), batches, verbose=False)[0]
    return {
        ", self.log": [found["logged accuracy"], found["logged loss"]],
        ", torchmetrics": [found["accuracy"], found["loss"]],
    }


def validate_accelerate(model: nn.Module, batches: Loader) -> dict[str, Numbers]:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    model, batches = accelerator.prepare(model.eval(), batches)
    numbers = {}
    for gather in (accelerator.gather, accelerator.gather_for_metrics):
        right, losses = [], []
        with torch.no_grad():
            for inputs, targets in batches:
                outputs = model(inputs)
                loss = cross_entropy(outputs, targets)
                right.append(gather(outputs.argmax(dim=1) == targets))
                losses.append(gather(loss.repeat(len(targets))))
        means = [torch.cat(parts).float().mean().item() for parts in (right, losses)]
        numbers[f", {gather.__name__}"] = means
    return numbers


WAYS = {
    "torchcls": validate_torchcls,
    "plain DDP": validate_plain_ddp,
    "Lightning": validate_lightning,
    "Accelerate": validate_accelerate,
}


# --- two processes --------------------------------------------------------------------------------


def over_two_processes(*names: str) -> dict[str, Numbers | str]:
    """The rows of those who validate in the same two processes, or why there are none."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}  # everyone works on the CPU
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", *TORCHRUN, __file__, folder, *names]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        if done.returncode == 0:
            return json.loads(Path(folder, "rows.json").read_text())
    # torchrun's own words come last.
    errors = re.findall(r"^(?:\[rank\d\]: )?([\w.]+Error: .*)", done.stderr, re.MULTILINE)
    return dict.fromkeys(names, f"did not run: {(errors or ['?'])[0]}")


def in_one_of_two(folder: str, *names: str) -> None:
    """What each of the processes does; the first leaves the rows in the folder."""
    os.chdir(folder)  # whatever a library saves by default goes away with it
    rows: dict[str, Numbers] = {}
    for name in names:
        title = f"{name} {version(PEERS[name][1])}" if name in PEERS else name
        for n in SIZES:
            for way, numbers in WAYS[name](network(), loader(n)).items():
                rows.setdefault(title + way, []).extend(numbers)
    if os.environ["RANK"] == "0":
        Path("rows.json").write_text(json.dumps(rows))


# --- the table ------------------------------------------------------------------------------------


def relative_errors(numbers: Numbers) -> Numbers:
    return [abs(number / exact - 1) for number, exact in zip(numbers, exact_numbers(), strict=True)]


def table(rows: dict[str, Numbers | str]) -> str:
    """The rows as Markdown."""
    titles = ["", *(f"{what} of {n}" for n in SIZES for what in ("accuracy", "loss"))]
    lines = [titles, ["---"] * len(titles)]
    lines.append(["one process, in float64", *(f"{number:.4f}" for number in exact_numbers())])
    for name, found in rows.items():
        if isinstance(found, str):
            lines.append([name, found] + [""] * (len(titles) - 2))
            continue
        errors = relative_errors(found)
        cells = [f"{number:.4f} ({off(e)})" for number, e in zip(found, errors, strict=True)]
        lines.append([name, *cells])
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


if __name__ == "__main__":
    if "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun has started this one
        in_one_of_two(*sys.argv[1:])
    else:
        sys.exit(main())
