"""torchcls.functional: known values, parity with torch, half precision, stability, properties."""

import inspect
import math
import re
import warnings
from collections.abc import Callable
from itertools import product
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from helpers import assert_both_raise, assert_same_as_torch, recent_torch
from hypothesis import given, settings
from torch import Tensor, tensor
from torch._subclasses import FakeTensorMode
from torch.autograd import gradcheck, gradgradcheck
from torch.testing import assert_close

from torchcls.functional import (
    binary_cross_entropy,
    binary_cross_entropy_with_logits,
    cross_entropy,
    log_sigmoid,
    log_softmax,
    mse_loss,
    nll_loss,
    one_hot,
    sigmoid,
    softmax,
)

INF, NAN = float("inf"), float("nan")
REDUCTIONS = ("none", "mean", "sum")
DTYPES = (torch.float32, torch.float64)
HALVES = (torch.float16, torch.bfloat16)
SCALES = (1, 30, 1000)
SHAPES = ((1, 1), (1, 2), (7, 3), (64, 10))
MORE_SHAPES = ((3,), (1,), (2, 3, 4), (2, 3, 2, 2), (2, 3, 2, 1, 2))
MSE_TAKES_WEIGHT = "weight" in inspect.signature(F.mse_loss).parameters


def checks_unbatched_targets():
    """Whether this torch looks at the targets of (C,) scores: 2.6 takes (C,) and refuses (1,)."""
    try:
        F.nll_loss(torch.zeros(3), torch.tensor([0, 1, 2]))
    except (RuntimeError, ValueError):
        return True
    return False


if_unbatched_targets_are_checked = pytest.mark.skipif(
    not checks_unbatched_targets(), reason="this torch does not check the targets of (C,) scores"
)

each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
each_half = pytest.mark.parametrize("dtype", HALVES, ids=str)
each_scale = pytest.mark.parametrize("scale", SCALES)
each_grid_point = pytest.mark.parametrize(
    ("shape", "scale"), [*product(SHAPES, SCALES), *product(MORE_SHAPES, (30,))], ids=str
)
each_reduction = pytest.mark.parametrize("reduction", REDUCTIONS)


@pytest.fixture
def random() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def normal(shape, random, dtype=torch.float64, scale=1.0, grad=True) -> Tensor:
    values = scale * torch.randn(shape, generator=random, dtype=torch.float64)
    return values.to(dtype).requires_grad_(grad)


def uniform(shape, random, dtype=torch.float64, low=0.0, high=1.0, grad=False) -> Tensor:
    values = low + (high - low) * torch.rand(shape, generator=random, dtype=torch.float64)
    return values.to(dtype).requires_grad_(grad)


def without_classes(shape) -> tuple[int, ...]:
    return tuple(shape[:1]) + tuple(shape[2:]) if len(shape) > 1 else ()


def classes_in(shape) -> int:
    return shape[1] if len(shape) > 1 else shape[0]


def class_ids(shape, random) -> Tensor:
    """Class ids to go with scores of the given shape."""
    return torch.randint(classes_in(shape), without_classes(shape), generator=random)


# ------------------------------------------------------------------ known values


def test_softmax_of_logarithms_is_their_share():
    x = tensor([1.0, 2.0, 3.0], dtype=torch.float64).log()
    assert_close(softmax(x, 0), tensor([1 / 6, 1 / 3, 1 / 2], dtype=torch.float64))


def test_softmax_of_the_lecture():
    expected = tensor([0.1065, 0.1065, 0.7870])
    assert_close(softmax(tensor([-2.0, -2.0, 0.0]), 0), expected, atol=5e-5, rtol=0)  # 4 digits


def test_softmax_normalises_along_the_given_dimension_only():
    x = tensor([[0.0, math.log(3.0)], [0.0, 0.0]])
    assert_close(softmax(x, 1), tensor([[0.25, 0.75], [0.5, 0.5]]))
    assert_close(softmax(x, 0), tensor([[0.5, 0.75], [0.5, 0.25]]))


def test_log_softmax_of_equal_scores_is_minus_log_of_their_number():
    assert_close(log_softmax(torch.zeros(2, 8), 1), torch.full((2, 8), -math.log(8)))


def test_sigmoid_turns_log_odds_into_probabilities():
    odds = tensor([1.0, 3.0, 1 / 3])
    assert_close(sigmoid(odds.log()), tensor([1 / 2, 3 / 4, 1 / 4]))
    assert_close(log_sigmoid(odds.log()), tensor([1 / 2, 3 / 4, 1 / 4]).log())


def test_one_hot_has_its_1_at_the_class():
    assert one_hot(tensor([1, 0])).tolist() == [[0, 1], [1, 0]]
    assert one_hot(tensor(2), 4).tolist() == [0, 0, 1, 0]


def test_nll_loss_by_hand():
    log_probs = tensor([[0.5, 0.5], [0.75, 0.25], [0.1, 0.9]]).log()
    targets = tensor([0, 1, 0])
    weight = tensor([1.0, 3.0])
    rows = tensor([math.log(2), 3 * math.log(4), math.log(10)])
    assert_close(nll_loss(log_probs, targets, weight, reduction="none"), rows)
    assert_close(nll_loss(log_probs, targets, weight, reduction="sum"), rows.sum())
    assert_close(nll_loss(log_probs, targets, weight), rows.sum() / (1 + 3 + 1))
    expected = (math.log(2) + math.log(10)) / 2
    assert_close(nll_loss(log_probs, targets, ignore_index=1), tensor(expected))


def test_cross_entropy_of_uniform_logits_is_log_of_the_class_count():
    assert_close(cross_entropy(torch.zeros(5, 10), torch.arange(5)), tensor(math.log(10)))


def test_cross_entropy_with_weights_and_smoothing_by_hand():
    logits = tensor([[math.log(1 / 2), math.log(1 / 4), math.log(1 / 4)]])
    weight = tensor([2.0, 1.0, 4.0])
    to_all = (2 * math.log(2) + 1 * math.log(4) + 4 * math.log(4)) / 3
    row = 0.7 * 2 * math.log(2) + 0.3 * to_all
    loss = {
        r: cross_entropy(logits, tensor([0]), weight, label_smoothing=0.3, reduction=r)
        for r in REDUCTIONS
    }
    assert_close(loss["none"], tensor([row]))
    assert_close(loss["sum"], tensor(row))
    assert_close(loss["mean"], tensor(row / 2))  # the weight of class 0


def test_cross_entropy_of_soft_rows_divides_by_their_number_whatever_the_weights():
    logits = tensor([[1 / 2, 1 / 4, 1 / 4], [1 / 2, 1 / 4, 1 / 4]]).log()
    rows = tensor([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]])
    first, second = 0.5 * math.log(2) + 0.5 * math.log(4), math.log(4)
    assert_close(cross_entropy(logits, rows, reduction="none"), tensor([first, second]))
    weighted = 0.5 * 3 * math.log(2) + 0.5 * math.log(4) + 5 * math.log(4)
    assert_close(cross_entropy(logits, rows, tensor([3.0, 1.0, 5.0])), tensor(weighted / 2))


def test_binary_cross_entropy_by_hand():
    probs, targets = tensor([0.5, 0.75, 0.0]), tensor([1.0, 0.0, 1.0])
    rows = tensor([math.log(2), math.log(4), 100.0])
    assert_close(binary_cross_entropy(probs, targets, reduction="none"), rows)
    weight = tensor([2.0, 3.0, 0.0])
    expected = (2 * math.log(2) + 3 * math.log(4)) / 3  # three elements, whatever the weights
    assert_close(binary_cross_entropy(probs, targets, weight), tensor(expected))


