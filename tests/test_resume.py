"""What a run was told and is made of; whole runs are in test_survival.py."""

import functools
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import SGD, lr_scheduler
from torch.utils.data import DataLoader, TensorDataset

import torchcls as tc
from torchcls.resume import Best, Forward, check_told, differences, plain, told

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
    assert found["train"].startswith(
        "4 samples in Batches(batch_size=2, shuffle=False, seed=0, drop_last=False), checksum "
    )
    other = tc.Batches(torch.ones(4, 1), torch.zeros(4), batch_size=2)
    assert words(train=other)["train"] != found["train"]
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


def test_options_of_loss_and_schedule_are_named():
    smooth = nn.CrossEntropyLoss(label_smoothing=0.1)
    with pytest.raises(ValueError, match=r"label_smoothing of loss_fn must be 0\.0 as .*got 0\.1"):
        check_told(words(), words(loss_fn=smooth), Path("last.pt"))
    weighted = nn.CrossEntropyLoss(torch.tensor([1.0, 2.0]))
    with pytest.raises(ValueError, match=r"weight of loss_fn must be None as .*got \[1\.0, 2\.0\]"):
        check_told(words(), words(loss_fn=weighted), Path("last.pt"))
    optimizer = SGD([nn.Parameter(torch.ones(1))], lr=0.1)
    one, other = (lr_scheduler.StepLR(optimizer, 7, gamma) for gamma in (0.9, 0.5))
    with pytest.raises(ValueError, match=r"gamma of schedule must be 0\.9 as .*, got 0\.5"):
        check_told(words(schedule=one), words(schedule=other), Path("last.pt"))
    numpys = SGD([nn.Parameter(torch.ones(1))], lr=np.float64(0.1))
    check_told(words(), words(optimizer=numpys), Path("last.pt"))


def test_only_what_has_changed_is_said():
    assert differences({"a": 1, "b": 2}, {"a": 1, "b": 3}) == "b was 2, is 3"
    assert differences({"a": 1}, {"a": 1}) == ""


def test_buffers_are_put_back_in_place():
    model = nn.BatchNorm1d(2)
    kept = Forward(model, print)
    running = model.running_mean
    model(torch.randn(8, 2))
    kept.keep()
    after = running.clone()
    model(torch.randn(8, 2))
    assert kept.put_back()
    assert torch.equal(running, after)
    assert model.running_mean is running


class Moving(nn.Module):
    """Puts another buffer in the place of the old one, and has one that nobody could copy to."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))
        self.register_buffer("wide", torch.zeros(1).expand(5))
        self.register_buffer("large", torch.zeros(2**19))
        self.register_buffer("none", None)
        self.linear = nn.Linear(2, 2)

    def forward(self, x):
        self.seen = self.seen + 1
        self.large[0] += 1
        return x


def test_a_buffer_that_forward_replaces_is_put_back_too():
    model = Moving()
    kept = Forward(model)
    model(1)
    kept.keep()
    model(1)
    assert kept.put_back()
    assert model.seen == 1
    assert model.large[0] == 1


def test_a_large_buffer_that_does_not_move_is_not_copied_again():
    model = Moving()
    kept = Forward(model)
    copy = kept._kept[0, "large"][2]
    kept.keep()
    assert kept._kept[0, "large"][2] is copy


def test_a_parameter_that_forward_moves_is_noticed():
    model = Moving()
    kept = Forward(model)
    with torch.no_grad():
        model.linear.weight.mul_(0.9)
    assert not kept.put_back()


def test_numpys_numbers_become_pythons_wherever_they_stand():
    found = plain({"a": [np.float64(1.5), (np.int64(2), "x")], "b": np.arange(2)})
    assert found == {"a": [1.5, (2, "x")], "b": [0, 1]}
    assert type(found["a"][0]) is float
    assert type(found["a"][1][0]) is int


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
