"""The folder of a run: what stands in it after each save, what is read from it, who holds it."""

import errno
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from torchcls.history import replacing
from torchcls.survival import DamagedError, load_checkpoint, save_checkpoint
from torchcls.survival import folder as room
from torchcls.survival.folder import Folder
from torchcls.version import __version__


def state(epochs, step=0):
    return {
        "model": {"x": torch.ones(1)},
        "at": {"epoch": epochs, "step": step, "stopped": False},
        "history": {"records": [{}] * epochs},
        **{part: {} for part in ("told", "optimizer", "beside", "source", "circumstances")},
    }


def opened(path, **keywords):
    folder = Folder(path, 60)
    found = folder.open(**{"resume": True, "check": lambda state, path: None, **keywords})
    return folder, found


def kept(path, *states, best=False):
    """Have a run save these states and end; returns its id."""
    folder, _ = opened(path)
    for each in states:
        folder.save(each)
    if best:
        folder.save_best(model={})
    folder.close()
    return load_checkpoint(path / "last.pt")["run"]


def in_folder(path):
    return {
        file.stem: (found["at"]["epoch"], found["at"]["step"])
        for file in path.glob("*.pt")
        for found in [load_checkpoint(file)]
    }


def rewritten(file, **changed):
    save_checkpoint(file, **{**load_checkpoint(file), **changed})


# --- what stands in it --------------------------------------------------------------------------


def test_beside_the_last_state_stands_the_start_of_its_epoch_or_the_epoch_before(tmp_path):
    folder, found = opened(tmp_path / "new")
    assert found is None
    folder.save(state(0))
    assert in_folder(folder.path) == {"last": (0, 0)}
    folder.save(state(0, 1))
    folder.save(state(0, 2))
    assert in_folder(folder.path) == {"last": (0, 2), "epoch": (0, 0)}
    folder.save(state(1))
    assert in_folder(folder.path) == {"last": (1, 0), "epoch": (0, 0)}
    folder.save(state(2))
    assert in_folder(folder.path) == {"last": (2, 0), "epoch": (1, 0)}
    folder.save(state(2, 1))
    assert in_folder(folder.path) == {"last": (2, 1), "epoch": (2, 0)}
    folder.save_best(model={})
    names = [".lock", "best.pt", "epoch.pt", "last.pt"]
    assert sorted(os.listdir(folder.path)) == names


def test_another_process_keeps_the_order(tmp_path):
    kept(tmp_path, state(1))
    folder, found = opened(tmp_path)
    assert found["at"]["epoch"] == 1
    folder.save(state(1, 4))
    assert in_folder(tmp_path) == {"last": (1, 4), "epoch": (1, 0)}
    folder.close()
    folder, _ = opened(tmp_path)
    folder.save(state(1, 5))
    assert in_folder(tmp_path) == {"last": (1, 5), "epoch": (1, 0)}
    assert folder.start_of(1)["at"] == {"epoch": 1, "step": 0, "stopped": False}
    with pytest.raises(ValueError, match=r"epoch\.pt must be the state at the start of epoch 0"):
        folder.start_of(0)


def test_a_damaged_last_state_never_takes_the_place_of_the_whole_one(tmp_path):
    kept(tmp_path, state(1), state(2))
    (tmp_path / "last.pt").write_bytes(b"")
    with pytest.warns(UserWarning, match=r"goes on from epoch\.pt"):
        folder, _ = opened(tmp_path)
    folder.save(state(1, 3))
    assert in_folder(tmp_path) == {"last": (1, 3), "epoch": (1, 0)}


DAMAGES = {
    "cut by 1": lambda content: content[:-1],
    "cut by 100": lambda content: content[:-100],
    "a bit in the mark": lambda content: content[:-90] + bytes([content[-90] ^ 1]) + content[-89:],
    "zeros at the end": lambda content: content[:-8] + bytes(8),
    "zeros after the end": lambda content: content + bytes(512),
    "a bit in the weights": lambda content: content[:300] + b"????" + content[304:],
}


