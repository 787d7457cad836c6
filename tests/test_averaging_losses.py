"""torchcls.averaging: the exact average of every loss of torch's, over batches and pieces."""

import gc
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from helpers import recent_torch
from torch import nn, tensor

import torchcls as tc
from torchcls.averaging import averaging_of

G = torch.Generator().manual_seed(0)
SIGNS = torch.randint(2, (7, 4), generator=G) * 2.0 - 1
RATES = torch.rand(7, 4, generator=G)
MARGINS = torch.cat([torch.arange(7)[:, None] % 4, torch.full((7, 3), -1)], 1)
IDS = torch.arange(7) % 4

LOSSES = [
    (nn.L1Loss(), RATES),
    (nn.SmoothL1Loss(beta=0.5), RATES),
    (nn.HuberLoss(delta=0.5), RATES),
    (nn.SoftMarginLoss(), SIGNS),
    (nn.HingeEmbeddingLoss(), SIGNS),
    (nn.PoissonNLLLoss(), RATES),
    (partial(F.gaussian_nll_loss, var=2.0), RATES),
    (nn.KLDivLoss(reduction="batchmean"), RATES),
    (partial(F.kl_div, reduction="mean", log_target=True), RATES),
    (nn.MultiLabelSoftMarginLoss(), RATES.round()),
    (nn.MultiLabelMarginLoss(), MARGINS),
    (nn.MultiMarginLoss(weight=tensor([1.0, 5.0, 2.0, 0.5])), IDS),
]


@pytest.mark.parametrize(("loss_fn", "targets"), LOSSES)
@pytest.mark.filterwarnings("ignore:reduction")
def test_uneven_batches_and_pieces_give_the_loss_of_the_whole(loss_fn, targets):
    x = torch.randn(7, 4, generator=torch.Generator().manual_seed(1))
    batches = [(x[:5], targets[:5]), (x[5:], targets[5:])]
    found = tc.evaluate(nn.Identity(), batches, loss_fn=loss_fn).loss
    assert found == pytest.approx(loss_fn(x, targets).item(), rel=1e-6)
    model = nn.Linear(4, 4)
    whole = tc.backward(model, (x, targets), loss_fn)
    gradient, model.weight.grad = model.weight.grad, None
    cut = tc.backward(model, (x, targets), loss_fn, micro_batch=3)
    torch.testing.assert_close(cut, whole)
    torch.testing.assert_close(model.weight.grad, gradient)


@pytest.mark.parametrize("name", ["l1_loss", "huber_loss", "soft_margin_loss", "mse_loss"])
def test_batches_of_other_widths_count_their_numbers(name):
    parts = [torch.randn(3, 2), torch.randn(3, 50)]
    batches = [(part, torch.ones_like(part)) for part in parts]
    loss_fn = getattr(F, name)
    found = tc.evaluate(nn.Identity(), batches, loss_fn=loss_fn).loss
    whole = torch.cat([part.flatten() for part in parts])
    assert found == pytest.approx(loss_fn(whole, torch.ones_like(whole)).item(), rel=1e-6)


@pytest.mark.parametrize(
    "compiled", [pytest.param("function", marks=recent_torch), "partial", "forward", "ours"]
)
def test_a_compiled_loss_averages_as_the_loss_does(compiled):
    weight, targets = tensor([1.0, 3.0]), tensor([0, 1, 1, -100])
    loss_fn = {
        "function": lambda: partial(torch.compile(F.cross_entropy, backend="eager"), weight=weight),
        "partial": lambda: torch.compile(partial(F.cross_entropy, weight=weight), backend="eager"),
        "forward": lambda: torch.compile(nn.CrossEntropyLoss(weight).forward, backend="eager"),
        "ours": lambda: partial(torch.compile(tc.cross_entropy, backend="eager"), weight=weight),
    }[compiled]()
    assert averaging_of(loss_fn).count((None, targets)) == 7


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8])
@pytest.mark.parametrize(
    ("ignore_index", "ids", "expected"),
    [
        (-100, [0, 1, 2], 3),
        (-1, [0, -1, 2], 2),
        (0, [0, 1, 2], 2),
        (2, [2, 2], 0),
        (-100, [], 0),
    ],
)
def test_what_is_ignored_is_not_counted_whatever_its_sign(ignore_index, ids, expected, dtype):
    if min(ids, default=0) < 0 and dtype == torch.uint8:
        pytest.skip("no such number")
    count = averaging_of(partial(F.cross_entropy, ignore_index=ignore_index)).count
    assert count((None, tensor(ids, dtype=dtype))) == expected


def test_a_batch_counts_what_a_loss_of_the_users_own_can_be_counted_by():
    count = averaging_of(lambda outputs, targets: outputs.mean()).count
    ragged = [torch.zeros(5), torch.zeros(3)]
    assert count((torch.zeros(4, 2), torch.zeros(6, 2))) == 6
    assert count((torch.zeros(4, 2), ragged)) == count((torch.zeros(4, 2), None)) == 4
    assert count((ragged, ["a", "b"])) == 1


def test_targets_of_different_lengths_go_with_a_loss_that_counts_by_itself():
    def loss_fn(outputs, targets):
        parts = [
            F.mse_loss(row[: len(t)], t, reduction="sum")
            for row, t in zip(outputs, targets, strict=True)
        ]
        return sum(parts), sum(map(len, targets))

    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    lengths = (2, 6, 1, 3)
    targets = [torch.ones(n) for n in lengths]
    whole = torch.cat([row[:n] for row, n in zip(x, lengths, strict=True)])
    expected = F.mse_loss(whole, torch.ones(12)).item()
    batches = [(x[:2], targets[:2]), (x[2:], targets[2:])]
    found = tc.evaluate(nn.Identity(), batches, loss_fn=loss_fn)
    assert (found.loss, found.n) == (pytest.approx(expected, rel=1e-6), 4)
    model = nn.Linear(6, 6, bias=False)
    nn.init.eye_(model.weight)
    frozen = torch.optim.SGD(model.parameters(), lr=0.0)
    trained = tc.train_one_epoch(model, batches, loss_fn, frozen)
    assert trained == pytest.approx(expected, rel=1e-6)
    history = tc.fit(
        model, batches, loss_fn=loss_fn, optimizer=frozen, epochs=1, progress=False, device="cpu"
    )
    assert history[0].train_loss == pytest.approx(expected, rel=1e-6)


def tensors():
    gc.collect()
    return sum(issubclass(type(found), torch.Tensor) for found in gc.get_objects())


def test_fifty_runs_and_looks_leave_no_tensor_behind():
    x, y = torch.randn(16, 4), torch.arange(16) % 3
    own = lambda outputs, targets: F.cross_entropy(outputs, targets)  # noqa: E731

    def once(loss_fn):
        model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        tc.fit(model, [(x, y)], [(x, y)], loss_fn=loss_fn, epochs=1, progress=False, device="cpu")
        tc.check(model, (x, y), loss_fn)
        tc.backward(model, (x, y), loss_fn, micro_batch=5)

    once(own), once(nn.CrossEntropyLoss())
    before = tensors()
    for _ in range(25):
        once(own), once(nn.CrossEntropyLoss())
    assert tensors() <= before
