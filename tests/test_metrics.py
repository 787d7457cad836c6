"""Metrics: known values, ties and NaN, other people's metrics, properties, misuse, errors."""

import math
import re
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from torchcls import metrics
from torchcls.metrics import (
    COUNTS,
    accuracy,
    accuracy_counts,
    confusion_matrix,
    counts_behind,
    error_counts,
    error_rate,
    multilabel_accuracy,
    multilabel_counts,
    threshold_accuracy,
    threshold_counts,
    top_k_accuracy,
    top_k_counts,
)

NAN, INF = math.nan, math.inf

SCORES = torch.tensor([[0.1, 0.7, 0.2], [0.5, 0.3, 0.2], [0.2, 0.5, 0.3], [0.1, 0.2, 0.7]])
CLASSES = torch.tensor([1, 2, 2, 2])  # predicted 1, 0, 1, 2; ranks of the true class 1, 3, 2, 1


def assert_value(result: Tensor, expected: float) -> None:
    """Same value, to the last bit of the division, in a 0-d tensor of the default dtype."""
    torch.testing.assert_close(result, torch.tensor(expected), rtol=0, atol=0, equal_nan=True)


def assert_counts(result: tuple[Tensor, Tensor], correct: int, counted: int) -> None:
    for found, expected in zip(result, (correct, counted), strict=True):
        torch.testing.assert_close(found, torch.tensor(expected))  # 0-d int64, exactly


# ------------------------------------------------------------------ known values


def test_accuracy_of_a_table_worked_by_hand() -> None:
    assert_counts(accuracy_counts(SCORES, CLASSES), 2, 4)
    assert_value(accuracy(SCORES, CLASSES), 2 / 4)


def test_error_rate_of_a_table_worked_by_hand() -> None:
    targets = torch.tensor([1, 2, 2, -100])
    assert_counts(error_counts(SCORES, targets), 2, 3)
    assert_value(error_rate(SCORES, targets), 2 / 3)


@pytest.mark.parametrize(("k", "correct"), [(1, 2), (2, 3), (3, 4)])
def test_top_k_accuracy_of_a_table_worked_by_hand(k: int, correct: int) -> None:
    assert_counts(top_k_counts(SCORES, CLASSES, k=k), correct, 4)
    assert_value(top_k_accuracy(SCORES, CLASSES, k=k), correct / 4)


def test_top_k_accuracy_takes_five_classes_by_default() -> None:
    scores = torch.tensor([[6.0, 5.0, 4.0, 3.0, 2.0, 1.0]] * 6)
    assert_value(top_k_accuracy(scores, torch.arange(6)), 5 / 6)


def test_threshold_accuracy_of_a_table_worked_by_hand() -> None:
    probabilities = torch.tensor([0.9, 0.4, 0.1, 0.6, 0.8])
    targets = torch.tensor([1.0, 1.0, 0.0, 0.0, 1.0])
    assert_counts(threshold_counts(probabilities, targets), 3, 5)
    assert_value(threshold_accuracy(probabilities, targets), 3 / 5)
    assert_value(threshold_accuracy(probabilities, targets, threshold=0.7), 4 / 5)


def test_threshold_accuracy_from_logits_cuts_the_probability() -> None:
    logits, targets = torch.tensor([0.1, 1.0, -0.1, 2.0]), torch.tensor([1.0, 0.0, 0.0, 1.0])
    assert_value(threshold_accuracy(logits, targets, from_logits=True), 3 / 4)
    # sigmoid(1) = 0.731, sigmoid(2) = 0.881: only the last one is above 0.75
    assert_value(threshold_accuracy(logits, targets, from_logits=True, threshold=0.75), 3 / 4)
    assert_counts(threshold_counts(logits, targets, from_logits=True, threshold=0.9), 2, 4)


def test_multilabel_accuracy_of_a_table_worked_by_hand() -> None:
    logits = torch.tensor([[2.0, -1.0, 0.3], [-3.0, 1.0, -0.5]])
    targets = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]])
    assert_counts(multilabel_counts(logits, targets), 5, 6)
    assert_counts(multilabel_counts(logits, targets, subset=True), 1, 2)
    assert_value(multilabel_accuracy(logits, targets), 5 / 6)
    assert_value(multilabel_accuracy(logits, targets, subset=True), 1 / 2)
    # As probabilities only sigmoid(2) = 0.88 is above 0.8: the labels at 0.3 and 1.0 turn to "no".
    assert_value(multilabel_accuracy(logits, targets, threshold=0.8), 3 / 6)


def test_multilabel_accuracy_of_probabilities() -> None:
    probabilities, targets = torch.tensor([[0.4, 0.6], [0.3, 0.2]]), torch.tensor([[0, 1], [0, 1]])
    assert_value(multilabel_accuracy(probabilities, targets, from_logits=False), 3 / 4)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((2, 2, 3), 4 / 6), ((4, 3), 3 / 4), ((3,), 1.0)],
    ids=["(N, C, d1): 6 samples", "(N, C): 4 samples", "(C,): one sample"],
)
def test_subset_looks_along_the_label_dimension(shape: tuple[int, ...], expected: float) -> None:
    targets = torch.ones(shape)
    outputs = torch.ones(shape)  # logits: all "yes"
    if len(shape) == 3:  # both labels of (0, :, 0) wrong, one of (1, :, 2): two samples of six
        outputs[0, :, 0] = outputs[1, 0, 2] = -1.0
    elif len(shape) == 2:
        outputs[2, 1] = -1.0
    assert_value(multilabel_accuracy(outputs, targets, subset=True), expected)


def test_confusion_matrix_of_a_table_worked_by_hand() -> None:
    expected = torch.tensor(
        [
            [0, 0, 0],  # class 0 never occurs
            [0, 1, 0],  # class 1 once, found
            [1, 1, 1],  # class 2 as 0, as 1, and found
        ]
    )
    torch.testing.assert_close(confusion_matrix(SCORES, CLASSES), expected)
    torch.testing.assert_close(confusion_matrix(SCORES.argmax(1), CLASSES), expected)


@pytest.mark.parametrize(
    ("predicted", "true", "size"),
    [([0, 3], [1, 0], 4), ([0, 1], [2, 0], 3), ([0], [0], 1)],
    ids=["largest id predicted", "largest id true", "one class"],
)
def test_confusion_matrix_of_ids_is_as_large_as_the_largest_id(
    predicted: list[int], true: list[int], size: int
) -> None:
    matrix = confusion_matrix(torch.tensor(predicted), torch.tensor(true))
    assert matrix.shape == (size, size)
    assert matrix.sum() == len(true)


def test_confusion_matrix_takes_the_size_it_is_given() -> None:
    matrix = confusion_matrix(torch.tensor([0, 1]), torch.tensor([1, 1]), num_classes=4)
    expected = torch.zeros(4, 4, dtype=torch.int64)
    expected[1, 0] = expected[1, 1] = 1
    torch.testing.assert_close(matrix, expected)
    assert confusion_matrix(SCORES, CLASSES, num_classes=3).shape == (3, 3)


