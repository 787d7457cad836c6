"""The promise that every number is exact: the same data, cut in every way, gives the same number.

The reference is always torch's own loss of all samples at once, and one plain step on it.
"""

from dataclasses import dataclass
from functools import partial

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from torch import nn, tensor

import torchcls as tc
from torchcls.averaging import Mean

DTYPES = (torch.float32, torch.float64)
# A few roundings (6e-8 each in float32, 1e-16 in float64) of numbers of about 1.
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}

N = 36  # the most samples that are drawn; a drawn case takes the first n
ROWS = torch.arange(N)
X = torch.randn(N, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
IMAGES = X[:, :2, None, None] * torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(2, 3)

# Sample 0 counts in every case, so that the whole always has a mean.
IDS = (ROWS + 1) % 3
SOME_IGNORED = torch.where((ROWS % 7 > 0) & (ROWS % 5 > 0), -100, IDS)
SOFT = X[:, :3].softmax(1)
BITS = F.one_hot(IDS, 3).to(X)
BITS[::4] = 1
SCORES = X[:, 1:]
REAL = X[:, :3]
PIXELS = (ROWS[:, None, None] + torch.arange(6).reshape(2, 3) + 1) % 3
PIXELS[1::2] = -100  # whole images
PIXELS[:, 0, 1] = -100
SOFT_PIXELS = torch.stack([IMAGES[:, 0], IMAGES[:, 1], -IMAGES[:, 0]], 1).softmax(1)


def absolute(outputs, targets):
    return (outputs - targets).abs().mean()


def masked(outputs, targets):
    """A loss that brings its own denominator, and counts nothing in many samples."""
    counted = (targets.sum(1) > 1).to(outputs)
    return ((outputs - targets).square().mean(1) * counted).sum(), counted.sum()


@dataclass
class Case:
    loss_fn: object
    targets: torch.Tensor
    model: str = "linear"


def cases(dtype):
    weight = tensor([1.1, 4.7, 0.3], dtype=dtype)
    zero = tensor([0.0, 4.7, 0.0], dtype=dtype)  # two of three samples count nothing
    return {
        "cross-entropy": Case(nn.CrossEntropyLoss(), IDS),
        "class weights": Case(nn.CrossEntropyLoss(weight), IDS),
        "ignored": Case(nn.CrossEntropyLoss(), SOME_IGNORED),
        "weighted, ignored": Case(nn.CrossEntropyLoss(weight), SOME_IGNORED),
        "ignore_index": Case(nn.CrossEntropyLoss(weight, ignore_index=2), IDS),
        "zero weights": Case(nn.CrossEntropyLoss(zero), IDS),
        "smoothing": Case(nn.CrossEntropyLoss(weight, label_smoothing=0.1), SOME_IGNORED),
        "soft targets": Case(nn.CrossEntropyLoss(weight), SOFT),
        "soft, smoothed": Case(nn.CrossEntropyLoss(weight, label_smoothing=0.1), SOFT),
        "nll": Case(nn.NLLLoss(weight), SOME_IGNORED),
        "nll, zero weights": Case(nn.NLLLoss(zero), IDS),
        "bce with logits": Case(nn.BCEWithLogitsLoss(pos_weight=weight), BITS),
        "bce, weighted": Case(nn.BCEWithLogitsLoss(weight), BITS),
        "bce": Case(nn.BCELoss(), BITS, "sigmoid"),
        "mse": Case(nn.MSELoss(), REAL),
        "sum": Case(nn.CrossEntropyLoss(weight, reduction="sum"), SOME_IGNORED),
        "sum, bce": Case(nn.BCEWithLogitsLoss(reduction="sum"), BITS),
        "functional": Case(F.cross_entropy, SOME_IGNORED),
        "functional nll": Case(F.nll_loss, SOME_IGNORED),
        "functional bce": Case(F.binary_cross_entropy, BITS, "sigmoid"),
        "functional mse": Case(F.mse_loss, REAL),
        "partial": Case(partial(F.cross_entropy, weight=weight, ignore_index=2), IDS),
        "partial of partial": Case(partial(partial(F.nll_loss, weight=zero), reduction="sum"), IDS),
        "partial bce": Case(partial(F.binary_cross_entropy_with_logits, pos_weight=weight), BITS),
        "ours": Case(partial(tc.cross_entropy, weight=weight), SOME_IGNORED),
        "our nll": Case(partial(tc.nll_loss, weight=zero), IDS),
        "our bce": Case(tc.binary_cross_entropy_with_logits, BITS),
        "our bce of probabilities": Case(tc.binary_cross_entropy, BITS, "sigmoid"),
        "our mse": Case(tc.mse_loss, REAL),
        "a mean of one's own": Case(absolute, REAL),
        "a pair of one's own": Case(masked, BITS),
        "pixels": Case(nn.CrossEntropyLoss(weight), PIXELS, "pixels"),
        "soft pixels": Case(nn.CrossEntropyLoss(weight), SOFT_PIXELS, "pixels"),
        "bce of pixels": Case(nn.BCEWithLogitsLoss(), SOFT_PIXELS, "pixels"),
        "dict": Case(nn.CrossEntropyLoss(weight), SOME_IGNORED, "dict"),
        "tuple": Case(nn.CrossEntropyLoss(weight), SOME_IGNORED, "tuple"),
    }


CASES = {dtype: cases(dtype) for dtype in DTYPES}
each_case = pytest.mark.parametrize("name", CASES[torch.float32])


class Nested(nn.Module):
    """Takes its inputs as a dict or a tuple of two parts."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(4, 3)

    def forward(self, parts):
        first, second = parts.values() if isinstance(parts, dict) else parts
        return self.body(first - second.flip(1))


def model_of(case, dtype):
    """The same weights each time, without a draw from the global generator."""
    layer = nn.Conv2d(2, 3, 1) if case.model == "pixels" else nn.Linear(4, 3)
    model = {
        "sigmoid": lambda: nn.Sequential(layer, nn.Sigmoid()),
        "dict": Nested,
        "tuple": Nested,
    }.get(case.model, lambda: layer)()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model.to(dtype)


def batch_of(case, dtype, rows):
    inputs = (IMAGES if case.model == "pixels" else X)[rows].to(dtype)
    if case.model == "dict":
        inputs = {"first": inputs, "second": inputs}
    if case.model == "tuple":
        inputs = (inputs, inputs)
    targets = case.targets[rows]
    return inputs, targets.to(dtype) if targets.is_floating_point() else targets


def whole_loss(case, model, batch):
    """The loss of all samples at once, as torch has it."""
    loss = case.loss_fn(model(batch[0]), batch[1])
    return loss[0] / loss[1] if isinstance(loss, tuple) else loss


def is_sum(case):
    keywords = getattr(case.loss_fn, "keywords", {})
    return "sum" in (getattr(case.loss_fn, "reduction", None), keywords.get("reduction"))


def sgd(model, lr):
    return torch.optim.SGD(model.parameters(), lr=lr)


def assert_same(found, expected, dtype):
    found = torch.as_tensor(found, dtype=torch.float64)
    expected = torch.as_tensor(expected, dtype=torch.float64).detach()
    error = (found - expected).abs().max().item()
    assert error <= TOLERANCE[dtype] * max(1.0, expected.abs().max().item())  # NaN fails


@st.composite
def cuts(draw):
    """Some samples in any order, as the rows of each batch, and a size of pieces."""
    sizes = draw(st.lists(st.integers(1, 6), min_size=1, max_size=6))
    n = sum(sizes)
    order = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    rows = torch.randperm(n, generator=order)
    return rows.split(sizes), draw(st.integers(1, n) | st.just(n + 5))


def any_cut(test):
    """A few drawn cuts, and one of all samples: pieces of 5 leave a single one at the end."""
    uneven = ROWS.flip(0).split([7, 1, 16, 12]), 5
    few = settings(max_examples=4, deadline=None, derandomize=True, database=None)
    return few(given(cut=cuts())(example(cut=uneven)(test)))


# --- losses and steps -----------------------------------------------------------------------------


@each_case
@any_cut
def test_any_batches_have_the_loss_of_the_whole(name, cut):
    parts, micro_batch = cut
    for dtype in DTYPES:
        case = CASES[dtype][name]
        model = model_of(case, dtype)
        rows = torch.cat(parts)
        expected = whole_loss(case, model, batch_of(case, dtype, rows)).item()
        expected /= len(rows) if is_sum(case) else 1  # a sum is reported per sample
        batches = [batch_of(case, dtype, part) for part in parts]
        assert_same(tc.evaluate(model, batches, loss_fn=case.loss_fn).loss, expected, dtype)
        still = sgd(model, lr=0.0)
        assert_same(tc.train_one_epoch(model, batches, case.loss_fn, still), expected, dtype)
        record = tc.fit(
            model,
            batches,
            batches,
            loss_fn=case.loss_fn,
            epochs=1,
            optimizer=still,
            device="cpu",
            micro_batch=micro_batch,
            check="off",  # raw scores into NLLLoss, say: only the arithmetic matters here
            progress=False,
        )[0]
        assert_same(record.train_loss, expected, dtype)
        assert_same(record.valid_loss, expected, dtype)


@each_case
@any_cut
def test_any_pieces_have_the_gradients_and_the_step_of_the_whole(name, cut):
    parts, micro_batch = cut
    rows = torch.cat(parts)
    for dtype in DTYPES:
        case = CASES[dtype][name]
        plain, cut_up, stepped = (model_of(case, dtype) for _ in range(3))
        batch = batch_of(case, dtype, rows)
        expected = whole_loss(case, plain, batch)
        expected.backward()
        loss = tc.backward(cut_up, batch, case.loss_fn, micro_batch=micro_batch)
        assert_same(loss, expected, dtype)
        for mine, its in zip(cut_up.parameters(), plain.parameters(), strict=True):
            assert_same(mine.grad, its.grad, dtype)
        sgd(plain, lr=0.1).step()
        reported = tc.train_one_epoch(
            stepped, [batch], case.loss_fn, sgd(stepped, lr=0.1), micro_batch=micro_batch
        )
        assert_same(reported, expected / (len(rows) if is_sum(case) else 1), dtype)
        for mine, its in zip(stepped.parameters(), plain.parameters(), strict=True):
            assert_same(mine, its, dtype)


# --- metrics --------------------------------------------------------------------------------------

METRICS = {
    "accuracy": (tc.accuracy, SCORES, SOME_IGNORED),
    "accuracy, ignore_index": (partial(tc.accuracy, ignore_index=2), SCORES, IDS),
    "accuracy of rows": (tc.accuracy, SCORES, SOFT.flip(1)),
    "accuracy of pixels": (tc.accuracy, SOFT_PIXELS, PIXELS),
    "error_rate": (tc.error_rate, SCORES, SOME_IGNORED),
    "error_rate of pixels": (tc.error_rate, SOFT_PIXELS, PIXELS),
    "top_k": (partial(tc.top_k_accuracy, k=2), SCORES, SOME_IGNORED),
    "top_k of rows": (partial(tc.top_k_accuracy, k=2), SCORES, SOFT.flip(1)),
    "threshold": (tc.threshold_accuracy, SOFT[:, :1], BITS[:, :1]),
    "threshold of logits": (
        partial(tc.threshold_accuracy, threshold=0.3, from_logits=True),
        SCORES[:, :1],
        BITS[:, :1],
    ),
    "multilabel": (tc.multilabel_accuracy, SCORES, BITS),
    "multilabel of probabilities": (
        partial(tc.multilabel_accuracy, threshold=0.3, from_logits=False),
        SOFT,
        BITS,
    ),
    "multilabel, whole rows": (partial(tc.multilabel_accuracy, subset=True), SCORES, BITS),
}


@pytest.mark.parametrize("name", METRICS)
@any_cut
def test_any_batches_have_the_metric_of_the_whole(name, cut):
    parts, _ = cut
    metric, outputs, targets = METRICS[name]
    rows = torch.cat(parts)
    batches = [(outputs[part], targets[part]) for part in parts]
    found = tc.evaluate(nn.Identity(), batches, metrics={"it": metric}).metrics["it"]
    uncut = tc.evaluate(nn.Identity(), [(outputs[rows], targets[rows])], metrics={"it": metric})
    assert found == uncut.metrics["it"], "whole numbers add up without any rounding"
    assert_same(found, metric(outputs[rows], targets[rows]), torch.float32)  # a metric is float32


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_is_right_on_some_samples_and_wrong_on_others(name):
    metric, outputs, targets = METRICS[name]
    assert 0.1 < metric(outputs, targets) < 0.9, "else a wrong average would not show"


@any_cut
def test_a_metric_of_ones_own_gets_the_whole_split_however_it_is_cut(cut):
    parts, _ = cut
    rows = torch.cat(parts)
    found = tc.evaluate(
        nn.Identity(), [(X[part], IDS[part]) for part in parts], metrics=[spread]
    ).metrics
    assert found == {"spread": spread(X[rows], IDS[rows]).item()}


def spread(outputs, targets):
    """No mean over samples: nothing that is added up could give it."""
    return outputs.amax() - targets.double().median()


# --- many small terms -----------------------------------------------------------------------------

TENTH = float(np.float32(0.1))


def in_float32(terms):
    """What a running sum in float32 makes of them."""
    return float(np.cumsum(np.array(terms, dtype=np.float32), dtype=np.float32)[-1])


def test_many_small_terms_lose_nothing():
    mean = Mean()
    for _ in range(200_000):
        mean.add_sum(TENTH, 1)
    assert mean.value() == pytest.approx(TENTH, rel=1e-9)
    naive = in_float32([TENTH] * 200_000) / 200_000
    assert naive != pytest.approx(TENTH, rel=1e-3), "float32 would pass, so this shows nothing"


def test_small_terms_after_a_large_one_lose_nothing():
    large, small, mean = 2.0**24, tensor(0.5), Mean()  # float32 cannot tell 2**24 from 2**24 + 0.5
    mean.add(tensor(large), 1)
    for _ in range(10_000):
        mean.add(small, 1)
    assert mean.value() * 10_001 == pytest.approx(large + 5_000, rel=1e-15)
    assert in_float32([large] + [0.5] * 10_000) == large, "float32 would pass"


def test_small_losses_after_a_large_one_lose_nothing_in_an_epoch():
    batches = [(tensor([[4096.0]]), tensor([[0.0]]))] + [(tensor([[0.5]]), tensor([[0.0]]))] * 200
    exact = (4096.0**2 + 200 * 0.25) / 201
    found = tc.evaluate(nn.Identity(), batches, loss_fn=nn.MSELoss()).loss
    assert found == pytest.approx(exact, rel=1e-14)
    model = nn.Linear(1, 1, bias=False)
    nn.init.ones_(model.weight)
    found = tc.train_one_epoch(model, batches, nn.MSELoss(), sgd(model, lr=0.0))
    assert found == pytest.approx(exact, rel=1e-14)


# --- one piece, bit for bit -----------------------------------------------------------------------


def plain_loop(model, batches, loss_fn, optimizer, epochs):
    for _ in range(epochs):
        model.train()
        for inputs, targets in batches:
            optimizer.zero_grad()
            loss = loss_fn(model(inputs), targets)
            loss.backward()
            optimizer.step()


def convolutions():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3)
    )


class Drawing(nn.Module):
    """Draws random numbers and keeps running means."""

    def __init__(self):
        super().__init__()
        self.body = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.3)
        self.last = nn.Linear(144, 3)

    def forward(self, images):
        return self.last(self.drop(self.norm(self.body(images)).relu()).flatten(1))


OPTIMIZERS = {
    "Adam": partial(torch.optim.Adam, lr=0.01),
    "SGD": partial(torch.optim.SGD, lr=0.1, momentum=0.9),
}
TRAININGS = {
    "fit": {},
    "fit, whole batches": {"micro_batch": None},
    "train_one_epoch": None,
}


def trained(how, build, optimizer_of, loss_fn, batches):
    with torch.random.fork_rng([]):
        torch.manual_seed(3)
        model = build()
        optimizer = optimizer_of(model.parameters())
        if how == "plain":
            plain_loop(model, batches, loss_fn, optimizer, 3)
        elif how == "train_one_epoch":
            for _ in range(3):
                tc.train_one_epoch(model, batches, loss_fn, optimizer)
        else:
            tc.fit(
                model,
                batches,
                batches[:1],  # validation in between must not show
                loss_fn=loss_fn,
                epochs=3,
                optimizer=optimizer,
                metrics=[tc.accuracy],
                device="cpu",
                progress=False,
                **TRAININGS[how],
            )
        return model.state_dict()


@pytest.mark.parametrize("how", TRAININGS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("build", [convolutions, Drawing])
def test_one_piece_gives_the_very_bits_of_the_plain_loop(build, optimizer, how, generator):
    images = torch.randn(21, 1, 8, 8, generator=generator)
    targets = torch.where(torch.arange(21) % 6 == 5, -100, torch.arange(21) % 3)
    batches = list(zip(images.split(8), targets.split(8), strict=True))  # 8, 8, 5
    loss_fn = nn.CrossEntropyLoss(weight=tensor([1.0, 5.0, 0.5]))
    args = (build, OPTIMIZERS[optimizer], loss_fn, batches)
    expected, found = trained("plain", *args), trained(how, *args)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
