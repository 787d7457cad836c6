"""A look without a trace: everything a forward pass may change is put back."""

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import torchcls as tc
from torchcls.preflight.reading import untouched


class Restless(nn.Module):
    """Changes whatever it can reach."""

    def __init__(self, *, fails=False):
        super().__init__()
        self.layer, self.norm, self.fails = nn.Linear(4, 3), nn.BatchNorm1d(3), fails
        self.steps, self.seen, self.cache = 0, [1], {"a": 1}
        self.register_buffer("mean", torch.zeros(3))

    def forward(self, x):
        self.steps += 1
        self.seen.append(x)
        self.cache["b"] = x
        self.new = x
        self.mean += 1
        self.layer.weight.data.clamp_(-0.1, 0.1)
        self.layer.bias = nn.Parameter(torch.ones(3))
        self.layer.register_forward_hook(lambda *given: None)
        torch.rand(1), random.random(), np.random.rand()
        x.mul_(2)
        if self.fails:
            raise RuntimeError("half way")
        return self.norm(self.layer(x))


def look(model):
    return {
        "weights": {name: value.clone() for name, value in model.state_dict().items()},
        "objects": [id(p) for p in (*model.parameters(), *model.buffers())],
        "attributes": (model.steps, list(model.seen), dict(model.cache), hasattr(model, "new")),
        "hooks": len(model.layer._forward_hooks),
        "modes": [module.training for module in model.modules()],
        "gradients": [p.grad for p in model.parameters()],
        "random": (torch.get_rng_state().tolist(), random.getstate(), repr(np.random.get_state())),
    }


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("mode", [False, True])
def test_check_leaves_no_trace(fails, mode):
    model = Restless(fails=fails).train(mode)
    model.norm.eval()
    batch = torch.randn(6, 4), torch.arange(6) % 3
    inputs, before = batch[0].clone(), look(model)
    tc.check(model, batch, nn.CrossEntropyLoss(), [tc.accuracy])
    after = look(model)
    for name, value in before["weights"].items():
        assert torch.equal(value, after["weights"][name]), name
    assert {k: v for k, v in before.items() if k != "weights"} == {
        k: v for k, v in after.items() if k != "weights"
    }
    assert torch.equal(batch[0], inputs)


def test_gradients_that_are_there_stay():
    model = nn.Linear(4, 3)
    model.weight.grad = torch.full((3, 4), 7.0)
    fired = []
    model.weight.register_post_accumulate_grad_hook(lambda p: fired.append(p))
    tc.check(model, (torch.randn(6, 4), torch.arange(6) % 3), nn.CrossEntropyLoss())
    assert torch.equal(model.weight.grad, torch.full((3, 4), 7.0))
    assert fired == []


def test_a_loss_with_a_state_is_looked_after_too():
    class Centres(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, outputs, targets):
            self.seen += 1
            return F.cross_entropy(outputs, targets)

    loss_fn = Centres()
    tc.check(nn.Linear(4, 3), (torch.randn(6, 4), torch.arange(6) % 3), loss_fn)
    assert loss_fn.seen == 0


def test_a_weight_that_was_not_changed_is_not_written():
    """A graph that holds it may still be used."""
    layer = nn.Linear(4, 3)
    outputs = layer(torch.randn(6, 4, requires_grad=True))
    version = layer.weight._version
    with untouched(layer):
        layer(torch.randn(2, 4))
    assert layer.weight._version == version
    outputs.sum().backward()


def test_lazy_layers_stay_lazy():
    model = nn.Sequential(nn.LazyLinear(3))
    assert tc.check(model, (torch.randn(6, 4), torch.arange(6) % 3), nn.CrossEntropyLoss()) == []
    assert isinstance(model[0].weight, nn.UninitializedParameter)
