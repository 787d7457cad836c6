"""What a command works on: the data at a path, a head, and a network."""

import argparse
import dataclasses
import functools
import hashlib
import os
import signal
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

import torchcls as tc
from torchcls.cli.net import check_name, load_pretrained, load_weights, network
from torchcls.data.folder import ImageFolder, Kind, alike, images_of, read_image, read_photo
from torchcls.data.png import begins_with_a_digit, find_png_folders
from torchcls.warn import warn

# The two metrics of --head onehot are this command's choice, and no mistake of who calls it.
CHOSEN = ("metric-of-another-row",)

Split = tuple[Tensor, Tensor] | ImageFolder  # images and class ids in memory, or photographs


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
    """Images and class ids for training and validation, and what is to be made of them.

    Attributes:
        name: What the data is, in words.
        classes: The name of each class.
        train: The images to train on.
        valid: The images to validate on.
        options: The words of the command line, as ``settle`` leaves them.
        files: Those of the images to validate on, where each is in one.
        bits: Of each number in the images as they are stored.
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    valid: Split
    options: argparse.Namespace
    files: Sequence[Path] = ()
    bits: int = 8

    def __str__(self) -> str:
        train, valid = (len(ids_of(split)) for split in (self.train, self.valid))
        return f"{self.name}: {train} training and {valid} validation images"

    @property
    def head(self) -> Head:
        """What ``--head`` stands for."""
        return HEADS[self.options.head]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of what the network gets of an image: (C, H, W)."""
        if isinstance(self.train, ImageFolder):
            return (3, self.options.size, self.options.size)
        return tuple(self.train[0].shape[1:])

    def training(self, model: nn.Module) -> Any:
        """Batches of the training images, in an order that the seed gives."""
        options, seed = self.options, self.options.seed
        if not isinstance(self.train, ImageFolder):
            return self._in_memory(self.train, options.batch_size, shuffle=True, seed=seed)
        generator = torch.Generator().manual_seed(seed)
        is_alone = len(self.train) % options.batch_size == 1 < options.batch_size
        drops = is_alone and any(isinstance(module, _BatchNorm) for module in model.modules())
        if drops:
            warn(
                f"Of the {len(self.train)} training images one is left out in each epoch, since "
                "BatchNorm cannot train on a last batch of one. Choose another --batch-size."
            )
        order = {"shuffle": True, "generator": generator, "drop_last": drops}
        return self._from_files(self.train, **order)

    def batches(self, split: Split) -> Any:
        """Batches of images in their order, with targets in the form that the head's loss takes."""
        if isinstance(split, ImageFolder):
            return self._from_files(split)
        return self._in_memory(split, 1000)

    def _in_memory(self, split: tuple[Tensor, Tensor], size: int, **order: Any) -> tc.Batches:
        images, ids = split
        targets = self.head.targets(ids, len(self.classes))
        return tc.Batches(images, targets, batch_size=size, **order)

    def _from_files(self, split: ImageFolder, **order: Any) -> Any:
        from torch.utils.data import DataLoader

        return DataLoader(
            split,
            batch_size=self.options.batch_size,
            num_workers=self.options.workers,
            collate_fn=functools.partial(_collated, head=self.head, n=len(self.classes)),
            worker_init_fn=_without_ctrl_c,
            **order,
        )

    def model(self, *, has_weights: bool = False) -> tuple[nn.Module, str]:
        """The network as a run begins with it, and what was left out of the weights it was given.

        Sets the seed, from which random weights are drawn, and what training draws later. A run
        that goes on has its own weights: none are read.
        """
        options = self.options
        form = options.net, self.shape, self.head.num_outputs(len(self.classes))
        torch.manual_seed(options.seed)
        model = network(*form)
        if options.weights is not None and not has_weights:
            return model, load_weights(model, *form, options.weights)
        if options.pretrained and not has_weights:
            return model, load_pretrained(model, *form)
        return model, ""


def images_in(split: Split) -> Any:
    """The images as people see them, one for each sample; photographs as large as is looked at."""
    if isinstance(split, ImageFolder):
        return ImageFolder(split.paths, split.targets, split.classes, _small)
    return split[0]


def _small(photo: Any) -> Any:
    photo.thumbnail((480, 480))
    return photo


def ids_of(split: Split) -> Tensor:
    """The class id of each image, int64, shape (n,)."""
    return split.targets if isinstance(split, ImageFolder) else split[1]


def _collated(samples: list[Any], head: Head, n: int) -> tuple[Tensor, Tensor]:
    images, ids = zip(*samples, strict=True)
    return torch.stack(images), head.targets(torch.tensor(ids), n)


