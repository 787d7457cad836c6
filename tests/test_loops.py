"""torchcls.loops: one step, exact however cut, nothing counts, any iterable, errors."""

import textwrap
from functools import partial

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from torch import nn, tensor
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

import torchcls as tc
from torchcls.device import place
from torchcls.step import loss_on

WEIGHT = tensor([1.0, 5.0, 0.5])
IDS = torch.arange(70) % 3
SOME_IGNORED = torch.where(torch.arange(70) < 40, -100, IDS)  # the first of 32 + 32 + 6 is empty
ROWS = F.one_hot(IDS, 3) * 0.8 + 0.1
BITS = F.one_hot(IDS, 3).float()


def linear(seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    model = nn.Linear(4, 3, dtype=dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model


def inputs(n=70, dtype=torch.float32):
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(1), dtype=dtype)


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1)


def gradients(model):
    return [parameter.grad.clone() for parameter in model.parameters()]


def squares(outputs, targets):
    return (outputs - targets).square().mean(1).sum(), tensor(float(len(targets)))


# ------------------------------------------------------------------ one step


def test_one_step_is_the_closed_form():
    model = nn.Linear(4, 3, bias=False, dtype=torch.float64)
    x, y = inputs(dtype=torch.float64), IDS
    w = model.weight.detach().clone()
    p = (x @ w.T).softmax(1)
    tc.train_one_epoch(model, [(x, y)], tc.cross_entropy, sgd(model))
    assert_close(model.weight.detach(), w - 0.1 * (p - F.one_hot(y, 3)).T @ x / len(x))


@pytest.mark.parametrize(
    ("loss_fn", "targets"),
    [
        (nn.CrossEntropyLoss(), IDS),
        (nn.CrossEntropyLoss(weight=WEIGHT), IDS),
        (nn.BCEWithLogitsLoss(), BITS),
    ],
)
def test_one_piece_gives_the_bits_of_the_plain_loop(loss_fn, targets):
    batches = list(DataLoader(TensorDataset(inputs(), targets), batch_size=32))
    ours, plain = linear(), linear()
    ours_optimizer, optimizer = sgd(ours), sgd(plain)
    for _ in range(3):
        tc.train_one_epoch(ours, batches, loss_fn, ours_optimizer)
        for x, y in batches:
            optimizer.zero_grad()
            loss_fn(plain(x), y).backward()
            optimizer.step()
    assert torch.equal(ours.weight, plain.weight)
    assert torch.equal(ours.bias, plain.bias)


def test_stale_gradients_do_not_leak_into_a_step():
    fresh, stale = linear(), linear()
    for parameter in stale.parameters():
        parameter.grad = torch.full_like(parameter, 100.0)
    for model in (fresh, stale):
        tc.train_one_epoch(model, [(inputs(), IDS)], tc.cross_entropy, sgd(model))
    assert torch.equal(fresh.weight, stale.weight)


def test_backward_adds_to_gradients_as_torch_does():
    model, batch = linear(), (inputs(), IDS)
    tc.backward(model, batch, tc.cross_entropy)
    once = gradients(model)
    tc.backward(model, batch, tc.cross_entropy)
    assert_close(gradients(model), [2 * gradient for gradient in once])


# ------------------------------------------------------------------ however it is cut

LOSSES = {
    "cross-entropy": (nn.CrossEntropyLoss(), IDS),
    "class weights": (nn.CrossEntropyLoss(weight=WEIGHT), IDS),
    "ignored": (nn.CrossEntropyLoss(), SOME_IGNORED),
    "ignore_index": (nn.CrossEntropyLoss(weight=WEIGHT, ignore_index=1), IDS),
    "smoothing": (nn.CrossEntropyLoss(weight=WEIGHT, label_smoothing=0.1), SOME_IGNORED),
    "soft rows": (nn.CrossEntropyLoss(weight=WEIGHT), ROWS),
    "nll": (nn.NLLLoss(weight=WEIGHT), IDS),
    "bce with logits": (nn.BCEWithLogitsLoss(pos_weight=WEIGHT), BITS),
    "mse": (nn.MSELoss(), BITS),
    "sum": (nn.CrossEntropyLoss(weight=WEIGHT, reduction="sum"), SOME_IGNORED),
    "partial": (partial(F.cross_entropy, weight=WEIGHT, ignore_index=2), IDS),
    "ours": (tc.cross_entropy, SOME_IGNORED),
    "our partial": (partial(tc.cross_entropy, weight=WEIGHT), IDS),
    "our nll": (tc.nll_loss, IDS),
    "our bce": (tc.binary_cross_entropy_with_logits, BITS),
    "our mse": (tc.mse_loss, BITS),
}


