"""torchcls.averaging: one sum divided by one sum."""

import math

import pytest
import torch
from torch import nn, tensor

from torchcls.averaging import Mean, averaging_of

WEIGHT = tensor([1.0, 3.0])


@pytest.mark.parametrize(
    ("loss_fn", "targets", "expected"),
    [
        (nn.CrossEntropyLoss(), tensor([0, 1, -100]), 2),
        (nn.CrossEntropyLoss(WEIGHT), tensor([0, 1, 1, -100]), 7),
        (nn.CrossEntropyLoss(WEIGHT, ignore_index=0), tensor([0, 1, 1]), 6),
        (nn.CrossEntropyLoss(WEIGHT), torch.rand(5, 2), 5),
        (nn.CrossEntropyLoss(), torch.rand(5, 2, 3), 15),
        (nn.CrossEntropyLoss(), tensor([[0, 1], [1, -100]]), 3),
        (nn.NLLLoss(WEIGHT), tensor([1, 1]), 6),
        (nn.BCEWithLogitsLoss(), torch.rand(5, 2), 10),
        (nn.MSELoss(), torch.rand(5, 2), 10),
        (nn.CrossEntropyLoss(reduction="sum"), tensor([0, -100]), 2),
        (lambda outputs, targets: None, torch.rand(5, 2), 5),
    ],
)
def test_the_targets_say_what_a_part_counts(loss_fn, targets, expected):
    assert averaging_of(loss_fn).count(targets) == expected


def test_a_mean_of_parts_is_one_sum_by_one_sum():
    mean = Mean()
    mean.add(tensor(1.0), 16)
    mean.add(tensor(0.0), 4)
    mean.add_sum(tensor(10), tensor(20))
    assert mean.value() == (16 + 10) / 40


def test_a_mean_of_nothing_is_nan():
    assert math.isnan(Mean().value())


def test_targets_that_are_no_tensor_are_refused():
    with pytest.raises(TypeError, match=r"targets must be a tensor.*got list"):
        averaging_of(nn.CrossEntropyLoss()).count(["a"])
