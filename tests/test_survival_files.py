"""torchcls.survival.files: a file is replaced whole or not at all, and damage never loads."""

import errno
import hashlib
import io
import os
import pickle
import random
import re
import resource
import shutil
import stat
import sys
import threading
import zipfile
from collections import Counter, OrderedDict, defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from helpers import in_a_thread_that_sees_a_small_disk
from torch import nn, tensor
from torch.optim import lr_scheduler

from torchcls.survival import DamagedError, load_checkpoint, save_checkpoint

NAN_WITH_PAYLOAD = tensor([0x7FC01234, 0x7F800001, -1], dtype=torch.int32).view(torch.float32)
DTYPES = (
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e4m3fn),
    *(torch.int8, torch.int16, torch.int32, torch.int64, torch.bool),
    *(torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.complex64, torch.complex128),
)
TENSORS = {
    **{str(dtype): torch.arange(5).to(dtype) for dtype in DTYPES},
    "NaN with payload": NAN_WITH_PAYLOAD,
    "zeros with signs and infinities": tensor([0.0, -0.0, float("inf"), -float("inf")]),
    "empty": torch.zeros(0, 3),
    "empty int64": torch.zeros(0, dtype=torch.int64),
    "0-d": tensor(2.5),
    "0-d bool": tensor(True),
    "transposed": torch.arange(6.0).reshape(2, 3).t(),
    "every other column": torch.arange(12).reshape(3, 4)[:, ::2],
    "channels last": torch.arange(48.0).reshape(2, 3, 4, 2).to(memory_format=torch.channels_last),
    "expanded": tensor([1.5, 2.5])[:, None].expand(2, 3),
    "a view into the middle": torch.arange(1000)[500:503],
    "conjugated": tensor([1 + 2j, 3 - 1j]).conj(),
    "negated": tensor([1 + 2j, 3 - 1j]).conj().imag,
    "of a graph": torch.ones(2, requires_grad=True) * 3,
}
VALUES = {
    "None": None,
    "bools": [True, False],
    "ints": [0, -1, 2**31, -(2**63), 2**64, 2**2039 - 1, -(2**2039) + 1],
    "floats": [0.1, 5e-324, float("inf"), -float("inf")],
    "strs": ["", "ä", "\ud800", "\0", "x" * 300],
    "bytes": [b"", b"\0\xff", b"x" * 300],
    "lists and tuples": [[], (), (1,), (1, 2), (1, 2, 3), [1, (2, [3, (4, 5, 6, 7)])]],
    "dicts": {"a": {}, 1: {"b": {2.5: None}}, (1, ("x",)): [b""], None: 0, True + 1: 1, b"": b""},
    "OrderedDict": OrderedDict([("b", 1), ("a", 2)]),
    "Counter": Counter({30: 1, 80: 2}),
    "torch's": [torch.Size([2, 3]), torch.Size([]), torch.bfloat16, torch.device("cuda:1")],
    "random state": random.Random(0).getstate(),
}


class Pair(NamedTuple):
    first: object


class Name(str):
    pass


class Bomb:
    """Unpickled with full trust it makes the file; so it tells whether something was run."""

    def __init__(self, traces):
        self.traces = traces

    def __reduce__(self):
        return open, (str(self.traces), "w")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.pt"


def saved(path, **state):
    save_checkpoint(path, **state)
    return load_checkpoint(path)


def bits(values):
    return values.resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8).tolist()


def torch_saved(value, **options):
    file = io.BytesIO()
    torch.save(value, file, **options)
    return file.getvalue()


def sealed(content, version=1):
    """The format written down a second time: a zip archive, and its comment."""
    start = b"torchcls checkpoint, format %d, sha256 " % version
    file = content[:-2] + (len(start) + 64).to_bytes(2, "little") + start
    return file + hashlib.sha256(file).hexdigest().encode()


def assert_only(path, content):
    assert list(path.parent.iterdir()) == [path]
    assert path.read_bytes() == content


# --- what goes in comes out ---------------------------------------------------------------------


@pytest.mark.parametrize("name", TENSORS)
def test_tensors_come_back_bit_for_bit(path, name):
    found = saved(path, x=TENSORS[name])["x"]
    assert type(found) is torch.Tensor
    assert (found.dtype, found.shape) == (TENSORS[name].dtype, TENSORS[name].shape)
    assert bits(found) == bits(TENSORS[name])
    assert not found.requires_grad


