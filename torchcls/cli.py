"""The command ``torchcls``: train the lecture's network and write down what came of it."""

import argparse
import dataclasses
import functools
import itertools
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

import torchcls as tc
from torchcls import plots

Split = tuple[Tensor, Tensor]


def console() -> NoReturn:
    """Run the command and leave with its exit status."""
    try:
        status = main()
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of the pipe has left; nothing more can be said to it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    sys.exit(status)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: The arguments, those of the process if None.

    Returns:
        The exit status: 0; 130 after Ctrl-C, with everything so far written. Bad input raises
        SystemExit with status 2 after one line on standard error.
    """
    parser = _parser()
    options = parser.parse_args(argv)
    try:
        return _train(options)
    except BrokenPipeError:  # an OSError too, but no bad input
        raise
    except (OSError, ValueError) as error:
        parser.exit(2, f"torchcls: error: {error}\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="torchcls", description="Classification training in plain PyTorch."
    )
    parser.add_argument("--version", action="version", version=f"torchcls {tc.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    train = commands.add_parser(
        "train",
        help="train the lecture's network on digits",
        description="Train Conv2d(1,16,5) ReLU MaxPool2d(2) Flatten Linear(2304,k) on digits. "
        "Without arguments it draws its own digits and needs no network.",
        formatter_class=_Defaults,
    )
    add = train.add_argument
    add(
        "--data",
        default="drawn",
        metavar="drawn|mnist|PATH",
        help="drawn digits; MNIST, downloaded where it is not there yet; or a folder with MNIST as "
        "IDX files (raw or .gz) or as PNG folders (training/testing or train/test)",
    )
    add("--classes", type=_digits, metavar="0,1,2", help="the digits to tell apart (default: all)")
    add(
        "--head",
        choices=("multiclass", "onehot", "binary"),
        default="multiclass",
        help="class ids, one-hot rows, or one sigmoid for two digits",
    )
    add("--epochs", type=_positive, default=10, help="passes over the training images")
    add("--batch-size", type=_positive, default=128, help="images in a step")
    add("--lr", type=float, default=1e-3, help="learning rate")
    add("--seed", type=int, default=0, help="of the weights, the order and the drawn digits")
    add("--device", help="cpu, cuda, cuda:1, ... (default: the accelerator that is there)")
    add("--out", metavar="FOLDER", help="where to write (default: the first free torchcls-out)")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return number


class _Defaults(argparse.ArgumentDefaultsHelpFormatter):
    """Adds "(default: ...)" where there is one value to name; None says it in words already."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


def _digits(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be digits like 0,1,2, got {text!r}") from None


def _train(options: argparse.Namespace) -> int:
    device = tc.select_device(options.device)
    classes = _classes(options)
    train, valid = _data(options, classes)
    head = _HEADS[options.head]
    torch.manual_seed(options.seed)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(2304, 1 if options.head == "binary" else len(classes)),
    )
    images, ids = valid
    valid_batches = tc.Batches(images, head.targets(ids, len(classes)), batch_size=1000)
    run = tc.epochs(
        model,
        tc.Batches(
            train[0],
            head.targets(train[1], len(classes)),
            batch_size=options.batch_size,
            shuffle=True,
            seed=options.seed,
        ),
        valid_batches,
        loss_fn=head.loss_fn,
        epochs=options.epochs,
        metrics=head.metrics,
        lr=options.lr,
        device=device,
    )
    out = _out_folder(options.out)
    print(
        f"{options.data} digits {', '.join(map(str, classes))}: {len(train[1])} training and "
        f"{len(ids)} validation images, {options.head} head, on {device}"
    )
    try:
        for _ in run:
            pass
    except KeyboardInterrupt:
        print(f"stopped by Ctrl-C after {len(run.history)} of {options.epochs} epochs")
    if run.history:
        predictions = tc.predict(model, valid_batches, loss_fn=head.loss_fn)
        # The class ids again in place of what the loss was given: rows of 0 and 1, say.
        predictions = dataclasses.replace(predictions, targets=ids)
        predictions.to_csv(out / "predictions.csv", classes=classes)
        written = ["predictions.csv", *_write(run.history, model, out)]
        metric = next(iter(head.metrics))
        print(
            f"reached {metric} {run.history[-1][metric]:.4f}, valid_loss "
            f"{run.history[-1].valid_loss:.4f} after {len(run.history)} epochs; "
            f"wrote {', '.join(written)} to {out}{os.sep}"
        )
    return 0 if len(run.history) == options.epochs else 130


