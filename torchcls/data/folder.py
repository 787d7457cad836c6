"""Images in folders, one folder per class."""

import io
import operator
import os
import re
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, SupportsIndex

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from torchcls.data.idx import quote_start
from torchcls.data.png import by_number
from torchcls.warn import warn

_SUFFIXES = (
    *(".bmp", ".dib", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm"),
    *(".ppm", ".tif", ".tiff", ".webp"),
)
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
_STARTS = re.compile(
    rb"\x89PNG|\xff\xd8\xff|BM|GIF8|II\*\0|MM\0\*|RIFF....WEBP|P[1-6]\s", flags=re.DOTALL
)
# Of images that are not read: HEIF, AVIF, JPEG 2000, JPEG XL, Photoshop.
_OTHER_STARTS = re.compile(
    rb"....ftyp(?:hei|avi|mif|msf)|\0\0\0\x0c(?:jP|JXL) |\xff\x0a|8BPS", flags=re.DOTALL
)
# What is written before the pixels of a PPM or PGM: P6, width, height and the largest value, with
# comments between; the group holds the last number.
_LARGEST_IN_PPM = re.compile(rb"P[2356](?:(?:\s|#[^\r\n]*[\r\n])+(\d+)){3}")
_BITS_PER_SAMPLE = 258  # the tag in a TIFF
_DROPPINGS = frozenset(["thumbs.db", "desktop.ini", "__macosx"])
_SPLITS = frozenset(
    ["train", "training", "valid", "val", "validation", "test", "testing", "dev", "eval"]
)
_SEEN_AS_RGB = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
_COLOURS = {"L": "grey", "LA": "grey with alpha", "RGB": "RGB", "RGBA": "RGBA"}


class Kind(NamedTuple):
    """What images must have in common to be read together."""

    mode: str  # a letter for each channel
    bits: int

    def __str__(self) -> str:
        channels = f"{len(self.mode)} channel{'s' if len(self.mode) > 1 else ''}"
        return f"{channels} ({self.bits}-bit {_COLOURS[self.mode]})"


class ImageFolder(Dataset[tuple[Tensor, int]]):
    """The images below a folder and the class of each; ``image_folder`` makes it.

    ``dataset[i]`` reads image i from its file, as float32 in [0, 1] of shape (C, H, W), and gives
    it together with its target, an int. The first read of all also looks at image 0, since the
    others must be of its kind: as many channels, and 16 bits each or not. With a transform every
    image is one of Pillow's in RGB, and what the transform makes of it is given.

    Args:
        paths: The files.
        targets: The class of each, int64, shape (N,).
        classes: The name of each class.
        transform: Called with each image, or None.

    Attributes:
        paths: As given, and so are ``targets``, ``classes`` and ``transform``.

    Raises:
        ValueError: On reading, if a file holds no whole image, more than one, one of a kind that
            cannot be read without loss, or, without a transform, one of another kind than image 0.
    """

    def __init__(
        self,
        paths: list[Path],
        targets: Tensor,
        classes: tuple[str, ...],
        transform: Callable[[Any], Any] | None = None,
    ) -> None:
        self.paths = paths
        self.targets = targets
        self.classes = classes
        self.transform = transform
        self._kind: Kind | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: SupportsIndex) -> tuple[Tensor, int]:
        row = operator.index(index)
        path = self.paths[row]
        if self.transform is not None:
            return self.transform(read_photo(path)), int(self.targets[row])
        if self._kind is None:
            self._kind = read_image(self.paths[0])[1]
        image, kind = read_image(path)
        if kind != self._kind:
            raise ValueError(
                f"{path} must have {self._kind} like the first image, {self.paths[0]}, "
                f"got {kind}. {alike(kind, self._kind)}"
            )
        return image, int(self.targets[row])


def alike(one: Kind, other: Kind) -> str:
    """How images of two kinds become images of one: the poorer ones change."""
    if one.bits != other.bits:
        return "Store all images with the same number of bits."
    return f"Store all images as {_COLOURS[max(one.mode, other.mode, key=len)]}."


