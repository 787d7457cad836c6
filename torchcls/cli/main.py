"""Train the lecture's network, or look for mistakes before it is."""

import argparse
import dataclasses
import io
import itertools
import math
import os
import re
import shlex
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import nn

import torchcls as tc
from torchcls.cli.task import HEADS, Task, task_of, told
from torchcls.display import Output, encodable
from torchcls.history import replacing
from torchcls.looking.curves import curves

_STATES = ("last.pt", "epoch.pt", "best.pt")
_RESULTS = ("weights.pt", "history.csv", "history.json", "predictions.csv", "curves.png")
# The two metrics of --head onehot are this command's choice, and no mistake of who calls it.
_CHOSEN = ("metric-of-another-row",)


def console() -> NoReturn:
    """Run the command and leave with its exit status."""
    warnings.formatwarning = lambda message, *_, **__: f"torchcls: warning: {message}\n"
    status = 141  # as of a program that SIGPIPE ends
    try:
        status = main()
        print(end="", flush=True)
    except KeyboardInterrupt:  # before there is a run that could be kept
        status = 130
    except OSError:  # the reader of the pipe has left, say: nothing more can be written to it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
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
    except (OSError, ValueError, MemoryError, torch.OutOfMemoryError) as error:
        # What --out names is the argument checkpoint of a run, whose other advice is in Python.
        message = re.sub("^checkpoint must", "--out must", told(error))
        options_again = "Give the options that the run was begun with, or choose another --out."
        message = re.sub("Give it as it was, or .*", options_again, message)
        parser.exit(2, f"torchcls: error: {message}\n")


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
    add("--epochs", type=_count, default=10, help="passes over the training images")
    add("--lr", type=_rate, default=1e-3, help="learning rate")
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
    add("--batch-size", type=_count, default=128, help="images in a step")
    add("--seed", type=_seed, default=0, help="of the weights, the order and the drawn digits")


def _number(
    read: Callable[[str], Any], least: float, most: float, law: str
) -> Callable[[str], Any]:
    def number(text: str) -> Any:
        with suppress(ValueError):
            if least <= read(text) <= most:
                return read(text)
        raise argparse.ArgumentTypeError(f"must be {law}, got {text}")

    return number


_count = _number(int, 1, math.inf, "a whole number of at least 1")
_rate = _number(float, math.ulp(0), sys.float_info.max, "a number above 0")
# Drawn digits take two seeds for each, and torch has 64 bits for one.
_seed = _number(int, 0, 2**63 - 1, "a whole number from 0 to 2^63 - 1")


