"""MNIST from the files that people have: IDX, IDX packed with gzip, or folders of PNG images."""

import os
from collections.abc import Iterable, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import SupportsIndex

import torch
from torch import Tensor

from torchcls.batches import check_whole_number
from torchcls.data.idx import read_idx
from torchcls.data.png import find_png_folders, read_png_folder

Split = tuple[Tensor, Tensor]

_DEFAULT_ROOT = Path("~/.cache/torchcls/mnist")
_TORCHVISION_PLACE = Path("MNIST", "raw")  # below the root that torchvision is given
_IDX_NAMES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


def mnist(
    root: str | os.PathLike[str] | None = None,
    *,
    classes: Iterable[SupportsIndex] | None = None,
    download: bool = False,
) -> tuple[Split, Split]:
    """MNIST as two pairs of tensors, ``(images, targets)`` for training and for testing.

    The images are the stored bytes divided by 255. All forms of the data give the same
    tensors in the same order: the four IDX files, plain or packed with gzip, and folders of
    PNG images whose file names are their positions in the IDX files.

    Args:
        root: A folder that holds the four IDX files, or has them in ``MNIST/raw`` as
            torchvision does; or one that holds ``training/`` and ``testing/`` (or ``train/``
            and ``test/``) with a folder of PNG images per digit, directly or one folder
            below. None means ``~/.cache/torchcls/mnist``.
        classes: The digits to read, such as ``(3, 5, 8)``. The images then come class by
            class in this order, and the targets are positions in it: 0 for a three, 1 for a
            five, 2 for an eight. None reads all digits in the order of the files, and the
            targets are the digits.
        download: Whether to fetch the files into ``root``, through torchvision, unless they
            are there already.

    Returns:
        ``(train, test)``, each ``(images, targets)``: float32 in [0, 1], shape
        (n, 1, 28, 28), and int64, shape (n,).

    Raises:
        TypeError: If a class is no whole number.
        FileNotFoundError: If ``root``, one of its files or the folder of a class is not there.
        ConnectionError: If the download fails.
        ValueError: If ``classes`` are not distinct digits, or a file or folder is not what it
            must be: cut off, too long, another format or size, images and labels of
            different length, no image of a class.

    Examples:
        >>> import tempfile  # write files of two images, an all-white 3 and an all-black 8
        >>> folder = Path(tempfile.mkdtemp())
        >>> header = bytes([0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 28, 0, 0, 0, 28])
        >>> labels = bytes([0, 0, 8, 1, 0, 0, 0, 2, 3, 8])
        >>> for split in ("train", "t10k"):
        ...     path = folder / f"{split}-images-idx3-ubyte"
        ...     size = path.write_bytes(header + bytes([255] * 784) + bytes(784))
        ...     size = (folder / f"{split}-labels-idx1-ubyte").write_bytes(labels)
        >>> (images, targets), test = mnist(folder, classes=(8, 3))
        >>> images.shape, images.amax(dim=(1, 2, 3)), targets  # the 8 comes first
        (torch.Size([2, 1, 28, 28]), tensor([0., 1.]), tensor([0, 1]))

    References:
        LeCun, Bottou, Bengio and Haffner, "Gradient-based learning applied to document
        recognition", Proceedings of the IEEE 86 (1998).
    """
    digits = None if classes is None else check_digits(classes)
    folder = Path(os.path.expanduser(_DEFAULT_ROOT if root is None else root))
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"root must be a folder, got the file {folder}. Unpack it if packed.")
    if download and not _is_there(folder):
        _download(folder)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"root must be a folder that holds MNIST, got {folder}, which is not there. "
            "Pass the folder of your files as root, or download=True."
        )
    for place in (folder, folder / _TORCHVISION_PLACE):
        paths = _idx_files(place)
        if len(paths) == len(_IDX_NAMES):
            train = _read_idx_split(paths[0], paths[1], digits)
            return train, _read_idx_split(paths[2], paths[3], digits)
    png_folders = find_png_folders(folder)
    if png_folders is None:
        raise FileNotFoundError(_what_is_missing(folder))
    train, test = (_to_split(*read_png_folder(path, digits), digits) for path in png_folders)
    return train, test


def _idx_files(folder: Path) -> list[Path]:
    """Those of the four IDX files that are in ``folder``, plain ones before packed ones."""
    choices = [[folder / name, folder / f"{name}.gz"] for name in _IDX_NAMES]
    there = [[path for path in pair if path.is_file()] for pair in choices]
    return [paths[0] for paths in there if paths]


