"""MNIST: the same tensors from every form of the files, and a sentence for every bad one."""

import functools
import gzip
import hashlib
import http.server
import os
import re
import socket
import struct
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from torchcls.data import mnist, read_idx

NAMES = [
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
]
TRAIN_LABELS = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 0, 7]
TEST_LABELS = [8, 0, 7, 1, 2, 3, 4, 5, 6, 9, 5]


def random_pixels(n, seed):
    return np.random.default_rng(seed).integers(0, 256, (n, 28, 28), dtype=np.uint8)


TRAIN_PIXELS, TEST_PIXELS = random_pixels(14, 1), random_pixels(11, 2)


def idx_images(pixels):
    return struct.pack(">4I", 0x803, *pixels.shape) + pixels.tobytes()


def idx_labels(labels):
    return struct.pack(">2I", 0x801, len(labels)) + bytes(labels)


def contents():
    """The four files, by name."""
    return dict(
        zip(
            NAMES,
            [
                idx_images(TRAIN_PIXELS),
                idx_labels(TRAIN_LABELS),
                idx_images(TEST_PIXELS),
                idx_labels(TEST_LABELS),
            ],
            strict=True,
        )
    )


def write_idx(folder, **changed):
    """Write the four files; ``changed`` is given by the first letters of a name, - as _."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents().items():
        (folder / name).write_bytes(changed.get("_".join(name.split("-")[:2]), content))
    return folder


def write_gz(folder):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents().items():
        (folder / f"{name}.gz").write_bytes(gzip.compress(content))
    return folder


def write_png(folder, names=("training", "testing"), file_name="{:d}.png"):
    """Folders like those people have: file number = position in the IDX files, test set last."""
    first = 0
    for name, pixels, labels in (
        (names[0], TRAIN_PIXELS, TRAIN_LABELS),
        (names[1], TEST_PIXELS, TEST_LABELS),
    ):
        for i, (image, label) in enumerate(zip(pixels, labels, strict=True), start=first):
            (folder / name / str(label)).mkdir(parents=True, exist_ok=True)
            path = folder / name / str(label) / file_name.format(i)
            Image.fromarray(image).save(path, format="PNG")
        first = len(labels)
    return folder


def assert_holds(splits, classes=None):
    """Compare with the arrays that were written, selected with plain Python."""
    for (images, targets), pixels, labels in zip(
        splits, (TRAIN_PIXELS, TEST_PIXELS), (TRAIN_LABELS, TEST_LABELS), strict=True
    ):
        if classes is None:
            rows, expected = list(range(len(labels))), labels
        else:
            rows = [i for digit in classes for i, label in enumerate(labels) if label == digit]
            expected = [list(classes).index(labels[i]) for i in rows]
        scaled = pixels[rows][:, None].astype(np.float32) / np.float32(255)
        torch.testing.assert_close(images, torch.from_numpy(scaled), rtol=0, atol=0)
        torch.testing.assert_close(targets, torch.tensor(expected), rtol=0, atol=0)


@pytest.fixture
def files(tmp_path):
    return write_idx(tmp_path)


@pytest.fixture
def pngs(tmp_path):
    return write_png(tmp_path)


# --- known values ---------------------------------------------------------------------------


def test_it_scales_every_byte_by_255(tmp_path):
    pixels = np.arange(1568).reshape(2, 28, 28).astype(np.uint8)  # every byte, several times
    write_idx(tmp_path, train_images=idx_images(pixels), train_labels=idx_labels([0, 1]))
    (images, _), _ = mnist(tmp_path)
    expected = [np.float32(i % 256) / np.float32(255) for i in range(1568)]
    assert images.flatten().tolist() == expected
    assert (images.min(), images.max()) == (0, 1)


def test_read_idx_reads_rows_from_left_to_right(tmp_path):
    path = tmp_path / "images"
    path.write_bytes(struct.pack(">4I", 0x803, 2, 1, 3) + bytes([1, 2, 3, 250, 251, 252]))
    expected = torch.tensor([[[1, 2, 3]], [[250, 251, 252]]], dtype=torch.uint8)
    torch.testing.assert_close(read_idx(path), expected)
    path.write_bytes(idx_labels([5, 0, 4]))
    torch.testing.assert_close(read_idx(str(path)), torch.tensor([5, 0, 4], dtype=torch.uint8))


def test_read_idx_reads_a_file_of_no_images(tmp_path):
    (tmp_path / "none").write_bytes(struct.pack(">4I", 0x803, 0, 28, 28))
    assert read_idx(tmp_path / "none").shape == (0, 28, 28)


def test_what_read_idx_gives_may_be_written_to(files):
    labels = read_idx(files / NAMES[1])
    labels += 1
    assert labels[0] == 4
    assert read_idx(files / NAMES[1])[0] == 3


CLASSES = [None, (3, 5, 8), (8, 5, 3), (1,)]
LAYOUTS = {
    "plain": write_idx,
    "packed": write_gz,
    "plain, torchvision's place": lambda root: write_idx(root / "MNIST" / "raw"),
    "packed, torchvision's place": lambda root: write_gz(root / "MNIST" / "raw"),
    "training and testing": write_png,
    "train and test": lambda root: write_png(root, ("train", "test")),
    "one folder below": lambda root: write_png(root / "mnist_png"),
    "numbers with zeros": lambda root: write_png(root, file_name="{:05d}.png"),
    "upper case": lambda root: write_png(root, file_name="{:d}.PNG"),
}


@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_tensors(tmp_path, layout, classes):
    LAYOUTS[layout](tmp_path)
    assert_holds(mnist(tmp_path, classes=classes), classes)
    assert_holds(mnist(str(tmp_path), classes=classes), classes)


def test_plain_or_packed_is_told_by_the_content(tmp_path):
    for name, content in contents().items():  # each kind under the other's name
        packed = "train" in name
        path = tmp_path / (name if packed else f"{name}.gz")
        path.write_bytes(gzip.compress(content) if packed else content)
    assert_holds(mnist(tmp_path))


def test_classes_may_be_anything_that_gives_digits(files):
    assert_holds(mnist(files, classes=range(3)), (0, 1, 2))
    assert_holds(mnist(files, classes=np.array([5, 3])), (5, 3))
    assert_holds(mnist(files, classes=iter([5, 3])), (5, 3))


def test_names_that_are_no_numbers_are_sorted_naturally_class_by_class(tmp_path):
    write_png(tmp_path, file_name="img{:d}.png")
    assert_holds(mnist(tmp_path), range(10))  # targets are the digits in both readings
    assert_holds(mnist(tmp_path, classes=(5, 1)), (5, 1))


def test_hidden_and_other_files_are_passed_over(pngs):
    for name in (".DS_Store", "._1.png", "Thumbs.db", "notes.txt"):
        (pngs / "training" / "3" / name).write_bytes(b"no image")
    (pngs / "training" / "unknown").mkdir()
    (pngs / ".hidden").mkdir()
    assert_holds(mnist(pngs))


def test_it_opens_only_the_images_of_the_classes_it_needs(pngs):
    for path in (pngs / "training" / "7").iterdir():
        path.write_bytes(b"no image")
    assert_holds(mnist(pngs, classes=(3, 5)), (3, 5))


def test_no_root_means_the_folder_in_the_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    write_idx(tmp_path / ".cache" / "torchcls" / "mnist")
    assert_holds(mnist())
    assert_holds(mnist("~/.cache/torchcls/mnist"))


# --- properties -----------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(
    shape=st.one_of(st.tuples(st.integers(0, 9)), st.tuples(*[st.integers(0, 5)] * 3)),
    seed=st.integers(0, 99),
    packed=st.booleans(),
)
def test_read_idx_returns_what_was_written(tmp_path_factory, shape, seed, packed):
    array = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    content = struct.pack(f">{1 + len(shape)}I", 0x800 + len(shape), *shape) + array.tobytes()
    path = tmp_path_factory.getbasetemp() / "array"
    path.write_bytes(gzip.compress(content) if packed else content)
    torch.testing.assert_close(read_idx(path), torch.from_numpy(array))


@pytest.mark.parametrize("packed", [False, True])
def test_no_file_cut_anywhere_is_read(tmp_path, packed):
    content = struct.pack(">4I", 0x803, 2, 1, 3) + bytes([1, 2, 3, 250, 251, 252])
    content = gzip.compress(content) if packed else content
    path = tmp_path / "cut"
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"cut must (start with|hold|be a whole gzip file)"):
            read_idx(path)


def test_no_damaged_png_is_read_as_another_image(pngs):
    path = pngs / "training" / "0" / "12.png"
    rows, columns = np.mgrid[:28, :28]
    ring = (255 * np.exp(-((np.hypot(rows - 14, columns - 13) - 8) ** 2))).astype(np.uint8)
    Image.fromarray(ring).save(path)
    ((expected, _), _) = mnist(pngs, classes=(0,))
    content = path.read_bytes()
    refused = 0
    for i, byte in enumerate(content):
        for damaged in (content[:i], content[:i] + bytes([byte ^ 4]) + content[i + 1 :]):
            path.write_bytes(damaged)
            try:
                ((images, _), _) = mnist(pngs, classes=(0,))
            except ValueError:
                refused += 1
            else:  # the last chunk, which carries nothing
                assert torch.equal(images, expected)
    assert refused > 2 * (len(content) - 12)


# --- download -------------------------------------------------------------------------------


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A mirror on this machine that torchvision takes for its own; the paths asked for."""
    datasets = pytest.importorskip("torchvision.datasets")
    served = write_gz(tmp_path / "served")
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            asked.append(self.path)

    handler = functools.partial(Handler, directory=str(served))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        sums = [hashlib.md5((served / f"{name}.gz").read_bytes()).hexdigest() for name in NAMES]
        resources = [(f"{name}.gz", md5) for name, md5 in zip(NAMES, sums, strict=True)]
        monkeypatch.setattr(datasets.MNIST, "resources", resources)
        monkeypatch.setattr(datasets.MNIST, "mirrors", [f"http://127.0.0.1:{running.server_port}/"])
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        yield asked
        running.shutdown()
        thread.join()


