"""``torchcls train``: a run, stopped by signals after whole steps, and the folder it leaves."""

import argparse
import copy
import csv
import dataclasses
import io
import itertools
import os
import shlex
import signal
import subprocess
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import torchcls as tc
from torchcls.cli.saved import check_same, write_arguments
from torchcls.cli.task import (
    CHOSEN,
    Task,
    ids_of,
    images_in,
    in_utf8,
    settle,
    split_folders,
    task_of,
    told,
)
from torchcls.data.folder import ImageFolder
from torchcls.display import Output
from torchcls.history import replacing
from torchcls.looking import plot_confusion, plot_worst, wilson_interval
from torchcls.looking.curves import curves
from torchcls.warn import warn

_STATES = ("last.pt", "epoch.pt", "best.pt")
_PICTURES = ("curves.png", "confusion.png", "worst.png")
_TABLES = ("history.csv", "history.json", "predictions.csv")
_RESULTS = ("arguments.json", "weights.pt", "best-weights.pt", *_TABLES, *_PICTURES)


def train(options: argparse.Namespace) -> int:
    """Train, write what the run reached, and return the exit status."""
    if tc.processes().size > 1:
        raise ValueError("train must run in one process. For torchrun write a script with tc.fit.")
    settle(options)
    device = tc.select_device(options.device)
    task = task_of(options)
    out = _out_folder(options.out, resume=bool(options.resume))
    if task.files:
        _check_outside(out, Path(os.path.expanduser(options.data)))
    if options.resume and (out / "arguments.json").exists():
        check_same(task, out)
    model, left_out = task.model(has_weights=bool(options.resume))
    say = Output().say  # a pipe whose reader leaves, or a full disk, must not end the run
    say(f"{task}, {options.head} head, on {device}")
    if left_out:
        say(left_out)
    run = tc.epochs(
        model,
        task.training(model),
        task.batches(task.valid),
        loss_fn=task.head.loss_fn,
        epochs=options.epochs,
        metrics=task.head.metrics,
        lr=options.lr,
        device=device,
        ignore=CHOSEN,
        checkpoint=out,
        resume=bool(options.resume),
    )
    write_arguments(task, out)
    for name in _RESULTS[1:]:  # of an earlier stop: were this run killed, they would be another's
        (out / name).unlink(missing_ok=True)
    stopped = _train_until_stopped(run, options.epochs)
    if stopped:
        epoch, step, _ = run.position
        inside = f" and {step} steps" if step else ""
        name = "Ctrl-C" if stopped == signal.SIGINT else "SIGTERM"
        say(f"stopped by {name} after {epoch} of {options.epochs} epochs{inside}")
    for finding in run.history.findings:
        if finding.severity == "note":  # the others have been warnings
            say(f"note: {finding}")
    write_arguments(task, out, run.history.findings)
    if run.history:
        written = _write(run.history, model, task, out)
        say(_reached(run.history, task))
        if run.position[1]:
            say(f"weights and predictions are those of {run.position[1]} steps later")
        say(f"wrote {', '.join(written)} to {out}{os.sep}")
    if stopped:
        say(f"go on with: {_again(options, out)}")
    return 128 + stopped if stopped else 0


def _reached(history: tc.History, task: Task) -> str:
    """The last epoch in a line, with what the number of images says about its accuracy."""
    metric, n = next(iter(task.head.metrics)), len(ids_of(task.valid))
    reached = history[-1][metric]
    low, high = wilson_interval(round(reached * n), n)
    best = min(history, key=lambda record: record.valid_loss)
    other = f"; {best[metric]:.4f} and {best.valid_loss:.4f} after the best one, epoch {best.epoch}"
    return (
        f"reached {metric} {reached:.4f} ({low:.4f} to {high:.4f} with 95 % confidence), "
        f"valid_loss {history[-1].valid_loss:.4f} after {len(history)} epochs"
        + (other if best is not history[-1] else "")
    )


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
    return came[0] if came and run.position[0] < epochs else 0


def _again(options: argparse.Namespace, out: Path) -> str:
    """The command that goes on with a run."""
    words = list(options.words)
    if options.out is None:
        words += ["--out", str(out)]
    words = ["torchcls", *words, *([] if options.resume else ["--resume"])]
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)


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


def _check_outside(out: Path, data: Path) -> None:
    """Refuse to write pictures where they would be images of a class."""
    for folder in split_folders(data) or (data,):
        if out.resolve().is_relative_to(folder.resolve()):
            law = "--out must lie outside of the images of --data, where it would be a class"
            raise FileExistsError(f"{law}, got {out} in {folder}. Choose another folder.")


def _write(history: tc.History, model: nn.Module, task: Task, out: Path) -> Sequence[str]:
    """Write the results, those first that nothing else could give again."""
    _write_weights(model.state_dict(), out / "weights.pt")
    history.to_csv(out / "history.csv")
    history.to_json(out / "history.json")
    predictions = tc.predict(model, task.batches(task.valid), loss_fn=task.head.loss_fn)
    _write_predictions(predictions, task, out / "predictions.csv")
    if (out / "best.pt").exists():
        _write_weights(tc.load_checkpoint(out / "best.pt")["model"], out / "best-weights.pt")
    try:
        _draw(history, predictions, task, out)
    except ImportError:  # matplotlib is an extra
        pass
    except Exception as error:  # whatever is odd in an image, the run is worth more
        warn(f"The pictures of the run could not be drawn: {told(error)}")
    return [name for name in _RESULTS if (out / name).exists()]


def _write_weights(weights: dict[str, Tensor], path: Path) -> None:
    kept = copy.copy(weights)  # with the versions of its layers
    kept.update({name: tensor.cpu() for name, tensor in weights.items()})
    file = io.BytesIO()  # in a file, torch.save would write the name of it
    torch.save(kept, file)
    with replacing(path) as new:
        new.write_bytes(file.getbuffer())


def _write_predictions(predictions: tc.Predictions, task: Task, path: Path) -> None:
    # The class ids again in place of what the loss was given: rows of 0 and 1, say.
    predictions = dataclasses.replace(predictions, targets=ids_of(task.valid))
    with replacing(path) as new:
        predictions.to_csv(new, classes=task.classes)
        if isinstance(task.valid, ImageFolder):
            _add_files(new, task.valid.paths)


def _add_files(path: Path, files: Sequence[Path]) -> None:
    """Begin each line of a CSV file by the image that it is about."""
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    names = map(in_utf8, files)
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(
            [name, *row] for name, row in zip(("file", *names), rows, strict=True)
        )


def _draw(history: tc.History, predictions: tc.Predictions, task: Task, out: Path) -> None:
    """Draw the pictures of a run; an ImportError where there is no matplotlib."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph ")  # its font has not all scripts
        with replacing(out / "curves.png") as new:
            curves(history, new)
        _save(plot_confusion(predictions, task.classes), out / "confusion.png")
        worst = plot_worst(images_in(task.valid), predictions, classes=task.classes)
        _save(worst[0], out / "worst.png")


def _save(axes: Any, path: Path) -> None:
    with replacing(path) as new:
        axes.figure.savefig(new, dpi=120)
