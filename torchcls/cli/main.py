"""Train the lecture's network, or look for mistakes before it is."""

import argparse
import dataclasses
import io
import itertools
import os
import shlex
import signal
import sys
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import torch
from torch import nn

import torchcls as tc
from torchcls.cli.task import HEADS, Task, task_of
from torchcls.history import replacing
from torchcls.looking.curves import curves


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
        The exit status: 0; 130 after Ctrl-C and 143 after SIGTERM, with everything so far written.
        Bad input raises SystemExit with status 2 after one line on standard error.
    """
    parser = _parser()
    options = parser.parse_args(argv)
    options.words = sys.argv[1:] if argv is None else argv
    try:
        return int(options.run(options))
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
        help="train the lecture's network on images",
        description="Train Conv2d(c,16,5) ReLU MaxPool2d(2) Flatten Linear(n,k) on images. "
        "Without arguments it draws its own digits and needs no network.",
        formatter_class=_Defaults,
    )
    train.set_defaults(run=_train)
    _add_task(train)
    add = train.add_argument
    add("--epochs", type=_positive, default=10, help="passes over the training images")
    add("--lr", type=float, default=1e-3, help="learning rate")
    add("--device", help="cpu, cuda, cuda:1, ... (default: the accelerator that is there)")
    add("--out", metavar="FOLDER", help="where to write (default: the first free torchcls-out)")
    add(
        "--resume",
        action="store_true",
        default=None,
        help="go on with the run in --out, which was begun with the same options",
    )
    check = commands.add_parser(
        "check",
        help="look for mistakes in the data, without training",
        description="Read all images, look at both splits and at one training step, and say what "
        "is wrong. Exit status: 0; 1 where an error was found; 2 where the data cannot be read.",
        formatter_class=_Defaults,
    )
    check.set_defaults(run=_check)
    _add_task(check)
    return parser


def _add_task(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--data",
        default="drawn",
        metavar="drawn|mnist|PATH",
        help="drawn digits; MNIST, downloaded where it is not there yet; a folder with MNIST as "
        "IDX files (raw or .gz) or as folders of 28 x 28 grey PNGs (training/testing or "
        "train/test); or a folder with a folder of images for each class in train and valid (or "
        "test)",
    )
    add("--classes", type=_names, metavar="0,1,2", help="the classes to tell apart (default: all)")
    add(
        "--head",
        choices=tuple(HEADS),
        default="multiclass",
        help="class ids, one-hot rows, or one sigmoid for two classes",
    )
    add("--batch-size", type=_positive, default=128, help="images in a step")
    add("--seed", type=int, default=0, help="of the weights, the order and the drawn digits")


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return number


class _Defaults(argparse.ArgumentDefaultsHelpFormatter):
    """Adds "(default: ...)" where there is one value to name; None says it in words already."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    if not all(names):
        raise argparse.ArgumentTypeError(f"must be names like 0,1,2, got {text!r}")
    return names


def _train(options: argparse.Namespace) -> int:
    device = tc.select_device(options.device)
    task = task_of(options.data, options.classes, options.head, options.seed)
    torch.manual_seed(options.seed)
    model = task.model()
    valid = task.batches(task.valid, 1000)
    out = _out_folder(options.out, resume=bool(options.resume))
    print(f"{_described(task)}, {options.head} head, on {device}", flush=True)
    run = tc.epochs(
        model,
        task.batches(task.train, options.batch_size, shuffle=True, seed=options.seed),
        valid,
        loss_fn=task.head.loss_fn,
        epochs=options.epochs,
        metrics=task.head.metrics,
        lr=options.lr,
        device=device,
        checkpoint=out,
        resume=bool(options.resume),
    )
    stopped = _train_until_stopped(run)
    if stopped:
        epoch, step, _ = run.position
        inside = f" and {step} steps" if step else ""
        name = "Ctrl-C" if stopped == signal.SIGINT else "SIGTERM"
        print(f"stopped by {name} after {epoch} of {options.epochs} epochs{inside}")
        print(f"go on with: {_again(options, out)}", flush=True)
    if run.history:
        predictions = tc.predict(model, valid, loss_fn=task.head.loss_fn)
        # The class ids again in place of what the loss was given: rows of 0 and 1, say.
        predictions = dataclasses.replace(predictions, targets=task.valid[1])
        with replacing(out / "predictions.csv") as new:
            predictions.to_csv(new, classes=task.classes)
        written = ["predictions.csv", *_write(run.history, model, out)]
        metric = next(iter(task.head.metrics))
        print(
            f"reached {metric} {run.history[-1][metric]:.4f}, valid_loss "
            f"{run.history[-1].valid_loss:.4f} after {len(run.history)} epochs; "
            f"wrote {', '.join(written)} to {out}{os.sep}"
        )
    return 128 + stopped if stopped else 0