def test_binary_cross_entropy_keeps_the_digits_of_a_small_loss():
    tiny = tensor([1e-12], dtype=torch.float64)  # -log(1 - p) is p, up to p^2 / 2
    assert_close(binary_cross_entropy(tiny, torch.zeros_like(tiny)), tiny[0], rtol=1e-11, atol=0)


def test_binary_cross_entropy_with_logits_by_hand():
    logits, targets = tensor([0.0, math.log(3.0), -1000.0]), tensor([1.0, 0.0, 1.0])
    rows = tensor([math.log(2), math.log(4), 1000.0])
    loss = binary_cross_entropy_with_logits
    assert_close(loss(logits, targets, reduction="none"), rows)
    assert_close(loss(logits, targets, reduction="sum"), rows.sum())
    assert_close(
        loss(logits, targets, tensor([1.0, 1.0, 2.0]), pos_weight=tensor(3.0)),
        tensor((3 * math.log(2) + math.log(4) + 2 * 3 * 1000) / 3),
    )


def test_mse_loss_by_hand():
    outputs, targets, weight = tensor([1.0, 2.0, 3.0]), torch.zeros(3), tensor([1.0, 2.0, 0.0])
    assert_close(mse_loss(outputs, targets, reduction="none"), tensor([1.0, 4.0, 9.0]))
    assert_close(mse_loss(outputs, targets), tensor(14 / 3))
    assert_close(mse_loss(outputs, targets, weight=weight, reduction="sum"), tensor(9.0))
    assert_close(mse_loss(outputs, targets, weight=weight), tensor(9 / 3))


@pytest.mark.parametrize("loss", [nll_loss, cross_entropy])
def test_the_mean_of_nothing_is_nan_and_the_sum_0(loss):
    scores, targets = torch.zeros(2, 3), tensor([-100, -100])
    assert loss(scores, targets).isnan()
    assert loss(scores, targets, reduction="sum") == 0
    assert loss(scores[:0], targets[:0]).isnan()
    assert loss(scores[:0], targets[:0], reduction="sum") == 0


# ------------------------------------------------------------------ parity: activations


@each_dtype
@each_scale
@pytest.mark.parametrize("shape", SHAPES + MORE_SHAPES + ((), (0,), (0, 3), (3, 0)), ids=str)
def test_activations_are_torchs(dtype, scale, shape, random):
    x = normal(shape, random, dtype, scale)
    assert_same_as_torch(sigmoid, torch.sigmoid, x)
    assert_same_as_torch(log_sigmoid, F.logsigmoid, x)
    for dim in range(-max(x.ndim, 1), max(x.ndim, 1)):
        assert_same_as_torch(softmax, F.softmax, x, dim)
        assert_same_as_torch(log_softmax, F.log_softmax, x, dim)


@pytest.mark.parametrize("pair", [(softmax, F.softmax), (log_softmax, F.log_softmax)])
def test_softmax_casts_first(pair, random):
    ints = torch.randint(-5, 5, (4, 3), generator=random)
    assert_same_as_torch(*pair, ints, 1, dtype=torch.float32)
    wide = normal((4, 3), random, torch.float32)
    assert_same_as_torch(*pair, wide, 1, dtype=torch.float64)
    # Cast first, 1e5 is inf in half precision and the row NaN; cast last, it would be (1, 0).
    overflows = tensor([1e5, 0.0])
    assert_same_as_torch(*pair, overflows, 0, dtype=torch.float16)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int32, torch.int64], ids=str)
def test_sigmoid_promotes_integers(dtype):
    assert_same_as_torch(sigmoid, torch.sigmoid, tensor([0, 1]).to(dtype))


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
def test_sigmoid_takes_complex_numbers(dtype, random):
    x = torch.complex(normal((9,), random, grad=False), normal((9,), random, grad=False))
    assert_same_as_torch(sigmoid, torch.sigmoid, x.to(dtype).requires_grad_())
    assert_close(sigmoid(tensor([-1000 + 1j])), tensor([0j]))  # NaN in torch


def test_one_hot_is_torchs(random):
    for shape, num_classes in product([(), (5,), (2, 3), (1, 1, 2)], [-1, 4, 7]):
        targets = torch.randint(4, shape, generator=random)
        assert_same_as_torch(one_hot, F.one_hot, targets, num_classes)
    for shape in [(0,), (2, 0), (0, 3)]:
        assert_same_as_torch(one_hot, F.one_hot, torch.zeros(shape, dtype=torch.int64), 3)


# ------------------------------------------------------------------ parity: one class out of C


@each_dtype
@each_grid_point
def test_losses_of_class_ids_are_torchs(dtype, scale, shape, random):
    logits = normal(shape, random, dtype, scale)
    log_probs = F.log_softmax(logits.detach(), 1 if len(shape) > 1 else 0).requires_grad_()
    targets = class_ids(shape, random)
    some_ignored = torch.where(torch.rand(targets.shape, generator=random) < 0.3, -100, targets)
    weight = uniform((classes_in(shape),), random, dtype, low=0.1)
    options = product((targets, some_ignored), (None, weight), REDUCTIONS)
    for ids, class_weight, reduction in options:
        arguments = (ids, class_weight)
        assert_same_as_torch(nll_loss, F.nll_loss, log_probs, *arguments, reduction=reduction)
        for smoothing in (0.0, 0.1):
            assert_same_as_torch(
                cross_entropy,
                F.cross_entropy,
                logits,
                *arguments,
                reduction=reduction,
                label_smoothing=smoothing,
            )


@each_dtype
@each_grid_point
def test_cross_entropy_of_soft_rows_is_torchs(dtype, scale, shape, random):
    logits = normal(shape, random, dtype, scale)
    rows = uniform(shape, random, dtype, grad=True)  # rows need not sum to 1
    weight = uniform((classes_in(shape),), random, dtype, grad=True)
    options = product((None, weight), REDUCTIONS, (0.0, 0.1))
    for class_weight, reduction, smoothing in options:
        assert_same_as_torch(
            cross_entropy,
            F.cross_entropy,
            logits,
            rows,
            class_weight,
            reduction=reduction,
            label_smoothing=smoothing,
        )


