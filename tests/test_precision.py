"""torchcls.precision: half precision inside the model, whole numbers outside."""

import re

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import torchcls as tc
from torchcls.precision import precision_of

CPU = torch.device("cpu")
HALVES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def data(n=60):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, 4, generator=generator), torch.arange(n) % 3


def network(seen=None):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    if seen is not None:
        model[2].register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    return model


def fit(model, precision, **keywords):
    return tc.fit(
        model,
        tc.Batches(*data(), batch_size=20),
        tc.Batches(*data(), batch_size=60),
        **{"loss_fn": nn.CrossEntropyLoss(), "epochs": 3, "lr": 1e-2, **keywords},
        precision=precision,
        device="cpu",
        ignore=["valid-is-train", "nothing-moves"],
        progress=False,
    )


@pytest.mark.parametrize("precision", HALVES)
def test_the_model_runs_in_it_and_the_loss_gets_float32(precision):
    inside, outside = [], []

    def loss_fn(outputs, targets):
        outside.append(outputs.dtype)
        return nn.functional.cross_entropy(outputs, targets)

    model = network(inside)
    half = fit(model, precision, loss_fn=loss_fn, metrics=[tc.accuracy])
    assert set(inside) == {HALVES[precision]}
    assert set(outside) == {torch.float32}
    assert all(weight.dtype == torch.float32 for weight in model.parameters())
    full = fit(network(), "float32")
    # Three decimal digits of bfloat16 in the outputs, over a few steps.
    assert half[-1].valid_loss == pytest.approx(full[-1].valid_loss, rel=2e-2)
    assert half[-1].valid_loss != full[-1].valid_loss


@pytest.mark.parametrize("precision", HALVES)
def test_its_averages_are_exact_however_a_batch_is_cut(precision):
    weight = torch.tensor([1.0, 2.0, 5.0])
    frozen = {"loss_fn": nn.CrossEntropyLoss(weight), "epochs": 1, "lr": 1e-12}
    whole = fit(network(), precision, micro_batch=None, **frozen)
    cut = fit(network(), precision, micro_batch=7, **frozen)
    assert cut[0].train_loss == pytest.approx(whole[0].train_loss, rel=1e-6)  # float32 losses


def test_outputs_of_any_structure_get_float32():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = network()

        def forward(self, x):
            return {"logits": self.body(x), "ids": torch.arange(len(x)), "text": "a"}

    outputs = precision_of("bfloat16", CPU).outputs(Named(), data()[0])
    assert outputs["logits"].dtype == torch.float32
    assert outputs["ids"].dtype == torch.int64
    assert outputs["text"] == "a"


def test_bce_on_probabilities_works():
    model = nn.Sequential(nn.Linear(4, 1), nn.Sigmoid())
    batches = tc.Batches(data()[0], data()[1][:, None].clamp(max=1).float(), batch_size=20)
    history = tc.fit(
        model, batches, loss_fn=nn.BCELoss(), precision="float16", epochs=1, progress=False
    )
    assert history[0].train_loss > 0


def test_float16_takes_the_step_of_its_unscaled_gradients():
    scaled, plain = network(), network()
    batch = data()
    precision = precision_of("float16", CPU)
    loss = nn.functional.cross_entropy(precision.outputs(scaled, batch[0]), batch[1])
    precision.backward(loss)
    precision.step(torch.optim.SGD(scaled.parameters(), lr=0.1))
    nn.functional.cross_entropy(plain(batch[0]), batch[1]).backward()
    torch.optim.SGD(plain.parameters(), lr=0.1).step()
    for ours, theirs in zip(scaled.parameters(), plain.parameters(), strict=True):
        assert_close(ours, theirs, rtol=1e-3, atol=1e-4)  # float16 has 11 bits


@pytest.mark.parametrize("fused", [False, True])
def test_float16_skips_a_step_whose_gradients_overflow_and_goes_on(fused):
    model = nn.Linear(4, 3)
    before = model.weight.detach().clone()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=fused)
    batch = data()
    history = []

    def loss_fn(outputs, targets):  # too large for float16 once it is scaled by 65536
        steep = 1e3 if len(history) == 0 else 1.0
        history.append(model.weight.detach().clone())
        return steep * nn.functional.cross_entropy(outputs, targets)

    batches = [batch] * 3
    tc.fit(
        model,
        batches,
        loss_fn=loss_fn,
        optimizer=optimizer,
        precision="float16",
        epochs=1,
        progress=False,
    )
    assert torch.equal(history[1], before)  # skipped
    assert model.weight.isfinite().all()
    assert not torch.equal(model.weight, before)  # and went on


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("overflows", [{0}, {1}, {0, 1, 3}])
def test_fused_sgd_with_momentum_steps_as_the_unfused_one_beside_overflows(nesterov, overflows):
    """torch's fused one writes its momentum in a step that it skips."""
    weights = []
    for fused in (False, True):
        model, steps = network(), iter(range(5))

        def loss_fn(outputs, targets, steps=steps):
            steep = 1e3 if next(steps) in overflows else 1.0
            return steep * nn.functional.cross_entropy(outputs, targets)

        optimizer = torch.optim.SGD(
            model.parameters(), lr=0.01, momentum=0.9, nesterov=nesterov, fused=fused
        )
        tc.fit(
            model,
            [data()] * 5,
            loss_fn=loss_fn,
            optimizer=optimizer,
            precision="float16",
            epochs=1,
            progress=False,
            device="cpu",
        )
        weights.append([weight.detach() for weight in model.parameters()])
    assert_close(weights[1], weights[0])


@pytest.mark.parametrize("precision", HALVES)
def test_a_batch_without_a_sample_is_no_step(precision):
    model, (x, y) = network(), data(8)
    history = tc.fit(
        model,
        [(x[:0], y[:0]), (x, y)],
        loss_fn=nn.CrossEntropyLoss(),
        precision=precision,
        micro_batch=4,
        epochs=1,
        progress=False,
        device="cpu",
    )
    assert history[0].train_loss > 0


@pytest.mark.parametrize("precision", ["fp16", "half", None, torch.float16])
def test_an_unknown_precision_is_refused_before_anything_runs(precision):
    message = f"precision must be one of 'float32', 'bfloat16', 'float16', got {precision!r}."
    with pytest.raises(ValueError, match=re.escape(message)):
        fit(network(), precision)
