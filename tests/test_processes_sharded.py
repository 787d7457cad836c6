"""Models that the user has spread over the processes with ``fully_shard``: the same loops."""

import functools

import pytest
import torch
from helpers import recent_torch
from in_processes import in_processes
from torch import nn

import torchcls as tc

pytestmark = recent_torch  # fully_shard on a CPU


def net():
    torch.manual_seed(1)
    layers = nn.Linear(6, 17), nn.ReLU(), nn.Linear(17, 17), nn.ReLU(), nn.Linear(17, 3)
    return nn.Sequential(*layers).double()


def spread(model):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    for layer in model:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def full(model):
    parts = [getattr(p, "full_tensor", lambda p=p: p)() for p in model.parameters()]
    return torch.cat([part.detach().reshape(-1) for part in parts])


def data(n):
    generator = torch.Generator().manual_seed(n)
    inputs = torch.randn(n, 6, generator=generator).double()
    return inputs, torch.randint(0, 3, (n,), generator=generator)


def own_fraction(outputs, targets):
    each = nn.functional.cross_entropy(outputs, targets, reduction="none")
    return (each * (1 + targets)).sum(), (1 + targets).sum()


WEIGHTED = nn.CrossEntropyLoss(weight=torch.tensor([0.3, 1.0, 2.5]).double(), ignore_index=1)
CASES = [
    (n, size, loss_fn, micro, kind)
    for n, size in ((1, 4), (2, 8), (7, 3), (10, 4), (65, 32))
    for loss_fn in (WEIGHTED, own_fraction)
    for micro in (None, 5)
    for kind in ("sgd", "adamw")
]
MAKERS = {
    "sgd": lambda held: torch.optim.SGD(held, lr=0.1, momentum=0.9),
    "adamw": lambda held: torch.optim.AdamW(held, lr=1e-2),
}


def trained(case, group):
    n, size, loss_fn, micro, kind = case
    model = net() if group is None else spread(net())
    optimizer = MAKERS[kind](model.parameters())
    train = tc.Batches(*data(n), batch_size=size, shuffle=True)
    losses = [
        tc.train_one_epoch(model, train, loss_fn, optimizer, micro_batch=micro, group=group)
        for _ in range(2)
    ]
    found = tc.evaluate(model, train, loss_fn=loss_fn, metrics=[tc.accuracy], group=group)
    predicted = tc.predict(model, train, group=group).outputs
    return full(model), [*losses, found.loss, found.metrics["accuracy"]], predicted


def fitted(group):
    """A whole run, clipped, with a schedule and the preflight."""
    model = net() if group is None else spread(net())
    train = tc.Batches(*data(65), batch_size=16, shuffle=True)
    valid = tc.Batches(*data(30), batch_size=16)
    history = tc.fit(
        model, train, valid, loss_fn=WEIGHTED, epochs=3,
        metrics={"accuracy": functools.partial(tc.accuracy, ignore_index=1)},
        schedule=tc.one_cycle(), clip_norm=0.1, progress=False,
    )  # fmt: skip
    return full(model), [history[-1][name] for name in ("train_loss", "valid_loss", "accuracy")]


def many(every):
    group = tc.processes()
    return [trained(case, group) for case in CASES[::every]], fitted(group)


@pytest.mark.filterwarnings("ignore:data is shuffled")
@pytest.mark.parametrize(
    ("size", "every"),
    [
        pytest.param(2, 3, marks=pytest.mark.system),
        pytest.param(3, 3, marks=pytest.mark.long),
    ],
)
def test_a_model_that_is_spread_trains_evaluates_and_predicts_alike(size, every):
    results = in_processes(size, "test_processes_sharded:many", every)
    for result in results:
        assert not isinstance(result, RuntimeError), result
        shared, (weights, numbers) = result
        for case, found in zip(CASES[::every], shared, strict=True):
            expected = trained(case, None)
            assert torch.allclose(found[0], expected[0], rtol=0, atol=1e-12), case
            assert found[1] == pytest.approx(expected[1], abs=1e-12, nan_ok=True), case
            assert torch.allclose(found[2], expected[2], rtol=0, atol=1e-12), case
        of_one = fitted(None)
        assert torch.allclose(weights, of_one[0], rtol=0, atol=1e-12)
        assert numbers == pytest.approx(of_one[1], abs=1e-12)


# ------------------------------------------------------------------ saved and resumed


def begun(folder, *, stops):
    """A run of four epochs that is left in the third one, or goes on to its end."""
    if tc.processes().size == 1:
        torch.distributed.init_process_group("gloo")
    model = spread(net())
    train = tc.Batches(*data(65), batch_size=16, shuffle=True)
    run = tc.epochs(
        model, train, train, loss_fn=nn.CrossEntropyLoss(), epochs=4, metrics=[tc.accuracy],
        optimizer=torch.optim.AdamW(model.parameters(), lr=1e-2), schedule=tc.one_cycle(),
        checkpoint=folder, resume=True, save_every=1e-9, check="off", progress=False,
    )  # fmt: skip
    seen = []
    for at in run.steps():
        seen.append((at.epoch, at.step))
        if stops and (at.epoch, at.step) == (2, 3):
            break
    return seen, full(model), [dict(record) | {"time": 0} for record in run.history]


def left(folder):
    return begun(folder, stops=True)[0]


def resumed(folder):
    return begun(folder, stops=False)


@pytest.mark.long
def test_saved_by_two_processes_it_is_resumed_by_another_number(tmp_path):
    name = "test_processes_sharded"
    whole, *_ = in_processes(2, f"{name}:resumed", str(tmp_path / "whole"))
    for size in (1, 3):
        folder = str(tmp_path / str(size))
        assert in_processes(2, f"{name}:left", folder)[0][-1] == (2, 3)
        kept = tc.load_checkpoint(f"{folder}/last.pt")
        assert kept["model"]["0.weight"].shape == (17, 6)  # whole, for anyone to load
        seen, weights, history = in_processes(size, f"{name}:resumed", folder)[0]
        assert seen[0] == (2, 4)
        assert torch.allclose(weights, whole[1], rtol=0, atol=1e-12)
        for record, expected in zip(history, whole[2], strict=True):
            assert record == pytest.approx(expected, abs=1e-12)
