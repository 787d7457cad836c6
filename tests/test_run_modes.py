"""Modes in run and evaluation: every module gets its own back, and looking changes nothing."""

import pytest
import torch
from torch import nn

from torchcls.evaluation import evaluating
from torchcls.run import training


def model_with_frozen_norm():
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    model[1].eval()
    return model


def modes(model):
    return [module.training for module in model.modules()]


@pytest.mark.parametrize("context", [training, evaluating])
def test_every_module_gets_its_own_mode_back_also_after_an_error(context):
    model = model_with_frozen_norm()
    found, grad_mode = modes(model), torch.is_grad_enabled()
    with pytest.raises(KeyError), context(model):
        raise KeyError
    assert modes(model) == found
    assert torch.is_grad_enabled() == grad_mode


def test_what_is_frozen_stays_frozen_where_the_root_trains():
    model = model_with_frozen_norm()
    with training(model):
        assert modes(model) == [True, True, False]


def test_a_root_in_evaluation_mode_is_trained_as_a_whole():
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)).eval()
    with training(model):
        assert modes(model) == [True, True, True]
    assert modes(model) == [False, False, False]


def test_evaluating_has_gradients_off():
    model = nn.Linear(2, 2)
    with evaluating(model):
        assert not torch.is_grad_enabled()
        assert not model.training


def test_evaluating_puts_the_random_state_back():
    model = nn.Linear(2, 2)
    before = torch.get_rng_state()
    with evaluating(model):
        torch.rand(3)
    assert torch.equal(torch.get_rng_state(), before)