def test_download_fetches_the_files_once(tmp_path, server):
    root = tmp_path / "data"
    assert_holds(mnist(root, classes=(3, 5), download=True), (3, 5))
    assert {f"/{name}.gz" for name in NAMES} == set(server)
    server.clear()
    assert_holds(mnist(root, download=True))
    assert_holds(mnist(root))
    assert server == []


def test_download_without_root_goes_to_the_folder_in_the_home(tmp_path, server, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert_holds(mnist(download=True))
    assert (tmp_path / ".cache" / "torchcls" / "mnist" / "MNIST" / "raw" / NAMES[0]).is_file()


@pytest.mark.parametrize("write", [write_idx, write_gz])
def test_download_finishes_what_was_interrupted(tmp_path, server, write):
    raw = write(tmp_path / "data" / "MNIST" / "raw")
    next(raw.glob(f"{NAMES[2]}*")).unlink()
    last = raw / f"{NAMES[3]}.gz"
    last.write_bytes(gzip.compress(idx_labels(TEST_LABELS))[:9])
    assert_holds(mnist(tmp_path / "data", download=True))


@pytest.mark.parametrize(
    "layout", ["plain", "packed", "plain, torchvision's place", "train and test"]
)
def test_download_asks_for_nothing_that_is_there(tmp_path, server, layout):
    root = tmp_path / "data"
    LAYOUTS[layout](root)
    assert_holds(mnist(root, download=True))
    assert server == []


def test_a_download_that_fails_names_the_way_out(tmp_path, monkeypatch):
    datasets = pytest.importorskip("torchvision.datasets")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound and not listening: nobody answers
        port = unused.getsockname()[1]
        monkeypatch.setattr(datasets.MNIST, "mirrors", [f"http://127.0.0.1:{port}/"])
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        with pytest.raises(ConnectionError) as caught:
            mnist(tmp_path / "data", download=True)
    message = str(caught.value)
    assert "MNIST must be fetched into" in message
    assert f"into {tmp_path / 'data'}, got" in message
    assert message.endswith("another way, and put them there.")
    assert all(f"{name}.gz" in message for name in NAMES)
    write_gz(tmp_path / "data")  # the way out
    assert_holds(mnist(tmp_path / "data"))


def test_a_download_of_other_bytes_is_refused(tmp_path, server, monkeypatch):
    datasets = pytest.importorskip("torchvision.datasets")
    monkeypatch.setattr(datasets.MNIST, "resources", [(f"{name}.gz", "0" * 32) for name in NAMES])
    with pytest.raises(ConnectionError, match="must be fetched into"):
        mnist(tmp_path / "data", download=True)


# --- real data ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real():
    folder = os.environ.get("TORCHCLS_MNIST")
    if folder is None:
        pytest.skip("the environment variable TORCHCLS_MNIST names no folder with MNIST in it")
    return Path(folder)


@pytest.mark.parametrize(
    ("classes", "train", "test"), [((0, 1, 2), 18623, 3147), ((0, 1), 12665, 2115)]
)
def test_the_real_files_have_the_known_counts(real, classes, train, test):
    splits = mnist(real, classes=classes)
    assert [(images.shape, len(targets)) for images, targets in splits] == [
        ((train, 1, 28, 28), train),
        ((test, 1, 28, 28), test),
    ]
    for images, targets in splits:
        assert torch.equal(targets, targets.sort().values)
        assert targets.unique().tolist() == list(range(len(classes)))
        assert (images.min(), images.max()) == (0, 1)


def test_the_real_files_are_what_torchvision_reads(real):
    datasets = pytest.importorskip("torchvision.datasets")
    for (images, targets), train in zip(mnist(real), (True, False), strict=True):
        theirs = datasets.MNIST(real, train=train)
        assert len(theirs) == (60000 if train else 10000)
        assert torch.equal((images[:, 0] * 255).round().byte(), theirs.data)
        assert torch.equal(targets, theirs.targets)


def test_the_real_files_packed_give_the_same_tensors(real, tmp_path):
    for name in NAMES:
        content = (real / "MNIST" / "raw" / name).read_bytes()
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(content, compresslevel=1))
    assert_same(mnist(tmp_path), mnist(real))