@pytest.mark.parametrize("name", VALUES)
def test_plain_values_come_back_as_they_were(path, name):
    found = saved(path, x=VALUES[name])["x"]
    assert found == VALUES[name]
    assert repr(found) == repr(VALUES[name])  # types, order and the signs of zeros too


def test_signs_of_zeros_and_nan_come_back(path):
    found = saved(path, x=[-0.0, 0.0, float("nan")])["x"]
    assert repr(found) == "[-0.0, 0.0, nan]"


def test_no_state_at_all_comes_back(path):
    assert saved(path) == {}


@pytest.mark.filterwarnings("ignore:.*[Ss]parse.*")
def test_sparse_tensors_come_back(path):
    found = saved(path, coo=torch.eye(3).to_sparse(), csr=torch.eye(3).to_sparse_csr())
    assert found["coo"].layout is torch.sparse_coo
    assert found["csr"].layout is torch.sparse_csr
    assert found["coo"].to_dense().equal(torch.eye(3))
    assert found["csr"].to_dense().equal(torch.eye(3))


def test_parameters_come_back_as_plain_tensors_without_their_attributes(path):
    weight = nn.Parameter(torch.ones(2))
    weight.hook = lambda: None  # attributes like this one keep torch.save from working
    found = saved(path, weight=weight)["weight"]
    assert type(found) is torch.Tensor
    assert found.tolist() == [1, 1]
    assert isinstance(weight, nn.Parameter)
    assert weight.requires_grad


def test_the_versions_of_modules_come_back_with_a_state_dict(path):
    state = nn.BatchNorm1d(2).state_dict()
    assert saved(path, model=state)["model"]._metadata == state._metadata


def test_the_state_is_left_as_it_was(path):
    state = {"model": nn.Linear(2, 3).state_dict(), "values": [b"", (1, 2)]}
    kept = {**state, "values": list(state["values"])}
    metadata, weight = state["model"]._metadata, state["model"]["weight"]
    save_checkpoint(path, **state)
    assert state == kept
    assert state["model"]._metadata is metadata
    assert state["model"]["weight"] is weight


def test_the_random_state_is_left_as_it_was(path):
    before = torch.get_rng_state(), random.getstate()
    saved(path, x=torch.ones(2))
    assert torch.get_rng_state().equal(before[0])
    assert random.getstate() == before[1]


SCHEDULES = {
    "MultiStepLR": lambda optimizer: lr_scheduler.MultiStepLR(optimizer, [1, 1, 3]),
    "OneCycleLR": lambda optimizer: lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=9),
    "CyclicLR": lambda optimizer: lr_scheduler.CyclicLR(optimizer, 0.1, 0.2, cycle_momentum=False),
    "ReduceLROnPlateau": lr_scheduler.ReduceLROnPlateau,
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
    "LambdaLR": lambda optimizer: lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.5**epoch),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler([lr_scheduler.ConstantLR(o)]),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_training_goes_on_from_torch_load_alone(path, name):
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    optimizer = torch.optim.AdamW(model.parameters())
    schedule = SCHEDULES[name](optimizer)
    model(torch.randn(4, 2)).sum().backward()
    optimizer.step()
    schedule.step(*([1.0] if name == "ReduceLROnPlateau" else []))
    parts = {"model": model, "optimizer": optimizer, "schedule": schedule}
    save_checkpoint(path, **{name: part.state_dict() for name, part in parts.items()})
    found = torch.load(path, weights_only=True)
    assert load_checkpoint(path).keys() == found.keys()
    torch.testing.assert_close(found["model"], model.state_dict(), rtol=0, atol=0)
    other = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    other.load_state_dict(found["model"])
    again = torch.optim.AdamW(other.parameters())
    again.load_state_dict(found["optimizer"])
    assert str(again.state_dict()) == str(optimizer.state_dict())
    resumed = SCHEDULES[name](again)
    resumed.load_state_dict(found["schedule"])
    assert str(resumed.state_dict()) == str(schedule.state_dict())


def test_torch_maps_the_file_into_memory_too(path):
    save_checkpoint(path, x=torch.arange(5))
    assert torch.load(path, weights_only=True, mmap=True)["x"].tolist() == [0, 1, 2, 3, 4]


def test_the_file_is_a_zip_archive_whose_comment_is_the_mark(path):
    save_checkpoint(path, x=torch.arange(5))
    assert sealed(torch_saved({"x": torch.arange(5)})) == path.read_bytes()
    shutil.unpack_archive(path, path.parent / "unpacked", "zip")  # checks every record, too


