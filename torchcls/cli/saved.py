"""A run that is over, read back from its folder: the options it had, its classes, its network."""

import argparse
import json
import os
from pathlib import Path
from typing import Any

import torchcls as tc
from torchcls.cli.task import Task
from torchcls.history import replacing

# What makes a run the one it is, by the names of the options; the others may change meanwhile.
_OF_NET = ("net", "size", "augment", "valid_share", "workers", "weights", "pretrained")
_SAME = ("data", "classes", "head", "batch_size", "seed", "lr", *_OF_NET)
_FILE = "arguments.json"


def write_arguments(task: Task, out: Path) -> None:
    """Write what the other commands need to make the model and the data again."""
    told = {
        "torchcls": tc.__version__,
        **_options(task.options),
        "epochs": task.options.epochs,
        "names": task.classes,
        "input_shape": task.shape,
    }
    with replacing(out / _FILE) as new:
        new.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


def check_same(options: argparse.Namespace, out: Path) -> None:
    """Refuse to go on with a run by other options than it was begun with."""
    if not (out / _FILE).exists():
        return  # its state tells most of them, too
    before, now = _read(out), _options(options)
    for name in _SAME:
        if before.get(name) != now[name]:
            was, given = (_word(name, value) for value in (before.get(name), now[name]))
            raise ValueError(
                f"{was} must be as in the run that is resumed, got {given}. "
                "Give the options that the run was begun with, or choose another --out."
            )


def _word(name: str, value: Any) -> str:
    option = f"--{name.replace('_', '-')}"
    if value is None:
        return f"no {option}"
    return f"{option} {','.join(value) if isinstance(value, list) else value}"


def _options(options: argparse.Namespace) -> dict[str, Any]:
    kept = {name: getattr(options, name) for name in _SAME}
    if options.classes is not None:
        kept["classes"] = list(options.classes)
    for name in ("data", "weights"):  # which lead there from another folder, too
        if kept[name] not in (None, "drawn", "mnist"):
            kept[name] = os.path.abspath(os.path.expanduser(kept[name]))
    return kept


def _read(run: Path) -> dict[str, Any]:
    try:
        told: dict[str, Any] = json.loads((run / _FILE).read_text("utf-8"))
    except FileNotFoundError:
        law = f"RUN must be the folder of a run of torchcls train, with an {_FILE}"
        raise FileNotFoundError(f"{law}, got {run}.") from None
    except ValueError:
        raise ValueError(f"{run / _FILE} must be as torchcls train wrote it, got other.") from None
    return told
