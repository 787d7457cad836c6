"""A run that is over, read back from its folder: the options it had, its classes, its network."""

import argparse
import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import torchcls as tc
from torchcls.cli.net import network
from torchcls.cli.task import HEADS, Head, Task, named, read_all, split_folders, task_of
from torchcls.data.folder import images_of, read_image, read_photo
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
        if kept[name] is not None:
            kept[name] = absolute(kept[name])
    return kept


def absolute(path: str) -> str:
    """A path that leads there from another folder, too."""
    return path if path in ("drawn", "mnist") else os.path.abspath(os.path.expanduser(path))


def _read(run: Path) -> dict[str, Any]:
    try:
        told: dict[str, Any] = json.loads((run / _FILE).read_text("utf-8"))
    except FileNotFoundError:
        law = f"RUN must be the folder of a run of torchcls train, with an {_FILE}"
        raise FileNotFoundError(f"{law}, got {run}.") from None
    except ValueError:
        raise ValueError(f"{run / _FILE} must be as torchcls train wrote it, got other.") from None
    return told


@dataclasses.dataclass(frozen=True)
class Saved:
    """A run read back.

    Attributes:
        path: Its folder.
        options: The words it was begun with, as ``settle`` leaves them.
        classes: The name of each class.
        shape: Of what the network gets of an image: (C, H, W).
    """

    path: Path
    options: argparse.Namespace
    classes: tuple[str, ...]
    shape: tuple[int, ...]

    @property
    def head(self) -> Head:
        """What ``--head`` stood for."""
        return HEADS[self.options.head]

    def model(self, *, best: bool) -> nn.Module:
        """The network with the weights of the last epoch, or of the best one."""
        file = self.path / ("best-weights.pt" if best else "weights.pt")
        if not file.exists():
            law = f"RUN must have a {file.name}, which a run writes at its end"
            raise FileNotFoundError(f"{law}, got {self.path}. Let it end, or --resume it.")
        model = network(self.options.net, self.shape, self.head.num_outputs(len(self.classes)))
        try:
            model.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
        except Exception as error:  # on what is no such file, torch raises all kinds
            law = f"{file} must hold the weights that torchcls train wrote"
            raise ValueError(f"{law}, got {type(error).__name__}.") from error
        return model

    def image(self, path: Path) -> Tensor:
        """An image as the network gets it, shape (C, H, W); errors name the path."""
        if self.options.net is not None:
            return self._transform(read_photo(path))
        image, _ = read_image(path)
        if tuple(image.shape) != self.shape:
            seen, wanted = tuple(image.shape), self.shape
            raise ValueError(f"{path} must be an image of shape {wanted}, got {seen}.")
        return image

    @property
    def _transform(self) -> Callable[[Any], Tensor]:
        return tc.photo_transforms(self.options.size, train=False)

    def task(self, data: str | None) -> Task:
        """The images at a path to validate on, all of them or those of the split for it.

        None and the path of the run itself give what the run was validated on.

        Raises:
            ValueError: If there are classes that the run does not know, or none of its own.
        """
        if data is None or absolute(data) == self.options.data:
            return task_of(self.options)
        options = argparse.Namespace(**vars(self.options) | {"data": data, "classes": self.classes})
        root = Path(os.path.expanduser(data))
        if data in ("drawn", "mnist") or any(root.glob("*-ubyte*")):
            return task_of(options)
        folders = split_folders(root)
        folder = root if folders is None else folders[1]
        there = tc.image_folder(folder).classes
        strange = [name for name in there if name not in self.classes]
        # A run of some classes leaves the folders of others alone.
        if len(strange) == len(there) or (strange and self.options.classes is None):
            law = f"--data must have the classes of the run, {', '.join(self.classes)}"
            raise ValueError(f"{law}, got {', '.join(strange)} in {folder}.")
        images = images_of(folder, self.classes)
        if self.options.net is not None:
            images.transform = self._transform
            return named(self.classes, images, images, options)
        (split,) = read_all(images)
        task = named(self.classes, split, split, options)
        if task.shape != self.shape:
            law = f"--data must have images of shape {self.shape}, as the run"
            raise ValueError(f"{law}, got {task.shape}.")
        return task


def saved(folder: str) -> Saved:
    """Read a run back.

    Raises:
        OSError, ValueError: If the folder holds none.
    """
    run = Path(os.path.expanduser(folder))
    told = _read(run)
    try:
        options = argparse.Namespace(**{name: told[name] for name in _SAME})
        options.classes = None if options.classes is None else tuple(options.classes)
        return Saved(run, options, tuple(told["names"]), tuple(told["input_shape"]))
    except (TypeError, KeyError) as error:
        law = f"{run / _FILE} must be as torchcls train wrote it"
        raise ValueError(f"{law}, got {type(error).__name__}: {error}.") from None