def test_a_global_setting_of_mmap_does_not_matter(path):
    config = pytest.importorskip("torch.utils.serialization").config
    save_checkpoint(path, x=torch.arange(5))
    with config.patch({"load.mmap": True}):
        assert load_checkpoint(path)["x"].tolist() == [0, 1, 2, 3, 4]


def test_a_default_device_does_not_matter(path):
    with torch.device("meta"):
        found = saved(path, x=torch.arange(5, device="cpu")[1:3])["x"]
    assert found.tolist() == [1, 2]


# --- memory -------------------------------------------------------------------------------------


def test_a_view_is_saved_without_the_rest_of_its_storage(path):
    save_checkpoint(path, x=torch.zeros(100_000)[7:9])
    assert path.stat().st_size < 10_000


def test_tied_tensors_stay_tied_and_are_written_once(path):
    weight = nn.Parameter(torch.zeros(10_000))
    found = saved(path, model={"a": weight, "b": weight}, c=weight.detach())
    assert path.stat().st_size < 50_000
    found["model"]["a"][3] = 5
    assert found["model"]["b"][3] == found["c"][3] == 5


def test_tied_views_stay_tied(path):
    flat = torch.zeros(10_000)
    found = saved(path, a=flat[:4000], b=flat[:4000], c=flat[4000:])
    assert path.stat().st_size < 50_000
    found["a"][3] = 5
    assert found["b"][3] == 5
    assert found["c"].count_nonzero() == 0


def test_whole_views_of_the_same_storage_stay_tied(path):
    weight = torch.arange(6.0).reshape(2, 3)
    found = saved(path, a=weight, b=weight.t())
    found["a"][0, 1] = 50
    assert found["b"].tolist() == [[0, 3], [50, 4], [2, 5]]


def test_views_of_the_same_place_that_are_not_the_same_stay_apart(path):
    z = tensor([1 + 2j, 3 - 1j, 0j, 1j])
    x = torch.arange(4, dtype=torch.int32)
    state = {
        "z": z,
        "conj": z.conj(),
        "part": z[:2],
        "last": z[2:],
        "column": z[:, None],
        "every": z[::2],
    }
    state |= {"x": x, "f": x.view(torch.float32), "h": x.view(torch.int16)}
    state |= {"imag": z.imag, "neg": z.conj().imag}
    found = saved(path, **state)
    assert {name: bits(found[name]) for name in state} == {n: bits(state[n]) for n in state}
    assert {name: found[name].shape for name in state} == {n: state[n].shape for n in state}
    assert {name: found[name].dtype for name in state} == {n: state[n].dtype for n in state}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.accelerator.is_available(), reason="needs an accelerator")
def test_tensors_of_an_accelerator_are_saved_as_those_of_the_cpu(path):
    weight = torch.arange(6.0, device=torch.accelerator.current_accelerator())
    found = saved(path, a=weight, b=weight, part=weight[2:4])
    plain = torch.load(path, weights_only=True)
    assert {value.device.type for value in (*found.values(), *plain.values())} == {"cpu"}
    assert plain["part"].tolist() == [2, 3]
    found["a"][0] = 7
    assert found["b"][0] == 7


# --- what is refused at save --------------------------------------------------------------------

