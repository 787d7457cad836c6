"""Why a forward pass raised, in terms of the layer in which it happened."""

import pytest
import torch
from torch import nn

import torchcls as tc

IMAGES = torch.rand(5, 1, 8, 8)
IDS = torch.arange(5) % 3


def cnn():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))


@pytest.mark.parametrize(
    ("model", "inputs", "code", "words"),
    [
        (cnn(), IMAGES[:, 0], "input-shape", "Conv2d '0' takes inputs (n, 1, h, w), but was given "
         "(5, 8, 8). Add the channel axis with inputs.unsqueeze(1), giving (5, 1, 8, 8)"),
        (cnn(), IMAGES.movedim(1, -1), "input-shape", "inputs.movedim(-1, 1)"),
        (cnn(), IMAGES.repeat(1, 3, 1, 1), "input-shape", "Conv2d(3, 4, ...)"),
        (cnn(), torch.rand(5, 1, 9, 9), "input-shape", "Linear '3' takes 144 features in the last "
         "axis, but was given (5, 196). Use nn.Linear(196, 3)"),
        (cnn(), torch.rand(5, 1, 2, 2), "input-shape", "must fit into what it is given"),
        (cnn(), IMAGES.double(), "input-dtype", "float32 weights, but was given float64. "
         "Use inputs.float()"),
        (cnn(), IMAGES.byte(), "input-dtype", "Use inputs.float() / 255"),
        (nn.Sequential(nn.Linear(64, 3)), IMAGES, "input-shape", "Put nn.Flatten() before it"),
        (nn.Embedding(9, 3), torch.rand(5), "input-dtype", "Use inputs.long()"),
        (nn.Embedding(4, 3), torch.arange(5), "input-shape", "nn.Embedding(5, 3)"),
        (nn.Embedding(4, 3), torch.arange(5) - 2, "input-shape", "was given the id -2. Number"),
        (nn.Embedding(9, 3), torch.arange(5).byte(), "input-dtype", "but was given uint8. Use"),
        (cnn(), IMAGES[:, None], "input-shape", "(n, 1, h, w), but was given (5, 1, 1, 8, 8)."),
        (nn.Linear(2, 3), {"x": torch.rand(5, 2)}, "batch-form", "given a dict"),
    ],
)  # fmt: skip
def test_it_names_the_layer_what_it_was_given_and_the_fix(model, inputs, code, words):
    (finding,) = tc.check(model, (inputs, IDS), nn.CrossEntropyLoss())
    assert (finding.code, finding.severity) == (code, "error")
    assert words in finding.message
    with pytest.raises(tc.ContractError) as stopped:
        tc.fit(model, [(inputs, IDS)], loss_fn=nn.CrossEntropyLoss(), progress=False)
    assert words in str(stopped.value)
    assert stopped.value.__cause__ is not None


def test_one_sample_for_batch_statistics_is_named():
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    (finding,) = tc.check(model, (torch.rand(1, 4), IDS[:1]), nn.CrossEntropyLoss())
    assert finding.code == "last-batch"
    assert "BatchNorm1d '1' cannot train on 1 sample at a time" in finding.message


class Fails(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        raise ZeroDivisionError("my own fault")


def test_what_it_cannot_explain_it_repeats_and_a_run_raises_as_it_is():
    (finding,) = tc.check(Fails(), (torch.rand(5, 4), IDS), nn.CrossEntropyLoss())
    assert finding.code == "forward-fails"
    assert "ZeroDivisionError on (5, 4) float32: my own fault" in finding.message
    with pytest.raises(ZeroDivisionError):
        tc.fit(Fails(), [(torch.rand(5, 4), IDS)], loss_fn=nn.CrossEntropyLoss(), progress=False)


def test_a_loss_that_fails_is_repeated_too():
    def loss_fn(outputs, targets):
        raise KeyError("labels")

    (finding,) = tc.check(nn.Linear(4, 3), (torch.rand(5, 4), IDS), loss_fn)
    assert finding.code == "loss-fails"
    assert "KeyError on (5, 3) float32: 'labels'" in finding.message


def flat_table():
    table = nn.Embedding(9, 3)
    table.weight = nn.Parameter(torch.zeros(9))
    return table


@pytest.mark.parametrize(
    ("model", "inputs", "words"),
    [
        (nn.Linear(4, 3), 3.5, "TypeError on float: linear()"),
        (flat_table(), torch.arange(5), "must be 2-D"),
        (nn.Embedding(9, 3), torch.arange(5).to_sparse(), "must be 1-D strided"),
    ],
)
def test_of_a_layer_whose_fault_it_does_not_know_it_repeats_the_error(model, inputs, words):
    (finding,) = tc.check(model, (inputs, IDS), nn.CrossEntropyLoss())
    assert finding.code == "forward-fails"
    assert words in finding.message