def image_folder(
    root: str | os.PathLike[str],
    *,
    classes: Sequence[str] | None = None,
    transform: Callable[[Any], Any] | None = None,
) -> ImageFolder:
    """Images in one folder per class, as a dataset that reads them when they are asked for.

    An image counts with the folder of its class, however deep below it lies. The order is class
    by class and by path within a class, numbers by value: 2.png comes before 10.png. Files
    without the suffix of an image, hidden files and folders, ``Thumbs.db``, ``desktop.ini`` and
    ``__MACOSX`` are passed over; links to folders are followed for the folder of a class only.
    A warning counts links to folders and what looks like an image but is passed over.

    Every split gets the same ids: where ``root`` has the name of a split (train, training, valid,
    val, validation, test, testing, dev, eval), the classes are those of all such folders beside
    it, too, so a class that one split lacks does not shift the others. Names that differ only in
    case, Unicode form, blanks or zeros in front are hardly two classes: an error where no split has
    both, else a warning; ``classes`` says that they are.

    Images are read for what they are: grey gives one channel, RGB three, an alpha channel one
    more. 1-bit images give 0 and 1, palettes give RGB, or RGBA where they hold transparency,
    and what EXIF says about the orientation is applied. 8-bit values are divided by 255, 16-bit
    ones, which only grey may have, by 65535. Nothing is resized.

    With a transform, images may differ in size and kind, as photographs do: it is called with each
    as an image of Pillow's in RGB, turned upright. Grey is the same in all three channels, CMYK is
    converted, an alpha channel is left out, and 16-bit images are refused.

    Args:
        root: The folder that holds the folders of the classes.
        classes: The names of the folders; targets are positions in it. None takes all folders,
            sorted by name, or by value where all names are numbers.
        transform: From an image of Pillow's to what a sample shall be, such as
            ``tc.photo_transforms(224, train=True)``.

    Returns:
        A map-style dataset of pairs ``(image, target)``: float32 in [0, 1], shape (C, H, W), or
        what the transform gives, and an int. Its ``classes`` are the names, ``paths`` the files and
        ``targets`` all ids, int64, shape (N,).

    Raises:
        TypeError: If ``classes`` is no sequence of names, or ``transform`` cannot be called.
        OSError: If ``root`` is not there, a folder cannot be listed, or a link leads nowhere.
        ValueError: If ``root`` is a file, holds no folders or splits instead of classes, a folder
            holds no image or is none of ``classes``, ``classes`` are none or not distinct, or one
            class seems to have two names. What is wrong with an image is found when it is read; see
            ``ImageFolder``.

    Examples:
        >>> import tempfile  # write an all-white cat and an all-black dog of 3 x 2 pixels
        >>> folder = Path(tempfile.mkdtemp())
        >>> for name, value in (("cat", 255), ("dog", 0)):
        ...     (folder / name).mkdir()
        ...     size = (folder / name / "1.pgm").write_bytes(b"P5 3 2 255 " + bytes([value] * 6))
        >>> dataset = image_folder(folder)
        >>> dataset.classes, dataset.targets
        (('cat', 'dog'), tensor([0, 1]))
        >>> dataset[0]
        (tensor([[[1., 1., 1.], [1., 1., 1.]]]), 0)

        Images of one size fit into tensors in memory; otherwise a ``DataLoader`` takes the
        dataset as it is, with a transform that resizes where sizes differ:

        >>> import torchcls as tc
        >>> from torch.utils.data import DataLoader, default_collate
        >>> train = tc.Batches(*default_collate(list(dataset)), batch_size=64, shuffle=True)
        >>> train.inputs.shape, train.targets
        (torch.Size([2, 1, 2, 3]), tensor([0, 1]))
        >>> photos = image_folder(folder, transform=tc.photo_transforms(64, train=True))
        >>> train = DataLoader(photos, batch_size=64, shuffle=True)
        >>> next(iter(train))[0].shape
        torch.Size([2, 3, 64, 64])
    """
    if transform is not None and not callable(transform):
        raise TypeError(
            f"transform must be a function of an image, got {transform!r}. "
            "Use tc.photo_transforms(224, train=True)."
        )
    names = None if classes is None else _check_classes(classes)
    folder = Path(os.path.expanduser(root))
    if not folder.exists():
        raise FileNotFoundError(
            f"root must be a folder with one folder per class, got {folder}, which is not there."
        )
    if not folder.is_dir():
        raise ValueError(f"root must be a folder, got the file {folder}. Unpack it if packed.")
    _check_class_folders(folder, {path.name: path for path in _list_folders(folder)}, names)
    if names is None:
        splits = _splits(folder)
        _check_names(splits)
        names = _sort_classes({path.name for split in splits for path in split})
    return images_of(folder, names, transform)


