"""MNIST as folders of PNG images, one folder per digit."""

import io
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from torchcls.data.idx import quote_start

_SIDE = 28
# What the file of an 8-bit grey image of 28 x 28 pixels starts with: the signature, then the
# chunk IHDR of 13 bytes with width, height, bit depth and colour type.
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_START = _SIGNATURE + b"\0\0\0\x0dIHDR" + bytes([0, 0, 0, _SIDE, 0, 0, 0, _SIDE, 8, 0])
_COLOURS = {0: "grey", 2: "RGB", 3: "palette", 4: "grey with alpha", 6: "RGB with alpha"}


def find_png_folders(root: Path) -> tuple[Path, Path] | None:
    """The training and the test folder in ``root`` or one folder below, or None."""
    below = sorted(path for path in root.iterdir() if path.is_dir() and path.name[0] != ".")
    found = [pair for pair in map(_split_folders, below) if pair is not None]
    here = _split_folders(root)
    if here is not None:
        return here
    if len(found) > 1:
        names = ", ".join(train.parent.name for train, _ in found)
        raise ValueError(
            f"{root} must hold one data set, got {len(found)}: {names}. "
            "Name the folder of one of them."
        )
    return found[0] if found else None


def begins_with_a_digit(folder: Path) -> bool:
    """Whether the first PNG file in a folder is an 8-bit grey image of 28 x 28 pixels."""
    paths = _png_files(folder)
    if not paths:
        return False
    with open(paths[0], "rb") as file:
        return file.read(len(_START)) == _START


def read_png_folder(folder: Path, classes: Sequence[int] | None) -> tuple[Tensor, Tensor]:
    """The images, uint8 (n, 28, 28), and the digit of each, int64 (n,).

    With ``classes`` they come class by class in that order and sorted by name within the
    class, numbers by value; without, all files are sorted by number across the classes, where
    every name is a number.
    """
    digits = range(10) if classes is None else classes
    labelled = [(path, digit) for digit in digits for path in _list_images(folder, digit)]
    if classes is None and all(path.stem.isdecimal() for path, _ in labelled):
        labelled.sort(key=lambda item: int(item[0].stem))
    images = torch.empty(len(labelled), _SIDE, _SIDE, dtype=torch.uint8)
    for image, (path, _) in zip(images, labelled, strict=True):
        image.copy_(_read_png(path))
    return images, torch.tensor([digit for _, digit in labelled])


def _split_folders(root: Path) -> tuple[Path, Path] | None:
    for train, test in (("training", "testing"), ("train", "test")):
        if (root / train).is_dir() and (root / test).is_dir():
            return root / train, root / test
    return None


def _list_images(folder: Path, digit: int) -> list[Path]:
    """The PNG files of one class; hidden ones and other files are passed over."""
    class_folder = folder / str(digit)
    if not class_folder.is_dir():
        there = ", ".join(str(d) for d in range(10) if (folder / str(d)).is_dir()) or "none"
        raise FileNotFoundError(
            f"{folder} must hold a folder {digit} with the images of that class, got the class "
            f"folders {there}. Name the classes to read."
        )
    paths = _png_files(class_folder)
    if not paths:
        raise ValueError(f"{class_folder} must hold at least one PNG image, got none.")
    return paths


def _png_files(folder: Path) -> list[Path]:
    paths = [path for path in folder.iterdir() if path.suffix.lower() == ".png"]
    return sorted((path for path in paths if not path.name.startswith(".")), key=by_number)


def by_number(path: Path) -> tuple[list[str | int], str]:
    """A sort key that puts 2.png before 10.png and img2.png before img10.png."""
    parts = re.split("([0-9]+)", path.stem)  # text and numbers take turns, text first
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], path.name


def _read_png(path: Path) -> Tensor:
    # Pillow comes with torchvision, whose own decode_image is deprecated since 0.29.
    from PIL import Image

    data = path.read_bytes()
    start = data[: len(_START)]
    if not start.startswith(_SIGNATURE):
        raise ValueError(f"{path} must be a PNG image, got {quote_start(start)}.")
    if len(start) == len(_START) and start != _START:
        width, height = int.from_bytes(start[16:20], "big"), int.from_bytes(start[20:24], "big")
        colour = _COLOURS.get(start[25], f"colour type {start[25]}")
        raise ValueError(
            f"{path} must be an 8-bit grey image of {_SIDE} x {_SIDE} pixels, got "
            f"{start[24]}-bit {colour} of {width} x {height}."
        )
    try:
        Image.open(io.BytesIO(data), formats=["PNG"]).verify()  # the checksums; decoding skips them
        pixels = np.array(Image.open(io.BytesIO(data), formats=["PNG"]))
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(
            f"{path} must be a whole PNG image, got a cut-off or damaged one of {len(data)} bytes."
        ) from error
    return torch.from_numpy(pixels)
