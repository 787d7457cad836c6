"""Metrics: whether they read the outputs as the loss does, and whether they read them at all."""

import functools

import pytest
import torch
import torch.nn.functional as F
import torchmetrics
from torch import nn

import torchcls as tc

X = torch.randn(10, 4, generator=torch.Generator().manual_seed(0))
IDS = torch.arange(10) % 3
YES = (torch.arange(10) % 2).float()
BCE, BCEL, CE = nn.BCELoss(), nn.BCEWithLogitsLoss(), nn.CrossEntropyLoss()


def said(metrics, k=1, targets=None, loss_fn=BCEL, layers=()):
    torch.manual_seed(0)
    targets = YES[:, None] if targets is None else targets
    model = nn.Sequential(nn.Linear(4, k), *layers)
    return tc.check(model, (X, targets), loss_fn, metrics)


def by_argmax(outputs, targets):
    return (outputs.argmax(-1) == targets.view(-1)).float().mean()


def by_argmax_function(outputs, targets):
    return (torch.argmax(outputs, dim=1) == targets[:, 0]).sum() / len(targets)


def by_argmax_kept(outputs, targets):
    return (outputs.argmax(1, keepdim=True) == targets).float().mean().item()


def by_max(outputs, targets):
    return (outputs.max(1).indices == targets[:, 0]).float().mean()


@pytest.mark.parametrize("metric", [by_argmax, by_argmax_function, by_argmax_kept, by_max])
def test_an_argmax_over_one_column_is_found_in_any_spelling(metric):
    (finding,) = said([metric])
    assert (finding.code, finding.severity) == ("metric-ignores-outputs", "error")
    assert f"The metric {metric.__name__} takes the argmax over 1 column" in finding.message


def test_an_argmax_that_is_not_of_one_column_is_left_alone():
    def accuracy(outputs, targets):
        if outputs.shape[1] == 1:
            return ((outputs > 0) == (targets > 0.5)).float().mean()
        return (outputs.argmax(1) == targets).float().mean()

    assert said([accuracy]) == []
    assert said([accuracy], 3, IDS, CE) == []


def flat(outputs, targets):
    return F.binary_cross_entropy_with_logits(outputs.squeeze(1), targets)


def test_comparing_all_with_all_is_found_and_names_the_shapes():
    def loose(outputs, targets):
        return ((outputs > 0) == targets).float().mean()

    (finding,) = said([loose], targets=YES, loss_fn=flat)
    assert (finding.code, finding.severity) == ("metric-broadcasts", "error")
    assert "outputs (10, 1) with targets (10,): that is 10 x 10" in finding.message
    assert said([loose]) == []  # (10, 1) with (10, 1)


def test_a_loss_that_compares_all_with_all_is_found():
    def squares(outputs, targets):
        return ((outputs - targets) ** 2).mean()

    (finding,) = said([], targets=YES, loss_fn=squares)
    assert (finding.code, finding.severity) == ("loss-broadcasts", "error")
    assert "targets.reshape(-1, 1)" in finding.message
    assert said([], loss_fn=squares) == []


@pytest.mark.parametrize(
    ("cut", "expected"), [(0.5, ["metric-threshold"]), (0, []), (0.2, []), (1.5, [])]
)
def test_a_cut_at_half_of_raw_scores_is_doubted(cut, expected):
    def accuracy(outputs, targets):
        return ((outputs > cut) == targets.bool()).float().mean()

    found = said([accuracy])
    assert [finding.code for finding in found] == expected
    assert all(finding.severity == "warning" for finding in found)
    assert said([accuracy], loss_fn=BCE, layers=[nn.Sigmoid()]) == []


def test_functions_bound_to_numbers_and_objects_without_a_hash_are_tried_out_too():
    def above(cut, outputs, targets):
        return ((outputs > cut) == targets.bool()).float().mean()

    class Argmax:
        def __eq__(self, other):
            return True

        def __call__(self, outputs, targets):
            return by_argmax(outputs, targets)

    (finding,) = said([functools.partial(above, 0.5)])
    assert (finding.code, finding.severity) == ("metric-threshold", "warning")
    assert said([functools.partial(above, 0.0)]) == []
    (finding,) = said({"right": Argmax()})
    assert finding.code == "metric-ignores-outputs"


def test_an_argmax_beside_which_the_outputs_count_is_left_alone():
    def mixed(outputs, targets):
        return (outputs.argmax(1) + (outputs[:, 0] > 0) == targets[:, 0]).float().mean()

    def spread(outputs, targets):
        return outputs.max() - outputs.min()

    assert said([mixed, spread]) == []


@pytest.mark.parametrize(
    ("metric", "loss_fn", "layers", "expected"),
    [
        (tc.threshold_accuracy, BCEL, [], "from_logits=True"),
        (functools.partial(tc.threshold_accuracy, from_logits=True), BCEL, [], None),
        (tc.threshold_accuracy, BCE, [nn.Sigmoid()], None),
        (functools.partial(tc.threshold_accuracy, from_logits=True), BCE, [nn.Sigmoid()],
         "from_logits=False"),
    ],
)  # fmt: skip
def test_our_thresholds_must_read_the_outputs_as_the_loss_does(metric, loss_fn, layers, expected):
    found = said({"right": metric}, loss_fn=loss_fn, layers=layers)
    assert [finding.code for finding in found] == (["metric-threshold"] if expected else [])
    assert all(expected in finding.message for finding in found)


