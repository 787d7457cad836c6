"""torchcls.preflight.inside: what losses and models of the user's own do inside."""

import functools
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import torchcls as tc

X = torch.randn(24, 2, generator=torch.Generator().manual_seed(0))
IDS = torch.arange(24) % 3
ROWS = F.one_hot(IDS, 3).float()


def mlp(*last):
    return nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 3), *last)


def codes(model, batch, loss_fn, **kwargs):
    return [finding.code for finding in tc.check(model, batch, loss_fn, **kwargs)]


def fit_once(model, batch, loss_fn, **kwargs):
    options = {"epochs": 1, "progress": False, "device": "cpu"} | kwargs
    return tc.fit(model, [batch], loss_fn=loss_fn, **options)


class Flat(nn.CrossEntropyLoss):
    def forward(self, outputs, targets):
        return super().forward(outputs.reshape(-1, 3), targets.reshape(-1))


# ------------------------------------------------------------------ losses inside losses


@pytest.mark.parametrize(
    ("last", "loss_fn", "code"),
    [
        ([nn.Softmax(1)], lambda o, t: F.cross_entropy(o, t), "activated-twice"),
        ([nn.Softmax(1)], lambda o, t: nn.CrossEntropyLoss()(o, t) + 0.1, "activated-twice"),
        ([nn.Softmax(1)], Flat(), "activated-twice"),
        (
            [nn.Sigmoid()],
            lambda o, t: F.binary_cross_entropy_with_logits(o, F.one_hot(t, 3).float()),
            "activated-twice",
        ),
        ([], lambda o, t: F.nll_loss(o, t), "not-log-probabilities"),
        ([], lambda o, t: F.kl_div(o, F.one_hot(t, 3).float()), "not-log-probabilities"),
        ([nn.ReLU()], lambda o, t: F.cross_entropy(o, t), "bounded-outputs"),
        ([nn.ReLU()], nn.CrossEntropyLoss(), "bounded-outputs"),
    ],
)
@pytest.mark.filterwarnings("ignore:reduction")
def test_a_head_is_held_against_the_loss_that_is_called_inside(last, loss_fn, code):
    assert codes(mlp(*last), (X, IDS), loss_fn) == [code]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = fit_once(mlp(*last), (X, IDS), loss_fn, check="warn").findings
    assert [finding.code for finding in found if finding.severity != "note"] == [code]


@pytest.mark.parametrize(
    "loss_fn",
    [
        lambda o, t: F.cross_entropy(o, t),
        lambda o, t: F.nll_loss(o.log_softmax(1), t),
        lambda o, t: F.cross_entropy(o.softmax(1) / 0.1, t),
        lambda o, t: F.mse_loss(o.softmax(1), F.one_hot(t, 3).float()),
        lambda o, t: F.smooth_l1_loss(o, t[:, None].expand(-1, 3) * 1.0),
        lambda o, t: (F.cross_entropy(o, t, reduction="sum"), len(t)),
        lambda o, t: F.cross_entropy(o, t, reduction="sum") / len(t),
        lambda o, t: F.cross_entropy(o, o.detach().softmax(1)),
    ],
)
def test_what_is_meant_inside_a_loss_is_left_alone(loss_fn):
    assert codes(mlp(), (X, IDS), loss_fn) == []


@pytest.mark.parametrize(
    "loss_fn",
    [
        lambda o, t: F.cross_entropy(t, o.softmax(1)),
        lambda o, t: F.binary_cross_entropy(t, o.sigmoid()),
        lambda o, t: F.binary_cross_entropy_with_logits(t.double(), o.sigmoid().double()),
    ],
)
def test_swapped_arguments_are_an_error(loss_fn):
    assert "swapped-arguments" in codes(mlp(), (X, ROWS), loss_fn)
    with pytest.raises(tc.ContractError, match=r"gets the targets first"):
        fit_once(mlp(), (X, ROWS), loss_fn)


def test_a_watched_loss_is_called_as_often_as_in_a_plain_loop():
    calls = []

    def loss_fn(outputs, targets):
        calls.append(len(targets))
        return F.cross_entropy(outputs, targets)

    tc.fit(mlp(), [(X, IDS)] * 3, loss_fn=loss_fn, epochs=2, progress=False, device="cpu")
    assert calls == [24] * 6


# ------------------------------------------------------------------ averages