def images_of(
    root: Path, names: tuple[str, ...], transform: Callable[[Any], Any] | None = None
) -> ImageFolder:
    """The images of some classes, which need not be there; other folders are left alone."""
    folders = {path.name: path for path in _list_folders(root)}
    paths: list[Path] = []
    targets: list[int] = []
    passed_over = [path for path in root.iterdir() if _is_image(path) and path.is_file()]
    for target, name in enumerate(names):
        found, others = list_images(folders[name]) if name in folders else ([], [])
        paths += found
        targets += [target] * len(found)
        passed_over += others
    _tell(root, passed_over)
    return ImageFolder(paths, torch.tensor(targets), names, transform)


def _tell(root: Path, passed_over: list[Path]) -> None:
    """Warn of links to folders and of what may be an image, as one file of each suffix shows."""
    kinds = [(path.is_dir(), path.suffix.lower()) for path in passed_over]
    counts = {kind: _may_count(path) for kind, path in zip(kinds, passed_over, strict=True)}
    missed = [path for kind, path in zip(kinds, passed_over, strict=True) if counts[kind]]
    if missed:
        warn(
            f"{len(missed)} images or links to folders in {root} are passed over, such as "
            f"{missed[0]}. An image must lie in the folder of its class, not behind a link, with a "
            f"name that ends in {', '.join(_SUFFIXES)}."
        )


def _may_count(path: Path) -> bool:
    if not path.is_file():
        return path.is_dir()
    with suppress(OSError), open(path, "rb") as file:
        start = file.read(16)
        return bool(_STARTS.match(start) or _OTHER_STARTS.match(start))
    return False


def _check_classes(classes: Iterable[str]) -> tuple[str, ...]:
    if isinstance(classes, (str, bytes)) or not isinstance(classes, Iterable):
        raise TypeError(
            f"classes must be a sequence of names, got {classes!r}. Write classes=('cat', 'dog')."
        )
    names = tuple(classes)
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"classes must be names of folders, got {name!r} in {names}.")
    if not names:
        raise ValueError("classes must name at least one class, got none.")
    if len(set(names)) < len(names):
        raise ValueError(f"classes must be distinct, got {names}.")
    return names


def _check_class_folders(
    root: Path, folders: dict[str, Path], classes: tuple[str, ...] | None
) -> None:
    if not folders:
        images = sum(map(_is_image, root.iterdir()))
        there = f"{images} images directly in it" if images else "no folder in it"
        raise ValueError(
            f"{root} must hold one folder per class with its images, got {there}. "
            "Move the images of each class into a folder with its name."
        )
    strange = [name for name in sorted(folders) if name not in (classes or folders)]
    if (strange or classes is None) and _holds_splits(folders):
        training = [path for name, path in folders.items() if name.lower().startswith("train")]
        raise ValueError(
            f"{root} must hold one folder per class, got the splits "
            f"{', '.join(sorted(folders))}. Pass {(training or sorted(folders.values()))[0]}."
        )
    if strange:
        raise ValueError(
            f"classes must name every folder in root, got {classes} but {folders[strange[0]]} "
            f"({len(strange)} of {len(folders)} folders are left out). "
            "Add the class or delete the folder."
        )


