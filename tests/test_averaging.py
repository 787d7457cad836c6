"""torchcls.averaging: one sum divided by one sum."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn, tensor

import torchcls as tc
from torchcls import averaging
from torchcls.averaging import Mean, Sum, averaging_of, divided

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
        (nn.CrossEntropyLoss(WEIGHT).forward, tensor([0, 1, 1, -100]), 7),
        (nn.CrossEntropyLoss(WEIGHT).__call__, tensor([0, 1, 1, -100]), 7),
        (nn.CrossEntropyLoss(), tensor([156, 0], dtype=torch.uint8), 2),  # -100 as uint8 is 156
    ],
)
def test_the_targets_say_what_a_part_counts(loss_fn, targets, expected):
    assert averaging_of(loss_fn).count((None, targets)) == expected


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
        averaging_of(nn.CrossEntropyLoss()).count((None, ["a"]))


@pytest.mark.parametrize(
    ("loss_fn", "is_sum"),
    [
        (nn.L1Loss(reduction="sum"), True),
        (nn.L1Loss(), False),
        (partial(F.l1_loss, reduction="sum"), True),
        (nn.L1Loss(reduction="sum").forward, True),
        (nn.HuberLoss(reduction="sum").__call__, True),
        (partial(F.l1_loss), False),
        (F.l1_loss, False),
    ],
)
def test_another_loss_of_torch_that_says_it_is_a_sum_is_one(loss_fn, is_sum):
    assert averaging_of(loss_fn).is_sum is is_sum
    x, y = torch.rand(7, 2), torch.rand(7, 2)
    model = nn.Identity()
    whole = tc.evaluate(model, [(x, y)], loss_fn=loss_fn).loss
    cut = tc.evaluate(model, list(zip(x.split(3), y.split(3), strict=True)), loss_fn=loss_fn).loss
    assert cut == pytest.approx(whole, rel=1e-6)


def hooked():
    loss_fn = nn.CrossEntropyLoss(WEIGHT)
    loss_fn.register_forward_hook(lambda module, inputs, output: output.sqrt())
    return loss_fn


def test_a_loss_that_somebody_hooked_into_keeps_its_count_and_loses_its_name():
    found = averaging_of(hooked())
    assert (found.count((None, tensor([0, 1, 1]))), found.name) == (7, None)
    assert averaging_of(hooked().forward).name is None


def test_a_loss_with_another_forward_or_call_is_one_of_the_users_own():
    replaced = nn.CrossEntropyLoss(WEIGHT)
    replaced.forward = lambda outputs, targets: outputs.mean()
    own = type("Own", (nn.CrossEntropyLoss,), {"__call__": lambda self, o, t: o.mean()})(WEIGHT)
    for loss_fn in (replaced, own):
        found = averaging_of(loss_fn)
        assert (found.count((None, tensor([0, 1, 1]))), found.name) == (3, None)


def test_a_batch_without_a_sample_adds_nothing_to_a_sum():
    x, y = torch.randn(4, 3), tensor([0, 1, 2, 0])
    loss_fn = nn.CrossEntropyLoss(reduction="sum")
    batches = [(x, y), (x[:0], y[:0])]
    found = tc.evaluate(nn.Identity(), batches, loss_fn=loss_fn).loss
    assert found == pytest.approx(F.cross_entropy(x, y).item(), rel=1e-6)


# ------------------------------------------------------------------ sums


@pytest.fixture
def no_float64(monkeypatch):
    """Sums as a device without float64 takes them: the terms stay float32 tensors."""
    monkeypatch.setattr(averaging, "wide", lambda number: number.detach())


@pytest.mark.usefixtures("no_float64")
def test_a_sum_without_float64_keeps_what_additions_round_off():
    terms = torch.full((20_000,), 0.1).tolist()
    exact = math.fsum(terms)
    total, naive = Sum(), tensor(0.0)
    for term in map(tensor, terms):
        total.add(term)
        naive = naive + term
    assert total.value() == pytest.approx(exact, rel=1e-12)
    assert abs(naive.item() - exact) > 1e-5 * exact  # so the test can fail


@pytest.mark.usefixtures("no_float64")
def test_a_sum_without_float64_keeps_small_terms_beside_large_ones_and_infinity():
    total = Sum()
    for term in [1e8, *[1.0] * 100, -1e8]:
        total.add(tensor(term))
    assert total.value() == 100
    total.add(tensor(math.inf))
    total.add(tensor(1.0))
    assert total.value() == math.inf


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32, torch.bfloat16])
def test_a_sum_of_tensors_loses_nothing(dtype):
    total = Sum()
    for term in [2**24, *[1] * 1000]:
        total.add(tensor(term, dtype=dtype))
    assert total.value() == 2**24 + 1000


# ------------------------------------------------------------------ weights of elements


@pytest.mark.parametrize(
    ("weight", "may"),
    [
        (torch.rand(3), True),  # for each class
        (torch.rand(1, 3), True),
        (torch.rand(5, 1), False),  # for each sample of this batch
        (torch.rand(5, 3), False),
        (tensor(2.0), True),
    ],
)
def test_weights_with_a_row_for_each_sample_keep_a_batch_whole(weight, may):
    assert averaging_of(nn.BCEWithLogitsLoss(weight)).may_be_cut(torch.rand(5, 3)) is may
    assert averaging_of(nn.BCEWithLogitsLoss(pos_weight=weight)).may_be_cut(torch.rand(5, 3)) is may


def test_weights_of_classes_never_do():
    assert averaging_of(nn.CrossEntropyLoss(torch.rand(3))).may_be_cut(tensor([0, 1, 2]))


def test_a_fraction_on_an_accelerator_is_divided_without_reading_it():
    numerator, denominator = (torch.empty((), device="meta") for _ in range(2))
    loss, count = divided((numerator, denominator))
    assert loss.device.type == count.device.type == "meta"
    assert loss.shape == count.shape == ()


@pytest.mark.parametrize(
    ("loss_fn", "law"),
    [
        (lambda o, t: (F.cross_entropy(o, t), tc.accuracy(o, t)), "both grow with the batch"),
        (lambda o, t: (F.cross_entropy(o, t), 1), "both grow with the batch"),
        (lambda o, t: (o.square().sum(), o.abs().sum()), "both depend on the model"),
        (lambda o, t: (o.square().mean(), o.abs().mean()), "both depend on the model"),
    ],
)
def test_a_second_number_that_is_no_count_is_refused(loss_fn, law):
    batch = torch.randn(6, 3), tensor([0, 1, 2, 0, 1, 2])
    with pytest.raises(ValueError, match=law):
        tc.evaluate(nn.Identity(), [batch], loss_fn=loss_fn)
    with pytest.raises(tc.ContractError if "grow" in law else ValueError, match=law):
        tc.fit(nn.Linear(3, 3), [batch], loss_fn=loss_fn, epochs=1, progress=False, device="cpu")


@pytest.mark.parametrize(
    "loss_fn",
    [
        lambda o, t: (F.cross_entropy(o, t, reduction="sum"), len(t)),
        lambda o, t: (o.abs()[o.abs() > 0.5].sum(), (o.abs() > 0.5).sum()),  # picks what counts
        lambda o, t: (o.sum(), o.detach().abs().sum()),  # weights that are detached
        lambda o, t: ((o[:6] * torch.ones(6, 3)).sum(), 6) if len(o) == 6 else 1 / 0,
        lambda o, t: (o.mul_(2).sum() if not o.requires_grad else o.sum() * 2, len(t)),
    ],
)
def test_what_counts_is_a_count_however_it_is_found(loss_fn):
    batch = torch.randn(6, 3), tensor([0, 1, 2, 0, 1, 2])
    assert math.isfinite(tc.evaluate(nn.Identity(), [batch], loss_fn=loss_fn).loss)