@pytest.mark.parametrize("name", LOSSES)
def test_32_32_6_is_one_batch_of_70(name):
    loss_fn, targets = LOSSES[name]
    whole, cut = linear(), linear()
    expected = loss_fn(whole(inputs()), targets)
    expected.backward()
    loss = tc.backward(cut, (inputs(), targets), loss_fn, micro_batch=32)
    assert_close(loss, expected.detach())
    # Rounding of float32 over three pieces; entries near 0 have no relative precision.
    assert_close(gradients(cut), gradients(whole), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("loss_fn", [nn.BCELoss(), tc.binary_cross_entropy])
def test_32_32_6_is_one_batch_of_70_for_probabilities(loss_fn):
    whole, cut = (nn.Sequential(linear(), nn.Sigmoid()) for _ in range(2))
    expected = loss_fn(whole(inputs()), BITS)
    expected.backward()
    assert_close(tc.backward(cut, (inputs(), BITS), loss_fn, micro_batch=32), expected.detach())
    assert_close(gradients(cut), gradients(whole), rtol=1e-5, atol=1e-6)  # as above


@settings(max_examples=50, deadline=None, derandomize=True)
@given(n=st.integers(1, 40), micro_batch=st.integers(1, 45), batch=st.integers(1, 45))
def test_any_cut_gives_the_same_loss_metric_and_step(n, micro_batch, batch):
    loss_fn = nn.CrossEntropyLoss(weight=WEIGHT.double())
    x, y = inputs(n, torch.float64), IDS[:n]
    whole, cut = linear(dtype=torch.float64), linear(dtype=torch.float64)
    cuts = list(zip(x.split(batch), y.split(batch), strict=True))
    found = tc.evaluate(cut, cuts, loss_fn=loss_fn, metrics=[tc.accuracy])
    expected = loss_fn(whole(x), y).item()
    assert found.loss == pytest.approx(expected, rel=1e-12)
    assert found.metrics["accuracy"] == (whole(x).argmax(1) == y).double().mean().item()
    tc.train_one_epoch(whole, [(x, y)], loss_fn, sgd(whole))
    loss = tc.train_one_epoch(cut, [(x, y)], loss_fn, sgd(cut), micro_batch=micro_batch)
    assert loss == pytest.approx(expected, rel=1e-12)
    assert_close(cut.weight, whole.weight, rtol=1e-12, atol=1e-12)


def test_a_sum_is_stepped_on_and_reported_per_sample():
    loss_fn, model = nn.CrossEntropyLoss(reduction="sum"), linear()
    loss = tc.train_one_epoch(
        model, [(inputs(), IDS)], loss_fn, torch.optim.SGD(model.parameters(), lr=0.01 / 70)
    )
    mean = linear()
    optimizer = torch.optim.SGD(mean.parameters(), lr=0.01)
    expected = tc.train_one_epoch(mean, [(inputs(), IDS)], nn.CrossEntropyLoss(), optimizer)
    assert loss == pytest.approx(expected, rel=1e-6)  # float32 sums
    assert_close(model.weight, mean.weight)


def test_numerators_and_denominators_give_the_exact_epoch_mean():
    model = linear()
    frozen = torch.optim.SGD(model.parameters(), lr=0.0)
    batches = list(zip(inputs().split(32), BITS.split(32), strict=True))
    loss = tc.train_one_epoch(model, batches, squares, frozen)
    assert loss == pytest.approx(F.mse_loss(model(inputs()), BITS).item(), rel=1e-6)  # float32


def weighted(outputs, targets):
    """A loss that brings its own denominator, which differs from piece to piece."""
    weight = 1 + targets[:, 0]
    return ((outputs - targets).square().mean(1) * weight).sum(), weight.sum()


def test_numerators_and_denominators_take_the_same_step_however_cut():
    whole, cut = linear(dtype=torch.float64), linear(dtype=torch.float64)
    batch = inputs(dtype=torch.float64), BITS.double()
    for model in (whole, cut):  # gradients that were there before stay
        model.weight.grad = torch.ones_like(model.weight)
    expected = tc.backward(whole, batch, weighted)
    assert_close(tc.backward(cut, batch, weighted, micro_batch=32), expected)
    assert_close(gradients(cut), gradients(whole))


def test_numerators_reach_whatever_they_were_computed_from():
    """A temperature that only the loss knows, and inputs that ask for a gradient."""

    def run(micro_batch):
        temperature = torch.tensor(2.0, requires_grad=True)

        def loss_fn(outputs, targets):
            numerator, denominator = weighted(outputs / temperature, targets)
            return numerator, denominator

        x = inputs().requires_grad_()
        tc.backward(linear(), (x, BITS), loss_fn, micro_batch=micro_batch)
        return temperature.grad, x.grad

    assert_close(run(32), run(None))


def test_a_sum_of_numerators_in_half_precision_is_a_wide_one():
    def one(outputs, targets):  # bfloat16 ends to count at 256
        return 0 * outputs.sum() + 1, len(targets)

    batch = inputs(400, torch.bfloat16), torch.zeros(400)
    assert tc.backward(linear(dtype=torch.bfloat16), batch, one, micro_batch=1) == 1


def test_numerators_over_nothing_add_nothing():
    model = linear()
    nothing = lambda outputs, targets: ((outputs * 0).sum(), tensor(0.0))  # noqa: E731
    assert tc.backward(model, (inputs(), BITS), nothing, micro_batch=32) == 0
    assert all((gradient == 0).all() for gradient in gradients(model))


def test_a_total_of_nothing_takes_no_step_whole_or_cut():
    for micro_batch in (None, 32):
        model = linear()
        loss = tc.backward(
            model, (inputs(), BITS), lambda o, t: (o.sum(), 0), micro_batch=micro_batch
        )
        assert loss == 0
        assert all((gradient == 0).all() for gradient in gradients(model))


def test_a_pair_that_is_no_fraction_is_refused_by_name():
    with pytest.raises(
        TypeError, match=r"\(numerator, denominator\), got a pair of Tensor and dict"
    ):
        tc.backward(linear(), (inputs(), BITS), lambda o, t: (o.sum(), {"logs": 1}))


def test_a_sparse_gradient_from_before_takes_a_dense_one_in():
    model = nn.Embedding(5, 3)
    model.weight.grad = torch.eye(5, 3).to_sparse()
    words = torch.arange(6) % 5
    fraction = lambda o, t: (o.sum(), len(t))  # noqa: E731
    tc.backward(model, (words, words), fraction, micro_batch=2)
    rows = torch.tensor([2.0, 1, 1, 1, 1])[:, None] / 6  # the first word comes twice
    assert_close(model.weight.grad.to_dense(), torch.eye(5, 3) + rows.expand(5, 3))


def test_a_function_of_ones_own_with_a_variable_is_no_leaf():
    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.variable = 3
            return 2 * x

        @staticmethod
        def backward(ctx, gradient):
            return 2 * gradient

    fraction = lambda o, t: (Doubled.apply(o).sum(), len(t))  # noqa: E731
    assert tc.backward(linear(), (inputs(), BITS), fraction, micro_batch=32).isfinite()


def test_a_denominator_that_depends_on_the_model_is_refused_whole_and_cut():
    model = linear()
    model.weight.grad = torch.ones_like(model.weight)
    ratio = lambda outputs, targets: (outputs.sum(), outputs.exp().sum())  # noqa: E731
    for micro_batch in (32, None):
        with pytest.raises(ValueError, match="two numbers that both depend on the model"):
            tc.backward(model, (inputs(), BITS), ratio, micro_batch=micro_batch)
        assert (model.weight.grad == 1).all()  # nothing is lost
        assert model.bias.grad is None


def test_a_loss_with_a_weight_for_each_sample_is_refused_when_cut():
    loss_fn = nn.BCEWithLogitsLoss(weight=torch.rand(70, 1))
    with pytest.raises(ValueError, match=r"micro_batch must be None .*a row for each sample"):
        tc.backward(linear(), (inputs(), BITS), loss_fn, micro_batch=32)
    tc.backward(linear(), (inputs(), BITS), loss_fn)


def test_targets_that_torch_would_broadcast_are_refused_when_cut():
    with pytest.raises(ValueError, match=r"targets \(32, 1\) and outputs \(32, 3\) in a piece"):
        tc.backward(linear(), (inputs(), BITS[:, :1]), nn.MSELoss(), micro_batch=32)


def test_a_parameter_among_the_outputs_keeps_no_hook():
    class Centers(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.centers = linear(), nn.Parameter(torch.ones(3, 3))

        def forward(self, x):
            return self.body(x), self.centers

    def loss_fn(outputs, targets):
        features, centers = outputs
        return (features - centers[targets]).square().sum(), tensor(0.0)

    model = Centers()
    tc.backward(model, (inputs(), IDS), loss_fn)
    assert not model.centers._backward_hooks


def test_inputs_and_targets_of_different_length_are_refused_when_cut():
    with pytest.raises(ValueError, match=r"targets must .* of 70 samples .* got Tensor of 69"):
        tc.backward(linear(), (inputs(), IDS[:69]), tc.cross_entropy, micro_batch=32)


# ------------------------------------------------------------------ where nothing counts


@pytest.mark.parametrize(
    ("loss_fn", "targets"),
    [
        (nn.CrossEntropyLoss(), torch.full((70,), -100)),
        (nn.CrossEntropyLoss(weight=tensor([0.0, 1, 1])), torch.zeros(70).long()),
        (tc.cross_entropy, torch.full((70,), -100)),
    ],
)
def test_a_batch_where_nothing_counts_adds_nothing(loss_fn, targets):
    model = linear()
    assert tc.backward(model, (inputs(), targets), loss_fn) == 0
    assert all((gradient == 0).all() for gradient in gradients(model))


def test_a_cut_batch_where_nothing_counts_adds_nothing():
    ignored = torch.full((70,), -100)
    assert tc.backward(linear(), (inputs(), ignored), tc.cross_entropy, micro_batch=32) == 0


# ------------------------------------------------------------------ any iterable


class Again:
    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)


def test_list_generator_loader_and_iterable_give_the_same():
    loader = DataLoader(TensorDataset(inputs(), IDS), batch_size=32)
    batches = list(zip(inputs().split(32), IDS.split(32), strict=True))
    results = []
    for source in (batches, (batch for batch in batches), loader, Again(batches)):
        model = linear()
        results.append((tc.train_one_epoch(model, source, tc.cross_entropy, sgd(model)), model))
    assert len({loss for loss, _ in results}) == 1
    assert all(torch.equal(model.weight, results[0][1].weight) for _, model in results)


@pytest.mark.parametrize("form", ["dict", "tuple"])
def test_inputs_may_be_nested(form):
    class Summed(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = linear()

        def forward(self, parts):
            first, second = parts.values() if form == "dict" else parts
            return self.body(first + second)

    x = inputs()
    nested = {"a": x, "b": x} if form == "dict" else (x, x)
    loss = tc.backward(Summed(), (nested, IDS), tc.cross_entropy, micro_batch=32)
    assert_close(loss, F.cross_entropy(linear()(2 * x), IDS).detach())


def test_only_a_training_pass_advances_the_epoch_of_batches():
    batches, model = tc.Batches(inputs(), IDS, batch_size=32), linear()
    tc.evaluate(model, batches)
    assert batches.epoch == 0
    tc.train_one_epoch(model, batches, tc.cross_entropy, sgd(model))
    assert batches.epoch == 1


def test_the_same_seed_gives_the_same_bits_and_learns():
    def train():
        x = inputs()
        batches = tc.Batches(x, x[:, :3].argmax(1), batch_size=16, shuffle=True)
        model = linear()
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        for _ in range(150):
            tc.train_one_epoch(model, batches, tc.cross_entropy, optimizer)
        return model.weight, tc.evaluate(model, batches, metrics=[tc.accuracy]).metrics["accuracy"]

    (first, accuracy), (second, _) = train(), train()
    assert torch.equal(first, second)
    assert accuracy == 1


# ------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("batches", "error", "words"),
    [
        ([], ValueError, "at least one batch, got none"),
        (iter([]), ValueError, "runs dry after one pass"),
        (
            DataLoader(TensorDataset(inputs(3), IDS[:3]), batch_size=4, drop_last=True),
            ValueError,
            r"3 samples, batch_size=4, drop_last=True.*Lower batch_size",
        ),
        (7, TypeError, r"iterable of pairs.*got int.*tc\.Batches"),
        ([inputs()], TypeError, r"one Tensor of shape \(70, 4\).*tc\.Batches"),
    ],
)
def test_batches_that_are_none_say_so(batches, error, words):
    model = linear()
    with pytest.raises(error, match=words):
        tc.train_one_epoch(model, batches, tc.cross_entropy, sgd(model))


class Scaled(nn.Linear):
    """A model of one argument or two."""

    def forward(self, x, scale=None):
        return super().forward(x if scale is None else x * scale[:, None])


@pytest.mark.parametrize(
    ("items", "scale"),
    [
        ([{"image": x, "label": y} for x, y in zip(inputs(), IDS, strict=True)], None),
        (list(zip(inputs(), range(70), IDS, strict=True)), torch.arange(70)),
        (list(zip(inputs(), IDS, range(70), strict=True)), None),
    ],
    ids=["dict", "three parts", "an index behind the target"],
)
def test_the_lines_that_the_message_shows_work(items, scale):
    model = Scaled(4, 3)
    with pytest.raises(TypeError, match="must hold pairs") as caught:
        tc.train_one_epoch(model, DataLoader(items, 32), tc.cross_entropy, sgd(model))
    shown = textwrap.dedent(str(caught.value).partition("torch.utils.data:\n")[2])
    forward = None
    if scale is not None:
        forward = eval(shown.partition("forward=")[2])
    elif "parts" in shown:  # the comment's way is meant
        before, _, instead = shown.partition("  # the target second: ")
        shown = f"{before}\n    {instead}"
    scope = {}
    exec(f"from torch.utils.data import default_collate\n{shown}", scope)
    assert scope["as_pair"].__name__ == "as_pair"  # with a name, spawned workers can be sent it
    loader = DataLoader(items, 32, collate_fn=scope["as_pair"])
    loss = tc.evaluate(model, loader, loss_fn=tc.cross_entropy, forward=forward).loss
    assert loss == pytest.approx(F.cross_entropy(model(inputs(), scale), IDS).item(), rel=1e-6)


@pytest.mark.parametrize(
    ("loss_fn", "error", "words"),
    [
        (nn.CrossEntropyLoss(reduction="none"), ValueError, "one number, got reduction='none'"),
        (partial(F.cross_entropy, reduction="avg"), ValueError, "got reduction='avg'"),
        (nn.CrossEntropyLoss, TypeError, r"Use CrossEntropyLoss\(\)"),
        ("cross_entropy", TypeError, "loss_fn must be callable"),
        (lambda outputs, targets: outputs.sum(1), ValueError, r"one number.*got shape \(70,\)"),
        (lambda outputs, targets: 1.0, TypeError, "as a tensor.*got float"),
    ],
)
def test_a_loss_that_is_none_says_so(loss_fn, error, words):
    with pytest.raises(error, match=words):
        tc.backward(linear(), (inputs(), IDS), loss_fn)


@pytest.mark.parametrize(
    ("micro_batch", "error"),
    [(0, ValueError), (-1, ValueError), (True, TypeError), (2.5, TypeError)],
)
def test_micro_batch_must_be_a_whole_number_above_0(micro_batch, error):
    with pytest.raises(error, match=r"micro_batch must be .*got"):
        tc.backward(linear(), (inputs(), IDS), tc.cross_entropy, micro_batch=micro_batch)


# --- where the loss is --------------------------------------------------------------------------


def test_weights_of_a_loss_follow_to_a_device_also_inside_a_partial():
    there = torch.device("meta")
    moved = loss_on(partial(tc.cross_entropy, weight=WEIGHT, ignore_index=2), there)
    assert moved.func is tc.cross_entropy
    assert moved.keywords["weight"].device == there
    assert moved.keywords["ignore_index"] == 2
    module = loss_on(nn.CrossEntropyLoss(WEIGHT.clone()), there)
    assert module.weight.device == there
    assert loss_on(squares, there) is squares
    assert WEIGHT.device.type == "cpu"


# --- a loss of one's own that is cut ---------------------------------------------------------


def test_a_loss_of_ones_own_that_is_a_mean_over_samples_may_be_cut():
    model, x, y = nn.Linear(2, 3), torch.randn(7, 2), torch.randint(3, (7,))

    def focal(outputs, targets):
        p = outputs.softmax(1).gather(1, targets[:, None])
        return (-((1 - p) ** 2) * p.log()).mean()

    cut = tc.backward(model, (x, y), focal, micro_batch=3)
    torch.testing.assert_close(cut, focal(model(x), y).detach())


def test_a_loss_of_ones_own_that_is_no_mean_over_samples_is_refused_when_cut():
    model, x, y = nn.Linear(2, 3), torch.randn(6, 2), torch.tensor([0, 0, 1, 1, 2, 2])
    weight = torch.tensor([1.0, 5.0, 25.0])

    def weighted(outputs, targets):
        return nn.functional.cross_entropy(outputs, targets, weight)

    before = model.weight.clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="loss_fn must be a mean over samples to be cut"):
        tc.train_one_epoch(model, [(x, y)], weighted, optimizer, micro_batch=1)
    assert torch.equal(model.weight, before)
    assert tc.backward(model, (x, y), weighted) > 0  # whole, it is as good as any