def _holds_splits(folders: dict[str, Path]) -> bool:
    """Whether these are splits; a single folder is one only if it holds nothing but folders."""
    if not all(name.lower() in _SPLITS for name in folders):
        return False
    return len(folders) > 1 or all(
        any(map(_is_seen, path.iterdir()))
        and all(below.is_dir() for below in path.iterdir() if _is_seen(below))
        for path in folders.values()
    )


def _splits(root: Path) -> list[list[Path]]:
    """The folders in ``root`` and, where it is a split, in the other splits beside it."""
    here = Path(os.path.abspath(root))  # so that "." has a name, and a link keeps its own
    if here.name.lower() not in _SPLITS:
        return [_list_folders(root)]
    beside = [path for path in here.parent.iterdir() if path.name.lower() in _SPLITS]
    return [_list_folders(path) for path in beside if path.is_dir()]


def _check_names(splits: list[list[Path]]) -> None:
    """Find one class under two names: wherever a split has one of them alone, its ids are wrong."""
    spoken: dict[str, Path] = {}
    for path in {path.name: path for split in splits for path in sorted(split)}.values():
        name = " ".join(unicodedata.normalize("NFKC", path.name).casefold().split())
        other = spoken.setdefault(str(int(name)) if name.isdecimal() else name, path)
        if path is other:
            continue
        message = (
            "Classes must not differ only in case, Unicode form, blanks or zeros in front of their "
            f"names, got {other} and {path}. Rename one, or name all classes if these are two."
        )
        if not any({path.name, other.name} <= {p.name for p in split} for split in splits):
            raise ValueError(message)
        warn(message)


def _sort_classes(names: Iterable[str]) -> tuple[str, ...]:
    by_name = sorted(names)
    if all(name.isdecimal() for name in by_name):
        return tuple(sorted(by_name, key=int))
    return tuple(by_name)


def _is_seen(path: Path) -> bool:
    return not path.name.startswith(".") and path.name.lower() not in _DROPPINGS


def _is_image(path: Path) -> bool:
    return _is_seen(path) and path.suffix.lower() in _SUFFIXES


def _list_folders(root: Path) -> list[Path]:
    paths = [path for path in root.iterdir() if _is_seen(path)]
    for path in paths:
        if path.is_symlink() and not path.exists():
            raise FileNotFoundError(f"{path} must lead somewhere, got a dead link. Delete it.")
    return [path for path in paths if path.is_dir()]


def list_images(class_folder: Path) -> tuple[list[Path], list[Path]]:
    """The images of a class in order, and what is passed over: other files, links to folders."""
    paths: list[Path] = []
    passed_over: list[Path] = []
    for folder, folders, files in os.walk(class_folder, onerror=_raise):
        folders[:] = [name for name in folders if _is_seen(Path(name))]
        passed_over += [path for name in folders if (path := Path(folder, name)).is_symlink()]
        for path in (Path(folder, name) for name in files if _is_seen(Path(name))):
            (paths if _is_image(path) else passed_over).append(path)
    if not paths:
        others = f" but {len(passed_over)} files like {passed_over[0].name}" if passed_over else ""
        raise ValueError(
            f"{class_folder} must hold at least one image, got none{others}. "
            "Add images or delete the folder."
        )

    def folder_by_folder(path: Path) -> list[tuple[list[str | int], str]]:
        *folders, name = path.relative_to(class_folder).parts
        # With a suffix to drop, or v1.10 would be sorted as v1.
        return [by_number(Path(f"{part}.folder")) for part in folders] + [by_number(Path(name))]

    return sorted(paths, key=folder_by_folder), passed_over


def _raise(error: OSError) -> NoReturn:
    raise error