LINEAR = nn.Linear(2, 3)
REFUSED = {
    "function": (open, "builtins.builtin_function_or_method"),
    "object": (object(), "builtins.object"),
    "complex": (1j, "builtins.complex"),
    "set": ({1}, "builtins.set"),
    "bytearray": (bytearray(b"x"), "builtins.bytearray"),
    "path": (Path("x"), f"{type(Path()).__module__}.{type(Path()).__name__}"),
    "defaultdict": (defaultdict(list), "collections.defaultdict"),
    "named tuple": (Pair(1), f"{__name__}.Pair"),
    "str of one's own": (Name("x"), f"{__name__}.Name"),
    "generator": (torch.Generator(), "torch._C.Generator"),
    "module": (LINEAR, "torch.nn.modules.linear.Linear"),
    "optimizer": (torch.optim.SGD(LINEAR.parameters()), "torch.optim.sgd.SGD"),
    "array": (np.ones(2), "numpy.ndarray"),
    "numpy float": (np.float64(1), "numpy.float64"),
    "numpy int": (np.int64(1), "numpy.int64"),
    "meta": (torch.ones(2, device="meta"), "torch.Tensor"),
    "lazy": (nn.LazyLinear(3).weight, "torch.nn.parameter.UninitializedParameter"),
    "huge": (2**2039, "builtins.int"),
    "-huge": (-(2**2039), "builtins.int"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_kinds_are_refused_with_their_place(path, name):
    value, words = REFUSED[name]
    path.write_bytes(b"earlier")
    remedy = " Save its .state_dict()." if name in ("module", "optimizer") else ""
    sentence = (
        "state['optimizer']['hook'][1] must be a dense or sparse tensor, or a plain value "
        f"(an int of up to 2039 bits), got {words}.{remedy}"
    )
    with pytest.raises(TypeError, match=f"^{re.escape(sentence)}$"):
        save_checkpoint(path, epoch=1, optimizer={"state": {}, "hook": (0, value)})
    assert_only(path, b"earlier")


@pytest.mark.filterwarnings("ignore:.*nested tensors is in prototype")
def test_a_nested_tensor_is_refused_since_not_every_torch_reads_it_back(path):
    nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
    with pytest.raises(TypeError, match=r"must be a dense or sparse tensor, .* got torch\.Tensor"):
        save_checkpoint(path, x=nested)


def test_a_key_of_another_kind_is_refused(path):
    with pytest.raises(TypeError, match=r"^the key .*7.* of state\['a'\] must be .*numpy\.int64"):
        save_checkpoint(path, a={np.int64(7): 1})


def test_an_attribute_of_another_kind_is_refused(path):
    state = OrderedDict(a=1)
    state.note = object()
    with pytest.raises(
        TypeError, match=r"^vars\(state\['a'\]\)\['note'\] must be .* got builtins\.object"
    ):
        save_checkpoint(path, a=state)


# --- replaced whole or not at all ---------------------------------------------------------------


def test_the_file_reaches_the_disk_before_its_name_and_then_the_folder_does(path, monkeypatch):
    done = []
    fsync, replace = os.fsync, os.replace

    def watched_fsync(descriptor):
        status = os.fstat(descriptor)
        done.append("folder" if stat.S_ISDIR(status.st_mode) else status.st_size)
        fsync(descriptor)

    def watched_replace(source, target):
        assert Path(source).parent == path.parent
        assert Path(source).name.endswith("-model.pt")
        assert path.read_bytes() == b"earlier"
        done.append(Path(source).stat().st_size)
        replace(source, target)

    path.write_bytes(b"earlier")
    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "replace", watched_replace)
    save_checkpoint(path, x=torch.ones(3))
    size = path.stat().st_size
    assert done == [size, size, "folder"]
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    ("function", "earlier"),
    [("fsync", True), ("fsync", False), ("replace", True), ("replace", False), ("chmod", True)],
)
def test_an_error_while_writing_leaves_everything_as_it_was(path, monkeypatch, function, earlier):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    if earlier:
        save_checkpoint(path, epoch=1)
        content = path.read_bytes()
    monkeypatch.setattr(os, function, full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        save_checkpoint(path, epoch=2)
    monkeypatch.undo()
    assert caught.value.errno == errno.ENOSPC
    assert str(path) in str(caught.value)
    assert ("The earlier checkpoint is untouched." in str(caught.value)) is earlier
    if earlier:
        assert_only(path, content)
        assert load_checkpoint(path) == {"epoch": 1}
    else:
        assert list(path.parent.iterdir()) == []


def test_the_kind_of_an_error_is_kept(path, monkeypatch):
    def denied(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "replace", denied)
    with pytest.raises(PermissionError, match=r"model\.pt must be writable, got: Permission"):
        save_checkpoint(path)


def test_an_error_without_a_number_keeps_its_words(path, monkeypatch):
    def broken(*_):
        raise OSError("the store is offline")

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(OSError, match=r"model\.pt must be writable, got: the store is offline, in"):
        save_checkpoint(path)


@pytest.mark.system
def test_a_size_limit_of_the_system_leaves_everything_as_it_was(path):
    save_checkpoint(path, epoch=1)
    content = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
    try:
        with pytest.raises(OSError, match="earlier checkpoint is untouched") as caught:
            save_checkpoint(path, x=torch.zeros(1 << 20))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.errno == errno.EFBIG
    assert_only(path, content)


@pytest.mark.system
@pytest.mark.skipif(sys.platform != "linux", reason="a mount that one thread sees is Linux's")
def test_a_full_disk_leaves_everything_as_it_was(path):
    def run():
        save_checkpoint(path, epoch=1)
        content = path.read_bytes()
        with pytest.raises(OSError, match="earlier checkpoint is untouched") as caught:
            save_checkpoint(path, x=torch.zeros(1 << 20))
        assert caught.value.errno == errno.ENOSPC
        assert_only(path, content)
        assert saved(path, epoch=2) == {"epoch": 2}

    in_a_thread_that_sees_a_small_disk(path.parent, run)
    assert list(path.parent.iterdir()) == []  # it was another disk indeed


@pytest.mark.parametrize("place", ["os.fsync", "os.replace", "torch.save"])
def test_an_interrupt_leaves_everything_as_it_was(path, monkeypatch, place):
    def interrupt(*_):
        raise KeyboardInterrupt

    save_checkpoint(path, epoch=1)
    content = path.read_bytes()
    monkeypatch.setattr(place, interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(path, epoch=2)
    assert_only(path, content)


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP, errno.EIO])
def test_a_folder_that_cannot_be_synchronised_is_an_error_only_where_others_can(
    path, monkeypatch, code
):
    fsync = os.fsync

    def no_folders(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(code, os.strerror(code))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", no_folders)
    if code == errno.EIO:
        with pytest.raises(OSError, match=r"whole, but may not survive a power cut\.$") as caught:
            save_checkpoint(path, epoch=1)
        assert caught.value.errno == code
    else:
        save_checkpoint(path, epoch=1)
    assert load_checkpoint(path) == {"epoch": 1}


def test_a_folder_that_cannot_be_opened_is_not_synchronised(path, monkeypatch):
    def denied(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", denied)
    save_checkpoint(path, epoch=1)
    assert load_checkpoint(path) == {"epoch": 1}


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="cannot count open files here")
def test_no_file_stays_open(path):
    before = len(os.listdir("/proc/self/fd"))
    saved(path, epoch=1)
    assert len(os.listdir("/proc/self/fd")) == before


def test_threads_that_write_the_same_file_do_not_disturb_each_other(path):
    failed = []

    def write(number):
        try:
            for _ in range(5):
                save_checkpoint(path, x=torch.full((2000,), number))
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert len(load_checkpoint(path)["x"].unique()) == 1
    assert list(path.parent.iterdir()) == [path]


def test_a_new_file_has_the_permissions_that_open_gives(path):
    before = os.umask(0o027)
    try:
        save_checkpoint(path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_replaced_file_keeps_its_permissions(path):
    path.touch()
    path.chmod(0o604)
    save_checkpoint(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o604


def test_a_symbolic_link_is_followed(path, tmp_path):
    (tmp_path / "epochs").mkdir()
    path.symlink_to(Path("epochs", "7.pt"))
    for epoch in (1, 2):  # the first one makes the file
        assert saved(path, epoch=epoch) == {"epoch": epoch}
    assert path.is_symlink()
    assert [file.name for file in (tmp_path / "epochs").iterdir()] == ["7.pt"]


def test_a_str_and_a_file_of_the_current_folder_are_paths_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert saved("model.pt", epoch=1) == {"epoch": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["model.pt"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_an_error(path):
    path.parent.chmod(0o500)
    try:
        with pytest.raises(PermissionError, match=r"model\.pt must be writable"):
            save_checkpoint(path)
    finally:
        path.parent.chmod(0o700)


def test_a_missing_folder_is_named_and_not_created(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=rf"No such .* the folder {tmp_path}/runs\. Nothing is left"
    ):
        save_checkpoint(tmp_path / "runs" / "model.pt")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_or_a_device_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(ValueError, match=r"must be a file, got a folder or a device\.$"):
            save_checkpoint(name)
    assert [file.name for file in tmp_path.iterdir()] == ["pipe"]
    assert (tmp_path / "pipe").is_fifo()


# --- what is refused at load --------------------------------------------------------------------


def test_a_missing_file_is_an_error(path):
    with pytest.raises(FileNotFoundError, match=r"No such file or directory: .*model\.pt"):
        load_checkpoint(path)


def test_a_folder_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"must be a checkpoint, got a folder\.$"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "an empty file"),
        (b"<!DOCTYPE html><html>", "21 bytes that start with b'<!DOCTYPE ht'"),
        (bytes(5000), f"5000 bytes that start with {bytes(12)!r}"),
        (b"PK\3\4" + bytes(96), f"100 bytes that start with {b'PK' + bytes([3, 4, *[0] * 8])!r}"),
    ],
)
def test_what_is_no_checkpoint_at_all_is_damaged(path, content, words):
    path.write_bytes(content)
    start = f"{path} must end in the mark of a torchcls checkpoint, got"
    sentence = f"{start} {words}: cut off or damaged. Load an earlier one."
    with pytest.raises(DamagedError, match=f"^{re.escape(sentence)}$"):
        load_checkpoint(path)


def small_file(path):
    model = nn.Linear(3, 2)
    save_checkpoint(path, model=model.state_dict(), epoch=3, note="x", mask=tensor([True]))
    return path.read_bytes()


def test_a_file_that_is_cut_off_anywhere_is_damaged(path):
    content = small_file(path)
    sizes = {len(content) * i // 20 for i in range(20)} | {len(content) - i for i in range(1, 200)}
    for size in sorted(sizes):
        path.write_bytes(content[:size])
        with pytest.raises(DamagedError, match=r"oad an earlier one") as caught:
            load_checkpoint(path)
        assert f"{size} bytes" in str(caught.value) or size == 0


def test_a_byte_that_is_added_or_lost_anywhere_is_damage(path):
    content = small_file(path)
    places = (0, 1, len(content) // 2, *range(len(content) - 150, len(content)))
    others = [content[:i] + content[i + 1 :] for i in places]
    others += [content[:i] + b"\0" + content[i:] for i in places]
    others += [content + end for end in (b"\n", b"\0", bytes(512), bytes(4096), content)]
    for other in others:
        path.write_bytes(other)
        if other.endswith(content):
            continue  # the whole file again, with something before it
        with pytest.raises(DamagedError):
            load_checkpoint(path)


def test_zeros_in_place_of_the_end_are_damage(path):
    content = small_file(path)
    for size in (*range(1, 200), 512):
        path.write_bytes(content[:-size] + bytes(size))
        if path.read_bytes() != content:
            with pytest.raises(DamagedError):
                load_checkpoint(path)


def test_a_flipped_bit_anywhere_is_damage(path):
    content = small_file(path)
    flips = [(i, i // 5 % 8) for i in range(0, len(content), 5)]
    edges = [*range(64), *range(len(content) - 64, len(content))]
    flips += [(i, bit) for i in edges for bit in range(8)]
    flips += [(i, i % 8) for i in range(len(content) - 150, len(content) - 64)]  # the mark
    assert len(flips) > 1000
    for i, bit in flips:
        flipped = bytearray(content)
        flipped[i] ^= 1 << bit
        path.write_bytes(flipped)
        with pytest.raises(DamagedError, match=r"damaged.* Load an earlier one"):
            load_checkpoint(path)
    path.write_bytes(content)
    assert load_checkpoint(path)["epoch"] == 3


def test_the_message_on_damage_names_the_file_and_its_size(path):
    content = small_file(path)
    path.write_bytes(content[:300] + b"????" + content[304:])
    sentence = (
        f"{path} must have the checksum that it was written with, got another one over "
        f"{len(content)} bytes: it is damaged. Load an earlier one."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        load_checkpoint(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_of_another_program_is_refused_with_the_way_to_read_it(path, zipped):
    weights = {"weight": torch.ones(2)}
    path.write_bytes(torch_saved(weights, _use_new_zipfile_serialization=zipped))
    words = r"another program's file, .* by torch\.load\(path, weights_only=True\)"
    with pytest.raises(ValueError, match=words) as caught:
        load_checkpoint(path)
    assert not isinstance(caught.value, DamagedError)


def test_tensors_of_a_device_that_is_not_there_are_read_onto_the_cpu(path):
    content = torch_saved({"weight": torch.ones(2)})
    assert content.count(b"cpu") == 1
    content = content.replace(b"cpu", b"xpu")
    path.write_bytes(sealed(content))
    assert load_checkpoint(path)["weight"].device.type == "cpu"


def test_code_in_a_file_is_refused_and_not_run(path, tmp_path):
    traces = tmp_path / "traces"
    path.write_bytes(sealed(torch_saved({"a": Bomb(traces)})))
    words = "Python objects that could run code, not only tensors."
    sentence = f"{path} must hold what save_checkpoint writes, got {words}"
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$") as caught:
        load_checkpoint(path)
    assert caught.value.__cause__ is None  # torch's own text advises to run the code
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    assert not traces.exists()


@pytest.mark.parametrize(
    "written",
    [
        lambda bomb: torch_saved({"a": bomb}),
        lambda bomb: torch_saved({"a": bomb}, _use_new_zipfile_serialization=False),
        lambda bomb: pickle.dumps(bomb, 2),
        lambda bomb: pickle.dumps({"a": bomb}, 4),
    ],
    ids=["torch.save", "torch.save of old", "pickle 2", "pickle 4"],
)
def test_a_file_of_another_program_is_not_even_parsed(path, tmp_path, written, monkeypatch):
    monkeypatch.delattr(torch, "load")
    path.write_bytes(written(Bomb(tmp_path / "traces")))
    with pytest.raises(ValueError, match=r"another program's file, .*could run code: refused"):
        load_checkpoint(path)
    assert not (tmp_path / "traces").exists()


def test_the_bombs_of_these_tests_would_go_off(tmp_path):
    pickle.loads(pickle.dumps(Bomb(tmp_path / "traces"))).close()
    assert (tmp_path / "traces").exists()


def test_an_environment_that_trusts_everything_does_not_matter(path, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    path.write_bytes(sealed(torch_saved({"a": Bomb(tmp_path / "traces")})))
    with pytest.raises(ValueError, match="could run code"):
        load_checkpoint(path)
    assert not (tmp_path / "traces").exists()


def test_a_file_of_the_same_format_is_read_and_one_of_another_format_is_not(path):
    content = torch_saved({"a": 1})
    path.write_bytes(sealed(content))
    assert load_checkpoint(path) == {"a": 1}
    path.write_bytes(sealed(content, version=12))
    sentence = f"{path} must have format 1, got format 12. Install the torchcls that wrote it."
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        load_checkpoint(path)


def script():
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), file)
    return file.getvalue()


def compressed(content):
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(file, "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name), zipfile.ZIP_DEFLATED)
    return file.getvalue()


def without(content, ending):
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(file, "w") as new:
        for name in old.namelist():
            if not name.endswith(ending):
                new.writestr(name, old.read(name))
    return file.getvalue()


OTHERS = {
    "a list": lambda: torch_saved([1]),
    "an int": lambda: torch_saved(5),
    "a tensor": lambda: torch_saved(torch.ones(2)),
    "no record of data": lambda: without(torch_saved({"a": 1}), "data.pkl"),
    "a tensor's bytes missing": lambda: without(torch_saved({"a": torch.ones(2)}), "/0"),
    "an old file": lambda: torch_saved({"a": 1}, _use_new_zipfile_serialization=False),
    "half an archive": lambda: torch_saved({"a": torch.ones(99)})[-300:],
    "nothing": lambda: b"\0\0",
    "compressed": lambda: compressed(torch_saved({"a": torch.ones(99)})),
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_content_under_a_right_mark_is_a_value_error(path, name):
    path.write_bytes(sealed(OTHERS[name]()))
    words = rf"^{re.escape(str(path))} must hold what save_checkpoint writes, got "
    with pytest.raises(ValueError, match=words) as caught:
        load_checkpoint(path)
    assert not isinstance(caught.value, DamagedError)


@pytest.mark.filterwarnings("ignore:.*torch.jit", "ignore:.*TorchScript")
def test_torchscript_under_a_right_mark_is_a_value_error(path):
    path.write_bytes(sealed(script()))
    with pytest.raises(ValueError, match="must hold what save_checkpoint writes, got "):
        load_checkpoint(path)


def test_a_small_file_does_not_become_a_large_tensor(path, monkeypatch):
    monkeypatch.delattr(torch, "load")
    content = compressed(torch_saved({"a": torch.zeros(1 << 20)}))
    for written in (sealed(content), content):
        path.write_bytes(written)
        with pytest.raises(ValueError, match=r"compressed records|another program's file"):
            load_checkpoint(path)


def test_what_is_parsed_is_what_was_checked(path, monkeypatch):
    load = torch.load

    def load_late(*args, **kwargs):
        path.write_bytes(torch_saved({"epoch": 666}))  # between the check and the reading
        return load(*args, **kwargs)

    save_checkpoint(path, epoch=1)
    monkeypatch.setattr(torch, "load", load_late)
    assert load_checkpoint(path) == {"epoch": 1}
