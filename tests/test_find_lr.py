"""The test of rising learning rates: what it suggests, and that nothing of it stays."""

import copy
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import torchcls as tc
from torchcls.find_lr import LRCurve

CE = nn.CrossEntropyLoss()


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 3)
    )


def data(n=200):
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(n, 6, generator=generator)
    return inputs, (inputs @ torch.randn(6, 3, generator=generator)).argmax(1)


def loaders():
    dataset = TensorDataset(*data())
    own = torch.Generator().manual_seed(3)
    return {
        "Batches": tc.Batches(*data(), batch_size=16, shuffle=True),
        "list": [data(20), data(20)],
        "loader": DataLoader(dataset, batch_size=16, shuffle=True),
        "own generator": DataLoader(dataset, batch_size=16, shuffle=True, generator=own),
    }


def after(model, train, optimizer):
    """An epoch from here: equal only where all that moves in training is equal."""
    loss = tc.train_one_epoch(model, train, CE, optimizer)
    draws = torch.rand(1).item(), random.random(), np.random.rand()
    return loss, {k: v.clone() for k, v in model.state_dict().items()}, draws


@pytest.mark.parametrize("name", loaders())
def test_nothing_of_it_stays(name):
    found = []
    for looks in (False, True):
        model, train = network(), loaders()[name]
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        torch.manual_seed(7)
        random.seed(7)
        np.random.seed(7)
        tc.train_one_epoch(model, train, CE, optimizer)
        model[0].weight.grad = torch.ones(16, 6)
        gradient = model[0].weight.grad
        modes = [module.training for module in model.modules()]
        if looks:
            tc.find_lr(model, train, loss_fn=CE, optimizer=optimizer)
        assert model[0].weight.grad is gradient
        assert [module.training for module in model.modules()] == modes
        assert [group["lr"] for group in optimizer.param_groups] == [1e-2]
        found.append(after(model, train, optimizer))
    (loss, state, draws), (loss_2, state_2, draws_2) = found
    assert (loss, draws) == (loss_2, draws_2)
    for key, value in state.items():
        assert torch.equal(value, state_2[key]), key


def test_all_is_put_back_where_something_raises():
    model = network()
    before = copy.deepcopy(model.state_dict())

    def broken(outputs, targets):
        broken.calls += 1
        if broken.calls == 5:
            raise OSError("in the loss")
        return CE(outputs, targets)

    broken.calls = 0
    with pytest.raises(OSError, match="in the loss"):
        tc.find_lr(model, loaders()["Batches"], loss_fn=broken)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_the_rates_rise_from_1e_7_by_a_fifth_and_the_loss_is_the_running_mean():
    curve = tc.find_lr(network(), loaders()["Batches"], loss_fn=CE)
    assert curve.lrs[0] == pytest.approx(1e-7)
    assert curve.lrs[1] / curve.lrs[0] == pytest.approx(10 ** (8 / 100))
    assert len(curve.lrs) == len(curve.losses) <= 100
    assert 1e-4 < curve.suggestion < 1


def test_groups_keep_the_ratio_of_their_rates():
    model, seen = network(), []
    groups = [{"params": model[0].parameters(), "lr": 1e-3}, {"params": model[4].parameters()}]

    class Seeing(torch.optim.SGD):
        def step(self, closure=None):
            seen.append([group["lr"] for group in self.param_groups])
            return super().step(closure)

    tc.find_lr(model, loaders()["list"], loss_fn=CE, optimizer=Seeing(groups, lr=1e-2))
    assert seen[0] == pytest.approx([1e-8, 1e-7])


def test_an_early_divergence_ends_it_and_still_suggests():
    model, (inputs, _) = nn.Linear(6, 1), data()
    train = tc.Batches(inputs * 1e3, inputs.sum(1, keepdim=True) * 1e3, batch_size=16)
    sgd = torch.optim.SGD(model.parameters(), lr=1)
    curve = tc.find_lr(model, train, loss_fn=nn.MSELoss(), optimizer=sgd)
    assert len(curve.lrs) < 40
    assert all(loss < float("inf") for loss in curve.losses)
    assert 1e-8 < curve.suggestion < 1e-5


def test_the_longest_valley_by_hand():
    losses = [1.0] * 10 + [0.9, 0.95, 0.8, 0.7, 0.6, 0.5, 0.9, 0.9, 0.9]
    lrs = [float(i) for i in range(len(losses))]
    # The longest fall has 1.0, .9, .8, .7, .6, .5: six points up to number 15; 9 + 2 + 1 = 12.
    assert LRCurve(lrs, losses).suggestion == 12.0


def test_a_loss_that_never_falls_has_no_suggestion():
    with pytest.raises(ValueError, match="must fall at some learning rate"):
        _ = LRCurve([1e-7, 1e-6, 1e-5], [1.0, 1.0, 2.0]).suggestion


@pytest.mark.parametrize("train", [iter([data()]), data()[0], []])
def test_what_fit_refuses_is_refused(train):
    with pytest.raises((TypeError, ValueError), match="train must"):
        tc.find_lr(network(), train, loss_fn=CE)
