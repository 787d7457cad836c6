"""torchcls.pieces: when "auto" cuts, into what, and that nothing but the time shows it."""

import copy
import re
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import torchcls as tc
from torchcls.averaging import averaging_of
from torchcls.batches import num_samples
from torchcls.speed import pieces
from torchcls.speed.pieces import AutoPieces, cache_bytes, piece_size
from torchcls.step import check_micro_batch

MIB = 2**20


@pytest.fixture
def small_cache(monkeypatch):
    """A cache that a batch of a few kilobytes is larger than."""
    monkeypatch.setattr(pieces, "cache_bytes", lambda: 8192)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)


def perceptron(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 3)).to(dtype)


def data(n=120, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, 4, generator=generator, dtype=dtype), torch.arange(n) % 3


def cuts(model, batch, loss_fn=tc.cross_entropy):
    auto = AutoPieces(model)
    auto.renew(averaging_of(loss_fn))
    forward, parts = auto.cut(batch)
    assert sum(num_samples(targets) for _, targets in parts) == num_samples(batch[1])
    return SimpleNamespace(forward=forward, parts=parts, size=auto.size)


WEIGHT = torch.tensor([1.0, 5.0, 0.5]).double()


def fitted(batches, loss_fn, micro_batch, **keywords):
    """A model that was trained and validated on the batches, and the history."""
    model = perceptron(torch.float64)
    history = tc.fit(
        model,
        batches,
        batches,
        loss_fn=loss_fn,
        micro_batch=micro_batch,
        ignore=["valid-is-train", "row-sums"],
        progress=False,
        device="cpu",
        **keywords,
    )
    return model, history


# --- the size ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sample", "weights", "expected"),
    [
        (77_000, 28_000, 64),  # a quarter of 32 MiB is 108 samples
        (MIB, 28_000, 16),  # eight would do; sixteen for four threads
        (3 * MIB, 28_000, None),  # sixteen samples are larger than the cache
        (6_000, 8_000_000, None),  # every piece would read more weights than samples
        (6_000, 6_000_000, 1024),
    ],
)
def test_a_piece_is_a_quarter_of_the_cache(monkeypatch, sample, weights, expected):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    assert piece_size(sample, weights, 32 * MIB) == expected


def test_the_cache_is_what_the_system_reports(tmp_path):
    for index, (level, size) in enumerate([("1", "32K"), ("2", "1024K"), ("3", "16384K")]):
        folder = tmp_path / f"index{index}"
        folder.mkdir()
        (folder / "level").write_text(f"{level}\n")
        (folder / "size").write_text(f"{size}\n")
    (tmp_path / "index3").mkdir()  # half hidden
    assert cache_bytes(tmp_path) == 16 * MIB
    assert cache_bytes(tmp_path / "nothing") == 32 * MIB


# --- when it cuts ------------------------------------------------------------------------------


@pytest.mark.usefixtures("small_cache")
def test_a_model_larger_than_the_cache_is_not_cut():
    large = nn.Sequential(nn.Linear(4, 1000), nn.Tanh(), nn.Linear(1000, 3))
    found = cuts(large, data())
    assert (len(found.parts), found.size) == (1, None)
    assert found.forward is large


@pytest.mark.usefixtures("small_cache")
def test_it_cuts_a_batch_that_is_larger_than_the_cache():
    found = cuts(perceptron(), data())
    # A sample keeps 4 inputs and 16 activations (tanh's result is what the next layer keeps, too)
    # as float32: 80 bytes, of which 25 samples fill a quarter of the cache.
    assert found.size == 16
    assert [len(targets) for _, targets in found.parts] == [16] * 7 + [8]


def own_loss(outputs, targets):
    return nn.functional.cross_entropy(outputs, targets)


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = perceptron()

    def forward(self, x):
        return self.body(x)


