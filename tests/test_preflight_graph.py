"""What was executed last, as the autograd graph tells it."""

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import torchcls as tc
from torchcls.preflight.graph import last_executed, normalises_single_values, ran_exp

LAYER = nn.Linear(4, 3)
X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))


def hand_softmax(z, dim=1):
    z = z - z.max(dim, keepdim=True).values
    return z.exp() / z.exp().sum(dim, keepdim=True)


@pytest.mark.parametrize(
    ("function", "name", "dim"),
    [
        (lambda z: z, "linear", None),
        (lambda z: z.softmax(1), "softmax", 1),
        (lambda z: z.softmax(-1), "softmax", 1),
        (lambda z: F.softmax(z, dim=0), "softmax", 0),
        (lambda z: z.log_softmax(-1), "log_softmax", 1),
        (torch.sigmoid, "sigmoid", None),
        (F.hardsigmoid, "sigmoid", None),
        (F.logsigmoid, "log_sigmoid", None),
        (torch.relu, "relu", None),
        (torch.tanh, "tanh", None),
        # by hand, ours included
        (hand_softmax, "softmax", 1),
        (lambda z: hand_softmax(z, 0), "softmax", 0),
        (lambda z: tc.softmax(z, dim=1), "softmax", 1),
        (lambda z: tc.log_softmax(z, dim=1), "log_softmax", 1),
        (tc.sigmoid, "sigmoid", None),
        (tc.log_sigmoid, "log_sigmoid", None),
        (lambda z: 1 / (1 + (-z).exp()), "sigmoid", None),
        (lambda z: torch.reciprocal(1 + torch.exp(-z)), "sigmoid", None),
        (lambda z: z - z.logsumexp(1, keepdim=True), "log_softmax", 1),
        (lambda z: z.softmax(1).log(), "log_softmax", 1),
        (lambda z: z.log_softmax(1).exp(), "softmax", 1),
        (lambda z: z.sigmoid().log(), "log_sigmoid", None),
        # moved, copied, cast, clamped, joined
        (lambda z: z[:, :1].sigmoid().squeeze(1), "sigmoid", None),
        (lambda z: z.sigmoid().flatten(), "sigmoid", None),
        (lambda z: z.softmax(1).double(), "softmax", 1),
        (lambda z: z.softmax(1).clone(), "softmax", 1),
        (lambda z: z.softmax(1).t(), "softmax", None),
        (lambda z: z.softmax(1) + 1e-9, "softmax", 1),
        (lambda z: z.softmax(1).clamp(1e-6, 1), "softmax", 1),
        (lambda z: torch.cat([1 - z.sigmoid(), z.sigmoid()], 1), "sigmoid", None),
        (lambda z: torch.stack([z.softmax(1), z.softmax(1)]), "softmax", None),
        (lambda z: z / 2, "linear", None),
        (lambda z: z + LAYER(X), "linear", None),
        # nobody can tell
        (lambda z: z * z.sigmoid(), None, None),
        (lambda z: 30 * torch.tanh(z / 30), None, None),
        (lambda z: F.normalize(z, dim=1), None, None),
        (lambda z: F.dropout(z.softmax(1)), None, None),
        (lambda z: z.softmax(1) @ torch.eye(3), None, None),
        (lambda z: torch.stack([z.softmax(1), z]), None, None),
        (lambda z: z.softmax(1).mean(0), None, None),
        (lambda z: 1 / (1 + z), None, None),
        (lambda z: z - (z.exp().sum(1, True) + z.sum(1, True)).log(), None, None),
        (lambda z: functools.reduce(lambda copy, _: copy.clone(), range(60), z), None, None),
    ],
)
def test_it_tells_what_was_executed_last(function, name, dim):
    found = last_executed(function(LAYER(X)))
    assert (found and found.name, found and found.dim) == (name, dim)


def test_a_tensor_without_graph_tells_nothing():
    assert last_executed(X) is None


def test_it_does_not_take_a_parameter_that_was_changed_for_a_weight():
    table = nn.Parameter(torch.zeros(4, 3))
    assert last_executed(X @ table).name == "linear"
    assert last_executed(X @ table.log_softmax(1)) is None


def test_it_reads_the_graph_after_the_backward_pass_too():
    outputs = LAYER(X).softmax(1)
    F.cross_entropy(outputs, torch.zeros(6, dtype=torch.long)).backward()
    assert last_executed(outputs).dim == 1


@pytest.mark.parametrize(
    ("model", "shape", "expected"),
    [
        (nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)), (6, 4), True),
        (nn.Sequential(nn.Conv2d(1, 2, 4), nn.BatchNorm2d(2)), (6, 1, 4, 4), True),
        (nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)), (6, 1, 4, 4), False),
        (nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3).eval()), (6, 4), False),
        (nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3)), (6, 4), False),
        # Twice the samples inside: a batch of one is two of them.
        (
            nn.Sequential(nn.Unflatten(1, (2, 2)), nn.Flatten(0, 1), nn.BatchNorm1d(2)),
            (6, 4),
            False,
        ),
    ],
)
def test_it_tells_where_one_sample_is_too_few_for_batch_statistics(model, shape, expected):
    outputs = model(torch.randn(shape, requires_grad=True))
    assert normalises_single_values(outputs, 6) is expected


def test_it_tells_whether_an_exponential_was_taken():
    assert ran_exp(hand_softmax(LAYER(X)))
    assert not ran_exp(LAYER(X).softmax(1))
