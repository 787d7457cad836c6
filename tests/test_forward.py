"""``forward=`` in every loop: models of several arguments, without a wrapper."""

import functools
from collections import UserDict

import pytest
import torch
from torch import nn

import torchcls as tc

CE = nn.CrossEntropyLoss()


class Masked(nn.Module):
    """A model of two arguments."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x, mask):
        return self.linear(x * mask)


class OneArgument(nn.Module):
    """The wrapper that everyone writes where there is no ``forward=``."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, inputs):
        return self.model(*inputs)


def masked(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Masked()


def batches(n=3):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, 8, 4, generator=generator)
    mask = (torch.rand(n, 8, 4, generator=generator) < 0.5).float()
    y = torch.arange(8).remainder(3)
    return [(inputs, y) for inputs in zip(x, mask, strict=True)]


def unpacked(model, inputs):
    return model(*inputs)


@pytest.mark.parametrize("micro_batch", [None, 3, "auto"])
def test_fit_gives_the_bits_of_a_wrapped_model(micro_batch):
    options = {
        "loss_fn": CE,
        "epochs": 2,
        "metrics": [tc.accuracy],
        "device": "cpu",
        "micro_batch": micro_batch,
        "progress": False,
    }
    model, wrapped = masked(), OneArgument(masked())
    ours = tc.fit(model, batches(), batches(), forward=unpacked, **options)
    theirs = tc.fit(wrapped, batches(), batches(), **options)
    for a, b in zip(model.parameters(), wrapped.parameters(), strict=True):
        assert torch.equal(a, b)
    for record, expected in zip(ours, theirs, strict=True):
        assert {**record, "time": 0} == {**expected, "time": 0}


def test_the_small_loops_take_it():
    model, wrapped = masked(), OneArgument(masked())
    for net, options in ((model, {"forward": unpacked}), (wrapped, {})):
        tc.backward(net, batches()[0], CE, micro_batch=3, **options)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        tc.train_one_epoch(net, batches(), CE, optimizer, **options)
    assert torch.equal(model.linear.weight, wrapped.model.linear.weight)
    assert torch.equal(model.linear.weight.grad, wrapped.model.linear.weight.grad)
    ours = tc.evaluate(model, batches(), loss_fn=CE, metrics=[tc.accuracy], forward=unpacked)
    assert ours == tc.evaluate(wrapped, batches(), loss_fn=CE, metrics=[tc.accuracy])
    predictions = tc.predict(model, batches(), loss_fn=CE, forward=unpacked)
    assert torch.equal(predictions.outputs, tc.predict(wrapped, batches(), loss_fn=CE).outputs)


def test_inputs_by_name():
    named = [({"x": x, "mask": mask}, y) for (x, mask), y in batches()]
    model = masked()
    found = tc.evaluate(model, named, loss_fn=CE, forward=lambda model, inputs: model(**inputs))
    assert found == tc.evaluate(model, batches(), loss_fn=CE, forward=unpacked)


def test_a_sequential_is_called_as_asked_and_not_layer_by_layer():
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    images, targets = torch.rand(3000, 1, 28, 28), torch.zeros(3000, dtype=torch.int64)

    def brighter(model, inputs):
        return model(inputs + 1)

    found = tc.evaluate(model, [(images, targets)], loss_fn=CE, forward=brighter)
    assert found.loss == tc.evaluate(model, [(images + 1, targets)], loss_fn=CE).loss


def test_check_takes_it_and_an_error_shows_it():
    assert tc.check(masked(), batches()[0], CE, forward=unpacked) == []
    (finding,) = tc.check(masked(), batches()[0], CE)
    assert finding.code == "batch-form"
    assert "forward=lambda model, inputs: model(*inputs)" in finding.message
    x, mask = batches()[0][0]
    (finding,) = tc.check(masked(), ({"x": x, "mask": mask}, batches()[0][1]), CE)
    assert "forward=lambda model, inputs: model(**inputs)" in finding.message


@pytest.mark.parametrize("kind", [dict, UserDict])
def test_inputs_that_a_layer_gets_whole_show_it_too(kind):
    inputs = kind(x=torch.zeros(8, 4))
    with pytest.raises(tc.ContractError, match=r"forward=lambda model, inputs: model\(\*\*inputs"):
        tc.fit(
            nn.Linear(4, 3),
            [(inputs, torch.zeros(8, dtype=torch.int64))],
            loss_fn=CE,
            epochs=1,
            device="cpu",
            progress=False,
        )


def test_what_is_no_function_is_refused_at_once():
    run = functools.partial(tc.train_one_epoch, masked(), batches(), CE)
    with pytest.raises(TypeError, match=r"forward must be callable as \(model, inputs\), got 3"):
        run(torch.optim.SGD(masked().parameters()), forward=3)
    with pytest.raises(TypeError, match="forward must be callable"):
        tc.epochs(masked(), batches(), loss_fn=CE, forward=3)