def test_extra_dimensions_are_more_samples() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(2, 4, 3, 5, generator=generator)
    targets = torch.randint(4, (2, 3, 5), generator=generator)
    targets[0, 1, 2] = -100
    flat, flat_targets = scores.movedim(1, -1).reshape(-1, 4), targets.flatten()
    for metric in (accuracy, error_rate, partial(top_k_accuracy, k=2), confusion_matrix):
        torch.testing.assert_close(metric(scores, targets), metric(flat, flat_targets))
    assert int(accuracy_counts(scores, targets)[1]) == 2 * 3 * 5 - 1


@pytest.mark.parametrize("metric", [accuracy, partial(top_k_accuracy, k=1)])
def test_one_sample_needs_no_batch_dimension(metric: Callable[..., Tensor]) -> None:
    assert_value(metric(torch.tensor([0.2, 0.8]), torch.tensor(1)), 1.0)
    assert_value(metric(torch.tensor([0.2, 0.8]), torch.tensor(0)), 0.0)
    assert_value(metric(torch.tensor([0.2, 0.8]), torch.tensor(-100)), NAN)


def test_confusion_matrix_of_one_sample() -> None:
    expected = torch.tensor([[0, 1], [0, 0]])
    torch.testing.assert_close(
        confusion_matrix(torch.tensor([0.2, 0.8]), torch.tensor(0)), expected
    )
    torch.testing.assert_close(confusion_matrix(torch.tensor(1), torch.tensor(0)), expected)


def test_floating_rows_name_the_class_of_their_largest_entry() -> None:
    soft = torch.tensor([[0.1, 0.8, 0.1], [0.0, 0.4, 0.6], [0.3, 0.3, 0.4], [0.2, 0.2, 0.6]])
    for metric in (accuracy, error_rate, partial(top_k_accuracy, k=2), confusion_matrix):
        torch.testing.assert_close(metric(SCORES, soft), metric(SCORES, CLASSES))
        one_hot = torch.nn.functional.one_hot(CLASSES).double()
        torch.testing.assert_close(metric(SCORES, one_hot), metric(SCORES, CLASSES))


def test_floating_rows_hold_their_classes_in_dimension_one() -> None:
    scores = torch.tensor([[[3.0, 0.0, 0.0], [2.0, 1.0, 5.0]]])  # (1, 2, 3): classes 0, 1, 1
    rows = torch.tensor([[[1.0, 0.0, 0.9], [0.0, 1.0, 0.1]]])  # (1, 2, 3): classes 0, 1, 0
    assert_counts(accuracy_counts(scores, rows), 2, 3)
    assert_counts(top_k_counts(scores, rows, k=1), 2, 3)


def test_uint8_class_ids_are_never_taken_for_ignored() -> None:
    # torch finds uint8 156 equal to -100: the comparison has to be made in int64
    scores = torch.zeros(2, 200)
    targets = torch.tensor([156, 0], dtype=torch.uint8)
    assert_counts(accuracy_counts(scores, targets), 1, 2)
    assert confusion_matrix(scores, targets).sum() == 2
    assert confusion_matrix(targets, targets).sum() == 2


@pytest.mark.parametrize("ignore_index", [-100, -1, 0, 255])
def test_ignored_samples_are_in_neither_count(ignore_index: int) -> None:
    targets = torch.tensor([1, ignore_index, 2, ignore_index])
    kept = torch.tensor([0, 2])
    for metric in (accuracy, error_rate, partial(top_k_accuracy, k=2), confusion_matrix):
        found = metric(SCORES, targets, ignore_index=ignore_index)
        torch.testing.assert_close(found, metric(SCORES[kept], targets[kept]))


def test_target_dtypes_of_a_yes_or_no_agree() -> None:
    probabilities, targets = torch.tensor([0.9, 0.2, 0.6]), torch.tensor([1, 1, 0])
    for dtype in (torch.float64, torch.float16, torch.int64, torch.uint8, torch.bool):
        assert_counts(threshold_counts(probabilities, targets.to(dtype)), 1, 3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_scores_may_have_any_floating_dtype(dtype: torch.dtype) -> None:
    scores = SCORES.to(dtype)
    assert_value(accuracy(scores, CLASSES), 2 / 4)
    assert_value(top_k_accuracy(scores, CLASSES, k=2), 3 / 4)
    assert_value(
        threshold_accuracy(scores, torch.zeros(4, 3)), 10 / 12
    )  # wrong: 0.7, twice; 0.5 is not above
    assert_value(multilabel_accuracy(scores, torch.ones(4, 3)), 1.0)


def test_counts_are_int64_sums_beyond_the_float32_limit() -> None:
    n = 2**24 + 1  # the first integer that float32 cannot hold
    outputs = torch.tensor([0.1, 0.9]).expand(n, 2)  # no memory behind it
    assert_counts(accuracy_counts(outputs, torch.tensor([1]).expand(n)), n, n)
    assert_counts(threshold_counts(outputs[:, 1], torch.ones(1).expand(n)), n, n)


# ------------------------------------------------------------------ ties, NaN and nothing


def test_ties_go_to_the_lowest_class() -> None:
    scores, targets = torch.zeros(4, 4), torch.tensor([0, 1, 2, 3])
    assert_value(accuracy(scores, targets), 1 / 4)
    for k in (1, 2, 3, 4):
        assert_value(top_k_accuracy(scores, targets, k=k), k / 4)
    assert confusion_matrix(scores, targets)[:, 0].tolist() == [1, 1, 1, 1]


def test_ties_in_a_target_row_go_to_the_lowest_class() -> None:
    scores, half = torch.tensor([[0.9, 0.1], [0.1, 0.9]]), torch.full((2, 2), 0.5)
    assert_counts(accuracy_counts(scores, half), 1, 2)
    assert_counts(top_k_counts(scores, half, k=1), 1, 2)


def test_infinite_scores_are_ordinary_scores() -> None:
    scores = torch.tensor([[-INF, 0.0, -INF], [0.0, INF, INF], [-INF, -INF, -INF]])
    assert_value(accuracy(scores, torch.tensor([1, 1, 0])), 1.0)
    assert_value(top_k_accuracy(scores, torch.tensor([0, 2, 1]), k=2), 1.0)
    logits = torch.tensor([INF, -INF])
    assert_value(threshold_accuracy(logits, torch.tensor([1, 0]), from_logits=True), 1.0)


@pytest.mark.parametrize("true", [0, 1, 2])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_row_with_nan_is_wrong_whatever_its_target(true: int, place: int) -> None:
    scores = torch.tensor([[1.0, 1.0, 1.0], [0.0, 0.0, 9.0]])
    scores[0, place] = NAN
    targets = torch.tensor([true, 2])
    assert_counts(accuracy_counts(scores, targets), 1, 2)
    assert_counts(error_counts(scores, targets), 1, 2)
    for k in (1, 2, 3):
        assert_counts(top_k_counts(scores, targets, k=k), 1, 2)


def test_a_target_row_with_nan_is_wrong() -> None:
    scores, rows = torch.tensor([[0.9, 0.1], [0.1, 0.9]]), torch.tensor([[NAN, 0.0], [0.0, 1.0]])
    assert_counts(accuracy_counts(scores, rows), 1, 2)
    assert_counts(error_counts(scores, rows), 1, 2)
    assert_counts(top_k_counts(scores, rows, k=2), 1, 2)


def test_nan_on_both_sides_is_no_match() -> None:
    both = torch.tensor([[NAN, 0.0]])
    assert_counts(accuracy_counts(both, both), 0, 1)


@pytest.mark.parametrize("from_logits", [False, True])
def test_a_nan_output_is_wrong_for_either_target(from_logits: bool) -> None:
    outputs, targets = torch.tensor([[NAN, NAN, 0.9]]), torch.tensor([[0.0, 1.0, 1.0]])
    assert_counts(threshold_counts(outputs, targets, from_logits=from_logits), 1, 3)
    assert_counts(multilabel_counts(outputs, targets, from_logits=from_logits), 1, 3)
    assert_counts(multilabel_counts(outputs, targets, from_logits=from_logits, subset=True), 0, 1)


def test_the_threshold_itself_is_not_above_it() -> None:
    assert_value(threshold_accuracy(torch.tensor([0.5]), torch.tensor([0])), 1.0)
    assert_value(threshold_accuracy(torch.tensor([0.0]), torch.tensor([0]), threshold=0.0), 1.0)
    assert_value(threshold_accuracy(torch.tensor([0.0]), torch.tensor([0]), from_logits=True), 1.0)
    assert_value(multilabel_accuracy(torch.tensor([[0.0]]), torch.tensor([[0]])), 1.0)


def test_a_soft_target_counts_as_the_class_it_is_nearer_to() -> None:
    outputs = torch.tensor([0.9, 0.9, 0.9])
    assert_value(threshold_accuracy(outputs, torch.tensor([0.51, 0.5, 0.49])), 1 / 3)


@pytest.mark.parametrize(
    ("metric", "outputs", "targets"),
    [
        (accuracy, torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64)),
        (error_rate, torch.zeros(2, 3), torch.tensor([-100, -100])),
        (accuracy, torch.zeros(2, 3, 0), torch.zeros(2, 0, dtype=torch.int64)),
        (accuracy, torch.zeros(0, 3), torch.zeros(0, 3)),
        (partial(top_k_accuracy, k=2), torch.zeros(1, 3), torch.tensor([-100])),
        (threshold_accuracy, torch.zeros(0, 1), torch.zeros(0, 1)),
        (multilabel_accuracy, torch.zeros(0, 3), torch.zeros(0, 3)),
        (multilabel_accuracy, torch.zeros(3, 0), torch.zeros(3, 0)),
        (partial(multilabel_accuracy, subset=True), torch.zeros(0, 3), torch.zeros(0, 3)),
    ],
)
def test_nothing_counted_gives_nan(
    metric: Callable[..., Tensor], outputs: Tensor, targets: Tensor
) -> None:
    assert_value(metric(outputs, targets), NAN)