WHOLE = {
    "a module of one's own": (Own(), data(), tc.cross_entropy),
    "mixed samples": (nn.Sequential(perceptron(), nn.BatchNorm1d(3)), data(), tc.cross_entropy),
    "random numbers": (nn.Sequential(perceptron(), nn.Dropout()), data(), tc.cross_entropy),
    "a loss of one's own": (perceptron(), data(), own_loss),
    "a weight for each sample": (
        perceptron(),
        (data()[0], torch.rand(120, 3)),
        nn.BCEWithLogitsLoss(torch.rand(120, 1)),
    ),
    "inputs in a dict": (perceptron(), ({"x": data()[0]}, data()[1]), tc.cross_entropy),
    "a small batch": (perceptron(), data(20), tc.cross_entropy),
    "two samples": (perceptron(), data(2), tc.cross_entropy),
    "fewer targets": (perceptron(), (data()[0], data()[1][:50]), tc.cross_entropy),
    "one vector": (nn.Linear(5000, 5000), (torch.randn(5000), torch.randn(5000)), nn.MSELoss()),
    "inputs with gradients": (
        perceptron(),
        (data()[0].requires_grad_(), data()[1]),
        tc.cross_entropy,
    ),
    "inputs that do not fit": (perceptron(), (torch.ones(120, 7), data()[1]), tc.cross_entropy),
    "a first layer that writes into the data": (
        nn.Sequential(nn.ReLU(inplace=True), perceptron()),
        data(),
        tc.cross_entropy,
    ),
    "a target for all of a row": (perceptron(), (data()[0], data()[0][:, :1]), nn.MSELoss()),
    "NaN": (nn.Sequential(perceptron(), nn.Linear(3, 3, bias=False)), data(), tc.cross_entropy),
    "bfloat16": (perceptron().bfloat16(), (data()[0].bfloat16(), data()[1]), tc.cross_entropy),
}


with torch.no_grad():
    WHOLE["NaN"][0][1].weight.fill_(float("nan"))


@pytest.mark.usefixtures("small_cache")
@pytest.mark.parametrize("name", WHOLE)
def test_it_leaves_whole(name):
    model, batch, loss_fn = WHOLE[name]
    auto = AutoPieces(model)
    auto.renew(averaging_of(loss_fn))
    forward, parts = auto.cut(batch)
    assert forward is model
    assert len(parts) == 1
    assert parts[0][0] is batch[0]


@pytest.mark.usefixtures("small_cache")
def test_what_is_unfrozen_between_epochs_is_looked_at_anew():
    model = perceptron()
    model[0].requires_grad_(False)
    auto = AutoPieces(model)
    auto.renew(averaging_of(tc.cross_entropy))
    assert len(auto.cut(data(200))[1][0][1]) == 32  # tanh's result, 64 bytes
    model[0].requires_grad_()
    auto.renew(averaging_of(tc.cross_entropy))
    assert len(auto.cut(data(200))[1][0][1]) == 16 == cuts(perceptron(), data()).size


@pytest.mark.usefixtures("small_cache")
def test_a_frozen_model_is_evaluated_in_pieces():
    auto = AutoPieces(perceptron().requires_grad_(False))
    auto.renew()
    with torch.no_grad():
        auto.outputs(data(200)[0])
    assert auto.size == 32


@pytest.mark.usefixtures("small_cache")
def test_another_model_between_epochs_is_looked_at_anew():
    model = perceptron()
    auto = AutoPieces(model)
    auto.renew(averaging_of(tc.cross_entropy))
    assert len(auto.cut(data())[1][0][1]) == 16
    model.insert(0, nn.Linear(4, 4))
    for _ in range(8):
        model.insert(1, nn.Tanh())
    auto.renew(averaging_of(tc.cross_entropy))
    assert len(auto.cut(data())[1][0][1]) == 8  # 208 bytes a sample in place of 80


