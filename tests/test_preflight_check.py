"""``check`` by itself: what it takes, in which order it answers, and what it costs."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import torchcls as tc

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
IDS = torch.arange(6) % 3
CE = nn.CrossEntropyLoss()


def test_it_answers_the_worst_first_and_each_finding_once():
    model = nn.Sequential(nn.Linear(4, 3), nn.LogSoftmax(1))
    found = tc.check(model, (X, IDS + 1), CE, [tc.accuracy])
    assert [f.severity for f in found] == ["error", "error", "note"]
    assert len({f.code for f in found}) == 3


@pytest.mark.parametrize(
    "batch",
    [{"x": X, "labels": IDS}, (X, IDS, IDS), X, None],
    ids=["dict", "triple", "one", "None"],
)
def test_a_batch_that_is_no_pair_is_a_finding(batch):
    (finding,) = tc.check(nn.Linear(4, 3), batch, CE)
    assert (finding.code, finding.severity) == ("batch-form", "error")
    assert "pairs (inputs, targets)" in finding.message


@pytest.mark.parametrize(
    ("model", "loss_fn", "metrics", "error"),
    [
        (nn.Linear, CE, (), TypeError),
        (nn.Linear(4, 3), nn.CrossEntropyLoss, (), TypeError),
        (nn.Linear(4, 3), nn.CrossEntropyLoss(reduction="none"), (), ValueError),
        (nn.Linear(4, 3), CE, tc.accuracy, TypeError),
    ],
)
def test_arguments_of_another_kind_are_refused(model, loss_fn, metrics, error):
    with pytest.raises(error):
        tc.check(model, (X, IDS), loss_fn, metrics)


def test_of_a_large_batch_a_part_is_sent_through_and_all_targets_are_looked_at():
    seen = []

    class Counts(nn.Linear):
        def forward(self, x):
            seen.append(len(x))
            return super().forward(x)

    inputs, targets = torch.randn(300, 10_000), torch.arange(300) % 3
    model = Counts(10_000, 3)
    assert tc.check(model, (inputs, targets), CE) == []
    targets[-1] = 3
    (finding,) = tc.check(model, (inputs, targets), CE)
    assert "from 0 to 3" in finding.message
    assert seen == [100, 100]
    tc.check(
        model, (inputs, targets), lambda outputs, targets: F.cross_entropy(outputs, targets % 3)
    )
    assert seen[2] == 300  # a loss of one's own may need all


def test_a_compiled_model_is_read_as_it_was_written():
    model = nn.Sequential(nn.Linear(4, 3), nn.Softmax(1))
    compiled = torch.compile(model, backend="aot_eager")
    assert [f.code for f in tc.check(compiled, (X, IDS), CE)] == ["activated-twice"]
    with pytest.raises(tc.ContractError, match="activated-twice"):
        tc.fit(compiled, [(X, IDS)], loss_fn=CE, progress=False, device="cpu")


def test_a_batch_in_which_nothing_counts_is_no_finding():
    assert tc.check(nn.Linear(4, 3), (X, torch.full((6,), -100)), CE) == []


def test_a_lazy_model_that_cannot_be_copied_is_left_alone_but_for_what_it_shows_unrun():
    class Single(nn.LazyLinear):
        def __deepcopy__(self, memo):
            raise TypeError("there can be only one")

    model = Single(3)
    assert tc.check(model, (X, IDS + 9), CE) == []
    found = tc.check(model, (X, IDS + 9), nn.CrossEntropyLoss(label_smoothing=2))
    assert [finding.code for finding in found] == ["label-smoothing"]
    assert model.in_features == 0


def test_of_a_graph_that_works_with_backward_alone_the_gradients_are_not_asked():
    class Frugal(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Linear(4, 8), nn.Linear(8, 3)

        def forward(self, x):
            return checkpoint(self.head, self.body(x), use_reentrant=True)

    assert tc.check(Frugal(), (X, IDS), CE) == []
    assert [f.code for f in tc.check(Frugal(), (X, IDS + 9), CE)] == ["target-range"]


def test_a_gradient_that_is_not_finite_is_named():
    def loss_fn(outputs, targets):
        return outputs.sub(outputs).pow(2).sum().sqrt() + F.cross_entropy(outputs, targets)

    (finding,) = tc.check(nn.Sequential(nn.Linear(4, 3)), (X, IDS), loss_fn)
    assert (finding.code, finding.severity) == ("non-finite-gradient", "error")
    assert "the gradient of 0.weight is not (2 parameters in all)" in finding.message


class Heads(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x):
        return self.a(x), self.b(x)


def test_two_losses_are_no_fraction():
    def both(outputs, targets):
        return F.cross_entropy(outputs[0], targets), F.cross_entropy(outputs[1], targets)

    (finding,) = tc.check(Heads(), (X, IDS), both)
    assert (finding.code, finding.severity) == ("loss-fails", "error")
    assert "Sum two losses: return a + b." in finding.message


def test_a_loss_with_a_score_for_the_log_is_refused_and_a_count_is_not():
    def logged(outputs, targets):
        return F.cross_entropy(outputs, targets), tc.accuracy(outputs, targets)

    def counted(outputs, targets):
        return F.cross_entropy(outputs, targets, reduction="sum"), torch.tensor(len(targets))

    (finding,) = tc.check(nn.Linear(4, 3), (X, IDS), logged)
    assert (finding.code, finding.severity) == ("loss-fails", "error")
    assert "return the loss alone" in finding.message
    with pytest.raises(ValueError, match=r"both grow with the batch.*\[loss-fails\]"):
        tc.fit(nn.Linear(4, 3), [(X, IDS)], loss_fn=logged, epochs=1, progress=False)
    with pytest.raises(ValueError, match=r"both grow with the batch"):
        tc.evaluate(nn.Linear(4, 3), [(X, IDS)], loss_fn=logged)
    assert tc.check(nn.Linear(4, 3), (X, IDS), counted) == []


def test_under_inference_mode_it_says_so():
    with torch.inference_mode():
        (finding,) = tc.check(nn.Linear(4, 3), (X, IDS), CE)
    assert finding.code == "outputs-without-graph"
    assert "torch.inference_mode()" in finding.message


def test_a_body_without_graph_under_a_loss_that_learns_is_left_alone():
    class Body(nn.Linear):
        def forward(self, x):
            with torch.no_grad():
                return super().forward(x)

    head = nn.Linear(4, 3)
    found = tc.check(Body(4, 4), (X, IDS), lambda o, t: F.cross_entropy(head(o), t))
    assert [f for f in found if f.severity == "error"] == []