def _train_until_stopped(run: tc.Run) -> int:
    """Train to the end, or to the first whole step after Ctrl-C or SIGTERM; returns the signal.

    A second signal does not wait for the end of the step: the run goes back to its last state.
    """
    came: list[int] = []

    def note(number: int, frame: object) -> None:
        came.append(number)
        if len(came) > 1:
            raise KeyboardInterrupt

    is_main = threading.current_thread() is threading.main_thread()  # which alone may set handlers
    numbers = (signal.SIGINT, signal.SIGTERM) if is_main else ()
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        for _ in run.steps():
            if came:
                break  # which writes the state
    except KeyboardInterrupt:
        came = came or [signal.SIGINT]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return came[0] if came else 0


def _again(options: argparse.Namespace, out: Path) -> str:
    """The command that goes on with a run."""
    words = list(options.words)
    if options.out is None:
        words += ["--out", str(out)]
    return shlex.join(["torchcls", *words, *([] if options.resume else ["--resume"])])


def _described(task: Task) -> str:
    return f"{task.name}: {len(task.train[1])} training and {len(task.valid[1])} validation images"


def _check(options: argparse.Namespace) -> int:
    task = task_of(options.data, options.classes, options.head, options.seed)
    print(f"{_described(task)}, {options.head} head")
    torch.manual_seed(options.seed)
    model = task.model()
    train = task.batches(task.train, options.batch_size, shuffle=True, seed=options.seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # all of them are printed below
        run = tc.epochs(
            model,
            train,
            task.batches(task.valid, 1000),
            loss_fn=task.head.loss_fn,
            metrics=task.head.metrics,
            device="cpu",
            check="warn",
        )
    found = [
        *run.history.findings,  # of the data as a whole
        *tc.check(model, next(iter(train)), task.head.loss_fn, task.head.metrics, run.optimizer),
    ]
    for finding in found:
        print(f"{finding.severity}: {finding}")
    errors = sum(finding.severity == "error" for finding in found)
    print(f"findings: {len(found)}, errors: {errors}" if found else "nothing found to be wrong")
    return 1 if errors else 0


def _out_folder(wanted: str | None, *, resume: bool) -> Path:
    """The folder to write to, which the run makes when all is checked."""
    if resume:
        states = ("last.pt", "epoch.pt")  # the second where only the first was lost
        if wanted is None or not any(Path(wanted, name).exists() for name in states):
            raise FileNotFoundError(
                "--out must name the folder of the run that --resume goes on with, got "
                + (f"{wanted} without a last.pt." if wanted else "none.")
            )
        return Path(wanted)
    if wanted is None:
        names = itertools.chain(
            ["torchcls-out"], (f"torchcls-out-{number}" for number in itertools.count(2))
        )
        return next(Path(name) for name in names if not Path(name).exists())
    earlier = [name for name in ("history.csv", "last.pt") if Path(wanted, name).exists()]
    if earlier:
        raise FileExistsError(
            f"--out must not hold an earlier run, got {wanted} with a {earlier[0]}. "
            "Choose another folder, or go on with that run by --resume."
        )
    return Path(wanted)


def _write(history: tc.History, model: nn.Module, out: Path) -> list[str]:
    history.to_csv(out / "history.csv")
    history.to_json(out / "history.json")
    weights = io.BytesIO()  # in a file, torch.save would write the name of it
    torch.save({name: tensor.cpu() for name, tensor in model.state_dict().items()}, weights)
    with replacing(out / "weights.pt") as new:
        new.write_bytes(weights.getbuffer())
    written = ["history.csv", "history.json", "weights.pt"]
    try:
        with replacing(out / "curves.png") as new:
            curves(history, new)
    except ImportError:  # matplotlib is an extra
        return written
    return [*written, "curves.png"]