@pytest.mark.system
def test_the_real_images_as_png_give_the_same_tensors(real, tmp_path):
    archive = real / "mnist_png.tgz"
    if not archive.exists():
        pytest.skip("no mnist_png.tgz in the folder that TORCHCLS_MNIST names")
    firsts = [[part[:10_000] for part in split] for split in mnist(real)]
    left = sum(int((labels < 2).sum()) for _, labels in firsts)
    with tarfile.open(archive) as tar:
        for member in tar:
            split, digit, name = member.name.split("/")[-3:] if member.isfile() else (None,) * 3
            # A file of the training images has its position for a name.
            if digit in ("1", "0") and (split == "testing" or int(name[:-4]) < 10_000):
                path = tmp_path / split / digit / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(tar.extractfile(member).read())
                left -= 1
                if left == 0:
                    break
    for ours, (images, labels) in zip(mnist(tmp_path, classes=(1, 0)), firsts, strict=True):
        rows = torch.cat([(labels == digit).nonzero()[:, 0] for digit in (1, 0)])
        assert torch.equal(ours[0], images[rows])
        assert torch.equal(ours[1], (labels[rows] == 0).long())
        assert len(rows) > 2_000


def assert_same(ours, theirs):
    for pair, expected in zip(ours, theirs, strict=True):
        assert all(torch.equal(one, two) for one, two in zip(pair, expected, strict=True))