def _id_targets(ids: Tensor, num_classes: int) -> Tensor:
    return ids


def _onehot_targets(ids: Tensor, num_classes: int) -> Tensor:
    return tc.one_hot(ids, num_classes).float()


def _column_targets(ids: Tensor, num_classes: int) -> Tensor:
    return ids.float().reshape(-1, 1)


@dataclasses.dataclass(frozen=True)
class _Head:
    """What ``--head`` stands for: a loss, the form of its targets, and what to measure."""

    loss_fn: nn.Module
    targets: Callable[[Tensor, int], Tensor]
    metrics: dict[str, Any]


_HEADS = {
    "multiclass": _Head(
        nn.CrossEntropyLoss(),
        _id_targets,
        {"accuracy": tc.accuracy, "error_rate": tc.error_rate},
    ),
    "onehot": _Head(
        nn.CrossEntropyLoss(),
        _onehot_targets,
        {"accuracy": tc.accuracy, "multilabel_accuracy": tc.multilabel_accuracy},
    ),
    "binary": _Head(
        nn.BCEWithLogitsLoss(),
        _column_targets,
        {"threshold_accuracy": functools.partial(tc.threshold_accuracy, from_logits=True)},
    ),
}


def _classes(options: argparse.Namespace) -> tuple[int, ...]:
    if options.head == "binary":
        classes = options.classes or (0, 1)
        if len(classes) != 2:
            raise ValueError(
                f"--classes must name two digits for --head binary, got {len(classes)}. "
                "Write --classes 0,1."
            )
        return classes
    classes = options.classes or tuple(range(10))
    if len(classes) < 2:
        raise ValueError("--classes must name at least two digits, got 1. Write --classes 0,1.")
    return classes


def _data(options: argparse.Namespace, classes: tuple[int, ...]) -> tuple[Split, Split]:
    if options.data == "drawn":
        # Two seeds that no other --seed shares: no digit is drawn for both splits.
        train = tc.drawn_digits(6000, classes=classes, seed=2 * options.seed)
        return train, tc.drawn_digits(1000, classes=classes, seed=2 * options.seed + 1)
    if options.data == "mnist":
        return tc.mnist(classes=classes, download=True)
    return tc.mnist(options.data, classes=classes)


def _out_folder(wanted: str | None) -> Path:
    """Make the folder to write to, and find out now whether it can be written."""
    if wanted is None:
        names = itertools.chain(
            ["torchcls-out"], (f"torchcls-out-{number}" for number in itertools.count(2))
        )
        out = next(Path(name) for name in names if not Path(name).exists())
    else:
        out = Path(wanted)
        if (out / "history.csv").exists():
            raise FileExistsError(
                f"--out must not hold an earlier run, got {out} with a history.csv. "
                "Choose another folder."
            )
    out.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=out).close()
    return out


def _write(history: tc.History, model: nn.Module, out: Path) -> list[str]:
    history.to_csv(out / "history.csv")
    history.to_json(out / "history.json")
    weights = {name: tensor.cpu() for name, tensor in model.state_dict().items()}
    torch.save(weights, out / "weights.pt")
    written = ["history.csv", "history.json", "weights.pt"]
    try:
        plots.curves(history, out / "curves.png")
    except ImportError:  # matplotlib is an extra
        return written
    return [*written, "curves.png"]
