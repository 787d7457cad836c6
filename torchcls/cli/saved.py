"""A run that is over, read back from its folder: the options it had, its classes, its network."""

import argparse
import dataclasses
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import torchcls as tc
from torchcls.cli.net import network
from torchcls.cli.task import (
    HEADS,
    Head,
    Task,
    ids_of,
    in_utf8,
    named,
    read_all,
    some,
    split_folders,
    task_of,
)
from torchcls.data.folder import ImageFolder, images_of, read_image, read_photo
from torchcls.history import replacing

# What makes a run the one it is, by the names of the options; the others may change meanwhile.
_OF_NET = ("net", "size", "augment", "valid_share", "workers", "weights", "pretrained")
_SAME = ("data", "classes", "head", "batch_size", "seed", "lr", *_OF_NET)
_FILE = "arguments.json"


def write_arguments(task: Task, out: Path, findings: Iterable[tc.Finding] = ()) -> None:
    """Write what the other commands need to make the model and the data again, and to report."""
    told = {"torchcls": tc.__version__, **_kept(task.options), "epochs": task.options.epochs}
    told |= {"names": task.classes, "input_shape": task.shape, "bits": task.bits}
    told |= {"trained_on": len(ids_of(task.train)), "valid": _files(task)}
    told["findings"] = list(map(dataclasses.astuple, findings))
    with replacing(out / _FILE) as new:
        new.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


def check_same(task: Task, out: Path) -> None:
    """Refuse to go on with a run by other options than it was begun with, or on other images."""
    before, now = _told(out), _kept(task.options)
    for name in _SAME:
        if before.get(name) != now[name]:
            was, given = map(_word, (before.get(name), now[name]))
            raise ValueError(
                f"--{name.replace('_', '-')} must be {was} as in the run that is resumed, got "
                f"{given}. Give the options that the run was begun with, or choose another --out."
            )
    held, n = before.get("valid"), len(ids_of(task.train))
    if (held, before.get("trained_on")) != (_files(task), n):
        raise ValueError(
            "--data must hold the images that the run was begun with, got others: some were added, "
            "removed or renamed. Put them back, or choose another --out."
        )


def _files(task: Task) -> list[list[Any]]:
    """Each file that is validated on, with its class id."""
    # A path that is no UTF-8 goes through JSON by the surrogates that Python has for it.
    ids = ids_of(task.valid).tolist() if task.files else []
    return [[os.path.abspath(path), i] for path, i in zip(task.files, ids, strict=True)]


def _word(value: Any) -> str:
    return "left out" if value is None else ",".join(value) if isinstance(value, list) else value


def _kept(options: argparse.Namespace) -> dict[str, Any]:
    kept = {name: getattr(options, name) for name in _SAME}
    kept["classes"] = None if options.classes is None else list(options.classes)
    return kept | {name: _absolute(kept[name]) for name in ("data", "weights")}


def _absolute(path: str | None) -> str | None:
    """A path that leads there from another folder, too."""
    is_path = path not in (None, "drawn", "mnist")
    return os.path.abspath(os.path.expanduser(str(path))) if is_path else path


def _told(run: Path) -> dict[str, Any]:
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
        bits: Of each number in the images as they are stored.
        valid: The files it was validated on and their class ids; None where data are no files.
        findings: What the checks had to say of it.
    """

    path: Path
    options: argparse.Namespace
    classes: tuple[str, ...]
    shape: tuple[int, ...]
    bits: int
    valid: tuple[list[Path], Tensor] | None
    findings: tuple[tc.Finding, ...]

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
            return tc.photo_transforms(self.options.size, train=False)(read_photo(path))
        image, _ = read_image(path)
        if tuple(image.shape) != self.shape:
            law = f"{path} must be an image of shape {self.shape}"
            raise ValueError(f"{law}, got {tuple(image.shape)}.")
        return image

    def task(self, data: str | None) -> Task:
        """What the run was validated on, or the images below a path: those for it if it is split.

        Raises:
            ValueError: If there are classes that the run does not know, or images of another shape.
        """
        if data is None or _is_same(data, self.options.data):
            if not self.valid:
                return task_of(self.options)
            images = ImageFolder(*self.valid, self.classes)
            gone = [path for path in images.paths if not path.exists()]
            if gone:
                law = f"the images that {self.path} was validated on must be where they were"
                raise FileNotFoundError(f"{law}, got none at {gone[0]}. Name others by --data.")
            return self._of(images, self.options)
        root = Path(os.path.expanduser(data))
        if not root.is_dir():
            law = "--data must be a folder with a folder of images for each class"
            raise FileNotFoundError(f"{law}, got {data}.")
        folder = (split_folders(root) or (root, root))[1]
        strange = set(map(in_utf8, tc.image_folder(folder).classes)) - set(self.classes)
        if strange and self.options.classes is None:  # else folders of others are left alone
            law = f"--data must have the classes of the run, {some(self.classes)}"
            raise ValueError(f"{law}, got {some(sorted(strange))} in {folder}.")
        images = images_of(folder, self.classes)
        if not images.paths:
            law = f"--data must have images of the run's classes, {some(self.classes)}"
            raise ValueError(f"{law}, got none in {folder}.")
        return self._of(images, argparse.Namespace(**vars(self.options) | {"data": data}))

    def _of(self, images: ImageFolder, options: argparse.Namespace) -> Task:
        images.transform = tc.photo_transforms(self.shape[1], train=False)
        split = images if self.options.net is not None else read_all(images)[0][0]
        task = named(self.classes, split, split, options)
        if task.shape != self.shape:
            raise ValueError(
                f"images must have shape {self.shape} as in the run, got {task.shape}."
            )
        return task


def _is_same(one: str, other: str) -> bool:
    if _absolute(one) == other:
        return True
    return os.path.exists(one) and os.path.exists(other) and os.path.samefile(one, other)


def saved(folder: str) -> Saved:
    """Read a run back.

    Raises:
        OSError, ValueError: If the folder holds none.
    """
    run = Path(os.path.expanduser(folder))
    told = _told(run)
    try:
        options = argparse.Namespace(**{name: told[name] for name in _SAME})
        options.classes = options.classes and tuple(options.classes)
        names, shape = tuple(told["names"]), tuple(told["input_shape"])
        findings = tuple(tc.Finding(*finding) for finding in told["findings"])
        paths, ids = [Path(path) for path, _ in told["valid"]], [i for _, i in told["valid"]]
        valid = (paths, torch.tensor(ids)) if paths else None
        return Saved(run, options, names, shape, told["bits"], valid, findings)
    except (TypeError, KeyError) as error:
        law = f"{run / _FILE} must be as torchcls train wrote it"
        raise ValueError(f"{law}, got {type(error).__name__}: {error}.") from None
