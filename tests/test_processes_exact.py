"""The numbers do not depend on how many processes there are: weights, losses and metrics."""

import functools
import math

import pytest
import torch
from in_processes import in_processes
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, TensorDataset

import torchcls as tc

# ------------------------------------------------------------------ cases


def data(n, dtype):
    generator = torch.Generator().manual_seed(n)
    inputs = torch.randn(n, 6, generator=generator).to(dtype)
    return inputs, torch.randint(0, 3, (n,), generator=generator)


def own_mean(outputs, targets):
    return nn.functional.cross_entropy(outputs, targets, label_smoothing=0.1) * 1.0


def own_fraction(outputs, targets):
    weights = 1.0 + targets.to(outputs.dtype)
    each = nn.functional.cross_entropy(outputs, targets, reduction="none")
    return (each * weights).sum(), weights.sum()


class Scaled(nn.Module):
    """A loss with a parameter of its own."""

    def __init__(self, dtype):
        super().__init__()
        self.scale = nn.Parameter(torch.ones((), dtype=dtype))

    def forward(self, outputs, targets):
        return nn.functional.cross_entropy(outputs * self.scale, targets)


class Stream(IterableDataset):
    def __init__(self, inputs, targets):
        self.inputs, self.targets = inputs, targets

    def __iter__(self):
        return iter(zip(self.inputs, self.targets, strict=True))


class Branches(nn.Module):
    """Each sample takes one of two branches; one may be unused in a piece, and one always is."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.never = nn.Linear(6, 3), nn.Linear(6, 3), nn.Linear(6, 3)

    def forward(self, inputs):
        outputs = inputs.new_zeros(len(inputs), 3)
        for branch, rows in ((self.first, inputs[:, 0] > 0), (self.second, inputs[:, 0] <= 0)):
            if rows.any():
                outputs = outputs.index_put((rows,), branch(inputs[rows]))
        return outputs


def loss_of(name, dtype):
    weight = torch.tensor([0.3, 1.0, 2.5], dtype=dtype)
    losses = {
        "mean": lambda: nn.CrossEntropyLoss(),
        "weighted": lambda: nn.CrossEntropyLoss(weight=weight, ignore_index=1),
        "sum": lambda: nn.CrossEntropyLoss(reduction="sum"),
        "smoothed": lambda: nn.CrossEntropyLoss(
            weight=torch.tensor([0.0, 1.0, 2.0], dtype=dtype), label_smoothing=0.2
        ),
        "ours": lambda: functools.partial(tc.cross_entropy, ignore_index=2),
        "own mean": lambda: own_mean,
        "own fraction": lambda: own_fraction,
        "parametric": lambda: Scaled(dtype),
        "without 0": lambda: nn.CrossEntropyLoss(ignore_index=0),
    }
    return losses[name]()


def source_of(name, n, size, dtype):
    inputs, targets = data(n, dtype)
    if name == "sorted":
        targets = targets.sort()[0]
    if name == "nothing counts":
        targets = torch.zeros_like(targets)
    dataset = TensorDataset(inputs, targets)
    batches = [(inputs[i : i + size], targets[i : i + size]) for i in range(0, n, size)]
    sources = {
        "Batches": lambda: tc.Batches(inputs, targets, batch_size=size, shuffle=True),
        "in order": lambda: tc.Batches(inputs, targets, batch_size=size),
        "list": lambda: batches,
        "loader": lambda: DataLoader(dataset, batch_size=size, shuffle=True),
        "batch sampler": lambda: DataLoader(
            dataset, batch_sampler=BatchSampler(RandomSampler(dataset), size, False)
        ),
        "iterable": lambda: DataLoader(Stream(inputs, targets), batch_size=size),
        "sorted": lambda: [*batches, (inputs[:2], targets[:2])],
        "nothing counts": lambda: batches,
    }
    return sources[name]()


def cases():
    """(n, batch size, dtype, loss, micro_batch, source, optimizer, model)."""
    sizes = [(1, 4), (2, 8), (3, 2), (5, 4), (7, 3), (10, 4), (33, 16), (65, 32)]
    losses = ("mean", "weighted", "sum", "smoothed", "ours", "own mean", "own fraction")
    for n, size in sizes:
        for dtype in (torch.float32, torch.float64):
            for loss in (*losses, "parametric"):
                for micro in (None, 1, 3) if n > 3 else (None,):
                    yield n, size, dtype, loss, micro, "Batches", "sgd", "net"
            for source in ("in order", "list", "loader", "batch sampler", "iterable"):
                yield n, size, dtype, "weighted", None, source, "sgd", "net"
                yield n, size, dtype, "mean", 2, source, "adamw", "net"
            yield n, size, dtype, "mean", 1, "Batches", "sgd", "branches"
    for dtype in (torch.float32, torch.float64):
        for source in ("sorted", "nothing counts"):
            for micro in (None, 2):
                yield 9, 9, dtype, "without 0", micro, source, "sgd", "net"


def trained(case, group):
    """Weights, losses of two epochs, and what evaluate says of the data afterwards."""
    n, size, dtype, loss, micro, source, optimizer, kind = case
    torch.manual_seed(1)
    model = Branches() if kind == "branches" else None
    model = model or nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    model = model.to(dtype)
    loss_fn = loss_of(loss, dtype)
    held = [*model.parameters()]
    held += loss_fn.parameters() if isinstance(loss_fn, nn.Module) else []
    makers = {
        "sgd": lambda: torch.optim.SGD(held, lr=0.1, momentum=0.9),
        "adamw": lambda: torch.optim.AdamW(held, lr=1e-2),
    }
    step = makers[optimizer]()
    torch.manual_seed(5 if group is None or group.is_first else 55)  # any seed in the others
    train = source_of(source, n, size, dtype)
    losses = [
        tc.train_one_epoch(model, train, loss_fn, step, micro_batch=micro, group=group)
        for _ in range(2)
    ]
    found = tc.evaluate(
        model,
        train,
        loss_fn=loss_fn,
        metrics=[tc.accuracy, tc.confusion_matrix, whole],
        group=group,
    )
    weights = torch.cat([p.detach().reshape(-1) for p in held])
    metrics = [found.metrics["accuracy"], found.metrics["whole"], found.loss, found.n]
    return weights, [*losses, *metrics], found.metrics["confusion_matrix"]


def whole(outputs, targets):
    """A metric of one's own, called once on the whole split."""
    return ((outputs.argmax(1) == targets).double() * torch.arange(len(targets)).cos()).sum()