# --- errors ---------------------------------------------------------------------------------


def assert_refused(path, *words, error=ValueError, root=None, classes=None):
    """The message is one that names the path and what was expected."""
    with pytest.raises(error) as caught:
        mnist(path if root is None else root, classes=classes)
    for word in (str(path), *words):
        assert word in str(caught.value)
    assert str(caught.value).endswith(".")


IMAGES, LABELS = idx_images(TRAIN_PIXELS), idx_labels(TRAIN_LABELS)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        # 16 bytes of header and 14 images of 784 bytes are 10992 bytes.
        ({"train_images": IMAGES[:-1]}, "10992 bytes for the 14 images that its header promises"),
        ({"train_images": IMAGES[:-1]}, "got 10991: it is cut off"),
        ({"train_images": IMAGES + b"x"}, "got 10993: it is too long"),
        ({"train_images": IMAGES[:15]}, "an IDX header of 16 bytes, got 15"),
        ({"train_images": b""}, "0x00000803 (images) or 0x00000801 (labels), got an empty file"),
        ({"train_images": b"\0\0\x0d\x03" + IMAGES[4:]}, "a file that starts with 0x00000d03"),
        ({"train_images": b"<html><body>"}, "a file that starts with '<html><b'"),
        ({"train_images": LABELS}, "images of shape (n, 28, 28), got labels (14,)"),
        (
            {"train_images": idx_images(TRAIN_PIXELS[:, :14])},
            "images of shape (n, 28, 28), got images (14, 14, 28)",
        ),
        ({"train_images": gzip.compress(IMAGES)[:-9]}, "a whole gzip file, got a cut-off"),
        (
            {"train_images": gzip.compress(IMAGES)[:500] + bytes(9) + gzip.compress(IMAGES)[509:]},
            "a whole gzip file, got a cut-off or damaged one",
        ),
        ({"train_images": b"\x1f\x8b" + IMAGES}, "a whole gzip file"),
        # The header of a gzip file, and then a block of the type that does not exist.
        ({"train_images": gzip.compress(IMAGES)[:10] + b"\xff" * 20}, "a whole gzip file"),
    ],
)
def test_it_refuses_bad_images(tmp_path, changed, words):
    write_idx(tmp_path, **changed)
    assert_refused(tmp_path / NAMES[0], words, root=tmp_path)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"train_labels": LABELS[:-2]}, "22 bytes for the 14 labels that its header promises"),
        ({"train_labels": IMAGES}, "must hold labels, got images (14, 28, 28)"),
        ({"train_labels": idx_labels([1] * 13)}, "got 14 images but 13 labels"),
        (
            {"train_labels": idx_labels([9, 10, 255] + [0] * 11)},
            "labels in 0..9, got 10 at position 1 (2 of 14 are out of range)",
        ),
    ],
)
def test_it_refuses_bad_labels(tmp_path, changed, words):
    write_idx(tmp_path, **changed)
    assert_refused(tmp_path / NAMES[1], words, root=tmp_path)


