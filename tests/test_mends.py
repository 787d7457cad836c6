"""Faults that trained on in silence, each by the number that was wrong."""

import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import torchcls as tc


def three_classes(n=60):
    inputs = torch.randn(n, 4, generator=torch.Generator().manual_seed(0))
    return inputs, (inputs[:, 0] > 0).long() + (inputs[:, 1] > 0).long()


# --- memory -----------------------------------------------------------------------------------


def test_a_model_that_was_cut_into_pieces_is_freed_with_its_run(monkeypatch):
    monkeypatch.setattr("torchcls.speed.pieces.cache_bytes", lambda: 2**20)
    images, targets = torch.randn(64, 3, 16, 16), torch.arange(64) % 3
    layers = nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()
    model = nn.Sequential(*layers, nn.Linear(32 * 8 * 8, 3))
    train = tc.Batches(images, targets, batch_size=64)
    loss_fn = nn.CrossEntropyLoss()
    history = tc.fit(model, train, loss_fn=loss_fn, epochs=1, device="cpu", progress=False)
    assert history.micro_batch is not None  # else nothing was cut, and nothing is shown
    tc.evaluate(model, train, loss_fn=loss_fn)
    weights = [weakref.ref(parameter) for parameter in model.parameters()]
    del model, layers, history
    gc.collect()
    assert [weight() for weight in weights] == [None] * 4


# --- a loss that returns two losses -------------------------------------------------------------


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x):
        return self.a(x), self.b(x)


def two_losses(outputs, targets):
    return F.cross_entropy(outputs[0], targets), F.cross_entropy(outputs[1], targets)


def test_two_losses_are_no_numerator_and_denominator():
    model, batch = TwoHeads(), three_classes()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    words = r"two numbers that both depend on the model.*return a \+ b"
    with pytest.raises(ValueError, match=words):
        tc.fit(model, [batch], loss_fn=two_losses, device="cpu", progress=False)
    with pytest.raises(ValueError, match=words):
        tc.backward(model, batch, two_losses)
    with pytest.raises(ValueError, match=words):
        tc.backward(model, batch, two_losses, micro_batch=20)
    with pytest.raises(ValueError, match=words):
        tc.evaluate(model, [batch], loss_fn=two_losses)
    assert any("return a + b" in finding.message for finding in tc.check(model, batch, two_losses))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_count_of_the_targets_stays_a_denominator():
    def masked(outputs, targets):
        counts = targets != 0
        losses = F.cross_entropy(outputs, targets, reduction="none")
        return (losses * counts).sum(), counts.sum()

    model, (inputs, targets) = nn.Linear(4, 3), three_classes()
    found = tc.evaluate(
        model, [(inputs[:50], targets[:50]), (inputs[50:], targets[50:])], loss_fn=masked
    )
    numerator, denominator = masked(model(inputs), targets)
    assert found.loss == pytest.approx((numerator / denominator).item(), rel=1e-6)


# --- samples in place of batches ----------------------------------------------------------------


@pytest.mark.parametrize("form", ["dataset", "list"])
@pytest.mark.parametrize("place", ["train", "valid"])
def test_samples_are_no_batches(form, place):
    images = torch.rand(20, 1, 4, 4)
    data = TensorDataset(images, torch.randint(3, (20,)))
    samples = data if form == "dataset" else [(image, int(target)) for image, target in data]
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(0), nn.Linear(8, 3))
    steps = []
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    optimizer.register_step_post_hook(lambda *_: steps.append(1))
    loader = DataLoader(data, batch_size=4)
    train, valid = (samples, None) if place == "train" else (loader, samples)
    with pytest.raises(TypeError, match=rf"{place} must give batches.*Wrap it: .*DataLoader\("):
        tc.fit(
            model,
            train,
            valid,
            loss_fn=nn.CrossEntropyLoss(),
            optimizer=optimizer,
            device="cpu",
            progress=False,
        )
    assert steps == []
    with pytest.raises(TypeError, match="must give batches, got the single samples of a"):
        tc.train_one_epoch(model, samples, nn.CrossEntropyLoss(), optimizer)
    with pytest.raises(TypeError, match="must give batches, got the single samples of a"):
        tc.evaluate(model, samples)


# --- class weights of 0 beside label smoothing ----------------------------------------------------


@pytest.mark.parametrize("cuts", [(2, 4), (1, 1, 4), (6,), (3, 3)])
def test_a_target_of_weight_0_still_adds_what_label_smoothing_spreads(cuts):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 3, generator=generator)
    targets = torch.tensor([0, 0, 1, 2, 1, 2])
    loss_fn = nn.CrossEntropyLoss(torch.tensor([0.0, 1.0, 2.0]), label_smoothing=0.1)
    batches = list(zip(logits.split(cuts), targets.split(cuts), strict=True))
    whole = loss_fn(logits, targets).item()
    assert tc.evaluate(nn.Identity(), batches, loss_fn=loss_fn).loss == pytest.approx(whole, 1e-6)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_pieces_of_weight_0_beside_label_smoothing_take_the_step_of_the_whole(size):
    torch.manual_seed(0)
    inputs, targets = torch.randn(6, 3), torch.tensor([0, 0, 1, 2, 1, 2])
    loss_fn = nn.CrossEntropyLoss(torch.tensor([0.0, 1.0, 2.0]), label_smoothing=0.1)
    model = nn.Linear(3, 3)
    whole = tc.backward(model, (inputs, targets), loss_fn)
    expected = model.weight.grad.clone()
    model.zero_grad()
    pieces = tc.backward(model, (inputs, targets), loss_fn, micro_batch=size)
    torch.testing.assert_close(pieces, whole)
    torch.testing.assert_close(model.weight.grad, expected)


# --- samplers that shuffle by the number of the epoch ---------------------------------------------


class Watched(nn.Linear):
    def __init__(self):
        super().__init__(1, 2)
        self.seen = []

    def forward(self, x):
        self.seen.append(x[:, 0].int().tolist())
        return super().forward(x)


def test_a_sampler_hears_which_epoch_begins():
    data = TensorDataset(torch.arange(8.0)[:, None], torch.zeros(8, dtype=torch.long))
    sampler = DistributedSampler(data, num_replicas=1, rank=0, shuffle=True)
    model = Watched()
    loader = DataLoader(data, batch_size=8, sampler=sampler)
    tc.fit(model, loader, loss_fn=nn.CrossEntropyLoss(), epochs=3, device="cpu", progress=False)
    expected = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        expected.append(list(sampler))
    assert model.seen == expected
    assert len({tuple(order) for order in expected}) == 3


def test_a_batch_sampler_and_a_dataset_hear_it_too():
    heard = []

    class Hearing(TensorDataset):
        def set_epoch(self, epoch):
            heard.append(("dataset", epoch))

    class Sampler:
        def __len__(self):
            return 1

        def __iter__(self):
            yield [0, 1]

        def set_epoch(self, epoch):
            heard.append(("batch sampler", epoch))

    data = Hearing(torch.zeros(2, 1), torch.tensor([0, 1]))
    loader = DataLoader(data, batch_sampler=Sampler())
    tc.fit(
        nn.Linear(1, 2),
        loader,
        loss_fn=nn.CrossEntropyLoss(),
        epochs=2,
        progress=False,
        device="cpu",
    )
    assert sorted(heard) == [(name, n) for name in ("batch sampler", "dataset") for n in (0, 1)]