@pytest.mark.parametrize(
    ("loss_fn", "ignored", "is_said"),
    [
        (Flat(torch.tensor([1.0, 5.0, 20.0])), 0, True),
        (Flat(), 5, True),
        (lambda o, t: 2 * F.cross_entropy(o, t), 5, True),
        (lambda o, t: F.cross_entropy(o, t, reduction="sum"), 0, True),
        (Flat(), 0, False),
        (functools.partial(F.cross_entropy, reduction="sum"), 5, False),
    ],
)
def test_an_average_by_samples_is_said_where_it_is_not_exact(loss_fn, ignored, is_said):
    ids = IDS.clone()
    ids[:ignored] = -100
    expected = ["averaged-by-samples"] if is_said else []
    assert codes(mlp(), (X, ids), loss_fn) == expected


# ------------------------------------------------------------------ what nobody trains


class Hidden(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers, self.head = [nn.Linear(2, 8)], nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.layers[0](x))


class Rebuilt(nn.Linear):
    def forward(self, x):
        return nn.Linear(3, 3)(super().forward(x))


def test_parameters_that_nobody_holds_are_doubted():
    ce, head = nn.CrossEntropyLoss(), nn.Linear(3, 3)
    behind = lambda o, t: F.cross_entropy(head(o), t)  # noqa: E731
    for model, loss_fn in ((Hidden(), ce), (Rebuilt(2, 3), ce), (mlp(), behind)):
        with pytest.warns(UserWarning, match=r"nothing trains them.*\[unheld-parameters\]"):
            fit_once(model, (X, IDS), loss_fn)
    assert codes(Hidden(), (X, IDS), ce) == ["unheld-parameters"]


def test_what_the_optimizer_holds_or_is_frozen_or_no_parameter_is_left_alone():
    model = Hidden()
    both = [*model.parameters(), *model.layers[0].parameters()]
    ce = nn.CrossEntropyLoss()
    assert codes(model, (X, IDS), ce, optimizer=torch.optim.SGD(both, 0.1)) == []
    model.layers[0].requires_grad_(False)
    assert codes(model, (X, IDS), ce) == []
    assert codes(mlp(), (X.clone().requires_grad_(), IDS), ce) == []


# ------------------------------------------------------------------ evaluation


class Drops(nn.Linear):
    def forward(self, x):
        return super().forward(F.dropout(x, 0.5))


class Attends(nn.Linear):
    def forward(self, x):
        q = x[:, None]
        mixed = F.scaled_dot_product_attention(q, q, q, dropout_p=0.1)
        return super().forward(mixed[:, 0])


class NeverEvaluates(nn.Sequential):
    def train(self, mode=True):
        return super().train(True)


@pytest.mark.parametrize(
    ("model", "seen"),
    [
        (Drops(2, 3), "still applies dropout in evaluation: dropout"),
        (Attends(2, 3), "still applies dropout in evaluation: scaled_dot_product_attention"),
        (NeverEvaluates(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)), "BatchNorm1d in tr"),
    ],
)
def test_a_model_that_trains_in_evaluation_is_doubted(model, seen):
    with pytest.warns(UserWarning, match=rf"{seen}.*\[trains-in-evaluation\]"):
        tc.fit(
            model, [(X, IDS)], [(X, IDS)], loss_fn=nn.CrossEntropyLoss(), epochs=2, progress=False
        )


def test_a_model_that_drops_out_in_training_alone_is_left_alone():
    attention = nn.TransformerEncoderLayer(2, 1, 4, dropout=0.1, batch_first=True)
    model = nn.Sequential(nn.Unflatten(1, (1, 2)), attention, nn.Flatten(), nn.Linear(2, 3))
    tc.fit(model, [(X, IDS)], [(X, IDS)], loss_fn=nn.CrossEntropyLoss(), epochs=1, progress=False)


# ------------------------------------------------------------------ what moves


def test_steps_that_move_nothing_are_doubted():
    for model, rate in ((mlp(), 1e-12), (mlp().bfloat16(), 1e-6)):
        batch = X.to(model[0].weight.dtype), IDS
        with pytest.warns(UserWarning, match=r"have not moved.*\[nothing-moves\]"):
            fit_once(
                model,
                batch,
                nn.CrossEntropyLoss(),
                optimizer=torch.optim.SGD(model.parameters(), rate),
            )


def test_a_rate_of_zero_for_a_part_of_the_model_is_left_alone():
    model = nn.Sequential(nn.Linear(2, 64), nn.Linear(64, 3))
    groups = [{"params": model[0].parameters(), "lr": 0.0}, {"params": model[1].parameters()}]
    fit_once(model, (X, IDS), nn.CrossEntropyLoss(), optimizer=torch.optim.SGD(groups, 0.1))


def test_statistics_that_never_move_are_doubted_unless_they_were_loaded():
    model = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4, momentum=0.0), nn.Linear(4, 3))
    assert codes(model, (X, IDS), nn.CrossEntropyLoss()) == ["batch-statistics"]
    model[1].num_batches_tracked += 1
    assert codes(model, (X, IDS), nn.CrossEntropyLoss()) == []