def test_a_loss_of_ones_own_is_tested_at_every_batch_that_is_cut():
    def weighted(outputs, targets):
        return nn.functional.cross_entropy(outputs, targets, WEIGHT)

    model = linear()
    by_chance, not_so = torch.tensor([0, 1, 2, 0, 1, 2]), torch.tensor([0, 0, 1, 2, 2, 2])
    batches = [(inputs(6), by_chance), (inputs(6), not_so)]
    with pytest.raises(ValueError, match="loss_fn must be a mean over samples to be cut"):
        tc.train_one_epoch(model, batches, weighted, sgd(model), micro_batch=3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_cut_loss_in_half_precision_is_summed_in_a_wider_one(dtype):
    model, x = linear(dtype=dtype), inputs(512, dtype)
    ids = torch.arange(512) % 3
    expected = F.cross_entropy(model(x).float(), ids).item()
    # A piece's own loss is rounded to 8 bits in bfloat16, and these roundings cancel out.
    assert tc.backward(model, (x, ids), nn.CrossEntropyLoss(), micro_batch=1).item() == (
        pytest.approx(expected, rel=2e-3)
    )


def test_a_mean_of_ones_own_in_half_precision_is_one():
    for seed in range(20):
        model, x = linear(seed, torch.bfloat16), inputs(512, torch.bfloat16)
        y = torch.randn(512, 3, generator=torch.Generator().manual_seed(seed)).bfloat16()
        loss = tc.backward(model, (x, y), lambda o, t: (o - t).abs().mean(), micro_batch=8)
        assert loss == pytest.approx((model(x) - y).abs().mean().item(), rel=1e-2)  # 8 bits


def test_outputs_that_are_no_tensor_are_not_cut_under_a_loss_of_ones_own():
    class Pair(nn.Module):
        def forward(self, x):
            return {"a": scale * x}

    scale = torch.ones((), requires_grad=True)
    batch = torch.randn(4, 2), torch.randn(4, 2)
    with pytest.raises(ValueError, match="outputs that are no tensor"):
        tc.backward(Pair(), batch, lambda o, t: (o["a"] - t).square().mean(), micro_batch=2)


def test_the_deprecated_ways_to_say_a_reduction_are_refused():
    batch = torch.randn(4, 2), torch.tensor([0, 1, 2, 0])
    with pytest.raises(ValueError, match=r"deprecated size_average=.*reduction='mean'"):
        tc.backward(
            nn.Linear(2, 3),
            batch,
            partial(nn.functional.cross_entropy, size_average=False),
        )


def test_what_an_optimizer_remembers_follows_its_parameters():
    model = linear().to("meta")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for parameter in model.parameters():  # left behind when the model was moved
        optimizer.state[parameter]["momentum_buffer"] = torch.zeros(parameter.shape)
    assert place(model, None, optimizer=optimizer).type == "meta"
    for parameter in model.parameters():
        assert optimizer.state[parameter]["momentum_buffer"].device.type == "meta"
