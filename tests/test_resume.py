"""What a run was told and is made of; whole runs are in test_survival.py."""

import functools
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim import SGD, lr_scheduler
from torch.utils.data import DataLoader, TensorDataset

import torchcls as tc
from torchcls.resume import Best, Buffers, check_told, differences, told

BATCHES = tc.Batches(torch.zeros(4, 1), torch.zeros(4), batch_size=2)


def words(**changed):
    optimizer = SGD([nn.Parameter(torch.ones(1))], lr=0.1)
    return told(
        **{
            "train": BATCHES,
            "valid": None,
            "loss_fn": nn.CrossEntropyLoss(),
            "metrics": [tc.accuracy],
            "optimizer": optimizer,
            "schedule": None,
            "epochs": 3,
            "precision": "float32",
            "micro_batch": "auto",
            **changed,
        }
    )


def test_an_argument_is_told_in_words_that_two_processes_share():
    found = words()
    assert found["train"] == (
        "4 samples in Batches(batch_size=2, shuffle=False, seed=0, drop_last=False)"
    )
    assert found["valid"] is None
    assert found["loss_fn"] == "cross_entropy"
    assert words(loss_fn=functools.partial(nn.functional.nll_loss))["loss_fn"] == "nll_loss"
    assert words(loss_fn=lambda o, t: 0)["loss_fn"] == "<lambda>"
    assert words(loss_fn=nn.L1Loss())["loss_fn"] == "L1Loss"
    loader = DataLoader(TensorDataset(torch.zeros(4)), batch_size=2)
    assert words(train=loader)["train"] == "DataLoader of 2 batches"


def test_the_number_of_epochs_is_told_where_a_schedule_depends_on_it():
    optimizer = SGD([nn.Parameter(torch.ones(1))], lr=0.1)
    assert words()["epochs"] is None
    assert words(schedule=tc.one_cycle())["epochs"] == 3
    assert words(schedule=lr_scheduler.StepLR(optimizer, 1))["epochs"] is None


def test_the_same_words_pass_and_others_are_named():
    check_told(words(), words(), Path("last.pt"))
    tensor_lr = SGD([nn.Parameter(torch.ones(1))], lr=torch.tensor(0.5))
    with pytest.raises(ValueError, match=r"^lr of the optimizer must be 0\.1 as .*, got 0\.5\. "):
        check_told(words(), words(optimizer=tensor_lr), Path("last.pt"))
    two = SGD([{"params": [nn.Parameter(torch.ones(1))]} for _ in range(2)], lr=0.1)
    with pytest.raises(ValueError, match="options of the optimizer must be "):
        check_told(words(), words(optimizer=two), Path("last.pt"))


def test_only_what_has_changed_is_said():
    assert differences({"a": 1, "b": 2}, {"a": 1, "b": 3}) == "b was 2, is 3"
    assert differences({"a": 1}, {"a": 1}) == ""


def test_buffers_are_put_back_in_place():
    model = nn.BatchNorm1d(2)
    kept = Buffers(model, print)
    running = model.running_mean
    model(torch.randn(8, 2))
    kept.keep()
    after = running.clone()
    model(torch.randn(8, 2))
    kept.put_back()
    assert torch.equal(running, after)
    assert model.running_mean is running
    Buffers(nn.Linear(2, 3)).keep()


def records(*values):
    return [{"valid_loss": value} for value in values]


@pytest.mark.parametrize(
    ("values", "is_best"),
    [((3.0,), True), ((3.0, 2.0), True), ((3.0, 3.0), False), ((3.0, 4.0), False)],
)
def test_the_last_is_best_where_it_beats_all_before(values, is_best):
    assert Best("valid_loss", [], has_valid=True).is_last(records(*values)) is is_best


def test_nan_is_never_the_best_and_stands_in_nobodys_way():
    best, nan = Best("valid_loss", [], has_valid=True), float("nan")
    assert not best.is_last(records(nan))
    assert not best.is_last(records(1.0, nan))
    assert best.is_last(records(nan, 5.0))


def test_a_column_that_holds_no_number_keeps_none_and_says_so_once():
    best = Best("max:matrix", {"matrix": tc.confusion_matrix}, has_valid=True)
    with pytest.warns(UserWarning, match="best must be a column of numbers, got matrix with"):
        assert not best.is_last([{"matrix": [[1, 2], [3, 4]]}])
    assert not best.is_last([{"matrix": [[1, 2], [3, 4]]}])