@pytest.mark.parametrize("name", DAMAGES)
def test_whatever_damages_the_last_state_the_earlier_one_is_used(tmp_path, name):
    kept(tmp_path, state(1), state(2))
    last = tmp_path / "last.pt"
    last.write_bytes(DAMAGES[name](last.read_bytes()))
    with pytest.warns(UserWarning, match=r"last\.pt must .* goes on from epoch\.pt, which is"):
        _, found = opened(tmp_path)
    assert found["at"]["epoch"] == 1


def test_where_both_are_damaged_both_are_named(tmp_path):
    kept(tmp_path, state(1), state(2))
    for name in ("last", "epoch"):
        (tmp_path / f"{name}.pt").write_bytes(b"")
    with pytest.raises(DamagedError, match=r"last\.pt must .* So is the earlier one: .*epoch\.pt"):
        opened(tmp_path)


def test_the_earlier_state_alone_is_enough(tmp_path):
    kept(tmp_path, state(1), state(2))
    (tmp_path / "last.pt").unlink()
    folder, found = opened(tmp_path)
    assert found["at"]["epoch"] == 1
    assert folder.newest()["at"]["epoch"] == 1
    folder.close()
    (tmp_path / "epoch.pt").write_bytes(b"")
    with pytest.raises(ValueError, match="empty file"):
        opened(tmp_path)


def test_a_last_state_that_vanishes_meanwhile_is_no_trouble(tmp_path):
    folder, _ = opened(tmp_path)
    with pytest.raises(OSError, match=r"last\.pt"):
        folder.newest()
    folder.save(state(1))
    (tmp_path / "last.pt").unlink()
    folder.save(state(2))
    assert in_folder(tmp_path) == {"last": (2, 0)}


def test_where_files_have_no_second_names_the_earlier_state_is_copied(tmp_path, monkeypatch):
    def no_links(*_):
        raise OSError("not supported")

    monkeypatch.setattr(os, "link", no_links)
    kept(tmp_path, state(1), state(2))
    assert in_folder(tmp_path) == {"last": (2, 0), "epoch": (1, 0)}


def test_what_does_not_fit_is_refused_unless_it_never_took_a_step(tmp_path):
    def refuse(state, path):
        assert path == tmp_path / "last.pt"
        raise ValueError("no")

    old = kept(tmp_path, state(0))
    for keywords in ({"check": refuse}, {"resume": False}):
        folder, found = opened(tmp_path, **keywords)
        assert found is None
        folder.close()
    kept(tmp_path, state(0, 1))
    with pytest.raises(ValueError, match="no"):
        opened(tmp_path, check=refuse)
    with pytest.raises(ValueError, match="must be a folder without a run"):
        opened(tmp_path, resume=False)
    assert load_checkpoint(tmp_path / "last.pt")["run"] == old


def test_a_state_begun_anew_is_not_kept_as_an_earlier_one(tmp_path):
    old = kept(tmp_path, state(0))
    new, _ = opened(tmp_path, resume=False)
    new.save(state(0))
    assert in_folder(tmp_path) == {"last": (0, 0)}
    assert load_checkpoint(tmp_path / "last.pt")["run"] != old