def _read_idx_split(image_path: Path, label_path: Path, digits: Sequence[int] | None) -> Split:
    images, labels = read_idx(image_path), read_idx(label_path)
    if images.shape[1:] != (28, 28):
        kind = "labels" if images.ndim == 1 else "images"
        raise ValueError(
            f"{image_path} must hold images of shape (n, 28, 28), got {kind} {tuple(images.shape)}."
        )
    if labels.ndim != 1:
        raise ValueError(f"{label_path} must hold labels, got images {tuple(labels.shape)}.")
    if len(images) != len(labels):
        raise ValueError(
            f"{image_path} and {label_path} must belong together, "
            f"got {len(images)} images but {len(labels)} labels."
        )
    bad = labels > 9
    if bad.any():
        row = int(bad.nonzero()[0])
        raise ValueError(
            f"{label_path} must hold labels in 0..9, got {int(labels[row])} at position {row} "
            f"({int(bad.sum())} of {len(labels)} are out of range)."
        )
    if digits is not None:
        rows = [(labels == digit).nonzero()[:, 0] for digit in digits]
        for digit, found in zip(digits, rows, strict=True):
            if len(found) == 0:
                there = ", ".join(map(str, sorted(set(labels.tolist()))))
                raise ValueError(
                    f"{label_path} must hold each of classes, got no {digit} but only {there}."
                )
        chosen = torch.cat(rows)
        images, labels = images[chosen], labels[chosen]
    return _to_split(images, labels, digits)


def _to_split(images: Tensor, labels: Tensor, digits: Sequence[int] | None) -> Split:
    """float32 images in [0, 1] and int64 targets from the bytes and the digits."""
    targets = labels.long()
    if digits is not None:
        position = targets.new_zeros(10)
        position[list(digits)] = torch.arange(len(digits), device="cpu")
        targets = position[targets]
    return images[:, None].float().div_(255), targets


def _is_there(folder: Path) -> bool:
    """Whether there is nothing to fetch.

    In torchvision's place packed files do not count: they may be what an interrupted
    download left, and torchvision looks at them itself.
    """
    unpacked = folder / _TORCHVISION_PLACE
    return folder.is_dir() and (
        len(_idx_files(folder)) == len(_IDX_NAMES)
        or all((unpacked / name).is_file() for name in _IDX_NAMES)
        or find_png_folders(folder) is not None
    )


def _download(folder: Path) -> None:
    from torchvision import datasets

    try:
        datasets.MNIST(folder, train=False, download=True)  # fetches the training files, too
    except (OSError, HTTPException, RuntimeError) as error:
        reason = str(error).strip().splitlines()[-1:] or [type(error).__name__]
        raise ConnectionError(
            f"MNIST must be fetched into {folder}, got: {reason[0]}. Get the four files "
            f"{', '.join(name + '.gz' for name in _IDX_NAMES)} another way, and put them there."
        ) from error


def _what_is_missing(folder: Path) -> str:
    for place in (folder, folder / _TORCHVISION_PLACE):
        found = {path.name.removesuffix(".gz") for path in _idx_files(place)}
        missing = [name for name in _IDX_NAMES if name not in found]
        if found:
            return (
                f"{place} must hold all four IDX files, plain or .gz, got none named "
                f"{' or '.join(missing)}."
            )
    names = sorted(path.name for path in folder.iterdir())
    listed = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return (
        f"root must hold the four IDX files ({_IDX_NAMES[0]}, ...), plain or .gz, or the folders "
        f"training and testing, or train and test, of PNG images, got {folder} with "
        f"{listed or 'nothing in it'}."
    )


def check_digits(classes: Iterable[SupportsIndex]) -> tuple[int, ...]:
    """Return ``classes`` as a tuple of distinct digits, in the order given."""
    if isinstance(classes, (str, bytes)) or not isinstance(classes, Iterable):
        raise TypeError(
            f"classes must be a sequence of digits, got {classes!r}. Write classes=(3, 5, 8)."
        )
    digits = tuple(check_whole_number("each of classes", digit) for digit in classes)
    if not digits:
        raise ValueError("classes must name at least one digit, got none.")
    for digit in digits:
        if not 0 <= digit <= 9:
            raise ValueError(f"classes must be digits in 0..9, got {digit} in {digits}.")
    if len(set(digits)) < len(digits):
        raise ValueError(f"classes must be distinct digits, got {digits}.")
    return digits