@pytest.mark.usefixtures("small_cache")
def test_a_small_first_batch_says_nothing_about_the_next():
    auto = AutoPieces(perceptron())
    auto.renew(averaging_of(tc.cross_entropy))
    sizes = [[len(y) for _, y in auto.cut(data(n))[1]] for n in (3, 90, 120)]
    assert sizes == [[3], [90], [16] * 7 + [8]]
    assert auto.size == 16


def test_a_batch_that_could_not_be_cut_is_not_looked_at(monkeypatch):
    looked_at = []
    monkeypatch.setattr(pieces, "_sample_of", lambda *a: looked_at.append(len(a[2])))
    least = 4 * torch.get_num_threads()
    for n in (least, least + 1):
        tc.evaluate(perceptron(), [data(n)], loss_fn=tc.cross_entropy)
    assert looked_at == [3]


@pytest.mark.usefixtures("small_cache")
def test_outputs_lie_as_the_model_gives_them():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))
    seen = []
    metric = {"view": lambda outputs, targets: seen.append(outputs.stride()) or 0.0}
    found = tc.evaluate(model, [(torch.randn(20, 3, 8, 8), torch.zeros(20))], metrics=metric)
    assert found.n == 20
    assert seen == [model(torch.randn(20, 3, 8, 8)).stride()]


@pytest.mark.usefixtures("small_cache")
def test_it_asks_the_model_again_at_every_pass():
    model = perceptron()
    auto = AutoPieces(model)
    sizes = []
    for change in (
        lambda: None,
        lambda: model.append(nn.BatchNorm1d(3)),
        lambda: model[3].eval(),
    ):
        change()
        auto.renew(averaging_of(tc.cross_entropy))
        sizes.append([len(targets) for _, targets in auto.cut(data())[1]])
    assert sizes == [[16] * 7 + [8], [120], [16] * 7 + [8]]


@pytest.mark.usefixtures("small_cache")
def test_looking_leaves_the_model_and_the_batch_as_they_were():
    model = nn.Sequential(perceptron(), nn.ReLU(inplace=True))
    before, (inputs, targets) = copy.deepcopy(model.state_dict()), data()
    seen, state = inputs.clone(), torch.get_rng_state()
    assert cuts(model, (inputs, targets)).size == 16
    assert torch.equal(inputs, seen)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert_close(model.state_dict(), before, rtol=0, atol=0)


@pytest.mark.usefixtures("small_cache")
def test_it_never_shows_the_model_an_uncut_batch(monkeypatch):
    seen = []
    monkeypatch.setattr(
        nn.Linear,
        "forward",
        lambda self, x: seen.append(len(x)) or nn.functional.linear(x, self.weight, self.bias),
    )
    model = nn.Sequential(nn.Linear(4, 16), nn.Tanh())
    cuts(model, (data()[0], torch.randn(120, 16)), nn.MSELoss())
    assert seen == [3, 1, 2]


# --- the same numbers --------------------------------------------------------------------------


@pytest.mark.usefixtures("small_cache")
@pytest.mark.parametrize("shuffle", [False, True])
def test_fit_cuts_by_itself_and_takes_the_same_steps(shuffle):
    def batches():
        return tc.Batches(*data(dtype=torch.float64), batch_size=70, shuffle=shuffle)

    loss_fn = nn.CrossEntropyLoss(WEIGHT)
    (auto, cut), (plain, whole) = (
        fitted(batches(), loss_fn, micro_batch, metrics=[tc.accuracy], epochs=2)
        for micro_batch in ("auto", None)
    )
    assert (cut.micro_batch, whole.micro_batch) == (8, None)
    assert cut[:1].micro_batch == 8
    assert_close(auto.state_dict(), plain.state_dict())
    for ours, theirs in zip(cut, whole, strict=True):
        assert ours.train_loss == pytest.approx(theirs.train_loss, rel=1e-12)
        assert ours.valid_loss == pytest.approx(theirs.valid_loss, rel=1e-12)
        assert ours.accuracy == theirs.accuracy


def ids(n):
    return torch.arange(n) % 3


def bits(n):
    return nn.functional.one_hot(ids(n), 3).double()


