"""The command ``torchcls``: its arguments, its errors and its exit status."""

import argparse
import math
import os
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NoReturn

import torch

import torchcls as tc
from torchcls.cli.before import check, find_lr
from torchcls.cli.task import HEADS, told
from torchcls.cli.train import train
from torchcls.cli.use import evaluate, export, predict, report


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
        message = re.sub("^device must", "--device must", message)
        message = re.sub(r"(?s)^Caught .*\n\w+: ", "", message)  # from a process that reads images
        options_again = "Give the options that the run was begun with, or choose another --out."
        message = re.sub("Give it as it was, or .*", options_again, message)
        parser.exit(2, f"torchcls: error: {message.strip()}\n")


_IS_TOLD: dict[str, Any] = {"action": "store_true", "default": None}
_DEVICE = "cpu, cuda, cuda:1, ... (default: the accelerator that is there)"
_STATUS = "Exit status: 0; 1 where an error was found; 2 where the data cannot be read."


def _parser() -> argparse.ArgumentParser:
    about = "Classification training in plain PyTorch."
    parser = argparse.ArgumentParser(prog="torchcls", description=about)
    parser.add_argument("--version", action="version", version=f"torchcls {tc.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(run: Any, name: str, text: str, more: str) -> Callable[..., Any]:
        one = commands.add_parser(name, help=text, description=more, formatter_class=_Defaults)
        one.set_defaults(run=run)
        (_add_run if run in (predict, evaluate, report, export) else _add_task)(one)
        if run is not check:
            one.add_argument("--device", help=_DEVICE)
        return one.add_argument

    text = "train a network on images"
    more = (
        "Train a network of torchvision on photographs, or Conv2d(c,16,5) ReLU MaxPool2d(2) Flatten"
        " Linear(n,k) on small images. Without arguments it draws its own digits."
    )
    add = command(train, "train", text, more)
    add("--epochs", type=_count, default=10, help="passes over the training images")
    add("--lr", type=_rate, default=1e-3, help="learning rate")
    add("--out", metavar="FOLDER", help="where to write (default: the first free torchcls-out)")
    add("--resume", **_IS_TOLD, help="go on with the run in --out, begun with the same options")

    more = f"Read all images, look at both splits and at one training step. {_STATUS}"
    command(check, "check", "look for mistakes in the data, without training", more)

    more = "Train for up to 100 steps at rising learning rates, and print one for --lr."
    command(find_lr, "find-lr", "suggest a learning rate", more)

    more = "Print file, class and probability. Exit status: 1 where a file cannot be read."
    add = command(predict, "predict", "say of images which class they show", more)
    add("files", nargs="+", metavar="FILE", help="images, or folders with images below them")
    add("--top", type=_count, default=1, metavar="K", help="classes of each, best first")
    add("--format", choices=("table", "csv", "json"), default="table", help="how to print them")

    text = "measure a run on images whose classes are known"
    more = "Print precision, recall and F1 of each class, and the accuracy with its interval."
    add = command(evaluate, "evaluate", text, more)
    add("--data", metavar="PATH", help="a folder per class (default: what the run validated on)")

    more = "Write a page that a browser shows: numbers, pictures and findings."
    add = command(report, "report", "write a page about a run", more)
    add("--out", metavar="FILE", help="where to write (default: report.html in RUN)")

    more = "Write the network with its classes and scaling, and see that it gives the same outputs."
    add = command(export, "export", "write the network of a run to a file for others", more)
    text = "ONNX, torch.export, or the weights (default: as --out ends, else onnx)"
    add("--format", choices=("onnx", "pt2", "pt"), help=text)
    add("--out", metavar="FILE", help="where to write (default: model.FORMAT in RUN)")
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
        "val, test), which for --net may be one folder",
    )
    add("--classes", type=_names, metavar="0,1,2", help="the classes to tell apart (default: all)")
    text = "class ids, one-hot rows, or one sigmoid for two classes"
    add("--head", choices=tuple(HEADS), default="multiclass", help=text)
    add("--batch-size", type=_count, help="images in a step (default: 128; 32 with --net)")
    add("--seed", type=_seed, default=0, help="of weights, order, split and drawn digits")

    group = parser.add_argument_group("photographs", "Images of any size, and a larger network.")
    add = group.add_argument
    add("--net", type=str.lower, metavar="NAME", help="a classification network of torchvision")
    either = group.add_mutually_exclusive_group().add_argument
    text = "a state dict to begin with; its head may be of other classes"
    either("--weights", metavar="FILE", help=text)
    text = "begin with torchvision's weights, downloaded where they are not there yet"
    either("--pretrained", **_IS_TOLD, help=text)
    add("--size", type=_count, help="height and width that the network sees (default: 224)")
    text = "train on random parts, flipped or not, or on the middle (default: usual)"
    add("--augment", choices=("usual", "none"), help=text)
    text = "of one folder, the part of each class to validate on (default: 0.2)"
    add("--valid-share", type=_share, metavar="SHARE", help=text)
    add("--workers", type=_none_too, metavar="N", help="processes that read images (default: 2)")


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="RUN", help="the folder that torchcls train wrote")
    text = "use the weights of the epoch with the least valid_loss, not of the last one"
    parser.add_argument("--best", action="store_true", help=text)


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
_share = _number(float, math.ulp(0), 1 - 2**-53, "a number between 0 and 1")
_none_too = _number(int, 0, math.inf, "a whole number of at least 0")
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
