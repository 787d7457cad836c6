"""It is silent about what is legitimate: random networks, losses and targets, and named kinds."""

import copy
import functools
import warnings

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, SubsetRandomSampler, TensorDataset

import torchcls as tc

N = 12
GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(N, 6, generator=GENERATOR)
IDS = torch.arange(N) % 3
ROWS = F.one_hot(IDS).float()
YES = (torch.arange(N) % 2).float()[:, None]


class Call(nn.Module):
    """A network with something done to its outputs."""

    def __init__(self, net, function):
        super().__init__()
        self.net, self.function = net, function

    def forward(self, x):
        return self.function(self.net(x))


def linear(k, *layers):
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, k), *layers)


def silent(
    model, loss_fn, inputs, targets, *, metrics=(), optimizer=None, batches=None, **keywords
):
    """Check one batch and fit two epochs; nothing above a note may be said, and no bit may change.

    Returns the codes of the notes.
    """
    batches = [(inputs, targets)] if batches is None else batches
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = tc.check(model, (inputs, targets), loss_fn, metrics, optimizer)
        assert [str(finding) for finding in found if finding.severity != "note"] == []
        weights = []
        for check in ("error", "off"):
            ours = copy.deepcopy((model, loss_fn, optimizer))
            with torch.random.fork_rng([]):
                torch.manual_seed(1)
                tc.fit(
                    ours[0],
                    copy.deepcopy(batches),
                    loss_fn=ours[1],
                    optimizer=ours[2],
                    epochs=2,
                    device="cpu",
                    check=check,
                    progress=False,
                    **keywords,
                )
            weights.append(ours[0].state_dict())
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name]), f"{name} depends on check"
    return [finding.code for finding in found]


# --- random networks, losses and targets --------------------------------------------------------


