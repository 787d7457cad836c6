"""What a command works on: the data at a path, a head, and the lecture's network."""

import dataclasses
import functools
import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import torchcls as tc
from torchcls.data.folder import ImageFolder, Kind, alike, images_of, read_image
from torchcls.data.png import begins_with_a_digit, find_png_folders

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
                f"images must have at least 6 x 6 pixels for this network, got {_pixels(sides)}."
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
        root = Path(os.path.expanduser(data))
        folders = _split_folders(root)
        wanted = classes or tuple(map(str, _digits(None, head)))
        if folders is None:
            _check_mnist(root, wanted)
        elif not _is_mnist(*folders, wanted):
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


def told(error: BaseException) -> str:
    """What went wrong, without the number and the quotes that Python puts around it."""
    if not isinstance(error, OSError) or error.strerror is None:
        return str(error) or type(error).__name__
    return error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"


def _digits(classes: tuple[str, ...] | None, head: str) -> tuple[int, ...]:
    if classes is None:
        return (0, 1) if head == "binary" else tuple(range(10))
    if not set(classes) <= set("0123456789"):
        raise ValueError(f"--classes must be digits like 0,1,2, got {','.join(classes)}.")
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
    if not root.exists():
        raise FileNotFoundError(
            f"--data must be drawn, mnist or a folder, got {root}, which is not there."
        )
    if not root.is_dir():
        raise ValueError(f"--data must be a folder, got the file {root}. Unpack it if packed.")
    folders = sorted(path for path in root.iterdir() if path.is_dir())
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


def _check_mnist(root: Path, wanted: tuple[str, ...]) -> None:
    """Refuse a folder without two splits of images that has nothing of MNIST in it, either."""
    below = find_png_folders(root)
    files = [*root.glob("*-ubyte*"), *root.glob("MNIST/raw/*-ubyte*")]
    if files or (below and _is_mnist(*below, wanted)):
        return
    names = sorted(path.name for path in root.iterdir() if path.name[0] != ".")
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    raise ValueError(
        "--data must be a folder with MNIST (four IDX files, or PNG folders), or with the images "
        f"of each class in train and in valid or test, as in {root / 'train' / 'cat' / '1.png'}, "
        f"got {root} with {', '.join(names[:5]) or 'nothing in it'}{more}."
        + (f" Name {below[0].parent} if you mean that." if below else "")
    )


def _of_images(
    data: str, train: Path, valid: Path, classes: tuple[str, ...] | None, head: str
) -> Task:
    if classes is None:
        training = tc.image_folder(train)
        validation = tc.image_folder(valid, classes=training.classes)
    else:
        there = sorted(path.name for path in train.iterdir() if path.is_dir())
        missing = [name for name in classes if name not in there]
        if missing:
            raise ValueError(
                f"--classes must name folders in {train}, got {missing[0]}. "
                f"There are {', '.join(there)}."
            )
        training, validation = images_of(train, classes), images_of(valid, classes)
    _check_number(training.classes, head)
    # A name that is no UTF-8 could not be written to a file.
    names = tuple(name.encode("utf-8", "backslashreplace").decode() for name in training.classes)
    train_split, valid_split = _read(training, validation)
    name = f"{data} classes {', '.join(names)}"
    return Task(name, names, train_split, valid_split, HEADS[head])


def _pixels(sides: Sequence[int]) -> str:
    height, width = sides
    return f"{width} x {height}"


def _read(*splits: ImageFolder) -> list[Split]:
    """All images; every one that cannot be read, or is unlike most of them, is named."""
    found: list[tuple[Path, Tensor, Kind]] = []
    faults: list[str] = []
    for path in (path for images in splits for path in images.paths):
        try:
            found.append((path, *read_image(path)))
        except (OSError, ValueError) as fault:
            faults.append(told(fault))
    kinds = Counter(kind for *_, kind in found).most_common(1)
    sizes = Counter(image.shape[1:] for _, image, _ in found).most_common(1)
    for path, image, kind in found:
        if kind != kinds[0][0]:
            law = f"{path} must have {kinds[0][0]} like most images"
            faults.append(f"{law}, got {kind}. {alike(kind, kinds[0][0])}")
        elif image.shape[1:] != sizes[0][0]:
            law = f"{path} must have the size of most images, {_pixels(sizes[0][0])} pixels"
            faults.append(f"{law}, got {_pixels(image.shape[1:])}. Resize all images alike.")
    if faults:
        more = f"\n... and {len(faults) - 10} more" if len(faults) > 10 else ""
        raise ValueError("\n".join(faults[:10]) + more)
    pixels = iter([image for _, image, _ in found])
    return [
        (torch.stack([next(pixels) for _ in images.paths]), images.targets) for images in splits
    ]
