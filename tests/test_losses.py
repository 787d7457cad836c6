"""torchcls.losses: which loss a callable is."""

from functools import partial

import pytest
import torch.nn.functional as F
from torch import nn, tensor

import torchcls as tc
from torchcls.losses import recognise

FORMS = {
    "cross_entropy": nn.CrossEntropyLoss,
    "nll_loss": nn.NLLLoss,
    "binary_cross_entropy": nn.BCELoss,
    "binary_cross_entropy_with_logits": nn.BCEWithLogitsLoss,
    "mse_loss": nn.MSELoss,
}


@pytest.mark.parametrize("name", FORMS)
def test_modules_functions_and_partials_are_recognised(name):
    for form in (FORMS[name](), getattr(F, name), getattr(tc, name)):
        assert recognise(form).name == name
        assert recognise(form).options["reduction"] == "mean"
    for function in (getattr(F, name), getattr(tc, name)):
        found = recognise(partial(partial(function, reduction="none"), reduction="sum"))
        assert (found.name, found.options["reduction"]) == (name, "sum")


def test_the_options_of_a_module_are_read():
    weight = tensor([1.0, 2.0])
    options = recognise(nn.CrossEntropyLoss(weight, ignore_index=7, label_smoothing=0.1)).options
    assert options["weight"] is weight
    assert (options["ignore_index"], options["label_smoothing"]) == (7, 0.1)


def test_a_subclass_is_known_unless_it_has_its_own_forward():
    class Renamed(nn.CrossEntropyLoss):
        pass

    class Doubled(nn.CrossEntropyLoss):
        def forward(self, outputs, targets):
            return 2 * super().forward(outputs, targets)

    assert recognise(Renamed()).name == "cross_entropy"
    assert recognise(Doubled()) is None


def test_a_callable_without_hash_is_unknown():
    class Unhashable:
        __hash__ = None

        def __eq__(self, other):
            return True

        def __call__(self, outputs, targets):
            return outputs.sum()

    assert recognise(Unhashable()) is None


def test_a_partial_that_binds_positions_is_unknown():
    assert recognise(partial(F.cross_entropy, tensor([[1.0]]))) is None