def some(every):
    """Every so many of the cases, other ones for every number."""
    return list(cases())[every // 2 :: every]


def many(every):
    """These cases, in each of several processes."""
    group = tc.processes()
    return [trained(case, group) for case in some(every)]


def check_equal(shared, every):
    alone = [trained(case, None) for case in some(every)]
    worst = {torch.float32: [0.0, 0.0], torch.float64: [0.0, 0.0]}
    for case, found, expected in zip(some(every), shared, alone, strict=True):
        weights, numbers, matrix = found
        assert torch.isfinite(weights).all(), case
        of = worst[case[2]]
        of[0] = max(of[0], (weights - expected[0]).abs().max().item())
        for here, there in zip(numbers, expected[1], strict=True):
            both_nan = math.isnan(here) and math.isnan(there)
            of[1] = max(of[1], 0.0 if both_nan else abs(here - there))
            assert both_nan or abs(here - there) < 1e-6 * max(1, abs(there)), (case, here, there)
        limit = 1e-5 if case[2] is torch.float32 else 1e-12
        assert (weights - expected[0]).abs().max() <= limit, case
        assert torch.equal(matrix, expected[2]), case
    return worst


def test_there_are_two_hundred_cases():
    assert len(list(cases())) > 200


# All of them: every=1, which takes minutes. A few stand in test_processes_use.
@pytest.mark.long
@pytest.mark.parametrize(("size", "every"), [(size, 5 + size) for size in (2, 3, 4)])
def test_weights_losses_and_metrics_are_those_of_one_process(size, every):
    results = in_processes(size, "test_processes_exact:many", every, timeout=300)
    for result in results:
        assert not isinstance(result, RuntimeError), result
    worst = check_equal(results[0], every)
    print(f"{size} processes, the largest differences of weights and of numbers: {worst}")
    for other in results[1:]:  # replicas have the same bits
        for here, there in zip(results[0], other, strict=True):
            assert torch.equal(here[0], there[0])
            assert [str(number) for number in here[1]] == [str(number) for number in there[1]]
