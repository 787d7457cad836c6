"""torchcls.looking.classes: held against scikit-learn, torchmetrics and published values."""

import functools
import math

import pytest
import torch
import torch.nn.functional as F
from sklearn import metrics as sklearn_metrics
from torch import nn, tensor
from torchmetrics.functional.classification import multiclass_calibration_error

import torchcls as tc
from torchcls.looking import (
    calibration,
    class_report,
    most_confused,
    plot_confusion,
    plot_worst,
    report,
    wilson_interval,
    worst,
)

CE, BCE = nn.CrossEntropyLoss(), nn.BCEWithLogitsLoss()


def drawn(n, classes, generator, loss_fn=CE):
    outputs = torch.randn(n, classes, generator=generator)
    targets = torch.randint(classes, (n,), generator=generator)
    return tc.Predictions(outputs + F.one_hot(targets, classes), targets, loss_fn)


def said(predicted, targets, classes=3):
    return tc.Predictions(torch.eye(classes)[tensor(predicted)], tensor(targets), CE)


# ------------------------------------------------------------------ per class


@pytest.mark.parametrize(
    "case",
    ["random", "many classes", "no sample of one", "one never predicted", "all wrong", "one class"],
)
def test_the_report_is_that_of_scikit_learn(case, generator):
    predictions = {
        "random": drawn(200, 4, generator),
        "many classes": drawn(50, 40, generator),  # some of neither kind
        "no sample of one": said([0, 1, 2, 2, 1], [0, 1, 1, 0, 1]),
        "one never predicted": said([0, 1, 1, 0, 1], [0, 1, 2, 2, 2]),
        "all wrong": said([1, 2, 0], [0, 1, 2]),
        "one class": said([1, 1], [1, 1]),
    }[case]
    report = class_report(predictions)
    true, predicted, ids = predictions.targets, predictions.predicted, range(len(report.matrix))
    score = functools.partial(
        sklearn_metrics.precision_recall_fscore_support, true, predicted, labels=ids
    )
    *scores, support = score(zero_division=0)
    for ours, theirs in zip((report.precision, report.recall, report.f1), scores, strict=True):
        assert ours.tolist() == pytest.approx(theirs, abs=1e-12)
    assert report.support.tolist() == support.tolist()
    for average in ("macro", "weighted"):
        theirs = score(zero_division=0, average=average)[:3]
        assert getattr(report, average) == pytest.approx(theirs, abs=1e-12)
    assert report.accuracy == pytest.approx(sklearn_metrics.accuracy_score(true, predicted))


def test_soft_targets_and_ignored_ones_are_read_as_the_loss_reads_them(generator):
    known = drawn(60, 3, generator)
    rows = F.one_hot(known.targets, 3) * 0.9 + 0.1 / 3
    soft = tc.Predictions(known.outputs, rows, CE)
    assert torch.equal(class_report(soft).matrix, class_report(known).matrix)
    targets = known.targets.where(torch.arange(60) < 50, 255)
    part = tc.Predictions(known.outputs, targets, nn.CrossEntropyLoss(ignore_index=255))
    first = tc.Predictions(known.outputs[:50], known.targets[:50], CE)
    assert torch.equal(class_report(part).matrix, class_report(first).matrix)
    assert calibration(part).error == calibration(first).error


@pytest.mark.parametrize("shape", [(40, 1), (40,)])
def test_a_single_sigmoid_is_two_classes(shape, generator):
    outputs = torch.randn(shape, generator=generator)
    outputs[0] = 0.0  # p = 0.5 is class 0
    targets = torch.randint(2, shape, generator=generator).float()
    predictions = tc.Predictions(outputs, targets, BCE)
    two = tc.Predictions(
        torch.stack([0 * outputs, outputs], -1).reshape(40, 2), targets.flatten().long(), CE
    )
    assert torch.equal(class_report(predictions).matrix, class_report(two).matrix)
    assert calibration(predictions).error == pytest.approx(calibration(two).error, abs=1e-6)


def test_the_table_is_aligned_and_bears_the_names():
    names = ["cat", "a long name of a class", 7]
    *rows, last = str(class_report(said([0, 1], [0, 1]), names)).splitlines()
    assert [row[:22].strip() for row in rows] == [
        "",
        *map(str, names),
        "macro mean",
        "weighted mean",
    ]
    assert len({len(row) for row in rows}) == 1
    assert [row.split()[-1] for row in rows[1:]] == ["1", "1", "0", "2", "2"]
    assert last.startswith("accuracy 1.000000, with 95 % confidence in 0.342")