def read_image(path: Path) -> tuple[Tensor, Kind]:
    """The image, float32 (C, H, W) in [0, 1], and its kind; 1-bit images count as 8-bit."""
    image, bits = _decode(path, path.read_bytes())
    mode = image.mode
    if mode in ("P", "PA"):
        mode = "RGBA" if mode == "PA" or "transparency" in image.info else "RGB"
        image = image.convert(mode)
    pixels = np.array(image)
    if (mode == "I" and pixels.min() >= 0 and pixels.max() <= 65535) or (
        mode in ("I;16", "I;16B", "I;16L") and bits == 16
    ):
        kind, largest = Kind("L", 16), 65535
    elif mode == "1":
        kind, largest = Kind("L", 8), 1
    elif mode in _COLOURS and bits <= 8:
        kind, largest = Kind(mode, 8), 255
    else:
        remedy = "Store it with 8 bits per channel."
        if mode in ("CMYK", "YCbCr", "HSV", "RGBX"):
            remedy = "Store it as RGB."
        raise ValueError(
            f"{path} must be 8-bit grey or RGB, with or without alpha, or 16-bit grey, "
            f"got {bits}-bit {_COLOURS.get(mode, mode)}. {remedy}"
        )
    tensor = torch.from_numpy(pixels.astype(np.float32)).div_(largest)
    return (tensor[None] if tensor.ndim == 2 else tensor.permute(2, 0, 1).contiguous()), kind


def read_photo(path: Path) -> Any:
    """The image as one of Pillow's in RGB; what has more than 8 bits would be clipped."""
    image, bits = _decode(path, path.read_bytes())
    if bits > 8 or image.mode not in _SEEN_AS_RGB:
        raise ValueError(
            f"{path} must be an image of 8 bits per channel to be seen as RGB, got {bits}-bit "
            f"{_COLOURS.get(image.mode, image.mode)}. Store it with 8 bits per channel, as RGB."
        )
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA")  # Pillow warns of some transparent palettes otherwise
    return image.convert("RGB")


def _decode(path: Path, data: bytes) -> tuple[Any, int]:
    """The image, turned upright, and the bits per channel in the file."""
    from PIL import Image, ImageFile, ImageOps

    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise ValueError(
            "PIL.ImageFile.LOAD_TRUNCATED_IMAGES must be False, got True: "
            "cut-off images would be read as whole ones. Set it to False."
        )
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"PIL\.")
            warnings.filterwarnings("error", category=Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
                # A photograph of several pictures (MPO) starts with the one that is shown.
                frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
                image.verify()  # the checksums of a PNG; decoding skips them
            with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
                bits = _bits_per_channel(image, data)
                # A TIFF turns itself when it is loaded; Pillow 10 would turn it twice.
                is_tiff = image.format == "TIFF"
                upright = image.copy() if is_tiff else ImageOps.exif_transpose(image)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise ValueError(
            f"{path} must be an image of at most {Image.MAX_IMAGE_PIXELS} pixels, got more. "
            "Make it smaller."
        ) from error
    except MemoryError:
        raise
    except Exception as error:  # on damaged bytes Pillow raises whatever comes up
        if not _STARTS.match(data):
            raise ValueError(
                f"{path} must be an image, got {quote_start(data)}. Replace or delete it."
            ) from error
        raise ValueError(
            f"{path} must be a whole image, got a cut-off or damaged one of {len(data)} bytes. "
            "Replace or delete it."
        ) from error
    if frames > 1:
        raise ValueError(
            f"{path} must be a single image, got {frames} frames. Store each in a file of its own."
        )
    return upright, bits


def _bits_per_channel(image: Any, data: bytes) -> int:
    """As stored: Pillow reads 16-bit colours without a word as 8-bit ones."""
    if image.format == "PNG":
        return data[24]
    if image.format == "TIFF":
        return int(max(image.tag_v2.get(_BITS_PER_SAMPLE, (1,))))
    largest = _LARGEST_IN_PPM.match(data)
    if largest is not None:
        return 8 if int(largest[1]) <= 255 else 16
    return 32 if image.mode in ("I", "F") else 8