def test_multilabel_accuracy_reads_raw_scores_unless_told_otherwise():
    rows = F.one_hot(IDS).float()
    assert said([tc.multilabel_accuracy], 3, rows) == []
    own = lambda outputs, targets: F.mse_loss(outputs.tanh(), targets)  # noqa: E731
    assert said([tc.multilabel_accuracy], 3, rows, own) == []  # nobody can tell what they are
    (finding,) = said([tc.multilabel_accuracy], 3, rows, BCE, [nn.Sigmoid()])
    assert finding.code == "metric-threshold"


@pytest.mark.parametrize(
    ("metric", "words"),
    [
        (tc.accuracy, "use threshold_accuracy"),
        (torchmetrics.classification.MulticlassAccuracy(3), "cannot score this model"),
    ],
)
def test_a_metric_that_refuses_is_said_before_training(metric, words):
    (finding,) = said([metric])
    assert (finding.code, finding.severity) == ("metric-refuses", "error")
    assert words in finding.message


def test_top_5_of_3_classes_is_said_before_training():
    with pytest.raises(tc.ContractError, match=r"k must be in \[1, C\] with C=3, got 5"):
        tc.fit(nn.Linear(4, 3), [(X, IDS)], [(X, IDS)], loss_fn=CE, metrics=[tc.top_k_accuracy],
               epochs=1, progress=False)  # fmt: skip


def test_a_metric_object_is_tried_on_a_copy():
    metric = torchmetrics.classification.BinaryAccuracy()
    assert said([metric]) == []
    assert not metric.update_called


class Fed:
    """A metric object without ``to``, as they were before devices."""

    n = 0

    def reset(self):
        self.n = 0

    def update(self, outputs, targets):
        self.n += len(targets)
        if outputs.shape[1] > 1:
            raise IndexError("one column, please")

    def compute(self):
        return self.n


def test_objects_of_other_kinds_are_tried_out_where_they_can_be_copied():
    class Single(Fed):
        def __deepcopy__(self, memo):
            raise TypeError("there can be only one")

    metric = Fed()
    assert said([metric]) == []
    assert metric.n == 0
    (finding,) = said([metric], 3, IDS, CE)
    assert (finding.code, finding.severity) == ("metric-refuses", "error")
    assert "The metric Fed cannot score this model: IndexError: one column" in finding.message
    assert said([Single()], 3, IDS, CE) == []


def test_a_loss_that_cannot_be_copied_is_called_by_the_step_alone():
    class Squares:
        calls = 0

        def __deepcopy__(self, memo):
            raise TypeError("there can be only one")

        def __call__(self, outputs, targets):
            self.calls += 1
            return ((outputs - targets) ** 2).mean()

    loss_fn = Squares()
    assert said([], targets=YES, loss_fn=loss_fn) == []
    assert loss_fn.calls == 1


def test_a_metric_of_another_row_is_a_note():
    rows = F.one_hot(IDS).float()
    (finding,) = said([tc.multilabel_accuracy], 3, rows, CE)
    assert (finding.code, finding.severity) == ("metric-of-another-row", "note")


def test_a_function_that_raises_on_one_batch_is_left_alone():
    def needs_all(outputs, targets):
        raise ValueError("only one class is there")

    for arguments in ((3, IDS, CE), ()):  # several columns, and one
        assert said([needs_all], *arguments) == []


def test_a_run_calls_a_function_of_ones_own_on_the_first_batch_and_on_whole_splits():
    calls = []

    def metric(outputs, targets):
        calls.append(len(targets))
        return 0.5

    valid = [(X[:7], IDS[:7]), (X[:5], IDS[:5])]
    tc.fit(nn.Linear(4, 3), [(X, IDS)], valid, loss_fn=CE, metrics=[metric],
           epochs=2, progress=False)  # fmt: skip
    assert calls == [7, 12, 12]


@pytest.mark.parametrize("metric", [tc.accuracy, tc.error_rate])
def test_an_argmax_over_rows_of_several_classes_is_doubted(metric):
    several = torch.tensor([[1.0, 1, 0], [0, 1, 0], [0, 0, 0]]).repeat(4, 1)[:10]
    (finding,) = said([metric], 3, several)
    assert (finding.code, finding.severity) == ("metric-of-another-row", "warning")
    assert "which has multilabel_accuracy" in finding.message
    rows = F.one_hot(IDS, 3).float()
    for of_one in (rows, rows * 0.9 + 0.05, rows * 0.5 + rows.roll(1, 1) * 0.5):
        (finding,) = said([metric], 3, of_one)
        assert finding.severity == "note"


def test_a_class_that_the_loss_alone_leaves_out_is_doubted():
    theirs = torchmetrics.classification.MulticlassAccuracy
    padded = nn.CrossEntropyLoss(ignore_index=0)
    for metric in (tc.accuracy, functools.partial(tc.top_k_accuracy, k=2), theirs(3)):
        (finding,) = said([metric], 3, IDS, padded)
        assert (finding.code, finding.severity) == ("metric-ignore-index", "warning")
        assert "Give it ignore_index=0" in finding.message
    alike = functools.partial(tc.accuracy, ignore_index=0), theirs(3, ignore_index=0)
    for metric, loss_fn in ((alike[0], padded), (alike[1], padded), (tc.accuracy, CE)):
        assert said([metric], 3, IDS, loss_fn) == []