class Gate(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.up, self.gate = (
            nn.Linear(width, width),
            nn.Sequential(nn.Linear(width, width), nn.Sigmoid()),
        )

    def forward(self, x):
        return x + self.up(x) * self.gate(x)


class Attention(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.query, self.softmax = nn.Linear(width, width), nn.Softmax(dim=-1)

    def forward(self, x):
        return x + self.softmax(self.query(x)) * x


BODIES = {
    "relu": lambda w: nn.ReLU(),
    "tanh": lambda w: nn.Tanh(),
    "sigmoid": lambda w: nn.Sigmoid(),
    "softmax": lambda w: nn.Softmax(dim=1),
    "gelu": lambda w: nn.GELU(),
    "norm": nn.BatchNorm1d,
    "layer norm": nn.LayerNorm,
    "dropout": lambda w: nn.Dropout(0.3),
    "gate": Gate,
    "attention": Attention,
}
HEADS = {
    "plain": nn.Linear,
    "no bias": lambda w, k: nn.Linear(w, k, bias=False),
    "scaled": lambda w, k: Call(nn.Linear(w, k), lambda o: o / 2),
    "capped": lambda w, k: Call(nn.Linear(w, k), lambda o: 30 * torch.tanh(o / 30)),
    "cosine": lambda w, k: Call(nn.Linear(w, k), lambda o: 16 * F.normalize(o, dim=1)),
    "zeros": lambda w, k: _zeros(nn.Linear(w, k)),
    "normed": lambda w, k: nn.Sequential(nn.Linear(w, k), nn.LayerNorm(k)),
}


def _zeros(layer):
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


@st.composite
def networks(draw, k):
    width = draw(st.sampled_from([4, 8]))
    names = draw(st.lists(st.sampled_from(sorted(BODIES)), max_size=4))
    head = draw(st.sampled_from(sorted(HEADS)))
    with torch.random.fork_rng([]):
        torch.manual_seed(draw(st.integers(0, 99)))
        layers = [nn.Linear(6, width)]
        for name in names:
            layers += [BODIES[name](width), nn.Linear(width, width)]
        return nn.Sequential(*layers, HEADS[head](width, k))


def focal(outputs, targets):
    return ((1 - (-F.cross_entropy(outputs, targets, reduction="none")).exp()) ** 2).mean()


def brier(outputs, targets):
    return ((outputs.softmax(1) - F.one_hot(targets, outputs.shape[1])) ** 2).sum(1).mean()


def distilled(outputs, targets):
    return F.kl_div(outputs.log_softmax(1), targets, reduction="batchmean") - 5  # below zero


@st.composite
def tasks(draw):
    """A network with a loss and targets that go with it."""
    kind = draw(st.sampled_from(["ids", "rows", "one", "many", "number"]))
    k = {"one": 1, "number": 1}.get(kind) or draw(st.integers(2, 7))
    seed = draw(st.integers(0, 99))
    n = draw(st.integers(2, 12))
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(n, 6, generator=generator)
    if kind == "ids":
        targets = torch.randint(k, (n,), generator=generator)
        losses = [
            nn.CrossEntropyLoss(),
            nn.CrossEntropyLoss(torch.rand(k, generator=generator) + 0.1, label_smoothing=0.1),
            F.cross_entropy,
            functools.partial(tc.cross_entropy, reduction="sum"),
            nn.MultiMarginLoss(),
            focal,
            brier,
        ]
        if draw(st.booleans()):
            targets[0] = -100
            losses = losses[:4]
    elif kind == "rows":
        targets = torch.rand(n, k, generator=generator).softmax(1)
        losses = [nn.CrossEntropyLoss(), F.cross_entropy, tc.cross_entropy, nn.MSELoss(), distilled]
    elif kind == "number":
        targets = torch.randn(n, 1, generator=generator)
        losses = [nn.MSELoss(), nn.L1Loss(), nn.HuberLoss(), F.mse_loss, tc.mse_loss]
    else:
        targets = torch.randint(2, (n, k), generator=generator).float()
        if draw(st.booleans()):
            targets = targets * 0.9 + 0.05
        losses = [
            nn.BCEWithLogitsLoss(),
            nn.BCEWithLogitsLoss(pos_weight=torch.full((k,), 3.0)),
            F.binary_cross_entropy_with_logits,
            tc.binary_cross_entropy_with_logits,
            nn.MSELoss(),
        ]
    return draw(networks(k)), draw(st.sampled_from(losses)), inputs, targets


@settings(max_examples=60, deadline=None, derandomize=True)
@given(tasks())
def test_it_is_silent_about_random_networks_with_losses_and_targets_that_fit(task):
    silent(*task)


def codes(model, inputs, targets, loss_fn):
    found = tc.check(model, (inputs, targets), loss_fn)
    return [finding.code for finding in found if finding.severity == "error"]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.data())
def test_its_silence_is_not_blindness(data):
    k = data.draw(st.integers(2, 7))
    model = data.draw(networks(k))
    inputs, ids = torch.randn(8, 6, generator=torch.Generator().manual_seed(k)), torch.arange(8) % k
    yes = torch.arange(8 * k).reshape(8, k) % 2.0
    loss_fn = data.draw(st.sampled_from([nn.CrossEntropyLoss(), F.cross_entropy, tc.cross_entropy]))
    softmax = nn.Sequential(model, nn.Softmax(dim=data.draw(st.sampled_from([1, -1]))))
    assert codes(softmax, inputs, ids, loss_fn) == ["activated-twice"]
    assert codes(Call(model, torch.sigmoid), inputs, yes, nn.BCEWithLogitsLoss()) == [
        "activated-twice"
    ]
    assert codes(model, inputs, ids + k, loss_fn) == ["target-range"]
    assert codes(model, inputs, ids.float(), loss_fn) == ["target-dtype"]
    inputs[3, 2] = float("nan")
    assert "non-finite-loss" in codes(model, inputs, ids, loss_fn)


# --- named kinds --------------------------------------------------------------------------------


class Margin(nn.Module):
    """A loss with parameters of its own."""

    def __init__(self):
        super().__init__()
        self.centres = nn.Parameter(torch.eye(3, 4))

    def forward(self, outputs, targets):
        return F.cross_entropy(outputs @ self.centres.T - 0.2 * F.one_hot(targets, 3), targets)


class Teacher(nn.Module):
    """A loss that holds a network which nobody trains."""

    def __init__(self):
        super().__init__()
        self.teacher = linear(3)

    def forward(self, outputs, targets):
        with torch.no_grad():
            soft = self.teacher(X[: len(outputs)]).softmax(1)
        return F.kl_div(outputs.log_softmax(1), soft, reduction="batchmean")


class Seldom(nn.Module):
    """A network with a head that nobody uses."""

    def __init__(self):
        super().__init__()
        self.used, self.unused = linear(3), linear(3)

    def forward(self, x):
        return self.used(x)


def contrastive(outputs, targets):
    same = targets[:, None] == targets
    distance = (outputs - outputs.T) ** 2 if outputs.ndim == 2 else outputs[:, None] - outputs
    return torch.where(same, distance, (1 - distance).clamp_min(0)).mean()


def ranking(outputs, targets):
    better = (targets[:, None] > targets).float()
    return (better * (1 - (outputs - outputs.squeeze(1))).clamp_min(0)).mean()


def margin_optimizer():
    model, loss_fn = linear(4), Margin()
    return model, loss_fn, torch.optim.SGD([*model.parameters(), *loss_fn.parameters()], 0.1)


MODEL, MARGIN, BOTH = margin_optimizer()
MIXED = torch.tensor([[0.9, 0.1], [0.2, 0.8]])

KINDS = {
    "a Brier score on a softmax": (linear(3, nn.Softmax(1)), nn.MSELoss(), X, ROWS),
    "squared errors on a sigmoid": (linear(1, nn.Sigmoid()), nn.MSELoss(), X, YES),
    "probabilities into BCELoss": (linear(1, nn.Sigmoid()), nn.BCELoss(), X, YES),
    "clamped probabilities into BCELoss": (
        Call(linear(1), lambda o: o.sigmoid().clamp(1e-6, 1 - 1e-6)), nn.BCELoss(), X, YES),
    "a softmax with BCELoss on rows": (linear(3, nn.Softmax(1)), nn.BCELoss(), X, ROWS),
    "the log of a softmax into NLLLoss": (
        Call(linear(3), lambda o: (o.softmax(1) + 1e-9).log()), nn.NLLLoss(), X, IDS),
    "two columns 1 - p and p": (
        Call(linear(1), lambda o: torch.cat([1 - o.sigmoid(), o.sigmoid()], 1).log()),
        nn.NLLLoss(), X, YES[:, 0].long()),
    "a softmax with a loss that takes its log": (
        linear(3, nn.Softmax(1)), lambda o, t: F.nll_loss(o.log(), t), X, IDS),
    "noisy labels through a known matrix": (
        Call(linear(2, nn.Softmax(1)), lambda p: p @ MIXED), nn.BCELoss(), X, ROWS[:, :2]),
    "a teacher inside the loss": (linear(3), Teacher(), X, IDS),
    "a loss with parameters of its own": (MODEL, MARGIN, X, IDS, {"optimizer": BOTH}),
    "contrastive pairs of one output": (linear(1), contrastive, X, IDS),
    "ranking of one output": (linear(1), ranking, X, IDS.float()),
    "a listwise softmax over the samples": (
        linear(1, nn.Softmax(0)), lambda o, t: -(t * o[:, 0].log()).sum(), X, YES[:, 0].long()),
    "KL divergence over the last axis": (
        Call(nn.Linear(6, 3), lambda o: o.log_softmax(-1)),
        nn.KLDivLoss(reduction="batchmean"), X.reshape(4, 3, 6), ROWS.reshape(4, 3, 3)),
    "several crops of one sample": (
        Call(linear(3), lambda o: o.reshape(2, -1, 3).mean(0)), nn.CrossEntropyLoss(), X, IDS[:6]),
    "a head that nobody uses": (Seldom(), nn.CrossEntropyLoss(), X, IDS),
    "a mask of minus infinity": (
        Call(linear(3), lambda o: o + torch.tensor([0.0, 0.0, -torch.inf])),
        nn.CrossEntropyLoss(), X, IDS % 2),
    "whole numbers with an absolute error": (linear(1), nn.L1Loss(), X, IDS[:, None]),
    "targets that round beyond 1": (linear(1), nn.BCEWithLogitsLoss(), X, YES * (1 + 1e-7)),
    "missing inputs that the model fills": (
        nn.Sequential(Call(nn.Identity(), torch.nan_to_num), linear(3)), nn.CrossEntropyLoss(),
        torch.where(X > 1.5, torch.nan, X), IDS),
    "pixels of 0 to 255 behind a BatchNorm": (
        nn.Sequential(nn.Flatten(), nn.BatchNorm1d(16), nn.Linear(16, 3)), nn.CrossEntropyLoss(),
        torch.randint(256, (N, 1, 4, 4), generator=GENERATOR).float(), IDS),
    "complex outputs": (
        Call(linear(3), lambda o: torch.complex(o, o)),
        lambda o, t: F.cross_entropy(o.abs(), t), X, IDS),
    "one number for each sample, one axis": (
        nn.Sequential(nn.Embedding(12, 4), nn.Linear(4, 3)), nn.CrossEntropyLoss(),
        torch.arange(N), IDS),
    "a tuple of outputs with a loss of one's own": (
        Call(linear(3), lambda o: (o, o.sum())), lambda o, t: F.cross_entropy(o[0], t) + o[1] ** 2,
        X, IDS),
    "targets in a dict": (
        linear(3), lambda o, t: F.cross_entropy(o, t["ids"]), X, {"ids": IDS}),
    "an optimizer of the head alone": (
        LAYERS := linear(8, nn.ReLU(), nn.Linear(8, 3)), nn.CrossEntropyLoss(), X, IDS,
        {"optimizer": torch.optim.SGD(LAYERS[2].parameters(), 0.1)}),
    "biases alone in the optimizer": (
        OTHERS := linear(8, nn.ReLU(), nn.Linear(8, 3)), nn.CrossEntropyLoss(), X, IDS,
        {"optimizer": torch.optim.SGD([OTHERS[0].bias, OTHERS[2].bias], 0.1)}),
    "a warm-up from 0": (
        linear(3), nn.CrossEntropyLoss(), X, IDS, {"schedule": lambda progress: progress}),
    "pieces of a batch": (linear(3), nn.CrossEntropyLoss(), X, IDS, {"micro_batch": 5}),
    "bfloat16": (linear(3), nn.CrossEntropyLoss(), X, IDS, {"precision": "bfloat16"}),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_silent_about(kind):
    model, loss_fn, inputs, targets, *keywords = KINDS[kind]
    silent(model, loss_fn, inputs, targets, **(keywords[0] if keywords else {}))


def fitted(train, valid, **keywords):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return tc.fit(linear(3), train, valid, loss_fn=nn.CrossEntropyLoss(), epochs=1,
                      progress=False, device="cpu", **keywords)  # fmt: skip


def test_it_is_silent_about_samplers_that_split_one_dataset():
    dataset = TensorDataset(X, IDS)
    train, valid = (
        DataLoader(dataset, 4, sampler=SubsetRandomSampler(range(*rows)))
        for rows in ((0, 8), (8, 12))
    )
    assert fitted(train, valid).findings == []


def test_it_is_silent_about_inputs_of_few_values_that_meet_by_chance():
    x = (torch.arange(64)[:, None] >> torch.arange(6)) % 2.0
    x = torch.cat([x, x, x])
    train = tc.Batches(x, x.sum(1).long() % 3, batch_size=16, shuffle=True)
    valid = tc.Batches(x[:64], x[:64].sum(1).long() % 3, batch_size=16)
    assert [finding.code for finding in fitted(train, valid).findings] == ["valid-overlaps"]


def test_it_is_silent_about_outliers_in_one_split():
    x = X.clone()
    x[0, 0] = 1e6
    valid = tc.Batches(X + 1, IDS, batch_size=4)
    assert fitted(tc.Batches(x, IDS, batch_size=4, shuffle=True), valid).findings == []


def test_it_is_silent_about_metrics_that_do_not_compare():
    def confidence(outputs, targets):
        return outputs.sigmoid().max(1).values.mean()

    def bias(outputs, targets):
        return (outputs.sigmoid() - targets[:, 0]).mean()  # over all pairs, and the same

    def positives(outputs, targets):
        return (outputs > 0.3).float().mean()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = tc.check(linear(1), (X, YES), nn.BCEWithLogitsLoss(), [confidence, bias, positives])
    assert found == []


def test_it_is_silent_about_sparse_inputs():
    class Words(nn.Linear):
        def forward(self, x):
            return torch.sparse.mm(x, self.weight.T) + self.bias

    sparse = [(X.to_sparse(), IDS)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        history = tc.fit(Words(X.shape[1], 3), sparse, [(X.to_sparse(), IDS)], epochs=2,
                         loss_fn=nn.CrossEntropyLoss(), progress=False, device="cpu")  # fmt: skip
    assert history.findings == []
    assert history[1].valid_loss < history[0].valid_loss