def test_names_of_double_width_are_aligned():
    """As a terminal shows them, where one of these letters takes the place of two."""
    lines = str(class_report(said([0, 1], [0, 1]), ["猫", "ねこ", "cafe\u0301"])).splitlines()
    assert lines[1].startswith(11 * " " + "猫  ")  # under the 13 of "weighted mean"
    assert lines[2].startswith(9 * " " + "ねこ  ")
    assert lines[3].startswith(9 * " " + "cafe\u0301  ")


def test_names_of_the_predictions_stand_where_none_are_given(tmp_path):
    named = tc.Predictions(torch.eye(3), tensor([0, 0, 2]), CE, ["cat", "dog", 7])
    assert class_report(named).classes == ("cat", "dog", "7")
    assert class_report(named, "abc").classes == ("a", "b", "c")
    assert most_confused(named) == [("cat", "dog", 1)]
    assert plot_confusion(named).get_yticklabels()[1].get_text() == "dog"
    assert plot_worst(torch.zeros(3, 2, 2), named)[0].get_title().startswith("cat\ntaken for dog")
    assert "<td>dog</td>" in report(tmp_path / "page", named).read_text("utf-8")
    with pytest.raises(ValueError, match="classes must name 3 classes, got 2 names"):
        class_report(tc.Predictions(named.outputs, named.targets, CE, ["cat", "dog"]))


def test_the_most_confused_come_sorted_and_without_what_is_right():
    predictions = said([1, 1, 1, 0, 2, 2, 2, 0], [0, 0, 0, 1, 1, 2, 2, 2])
    assert most_confused(predictions) == [
        ("0", "1", 3),
        ("1", "0", 1),
        ("1", "2", 1),
        ("2", "0", 1),
    ]
    assert most_confused(predictions, "abc", k=1) == [("a", "b", 3)]
    assert most_confused(said([0, 1], [0, 1])) == []


# ------------------------------------------------------------------ the largest losses


WEIGHT = tensor([1.0, 5.0, 0.5])


@pytest.mark.parametrize(
    ("loss_fn", "options"),
    [
        (nn.CrossEntropyLoss, {"weight": WEIGHT, "label_smoothing": 0.1, "ignore_index": 2}),
        (nn.NLLLoss, {"weight": WEIGHT}),
        (functools.partial(functools.partial, F.cross_entropy), {"weight": WEIGHT}),
        (functools.partial(functools.partial, tc.cross_entropy), {}),
    ],
)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_worst_are_those_of_the_loss_with_its_options(loss_fn, options, reduction, generator):
    predictions = drawn(50, 3, generator, loss_fn(**options, reduction=reduction))
    losses = loss_fn(**options, reduction="none")(predictions.outputs, predictions.targets)
    values, indices = losses.topk(5)
    ours = worst(predictions, k=5)
    assert torch.equal(ours[0], indices)
    torch.testing.assert_close(ours[1], values)


def test_a_sample_with_several_outputs_has_their_mean_and_nan_is_the_worst():
    outputs = tensor([[0.0, 1.0], [3.0, 4.0], [math.nan, 0.0]])
    loss_fn = nn.BCEWithLogitsLoss(pos_weight=tensor([2.0, 1.0]))
    indices, losses = worst(tc.Predictions(outputs, torch.ones(3, 2), loss_fn))
    assert indices.tolist() == [2, 0, 1]
    expected = F.binary_cross_entropy_with_logits(
        outputs, torch.ones(3, 2), pos_weight=tensor([2.0, 1.0]), reduction="none"
    )
    torch.testing.assert_close(losses, expected.mean(1)[indices], equal_nan=True)


# ------------------------------------------------------------------ how sure