def test_it_is_due_after_the_interval_and_a_save_begins_another(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    folder, _ = opened(tmp_path)
    assert not folder.is_due()
    now[0] = 160.0
    assert folder.is_due()
    folder.save(state(0))
    assert not folder.is_due()


def test_before_training_an_error_is_raised_and_later_it_is_a_warning(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    folder, _ = opened(tmp_path)
    assert folder.save(state(1))
    monkeypatch.setattr(room, "save_checkpoint", full)
    with pytest.raises(OSError, match="No space"):
        folder.save(state(1, 1), must=True)
    with pytest.warns(UserWarning, match=r"could not be written, .* goes on: .*No space"):
        assert not folder.save(state(1, 1))
    with pytest.warns(UserWarning, match="No space"):
        assert not folder.save_best(model={})
    assert in_folder(tmp_path)["last"] == (1, 0)


def test_a_disk_without_room_for_two_states_is_an_error(tmp_path, monkeypatch):
    folder, _ = opened(tmp_path)
    folder.save(state(0), must=True)
    monkeypatch.setattr(room.shutil, "disk_usage", lambda path: type("", (), {"free": 3}))
    with pytest.raises(OSError, match=r"room for two states of .* bytes, got 3 bytes free"):
        folder.save(state(0), must=True)
    assert folder.save(state(0, 1))


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="checkpoint must be a folder that can be written, got"):
        opened(tmp_path / "file" / "folder")


def test_what_a_killed_process_left_half_written_is_removed(tmp_path):
    for name in ("last.pt", "epoch.pt", "best.pt"):
        with replacing(tmp_path / name) as beside:
            beside.write_bytes(b"half")
            os.link(beside, tmp_path / "left")
        (tmp_path / name).unlink()
        os.rename(tmp_path / "left", beside)
    assert len(os.listdir(tmp_path)) == 3
    opened(tmp_path)
    assert os.listdir(tmp_path) == [".lock"]


# --- whose files they are -----------------------------------------------------------------------


def test_the_files_of_a_folder_carry_one_id_that_stays_when_the_run_goes_on(tmp_path):
    run = kept(tmp_path, state(1), state(2), best=True)
    assert kept(tmp_path, state(2, 1), best=True) == run
    files = [load_checkpoint(path) for path in sorted(tmp_path.glob("*.pt"))]
    assert [(file["run"], file["torchcls"], file["format"]) for file in files] == [
        (run, __version__, 3)
    ] * 3
    assert kept(tmp_path / "other", state(0)) != run


@pytest.mark.parametrize("damage", ["empty", "gone"])
def test_the_earlier_state_of_another_run_is_not_used(tmp_path, damage):
    kept(tmp_path / "a", state(1), state(1, 2))
    other = kept(tmp_path / "b", state(1), state(1, 2))
    os.replace(tmp_path / "b" / "epoch.pt", tmp_path / "a" / "epoch.pt")
    folder, _ = opened(tmp_path / "a")
    with pytest.raises(ValueError, match="must be the state at the start of epoch 1"):
        folder.start_of(1)
    folder.close()
    last = tmp_path / "a" / "last.pt"
    last.write_bytes(b"") if damage == "empty" else last.unlink()
    with pytest.raises(ValueError, match=r"epoch\.pt must be of the run .* got another run's"):
        opened(tmp_path / "a")
    os.replace(tmp_path / "a" / "epoch.pt", last)  # as the message says
    folder, found = opened(tmp_path / "a")
    assert found["run"] == other


def test_the_best_weights_of_another_run_are_neither_used_nor_replaced(tmp_path):
    kept(tmp_path / "a", state(1))
    kept(tmp_path / "b", state(1), best=True)
    os.replace(tmp_path / "b" / "best.pt", tmp_path / "a" / "best.pt")
    with pytest.raises(ValueError, match=r"without another run, got .*with a best\.pt, which wo"):
        opened(tmp_path / "a")
    (tmp_path / "a" / "last.pt").unlink()
    for resume in (True, False):
        with pytest.raises(ValueError, match=r"with a best\.pt, which would be replaced"):
            opened(tmp_path / "a", resume=resume)


def test_another_torchcls_of_the_same_format_is_read_and_another_format_is_named(tmp_path):
    kept(tmp_path, state(1))
    for version in ("0.0.1", "99.0"):
        rewritten(tmp_path / "last.pt", torchcls=version)
        folder, found = opened(tmp_path)
        assert found["torchcls"] == version
        folder.close()
    rewritten(tmp_path / "last.pt", format=4)
    words = rf"format 3, .* torchcls {__version__} .* got format 4 of torchcls 99\.0\. Install"
    with pytest.raises(ValueError, match=words):
        opened(tmp_path)
    save_checkpoint(tmp_path / "last.pt", torchcls="0.1.0", format=1, at_hand=None)
    with pytest.raises(ValueError, match=r"got format 1 of torchcls 0\.1\.0"):
        opened(tmp_path)


@pytest.mark.parametrize("left_out", ["torchcls", "format", "run", "model", "at", "told"])
def test_a_checkpoint_of_ones_own_is_no_state_of_a_run(tmp_path, left_out):
    kept(tmp_path, state(1))
    content = load_checkpoint(tmp_path / "last.pt")
    del content[left_out]
    save_checkpoint(tmp_path / "last.pt", **content)
    with pytest.raises(ValueError, match="must be the state of a run, got a checkpoint with "):
        opened(tmp_path)


# --- who holds it -------------------------------------------------------------------------------

HOLD = """
import os, sys, time
from pathlib import Path
from torchcls.survival.folder import Folder
folder = Folder(Path(sys.argv[1]), 60)
folder.open(resume=True, check=lambda state, path: None)
child = os.fork() if "fork" in sys.argv else 0
if child or "fork" not in sys.argv:
    print(child, flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds the folder, and what it says: the id of its child."""
    started = []

    def start(*arguments):
        command = [sys.executable, "-c", HOLD, str(tmp_path), *arguments]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        child = int(process.stdout.readline())
        started.append((process, child))
        return process, child

    yield start
    for process, child in started:
        process.kill()
        if child:
            os.kill(child, signal.SIGKILL)
        process.wait()
        process.stdout.close()


def test_a_process_that_holds_the_folder_is_named_and_a_killed_one_holds_nothing(tmp_path, holder):
    process, _ = holder()
    with pytest.raises(
        ValueError, match=rf"held by process {process.pid} on \S+\. Let that run end"
    ):
        opened(tmp_path)
    process.kill()
    process.wait()
    opened(tmp_path)


@pytest.mark.system
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks here")
def test_a_child_that_outlives_the_killed_process_does_not_hold_the_folder(tmp_path, holder):
    process, child = holder("fork")
    with pytest.raises(ValueError, match=rf"held by process {process.pid} on"):
        opened(tmp_path)
    process.kill()
    process.wait()
    os.kill(child, 0)  # it is there
    opened(tmp_path)


def is_free(folder):
    """Whether another process may have it."""
    import fcntl

    with open(folder / ".lock", "rb+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def test_a_run_that_this_process_has_left_does_not_stand_in_the_way(tmp_path):
    first, _ = opened(tmp_path)
    first.save(state(1))
    second, found = opened(tmp_path)
    assert found["at"]["epoch"] == 1
    assert not is_free(tmp_path)
    del first
    second.save(state(2))  # takes the lock over
    assert not is_free(tmp_path)
    second.close()
    second.close()
    assert is_free(tmp_path)


def test_a_folder_that_is_refused_is_not_held(tmp_path):
    kept(tmp_path, state(1))
    with pytest.raises(ValueError, match="must be a folder without a run") as caught:
        opened(tmp_path, resume=False)
    opened(tmp_path)
    assert caught.tb is not None


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOTSUP])
def test_where_there_are_no_locks_it_goes_without(tmp_path, monkeypatch, code):
    import fcntl

    def no_locks(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    first, _ = opened(tmp_path)
    second, _ = opened(tmp_path)
    monkeypatch.setitem(sys.modules, "fcntl", None)
    third, _ = opened(tmp_path)
    assert first is not second is not third


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="cannot count open files here")
def test_one_file_is_open_while_the_folder_is_held(tmp_path):
    before = len(os.listdir("/proc/self/fd"))
    folder, _ = opened(tmp_path)
    folder.save(state(1))
    assert len(os.listdir("/proc/self/fd")) == before + 1
    folder.close()
    assert len(os.listdir("/proc/self/fd")) == before