def test_it_refuses_files_without_an_image_of_a_class(tmp_path):
    write_idx(tmp_path, train_labels=idx_labels([0, 1, 3] * 4 + [0, 1]))
    assert_refused(
        tmp_path / NAMES[1], "got no 2 but only 0, 1, 3", root=tmp_path, classes=(0, 1, 2)
    )


def png(size=(28, 28), mode="L"):
    def write(path):
        Image.new(mode, size).save(path, format="PNG")

    return write


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda path: path.write_bytes(b"<html><body>"), "a file that starts with '<html><b'"),
        (lambda path: path.write_bytes(b"\xff\xd8\xff\xe0JFIF"), "starts with 0xffd8ffe0"),
        (lambda path: path.write_bytes(b""), "must be a PNG image, got an empty file"),
        (lambda path: path.write_bytes(path.read_bytes()[:20]), "cut-off or damaged one of 20"),
        (lambda path: path.write_bytes(path.read_bytes()[:400]), "cut-off or damaged one of 400"),
        (
            lambda path: path.write_bytes(path.read_bytes().replace(b"IDAT", b"IDAT\0", 1)),
            "must be a whole PNG image",
        ),
        (png(size=(32, 28)), "8-bit grey image of 28 x 28 pixels, got 8-bit grey of 32 x 28"),
        (png(size=(28, 27)), "got 8-bit grey of 28 x 27"),
        (png(mode="RGB"), "got 8-bit RGB of 28 x 28"),
        (png(mode="LA"), "got 8-bit grey with alpha of 28 x 28"),
        (png(mode="1"), "got 1-bit grey of 28 x 28"),
        (png(mode="I;16"), "got 16-bit grey of 28 x 28"),
    ],
)
def test_it_refuses_bad_png_images(pngs, write, words):
    path = pngs / "training" / "0" / "12.png"
    write(path)
    assert_refused(path, words, root=pngs)


