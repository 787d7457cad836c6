"""torch's default device and dtype are the user's business: nothing of ours depends on them."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import torchcls as tc


@contextmanager
def defaults(device: str, dtype: torch.dtype) -> Iterator[None]:
    torch.set_default_device(device)
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)


def parts():
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Linear(4, 3)
    x, y = torch.randn(60, 4, generator=generator), torch.arange(60) % 3
    train = tc.Batches(x[:40], y[:40], batch_size=16, shuffle=True)
    return model, train, tc.Batches(x[40:], y[40:], batch_size=20)


def fitted(model, train, valid, **options):
    history = tc.fit(
        model,
        train,
        valid,
        loss_fn=nn.CrossEntropyLoss(),
        epochs=2,
        device="cpu",
        progress=False,
        **{"metrics": [tc.accuracy], **options},
    )
    return [{**record, "time": 0} for record in history]


def own_metric(outputs, targets):
    return (outputs.argmax(1) == targets).float().mean()


def pair(outputs, targets):
    return F.cross_entropy(outputs, targets, reduction="sum"), len(targets)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"micro_batch": 7},
        {"metrics": [own_metric, tc.error_rate]},
        {"metrics": [tc.confusion_matrix]},
        {"schedule": tc.one_cycle(), "clip_norm": 1.0},
        {"precision": "bfloat16"},
        {"check": "off"},
    ],
    ids=["plain", "pieces", "metrics", "matrix", "schedule", "bfloat16", "unchecked"],
)
def test_a_run_does_not_depend_on_them(options):
    expected, (model, train, valid) = fitted(*parts(), **options), parts()
    with defaults("meta", torch.float64):
        assert fitted(model, train, valid, **options) == expected


def test_a_run_is_kept_and_resumed(tmp_path):
    expected, (model, train, valid) = fitted(*parts()), parts()
    again = parts()
    with defaults("meta", torch.float64):
        assert fitted(model, train, valid, checkpoint=tmp_path) == expected
        assert fitted(*again, checkpoint=tmp_path, resume=True) == expected
    assert torch.equal(again[0].weight, model.weight)


def test_losses_that_return_a_pair():
    model, train, valid = parts()
    with defaults("meta", torch.float64):
        tc.backward(model, (train.inputs, train.targets), pair, micro_batch=7)
        found = tc.evaluate(model, valid, loss_fn=pair)
    assert found.loss == tc.evaluate(model, valid, loss_fn=pair).loss


def test_drawn_digits_are_the_same():
    expected = tc.drawn_digits(20)
    with defaults("meta", torch.float64):
        found = tc.drawn_digits(20)
    assert all(map(torch.equal, found, expected))
    assert [part.dtype for part in found] == [torch.float32, torch.int64]


def test_check_and_predict():
    model, train, _ = parts()
    batch = train.inputs, train.targets
    with defaults("meta", torch.float64):
        assert tc.check(model, batch, nn.CrossEntropyLoss(), [tc.accuracy, own_metric]) == []
        found = tc.predict(model, batch[0], loss_fn=nn.CrossEntropyLoss())
        assert found.probabilities.shape == (40, 3)
        assert found.predicted.shape == (40,)
