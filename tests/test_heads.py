"""torchcls.heads: the table at the centre, and what follows from a loss."""

from dataclasses import fields

import pytest
import torch
import torch.nn.functional as F
from torch import nn, tensor
from torch.testing import assert_close

import torchcls as tc
from torchcls import heads
from torchcls.losses import recognise

NAN = float("nan")
SCORES = tensor([[1.0, -2.0, 0.5], [0.0, 0.0, -1.0]])


@pytest.mark.parametrize("head", heads.TABLE, ids=lambda head: head.y)
def test_every_row_is_complete_and_names_what_exists(head):
    assert all(getattr(head, field.name) for field in fields(head))
    for cell in (head.loss_on_raw, head.loss_on_activated):
        if cell != "-":
            name = cell.split()[0]
            assert recognise(getattr(F, name)).name == name
    assert head.metric == "-" or callable(getattr(tc, head.metric))


def test_the_table_shows_every_cell():
    lines = heads.table().splitlines()
    assert len(lines) == 1 + len(heads.TABLE)
    for line, head in zip(lines[1:], heads.TABLE, strict=True):
        assert all(getattr(head, field.name) in line for field in fields(head))


@pytest.mark.parametrize(
    ("loss_fn", "expected"),
    [
        (nn.CrossEntropyLoss(), SCORES.softmax(1)),
        (nn.NLLLoss(), SCORES.exp()),
        (nn.BCEWithLogitsLoss(), SCORES.sigmoid()),
        (nn.BCELoss(), SCORES),
    ],
)
def test_the_loss_names_the_activation(loss_fn, expected):
    assert_close(heads.probabilities(SCORES, loss_fn), expected)


@pytest.mark.parametrize(
    ("loss_fn", "outputs", "expected"),
    [
        (nn.CrossEntropyLoss(), [[1.0, 3.0], [2.0, 2.0], [9.0, NAN]], [1, 0, -1]),
        (nn.NLLLoss(), [[-3.0, -1.0], [NAN, 0.0]], [1, -1]),
        (nn.BCEWithLogitsLoss(), [0.1, 0.0, -0.1, NAN], [1, 0, 0, -1]),
        (nn.BCELoss(), [0.6, 0.5, NAN], [1, 0, -1]),
        (nn.MSELoss(), [0.6, -7.0], [0.6, -7.0]),
    ],
)
def test_ties_go_to_the_lowest_class_and_nan_decides_nothing(loss_fn, outputs, expected):
    assert heads.decisions(tensor(outputs), loss_fn).tolist() == tensor(expected).tolist()


def test_a_loss_without_probabilities_says_so():
    with pytest.raises(ValueError, match=r"classification loss, got mse_loss"):
        heads.probabilities(SCORES, nn.MSELoss())
    with pytest.raises(ValueError, match=r"activation is known.*Apply your activation"):
        heads.decisions(SCORES, lambda outputs, targets: torch.zeros(()))