def test_it_refuses_an_empty_class_folder(pngs):
    (pngs / "testing" / "0" / "15.png").unlink()  # position 1 of the test files, 14 + 1
    (pngs / "testing" / "0" / ".DS_Store").write_bytes(b"")
    words = "must hold at least one PNG image, got none"
    assert_refused(pngs / "testing" / "0", words, root=pngs)


def test_it_refuses_to_go_without_a_class_folder(pngs):
    (pngs / "training" / "0" / "12.png").unlink()
    (pngs / "training" / "0").rmdir()
    words = "must hold a folder 0", "got the class folders 1, 2, 3, 4, 5, 6, 7, 8, 9"
    assert_refused(pngs / "training", *words, root=pngs, error=FileNotFoundError)
    assert_holds(mnist(pngs, classes=(5, 1)), (5, 1))


def test_it_refuses_to_choose_between_two_data_sets(tmp_path):
    write_png(tmp_path / "one")
    write_png(tmp_path / "two")
    assert_refused(tmp_path, "must hold one data set, got 2", "one, two")
    assert_holds(mnist(tmp_path / "one"))


@pytest.mark.parametrize(
    ("error", "words", "classes"),
    [
        (ValueError, "classes must be digits in 0..9, got 12 in (3, 12)", (3, 12)),
        (ValueError, "classes must be digits in 0..9, got 10 in (10,)", (10,)),
        (ValueError, "classes must be digits in 0..9, got -1 in (-1,)", (-1,)),
        (ValueError, "classes must be distinct digits, got (3, 3)", (3, 3)),
        (ValueError, "classes must name at least one digit, got none", ()),
        (TypeError, "classes must be a sequence of digits, got 3. Write classes=(3, 5, 8)", 3),
        (TypeError, "classes must be a sequence of digits, got '35'", "35"),
        (TypeError, "each of classes must be a whole number, got 3.0", (3.0,)),
        (TypeError, "each of classes must be a whole number, got True", (True, 3)),
    ],
)
def test_it_refuses_bad_classes(files, error, words, classes):
    with pytest.raises(error, match=re.escape(words)):
        mnist(files, classes=classes)


def test_it_refuses_a_root_that_is_not_there(tmp_path):
    words = "which is not there", "or download=True"
    assert_refused(tmp_path / "none", *words, error=FileNotFoundError)


def test_it_refuses_a_root_that_is_a_file(files):
    assert_refused(files / NAMES[0], "root must be a folder, got the file")


@pytest.mark.parametrize("place", ["", "MNIST/raw"])
def test_it_names_the_idx_files_that_are_missing(tmp_path, place):
    write_idx(tmp_path / place)
    (tmp_path / place / NAMES[0]).unlink()
    (tmp_path / place / NAMES[3]).unlink()
    words = "must hold all four IDX files", f"got none named {NAMES[0]} or {NAMES[3]}."
    assert_refused(tmp_path / place, *words, root=tmp_path, error=FileNotFoundError)


def test_it_says_what_a_folder_with_neither_holds(tmp_path):
    assert_refused(tmp_path, "with nothing in it", error=FileNotFoundError)
    (tmp_path / "training").mkdir()  # without testing
    for name in "abcd":
        (tmp_path / name).write_bytes(b"")
    words = "the folders training and testing, or train and test", "with a, b, c, d, training."
    assert_refused(tmp_path, *words, error=FileNotFoundError)
    (tmp_path / "e").write_bytes(b"")
    assert_refused(tmp_path, "with a, b, c, d, e and 1 more.", error=FileNotFoundError)


def test_read_idx_refuses_paths_that_are_no_files(tmp_path):
    with pytest.raises(
        ValueError, match=re.escape(f"{tmp_path} must be an IDX file, got a folder")
    ):
        read_idx(tmp_path)
    with pytest.raises(FileNotFoundError, match=re.escape(f"{tmp_path / 'none'} must be an IDX")):
        read_idx(tmp_path / "none")