KNOWN = {
    "class weights": (nn.CrossEntropyLoss(WEIGHT), ids),
    "ignored": (
        nn.CrossEntropyLoss(WEIGHT, label_smoothing=0.1),
        lambda n: torch.where(torch.arange(n) % 40 < 30, -100, ids(n)),  # whole pieces, too
    ),
    "soft rows": (nn.CrossEntropyLoss(WEIGHT), lambda n: 0.8 * bits(n) + 0.1),
    "pos_weight": (nn.BCEWithLogitsLoss(pos_weight=WEIGHT), bits),
    "mse": (tc.mse_loss, bits),
    "sum": (nn.CrossEntropyLoss(WEIGHT, reduction="sum"), ids),
    "partial": (partial(tc.cross_entropy, weight=WEIGHT, ignore_index=1), ids),
}


@pytest.mark.usefixtures("small_cache")
def test_fit_leaves_batches_whole_for_a_loss_of_ones_own():
    seen = []

    def own(outputs, targets):
        seen.append(len(targets))
        return nn.functional.cross_entropy(outputs, targets)

    _, history = fitted(
        tc.Batches(*data(dtype=torch.float64), batch_size=110), own, "auto", epochs=1
    )
    assert history.micro_batch is None
    # The first step, the look at validation in it, the second step, validation.
    assert seen == [110, 110, 10, 110, 10]


@pytest.mark.usefixtures("small_cache")
@pytest.mark.parametrize("name", KNOWN)
def test_an_epoch_is_that_of_whole_batches_for_every_kind_of_known_loss(name):
    loss_fn, targets = KNOWN[name]
    inputs, _ = data(250, torch.float64)
    batches = tc.Batches(inputs, targets(250), batch_size=110)  # 110 + 110 + 30, which fits
    (auto, cut), (plain, whole) = (
        fitted(batches, loss_fn, micro_batch, epochs=1) for micro_batch in ("auto", None)
    )
    assert cut.micro_batch == 8
    assert cut[0].train_loss == pytest.approx(whole[0].train_loss, rel=1e-12)
    assert cut[0].valid_loss == pytest.approx(whole[0].valid_loss, rel=1e-12)
    assert_close(auto.state_dict(), plain.state_dict())


@pytest.mark.usefixtures("small_cache")
def test_evaluation_goes_in_pieces_where_training_may_not():
    seen = []
    model = nn.Sequential(perceptron(), nn.BatchNorm1d(3), nn.Dropout())
    whole = tc.predict(model, [data()]).outputs
    found = tc.evaluate(
        model, [data()], metrics={"all": lambda outputs, targets: seen.append(outputs) or 0.0}
    )
    assert found.n == 120
    assert_close(seen[0], whole)
    auto = AutoPieces(model.eval())
    auto.renew()
    with torch.no_grad():
        assert_close(auto.outputs(data()[0]), whole)
    assert auto.size == 16


# --- errors ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("micro_batch", "may_be_auto", "error", "message"),
    [
        (0, True, ValueError, "micro_batch must be at least 1, got 0"),
        (-3, True, ValueError, "micro_batch must be at least 1, got -3"),
        (2.0, True, TypeError, "micro_batch must be a whole number, got 2.0"),
        (True, True, TypeError, "micro_batch must be a whole number, got True"),
        ("automatic", True, TypeError, "must be 'auto', None or a whole number, got 'automatic'"),
        ("auto", False, TypeError, "got 'auto'. 'auto' is for tc.fit and tc.epochs."),
    ],
)
def test_what_is_no_micro_batch_is_refused(micro_batch, may_be_auto, error, message):
    with pytest.raises(error, match=re.escape(message)):
        check_micro_batch(micro_batch, may_be_auto=may_be_auto)


def test_what_is_one_is_taken():
    for micro_batch in (None, 1, 128):
        check_micro_batch(micro_batch)
    check_micro_batch("auto", may_be_auto=True)
