"""torchcls.heads: the table at the centre, and what follows from a loss."""

import functools
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn, tensor
from torch.testing import assert_close

import torchcls as tc
from torchcls import heads
from torchcls.heads import KnownLoss, named, recognise

NAN = float("nan")
SCORES = tensor([[1.0, -2.0, 0.5], [0.0, 0.0, -1.0]])


@pytest.mark.parametrize("head", heads.TABLE, ids=lambda head: head.y)
def test_every_row_is_complete_and_names_what_exists(head):
    assert all(head.cells().values())
    for name in head.losses:
        assert recognise(getattr(F, name)).kind is heads.LOSSES[name]
    for metric in head.metrics:
        assert getattr(tc, metric.__name__) is metric


@pytest.mark.parametrize("head", heads.TABLE, ids=lambda head: head.y)
def test_the_losses_of_a_row_go_with_its_activation_and_targets(head):
    raw, *activated = (heads.LOSSES[name] for name in head.losses)
    assert (raw.within, raw.before) == (head.activation, None)
    for kind in activated:
        assert kind.before in (head.activation, f"log_{head.activation}")
        assert set(kind.targets.split()) <= set(head.targets.split())


def test_the_table_shows_every_cell():
    lines = heads.table().splitlines()
    assert len(lines) == 1 + len(heads.TABLE)
    for line, head in zip(lines[1:], heads.TABLE, strict=True):
        assert all(cell in line for cell in head.cells().values())


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
    with pytest.raises(ValueError, match=r"activation is known.*apply your activation"):
        heads.decisions(SCORES, lambda outputs, targets: torch.zeros(()))


# --- which loss a callable is -------------------------------------------------------------------

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


@pytest.mark.parametrize("kind", heads.LOSSES.values(), ids=lambda kind: kind.name)
def test_every_loss_whose_outputs_are_known_is_named_by_one_recogniser(kind):
    found = named(kind.module())
    assert (found.kind, str(found)) == (kind, kind.module.__name__)
    assert str(named(functools.partial(getattr(F, kind.name), reduction="sum"))) == kind.name
    is_in_table = any(kind.name in head.losses for head in heads.TABLE)
    assert recognise(kind.module()) == (found if is_in_table else None)


def test_a_compiled_loss_is_the_loss():
    compiled = torch.compile(nn.CrossEntropyLoss(ignore_index=7), backend="eager")
    assert recognise(compiled).options["ignore_index"] == 7
    assert recognise(compiled).name == "cross_entropy"
    assert str(recognise(compiled)) == "CrossEntropyLoss"


def test_a_loss_calls_itself_by_its_name_where_nobody_called_it():
    assert str(KnownLoss("nll_loss", {})) == "nll_loss"
