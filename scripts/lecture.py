"""What the lecture's scripts share: options, digits, the network, and the verdict.

The lecture trains one small convolutional network on the digits 0, 1 and 2. Its tables were made
with fastai and are kept in full precision in ``tests/golden/fastai_lecture.json``; a script passes
when every loss lies within 1e-4 and every metric within 1e-6 of them.
The images are MNIST's (LeCun, Cortes and Burges; CC BY-SA 3.0).
"""

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

import torchcls as tc

LOSS_BAND = 1e-4  # other CPUs, thread counts and torch versions move a loss by a few 1e-6
METRIC_BAND = 1e-6  # one image more or less is at least 3e-4, so this means: the same images
GOLDEN = Path(__file__).resolve().parents[1] / "tests" / "golden" / "fastai_lecture.json"

Split = tuple[Tensor, Tensor]


def parse_options(description: str | None, argv: Sequence[str] | None) -> argparse.Namespace:
    """Read ``--data``, ``--out`` and ``--smoke``; ``epochs`` follows: 10, or 2 in smoke mode."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data",
        default=os.environ.get("TORCHCLS_MNIST"),
        help="the folder of MNIST's files (default: $TORCHCLS_MNIST, then torchcls' cache)",
    )
    parser.add_argument("--out", type=Path, help="a folder for tables and pictures")
    parser.add_argument(
        "--smoke", action="store_true", help="a few drawn digits: only whether everything runs"
    )
    options = parser.parse_args(argv)
    options.epochs = 2 if options.smoke else 10
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
    return options


def load_digits(options: argparse.Namespace, classes: tuple[int, ...]) -> tuple[Split, Split]:
    """MNIST's training and test images of ``classes``, class by class; drawn ones for a smoke."""
    if options.smoke:
        train = tc.drawn_digits(300, classes=classes, seed=0)
        return train, tc.drawn_digits(100, classes=classes, seed=1)
    try:
        return tc.mnist(options.data, classes=classes)
    except FileNotFoundError as error:
        raise SystemExit(
            f"{error} Pass --data FOLDER or set TORCHCLS_MNIST; "
            "torchcls.mnist(FOLDER, download=True) fetches the files; --smoke needs none."
        ) from None


def with_column(split: Split) -> Split:
    """Images and targets as one column of 0.0 and 1.0, (N, 1): the shape of a sigmoid's output."""
    images, targets = split
    return images, targets[:, None].float()


def with_one_hot(split: Split) -> Split:
    """Images and targets as one-hot rows of two classes, float, (N, 2)."""
    images, targets = split
    return images, tc.one_hot(targets, num_classes=2).float()


def lecture_network(outputs: int, *, sigmoid: bool = False) -> nn.Sequential:
    """Build the lecture's network from seed 0; with ``sigmoid`` its outputs are probabilities."""
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(1, 16, 5),  # (N, 16, 24, 24)
        nn.ReLU(),
        nn.MaxPool2d(2),  # (N, 16, 12, 12)
        nn.Flatten(),  # (N, 2304)
        nn.Linear(2304, outputs),
    ]
    return nn.Sequential(*layers, nn.Sigmoid()) if sigmoid else nn.Sequential(*layers)


def report(history: tc.History, experiment: str, options: argparse.Namespace) -> int:
    """Print a run beside the lecture's and judge it: 0 inside the bands, 1 outside.

    A smoke run has no table to stand beside: there the training loss must have fallen.
    """
    print(history)
    if options.out is not None:
        history.to_csv(options.out / f"{experiment}.csv")
    if options.smoke:
        first, *_, last = (record.train_loss for record in history)
        return verdict(last < first, f"training loss {first:.4f} -> {last:.4f}")
    return _compare(history, experiment)


def _compare(history: tc.History, experiment: str) -> int:
    columns, rows = lecture_table(experiment)
    names = ["smooth_loss" if column == "train_loss" else column for column in columns]
    ours = torch.tensor([[record[name] for name in names] for record in history]).double()
    theirs = torch.tensor(rows).double()
    print(f"\n{experiment}: here, and in the lecture")
    print("epoch" + "".join(f"{name:>16}{'lecture':>10}" for name in names))
    for epoch, (mine, its) in enumerate(zip(ours.tolist(), theirs.tolist(), strict=True)):
        pairs = zip(mine, its, strict=True)
        print(f"{epoch:>5}" + "".join(f"{one:>16.6f}{other:>10.6f}" for one, other in pairs))
    gaps = dict(zip(names, (ours - theirs).abs().amax(dim=0).tolist(), strict=True))
    inside = all(gap <= _band(name) for name, gap in gaps.items())  # a NaN is outside
    found = ", ".join(f"{name} {gap:.1e} (band {_band(name):.0e})" for name, gap in gaps.items())
    return verdict(inside, f"largest difference: {found}")


def _band(name: str) -> float:
    return LOSS_BAND if name.endswith("loss") else METRIC_BAND


def lecture_table(experiment: str) -> tuple[list[str], list[list[float]]]:
    """Column names and rows, one per epoch; ``train_loss`` there is our ``smooth_loss``."""
    table = json.loads(GOLDEN.read_text())["experiments"][experiment]
    return table["columns"], table["rows"]


def verdict(passed: bool, sentence: str) -> int:
    """Print the sentence with what came of it, and return the exit status."""
    print(f"{'ok' if passed else 'FAILED'}: {sentence}")
    return 0 if passed else 1