def test_confusion_matrix_of_nothing_is_all_zeros() -> None:
    nothing = torch.zeros(3, 3, dtype=torch.int64)
    ignored = torch.tensor([-100, -100])
    torch.testing.assert_close(confusion_matrix(torch.zeros(2, 3), ignored), nothing)
    found = confusion_matrix(torch.tensor([0, 1]), ignored, num_classes=3)
    torch.testing.assert_close(found, nothing)


def test_confusion_matrix_does_not_look_at_ignored_samples() -> None:
    scores = torch.tensor([[NAN, 0.0], [0.0, 1.0]])
    expected = torch.tensor([[0, 0], [0, 1]])
    found = confusion_matrix(scores, torch.tensor([-100, 1]))
    torch.testing.assert_close(found, expected)
    found = confusion_matrix(torch.tensor([-7, 1]), torch.tensor([-100, 1]))
    torch.testing.assert_close(found, expected)


# ------------------------------------------------------------------ the counts behind


@pytest.mark.parametrize("metric", list(COUNTS))
def test_every_fraction_finds_its_counts(metric: Callable[..., Tensor]) -> None:
    assert counts_behind(metric) is COUNTS[metric]
    assert counts_behind(partial(metric)).func is COUNTS[metric]


def test_a_partial_keeps_its_keywords() -> None:
    counts = counts_behind(partial(partial(top_k_accuracy, k=3), ignore_index=1))
    assert counts is not None
    assert_counts(counts(SCORES, CLASSES), 3, 3)
    counts = counts_behind(partial(partial(top_k_accuracy, k=3), k=2))
    assert counts is not None
    assert_counts(counts(SCORES, CLASSES), 3, 4)


class Unhashable:
    """A metric object that is equal to everything and has no hash."""

    def __eq__(self, other: object) -> bool:
        return True

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return torch.tensor(0.0)


@pytest.mark.parametrize(
    "metric",
    [
        confusion_matrix,
        accuracy_counts,
        lambda outputs, targets: accuracy(outputs, targets),
        partial(accuracy, SCORES),
        partial(confusion_matrix, num_classes=3),
        Unhashable(),
        "accuracy",
    ],
)
def test_any_other_metric_has_no_counts(metric: Any) -> None:
    assert counts_behind(metric) is None


# ------------------------------------------------------------------ devices and gradients


def test_nothing_but_the_confusion_matrix_reads_a_value_off_the_cpu() -> None:
    # The meta device has shapes and no values: whatever waits for one raises there.
    scores, rows = torch.zeros(4, 3, device="meta"), torch.ones(4, 3, device="meta")
    ids = torch.zeros(4, dtype=torch.int64, device="meta")
    results = [
        metric(scores, targets)
        for metric in (accuracy, error_rate, partial(top_k_accuracy, k=2))
        for targets in (ids, rows)
    ]
    for from_logits in (False, True):
        results.append(threshold_accuracy(scores, rows, from_logits=from_logits))
        for subset in (False, True):
            results.append(
                multilabel_accuracy(scores, rows, from_logits=from_logits, subset=subset)
            )
    assert [(found.device.type, found.shape) for found in results] == [("meta", ())] * 12
    with pytest.raises((RuntimeError, NotImplementedError)):
        confusion_matrix(scores, ids)


def test_the_confusion_matrix_checks_values_on_any_device(monkeypatch: pytest.MonkeyPatch) -> None:
    laws: list[str] = []
    monkeypatch.setattr(metrics, "_check_values", lambda fits, values, law: laws.append(law))
    scores = torch.zeros(4, 3, device="meta")
    with pytest.raises((RuntimeError, NotImplementedError)):  # no values to count
        confusion_matrix(scores, torch.zeros(4, dtype=torch.int64, device="meta"))
    assert [law.split(",")[0] for law in laws] == [
        "targets must be class ids in [0",
        "outputs must not be NaN",
        "targets must not be NaN",
    ]