@each_reduction
@pytest.mark.parametrize("smoothing", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_cross_entropy_corners_are_torchs(reduction, smoothing, weighted, random):
    options = {"reduction": reduction, "label_smoothing": smoothing}
    weight = tensor([0.0, 0.5, 2.0], dtype=torch.float64) if weighted else None

    def same(logits: Tensor, targets: Tensor, **more: Any) -> None:
        assert_same_as_torch(
            cross_entropy, F.cross_entropy, logits, targets, weight, **options, **more
        )

    rows = normal((4, 3), random)
    same(rows, torch.full((4,), -100))  # all ignored: NaN or 0, and no gradient
    same(rows, torch.zeros(4, dtype=torch.int64))  # with weights: a denominator of 0
    same(rows, tensor([0, 1, 2, 1]), ignore_index=1)  # an ignored class in range
    same(rows, tensor([-1, 1, 2, -1]), ignore_index=-1)
    same(rows, tensor([7, 1, 2, 7]), ignore_index=7)
    same(rows, rows.detach().softmax(1), ignore_index=-1)
    for shape in [(0, 3), (0, 3, 2), (2, 3, 0)]:
        same(normal(shape, random), torch.zeros(without_classes(shape), dtype=torch.int64))
        same(normal(shape, random), torch.zeros(shape, dtype=torch.float64))


@pytest.mark.parametrize("shape", [(5, 3), (3,)], ids=str)
def test_uint8_class_ids_are_taken_as_numbers(shape, random):
    logits = normal(shape, random)
    targets = class_ids(shape, random).to(torch.uint8)
    assert_same_as_torch(cross_entropy, F.cross_entropy, logits, targets)
    assert_same_as_torch(nll_loss, F.nll_loss, logits, targets, ignore_index=1)


def test_uint8_156_is_not_minus_100():
    logits = torch.zeros(1, 200)
    assert_close(cross_entropy(logits, tensor([156], dtype=torch.uint8)), tensor(math.log(200)))


@if_unbatched_targets_are_checked
def test_a_single_target_may_keep_its_dimension(random):
    logits = normal((3,), random, grad=False)  # torch cannot differentiate this one
    for reduction in REDUCTIONS:
        assert_same_as_torch(nll_loss, F.nll_loss, logits, tensor([1]), reduction=reduction)
        assert_same_as_torch(
            cross_entropy, F.cross_entropy, logits, tensor([1]), reduction=reduction
        )


def test_soft_rows_promote_dtypes_as_torch(random):
    every = (torch.float16, torch.bfloat16, *DTYPES)
    for logits, rows, weight in product(every, every, (None, *every, torch.int64)):
        arguments = (
            torch.zeros(2, 3, dtype=logits),
            torch.ones(2, 3, dtype=rows),
            None if weight is None else torch.ones(3, dtype=weight),
        )
        assert cross_entropy(*arguments).dtype == F.cross_entropy(*arguments).dtype


def test_a_weight_may_require_a_gradient_under_no_grad(random):
    logits, targets = normal((2, 3), random, grad=False), tensor([0, 2])
    weight = uniform((3,), random, grad=True)
    with torch.no_grad():
        assert_close(
            cross_entropy(logits, targets, weight), F.cross_entropy(logits, targets, weight)
        )


# ------------------------------------------------------------------ parity: 0 or 1


def broadcasting(shape) -> list[tuple[int, ...]]:
    """Shapes that broadcast to the given one."""
    shorter = [shape[i:] for i in range(len(shape) + 1)]
    return [*shorter, tuple(1 for _ in shape), (*shape[:-1], 1)] if shape else [()]


@each_dtype
@pytest.mark.parametrize("shape", [(), (1,), (7,), (4, 3), (2, 1, 3), (0,), (0, 3)], ids=str)
def test_binary_cross_entropy_is_torchs(dtype, shape, random):
    probs = uniform(shape, random, dtype, low=0.01, high=0.99, grad=True)
    targets = uniform(shape, random, dtype, grad=True)
    decided = targets.detach().round()
    weights = [None] + [uniform(small, random, dtype) for small in broadcasting(shape)]
    for weight, t, reduction in product(weights, (targets, decided), REDUCTIONS):
        assert_same_as_torch(
            binary_cross_entropy, F.binary_cross_entropy, probs, t, weight, reduction=reduction
        )


@each_dtype
def test_binary_cross_entropy_has_torchs_slopes_at_the_ends(dtype):
    p = tensor([0.0, 1.0, 1e-45, 1e-30, 1e-13, 1e-12, 2e-12, 1e-7, 9e-5, 0.5, 1 - 1e-7, 1 - 1e-13])
    p = torch.cat([p.double(), 1 - p.double()]).to(dtype)
    probs = p.repeat(3).requires_grad_()
    targets = tensor([0.0, 1.0, 0.4], dtype=dtype).repeat_interleave(len(p))
    assert_same_as_torch(
        binary_cross_entropy, F.binary_cross_entropy, probs, targets, reduction="none"
    )
    targets.requires_grad_()
    slopes = [
        torch.autograd.grad(loss(probs, targets, reduction="sum"), targets)[0]
        for loss in (binary_cross_entropy, F.binary_cross_entropy)
    ]
    assert_close(slopes[0], slopes[1].clamp(-100, 100))


@each_dtype
@each_scale
@pytest.mark.parametrize("shape", [(), (7,), (4, 3), (2, 1, 3), (0, 3)], ids=str)
def test_binary_cross_entropy_with_logits_is_torchs(dtype, scale, shape, random):
    logits = normal(shape, random, dtype, scale)
    targets = uniform(shape, random, dtype, grad=True)
    smaller = [None] + [uniform(small, random, dtype) for small in broadcasting(shape)]
    pairs = [(None, None), *zip(smaller, reversed(smaller), strict=True)]
    for (weight, pos_weight), reduction in product(pairs, REDUCTIONS):
        assert_same_as_torch(
            binary_cross_entropy_with_logits,
            F.binary_cross_entropy_with_logits,
            logits,
            targets,
            weight,
            reduction=reduction,
            pos_weight=pos_weight,
        )


def test_binary_losses_have_torchs_dtypes():
    every = (torch.float16, torch.bfloat16, *DTYPES)
    weights = (None, *every, torch.int64, torch.bool)
    for dtype, weight in product(every, weights):
        half = torch.full((2,), 0.5, dtype=dtype)
        w = None if weight is None else torch.ones(2, dtype=weight)
        assert binary_cross_entropy(half, half, w).dtype == dtype
        assert F.binary_cross_entropy(half, half, w).dtype == dtype
        for other in every:
            arguments = (half, half.to(other), w)
            ours = binary_cross_entropy_with_logits(*arguments)
            assert ours.dtype == F.binary_cross_entropy_with_logits(*arguments).dtype


# ------------------------------------------------------------------ parity: a real number


@each_dtype
@each_scale
@pytest.mark.parametrize("shape", [(), (1,), (7,), (4, 3), (2, 1, 3), (0,), (0, 3)], ids=str)
def test_mse_loss_is_torchs(dtype, scale, shape, random):
    outputs, targets = (normal(shape, random, dtype, scale) for _ in range(2))
    weights = [None]
    if MSE_TAKES_WEIGHT:
        weights.append(uniform(shape, random, dtype, low=0.1, grad=True))
    for weight, reduction in product(weights, REDUCTIONS):
        options = {"reduction": reduction} | ({} if weight is None else {"weight": weight})
        assert_same_as_torch(mse_loss, F.mse_loss, outputs, targets, **options)


@pytest.mark.filterwarnings("ignore:Using a target size", "ignore:targets of shape")
@pytest.mark.parametrize("other", [(), (1,), (3,), (2, 1), (4, 2, 3)], ids=str)
def test_mse_loss_broadcasts_as_torch(other, random):
    outputs, targets = normal((2, 3), random), normal(other, random)
    for reduction in REDUCTIONS:
        assert_same_as_torch(mse_loss, F.mse_loss, outputs, targets, reduction=reduction)
        assert_same_as_torch(mse_loss, F.mse_loss, targets, outputs, reduction=reduction)


def test_mse_loss_warns_that_it_broadcasts():
    message = "targets of shape (3, 1) are broadcast against outputs of shape (3,)"
    with pytest.warns(UserWarning, match=re.escape(message)) as caught:
        mse_loss(torch.zeros(3), torch.zeros(3, 1))
    assert caught[0].filename == __file__


@pytest.mark.filterwarnings("ignore:Using a target size", "ignore:targets of shape")
def test_mse_loss_promotes_dtypes_as_torch():
    every = (*HALVES, *DTYPES, torch.int64, torch.bool)
    for outputs, targets in product(every, every):
        if not (outputs.is_floating_point or targets.is_floating_point):
            continue
        for shape in [(2,), ()]:
            arguments = (torch.ones(2).to(outputs), torch.ones(shape).to(targets))
            assert mse_loss(*arguments).dtype == F.mse_loss(*arguments).dtype
    if MSE_TAKES_WEIGHT:
        for outputs, weight in product((*HALVES, *DTYPES), every):
            arguments = (torch.ones(2).to(outputs), torch.zeros(2).to(outputs))
            options = {"weight": torch.ones(2).to(weight)}
            assert mse_loss(*arguments, **options).dtype == F.mse_loss(*arguments, **options).dtype


# ------------------------------------------------------------------ half precision


def error_in_half(
    function: Callable[..., Tensor], exact: Callable[..., Tensor], *args: Any, **kwargs: Any
) -> tuple[float, float]:
    """Mean error of value and gradient in half precision against torch in float64."""

    def run(which: Callable[..., Tensor], convert: Callable[[Any], Any]) -> tuple[Tensor, Tensor]:
        converted = [convert(value) for value in args]
        x = converted[0].detach().requires_grad_()
        value = which(x, *converted[1:], **{k: convert(v) for k, v in kwargs.items()})
        upstream = torch.linspace(0.5, 1.5, value.numel(), dtype=torch.float64)
        upstream = upstream.to(args[0].dtype).to(value.dtype).reshape(value.shape)
        (gradient,) = torch.autograd.grad(value, x, upstream)
        return value.detach().double(), gradient.double()

    def widen(value: Any) -> Any:
        floating = isinstance(value, Tensor) and value.is_floating_point()
        return value.double() if floating else value

    got, expected = run(function, lambda value: value), run(exact, widen)
    value_error, gradient_error = (
        (a - b).abs().mean().item() for a, b in zip(got, expected, strict=True)
    )
    return value_error, gradient_error


@each_half
def test_half_precision_is_no_worse_than_torchs(dtype, random):
    x = normal((64, 10), random, dtype, 3, grad=False)
    ids = class_ids(x.shape, random)
    rows = F.softmax(normal(x.shape, random, grad=False), 1).to(dtype)
    between = uniform(x.shape, random, dtype, low=0.02, high=0.98)
    decided = (rows > 0.1).to(dtype)
    weight = uniform((10,), random, dtype, low=0.1)
    bce_logits = F.binary_cross_entropy_with_logits
    cases: list[tuple[Any, ...]] = [
        (softmax, F.softmax, x, 1),
        (log_softmax, F.log_softmax, x, 1),
        (sigmoid, torch.sigmoid, x),
        (log_sigmoid, F.logsigmoid, x),
    ]
    for reduction in REDUCTIONS:
        r = {"reduction": reduction}
        smooth = r | {"label_smoothing": 0.1}
        cases += [
            (nll_loss, F.nll_loss, F.log_softmax(x, 1), ids, weight, r),
            (cross_entropy, F.cross_entropy, x, ids, weight, r),
            (cross_entropy, F.cross_entropy, x, ids, weight, smooth),
            (cross_entropy, F.cross_entropy, x, rows, weight, smooth),
            (binary_cross_entropy, F.binary_cross_entropy, between, decided, weight, r),
            (binary_cross_entropy_with_logits, bce_logits, x, decided, weight, r),
            (mse_loss, F.mse_loss, x, rows, r),
        ]
    for ours, theirs, *args in cases:
        kwargs = args.pop() if isinstance(args[-1], dict) else {}
        our_errors = error_in_half(ours, theirs, *args, **kwargs)
        their_errors = error_in_half(theirs, theirs, *args, **kwargs)
        for what, our_error, their_error in zip(
            ("value", "gradient"), our_errors, their_errors, strict=True
        ):
            assert our_error <= their_error, (ours.__name__, what, kwargs, our_error, their_error)


@each_half
@pytest.mark.parametrize("function", [sigmoid, log_sigmoid])
def test_half_precision_rounds_once(function, dtype):
    x = torch.linspace(-20, 20, 997).to(dtype)
    assert torch.equal(function(x), function(x.float()).to(dtype))


@each_half
def test_half_precision_losses_keep_the_dtype(dtype):
    x, half = torch.zeros(2, 3, dtype=dtype), torch.full((2, 3), 0.5, dtype=dtype)
    for loss in (
        softmax(x, 1),
        cross_entropy(x, tensor([0, 1])),
        cross_entropy(x, half),
        nll_loss(x, tensor([0, 1])),
        binary_cross_entropy(half, half),
        binary_cross_entropy_with_logits(x, half),
        mse_loss(x, half),
    ):
        assert loss.dtype == dtype


@each_half
def test_losses_are_float32_under_autocast(dtype, random):
    x, weight = normal((4, 3), random, dtype), torch.ones(3)  # weights are rarely half precision
    targets, rows = tensor([0, 2, 1, -100]), uniform((4, 3), random, dtype)
    for ours, theirs, *args in [
        (nll_loss, F.nll_loss, x, targets, weight),
        (cross_entropy, F.cross_entropy, x, targets, weight),
        (cross_entropy, F.cross_entropy, x, rows),
        (binary_cross_entropy, F.binary_cross_entropy, rows, rows.float()),
        (binary_cross_entropy_with_logits, F.binary_cross_entropy_with_logits, x, rows),
        (mse_loss, F.mse_loss, x, rows),
    ]:
        with torch.autocast("cpu", dtype=dtype):
            assert_same_as_torch(ours, theirs, *args)
            assert ours(*args).dtype == torch.float32
    with torch.autocast("cpu", dtype=dtype):
        assert_same_as_torch(cross_entropy, F.cross_entropy, x, targets, weight=weight.to(dtype))


# ------------------------------------------------------------------ stability

EXTREMES = (0.0, -0.0, 1e-30, 17.0, 90.0, 104.0, 750.0, 1e4, INF)
EXTREMES = EXTREMES + tuple(-x for x in EXTREMES)


@each_dtype
@pytest.mark.parametrize("pair", [(sigmoid, torch.sigmoid), (log_sigmoid, F.logsigmoid)])
def test_sigmoids_are_torchs_at_the_extremes(pair, dtype):
    assert_same_as_torch(*pair, tensor([*EXTREMES, NAN], dtype=dtype, requires_grad=True))


def test_slopes_at_0_are_exact():
    x = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    one, zero = torch.ones_like(x), torch.zeros_like(x)
    bce_logits = binary_cross_entropy_with_logits
    for function, slope, curvature in [
        (sigmoid, 1 / 4, 0),
        (log_sigmoid, 1 / 2, -1 / 4),
        (lambda x: bce_logits(x, one), -1 / 2, 1 / 4),
        (lambda x: bce_logits(x, zero), 1 / 2, 1 / 4),
    ]:
        (first,) = torch.autograd.grad(function(x), x, torch.ones_like(function(x)), True, True)
        (second,) = torch.autograd.grad(first, x, one)
        assert first.item() == slope
        assert second.item() == curvature


@each_dtype
@pytest.mark.parametrize(
    "row",
    [
        [-INF, 0.0, 1.0],
        [-INF, -INF, -INF],
        [INF, 0.0, 1.0],
        [NAN, 0.0, 1.0],
        [1e4, -1e4, 0.0],
        [1e4, 1e4, -INF],
        [3e38, -3e38, 0.0],
    ],
    ids=str,
)
def test_softmax_and_cross_entropy_are_torchs_at_the_extremes(row, dtype):
    x = tensor([row, [0.0, 0.0, 0.0]], dtype=dtype, requires_grad=True)
    assert_same_as_torch(softmax, F.softmax, x, 1)
    assert_same_as_torch(log_softmax, F.log_softmax, x, 1)
    weight = tensor([1.0, 2.0, 0.0], dtype=dtype)
    is_nan = bool(softmax(x[0], 0).isnan().any())  # there an ignored row has a gradient in torch
    for target, w, smoothing, reduction in product(
        (0, 1, 2) if is_nan else (0, 1, 2, -100), (None, weight), (0.0, 0.1), ("none", "mean")
    ):
        options = {"label_smoothing": smoothing, "reduction": reduction}
        assert_same_as_torch(cross_entropy, F.cross_entropy, x, tensor([target, 0]), w, **options)
    # torch gives NaN for a class of -inf that a one-hot row does not ask for: as ids they agree.
    for target, w, smoothing in product((0, 1, 2), (None, weight), (0.0, 0.1)):
        ids = tensor([target, 0])
        rows = F.one_hot(ids, 3).to(dtype)
        theirs = rows if is_nan else ids
        assert_same_as_torch(
            lambda x: cross_entropy(x, rows, w, label_smoothing=smoothing, reduction="none"),  # noqa: B023
            lambda x: F.cross_entropy(x, theirs, w, label_smoothing=smoothing, reduction="none"),  # noqa: B023
            x,
        )


@each_dtype
@pytest.mark.parametrize("pos_weight", [None, 1.0, 0.5, 3.0])
def test_binary_cross_entropy_with_logits_is_torchs_at_the_extremes(dtype, pos_weight):
    every = tensor(EXTREMES, dtype=dtype)
    without_minus_inf = every[every != -INF]
    if pos_weight is not None:
        pos_weight = tensor(pos_weight, dtype=dtype)
    # torch gives NaN for a logit of -inf and most targets: see the next test
    for target, x in [(0.0, every), *((t, without_minus_inf) for t in (0.3, 1.0, 2.0, -1.0))]:
        assert_same_as_torch(
            binary_cross_entropy_with_logits,
            F.binary_cross_entropy_with_logits,
            x.clone().requires_grad_(),
            torch.full_like(x, target).requires_grad_(),
            reduction="none",
            pos_weight=pos_weight,
        )


def test_a_logit_of_minus_infinity_on_a_positive_costs_infinity_with_torchs_slope():
    x, t = tensor([-INF, -INF], requires_grad=True), tensor([1.0, 0.3])
    ours = binary_cross_entropy_with_logits(x, t, reduction="sum")
    theirs = F.binary_cross_entropy_with_logits(x, t, reduction="sum")
    assert ours == INF
    assert torch.equal(*torch.autograd.grad(ours, x), *torch.autograd.grad(theirs, x))


@pytest.mark.parametrize("bad", [-INF, INF, NAN])
def test_an_ignored_row_leaves_no_trace_whatever_stands_in_it(bad):
    log_probs = tensor([[bad, 0.0], [-0.5, -1.0]], requires_grad=True)
    loss = nll_loss(log_probs, tensor([-100, 1]))
    loss.backward()
    assert loss == 1.0
    assert log_probs.grad.tolist() == [[0.0, 0.0], [0.0, -1.0]]


@pytest.mark.parametrize("bad", [-INF, INF, NAN])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("shape", [(3, 4), (3, 4, 2)], ids=str)
def test_an_ignored_row_of_logits_has_no_gradient_whatever_stands_in_it(
    bad, smoothing, shape, random
):
    logits, weight = normal(shape, random), uniform((4,), random)
    ids = class_ids(shape, random)
    ids[1] = -100
    broken = logits.detach().clone()
    broken[1] = bad
    broken.requires_grad_()
    losses = [cross_entropy(x, ids, weight, label_smoothing=smoothing) for x in (logits, broken)]
    gradients = [torch.autograd.grad(losses[0], logits), torch.autograd.grad(losses[1], broken)]
    assert torch.equal(losses[1], losses[0])
    assert torch.equal(gradients[1][0], gradients[0][0])
    assert not gradients[1][0][1].any()


# ------------------------------------------------------------------ gradients, numerically


def test_gradients_and_second_gradients_are_the_derivatives(random):
    x = normal((3, 4), random)
    probs = uniform((3, 4), random, low=0.1, high=0.9, grad=True)
    targets = uniform((3, 4), random, low=0.1, high=0.9, grad=True)
    ids, weight = tensor([1, 3, -100]), uniform((4,), random, low=0.5)
    loss = binary_cross_entropy_with_logits
    for reduction in ("none", "mean"):
        r = {"reduction": reduction}
        for function, inputs in [
            (lambda x: softmax(x, 1), (x,)),
            (lambda x: log_softmax(x, 0), (x,)),
            (sigmoid, (x,)),
            (log_sigmoid, (x,)),
            (lambda x: nll_loss(x, ids, weight, **r), (x,)),  # noqa: B023
            (lambda x: cross_entropy(x, ids, weight, label_smoothing=0.2, **r), (x,)),  # noqa: B023
            (lambda x, t: cross_entropy(x, t, weight, label_smoothing=0.2, **r), (x, targets)),  # noqa: B023
            (lambda p, t: binary_cross_entropy(p, t, weight, **r), (probs, targets)),  # noqa: B023
            (lambda x, t: loss(x, t, weight, pos_weight=weight, **r), (x, targets)),  # noqa: B023
            (lambda a, b: mse_loss(a, b, **r), (x, targets)),  # noqa: B023
            (lambda a, b: mse_loss(a, b, weight=probs.detach(), **r), (x, targets)),  # noqa: B023
        ]:
            assert gradcheck(function, inputs)
            assert gradgradcheck(function, inputs)


def test_a_class_masked_in_a_one_hot_row_has_no_part_in_it():
    logits = tensor([[0.0, 0.0, -INF], [0.0, -INF, 0.0]], requires_grad=True)
    rows = tensor([[1.0, 0.0, 0.0], [0.5, 0.0, 0.5]], requires_grad=True)
    loss = cross_entropy(logits, rows)
    loss.backward()
    assert_close(loss, tensor(0.6931471805599453))  # log 2, as without the masked class
    assert_close(logits.grad, tensor([[-0.25, 0.25, 0.0], [0.0, 0.0, 0.0]]))
    assert rows.grad.isfinite().all()
    assert cross_entropy(logits, tensor([[0.5, 0.0, 0.5], [1.0, 0.0, 0.0]])) == INF  # asked for


# ------------------------------------------------------------------ transforms

TRANSFORMED = [
    # (ours, torch's, one sample's scores to targets)
    (cross_entropy, F.cross_entropy, lambda x: tensor([0, 2, 1, 1])),
    (cross_entropy, F.cross_entropy, lambda x: x.softmax(1).flip(1)),
    (nll_loss, F.nll_loss, lambda x: tensor([0, 2, 1, 1])),
    (binary_cross_entropy, F.binary_cross_entropy, lambda x: (x > 0.5).to(x)),
    (
        binary_cross_entropy_with_logits,
        F.binary_cross_entropy_with_logits,
        lambda x: (x > 0.5).to(x),
    ),
    (mse_loss, F.mse_loss, lambda x: x.flip(1)),
]
NAMES = ["cross_entropy", "soft rows", "nll", "bce", "bce with logits", "mse"]
each_transformed = pytest.mark.parametrize(("ours", "theirs", "targets_of"), TRANSFORMED, ids=NAMES)
func = torch.func


@each_transformed
@pytest.mark.filterwarnings("ignore:`torch.jit.script`:FutureWarning")  # torch's own forward mode
@pytest.mark.parametrize(
    "transformed",
    [
        lambda f, x, t: func.vmap(lambda x, t: f(x[None], t[None]))(x, t),
        lambda f, x, t: func.vmap(func.grad(lambda x, t: f(x[None], t[None])))(x, t),
        lambda f, x, t: func.vmap(lambda t: f(x, t))(torch.stack([t, t.flip(0)])),
        lambda f, x, t: func.jvp(lambda x: f(x, t), (x,), (x.flip(0),)),
        lambda f, x, t: func.hessian(lambda x: f(x, t))(x),
        lambda f, x, t: func.jacrev(func.jacrev(lambda x: f(x, t)))(x),
    ],
    ids=["vmap", "per-sample gradients", "vmap over targets", "jvp", "hessian", "jacrev twice"],
)
def test_the_losses_work_under_torch_func(ours, theirs, targets_of, transformed, random):
    x = uniform((4, 3), random, low=0.1, high=0.9)
    t = targets_of(x)
    assert_close(transformed(ours, x, t), transformed(theirs, x, t))


@recent_torch
@each_transformed
def test_the_losses_are_one_graph_to_compile_and_export(ours, theirs, targets_of, random):
    class Loss(torch.nn.Module):
        def forward(self, scores, targets):
            return ours(scores, targets)

    x = uniform((4, 3), random, low=0.1, high=0.9)
    t = targets_of(x)
    expected = theirs(x, t)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what torch's own tracing warns of
        compiled = torch.compile(Loss(), fullgraph=True, backend="eager")
        exported = torch.export.export(Loss(), (x, t)).module()
        with FakeTensorMode() as mode:
            fake = ours(mode.from_tensor(x), mode.from_tensor(t))
    assert_close(compiled(x, t), expected)
    assert_close(exported(x, t), expected)
    assert (fake.shape, fake.dtype) == (expected.shape, expected.dtype)


@recent_torch
def test_values_are_read_where_a_transform_leaves_them():
    with pytest.raises(ValueError, match="targets must be class ids"):
        torch.func.grad(cross_entropy)(torch.zeros(2, 3), tensor([0, 3]))


# ------------------------------------------------------------------ properties

property_test = settings(max_examples=50, deadline=None, derandomize=True, database=None)
scores = st.floats(-50, 50, width=32)


@st.composite
def logits_and_ids(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    n, c = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    logits = draw(st.lists(st.lists(scores, min_size=c, max_size=c), min_size=n, max_size=n))
    ids = draw(st.lists(st.sampled_from([*range(c), -100]), min_size=n, max_size=n))
    return tensor(logits, dtype=torch.float64), tensor(ids)


@property_test
@given(logits_and_ids(), scores)
def test_softmax_is_a_distribution_that_ignores_shifts_and_follows_permutations(pair, shift):
    x, _ = pair
    p = softmax(x, 1)
    assert (p >= 0).all()
    assert_close(p.sum(1), torch.ones_like(p[:, 0]))
    assert_close(softmax(x + shift, 1), p)
    assert_close(softmax(x.flip(1), 1), p.flip(1))
    assert_close(log_softmax(x, 1).exp(), p)


@property_test
@given(scores)
def test_sigmoid_is_symmetric_and_the_softmax_of_two(value):
    x = tensor(value, dtype=torch.float64)
    assert_close(sigmoid(x) + sigmoid(-x), torch.ones_like(x))
    assert_close(sigmoid(x), softmax(torch.stack([x, torch.zeros_like(x)]), 0)[0])
    assert_close(log_sigmoid(x) - log_sigmoid(-x), x)


@property_test
@given(logits_and_ids(), st.floats(0, 1), scores)
def test_cross_entropy_reduces_and_ignores_exactly(pair, smoothing, shift):
    logits, ids = pair

    def loss(x: Tensor, t: Tensor, reduction: str = "mean") -> Tensor:
        return cross_entropy(x, t, reduction=reduction, label_smoothing=smoothing)

    rows, counted = loss(logits, ids, "none"), ids != -100
    assert (rows >= 0).all()
    assert_close(loss(logits, ids, "sum"), rows.sum())
    assert_close(loss(logits, ids), rows.sum() / counted.sum(), equal_nan=True)
    assert_close(loss(logits.flip(0), ids.flip(0)), loss(logits, ids), equal_nan=True)
    assert_close(loss(logits[counted], ids[counted]), loss(logits, ids), equal_nan=True)
    assert_close(loss(logits + shift, ids, "none"), rows)
    one_hot_rows = one_hot(ids[counted], logits.shape[1]).double()
    assert_close(loss(logits[counted], one_hot_rows, "none"), rows[counted])


@property_test
@given(logits_and_ids(), st.floats(-10, 10))
def test_the_binary_losses_agree(pair, pos_weight):
    logits, _ = pair
    logits, targets = logits / 5, (logits > 0).double()
    with_logits = binary_cross_entropy_with_logits(logits, targets)
    assert_close(binary_cross_entropy(sigmoid(logits), targets), with_logits)
    by_class = torch.stack([-logits, logits], -1).flatten(0, 1) / 2
    assert_close(cross_entropy(by_class, targets.flatten().long()), with_logits)
    positive = binary_cross_entropy_with_logits(
        logits, targets, reduction="none", pos_weight=tensor(pos_weight, dtype=torch.float64)
    )
    once = binary_cross_entropy_with_logits(logits, targets, reduction="none")
    assert_close(positive, torch.where(targets == 1, pos_weight * once, once))


# ------------------------------------------------------------------ errors: what they say

ROWS, IDS, HALF = torch.zeros(2, 3), tensor([0, 2]), torch.full((2, 3), 0.5)
LEARNT = torch.ones(3, requires_grad=True)
bce, bce_logits = binary_cross_entropy, binary_cross_entropy_with_logits


@pytest.mark.parametrize(
    ("call", "kind", "words"),
    [
        # shared checks
        (lambda: softmax(ROWS, None), TypeError, "dim must be an integer, got None"),
        (lambda: softmax(ROWS, (0, 1)), TypeError, "dim must be an integer, got (0, 1)"),
        (lambda: log_softmax(ROWS, True), TypeError, "dim must be an integer, got True"),
        (lambda: softmax(ROWS, 2), IndexError, "Dimension out of range"),
        (lambda: softmax(IDS, 0), TypeError, "x must be a floating-point tensor, got torch.int64"),
        (lambda: softmax([1.0], 0), TypeError, "x must be a floating-point tensor, got list"),
        (lambda: log_sigmoid(IDS), TypeError, "x must be a floating-point tensor"),
        (lambda: sigmoid([0.0]), TypeError, "x must be a tensor, got list"),
        (
            lambda: cross_entropy(ROWS, IDS, reduction="Mean"),
            ValueError,
            "reduction must be 'none', 'mean' or 'sum', got 'Mean'",
        ),
        # one_hot
        (lambda: one_hot(IDS.int()), TypeError, "targets must be int64 class ids, got torch.int32"),
        (lambda: one_hot(IDS, 3.0), TypeError, "num_classes must be an integer, got 3.0"),
        (lambda: one_hot(IDS[:0]), ValueError, "num_classes must be positive where targets is"),
        (
            lambda: one_hot(tensor([[0, 1], [3, 4]]), 3),
            ValueError,
            "targets must be class ids in [0, 2], got 3 at position (1, 0) (2 of 4 are out of",
        ),
        # class ids
        (
            lambda: cross_entropy(torch.zeros(()), tensor(0)),
            ValueError,
            "logits must have shape (N, C), (N, C, d1, ...) or (C,) with at least one class, got",
        ),
        (
            lambda: nll_loss(torch.zeros(2, 0), IDS),
            ValueError,
            "log_probs must have shape (N, C), (N, C, d1, ...) or (C,) with at least one class",
        ),
        (
            lambda: cross_entropy(ROWS, tensor([0])),
            ValueError,
            "targets must have shape (2,), that of logits without classes, "
            "got targets (1,) and logits (2, 3)",
        ),
        (
            lambda: nll_loss(ROWS, IDS.int()),
            TypeError,
            "targets must be int64 class ids, got torch.int32. Use targets.long()",
        ),
        (
            lambda: cross_entropy(ROWS, tensor([-1, 3])),
            ValueError,
            "targets must be class ids in [0, 2] or ignore_index=-100, "
            "got -1 at position (0,) (2 of 2 are out of range)",
        ),
        (lambda: nll_loss(ROWS, tensor([0, 3])), ValueError, "got 3 at position (1,) (1 of 2"),
        (
            lambda: cross_entropy(ROWS, IDS, ignore_index=1.0),
            TypeError,
            "ignore_index must be an integer, got 1.0",
        ),
        (
            lambda: cross_entropy(ROWS, IDS, torch.ones(2)),
            ValueError,
            "weight must have shape (3,), one per class, got (2,)",
        ),
        (
            lambda: nll_loss(ROWS, IDS, torch.ones(3).double()),
            TypeError,
            "weight must have the dtype of log_probs, torch.float32, got torch.float64",
        ),
        (
            lambda: cross_entropy(ROWS, IDS, LEARNT),
            ValueError,
            "weight must not require a gradient. Use weight.detach()",
        ),
        (
            lambda: cross_entropy(ROWS, IDS, label_smoothing=1.1),
            ValueError,
            "label_smoothing must be in [0, 1], got 1.1",
        ),
        (lambda: cross_entropy(ROWS, IDS, label_smoothing=-0.1), ValueError, "got -0.1"),
        (lambda: cross_entropy(ROWS, IDS, label_smoothing=NAN), ValueError, "got nan"),
        # soft rows
        (
            lambda: cross_entropy(ROWS, ROWS.long()),
            TypeError,
            "targets of the shape of logits must be floating-point rows, got torch.int64",
        ),
        (
            lambda: cross_entropy(ROWS, ROWS, ignore_index=0),
            ValueError,
            "ignore_index must be negative with soft rows, got 0",
        ),
        (lambda: cross_entropy(ROWS, ROWS, ignore_index=None), TypeError, "ignore_index must be"),
        (lambda: cross_entropy(ROWS, ROWS, torch.ones(1, 3)), ValueError, "shape (3,), one per"),
        # 0 or 1
        (
            lambda: bce(HALF, HALF[:, :1]),
            ValueError,
            "targets must have the shape of probs, got targets (2, 1) and probs (2, 3)",
        ),
        (
            lambda: bce_logits(ROWS, HALF[0]),
            ValueError,
            "targets must have the shape of logits, got targets (3,) and logits (2, 3)",
        ),
        (
            lambda: bce(HALF, HALF.double()),
            TypeError,
            "targets must have the dtype of probs, torch.float32, got torch.float64",
        ),
        (
            lambda: bce_logits(ROWS, ROWS.long()),
            TypeError,
            "targets must be a floating-point tensor, got torch.int64",
        ),
        (
            lambda: bce(tensor([0.5, 1.1]), tensor([0.0, 1.0])),
            ValueError,
            "probs must be in [0, 1], got 1.1",
        ),
        (lambda: bce(tensor([-0.5]), tensor([1.0])), ValueError, "got -0.5 at position (0,) (1 of"),
        (lambda: bce(tensor(NAN), tensor(1.0)), ValueError, "got nan at position ()"),
        (lambda: bce(tensor([0.5]), tensor([2.0])), ValueError, "targets must be in [0, 1], got 2"),
        (
            lambda: bce(HALF, HALF, torch.ones(4, 2, 3)),
            ValueError,
            "weight must have a shape that broadcasts to that of probs, (2, 3), got (4, 2, 3)",
        ),
        (lambda: bce(HALF, HALF, LEARNT), ValueError, "weight must not require a gradient"),
        (lambda: bce(HALF, HALF, HALF + 0j), TypeError, "weight must be real, got torch.complex64"),
        (
            lambda: bce_logits(ROWS, HALF, pos_weight=torch.ones(2)),
            ValueError,
            "pos_weight must have a shape that broadcasts to that of logits, (2, 3), got (2,)",
        ),
        (
            lambda: bce_logits(ROWS, HALF, pos_weight=LEARNT),
            ValueError,
            "pos_weight must not require a gradient. Use pos_weight.detach()",
        ),
        (
            lambda: bce_logits(ROWS, HALF, pos_weight=HALF > 0),
            TypeError,
            "pos_weight must be numbers, got torch.bool",
        ),
        # a real number
        (
            lambda: mse_loss(torch.zeros(2), torch.zeros(3)),
            ValueError,
            "targets must have the shape of outputs, got targets (3,) and outputs (2,)",
        ),
        (
            lambda: mse_loss(ROWS, ROWS, weight=torch.ones(3)),
            ValueError,
            "weight must have the shape of outputs, (2, 3), got (3,)",
        ),
        (
            lambda: mse_loss(IDS, IDS),
            TypeError,
            "outputs or targets must be floating point, got torch.int64 for both",
        ),
    ],
)
def test_the_message_names_the_mistake(call, kind, words):
    with pytest.raises(kind, match=re.escape(words)):
        call()


@pytest.mark.parametrize("loss", [nll_loss, cross_entropy, bce, bce_logits, mse_loss])
@pytest.mark.parametrize("reduction", ["batchmean", None, 0])
def test_every_loss_refuses_an_unknown_reduction(loss, reduction):
    targets = IDS if loss in (nll_loss, cross_entropy) else HALF
    with pytest.raises(ValueError, match="reduction must be"):
        loss(HALF, targets, reduction=reduction)


@pytest.mark.parametrize("loss", [nll_loss, cross_entropy, bce, bce_logits, mse_loss])
def test_every_loss_refuses_what_is_no_tensor(loss):
    targets = IDS if loss in (nll_loss, cross_entropy) else HALF
    scores = next(iter(inspect.signature(loss).parameters))
    for name, arguments in {
        scores: {scores: [0.5], "targets": targets},
        "targets": {scores: HALF, "targets": [1]},
        "weight": {scores: HALF, "targets": targets, "weight": [1.0]},
    }.items():
        with pytest.raises(TypeError, match=f"{name} must be a tensor, got list"):
            loss(**arguments)


def test_limits_themselves_are_accepted():
    assert one_hot(tensor([2]), 3).tolist() == [[0, 0, 1]]
    assert cross_entropy(ROWS, tensor([0, 2]), label_smoothing=1.0).isfinite()
    assert bce(tensor([0.0, 1.0]), tensor([0.0, 1.0])) == 0
    assert cross_entropy(ROWS, ROWS, ignore_index=-1) == 0


def test_values_off_the_cpu_are_not_read():
    """A meta tensor has no values: reading one would raise, as waiting for a GPU would not."""
    rows, ids = torch.zeros(2, 3, device="meta"), torch.zeros(2, dtype=torch.int64, device="meta")
    assert cross_entropy(rows, ids).shape == ()
    assert nll_loss(rows, ids).shape == ()
    assert bce(rows, rows).shape == ()
    assert one_hot(ids, 3).shape == (2, 3)


@pytest.mark.parametrize("loss", [bce, bce_logits, mse_loss])
def test_per_sample_gradients_work_where_values_are_not_read(loss):
    rows = torch.zeros(2, 3, device="meta")
    assert torch.func.vmap(torch.func.grad(loss))(rows, rows).shape == (2, 3)


# ------------------------------------------------------------------ errors: where torch has them


@pytest.mark.parametrize(
    ("ours", "theirs", "args", "kwargs"),
    [
        (ours, theirs, args, kwargs)
        for pair in [(softmax, F.softmax), (log_softmax, F.log_softmax)]
        for ours, theirs in [pair]
        for args, kwargs in [
            ((IDS, 0), {}),
            ((ROWS > 0, 0), {}),
            ((ROWS + 0j, 0), {}),
            ((ROWS, 2), {}),
            ((ROWS, -3), {}),
            ((torch.zeros(0, 3), 2), {}),
            ((torch.zeros(()), 1), {}),
            ((ROWS, 1.0), {}),
            ((ROWS, True), {}),
            ((ROWS, 0), {"dtype": torch.int64}),
            (([1.0, 2.0], 0), {}),
        ]
    ]
    + [
        (sigmoid, torch.sigmoid, ([1.0],), {}),
        (log_sigmoid, F.logsigmoid, (IDS,), {}),
        (log_sigmoid, F.logsigmoid, (ROWS > 0,), {}),
        (log_sigmoid, F.logsigmoid, (ROWS + 0j,), {}),
    ]
    + [
        (one_hot, F.one_hot, args, {})
        for args in [
            (IDS.int(),),
            (IDS.float(),),
            (IDS > 0,),
            (tensor([-1, 1]),),
            (tensor([-1, 1]), 3),
            (tensor([3]), 3),
            (tensor([0]), 0),
            (tensor([0]), -2),
            (IDS[:0],),
            (IDS[:0], 0),
            (IDS, 3.0),
            (IDS, True),
            (IDS, None),
        ]
    ]
    + [
        (ours, theirs, args, kwargs)
        for pair in [(nll_loss, F.nll_loss), (cross_entropy, F.cross_entropy)]
        for ours, theirs in [pair]
        for args, kwargs in [
            ((torch.zeros(()), tensor(0)), {}),
            ((torch.zeros(1, 3), tensor(0)), {}),
            ((ROWS, tensor([0])), {}),
            ((ROWS, IDS[:, None]), {}),
            ((ROWS, ROWS.long()), {}),
            ((ROWS, IDS.float()), {}),
            ((ROWS, IDS.int()), {}),
            ((ROWS, IDS > 0), {}),
            ((ROWS, tensor([0, 3])), {}),
            ((ROWS, tensor([0, -1])), {}),
            ((torch.zeros(2, 0), IDS), {}),
            ((torch.zeros(2, 3, 4), torch.zeros(2, 5, dtype=torch.int64)), {}),
            ((torch.zeros(2, 3, 4), torch.zeros(2, 4, dtype=torch.uint8)), {}),
            ((torch.zeros(2, 3, 4, 5), torch.zeros(2, 5, 4, dtype=torch.int64)), {}),
            ((ROWS.long(), IDS), {}),
            ((ROWS + 0j, IDS), {}),
            ((ROWS, IDS, torch.ones(2)), {}),
            ((ROWS, IDS, torch.ones(1)), {}),
            ((ROWS, IDS, torch.ones(())), {}),
            ((ROWS, IDS, torch.ones(1, 3)), {}),
            ((ROWS, IDS, torch.ones(3).double()), {}),
            ((ROWS, IDS, torch.ones(3).half()), {}),
            ((ROWS, IDS, torch.ones(3).long()), {}),
            ((ROWS, IDS, LEARNT), {}),
            ((ROWS, IDS), {"ignore_index": 1.0}),
            ((ROWS, IDS), {"ignore_index": None}),
            ((ROWS, IDS), {"ignore_index": True}),
            ((ROWS, IDS), {"reduction": "Mean"}),
            ((ROWS, IDS), {"reduction": None}),
        ]
    ]
    + [
        (cross_entropy, F.cross_entropy, args, kwargs)
        for args, kwargs in [
            ((ROWS, IDS), {"label_smoothing": 1.1}),
            ((ROWS, IDS), {"label_smoothing": None}),
            ((ROWS, ROWS), {"label_smoothing": 1.1}),
            ((ROWS, ROWS), {"ignore_index": 0}),
            ((ROWS, ROWS.long()), {}),
            ((ROWS, ROWS > 0), {}),
            ((ROWS, ROWS + 0j), {}),
            ((ROWS, ROWS[:1]), {}),
            ((ROWS, ROWS[:, :1]), {}),
            ((ROWS, ROWS, torch.ones(1, 3)), {}),
            ((ROWS, ROWS, torch.ones(2)), {}),
            ((torch.zeros(()), torch.zeros(())), {}),
            ((torch.zeros(3), tensor([0, 1, 2])), {}),
        ]
    ]
    + [
        (ours, theirs, args, kwargs)
        for pair in [
            (bce, F.binary_cross_entropy),
            (bce_logits, F.binary_cross_entropy_with_logits),
        ]
        for ours, theirs in [pair]
        for args, kwargs in [
            ((HALF, HALF[0]), {}),
            ((HALF, HALF[:, :1]), {}),
            ((HALF[0], HALF), {}),
            ((HALF, HALF.long()), {}),
            ((HALF, HALF > 0), {}),
            ((HALF.long(), HALF), {}),
            ((HALF.long(), HALF.long()), {}),
            ((HALF + 0j, HALF), {}),
            ((HALF, HALF, torch.ones(2)), {}),
            ((HALF, HALF, torch.ones(1, 2, 3)), {}),
            ((HALF[:, :1], HALF[:, :1], torch.ones(3)), {}),
            ((HALF, HALF, HALF + 0j), {}),
            ((HALF, HALF, LEARNT), {}),
            ((HALF, HALF), {"reduction": "Mean"}),
        ]
    ]
    + [
        (bce, F.binary_cross_entropy, args, {})
        for args in [
            (HALF, HALF.double()),
            (HALF.half(), HALF),
            (HALF + 1, HALF),
            (-HALF, HALF),
            (tensor([NAN]), tensor([0.5])),
        ]
    ]
    + [
        (bce_logits, F.binary_cross_entropy_with_logits, (HALF, HALF), {"pos_weight": pos_weight})
        for pos_weight in [torch.ones(2), torch.ones(1, 2, 3), HALF > 0, HALF + 0j, LEARNT]
    ]
    + [
        (mse_loss, F.mse_loss, args, kwargs)
        for args, kwargs in [
            ((IDS, IDS), {}),
            ((IDS > 0, IDS > 0), {}),
            ((HALF + 0j, HALF), {}),
            ((HALF, HALF), {"reduction": "Mean"}),
            ((HALF, HALF), {"weight": torch.ones(3)}),
        ]
    ],
)
def test_both_refuse(ours, theirs, args, kwargs):
    assert_both_raise(ours, theirs, *args, **kwargs)


@if_unbatched_targets_are_checked
def test_both_refuse_several_targets_for_one_row_of_log_probabilities():
    assert_both_raise(nll_loss, F.nll_loss, torch.zeros(3), tensor([0, 1, 2]))


@pytest.mark.filterwarnings("ignore:Using a target size")
def test_both_refuse_shapes_that_cannot_be_broadcast():
    assert_both_raise(mse_loss, F.mse_loss, torch.zeros(2), torch.zeros(3))
