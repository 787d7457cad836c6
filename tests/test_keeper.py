"""The folder of a run: what stands in it after each save, and what is read from it."""

import time

import pytest
import torch

from torchcls import keeper as room
from torchcls.checkpoint import load_checkpoint
from torchcls.keeper import Keeper


def state(epochs, at_hand=None):
    return {"history": {"records": [{}] * epochs}, "at_hand": at_hand, "x": torch.ones(1)}


def opened(folder, **keywords):
    keeper = Keeper(folder, 60)
    found = keeper.open(**{"resume": True, "check": lambda state, path: None, **keywords})
    return keeper, found


def in_folder(folder):
    return {
        path.stem: (len(found["history"]["records"]), found["at_hand"])
        for path in folder.glob("*.pt")
        for found in [load_checkpoint(path)]
    }


def test_beside_the_last_state_stands_the_start_of_its_epoch_or_the_epoch_before(tmp_path):
    keeper, found = opened(tmp_path / "new")
    folder = keeper.folder
    assert found is None
    keeper.save(state(0))
    assert in_folder(folder) == {"last": (0, None)}
    keeper.save(state(0, 1))
    keeper.save(state(0, 2))
    assert in_folder(folder) == {"last": (0, 2), "epoch": (0, None)}
    keeper.save(state(1))
    assert in_folder(folder) == {"last": (1, None), "epoch": (0, None)}
    keeper.save(state(2))
    assert in_folder(folder) == {"last": (2, None), "epoch": (1, None)}
    keeper.save(state(2, 1))
    assert in_folder(folder) == {"last": (2, 1), "epoch": (2, None)}


def test_another_process_keeps_the_order(tmp_path):
    first, _ = opened(tmp_path)
    first.save(state(1))
    second, found = opened(tmp_path)
    assert len(found["history"]["records"]) == 1
    second.save(state(1, 4))
    assert in_folder(tmp_path) == {"last": (1, 4), "epoch": (1, None)}
    third, _ = opened(tmp_path)
    third.save(state(1, 5))
    assert in_folder(tmp_path) == {"last": (1, 5), "epoch": (1, None)}
    assert len(third.start_of(1)["history"]["records"]) == 1


def test_a_damaged_last_state_never_takes_the_place_of_the_whole_one(tmp_path):
    first, _ = opened(tmp_path)
    first.save(state(1))
    first.save(state(2))
    (tmp_path / "last.pt").write_bytes(b"")
    with pytest.warns(UserWarning, match=r"goes on from epoch\.pt"):
        second, _ = opened(tmp_path)
    second.save(state(1, 3))
    assert in_folder(tmp_path) == {"last": (1, 3), "epoch": (1, None)}


def test_the_earlier_state_alone_is_enough(tmp_path):
    first, _ = opened(tmp_path)
    first.save(state(1))
    first.save(state(2))
    (tmp_path / "last.pt").unlink()
    _, found = opened(tmp_path)
    assert len(found["history"]["records"]) == 1
    (tmp_path / "epoch.pt").write_bytes(b"")
    with pytest.raises(ValueError, match="empty file"):
        opened(tmp_path)


def test_a_last_state_that_vanishes_meanwhile_is_no_trouble(tmp_path):
    keeper, _ = opened(tmp_path)
    keeper.save(state(1))
    (tmp_path / "last.pt").unlink()
    keeper.save(state(2))
    assert in_folder(tmp_path) == {"last": (2, None)}


def test_what_does_not_fit_is_refused_unless_it_never_took_a_step(tmp_path):
    def refuse(state, path):
        assert path == tmp_path / "last.pt"
        raise ValueError("no")

    keeper, _ = opened(tmp_path)
    keeper.save(state(0))
    assert opened(tmp_path, check=refuse)[1] is None
    assert opened(tmp_path, resume=False)[1] is None
    keeper.save(state(0, 1))
    with pytest.raises(ValueError, match="no"):
        opened(tmp_path, check=refuse)
    with pytest.raises(ValueError, match="must be a folder without a run"):
        opened(tmp_path, resume=False)


def test_a_state_begun_anew_is_not_kept_as_an_earlier_one(tmp_path):
    old, _ = opened(tmp_path)
    old.save(state(0))
    new, _ = opened(tmp_path, resume=False)
    new.save(state(0))
    assert in_folder(tmp_path) == {"last": (0, None)}


def test_it_is_due_after_the_interval_and_a_save_begins_another(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    keeper, _ = opened(tmp_path)
    assert not keeper.is_due()
    now[0] = 160.0
    assert keeper.is_due()
    keeper.save(state(0))
    assert not keeper.is_due()


def test_before_training_an_error_is_raised_and_later_it_is_a_warning(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    keeper, _ = opened(tmp_path)
    keeper.save(state(1))
    monkeypatch.setattr(room, "save_checkpoint", full)
    with pytest.raises(OSError, match="No space"):
        keeper.save(state(1, 1), must=True)
    with pytest.warns(UserWarning, match=r"could not be written, .* goes on: .*No space"):
        assert not keeper.save(state(1, 1))
    with pytest.warns(UserWarning, match="No space"):
        assert not keeper.save_best(model={})
    assert in_folder(tmp_path)["last"] == (1, None)