def _without_ctrl_c(worker: int) -> None:
    """Ctrl-C reaches all processes, and the first one ends the others when it is done."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


# What stands beside --net alone, and what is taken where it is not given.
_WITH_NET: dict[str, Any] = {
    "size": 224,
    "augment": "usual",
    "valid_share": None,  # 0.2 where there is no folder of validation images
    "workers": 2,
    "weights": None,
    "pretrained": None,
}


def settle(options: argparse.Namespace) -> None:
    """Put defaults in the place of what is not given, and refuse what does not go together.

    Raises:
        ValueError: If something stands beside the lecture's network that is for others, or the
            network is none.
    """
    for name, default in _WITH_NET.items():
        if options.net is None and getattr(options, name) is not None:
            word = name.replace("_", "-")
            raise ValueError(f"--{word} must stand beside --net, got none. Add --net resnet18.")
        if options.net is not None and getattr(options, name) is None:
            setattr(options, name, default)
    if options.batch_size is None:
        options.batch_size = 128 if options.net is None else 32
    if options.net is not None:
        check_name(options.net)
        if options.data in ("drawn", "mnist"):
            law = f"--data must be a folder of photographs for --net {options.net}"
            raise ValueError(f"{law}, got {options.data}.")


def task_of(options: argparse.Namespace) -> Task:
    """Read what ``--data``, ``--classes`` and ``--head`` name.

    With ``--net`` that is a folder with a training and a validation folder in it, or class folders
    that are split. Without, a folder with a training and a validation folder holds images of one
    size in class folders, unless it is MNIST in its layout of PNG images. It is that where the two
    are called training and testing, or train and test; where all folders in the first are digits,
    and all that are asked for are there (those of ``classes``, else 0 and 1 for the binary head,
    else all ten); and where the first image is a PNG of 28 x 28 grey pixels.

    Raises:
        FileNotFoundError: If there is nothing that can be read.
        ValueError: If the data or the classes are not what they must be.
    """
    data, classes, head, seed = options.data, options.classes, options.head, options.seed
    if data not in ("drawn", "mnist"):
        root = Path(os.path.expanduser(data))
        folders = split_folders(root)
        wanted = classes or tuple(map(str, _digits(None, head)))
        if options.net is not None:
            return _of_photos(root, folders, options)
        if folders is None:
            _check_mnist(root, wanted)
        elif not _is_mnist(*folders, wanted):
            return _of_images(*folders, options)
    digits = _digits(classes, head)
    if data == "drawn":
        # Two seeds that no other --seed shares: no digit is drawn for both splits.
        train = tc.drawn_digits(6000, classes=digits, seed=2 * seed)
        valid = tc.drawn_digits(1000, classes=digits, seed=2 * seed + 1)
    else:
        is_path = data != "mnist"
        train, valid = tc.mnist(data if is_path else None, classes=digits, download=not is_path)
    names = tuple(map(str, digits))
    return Task(f"{data} digits {', '.join(names)}", names, train, valid, options)


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


def split_folders(root: Path) -> tuple[Path, Path] | None:
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
        + " With --net, one folder of class folders will do."
    )


def _of_images(train: Path, valid: Path, options: argparse.Namespace) -> Task:
    training, validation = _images(train, valid, options.classes)
    _check_number(training.classes, options.head)
    (train_split, valid_split), bits = read_all(training, validation)
    files = {"files": validation.paths, "bits": bits}
    return named(training.classes, train_split, valid_split, options, **files)


def _of_photos(root: Path, folders: tuple[Path, Path] | None, options: argparse.Namespace) -> Task:
    if folders is None:
        images = _folder(root, options.classes)
        train, valid = _parts(images, options.valid_share or 0.2, options.seed)
    elif options.valid_share is not None:
        law = f"--valid-share must be left out where there are {folders[0]} and {folders[1]}"
        raise ValueError(f"{law}, got {options.valid_share}.")
    else:
        train, valid = _images(*folders, options.classes)
    _check_number(train.classes, options.head)
    train.transform = tc.photo_transforms(options.size, train=options.augment != "none")
    valid.transform = tc.photo_transforms(options.size, train=False)
    return named(train.classes, train, valid, options, files=valid.paths)


def named(
    classes: Sequence[str],
    train: Split,
    valid: Split,
    options: argparse.Namespace,
    **more: Any,
) -> Task:
    """A task whose name says where the images are, and some of the classes."""
    names = tuple(map(in_utf8, classes))
    name = f"{in_utf8(options.data)} classes {some(names)}"
    return Task(name, names, train, valid, options, **more)


def in_utf8(name: object) -> str:
    """A name that can be written to a file, whatever the file system takes."""
    return str(name).encode("utf-8", "backslashreplace").decode()


def some(names: Sequence[str]) -> str:
    """Names of classes, of which there may be hundreds."""
    more = f" and {len(names) - 10} more" if len(names) > 12 else ""
    return ", ".join(names[:10] if more else names) + more


def _images(
    train: Path, valid: Path, classes: tuple[str, ...] | None
) -> tuple[ImageFolder, ImageFolder]:
    """The images of two splits, with the same classes."""
    images = _folder(train, classes)
    if classes is not None:  # folders of others are left alone
        return images, images_of(valid, classes)
    return images, tc.image_folder(valid, classes=images.classes)


def _folder(folder: Path, classes: tuple[str, ...] | None) -> ImageFolder:
    if classes is None:
        return tc.image_folder(folder)
    there = sorted(path.name for path in folder.iterdir() if path.is_dir())
    missing = [name for name in classes if name not in there]
    if missing:
        raise ValueError(
            f"--classes must name folders in {folder}, got {missing[0]}. "
            f"There are {', '.join(there)}."
        )
    return images_of(folder, classes)


def _parts(images: ImageFolder, share: float, seed: int) -> tuple[ImageFolder, ImageFolder]:
    """Cut a folder in two by its classes, each of which has an image at least on either side."""
    generator = torch.Generator().manual_seed(seed)
    rows: tuple[list[int], list[int]] = ([], [])
    for target, name in enumerate(images.classes):
        of_class = (images.targets == target).nonzero().flatten()
        n = len(of_class)
        if n < 2:
            raise ValueError(
                "--valid-share must leave an image of each class for training and for validation, "
                f"got the class {name} with {n}. Add images, or leave it out by --classes."
            )
        held = min(max(1, round(share * n)), n - 1)
        order = of_class[torch.randperm(n, generator=generator)]
        for part, found in zip(rows, (order[held:], order[:held]), strict=True):
            part += found.sort().values.tolist()
    train, valid = (
        ImageFolder([images.paths[row] for row in part], images.targets[part], images.classes)
        for part in rows
    )
    return train, valid


def _pixels(sides: Sequence[int]) -> str:
    height, width = sides
    return f"{width} x {height}"


def check_photos(task: Task) -> None:
    """Read all photographs; name those that cannot be read, and warn of those that are there twice.

    One that is there twice is of two classes, or trained on and validated on, or counts double.
    """
    faults: list[str] = []
    seen: dict[bytes, Path] = {}
    twice: list[str] = []
    splits = [split for split in (task.train, task.valid) if isinstance(split, ImageFolder)]
    for path in (path for split in splits for path in split.paths):
        try:
            read_photo(path)
        except (OSError, ValueError) as fault:
            faults.append(told(fault))
            continue
        first = seen.setdefault(hashlib.sha256(path.read_bytes()).digest(), path)
        twice += [f"{path} is {first}"] if first is not path else []
    _refuse(faults)
    if twice:
        more = f" and {len(twice) - 3} more" if len(twice) > 3 else ""
        warn(f"Photographs are there twice: {', '.join(twice[:3])}{more}. Delete one of each.")


def _refuse(faults: list[str], remedy: str = "") -> None:
    if faults:
        more = f"... and {len(faults) - 10} more" if len(faults) > 10 else ""
        raise ValueError("\n".join(filter(None, [*faults[:10], more, remedy])))


def read_all(*splits: ImageFolder) -> tuple[list[tuple[Tensor, Tensor]], int]:
    """All images and their bits per number; those that cannot be read, or differ, are named."""
    found: list[tuple[Path, Tensor, Kind]] = []
    faults: list[str] = []
    for path in (path for images in splits for path in images.paths):
        try:
            found.append((path, *read_image(path)))
        except (OSError, ValueError) as fault:
            faults.append(told(fault))
    kinds = Counter(kind for *_, kind in found).most_common(1)
    sizes = Counter(image.shape[1:] for _, image, _ in found).most_common(1)
    unreadable = len(faults)
    for path, image, kind in found:
        if kind != kinds[0][0]:
            law = f"{path} must have {kinds[0][0]} like most images"
            faults.append(f"{law}, got {kind}. {alike(kind, kinds[0][0])}")
        elif image.shape[1:] != sizes[0][0]:
            law = f"{path} must have the size of most images, {_pixels(sizes[0][0])} pixels"
            faults.append(f"{law}, got {_pixels(image.shape[1:])}. Resize all images alike.")
    remedy = "Or add --net resnet18 --size 224, which takes all as they are."
    _refuse(faults, remedy if len(faults) > unreadable else "")
    pixels = iter([image for _, image, _ in found])
    read = [
        (torch.stack([next(pixels) for _ in images.paths]), images.targets) for images in splits
    ]
    return read, kinds[0][0].bits
