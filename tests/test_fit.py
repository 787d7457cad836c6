"""Whole runs: the plain loop bit for bit, exact averages, and nothing left behind."""

import itertools
import math
import os
import re
import struct
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, lr_scheduler
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import torchcls as tc

CE = nn.CrossEntropyLoss()


def data(n=37, *, seed=0, dtype=torch.float32):
    """Points in four dimensions, of three classes that a linear map tells apart."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 4, generator=generator, dtype=dtype)
    return x, x[:, :3].argmax(1)


def cut(x, y, size=16):
    return list(zip(x.split(size), y.split(size), strict=True))


def network(*, dropout=0.0, dtype=torch.float32, seed=1):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, 3)
        ).to(dtype)


def shuffling_loader(n=37, *, seed=0):
    return DataLoader(TensorDataset(*data(n, seed=seed)), batch_size=16, shuffle=True)


def same_weights(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def plain_loop(model, train, optimizer, *, epochs, loss_fn=CE):
    """The loop everyone writes; returns the (loss, samples) of every batch, epoch by epoch."""
    seen = []
    for _ in range(epochs):
        model.train()
        seen.append([])
        for x, y in train:
            optimizer.zero_grad()
            loss = loss_fn(model(x), y)
            loss.backward()
            optimizer.step()
            seen[-1].append((loss.item(), len(y)))
    return seen


def quiet(*args, **kwargs):
    return tc.fit(*args, **{"loss_fn": CE, "progress": False, **kwargs})


# --- the plain loop, bit for bit ------------------------------------------------------------


@pytest.mark.parametrize("source", [lambda: cut(*data()), shuffling_loader])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_it_equals_the_plain_loop_bit_for_bit(source, dropout):
    ours, theirs = network(dropout=dropout), network(dropout=dropout)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        seen = plain_loop(theirs, source(), tc.default_optimizer(theirs), epochs=3)
        state = torch.get_rng_state()
        torch.manual_seed(5)
        history = quiet(ours, source(), epochs=3)
        assert torch.equal(torch.get_rng_state(), state)
    assert same_weights(ours, theirs)
    assert not same_weights(ours, network(dropout=dropout))
    for record, batches in zip(history, seen, strict=True):
        samples = sum(n for _, n in batches)
        expected = sum(loss * n for loss, n in batches) / samples
        torch.testing.assert_close(record.train_loss, expected)


def test_it_equals_the_plain_loop_with_the_users_optimizer():
    ours, theirs = network(), network()
    optimizers = [SGD(m.parameters(), lr=0.1, momentum=0.9, nesterov=True) for m in (ours, theirs)]
    quiet(ours, cut(*data()), optimizer=optimizers[0], epochs=4)
    plain_loop(theirs, cut(*data()), optimizers[1], epochs=4)
    assert same_weights(ours, theirs)


def test_lr_is_that_of_the_default_optimizer():
    ours, theirs = network(), network()
    quiet(ours, cut(*data()), lr=0.03, epochs=2)
    plain_loop(theirs, cut(*data()), tc.default_optimizer(theirs, 0.03), epochs=2)
    assert same_weights(ours, theirs)


def test_gradients_from_before_do_not_leak_into_the_first_step():
    ours, theirs = network(), network()
    for parameter in ours.parameters():
        parameter.grad = torch.full_like(parameter, 1e3)
    quiet(ours, cut(*data()), epochs=1)
    quiet(theirs, cut(*data()), epochs=1)
    assert same_weights(ours, theirs)


def test_fit_and_epochs_are_the_same_run():
    ours, theirs = network(), network()
    history = quiet(ours, cut(*data()), cut(*data(20)), epochs=3)
    run = tc.epochs(theirs, cut(*data()), cut(*data(20)), loss_fn=CE, epochs=3, progress=False)
    records = list(run)
    assert same_weights(ours, theirs)
    assert records == list(run.history)
    for a, b in zip(history, records, strict=True):
        assert {**a, "time": 0} == {**b, "time": 0}


def test_batches_take_another_order_each_epoch():
    seen = []

    class Remembers(nn.Linear):
        def forward(self, x):
            seen.append(x)
            return super().forward(x)

    train = tc.Batches(*data(), batch_size=37, shuffle=True)
    valid = tc.Batches(*data(seed=1), batch_size=37, shuffle=True)
    quiet(Remembers(4, 3), train, epochs=2)
    assert not torch.equal(seen[0], seen[1])
    assert train.epoch == 2
    quiet(nn.Linear(4, 3), train, valid, epochs=1)
    assert (train.epoch, valid.epoch) == (3, 0)


def test_micro_batches_take_the_same_step():
    models = [nn.Linear(4, 3, dtype=torch.float64) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    histories = [
        quiet(model, cut(*data(dtype=torch.float64)), epochs=2, micro_batch=size)
        for model, size in zip(models, (None, 5), strict=True)
    ]
    torch.testing.assert_close(models[0].state_dict(), models[1].state_dict())
    torch.testing.assert_close(histories[0][-1].train_loss, histories[1][-1].train_loss)


def test_it_learns():
    history = quiet(nn.Linear(4, 3), cut(*data(200)), cut(*data(200)), metrics=[tc.accuracy],
                    lr=0.1, epochs=15)  # fmt: skip
    assert history[-1].accuracy > 0.95
    assert history[-1].valid_loss < history[0].valid_loss


# --- exact numbers --------------------------------------------------------------------------


def test_train_loss_is_one_sum_over_one_sum_with_class_weights_and_ignored_targets():
    weight = torch.tensor([1.0, 5.0, 0.5], dtype=torch.float64)
    loss_fn = nn.CrossEntropyLoss(weight=weight, ignore_index=-1)
    x, y = data(dtype=torch.float64)
    y[::3] = -1
    model = nn.Linear(4, 3, dtype=torch.float64)
    per_target = nn.CrossEntropyLoss(weight=weight, ignore_index=-1, reduction="none")
    expected = per_target(model(x), y).sum().item() / weight[y[y >= 0]].sum().item()
    optimizer = SGD(model.parameters(), lr=0.0)  # every batch meets the same model
    for record in quiet(
        model, cut(x, y), cut(x, y, 5), loss_fn=loss_fn, optimizer=optimizer, epochs=2
    ):
        torch.testing.assert_close(record.train_loss, expected)
        torch.testing.assert_close(record.valid_loss, expected)


def test_smooth_loss_is_fastais_and_goes_on_over_epochs():
    ours, theirs = network(dtype=torch.float64), network(dtype=torch.float64)
    train = cut(*data(dtype=torch.float64))  # 16, 16, 5: every batch counts alike
    history = quiet(ours, train, epochs=3)
    seen = plain_loop(theirs, train, tc.default_optimizer(theirs), epochs=3)
    value, t = 0.0, 0
    for record, batches in zip(history, seen, strict=True):
        for loss, _ in batches:
            value, t = 0.98 * value + 0.02 * loss, t + 1
        torch.testing.assert_close(record.smooth_loss, value / (1 - 0.98**t))
        assert record.smooth_loss != record.train_loss


def test_valid_loss_and_metrics_are_exact_with_uneven_batches():
    model = network(dtype=torch.float64)
    x, y = data(41, seed=2, dtype=torch.float64)
    run = tc.epochs(model, cut(*data(dtype=torch.float64)), cut(x, y), loss_fn=CE, epochs=3,
                    metrics=[tc.accuracy], progress=False)  # fmt: skip
    for record in run:
        model.eval()
        with torch.no_grad():
            outputs = model(x)
        model.train()
        torch.testing.assert_close(record.valid_loss, CE(outputs, y).item())
        assert record.accuracy == (outputs.argmax(1) == y).sum().item() / 41


def test_a_sum_is_reported_per_sample():
    model = nn.Linear(4, 3, dtype=torch.float64)
    x, y = data(dtype=torch.float64)
    expected = CE(model(x), y).item()
    optimizer = SGD(model.parameters(), lr=0.0)
    (record,) = quiet(model, cut(x, y), cut(x, y), optimizer=optimizer, epochs=1,
                      loss_fn=nn.CrossEntropyLoss(reduction="sum"))  # fmt: skip
    torch.testing.assert_close(record.train_loss, expected)
    torch.testing.assert_close(record.valid_loss, expected)


# --- records --------------------------------------------------------------------------------


def test_records_have_the_columns_in_order_by_key_and_by_attribute():
    history = quiet(network(), cut(*data()), cut(*data(20)), epochs=2,
                    metrics={"acc": tc.accuracy, "err": tc.error_rate})  # fmt: skip
    assert isinstance(history, tc.History)
    assert [record.epoch for record in history] == [0, 1]
    for record in history:
        assert list(record) == [
            "epoch", "train_loss", "smooth_loss", "valid_loss", "acc", "err", "time",
        ]  # fmt: skip
        assert record.acc == record["acc"]
        torch.testing.assert_close(record.acc + record.err, 1.0)
        assert {type(value) for key, value in record.items() if key != "epoch"} == {float}
        assert 0 < record.time < 60


def test_without_valid_there_is_no_valid_loss():
    (record,) = quiet(network(), cut(*data()), epochs=1)
    assert list(record) == ["epoch", "train_loss", "smooth_loss", "time"]


def test_a_matrix_is_stored_as_nested_lists(tmp_path):
    model = network()
    x, y = data(20)
    history = quiet(model, cut(*data()), cut(x, y), epochs=1, metrics=[tc.confusion_matrix])
    model.eval()
    with torch.no_grad():
        expected = tc.confusion_matrix(model(x), y).tolist()
    assert history[0].confusion_matrix == expected
    assert type(history[0].confusion_matrix[0][0]) is int
    history.to_json(tmp_path / "history.json")


# --- the loop is the user's -----------------------------------------------------------------


def run_of(model=None, train=None, valid=None, **kwargs):
    return tc.epochs(
        network() if model is None else model,
        cut(*data()) if train is None else train,
        valid,
        **{"loss_fn": CE, "epochs": 5, "progress": False, **kwargs},
    )


def test_records_come_lazily():
    model = network()
    run = run_of(model)
    assert same_weights(model, network())
    assert len(run.history) == 0
    first = next(run)
    assert (first.epoch, len(run.history)) == (0, 1)
    assert run.history[0] is first
    optimizer = next(iter(run.optimizer.state.values()))
    assert optimizer["step"].item() == 3


def test_break_and_go_on_equals_one_run():
    ours, theirs = network(), network()
    run = run_of(ours, tc.Batches(*data(), batch_size=16, shuffle=True), schedule=tc.one_cycle())
    for record in run:
        if record.epoch == 1:
            break
    assert len(run.history) == 2
    assert [record.epoch for record in run] == [2, 3, 4]
    assert list(run) == []
    train = tc.Batches(*data(), batch_size=16, shuffle=True)
    history = quiet(theirs, train, schedule=tc.one_cycle(), epochs=5)
    assert same_weights(ours, theirs)
    assert [r.smooth_loss for r in history] == [r.smooth_loss for r in run.history]


def test_stop_ends_the_run_after_the_epoch_at_hand():
    run = run_of(epochs=100)
    for record in run:
        if record.epoch == 2:
            run.stop()
    assert len(run.history) == 3
    assert list(run) == []


def test_stop_from_inside_an_epoch_finishes_it():
    class Stops(nn.Linear):
        def forward(self, x):
            run.stop()
            return super().forward(x)

    run = run_of(Stops(4, 3))
    assert len(list(run)) == 1


def test_the_users_optimizer_is_the_one_that_steps():
    model = network()
    optimizer = SGD(model.parameters(), lr=0.1)
    assert run_of(model, optimizer=optimizer).optimizer is optimizer
    assert type(run_of(model).optimizer) is torch.optim.AdamW


def modes(model):
    return [module.training for module in model.modules()]


def partly_frozen(root):
    model = network()
    model.train(root)
    model[1].eval()
    model[3].train()
    return model


@pytest.mark.parametrize("root", [True, False])
def test_between_epochs_modes_and_grad_mode_are_as_found(root):
    model = partly_frozen(root)
    before = modes(model)
    for record in run_of(model, None, cut(*data(20)), epochs=3):
        assert modes(model) == before
        assert torch.is_grad_enabled()
        if record.epoch == 1:
            break
    assert modes(model) == before


def test_a_frozen_norm_stays_frozen_under_a_training_root():
    model = partly_frozen(True)
    before = model[1].running_mean.clone()
    quiet(model, cut(*data()), epochs=1)
    assert torch.equal(model[1].running_mean, before)


def test_it_trains_under_no_grad_and_leaves_it_on():
    ours, theirs = network(), network()
    with torch.no_grad():
        quiet(ours, cut(*data()), epochs=1)
        assert not torch.is_grad_enabled()
    quiet(theirs, cut(*data()), epochs=1)
    assert same_weights(ours, theirs)


class Fails(nn.Module):
    """A network whose forward raises at a given call."""

    def __init__(self, at, error):
        super().__init__()
        self.body, self.calls, self.at, self.error = network(), 0, at, error

    def forward(self, x):
        self.calls += 1
        if self.calls == self.at:
            raise self.error
        return self.body(x)


# Three training and two validation batches an epoch: call 7 trains, call 10 validates.
@pytest.mark.parametrize("at", [7, 10])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("broken")])
@pytest.mark.parametrize("root", [True, False])
def test_an_error_in_mid_epoch_comes_through_and_leaves_finished_epochs(at, error, root):
    model = Fails(at, error)
    model.train(root)
    model.body[1].eval()
    before = modes(model)
    optimizer = Adam(model.parameters(), lr=0.01, betas=(0.7, 0.9))
    run = run_of(model, None, cut(*data(20)), optimizer=optimizer, schedule=tc.one_cycle())
    with pytest.raises(type(error)) as caught:
        for _ in run:
            pass
    assert caught.value is error
    assert [record.epoch for record in run.history] == [0]
    assert modes(model) == before
    assert torch.is_grad_enabled()
    assert (optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["betas"]) == (
        0.01,
        (0.7, 0.9),
    )


def test_after_an_error_the_run_goes_on_with_the_epoch_that_broke():
    run = run_of(Fails(5, KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        list(run)
    assert [record.epoch for record in run] == [1, 2, 3, 4]


def test_after_an_error_the_schedule_goes_on_from_the_epoch_that_broke():
    asked = []

    def schedule(progress):
        asked.append(progress)
        return 1.0

    run = run_of(Fails(5, KeyboardInterrupt()), schedule=schedule)  # in the second of three batches
    with pytest.raises(KeyboardInterrupt):
        list(run)
    list(run)
    assert asked == [i / 15 for i in (0, 1, 2, 3, 4, *range(3, 15))]


# --- arguments are checked in the call ------------------------------------------------------


class Untouched(list):
    """Batches that may be counted but not started."""

    def __iter__(self):
        raise AssertionError("the source was started")


class Unmoved(nn.Linear):
    """A model that may be looked at but not moved, run or put into another mode."""

    def _apply(self, *args, **kwargs):
        raise AssertionError("the model was moved")

    def forward(self, x):
        raise AssertionError("the model was run")

    def train(self, mode=True):
        raise AssertionError("the mode was changed")


class WithoutLength:
    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)


BATCHES = Untouched(cut(*data()))
OTHERS = SGD(nn.Linear(1, 1).parameters(), lr=0.1)


REFUSED = {
    "epochs 0": ({"epochs": 0}, ValueError, "epochs must be at least 1, got 0"),
    "epochs -1": ({"epochs": -1}, ValueError, "epochs must be at least 1, got -1"),
    "epochs True": ({"epochs": True}, TypeError, "epochs must be a whole number, got True"),
    "epochs 2.5": ({"epochs": 2.5}, TypeError, "epochs must be a whole number, got 2.5"),
    "micro_batch 0": ({"micro_batch": 0}, ValueError, "micro_batch must be at least 1, got 0"),
    "an unknown micro_batch": (
        {"micro_batch": "big"},
        TypeError,
        "micro_batch must be 'auto', None",
    ),
    "an unknown precision": ({"precision": "half"}, ValueError, "precision must be one of"),
    "micro_batch 1.5": ({"micro_batch": 1.5}, TypeError, "micro_batch must be a whole number"),
    "iterator": ({"train": iter([])}, TypeError, "train must be .* iterated again, got list_it"),
    "generator": ({"train": (b for b in [])}, TypeError, "train must .* again, got generator"),
    "valid generator": ({"valid": (b for b in [])}, TypeError, "valid must .* got generator"),
    "zip": ({"train": zip([], [], strict=True)}, TypeError, "iterated again, got zip.*Batches"),
    "tensor": (
        {"train": torch.ones(3, 4)},
        TypeError,
        "train must be an iterable of pairs.*Tensor",
    ),
    "number": ({"train": 3}, TypeError, "train must be an iterable of pairs.*got int"),
    "no train": ({"train": None}, TypeError, "train must be an iterable of pairs.*got NoneType"),
    "empty train": ({"train": []}, ValueError, "train must give at least one batch, got none"),
    "empty valid": ({"valid": []}, ValueError, "valid must give at least one batch, got none"),
    "all dropped": (
        {"train": DataLoader(TensorDataset(*data(7)), batch_size=8, drop_last=True)},
        ValueError,
        r"got none \(7 samples, batch_size=8, drop_last=True\)\. Lower batch_size",
    ),
    "lr beside optimizer": (
        {"lr": 0.1, "optimizer": OTHERS},
        ValueError,
        "lr must not stand beside optimizer.*got lr=0.1",
    ),
    "lr 0": ({"lr": 0}, ValueError, "lr must be above 0 and finite, got 0"),
    "lr True": ({"lr": True}, TypeError, "lr must be a number, got True"),
    "optimizer class": ({"optimizer": SGD}, TypeError, "optimizer must be an instance"),
    "optimizer name": ({"optimizer": "adam"}, TypeError, "optimizer must be an instance, got 'ada"),
    "LBFGS": (
        {"optimizer": torch.optim.LBFGS(nn.Linear(1, 1).parameters())},
        TypeError,
        "optimizer must step without a closure, got LBFGS",
    ),
    "loss class": (
        {"loss_fn": nn.CrossEntropyLoss},
        TypeError,
        r"loss_fn must be a function or an instance, got CrossEntropyLoss\. Use Cross.*\(\)",
    ),
    "loss name": ({"loss_fn": "ce"}, TypeError, "loss_fn must be callable"),
    "unreduced loss": (
        {"loss_fn": nn.CrossEntropyLoss(reduction="none")},
        ValueError,
        "loss_fn must reduce a batch to one number",
    ),
    "metrics without valid": (
        {"metrics": [tc.accuracy, tc.error_rate], "valid": None},
        ValueError,
        "metrics must have a valid .* got accuracy, error_rate and valid=None",
    ),
    "one bare metric": ({"metrics": tc.accuracy}, TypeError, "metrics must be a list or a dict"),
    "metric class": ({"metrics": [nn.L1Loss]}, TypeError, "metrics must hold functions"),
    "metric name twice": (
        {"metrics": [tc.accuracy, tc.accuracy]},
        ValueError,
        "metrics must have names of their own, got 'accuracy' twice",
    ),
    "schedule class": (
        {"schedule": lr_scheduler.StepLR},
        TypeError,
        "schedule must be a function .* or an instance",
    ),
    "schedule number": ({"schedule": 0.1}, TypeError, "schedule must be a function .*got 0.1"),
    "one_cycle bare": (
        {"schedule": tc.one_cycle},
        TypeError,
        r"schedule must be tc\.one_cycle\(\), got tc\.one_cycle without the brackets",
    ),
    "warm_up_cosine bare": (
        {"schedule": tc.warm_up_cosine},
        TypeError,
        r"schedule must be tc\.warm_up_cosine\(\), got tc\.warm_up_cosine without the brackets",
    ),
    "another's scheduler": (
        {"schedule": lr_scheduler.StepLR(OTHERS, 1)},
        ValueError,
        "schedule must be a scheduler of this run's optimizer",
    ),
    "plateau without valid": (
        {"schedule": lr_scheduler.ReduceLROnPlateau(OTHERS), "optimizer": OTHERS, "valid": None},
        ValueError,
        "schedule must not be ReduceLROnPlateau without valid",
    ),
    "short OneCycleLR": (
        {"schedule": lr_scheduler.OneCycleLR(OTHERS, 0.1, total_steps=29), "optimizer": OTHERS},
        ValueError,
        "10 epochs of 3 steps, got a OneCycleLR with 29 steps left. Use total_steps=30",
    ),
    "schedule without length": (
        {"schedule": tc.one_cycle(), "train": WithoutLength(BATCHES)},
        ValueError,
        r"train must have a length for a schedule of progress, got one without len\(\)",
    ),
    "no such device": ({"device": "cuda:99"}, ValueError, r"device must be one that is there"),
} | {
    f"reserved {name}": (
        {"metrics": {name: tc.accuracy}},
        ValueError,
        f"metrics must not be named like another column.*got '{name}'.*'my_{name}'",
    )
    for name in ("epoch", "train_loss", "smooth_loss", "valid_loss", "time")
}


@pytest.mark.parametrize("entry", [tc.fit, tc.epochs])
@pytest.mark.parametrize("case", REFUSED)
def test_arguments_are_checked_before_anything_is_touched(case, entry):
    changes, error, message = REFUSED[case]
    model = Unmoved(4, 3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    arguments = {"train": BATCHES, "valid": BATCHES, "loss_fn": CE, **changes}
    groups = [{**group} for group in OTHERS.param_groups]
    rng = torch.get_rng_state()
    with pytest.raises(error, match=f"(?s){message}"):
        entry(model, **arguments)
    assert torch.equal(torch.get_rng_state(), rng)
    assert [{**group} for group in OTHERS.param_groups] == groups
    assert not OTHERS.state
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_the_right_side_of_each_limit_is_taken():
    model = network()
    optimizer = SGD(model.parameters(), lr=0.1)
    just_enough = lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=6)
    history = quiet(model, cut(*data()), epochs=2, optimizer=optimizer, schedule=just_enough)
    assert len(history) == 2
    one_by_one = quiet(nn.Linear(4, 3), cut(*data()), epochs=1, micro_batch=1, metrics=[])
    assert len(one_by_one) == 1


def test_a_scheduler_in_the_place_of_the_optimizer_is_refused():
    model = network()
    scheduler = lr_scheduler.StepLR(SGD(model.parameters(), lr=0.1), 1)
    with pytest.raises(TypeError, match="optimizer"):
        run_of(model, optimizer=scheduler)


def test_an_optimizer_of_another_model_is_refused():
    with pytest.raises(ValueError, match="optimizer"):
        next(run_of(network(), optimizer=SGD(network().parameters(), lr=0.1)))


def test_a_model_class_is_refused_by_name():
    with pytest.raises(TypeError, match="model must be"):
        run_of(nn.ReLU)


def test_a_source_that_runs_dry_after_the_first_epoch_is_named():
    once = iter(cut(*data()))

    class RunsDry:
        def __iter__(self):
            return once

    run = run_of(train=RunsDry())
    with pytest.raises(ValueError, match="train in epoch 1 must give at least one batch, got none"):
        list(run)
    assert len(run.history) == 1


def test_a_validation_source_that_runs_dry_is_named():
    once = iter(cut(*data()))

    class RunsDry:
        def __iter__(self):
            return once

    with pytest.raises(ValueError, match="valid in epoch 1 must give at least one batch, got none"):
        list(run_of(valid=RunsDry()))


def test_a_batch_that_is_no_pair_is_named():
    x, y = data()
    with pytest.raises(TypeError, match=r"train must hold pairs .*got 3 parts"):
        quiet(network(), [(x, y, y)], epochs=1)
    valid = DataLoader([{"x": x[0], "label": y[0]}], batch_size=1)
    with pytest.raises(tc.ContractError, match=r"TypeError: valid must hold pairs .*got a dict"):
        quiet(network(), cut(x, y), valid, epochs=1)
    with pytest.raises(TypeError, match=r"valid must hold pairs .*got a dict"):
        quiet(network(), cut(x, y), valid, epochs=1, check="off")


def test_a_loader_without_length_trains_where_no_schedule_needs_it():
    class Stream(IterableDataset):
        def __iter__(self):
            return zip(*data(), strict=True)

    ours, theirs = network(), network()
    quiet(ours, DataLoader(Stream(), batch_size=16), epochs=2)
    quiet(theirs, cut(*data()), epochs=2)
    assert same_weights(ours, theirs)


# --- schedules ------------------------------------------------------------------------------


def spying(kind, model, **kwargs):
    """An optimizer of that kind that writes down lr and momentum of its groups at every step."""

    class Spy(kind):
        def step(self, closure=None):
            group = self.param_groups[0]
            self.lrs.append([group["lr"] for group in self.param_groups])
            self.momentums.append(group["betas"][0] if "betas" in group else group["momentum"])
            return super().step(closure)

    first, *rest = model.parameters()
    groups = [{"params": [first], "lr": 0.01}, {"params": rest, "lr": 0.2}]
    optimizer = Spy(groups, **kwargs)
    optimizer.lrs, optimizer.momentums = [], []
    return optimizer


def one_cycle_formula(i, total):
    """Scale and momentum as fastai computes them: see test_optim."""

    def cos(start, end, pos):
        return start + (1 + math.cos(math.pi * (1 - pos))) * (end - start) / 2

    pos = i / total
    if pos < 0.25:
        return cos(1 / 25, 1, pos * 4), cos(0.95, 0.85, pos * 4)
    return cos(1, 1 / 1e5, (pos - 0.25) / 0.75), cos(0.85, 0.95, (pos - 0.25) / 0.75)


@pytest.mark.parametrize(
    ("kind", "own"),
    [(Adam, {"betas": (0.8, 0.9)}), (SGD, {"momentum": 0.5}), (torch.optim.NAdam, {})],
)
def test_one_cycle_paces_lr_and_momentum_and_puts_each_groups_own_back(kind, own):
    model = network()
    optimizer = spying(kind, model, **own)
    kept = ("lr", "momentum", "betas")
    before = [{key: g[key] for key in kept if key in g} for g in optimizer.param_groups]
    run = run_of(model, optimizer=optimizer, schedule=tc.one_cycle(), epochs=4)
    for _ in run:
        after = [{key: g[key] for key in kept if key in g} for g in optimizer.param_groups]
        assert after == before
    scales, momentums = zip(*(one_cycle_formula(i, 12) for i in range(12)), strict=True)
    torch.testing.assert_close(optimizer.lrs, [[0.01 * s, 0.2 * s] for s in scales])
    torch.testing.assert_close(optimizer.momentums, list(momentums))


def test_one_cycle_leaves_the_second_beta_alone():
    seen = []

    class Spy(Adam):
        def step(self, closure=None):
            seen.append(self.param_groups[0]["betas"])
            return super().step(closure)

    model = network()
    quiet(model, cut(*data()), optimizer=Spy(model.parameters(), betas=(0.5, 0.7)),
          schedule=tc.one_cycle(), epochs=1)  # fmt: skip
    assert [betas[1] for betas in seen] == [0.7] * 3
    assert seen[0][0] == 0.95


def test_one_cycle_leaves_an_optimizer_without_momentum_alone():
    model = network()
    optimizer = torch.optim.Adagrad(model.parameters(), lr=0.1)
    quiet(model, cut(*data()), optimizer=optimizer, schedule=tc.one_cycle(), epochs=1)
    assert not {"betas", "momentum"} & set(optimizer.param_groups[0])


def test_a_function_gives_a_scale_of_each_groups_own_lr_and_leaves_momentum_alone():
    asked = []

    def halve(progress):
        asked.append(progress)
        return 1 if progress < 0.5 else 0.5

    model = network()
    optimizer = spying(SGD, model, momentum=0.5)
    quiet(model, cut(*data()), optimizer=optimizer, schedule=halve, epochs=2)
    assert asked == [i / 6 for i in range(6)]
    assert optimizer.lrs == [[0.01, 0.2]] * 3 + [[0.005, 0.1]] * 3
    assert optimizer.momentums == [0.5] * 6


def test_a_change_of_the_own_lr_between_epochs_is_taken_up():
    model = network()
    optimizer = spying(SGD, model, momentum=0.5)
    for _ in run_of(model, optimizer=optimizer, schedule=lambda progress: 0.5, epochs=2):
        optimizer.param_groups[0]["lr"] = 1.0
    assert [lrs[0] for lrs in optimizer.lrs] == [0.005] * 3 + [0.5] * 3


SCHEDULERS = {
    "StepLR": (lambda o: lr_scheduler.StepLR(o, 2, gamma=0.1), False),
    "CosineAnnealingLR": (lambda o: lr_scheduler.CosineAnnealingLR(o, 4), False),
    "ChainedScheduler": (
        lambda o: lr_scheduler.ChainedScheduler([lr_scheduler.ExponentialLR(o, 0.5)]),
        False,
    ),
    "OneCycleLR": (lambda o: lr_scheduler.OneCycleLR(o, [0.1, 0.3], total_steps=12), True),
    "CyclicLR": (lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, step_size_up=2), True),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_scheduler_of_torch_is_stepped_as_in_a_hand_written_loop(name):
    build, each_step = SCHEDULERS[name]
    ours, theirs = network(), network()
    optimizer = spying(SGD, ours, momentum=0.9)
    quiet(ours, cut(*data()), optimizer=optimizer, schedule=build(optimizer), epochs=4)
    expected = spying(SGD, theirs, momentum=0.9)
    scheduler = build(expected)
    for _ in range(4):
        for batch in cut(*data()):
            plain_loop(theirs, [batch], expected, epochs=1)
            if each_step:
                scheduler.step()
        if not each_step:
            scheduler.step()
    assert optimizer.lrs == expected.lrs
    assert optimizer.momentums == expected.momentums
    assert len({lrs[0] for lrs in optimizer.lrs}) > 1
    assert same_weights(ours, theirs)


def test_a_plateau_is_shown_valid_loss_after_each_epoch():
    shown = []

    class Spy(lr_scheduler.ReduceLROnPlateau):
        def step(self, metrics, *args, **kwargs):
            shown.append(metrics)
            return super().step(metrics, *args, **kwargs)

    model = network()
    optimizer = spying(SGD, model, momentum=0.0)
    plateau = Spy(optimizer, factor=0.5, patience=0, threshold=1e9, threshold_mode="abs")
    history = quiet(
        model, cut(*data()), cut(*data(20)), optimizer=optimizer, schedule=plateau, epochs=3
    )
    assert shown == [record.valid_loss for record in history]
    assert [lrs[1] for lrs in optimizer.lrs] == [0.2] * 3 + [0.2] * 3 + [0.1] * 3


# --- validation is a mere look --------------------------------------------------------------


@pytest.mark.parametrize("valid", [lambda: cut(*data(20)), lambda: shuffling_loader(20, seed=1)])
def test_validation_does_not_change_training(valid):
    models = [network(dropout=0.5) for _ in range(2)]
    histories, states = [], []
    for model, source in zip(models, (None, valid()), strict=True):
        with torch.random.fork_rng():
            torch.manual_seed(3)
            metrics = [tc.accuracy] if source else []
            histories.append(quiet(model, shuffling_loader(), source, metrics=metrics, epochs=3))
            states.append(torch.get_rng_state())
    assert same_weights(*models)
    assert torch.equal(*states)
    assert [r.train_loss for r in histories[0]] == [r.train_loss for r in histories[1]]


def test_two_runs_side_by_side_do_not_disturb_each_other():
    def one(model, seed, results):
        train = tc.Batches(*data(seed=seed), batch_size=16, shuffle=True, seed=seed)
        started.wait(timeout=30)
        history = quiet(model, train, cut(*data(20)), epochs=20, schedule=tc.one_cycle())
        results[seed] = model, [{**record, "time": 0} for record in history]

    alone, together = {}, {}
    started = threading.Barrier(1)
    one(network(seed=1), 1, alone)
    one(network(seed=2), 2, alone)
    started = threading.Barrier(2)
    # The weights are drawn here: they come from the one random state that all threads share.
    threads = [
        threading.Thread(target=one, args=(network(seed=seed), seed, together)) for seed in (1, 2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    for seed in (1, 2):
        assert same_weights(alone[seed][0], together[seed][0])
        assert alone[seed][1] == together[seed][1]


# --- what it shows --------------------------------------------------------------------------


def test_in_a_pipe_it_prints_the_header_and_a_plain_line_for_each_epoch(capsys):
    run = run_of(valid=cut(*data(20)), metrics=[tc.accuracy], epochs=3, progress=None)
    assert capsys.readouterr().out == ""
    for count, _ in enumerate(run, start=1):
        if count == 1:
            first = capsys.readouterr().out
            assert len(first.splitlines()) == 2  # a line is there as soon as its epoch is over
    out, err = capsys.readouterr()
    assert first + out == f"{run.history}\n"
    assert err == ""
    assert "\r" not in first + out


def test_progress_false_prints_nothing(capfd):
    quiet(network(), cut(*data()), cut(*data(20)), epochs=2)
    assert capfd.readouterr() == ("", "")


def test_progress_true_forces_the_bar_in_a_pipe(capsys):
    quiet(network(), cut(*data()), epochs=1, progress=True)
    out, err = capsys.readouterr()
    assert "epoch 1/1 train" in out
    assert "\r" in out
    assert err == ""


def test_it_runs_where_there_is_no_standard_output(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    assert len(quiet(network(), cut(*data()), epochs=1, progress=None)) == 1


IN_A_TERMINAL = """
import torch, torchcls as tc
batches = [(torch.ones(2, 4), torch.tensor([0, 1]))] * 3
tc.fit(torch.nn.Linear(4, 3), batches, batches[:1], loss_fn=tc.cross_entropy, epochs=2)
"""


@pytest.mark.system
def test_in_a_terminal_it_shows_a_bar_and_leaves_the_table():
    pty = pytest.importorskip("pty")
    fcntl, termios = pytest.importorskip("fcntl"), pytest.importorskip("termios")
    controller, terminal = pty.openpty()
    # A new terminal has no size, and there tqdm shows nothing: 30 lines of 100 columns.
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("4H", 30, 100, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-c", IN_A_TERMINAL],
        stdin=subprocess.DEVNULL,
        stdout=terminal,
        stderr=terminal,
        env={**os.environ, "TERM": "xterm"},
        cwd=Path(tc.__file__).parents[1],
    )
    os.close(terminal)
    shown = b""
    while True:
        try:
            part = os.read(controller, 4096)
        except OSError:  # how Linux says that the other end is closed
            break
        if not part:
            break
        shown += part
    os.close(controller)
    text = shown.decode()
    assert process.wait(timeout=60) == 0, text
    for epoch, name in itertools.product((1, 2), ("train", "valid")):
        assert f"epoch {epoch}/2 {name}" in text
    # What is left: of each line only what follows the last return to its beginning.
    left = [line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n")]
    assert left[0].split() == ["epoch", "train_loss", "smooth_loss", "valid_loss", "time"]
    assert [re.match(r" +(\d)  ", line)[1] for line in left[1:3]] == ["0", "1"]
    assert left[3:] == [""]


# --- between epochs -----------------------------------------------------------------------------


def test_class_weights_may_change_between_epochs():
    """As deferred re-weighting does: counts and shares follow the loss."""

    def run(micro_batch):
        loss_fn = nn.CrossEntropyLoss(torch.ones(3))
        model, (x, y) = network(dtype=torch.float64), data(dtype=torch.float64)
        model[1].eval()  # no batch statistics, so that it may be cut
        model.train = lambda mode=True: model
        run = tc.epochs(
            model,
            [(x, y)],
            [(x, y)],
            loss_fn=loss_fn.double(),
            epochs=2,
            micro_batch=micro_batch,
            ignore=["trains-in-evaluation"],
            progress=False,
        )
        for _ in run:
            loss_fn.weight = torch.tensor([1.0, 20.0, 0.01]).double()
        return run.history

    whole, cut = run(None), run(5)
    assert cut[1].train_loss == pytest.approx(whole[1].train_loss, rel=1e-12)
    assert cut[1].valid_loss == pytest.approx(whole[1].valid_loss, rel=1e-12)


def test_a_compiled_model_takes_the_steps_of_the_plain_one():
    plain, compiled = network(), network()
    compiled.compile(backend="eager")
    for model in (plain, compiled):
        quiet(model, cut(*data()), epochs=1)
    assert same_weights(compiled, plain)


# --- where training cannot be, and what an interrupt leaves -------------------------------------


@pytest.mark.parametrize("entry", ["fit", "epochs", "train_one_epoch", "backward"])
def test_inference_mode_is_refused_by_name(entry):
    model, batches = network(), cut(*data())
    calls = {
        "fit": lambda: tc.fit(model, batches, loss_fn=CE, epochs=1, progress=False),
        "epochs": lambda: tc.epochs(model, batches, loss_fn=CE, epochs=1, progress=False),
        "train_one_epoch": lambda: tc.train_one_epoch(
            model, batches, CE, SGD(model.parameters(), lr=0.1)
        ),
        "backward": lambda: tc.backward(model, batches[0], CE),
    }
    with torch.inference_mode(), pytest.raises(RuntimeError, match=r"inference_mode.*outside"):
        calls[entry]()


@pytest.mark.parametrize("entry", [tc.fit, tc.epochs])
def test_several_processes_that_cannot_meet_are_refused(entry, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RuntimeError, match=r"WORLD_SIZE=2 must come with .* got no RANK"):
        entry(network(), cut(*data()), loss_fn=CE)
    monkeypatch.setenv("WORLD_SIZE", "1")
    tc.fit(network(), cut(*data()), loss_fn=CE, epochs=1, device="cpu", progress=False)


def test_a_run_made_outside_of_inference_mode_is_not_gone_through_in_it():
    run = tc.epochs(network(), cut(*data()), loss_fn=CE, epochs=1, device="cpu", progress=False)
    with torch.inference_mode(), pytest.raises(RuntimeError, match="inference_mode"):
        next(run)
    assert next(run).epoch == 0  # nothing is lost


def test_evaluation_and_prediction_work_in_inference_mode():
    model, batches = network(), cut(*data())
    expected = tc.evaluate(model, batches, loss_fn=CE)
    with torch.inference_mode():
        assert tc.evaluate(model, batches, loss_fn=CE) == expected
        assert len(tc.predict(model, batches).outputs) == expected.n


@pytest.mark.parametrize("kind", [KeyboardInterrupt, OSError])
def test_what_ends_a_run_early_has_the_history(kind):
    def schedule(progress):
        if progress >= 0.5:
            raise kind
        return 1

    with pytest.raises(kind) as ended:
        tc.fit(
            network(),
            cut(*data()),
            loss_fn=CE,
            epochs=4,
            schedule=schedule,
            device="cpu",
            progress=False,
        )
    assert [record.epoch for record in ended.value.history] == [0, 1]


def test_a_loader_that_rewinds_and_returns_itself_is_one_that_can_be_iterated_again():
    class Rewinding:
        def __init__(self):
            self.batches, self.at = cut(*data()), 0

        def __len__(self):
            return len(self.batches)

        def __iter__(self):
            self.at = 0
            return self

        def __next__(self):
            if self.at == len(self.batches):
                raise StopIteration
            self.at += 1
            return self.batches[self.at - 1]

    options = {"loss_fn": CE, "epochs": 2, "device": "cpu", "progress": False}
    found = tc.fit(network(), Rewinding(), Rewinding(), **options)
    expected = tc.fit(network(), cut(*data()), cut(*data()), **options)
    assert [r.valid_loss for r in found] == [r.valid_loss for r in expected]
