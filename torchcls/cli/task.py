"""What a command works on: the data at a path, a head, and the lecture's network."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

import torchcls as tc
from torchcls.data.png import begins_with_a_digit

Split = tuple[Tensor, Tensor]


@dataclasses.dataclass(frozen=True)
class Head:
    """What ``--head`` stands for: a row of the table, the form of its targets, what to measure."""

    row: tc.heads.Head
    targets: Callable[[Tensor, int], Tensor]
    metrics: dict[str, Any]

    @property
    def loss_fn(self) -> nn.Module:
        """The loss of the row on raw outputs."""
        return tc.heads.LOSSES[self.row.losses[0]].module()

    def num_outputs(self, num_classes: int) -> int:
        """How many numbers a model gives for an image."""
        return 1 if self.row.outputs == "one" else num_classes


def _ids(ids: Tensor, num_classes: int) -> Tensor:
    return ids


def _rows(ids: Tensor, num_classes: int) -> Tensor:
    return tc.one_hot(ids, num_classes).float()


def _column(ids: Tensor, num_classes: int) -> Tensor:
    return ids.float().reshape(-1, 1)


HEADS = {
    "multiclass": Head(
        tc.heads.MULTICLASS, _ids, {"accuracy": tc.accuracy, "error_rate": tc.error_rate}
    ),
    "onehot": Head(
        tc.heads.MULTICLASS,
        _rows,
        {"accuracy": tc.accuracy, "multilabel_accuracy": tc.multilabel_accuracy},
    ),
    "binary": Head(
        tc.heads.BINARY,
        _column,
        {"threshold_accuracy": functools.partial(tc.threshold_accuracy, from_logits=True)},
    ),
}


@dataclasses.dataclass(frozen=True)
class Task:
    """Images and class ids for training and validation, and the head that they go to.

    Attributes:
        name: What the data is, in words.
        classes: The name of each class.
        train: (images, ids).
        valid: (images, ids).
        head: The head.
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    valid: Split
    head: Head

    def batches(self, split: Split, batch_size: int, **keywords: Any) -> tc.Batches:
        """Batches of a split, with targets in the form that the head's loss takes."""
        images, ids = split
        targets = self.head.targets(ids, len(self.classes))
        return tc.Batches(images, targets, batch_size=batch_size, **keywords)

    def model(self) -> nn.Sequential:
        """The lecture's network, for images of this size."""
        channels, *sides = self.train[0].shape[1:]
        height, width = ((side - 4) // 2 for side in sides)  # behind convolution and pooling
        if min(height, width) < 1:
            raise ValueError(
                "images must have at least 6 x 6 pixels for this network, "
                f"got {sides[0]} x {sides[1]}."
            )
        return nn.Sequential(
            nn.Conv2d(channels, 16, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(16 * height * width, self.head.num_outputs(len(self.classes))),
        )


def task_of(data: str, classes: tuple[str, ...] | None, head: str, seed: int) -> Task:
    """Read what ``--data``, ``--classes`` and ``--head`` name.

    A folder with a training and a validation folder in it holds images in class folders, unless it
    is MNIST in its layout of PNG images. It is that where the two are called training and testing,
    or train and test; where all folders in the first are digits, and all that are asked for are
    there (those of ``classes``, else 0 and 1 for the binary head, else all ten); and where the
    first image is a PNG of 28 x 28 grey pixels.

    Raises:
        FileNotFoundError: If there is nothing that can be read.
        ValueError: If the data or the classes are not what they must be.
    """
    if data not in ("drawn", "mnist"):
        folders = _split_folders(Path(data))
        wanted = classes or tuple(map(str, _digits(None, head)))
        if folders is not None and not _is_mnist(*folders, wanted):
            return _of_images(data, *folders, classes, head)
    digits = _digits(classes, head)
    if data == "drawn":
        # Two seeds that no other --seed shares: no digit is drawn for both splits.
        train = tc.drawn_digits(6000, classes=digits, seed=2 * seed)
        valid = tc.drawn_digits(1000, classes=digits, seed=2 * seed + 1)
    else:
        is_path = data != "mnist"
        train, valid = tc.mnist(data if is_path else None, classes=digits, download=not is_path)
    names = tuple(map(str, digits))
    return Task(f"{data} digits {', '.join(names)}", names, train, valid, HEADS[head])


def _digits(classes: tuple[str, ...] | None, head: str) -> tuple[int, ...]:
    if classes is None:
        return (0, 1) if head == "binary" else tuple(range(10))
    if not all(name.isdecimal() for name in classes):
        raise ValueError(f"--classes must be digits like 0,1,2, got {','.join(classes)!r}.")
    _check_number(classes, head)
    return tuple(map(int, classes))


def _check_number(classes: Sequence[str], head: str) -> None:
    if head == "binary" and len(classes) != 2:
        raise ValueError(
            f"--classes must name two classes for --head binary, got {len(classes)}. "
            f"Write --classes {classes[0]},{classes[1] if len(classes) > 1 else '...'}."
        )
    if len(classes) < 2:
        raise ValueError("--classes must name at least two classes, got 1. Write --classes 0,1.")


# ------------------------------------------------------------------ images in folders

_TRAIN = ("train", "training")
_VALID = ("valid", "val", "validation", "dev", "test", "testing")


def _split_folders(root: Path) -> tuple[Path, Path] | None:
    """The folders of two splits, in capitals or not; None where there are no two."""
    folders = sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    there = {path.name.lower(): path for path in folders}
    train, valid = (
        next((there[name] for name in names if name in there), None) for names in (_TRAIN, _VALID)
    )
    return None if train is None or valid is None else (train, valid)


def _is_mnist(train: Path, valid: Path, wanted: tuple[str, ...]) -> bool:
    names = {path.name for path in train.iterdir() if path.is_dir() and path.name[0] != "."}
    return (
        (train.name, valid.name) in (("training", "testing"), ("train", "test"))
        and set(wanted) <= names <= set("0123456789")
        and begins_with_a_digit(train / wanted[0])
    )


def _of_images(
    data: str, train: Path, valid: Path, classes: tuple[str, ...] | None, head: str
) -> Task:
    training = tc.image_folder(train, classes=classes)
    validation = tc.image_folder(valid, classes=training.classes)
    names = training.classes
    _check_number(names, head)
    return Task(
        f"{data} classes {', '.join(names)}", names, _read(training), _read(validation), HEADS[head]
    )


def _read(images: Dataset[Any]) -> Split:
    """All images of a folder; every one that cannot be read or has another size is named."""
    pixels: list[Tensor] = []
    ids: list[int] = []
    faults: list[str] = []
    n = len(images)  # type: ignore[arg-type]
    for i in range(n):
        try:
            image, target = images[i]
        except ValueError as fault:
            faults.append(str(fault))
            continue
        if pixels and image.shape != pixels[0].shape:
            path = images.paths[i]  # type: ignore[attr-defined]
            faults.append(
                f"{path} must have the size of the first image, {tuple(pixels[0].shape[1:])}, got "
                f"{tuple(image.shape[1:])}. Resize all images alike."
            )
            continue
        pixels.append(image)
        ids.append(target)
    if faults:
        more = f"\n... and {len(faults) - 10} more" if len(faults) > 10 else ""
        raise ValueError("\n".join(faults[:10]) + more)
    return torch.stack(pixels), torch.tensor(ids)