def test_values_off_the_cpu_that_cannot_be_right_are_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_check_values", lambda *arguments: None)  # as on an accelerator
    for bad in (-1, 3, 10**6):
        targets = torch.tensor([1, bad])
        scores = torch.tensor([[0.0, 1.0, 0.0], [NAN, 0.0, 9.0]])
        for row in (scores, scores.nan_to_num(1.0)):
            assert_counts(accuracy_counts(row, targets), 1, 2)
            assert_counts(top_k_counts(row, targets, k=3), 1, 2)
    outputs, targets = torch.tensor([0.9, 0.9, 0.1, 0.9]), torch.tensor([1.0, 2.0, -1.0, NAN])
    assert_counts(threshold_counts(outputs, targets), 1, 4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_gpu_counts_as_the_cpu_and_is_not_waited_for() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(50, 7, generator=generator).round(decimals=1)
    scores[3, 2] = NAN
    ids = torch.randint(7, (50,), generator=generator)
    rows = torch.rand(50, 7, generator=generator)
    cases = [
        (metric, targets)
        for metric in (accuracy_counts, error_counts, partial(top_k_counts, k=3))
        for targets in (ids, rows)
    ]
    cases += [(multilabel_counts, rows), (partial(multilabel_counts, subset=True), rows)]
    cases += [(partial(threshold_counts, from_logits=True), rows)]
    on_gpu = scores.cuda(), {id(ids): ids.cuda(), id(rows): rows.cuda()}
    torch.cuda.synchronize()
    found = []
    torch.cuda.set_sync_debug_mode("error")
    try:
        for metric, targets in cases:
            found.append(metric(on_gpu[0], on_gpu[1][id(targets)]))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for (metric, targets), (correct, counted) in zip(cases, found, strict=True):
        assert correct.is_cuda
        torch.testing.assert_close((correct.cpu(), counted.cpu()), metric(scores, targets))
    clean = scores.nan_to_num(0.0)
    matrix = confusion_matrix(clean.cuda(), ids.cuda())
    torch.testing.assert_close(matrix.cpu(), confusion_matrix(clean, ids))


def test_outputs_of_a_training_step_may_be_scored() -> None:
    scores = SCORES.clone().requires_grad_()
    for found in (
        accuracy(scores, CLASSES),
        top_k_accuracy(scores, CLASSES, k=2),
        multilabel_accuracy(scores, torch.ones(4, 3)),
        confusion_matrix(scores, CLASSES),
    ):
        assert not found.requires_grad


def test_arguments_are_left_as_they_were() -> None:
    scores, targets, rows = SCORES.clone(), CLASSES.clone(), torch.ones(4, 3)
    accuracy(scores, targets)
    top_k_accuracy(scores, targets, k=2)
    multilabel_accuracy(scores, rows)
    confusion_matrix(scores, targets)
    assert torch.equal(scores, SCORES)
    assert torch.equal(targets, CLASSES)
    assert torch.equal(rows, torch.ones(4, 3))


# ------------------------------------------------------------------ against other people's metrics
# On scores without ties and NaN, where everybody agrees on what is right; torchmetrics gives 0.0
# for an empty input and scikit-learn ranks ties its own way, so neither is asked there.


@pytest.fixture
def data() -> SimpleNamespace:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(200, 6, generator=generator, dtype=torch.float64)
    targets = torch.randint(6, (200,), generator=generator)
    labels = torch.randint(2, (200, 6), generator=generator)
    labels[:80] = (logits[:80] > 0).long()  # whole rows right, too
    return SimpleNamespace(
        logits=logits,
        probabilities=logits.sigmoid(),
        targets=targets,
        ignored=torch.where(torch.arange(200) % 7 == 0, -1, targets),
        labels=labels,
    )


def assert_same(found: Tensor, reference: Any) -> None:
    torch.testing.assert_close(found, torch.as_tensor(reference), check_dtype=False)


def test_scikit_learn_agrees(data: SimpleNamespace) -> None:
    sk = pytest.importorskip("sklearn.metrics")
    predicted = data.logits.argmax(1)
    assert_same(accuracy(data.logits, data.targets), sk.accuracy_score(data.targets, predicted))
    assert_same(error_rate(data.logits, data.targets), sk.zero_one_loss(data.targets, predicted))
    for k in (1, 2, 5):  # k = C is trivial, and a warning there
        reference = sk.top_k_accuracy_score(data.targets, data.logits, k=k, labels=range(6))
        assert_same(top_k_accuracy(data.logits, data.targets, k=k), reference)
    reference = sk.confusion_matrix(data.targets, predicted, labels=range(6))
    assert_same(confusion_matrix(data.logits, data.targets), reference)
    assert_same(confusion_matrix(predicted, data.targets), reference)
    yes = (data.probabilities > 0.3).long()
    cut = {"threshold": 0.3}
    reference = sk.accuracy_score(data.labels[:, 0], yes[:, 0])
    found = threshold_accuracy(data.probabilities[:, 0], data.labels[:, 0], **cut)
    assert_same(found, reference)
    found = multilabel_accuracy(data.logits, data.labels, **cut)
    assert_same(found, 1 - sk.hamming_loss(data.labels, yes))
    found = multilabel_accuracy(data.logits, data.labels, **cut, subset=True)
    assert_same(found, sk.accuracy_score(data.labels, yes))


def test_torchmetrics_agrees(data: SimpleNamespace) -> None:
    tm = pytest.importorskip("torchmetrics.functional.classification")  # slow to import
    micro: dict[str, Any] = {"num_classes": 6, "average": "micro", "ignore_index": -1}
    reference = tm.multiclass_accuracy(data.logits, data.ignored, **micro)
    assert_same(accuracy(data.logits, data.ignored, ignore_index=-1), reference)
    assert_same(error_rate(data.logits, data.ignored, ignore_index=-1), 1 - reference)
    for k in (1, 2, 5):
        reference = tm.multiclass_accuracy(data.logits, data.ignored, top_k=k, **micro)
        assert_same(top_k_accuracy(data.logits, data.ignored, k=k, ignore_index=-1), reference)
    reference = tm.multiclass_confusion_matrix(
        data.logits, data.ignored, num_classes=6, ignore_index=-1
    )
    assert_same(confusion_matrix(data.logits, data.ignored, ignore_index=-1), reference)
    for cut in (0.3, 0.5):
        reference = tm.binary_accuracy(data.probabilities[:, 0], data.labels[:, 0], threshold=cut)
        found = threshold_accuracy(data.probabilities[:, 0], data.labels[:, 0], threshold=cut)
        assert_same(found, reference)
        options: dict[str, Any] = {"num_labels": 6, "threshold": cut}
        reference = tm.multilabel_accuracy(data.logits, data.labels, average="micro", **options)
        assert_same(multilabel_accuracy(data.logits, data.labels, threshold=cut), reference)
        reference = tm.multilabel_exact_match(data.logits, data.labels, **options)
        found = multilabel_accuracy(data.logits, data.labels, threshold=cut, subset=True)
        assert_same(found, reference)
    spatial, ids = data.logits.reshape(20, 10, 6).movedim(2, 1), data.ignored.reshape(20, 10)
    reference = tm.multiclass_accuracy(spatial, ids, **micro)
    assert_same(accuracy(spatial, ids, ignore_index=-1), reference)


# ------------------------------------------------------------------ properties

SINGLE_CLASS: dict[str, Callable[..., Tensor]] = {
    "accuracy": accuracy,
    "error_rate": error_rate,
    "top_k_accuracy": partial(top_k_accuracy, k=2),
    "confusion_matrix": confusion_matrix,
}
YES_OR_NO: dict[str, Callable[..., Tensor]] = {
    "threshold_accuracy": partial(threshold_accuracy, from_logits=True),
    "multilabel_accuracy": multilabel_accuracy,
    "multilabel_accuracy(subset)": partial(multilabel_accuracy, subset=True),
}
METRICS = SINGLE_CLASS | YES_OR_NO

FRACTIONS = set(METRICS) - {"confusion_matrix"}
# A property and the metrics it is tested on; what is left out is named with its reason.
PROPERTIES: dict[str, tuple[set[str], dict[str, str]]] = {
    "in [0, 1]": (FRACTIONS, {"confusion_matrix": "gives counts"}),
    "adds over a cut": (set(METRICS), {}),
    "order of samples is irrelevant": (set(METRICS), {}),
    "ignoring is deleting": (set(SINGLE_CLASS), dict.fromkeys(YES_OR_NO, "has no ignore_index")),
    "doubling scores changes nothing": (set(METRICS), {}),
    "float64 changes nothing": (set(METRICS), {}),
    "NaN never raises the score": (
        FRACTIONS - {"error_rate"},
        {"error_rate": "lower is better", "confusion_matrix": "refuses NaN"},
    ),
}


def test_every_metric_has_a_place_under_every_property() -> None:
    functions = {name.split("(")[0] for name in METRICS}
    public = {
        name
        for name, value in vars(metrics).items()
        if getattr(value, "__module__", None) == metrics.__name__ and not name.startswith("_")
    }
    helpers = {counts.__name__ for counts in COUNTS.values()} | {"counts_behind"}
    assert functions == public - helpers
    assert {metric.__name__ for metric in COUNTS} == functions - {"confusion_matrix"}
    for applies, exempt in PROPERTIES.values():
        assert applies | set(exempt) == set(METRICS)
        assert not applies & set(exempt)


def cases(law: str) -> Any:
    return pytest.mark.parametrize("name", sorted(PROPERTIES[law][0]))


drawn = settings(max_examples=50, deadline=None, derandomize=True)


@st.composite
def batches(draw: st.DrawFn, single_class: bool, least: int = 1) -> tuple[Tensor, Tensor]:
    """(N, C) scores of few values, so that ties are common, with ids or yes-or-no rows."""
    n, c = draw(st.integers(least, 8)), draw(st.integers(2, 4))
    scores = draw(st.lists(st.integers(-2, 2), min_size=n * c, max_size=n * c))
    size, top = (n, c - 1) if single_class else (n * c, 1)
    targets = torch.tensor(draw(st.lists(st.integers(0, top), min_size=size, max_size=size)))
    outputs = torch.tensor(scores).reshape(n, c) / 2
    return outputs, targets if single_class else targets.reshape(n, c).float()


def batches_for(name: str, least: int = 1) -> st.SearchStrategy[tuple[Tensor, Tensor]]:
    return batches(single_class=name in SINGLE_CLASS, least=least)


def parts(name: str, outputs: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
    """What is added over batches: the counts, or the matrix."""
    counts = counts_behind(METRICS[name])
    return counts(outputs, targets) if counts else (METRICS[name](outputs, targets),)


@cases("in [0, 1]")
@drawn
@given(data=st.data())
def test_it_is_a_fraction(name: str, data: st.DataObject) -> None:
    outputs, targets = data.draw(batches_for(name))
    correct, counted = parts(name, outputs, targets)
    assert 0 <= correct <= counted
    elementwise = name in ("threshold_accuracy", "multilabel_accuracy")
    assert counted == (outputs.numel() if elementwise else len(outputs))
    torch.testing.assert_close(METRICS[name](outputs, targets), correct / counted, rtol=0, atol=0)


@cases("adds over a cut")
@drawn
@given(data=st.data())
def test_it_adds_over_a_cut(name: str, data: st.DataObject) -> None:
    outputs, targets = data.draw(batches_for(name, least=2))
    cut = data.draw(st.integers(1, len(outputs) - 1))
    whole = parts(name, outputs, targets)
    first = parts(name, outputs[:cut], targets[:cut])
    second = parts(name, outputs[cut:], targets[cut:])
    torch.testing.assert_close(tuple(a + b for a, b in zip(first, second, strict=True)), whole)


@cases("order of samples is irrelevant")
@drawn
@given(data=st.data())
def test_it_ignores_the_order_of_samples(name: str, data: st.DataObject) -> None:
    outputs, targets = data.draw(batches_for(name))
    order = torch.tensor(data.draw(st.permutations(range(len(outputs)))))
    shuffled = parts(name, outputs[order], targets[order])
    torch.testing.assert_close(shuffled, parts(name, outputs, targets))


@cases("ignoring is deleting")
@drawn
@given(data=st.data())
def test_ignoring_a_sample_equals_deleting_it(name: str, data: st.DataObject) -> None:
    outputs, targets = data.draw(batches_for(name))
    size = len(targets)
    keep = torch.tensor(data.draw(st.lists(st.booleans(), min_size=size, max_size=size)))
    ignored = torch.where(keep, targets, -100)
    torch.testing.assert_close(
        parts(name, outputs, ignored), parts(name, outputs[keep], targets[keep])
    )


@cases("doubling scores changes nothing")
@drawn
@given(data=st.data())
def test_it_looks_at_the_order_of_scores_alone(name: str, data: st.DataObject) -> None:
    outputs, targets = data.draw(batches_for(name))
    # exact in floating point, keeps ties, and keeps the side of the threshold (logit 0)
    torch.testing.assert_close(parts(name, 2 * outputs, targets), parts(name, outputs, targets))


@cases("float64 changes nothing")
@drawn
@given(data=st.data())
def test_it_does_not_depend_on_the_dtype(name: str, data: st.DataObject) -> None:
    outputs, targets = data.draw(batches_for(name))
    torch.testing.assert_close(
        METRICS[name](outputs.double(), targets), METRICS[name](outputs, targets)
    )


@cases("NaN never raises the score")
@drawn
@given(data=st.data())
def test_nan_never_raises_the_score(name: str, data: st.DataObject) -> None:
    outputs, targets = data.draw(batches_for(name))
    correct, counted = parts(name, outputs, targets)
    size = outputs.numel()
    hit = torch.tensor(data.draw(st.lists(st.booleans(), min_size=size, max_size=size)))
    spoilt = outputs.masked_fill(hit.reshape(outputs.shape), NAN)
    correct_then, counted_then = parts(name, spoilt, targets)
    assert correct_then <= correct
    assert counted_then == counted
    assert_counts(parts(name, torch.full_like(outputs, NAN), targets), 0, int(counted))


@drawn
@given(batches(single_class=True))
def test_accuracy_and_error_rate_share_the_samples(batch: tuple[Tensor, Tensor]) -> None:
    (correct, counted), (wrong, same) = accuracy_counts(*batch), error_counts(*batch)
    assert correct + wrong == counted == same


@drawn
@given(batches(single_class=True))
def test_accuracy_is_the_trace_of_the_confusion_matrix(batch: tuple[Tensor, Tensor]) -> None:
    matrix = confusion_matrix(*batch)
    torch.testing.assert_close(accuracy_counts(*batch), (matrix.trace(), matrix.sum()))


@drawn
@given(batches(single_class=True))
def test_top_k_grows_with_k_from_accuracy_to_one(batch: tuple[Tensor, Tensor]) -> None:
    size = batch[0].shape[1]
    correct = [int(top_k_counts(*batch, k=k)[0]) for k in range(1, size + 1)]
    assert correct == sorted(correct)
    assert correct[0] == accuracy_counts(*batch)[0]
    assert correct[-1] == len(batch[0])


@drawn
@given(batches(single_class=True))
def test_top_k_is_a_stable_sort(batch: tuple[Tensor, Tensor]) -> None:
    scores, targets = batch
    ranking = scores.sort(dim=1, descending=True, stable=True).indices
    for k in range(1, scores.shape[1] + 1):
        expected = (ranking[:, :k] == targets[:, None]).any(1).sum()
        assert top_k_counts(scores, targets, k=k)[0] == expected


@drawn
@given(batches(single_class=True), st.data())
def test_relabelling_classes_changes_nothing_without_ties(
    batch: tuple[Tensor, Tensor], data: st.DataObject
) -> None:
    scores, targets = batch
    scores = scores + torch.arange(scores.shape[1]) / 16  # steps of 1/2 before: no ties now
    order = torch.tensor(data.draw(st.permutations(range(scores.shape[1]))))
    renamed = scores[:, order], order.argsort()[targets]
    torch.testing.assert_close(accuracy_counts(*renamed), accuracy_counts(scores, targets))
    torch.testing.assert_close(top_k_counts(*renamed, k=2), top_k_counts(scores, targets, k=2))
    matrix = confusion_matrix(scores, targets)
    torch.testing.assert_close(confusion_matrix(*renamed), matrix[order][:, order])


@drawn
@given(batches(single_class=True))
def test_confusion_matrix_sums_to_the_classes(batch: tuple[Tensor, Tensor]) -> None:
    scores, targets = batch
    size, predicted = scores.shape[1], scores.argmax(1)
    matrix = confusion_matrix(scores, targets)
    torch.testing.assert_close(matrix.sum(1), targets.bincount(minlength=size))
    torch.testing.assert_close(matrix.sum(0), predicted.bincount(minlength=size))
    swapped = confusion_matrix(targets, predicted, num_classes=size)
    torch.testing.assert_close(swapped, matrix.T)


@drawn
@given(batches(single_class=False))
def test_whole_rows_are_never_easier_than_labels(batch: tuple[Tensor, Tensor]) -> None:
    assert multilabel_accuracy(*batch, subset=True) <= multilabel_accuracy(*batch)


# ------------------------------------------------------------------ misuse that used to pass


def test_m01_argmax_over_one_column_is_an_error() -> None:
    targets = torch.cat([torch.zeros(980), torch.ones(1135)]).reshape(-1, 1)
    outputs = torch.where(targets > 0.5, 0.9, 0.1)
    outputs[:3], outputs[-3:] = 0.9, 0.1
    silent = (outputs.argmax(dim=-1) == targets.view(-1)).float().mean()
    assert silent.item() == pytest.approx(0.463357, abs=5e-7)  # 980 / 2115: what must not come out
    for wanted in (targets, targets.view(-1), targets.view(-1).long(), targets.long()):
        for metric in SINGLE_CLASS.values():
            with pytest.raises(ValueError, match=re.escape("use threshold_accuracy")):
                metric(outputs, wanted)
    assert_counts(threshold_counts(outputs, targets), 2115 - 6, 2115)
    found = threshold_accuracy(outputs, targets)
    assert found.item() == pytest.approx(0.997163, abs=5e-7)


@pytest.mark.parametrize("metric", list(YES_OR_NO.values()))
def test_m02_a_column_against_a_vector_is_never_broadcast(metric: Callable[..., Tensor]) -> None:
    targets = torch.cat([torch.zeros(980), torch.ones(1135)])
    outputs = torch.where(targets > 0.5, 0.9, 0.1).reshape(-1, 1)
    with pytest.raises(ValueError, match=re.escape("Use targets.reshape(-1, 1), or outputs.sq")):
        metric(outputs, targets)
    with pytest.raises(ValueError, match=re.escape("Use targets.squeeze(1).")):
        metric(outputs.squeeze(1), targets.reshape(-1, 1))


def test_m04_raw_scores_are_not_taken_for_probabilities() -> None:
    scores = torch.tensor([[0.3], [0.4], [2.0], [-1.0]])
    targets = torch.tensor([[1.0], [1.0], [1.0], [0.0]])
    with pytest.raises(ValueError, match=re.escape("from_logits=True")):
        threshold_accuracy(scores, targets)
    with pytest.raises(ValueError, match=re.escape("from_logits=True")):
        multilabel_accuracy(scores, targets, from_logits=False)
    assert_value(threshold_accuracy(scores, targets, from_logits=True), 1.0)


def test_m05_counts_of_uneven_batches_divide_once() -> None:
    targets = torch.zeros(100, dtype=torch.int64)
    scores = torch.tensor([1.0, 0.0]).repeat(100, 1)
    scores[96:] = torch.tensor([0.0, 1.0])  # 96 of 100 right; the wrong ones in the last batch
    pairs = list(zip(scores.split(48), targets.split(48), strict=True))
    mean_of_means = torch.stack([accuracy(*pair) for pair in pairs]).mean()
    assert mean_of_means.item() == pytest.approx(2 / 3)  # the mistake
    sums = torch.stack([torch.stack(accuracy_counts(*pair)) for pair in pairs]).sum(0)
    assert_value(sums[0] / sums[1], 0.96)


# ------------------------------------------------------------------ errors

IDS, ROWS = torch.tensor([0, 1]), torch.tensor([[0.9, 0.1], [0.2, 0.8]])
YES = torch.tensor([[1.0, 0.0], [0.0, 1.0]])


def raises(kind: type[Exception], words: str) -> Any:
    return pytest.raises(kind, match=re.escape(words))


@pytest.mark.parametrize("name", sorted(METRICS))
def test_outputs_and_targets_must_be_tensors(name: str) -> None:
    targets = IDS if name in SINGLE_CLASS else YES
    with raises(TypeError, "outputs must be a tensor, got list. Use torch.as_tensor(outputs)."):
        METRICS[name](ROWS.tolist(), targets)
    with raises(TypeError, "targets must be a tensor, got ndarray. Use torch.as_tensor(targets)."):
        METRICS[name](ROWS, targets.numpy())
    with raises(TypeError, "Pass the one that is to be scored, such as outputs['logits']."):
        METRICS[name]({"logits": ROWS}, targets)
    with raises(TypeError, "Pass the one that is to be scored, such as outputs[0]."):
        METRICS[name]((ROWS, ROWS), targets)


@pytest.mark.parametrize("name", sorted(FRACTIONS))
def test_outputs_must_be_floating_point(name: str) -> None:
    with raises(TypeError, "outputs must be floating point scores, got torch.int64. Pass what"):
        METRICS[name](torch.tensor([[1, 0], [0, 1]]), IDS if name in SINGLE_CLASS else YES)


@pytest.mark.parametrize("metric", SINGLE_CLASS.values())
def test_scores_must_have_a_class_dimension(metric: Callable[..., Tensor]) -> None:
    with raises(ValueError, "outputs must have shape (N, C), (C,) or (N, C, d1, ...), got ()."):
        metric(torch.tensor(0.5), torch.tensor(1))


@pytest.mark.parametrize("shape", [(2, 1), (2, 0), (1,), (2, 1, 2)])
def test_scores_must_have_at_least_two_columns(shape: tuple[int, ...]) -> None:
    targets = torch.zeros(shape[:1] + shape[2:], dtype=torch.int64)
    with raises(
        ValueError, f"outputs must have a column for each of at least 2 classes, got shape {shape}"
    ):
        accuracy(torch.zeros(shape), targets)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_a_vector_of_outputs_is_not_one_sample(dtype: torch.dtype) -> None:
    outputs = torch.tensor([0.9, 0.1, 0.8])  # a head that was squeezed: three samples
    with raises(ValueError, "targets must have shape () for one sample with scores (C,)"):
        accuracy(outputs, torch.tensor([1, 0, 1], dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool])
def test_rows_must_be_floating_point(dtype: torch.dtype) -> None:
    with raises(TypeError, "Use targets.float(), or targets.argmax(dim=1)."):
        accuracy(ROWS, YES.to(dtype))


def test_ignore_index_does_not_go_with_rows() -> None:
    with raises(ValueError, "ignore_index must be left out when targets are rows"):
        accuracy(ROWS, YES, ignore_index=0)
    assert_value(accuracy(ROWS, YES, ignore_index=-1), 1.0)  # as in torch: it names no class


@pytest.mark.parametrize("ignore_index", [None, 1.0, True])
def test_ignore_index_must_be_an_int(ignore_index: Any) -> None:
    with raises(TypeError, f"ignore_index must be an int, got {ignore_index!r}."):
        accuracy(ROWS, IDS, ignore_index=ignore_index)
    with raises(TypeError, f"ignore_index must be an int, got {ignore_index!r}."):
        confusion_matrix(IDS, IDS, ignore_index=ignore_index)


@pytest.mark.parametrize("targets", [torch.tensor([0, 1, 1]), torch.tensor(1), torch.zeros(2, 3)])
def test_targets_must_have_the_shape_of_the_samples(targets: Tensor) -> None:
    words = (
        "targets must have shape (2,) as class ids to go with outputs (2, 2), "
        f"or the same shape as rows, got {tuple(targets.shape)}."
    )
    with raises(ValueError, words):
        accuracy(ROWS, targets)


def test_a_column_of_class_ids_is_not_a_vector() -> None:
    with raises(ValueError, "got (2, 1). Use targets.squeeze(1)."):
        accuracy(ROWS, IDS[:, None])
    with raises(ValueError, "got (2, 1, 3). Use targets.squeeze(1)."):
        accuracy(torch.zeros(2, 4, 3), torch.zeros(2, 1, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"got \(1,\)\.$"):  # squeeze(1) would not help here
        accuracy(torch.zeros(4), torch.tensor([1]))
    with pytest.raises(ValueError, match=r"got \(4, 1\)\.$"):
        accuracy(torch.zeros(4), torch.zeros(4, 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.int32, torch.int8, torch.bool])
def test_class_ids_must_be_int64_or_uint8(dtype: torch.dtype) -> None:
    words = f"targets must be class ids of dtype int64 or uint8, got {dtype}. Use targets.long()."
    with raises(TypeError, words):
        accuracy(ROWS, IDS.to(dtype))
    with raises(TypeError, words):
        confusion_matrix(IDS, IDS.to(dtype))
    if not dtype.is_floating_point:
        with raises(TypeError, words.replace("targets", "outputs")):
            confusion_matrix(IDS.to(dtype), IDS)


@pytest.mark.parametrize("name", sorted(SINGLE_CLASS))
@pytest.mark.parametrize("bad", [-1, 2])
def test_class_ids_must_be_in_range(name: str, bad: int) -> None:
    targets = torch.tensor([1, 0, bad, bad, -100])
    words = (
        f"targets must be class ids in [0, 1] or ignore_index=-100, got {bad} at index (2,) (2 of 5"
    )
    with raises(ValueError, words):
        METRICS[name](torch.zeros(5, 2), targets)


def test_the_first_bad_id_is_found_in_any_shape() -> None:
    targets = torch.tensor([[0, 1, 1], [1, 7, 1]])
    with raises(ValueError, "got 7 at index (1, 1) (1 of 6 do not fit)."):
        accuracy(torch.zeros(2, 2, 3), targets)
    with raises(ValueError, "got 7 at index () (1 of 1 do not fit)."):
        accuracy(torch.zeros(2), torch.tensor(7))


@pytest.mark.parametrize("k", [0, 3, -1])
def test_k_must_be_a_number_of_classes(k: int) -> None:
    with raises(ValueError, f"k must be in [1, C] with C=2, got {k}."):
        top_k_accuracy(ROWS, IDS, k=k)


@pytest.mark.parametrize("k", [2.0, True, None])
def test_k_must_be_an_int(k: Any) -> None:
    with raises(TypeError, f"k must be an int, got {k!r}."):
        top_k_accuracy(ROWS, IDS, k=k)


@pytest.mark.parametrize("metric", YES_OR_NO.values())
def test_shapes_of_a_yes_or_no_must_agree(metric: Callable[..., Tensor]) -> None:
    words = "targets must have the shape of outputs (they are never broadcast), got targets "
    with pytest.raises(ValueError, match=re.escape(f"{words}(2, 3) and outputs (2, 2).") + "$"):
        metric(ROWS, torch.zeros(2, 3))
    with pytest.raises(ValueError, match=re.escape(f"{words}() and outputs (1,).") + "$"):
        metric(torch.zeros(1), torch.tensor(1.0))
    with pytest.raises(ValueError, match=re.escape(f"{words}(2, 1) and outputs (2, 2).") + "$"):
        metric(ROWS, torch.zeros(2, 1))
    with pytest.raises(ValueError, match=re.escape(f"{words}(2, 2, 1) and outputs (2, 2).") + "$"):
        metric(ROWS, torch.zeros(2, 2, 1))
    with raises(ValueError, "For class ids beside a column per class use accuracy."):
        metric(ROWS, IDS)


def test_predicted_ids_must_have_the_shape_of_the_targets() -> None:
    words = "targets must have the shape of outputs (they are never broadcast), got targets (2,)"
    with raises(ValueError, f"{words} and outputs (2, 1). Use targets.reshape(-1, 1), or"):
        confusion_matrix(IDS[:, None], IDS)
    with pytest.raises(ValueError, match=re.escape(f"{words} and outputs (2, 2).") + "$"):
        confusion_matrix(torch.zeros(2, 2, dtype=torch.int64), IDS)


@pytest.mark.parametrize("metric", YES_OR_NO.values())
def test_targets_of_a_yes_or_no_must_be_real(metric: Callable[..., Tensor]) -> None:
    with raises(TypeError, "targets must be floating point, integer or bool, got torch.complex64"):
        metric(ROWS, YES.to(torch.complex64))


@pytest.mark.parametrize("metric", YES_OR_NO.values())
def test_threshold_must_be_a_number(metric: Callable[..., Tensor]) -> None:
    with raises(TypeError, "threshold must be a number, got str."):
        metric(ROWS, YES, threshold="0.5")


@pytest.mark.parametrize("metric", YES_OR_NO.values())
@pytest.mark.parametrize("threshold", [-0.01, 1.0, 50, NAN])
def test_threshold_must_be_a_probability(metric: Callable[..., Tensor], threshold: float) -> None:
    with raises(ValueError, f"threshold must be a probability in [0, 1), got {threshold!r}."):
        metric(ROWS, YES, threshold=threshold)


@pytest.mark.parametrize("threshold", [0, 0.99])
def test_threshold_may_be_next_to_its_limits(threshold: float) -> None:
    outputs = torch.tensor([1.0, 0.0])
    assert_value(threshold_accuracy(outputs, torch.tensor([1, 0]), threshold=threshold), 1.0)


@pytest.mark.parametrize("metric", YES_OR_NO.values())
@pytest.mark.parametrize("bad", [-1.0, 1.5, NAN])
def test_targets_of_a_yes_or_no_must_be_in_range(metric: Callable[..., Tensor], bad: float) -> None:
    targets = torch.tensor([[0.0, 1.0], [bad, bad]])
    with raises(ValueError, f"targets must be in [0, 1], got {bad} at index (1, 0) (2 of 4 do not"):
        metric(ROWS, targets)


@pytest.mark.parametrize("bad", [-0.5, 1.5])
def test_probabilities_must_be_in_range(bad: float) -> None:
    outputs = torch.tensor([[0.0, 1.0], [NAN, bad]])
    words = (
        f"outputs must be probabilities in [0, 1], got {bad} at index (1, 1) (1 of 4 do not fit)."
    )
    for metric in (threshold_accuracy, partial(multilabel_accuracy, from_logits=False)):
        with raises(ValueError, f"{words} Pass from_logits=True if they are raw scores."):
            metric(outputs, YES)


@pytest.mark.parametrize("shape", [(), (0,), (2, 0)])
def test_a_subset_needs_a_label(shape: tuple[int, ...]) -> None:
    with raises(ValueError, f"outputs must have a label for subset=True, got shape {shape}."):
        multilabel_accuracy(torch.zeros(shape), torch.zeros(shape), subset=True)


def test_a_confusion_matrix_has_no_place_for_nan() -> None:
    spoilt = torch.tensor([[NAN, 0.1], [0.2, NAN]])
    with raises(
        ValueError, "outputs must not be NaN, got nan at index (1, 1) (1 of 4 do not fit)."
    ):
        confusion_matrix(spoilt, torch.tensor([-100, 0]))
    with raises(
        ValueError, "targets must not be NaN, got nan at index (0, 0) (2 of 4 do not fit)."
    ):
        confusion_matrix(ROWS, spoilt)


@pytest.mark.parametrize("num_classes", [1, 3])
def test_num_classes_beside_scores_is_their_columns(num_classes: int) -> None:
    words = f"num_classes must be the 2 columns of outputs, got {num_classes}. Leave it out."
    with raises(ValueError, words):
        confusion_matrix(ROWS, torch.tensor([0, 0]), num_classes=num_classes)


@pytest.mark.parametrize("num_classes", [0, -1])
def test_num_classes_must_be_positive(num_classes: int) -> None:
    with raises(ValueError, f"num_classes must be at least 1, got {num_classes}."):
        confusion_matrix(IDS[:0], IDS[:0], num_classes=num_classes)


@pytest.mark.parametrize("num_classes", [2.0, True])
def test_num_classes_must_be_an_int(num_classes: Any) -> None:
    with raises(TypeError, f"num_classes must be an int, got {num_classes!r}."):
        confusion_matrix(IDS, IDS, num_classes=num_classes)


def test_num_classes_is_needed_where_no_id_is_counted() -> None:
    with raises(ValueError, "num_classes must be given when no class id is counted, got None."):
        confusion_matrix(IDS, torch.tensor([-100, -100]))


def test_num_classes_must_cover_every_id() -> None:
    three, two = torch.tensor([0, 2]), torch.tensor([0, 1])
    with raises(ValueError, "outputs must be class ids in [0, 1], got 2 at index (1,)"):
        confusion_matrix(three, two, num_classes=2)
    with raises(ValueError, "targets must be class ids in [0, 1] or ignore_index=-100, got 2 at"):
        confusion_matrix(two, three, num_classes=2)


@pytest.mark.parametrize("bad", [-1, -100])
def test_predicted_ids_must_not_be_negative(bad: int) -> None:
    with raises(ValueError, f"outputs must be class ids in [0, 1], got {bad} at index (0,)"):
        confusion_matrix(torch.tensor([bad, 0]), torch.tensor([0, 1]))
    with raises(ValueError, f"targets must be class ids in [0, 0] or ignore_index=7, got {bad} at"):
        confusion_matrix(torch.tensor([bad]), torch.tensor([bad]), ignore_index=7)


# --- transforms -----------------------------------------------------------------------------

OF_SIX = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
SIX_IDS = (
    OF_SIX.argmax(1)
    .where(torch.arange(6) > 1, (OF_SIX.argmin(1)))
    .index_fill(0, torch.tensor(4), -100)
)


@pytest.mark.parametrize(
    ("metric", "targets"),
    [
        (accuracy, SIX_IDS),
        (error_rate, SIX_IDS),
        (partial(top_k_accuracy, k=2), SIX_IDS),
        (multilabel_accuracy, (OF_SIX > 0.2).float()),
        (partial(threshold_accuracy, from_logits=True), (OF_SIX > 0.2).float()),
    ],
    ids=["accuracy", "error_rate", "top_k", "multilabel", "threshold"],
)
def test_a_metric_is_one_graph_to_compile_and_takes_vmap(metric, targets):
    expected = metric(OF_SIX, targets)
    assert 0 < expected < 1
    compiled = torch.compile(lambda o, t: metric(o, t), fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(OF_SIX, targets), expected)
    pairs = torch.stack([OF_SIX, OF_SIX]), torch.stack([targets, targets])
    torch.testing.assert_close(torch.func.vmap(metric)(*pairs), expected.expand(2))