class _Defaults(argparse.ArgumentDefaultsHelpFormatter):
    """Adds "(default: ...)" where there is one value to name; None says it in words already."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    if not all(names) or len(set(names)) < len(names):
        raise argparse.ArgumentTypeError(f"must be distinct names like 0,1,2, got {text}")
    return names


def _train(options: argparse.Namespace) -> int:
    if tc.processes().size > 1:
        raise ValueError("train must run in one process. For torchrun write a script with tc.fit.")
    device = tc.select_device(options.device)
    task = task_of(options.data, options.classes, options.head, options.seed)
    torch.manual_seed(options.seed)
    model = task.model()
    out = _out_folder(options.out, resume=bool(options.resume))
    say = Output().say  # a pipe whose reader leaves, or a full disk, must not end the run
    say(f"{_described(task)}, {options.head} head, on {device}")
    run = tc.epochs(
        model,
        task.batches(task.train, options.batch_size, shuffle=True, seed=options.seed),
        task.batches(task.valid, 1000),
        loss_fn=task.head.loss_fn,
        epochs=options.epochs,
        metrics=task.head.metrics,
        lr=options.lr,
        device=device,
        ignore=_CHOSEN,
        checkpoint=out,
        resume=bool(options.resume),
    )
    stopped = _train_until_stopped(run, options.epochs)
    if stopped:
        epoch, step, _ = run.position
        inside = f" and {step} steps" if step else ""
        name = "Ctrl-C" if stopped == signal.SIGINT else "SIGTERM"
        say(f"stopped by {name} after {epoch} of {options.epochs} epochs{inside}")
        say(f"go on with: {_again(options, out)}")
    for finding in run.history.findings:
        if finding.severity == "note":  # the others have been warnings
            say(f"note: {finding}")
    if run.history:
        written = _write(run.history, model, task, out)
        metric = next(iter(task.head.metrics))
        say(
            f"reached {metric} {run.history[-1][metric]:.4f}, valid_loss "
            f"{run.history[-1].valid_loss:.4f} after {len(run.history)} epochs; "
            f"wrote {', '.join(written)} to {out}{os.sep}"
        )
    return 128 + stopped if stopped else 0


def _train_until_stopped(run: tc.Run, epochs: int) -> int:
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
            # Leaving writes the state; at the end it spares the display its advice in Python.
            if came or run.position[0] == epochs:
                break
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
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        task = task_of(options.data, options.classes, options.head, options.seed)
    lines = [f"warning: {warning.message}" for warning in warned]
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
    found = [finding for finding in found if finding.code not in _CHOSEN]
    lines += [f"{finding.severity}: {finding}" for finding in found]
    errors = sum(finding.severity == "error" for finding in found)
    last = f"findings: {len(lines)}, errors: {errors}" if lines else "nothing found to be wrong"
    lines = [f"{_described(task)}, {options.head} head", *lines, last]
    print(encodable("\n".join(lines)), flush=True)
    return 1 if errors else 0


def _out_folder(wanted: str | None, *, resume: bool) -> Path:
    """The folder to write to, which the run makes when all is checked."""
    if wanted is None and not resume:
        names = itertools.chain(
            ["torchcls-out"], (f"torchcls-out-{number}" for number in itertools.count(2))
        )
        return next(Path(name) for name in names if not os.path.lexists(name))
    out = Path(os.path.expanduser(wanted or ""))
    if os.path.lexists(out) and not out.is_dir():
        raise FileExistsError(f"--out must be a folder, got the file {out}.")
    there = [name for name in (*_STATES, *_RESULTS) if os.path.lexists(out / name)]
    is_run = wanted is not None and not {"last.pt", "epoch.pt"}.isdisjoint(there)
    if resume and not is_run:
        raise FileNotFoundError(
            "--out must name the folder of the run that --resume goes on with, got "
            + (f"{wanted} without a last.pt." if wanted else "none.")
        )
    odd = [name for name in there if not (out / name).is_file()]
    if odd and resume:
        raise FileExistsError(f"{out / odd[0]} must be a file, got something else. Move it away.")
    if there and not resume:
        raise FileExistsError(
            f"--out must not hold what would be written over, got {out} with {', '.join(there)}. "
            f"Choose another folder{', or go on with that run by --resume' if is_run else ''}."
        )
    return out


def _write(history: tc.History, model: nn.Module, task: Task, out: Path) -> Sequence[str]:
    """Write the results, those first that nothing else could give again."""
    weights = io.BytesIO()  # in a file, torch.save would write the name of it
    torch.save({name: tensor.cpu() for name, tensor in model.state_dict().items()}, weights)
    with replacing(out / "weights.pt") as new:
        new.write_bytes(weights.getbuffer())
    history.to_csv(out / "history.csv")
    history.to_json(out / "history.json")
    predictions = tc.predict(model, task.batches(task.valid, 1000), loss_fn=task.head.loss_fn)
    # The class ids again in place of what the loss was given: rows of 0 and 1, say.
    predictions = dataclasses.replace(predictions, targets=task.valid[1])
    with replacing(out / "predictions.csv") as new:
        predictions.to_csv(new, classes=task.classes)
    try:
        with replacing(out / "curves.png") as new:
            curves(history, new)
    except ImportError:  # matplotlib is an extra
        return _RESULTS[:-1]
    return _RESULTS