@pytest.mark.parametrize(  # Newcombe, Statistics in Medicine 17 (1998) 857, table I, method 3
    ("correct", "n", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_intervals_are_the_published_ones(correct, n, low, high):
    found = wilson_interval(correct, n)
    assert found == pytest.approx((low, high), abs=5e-5)
    mirrored = wilson_interval(n - correct, n)
    assert mirrored == pytest.approx((1 - found[1], 1 - found[0]))
    wider = wilson_interval(correct, n, confidence=0.99)
    assert wider[0] <= found[0] < found[1] < wider[1]


def test_nothing_right_and_all_right_reach_the_ends():
    assert wilson_interval(0, 7)[0] == 0.0
    assert wilson_interval(7, 7)[1] == 1.0


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_the_calibration_error_is_that_of_torchmetrics(bins, generator):
    predictions = drawn(500, 4, generator)
    theirs = multiclass_calibration_error(
        predictions.probabilities, predictions.targets, num_classes=4, n_bins=bins, norm="l1"
    )
    found = calibration(predictions, bins=bins)
    assert found.error == pytest.approx(float(theirs), abs=1e-6)
    assert int(found.count.sum()) == 500
    assert len(found.count) == len(found.accuracy) == len(found.confidence) == bins


def test_a_bin_holds_its_lower_edge_and_the_last_one_holds_one():
    p = tensor([[1.0, 0.0], [0.75, 0.25], [0.5, 0.5]])
    found = calibration(tc.Predictions(p.log(), tensor([0, 1, 0]), nn.NLLLoss()), bins=4)
    assert found.count.tolist() == [0, 0, 1, 2]
    assert found.accuracy[2:].tolist() == [1.0, 0.5]
    assert found.confidence[2:].tolist() == [0.5, 0.875]
    assert found.accuracy[:2].isnan().all()
    assert found.error == pytest.approx((0.5 + abs(1.75 - 1)) / 3)


# ------------------------------------------------------------------ errors


BITS = tc.Predictions(torch.zeros(4, 3), torch.zeros(4, 3), BCE)
ALL_IGNORED = tc.Predictions(torch.zeros(2, 3), tensor([-100, -100]), CE)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: class_report(tc.Predictions(torch.zeros(2, 3), None, CE)), "must have targets"),
        (lambda: worst(tc.Predictions(torch.zeros(2, 3), None, CE)), "must have targets"),
        (lambda: class_report(tc.Predictions(torch.zeros(2, 3), tensor([0, 1]))), "needs the loss"),
        (lambda: worst(tc.Predictions(torch.zeros(2, 3), tensor([0, 1]))), "got None"),
        (lambda: class_report(BITS), "got BCEWithLogitsLoss on outputs .4, 3.. Look at one label"),
        (lambda: calibration(tc.Predictions(torch.zeros(2), torch.zeros(2), F.mse_loss)), "mse_l"),
        (lambda: class_report(ALL_IGNORED), "at least one target that counts"),
        (lambda: calibration(ALL_IGNORED), "at least one target that counts"),
        (lambda: class_report(said([0], [0]), "ab"), "must name 3 classes, got 2 names"),
        (lambda: most_confused(said([0], [0]), "abcd"), "must name 3 classes, got 4 names"),
        (
            lambda: class_report(tc.Predictions(tensor([[math.nan, 0.0]]), tensor([0]), CE)),
            "outputs must not be NaN",
        ),
        (
            lambda: class_report(tc.Predictions(tensor([[math.nan]]), tensor([[0.0]]), BCE)),
            "outputs must not be NaN",
        ),
        (
            lambda: class_report(tc.Predictions(torch.zeros(2, 1), torch.zeros(2), BCE)),
            r"targets must have the shape of outputs \(2, 1\), got \(2,\)",
        ),
        (lambda: most_confused(said([0], [0]), k=0), "k must be at least 1"),
        (lambda: worst(said([0], [0]), k=0), "k must be at least 1"),
        (lambda: calibration(said([0], [0]), bins=0), "bins must be at least 1"),
        (lambda: wilson_interval(0, 0), "n must be at least 1"),
        (lambda: wilson_interval(3, 2), r"correct must be in \[0, n\] with n=2, got 3"),
        (lambda: wilson_interval(1, 2, 95), r"confidence must be in \(0, 1\), got 95"),
    ],
)
def test_what_cannot_be_said_is_an_error(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_one_label_of_several_is_looked_at_alone(generator):
    outputs = torch.randn(30, 3, generator=generator)
    targets = torch.randint(2, (30, 3), generator=generator).float()
    report = class_report(tc.Predictions(outputs[:, [1]], targets[:, [1]], BCE))
    assert report.accuracy == pytest.approx(
        float(((outputs > 0) == (targets > 0))[:, 1].float().mean())
    )
