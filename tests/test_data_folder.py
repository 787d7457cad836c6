"""Folders of images: one table of classes, exact values, and a sentence for every bad file."""

import contextlib
import io
import os
import pickle
import re
import struct
import warnings
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile
from torch.utils.data import DataLoader, default_collate

from torchcls import image_folder, photo_transforms
from torchcls.data import Batches

GREY = np.array([[0, 51, 102], [153, 204, 255]], dtype=np.uint8)
COLOURS = np.arange(0, 180, 10, dtype=np.uint8).reshape(2, 3, 3)
ALPHA = np.arange(0, 240, 10, dtype=np.uint8).reshape(2, 3, 4)


def save(path, pixels=GREY, **options):
    """Write an array or an image, and the folders on the way."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(path, **options)
    return path


def encode(pixels, file_format, **options):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, file_format, **options)
    return file.getvalue()


def scaled(pixels, largest=255):
    """Channels first, in [0, 1], with plain numpy."""
    pixels = pixels if pixels.ndim == 3 else pixels[:, :, None]
    return torch.from_numpy(pixels.astype(np.float32).transpose(2, 0, 1) / np.float32(largest))


def assert_image(image, expected):
    assert image.is_contiguous()
    torch.testing.assert_close(image, expected, rtol=0, atol=0)


def read_one(tmp_path, name, content):
    """What comes out for a file with this content, as the only one of the data set."""
    path = tmp_path / "cat" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    return image_folder(tmp_path)[0][0]


def png_16_bit(colour_type, channels):
    """A PNG of one pixel, written by hand, as Pillow writes no 16-bit colours."""

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">2I5B", 1, 1, 16, colour_type, 0, 0, 0)
    pixels = zlib.compress(bytes(1 + 2 * channels))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


def tiff(bits, pixels):
    """A TIFF of two pixels, written by hand, with this many bits for each of its channels."""
    channels, colour, end = len(bits), 1 if len(bits) == 1 else 2, 8 + 2 + 9 * 12 + 4
    depth = (258, channels, bits[0] if channels == 1 else end + len(pixels))
    tags = [(256, 1, 2), (257, 1, 1), depth, (259, 1, 1), (262, 1, colour)]
    tags += [(273, 1, end), (277, 1, channels), (278, 1, 1), (279, 1, len(pixels))]
    entries = b"".join(struct.pack("<HHII", tag, 3, count, value) for tag, count, value in tags)
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)
    return head + pixels + struct.pack(f"<{channels}H", *bits)


def names(dataset, root):
    return [path.relative_to(root).as_posix() for path in dataset.paths]


@pytest.fixture
def pets(tmp_path):
    """Two cats and a dog."""
    root = tmp_path / "pets"
    save(root / "cat" / "1.png")
    save(root / "cat" / "2.png", 255 - GREY)
    save(root / "dog" / "1.png", GREY[::-1].copy())
    return root


# --- what is found --------------------------------------------------------------------------


def test_it_gives_the_images_class_by_class(pets):
    dataset = image_folder(pets)
    assert dataset.classes == ("cat", "dog")
    assert dataset.paths == [pets / "cat" / "1.png", pets / "cat" / "2.png", pets / "dog" / "1.png"]
    torch.testing.assert_close(dataset.targets, torch.tensor([0, 0, 1]))
    assert len(dataset) == 3
    assert [target for _, target in dataset] == [0, 0, 1]
    assert type(dataset[2][1]) is int
    for i, expected in enumerate((GREY, 255 - GREY, GREY[::-1])):
        assert_image(dataset[i][0], scaled(expected))
    assert_image(dataset[-1][0], scaled(GREY[::-1]))
    assert_image(dataset[torch.tensor(1)][0], scaled(255 - GREY))


def test_root_may_be_a_string_and_start_at_home(pets, monkeypatch):
    assert image_folder(str(pets)).paths == image_folder(pets).paths
    monkeypatch.setenv("HOME", str(pets.parent))
    monkeypatch.setenv("USERPROFILE", str(pets.parent))
    assert image_folder("~/pets").paths == image_folder(pets).paths


def test_it_sorts_by_path_and_numbers_by_value(tmp_path):
    for name in ("10.png", "2.png", "img10.png", "img9.png", "b/2.png", "b/1.png", "v1.10/1.png"):
        save(tmp_path / "cat" / name)
    save(tmp_path / "cat" / "v1.9" / "deep" / "1.png")
    save(tmp_path / "cat" / "a.png")
    assert [name[4:] for name in names(image_folder(tmp_path), tmp_path)] == [
        "2.png",
        "10.png",
        "a.png",
        "b/1.png",
        "b/2.png",
        "img9.png",
        "img10.png",
        "v1.9/deep/1.png",
        "v1.10/1.png",
    ]


def test_hidden_files_droppings_and_other_files_are_passed_over(pets):
    expected = image_folder(pets).paths
    for name in (".DS_Store", "._1.png", "Thumbs.db", "desktop.ini", "notes.txt", "label.json"):
        (pets / "cat" / name).write_bytes(b"no image")
        (pets / name).write_bytes(b"no image")
    for folder in (".cache", "__MACOSX", ".ipynb_checkpoints"):
        save(pets / folder / "1.png")
        save(pets / "cat" / folder / "1.png")
    dataset = image_folder(pets)
    assert dataset.paths == expected
    assert dataset.classes == ("cat", "dog")


def test_every_suffix_counts_in_any_case(tmp_path):
    suffixes = ["png", "jpg", "jpeg", "bmp", "gif", "tif", "tiff", "webp", "pgm", "ppm", "pbm"]
    suffixes += ["PNG", "Jpg"]
    (tmp_path / "cat").mkdir()
    for i, suffix in enumerate(suffixes):
        (tmp_path / "cat" / f"{i}.{suffix}").write_bytes(encode(GREY, "PNG"))
    dataset = image_folder(tmp_path)
    assert [path.suffix[1:] for path in dataset.paths] == suffixes
    for image, _ in dataset:  # the content tells the format, not the name
        assert_image(image, scaled(GREY))


def test_links_are_followed_but_never_in_a_circle(pets, tmp_path):
    save(tmp_path / "elsewhere" / "5.png")
    (pets / "bird").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (pets / "cat" / "3.png").symlink_to(tmp_path / "elsewhere" / "5.png")
    (pets / "cat" / "around").symlink_to(pets, target_is_directory=True)
    expected = ["bird/5.png", "cat/1.png", "cat/2.png", "cat/3.png", "dog/1.png"]
    with pytest.warns(UserWarning, match=f"1 images or links to folders in {pets} are passed over"):
        dataset = image_folder(pets)
    assert names(dataset, pets) == expected
    assert_image(dataset[3][0], scaled(GREY))


# --- classes --------------------------------------------------------------------------------


def test_classes_that_are_all_numbers_are_sorted_by_value(tmp_path):
    for name in ("10", "9", "01"):
        save(tmp_path / name / "1.png")
    assert image_folder(tmp_path).classes == ("01", "9", "10")
    save(tmp_path / "x" / "1.png")
    assert image_folder(tmp_path).classes == ("01", "10", "9", "x")


@pytest.mark.parametrize("other", ["valid", "TEST", "Dev", "eval", "val", "validation", "testing"])
def test_splits_share_one_table_of_classes(tmp_path, other):
    for name in ("train/ant", "train/bee", "train/cat", f"{other}/cat", f"{other}/dog"):
        save(tmp_path / name / "1.png")
    save(tmp_path / "extra" / "asp" / "1.png")  # no split
    (tmp_path / "train.txt").write_text("no folder")
    train, valid = image_folder(tmp_path / "train"), image_folder(tmp_path / other)
    assert train.classes == valid.classes == ("ant", "bee", "cat", "dog")
    assert train.targets.tolist() == [0, 1, 2]
    assert valid.targets.tolist() == [2, 3]


def test_a_split_is_known_by_its_name_from_inside_and_through_a_link(tmp_path, monkeypatch):
    save(tmp_path / "train" / "ant" / "1.png")
    save(tmp_path / "store" / "bee" / "1.png")
    (tmp_path / "valid").symlink_to(tmp_path / "store", target_is_directory=True)
    assert image_folder(tmp_path / "valid").targets.tolist() == [1]
    assert image_folder(tmp_path / "store").targets.tolist() == [0]
    monkeypatch.chdir(tmp_path / "train")
    assert image_folder(".").classes == ("ant", "bee")


def test_an_empty_folder_in_another_split_does_not_matter(tmp_path):
    save(tmp_path / "train" / "cat" / "1.png")
    (tmp_path / "test" / "ant").mkdir(parents=True)
    dataset = image_folder(tmp_path / "train")
    assert dataset.classes == ("ant", "cat")
    assert dataset.targets.tolist() == [1]


def test_given_classes_are_positions(pets):
    dataset = image_folder(pets, classes=["dog", "bird", "cat"])
    assert dataset.classes == ("dog", "bird", "cat")
    assert names(dataset, pets) == ["dog/1.png", "cat/1.png", "cat/2.png"]
    assert dataset.targets.tolist() == [0, 2, 2]


def test_a_class_may_be_called_like_a_split(tmp_path):
    save(tmp_path / "train" / "1.png")
    assert image_folder(tmp_path).classes == ("train",)  # it holds images, not classes
    save(tmp_path / "train" / "more" / "1.png")
    assert len(image_folder(tmp_path)) == 2
    save(tmp_path / "bus" / "1.png")
    assert image_folder(tmp_path).classes == ("bus", "train")


def test_naming_classes_like_splits_says_that_they_are_classes(tmp_path):
    save(tmp_path / "train" / "1.png")
    save(tmp_path / "test" / "1.png")
    with pytest.raises(ValueError, match="got the splits test, train"):
        image_folder(tmp_path)
    assert image_folder(tmp_path, classes=("train", "test")).targets.tolist() == [0, 1]


def split_into(root, train, valid):
    for split, names_ in (("train", train), ("valid", valid)):
        for name in names_:
            save(root / split / name / "1.png")


LOOK_ALIKE = [
    ("Cat", "cat"),
    ("caf\u00e9", "cafe\u0301"),
    ("cat", "cat "),
    ("stra\u00dfe", "STRASSE"),
    ("big cat", "big  cat"),
    ("big cat", "big\u00a0cat"),
    ("1", "01"),
]


@pytest.mark.parametrize(("ours", "theirs"), LOOK_ALIKE)
def test_one_class_under_two_names_is_refused(tmp_path, ours, theirs):
    split_into(tmp_path, (ours, "dog"), (theirs, "dog"))
    words = "Classes must not differ only in case, Unicode form, blanks or zeros in front"
    for split in ("train", "valid"):
        with pytest.raises(ValueError, match=words) as caught:
            image_folder(tmp_path / split)
        assert str(tmp_path / "train" / ours) in str(caught.value)
        assert str(tmp_path / "valid" / theirs) in str(caught.value)


@pytest.mark.parametrize(("one", "other"), LOOK_ALIKE)
def test_where_a_split_has_both_they_are_two_classes_and_doubted(tmp_path, one, other):
    split_into(tmp_path, (one, other), (one,))
    with pytest.warns(UserWarning, match="name all classes if these are two") as caught:
        classes = image_folder(tmp_path / "valid").classes
    assert set(classes) == {one, other}
    assert len(caught) == 1
    assert image_folder(tmp_path / "train", classes=classes).targets.tolist() == [0, 1]  # silent


def test_names_that_differ_in_more_are_left_alone(tmp_path):
    split_into(tmp_path, ("cat", "cat2", "c-at", "0cat", "10", "1"), ("cat", "cats", "100"))
    assert len(image_folder(tmp_path / "train").classes) == 8


# --- what is passed over ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "start"),
    [
        ("2.heic", b"\0\0\0\x18ftypheic"),
        ("2.AVIF", b"\0\0\0\x20ftypavif"),
        ("2.jp2", b"\0\0\0\x0cjP  \r\n"),
        ("2.jxl", b"\xff\x0a"),
        ("2", b"\xff\xd8\xff\xe0"),
        ("2.dng", b"II*\0"),
    ],
)
def test_images_that_are_passed_over_are_counted_and_said(pets, name, start):
    for folder in ("cat", "dog"):
        (pets / folder / name).write_bytes(start + bytes(20))
    words = f"2 images or links to folders in {pets} are passed over, such as {pets}"
    with pytest.warns(UserWarning, match=re.escape(words)):
        assert len(image_folder(pets)) == 3


def test_images_beside_the_folders_of_classes_are_counted(pets):
    save(pets / "stray.png")
    with pytest.warns(UserWarning, match=f"1 images.*such as {pets / 'stray.png'}"):
        assert len(image_folder(pets)) == 3


def test_companions_of_images_are_passed_over_in_silence(pets):
    for name in ("1.txt", "1.json", "LICENSE", "empty"):
        (pets / "cat" / name).write_text("Box 1 2 3 4" if name != "empty" else "")
    if hasattr(os, "mkfifo"):
        os.mkfifo(pets / "cat" / "pipe")  # reading it would wait for ever
    (pets / "dog.png").mkdir()  # a class with a strange name
    save(pets / "dog.png" / "1.png")
    assert len(image_folder(pets)) == 4


@pytest.mark.parametrize("suffix", ["jfif", "jpe", "pnm", "dib"])
def test_seldom_suffixes_of_formats_that_are_read_count(tmp_path, suffix):
    format_ = {"jfif": "JPEG", "jpe": "JPEG", "pnm": "PPM", "dib": "BMP"}[suffix]
    read_one(tmp_path, f"1.{suffix}", encode(COLOURS, format_))


# --- folders that cannot be read ----------------------------------------------------------------


@pytest.mark.parametrize("closed", ["cat/below", "dog", "."])
def test_a_folder_that_cannot_be_listed_is_an_error_that_names_it(pets, monkeypatch, closed):
    save(pets / "cat" / "below" / "7.png")
    closed, scandir, listdir = pets / closed, os.scandir, os.listdir

    def refusing(of):
        def listed(path):
            if os.path.realpath(path) == os.path.realpath(closed):
                raise PermissionError(13, "Permission denied", str(path))
            return of(path)

        return listed

    monkeypatch.setattr(os, "scandir", refusing(scandir))
    monkeypatch.setattr(os, "listdir", refusing(listdir))
    with pytest.raises(PermissionError, match=re.escape(str(closed))):
        image_folder(pets)


def test_a_tilde_in_front_is_the_home_of_a_user_or_a_name(pets, monkeypatch):
    monkeypatch.setenv("HOME", str(pets.parent))
    assert len(image_folder(f"~/{pets.name}")) == 3
    monkeypatch.chdir(pets.parent)
    pets.rename("~nobody_of_this_name")
    assert len(image_folder("~nobody_of_this_name")) == 3


def test_a_class_behind_a_dead_link_is_no_class_that_vanishes(pets):
    (pets / "eel").symlink_to(pets / "nowhere")
    with pytest.raises(FileNotFoundError, match=f"{pets / 'eel'} must lead somewhere"):
        image_folder(pets)


# --- values ---------------------------------------------------------------------------------


@pytest.mark.parametrize("pixels", [GREY, COLOURS, ALPHA, ALPHA[:, :, :2].copy()])
def test_eight_bits_are_divided_by_255(tmp_path, pixels):
    image = read_one(tmp_path, "1.png", encode(pixels, "PNG"))
    assert_image(image, scaled(pixels))
    assert image.dtype == torch.float32


@pytest.mark.parametrize("file_format", ["PNG", "TIFF", "BMP", "PPM"])
def test_one_bit_gives_0_and_1(tmp_path, file_format):
    pixels = np.array([[True, False, True], [False, False, True]])
    image = read_one(tmp_path, "1.png", encode(pixels, file_format))
    assert_image(image, scaled(pixels, 1))


DEEP = np.array([[0, 1, 255], [256, 32768, 65535]], dtype=np.uint16)


@pytest.mark.parametrize(
    "content",
    [
        encode(DEEP, "PNG"),
        encode(DEEP, "TIFF"),
        encode(DEEP.astype(np.int32), "TIFF"),
        b"P5 # by hand\n3 2\n65535\n" + DEEP.astype(">u2").tobytes(),
    ],
    ids=["png", "tiff", "32-bit tiff", "pgm"],
)
def test_sixteen_bits_are_divided_by_65535(tmp_path, content):
    assert_image(read_one(tmp_path, "1.png", content), scaled(DEEP, 65535))


def test_big_endian_sixteen_bits_are_divided_by_65535(tmp_path):
    image = Image.frombytes("I;16B", (3, 2), DEEP.astype(">u2").tobytes())
    path = save(tmp_path / "cat" / "1.tif", image)
    assert path.read_bytes().startswith(b"MM")
    assert_image(image_folder(tmp_path)[0][0], scaled(DEEP, 65535))


def palette_image():
    image = Image.new("P", (3, 1))
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    image.putdata([2, 0, 1])
    return image


PALETTE = np.array([[[70, 80, 90], [10, 20, 30], [40, 50, 60]]], dtype=np.uint8)


@pytest.mark.parametrize("name", ["1.png", "1.gif", "1.bmp", "1.tif"])
def test_a_palette_gives_rgb(tmp_path, name):
    save(tmp_path / "cat" / name, palette_image())
    assert_image(image_folder(tmp_path)[0][0], scaled(PALETTE))


@pytest.mark.parametrize(
    ("name", "transparency", "alpha"),
    [("1.png", 0, [255, 0, 255]), ("1.gif", 0, [255, 0, 255]), ("1.png", b"\1\2", [255, 1, 2])],
)
def test_a_palette_with_transparency_gives_rgba(tmp_path, name, transparency, alpha):
    save(tmp_path / "cat" / name, palette_image(), transparency=transparency)
    expected = np.concatenate([PALETTE, np.array(alpha, dtype=np.uint8)[None, :, None]], axis=2)
    assert_image(image_folder(tmp_path)[0][0], scaled(expected))


def test_a_palette_of_its_own_alpha_gives_rgba(tmp_path):
    save(tmp_path / "cat" / "1.tif", Image.new("PA", (3, 1), (0, 7)))
    assert_image(image_folder(tmp_path)[0][0][3], torch.full((1, 3), 7 / 255))


TURNED = {  # what orientation means for an array, by its number in EXIF
    1: lambda pixels: pixels,
    2: np.fliplr,
    3: lambda pixels: np.rot90(pixels, 2),
    6: lambda pixels: np.rot90(pixels, -1),
    8: np.rot90,
}


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize("file_format", ["PNG", "TIFF", "WEBP", "JPEG"])
def test_exif_turns_the_image_once(tmp_path, file_format, orientation):
    exif = Image.Exif()
    exif[0x112] = orientation
    options = {"lossless": True} if file_format == "WEBP" else {}
    if file_format == "JPEG":
        options = {"quality": 100, "subsampling": 0}
    plain = encode(COLOURS, file_format, **options)
    upright = read_one(tmp_path, "1.png", plain).permute(1, 2, 0).numpy()
    image = read_one(tmp_path, "1.png", encode(COLOURS, file_format, exif=exif, **options))
    expected = torch.from_numpy(TURNED[orientation](upright).copy()).permute(2, 0, 1)
    assert_image(image, expected.contiguous())


def test_a_photograph_with_a_second_picture_gives_the_one_that_is_shown(tmp_path):
    grey = np.full((8, 8), 200, dtype=np.uint8)
    second = Image.fromarray(255 - grey)
    photograph = encode(grey, "MPO", save_all=True, append_images=[second])
    assert_image(read_one(tmp_path, "1.jpg", photograph), scaled(grey))


# --- as a dataset ---------------------------------------------------------------------------


def test_it_goes_through_a_dataloader_with_workers(pets):
    dataset = image_folder(pets)
    ((images, targets),) = DataLoader(dataset, batch_size=3, num_workers=2)
    assert_image(images, scaled(np.stack([GREY, 255 - GREY, GREY[::-1]], axis=2))[:, None])
    torch.testing.assert_close(targets, torch.tensor([0, 0, 1]))


@pytest.fixture
def photos(tmp_path):
    """RGB and grey ones, a palette, alpha and CMYK, no two of one size."""
    red = Image.new("RGB", (40, 30), (200, 10, 10))
    save(tmp_path / "cat" / "1.jpg", red, quality=95)
    save(tmp_path / "cat" / "2.jpg", np.full((50, 20), 100, dtype=np.uint8), quality=95)
    save(tmp_path / "cat" / "3.png", Image.new("RGBA", (33, 35), (200, 10, 10, 7)))
    save(tmp_path / "dog" / "1.png", red.quantize(4))
    save(tmp_path / "dog" / "2.jpg", red.resize((64, 31)).convert("CMYK"), quality=95)
    save(tmp_path / "dog" / "3.png", Image.new("1", (9, 17), 1))
    return tmp_path


def test_a_transform_gets_every_kind_of_photograph_in_rgb(photos):
    dataset = image_folder(photos, transform=lambda image: image)
    images = [dataset[i][0] for i in range(len(dataset))]
    assert [image.mode for image in images] == ["RGB"] * 6
    sizes = [(40, 30), (20, 50), (33, 35), (40, 30), (64, 31), (9, 17)]
    assert [image.size for image in images] == sizes
    red, white, grey = (200, 10, 10), (255,) * 3, (100,) * 3
    for image, colour in zip(images, [red, grey, red, red, red, white], strict=True):
        shown = image.getpixel((4, 4))
        assert all(abs(a - b) <= 8 for a, b in zip(shown, colour, strict=True)), (shown, colour)


@pytest.mark.parametrize("train", [True, False])
def test_photographs_of_any_size_go_through_a_dataloader_with_workers(photos, train):
    dataset = image_folder(photos, transform=photo_transforms(16, train=train))
    ((images, targets),) = DataLoader(dataset, batch_size=6, num_workers=2)
    assert (images.shape, images.dtype) == ((6, 3, 16, 16), torch.float32)
    assert targets.tolist() == [0, 0, 0, 1, 1, 1]


def test_a_transform_gets_the_image_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    save(tmp_path / "cat" / "1.jpg", Image.new("RGB", (40, 30)), exif=exif)
    assert image_folder(tmp_path, transform=lambda image: image.size)[0] == ((30, 40), 0)


@pytest.mark.parametrize("pixels", [GREY.astype(np.uint16), GREY.astype(np.int32)])
def test_a_transform_gets_no_image_that_would_be_clipped(tmp_path, pixels):
    path = save(tmp_path / "cat" / "1.tif", pixels)
    with pytest.raises(ValueError, match=re.escape(f"{path} must be an image of 8 bits per ch")):
        image_folder(tmp_path, transform=photo_transforms(8, train=False))[0]


def test_a_transform_gets_no_16_bit_colours(tmp_path):
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "1.png").write_bytes(png_16_bit(2, 3))
    with pytest.raises(ValueError, match=r"to be seen as RGB, got 16-bit RGB\. Store it with"):
        image_folder(tmp_path, transform=photo_transforms(8, train=False))[0]


def test_a_transform_must_be_a_function(pets):
    with pytest.raises(TypeError, match=r"transform must be a function of an image, got 224\. Use"):
        image_folder(pets, transform=224)


def test_it_fits_into_batches(pets):
    batches = Batches(*default_collate(list(image_folder(pets))), batch_size=2)
    assert [inputs.shape for inputs, _ in batches] == [(2, 1, 2, 3), (1, 1, 2, 3)]
    torch.testing.assert_close(batches.targets, torch.tensor([0, 0, 1]))


@pytest.mark.parametrize("used", [False, True])
def test_it_can_be_pickled(pets, used):
    dataset = image_folder(pets)
    if used:
        dataset[0]
    copy = pickle.loads(pickle.dumps(dataset))
    assert (copy.classes, copy.paths) == (dataset.classes, dataset.paths)
    assert_image(copy[1][0], dataset[1][0])


def test_images_may_differ_in_size_and_in_1_or_8_bits(pets):
    save(pets / "cat" / "3.png", GREY[:1])
    save(pets / "cat" / "4.png", GREY > 100)
    assert [image.shape[1:] for image, _ in image_folder(pets)][2:4] == [(1, 3), (2, 3)]


def test_it_gives_one_image_at_a_time(pets):
    with pytest.raises(TypeError, match="slice"):
        image_folder(pets)[0:2]
    with pytest.raises(IndexError):
        image_folder(pets)[3]


def test_no_image_is_opened_before_it_is_asked_for(pets):
    (pets / "cat" / "2.png").write_bytes(b"no image")
    dataset = image_folder(pets)
    dataset[0], dataset[2]
    with pytest.raises(ValueError, match="must be an image"):
        dataset[1]


@pytest.mark.parametrize("content", [encode(GREY, "PNG"), encode(GREY, "PNG")[:60], b"<html>"])
def test_no_file_stays_open(tmp_path, content):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with contextlib.suppress(ValueError):
            read_one(tmp_path, "1.png", content)
    assert caught == []
    descriptors = "/proc/self/fd"
    if os.path.isdir(descriptors):
        opened = [os.path.realpath(f"{descriptors}/{fd}") for fd in os.listdir(descriptors)]
        assert str((tmp_path / "cat" / "1.png").resolve()) not in opened


# --- errors: the folder ---------------------------------------------------------------------


def test_root_must_be_there(tmp_path):
    words = f"root must be a folder with one folder per class, got {tmp_path / 'none'}, which is"
    with pytest.raises(FileNotFoundError, match=re.escape(words)):
        image_folder(tmp_path / "none")


def test_root_must_be_a_folder(tmp_path):
    (tmp_path / "pets.zip").write_bytes(b"PK")
    words = f"root must be a folder, got the file {tmp_path / 'pets.zip'}. Unpack it"
    with pytest.raises(ValueError, match=re.escape(words)):
        image_folder(tmp_path / "pets.zip")


def test_images_must_lie_in_folders(tmp_path):
    save(tmp_path / "cat1.png")
    save(tmp_path / "cat2.png")
    (tmp_path / "notes.txt").write_text("no image")
    words = "one folder per class with its images, got 2 images directly in it. Move"
    with pytest.raises(ValueError, match=re.escape(words)):
        image_folder(tmp_path)


def test_root_must_hold_folders(tmp_path):
    (tmp_path / ".hidden").mkdir()
    with pytest.raises(ValueError, match=re.escape("got no folder in it. Move")):
        image_folder(tmp_path, classes=("cat",))


@pytest.mark.parametrize(
    ("splits", "classes", "remedy"),
    [
        (("test", "train"), None, "train"),
        (("Val", "Training"), ("cat",), "Training"),
        (("val", "test"), None, "test"),
        (("train",), None, "train"),
    ],
)
def test_root_must_not_hold_splits(tmp_path, splits, classes, remedy):
    for split in splits:
        save(tmp_path / split / "cat" / "1.png")
        for name in (".DS_Store", "Thumbs.db"):
            (tmp_path / split / name).write_bytes(b"")
    words = (
        f"{tmp_path} must hold one folder per class, got the splits "
        f"{', '.join(sorted(splits))}. Pass {tmp_path / remedy}."
    )
    with pytest.raises(ValueError, match=re.escape(words)):
        image_folder(tmp_path, classes=classes)


@pytest.mark.parametrize("name", ["bird", "train"])
def test_every_class_must_have_an_image(pets, name):
    (pets / name).mkdir()
    (pets / name / "notes.txt").write_text("no image")
    words = f"{pets / name} must hold at least one image, got none but 1 files like notes.txt. Add"
    with pytest.raises(ValueError, match=re.escape(words)):
        image_folder(pets)


def test_an_empty_folder_called_like_a_split_is_an_empty_class(tmp_path):
    (tmp_path / "train").mkdir()
    with pytest.raises(ValueError, match="must hold at least one image"):
        image_folder(tmp_path)


@pytest.mark.parametrize("classes", [("dog", "bird"), ("bird",)])
def test_every_folder_must_be_a_class(pets, classes):
    words = (
        f"classes must name every folder in root, got {classes} but {pets / 'cat'} "
        f"({3 - len(classes)} of 2 folders are left out). Add the class or delete the folder."
    )
    with pytest.raises(ValueError, match=re.escape(words)):
        image_folder(pets, classes=classes)


@pytest.mark.parametrize(
    ("classes", "error", "words"),
    [
        ("cat", TypeError, "classes must be a sequence of names, got 'cat'. Write classes="),
        (3, TypeError, "classes must be a sequence of names, got 3."),
        (("cat", 3), TypeError, "classes must be names of folders, got 3 in ('cat', 3)."),
        ((), ValueError, "classes must name at least one class, got none."),
        (("cat", "dog", "cat"), ValueError, "classes must be distinct, got ('cat', 'dog', 'cat')."),
    ],
)
def test_classes_must_be_distinct_names(pets, classes, error, words):
    with pytest.raises(error, match=re.escape(words)):
        image_folder(pets, classes=classes)


# --- errors: the images ---------------------------------------------------------------------


def assert_refused(tmp_path, content, words, name="1.png"):
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path / 'cat' / name} {words}")):
        read_one(tmp_path, name, content)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"<!DOCTYPE html><html></html>", "got a file that starts with '<!DOCTYP'. Replace"),
        (b"\0\1\2\3\4", "got a file that starts with 0x00010203. Replace or delete it."),
        (encode(GREY, "PCX"), "got a file that starts with 0x0a050108."),  # Pillow reads it
        (b"", "got an empty file. Replace or delete it."),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "got a file that starts with '%!PS"),
    ],
)
def test_a_file_must_be_an_image(tmp_path, content, words):
    assert_refused(tmp_path, content, f"must be an image, {words}")


NOISE = np.random.default_rng(0).integers(0, 256, (16, 16), dtype=np.uint8)


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP", "PPM"])
@pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
def test_an_image_must_be_whole(tmp_path, file_format, part):
    content = encode(NOISE, file_format)
    content = content[: int(part * len(content))]
    words = f"must be a whole image, got a cut-off or damaged one of {len(content)} bytes. Replace"
    assert_refused(tmp_path, content, words)


def test_the_checksums_of_a_png_are_looked_at(tmp_path):
    content = bytearray(encode(NOISE, "PNG"))
    content[-16] ^= 1  # of the pixels; behind it come the 12 bytes of the last chunk
    assert_refused(tmp_path, bytes(content), "must be a whole image, got a cut-off or damaged one")


def test_cut_off_images_are_not_let_through_by_a_setting(tmp_path, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    words = "PIL.ImageFile.LOAD_TRUNCATED_IMAGES must be False, got True"
    with pytest.raises(ValueError, match=re.escape(words)):
        read_one(tmp_path, "1.jpg", encode(NOISE, "JPEG")[:-99])
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True  # left as found


@pytest.mark.parametrize("limit", [200, 100])  # Pillow warns below twice the limit, raises above
def test_an_image_must_not_be_a_bomb(tmp_path, monkeypatch, limit):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    words = f"must be an image of at most {limit} pixels, got more. Make it smaller"
    assert_refused(tmp_path, encode(NOISE, "PNG"), words)


def test_warnings_of_pillow_are_kept_in_and_the_filters_stay(tmp_path, monkeypatch):
    plain_open = Image.open

    def warn(*args, **keywords):
        warnings.warn_explicit("odd metadata", UserWarning, "Image.py", 1, module="PIL.Image")
        return plain_open(*args, **keywords)

    monkeypatch.setattr(Image, "open", warn)
    before = list(warnings.filters)
    assert_image(read_one(tmp_path, "1.png", encode(GREY, "PNG")), scaled(GREY))
    assert warnings.filters == before


def test_running_out_of_memory_is_no_damage(tmp_path, monkeypatch):
    def fail(*args, **keywords):
        raise MemoryError

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(MemoryError):
        read_one(tmp_path, "1.png", encode(GREY, "PNG"))


LAW = "must be 8-bit grey or RGB, with or without alpha, or 16-bit grey, got"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (png_16_bit(2, 3), "16-bit RGB. Store it with 8 bits per channel."),
        (png_16_bit(4, 2), "16-bit RGBA. Store"),  # grey with alpha, which Pillow widens
        (png_16_bit(6, 4), "16-bit RGBA. Store"),
        (b"P6 # by hand\n1 1 65535 " + bytes(6), "16-bit RGB. Store"),
        (tiff([16, 16, 16], bytes(12)), "16-bit RGB. Store"),
        (tiff([12], bytes(3)), "12-bit I;16. Store"),
    ],
    ids=["RGB", "grey with alpha", "RGBA", "ppm", "tiff", "12-bit grey"],
)
def test_depths_that_pillow_would_change_are_refused(tmp_path, content, words):
    assert_refused(tmp_path, content, f"{LAW} {words}")


@pytest.mark.parametrize("file_format", ["JPEG", "TIFF"])
def test_cmyk_is_refused_with_the_way_to_convert_it(tmp_path, file_format):
    save(tmp_path / "cat" / "1.png", Image.new("CMYK", (3, 2)), format=file_format)
    words = f"{LAW} 8-bit CMYK. Store it as RGB."
    assert_refused(tmp_path, (tmp_path / "cat" / "1.png").read_bytes(), words)


@pytest.mark.parametrize(
    ("mode", "words"), [("F", "32-bit F. Store it with 8 bits"), ("LAB", "8-bit LAB. Store it")]
)
def test_other_kinds_are_refused_by_name(tmp_path, mode, words):
    save(tmp_path / "cat" / "1.tif", Image.new(mode, (3, 2)))
    assert_refused(
        tmp_path, (tmp_path / "cat" / "1.tif").read_bytes(), f"{LAW} {words}", name="1.tif"
    )


@pytest.mark.parametrize("value", [-1, 65536])
def test_32_bits_must_fit_into_16(tmp_path, value):
    pixels = np.array([[5, value]], dtype=np.int32)
    assert_refused(tmp_path, encode(pixels, "TIFF"), f"{LAW} 32-bit I. Store it")


@pytest.mark.parametrize("file_format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_an_animation_is_refused(tmp_path, file_format):
    more = {"save_all": True, "append_images": [Image.fromarray(255 - NOISE)]}
    words = "must be a single image, got 2 frames. Store each in a file of its own."
    assert_refused(tmp_path, encode(NOISE, file_format, **more), words)


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        (GREY, ALPHA, ("1 channel (8-bit grey)", "4 channels (8-bit RGBA)", "as RGBA.")),
        (COLOURS, GREY, ("3 channels (8-bit RGB)", "1 channel (8-bit grey)", "as RGB.")),
        (GREY, DEEP, ("1 channel (8-bit grey)", "1 channel (16-bit grey)", "number of bits.")),
    ],
)
def test_all_images_must_be_of_the_kind_of_the_first(tmp_path, first, second, words):
    one, two = save(tmp_path / "cat" / "1.png", first), save(tmp_path / "dog" / "1.png", second)
    dataset = image_folder(tmp_path)
    expected = f"{two} must have {words[0]} like the first image, {one}, got {words[1]}. "
    with pytest.raises(ValueError, match=re.escape(expected)) as caught:
        dataset[1]  # before the first has been asked for
    assert str(caught.value).endswith(words[2])
    dataset[0]
