"""How people use several processes: whole runs, loops of their own, any source, leaving, failing.

Every function below is called in one process and in several, which are started once for all of
them. What it returns has to travel, so it is numbers, text and tensors.
"""

import contextlib
import io
import math
import os
import random
import re
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pytest
import test_processes_exact as exact
import test_processes_sharded as sharded
import torch
from helpers import BLOCK, IS_OLD_TORCH, can_run, recent_torch
from in_processes import in_processes
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset, TensorDataset

import torchcls as tc

LOSS = nn.CrossEntropyLoss()
PAGE = (Path(__file__).parents[1] / "docs" / "many-processes.md").read_text("utf-8")


def answers(names):
    """What each of the functions gives in this process, or the error that it raises."""
    group, found = tc.processes(), {}
    for name in names:
        try:
            with warnings.catch_warnings(), torch.random.fork_rng([]):
                warnings.simplefilter("ignore")
                torch.manual_seed(3 if group.is_first else 33)  # any seed in the others
                found[name] = globals()[name](group)
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}"
    return found


def names():
    return [name for name in globals() if name.startswith(("same_", "differs_", "fails_"))]


@pytest.fixture(scope="module", params=[2, pytest.param(3, marks=pytest.mark.long)])
def found(request):
    """From the name of each function to what it gives in each of several processes."""
    each = in_processes(request.param, "test_processes_use:answers", names(), timeout=300)
    assert not any(isinstance(one, RuntimeError) for one in each), each
    return {name: [one[name] for one in each] for name in names()}


def close(ours, theirs, tolerance):
    """Whether two structures hold the same: numbers to rounding, everything else to the letter."""
    if isinstance(theirs, dict):
        same = ours.keys() == theirs.keys()
        return same and all(close(ours[key], theirs[key], tolerance) for key in theirs)
    if isinstance(theirs, (list, tuple)):
        pairs = zip(ours, theirs, strict=False)
        return len(ours) == len(theirs) and all(close(*pair, tolerance) for pair in pairs)
    if isinstance(theirs, torch.Tensor):
        kinds = (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
        return kinds and torch.allclose(ours, theirs, rtol=tolerance, atol=tolerance)
    if isinstance(theirs, float):
        both_nan = math.isnan(ours) and math.isnan(theirs)
        return both_nan or abs(ours - theirs) <= tolerance * max(1, abs(theirs))
    return ours == theirs


# ------------------------------------------------------------------ what is trained


def data(n=50):
    generator = torch.Generator().manual_seed(n)
    inputs = torch.randn(n, 6, generator=generator)
    return inputs, (inputs[:, :3] + inputs[:, 3:]).argmax(1)


def batches(n=50, **keywords):
    return tc.Batches(*data(n), **{"batch_size": 16, "shuffle": True, **keywords})


def in_pieces(n=50, size=16):
    inputs, targets = data(n)
    return [(inputs[i : i + size], targets[i : i + size]) for i in range(0, n, size)]


def network(*middle):
    with torch.random.fork_rng([]):
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), *middle, nn.Linear(16, 3))


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def weights_of(model):
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def records_of(history):
    return [{key: record[key] for key in record if key != "time"} for record in history]


def run_of(model, train=None, **keywords):
    train = batches() if train is None else train
    choices = {"optimizer": sgd(model), "loss_fn": LOSS, "epochs": 2, "progress": False}
    return tc.epochs(model, train, in_pieces(33), **{**choices, **keywords})


def fitted(train=None, schedule=None, **keywords):
    """Records and weights of a run of two epochs."""
    model = network()
    if schedule is not None:
        keywords["optimizer"] = sgd(model)
        keywords["schedule"] = schedule(keywords["optimizer"])
    run = run_of(model, train, **keywords)
    for _ in run:
        pass
    return records_of(run.history), weights_of(model)


WAITING = []


class Weighted:
    """A metric object that remembers all, and would talk to other processes by itself."""

    def __init__(self):
        self.distributed_available_fn = lambda: True
        self.reset()

    def reset(self):
        self.seen = []

    def update(self, outputs, targets):
        self.seen.append((outputs.argmax(1) == targets).double())

    def compute(self):
        if torch.distributed.is_initialized() and self.distributed_available_fn():
            WAITING.append(self)  # as torchmetrics would, and count every row once more
            return -1.0
        right = torch.cat(self.seen)
        return (right * torch.arange(len(right)).cos()).sum() / len(self.seen)


def order_counts(outputs, targets):
    """A metric of one's own, for which the order of the rows counts."""
    return ((outputs.argmax(1) == targets).double() * torch.arange(len(targets)).cos()).sum()


METRICS = {
    "accuracy": tc.accuracy,
    "matrix": tc.confusion_matrix,
    "own": order_counts,
    "object": Weighted(),
}

# ------------------------------------------------------------------ the same numbers


def same_fit(group):
    return fitted(metrics=METRICS)


def same_fit_with_the_default_optimizer(group):
    return fitted(optimizer=None, lr=1e-2)[0]


def same_train_metrics(group):
    metrics = {name: METRICS[name] for name in ("accuracy", "own", "object")}
    return fitted(train_metrics=metrics)


def same_train_metrics_of_pieces(group):
    return fitted(train_metrics=[tc.accuracy, order_counts], micro_batch=3)


def same_clip_norm(group):
    return fitted(clip_norm=0.05)


def same_one_cycle(group):
    return fitted(schedule=lambda optimizer: tc.one_cycle())


def same_scheduler_of_epochs(group):
    return fitted(schedule=lambda optimizer: lr_scheduler.StepLR(optimizer, 1, 0.3))


def same_scheduler_of_steps(group):
    return fitted(schedule=lambda o: tc.each_step(lr_scheduler.ExponentialLR(o, 0.8)))


def same_plateau(group):
    def plateau(optimizer):  # no epoch is good enough
        return lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.3, patience=0, threshold=0.9)

    return fitted(schedule=plateau, epochs=3)


def same_plateau_of_a_column(group):
    def plateau(optimizer):
        reduced = lr_scheduler.ReduceLROnPlateau(
            optimizer, mode="max", factor=0.3, patience=0, threshold=0.9
        )
        return tc.on("accuracy", reduced)

    return fitted(schedule=plateau, metrics=[tc.accuracy], epochs=3)


def same_forward_of_a_dict(group):
    pairs = [({"x": x, "scale": torch.tensor(2.0)}, y) for x, y in in_pieces()]
    model, choices = network(), {"loss_fn": LOSS, "epochs": 2, "progress": False}
    forward = lambda model, inputs: model(inputs["x"]) * inputs["scale"]  # noqa: E731
    history = tc.fit(model, pairs, forward=forward, **choices)
    return records_of(history), weights_of(model)


def same_bfloat16(group):
    return fitted(batches(48), precision="bfloat16")


def same_float16(group):
    return fitted(batches(48), precision="float16")


# Each process rounds its own part of a gradient to half precision, with 8 or 11 bits.
TOLERANCES = {"same_bfloat16": 2**-5, "same_float16": 2**-8}
TOLERANCES |= {"same_awkward_cases": 1e-5, "same_sharded": 1e-12}


def same_awkward_cases(group):
    """A few of those that test_processes_exact goes through, where time is no matter."""
    return [exact.trained(case, group) for case in exact.some(29)]


def same_sharded(group):
    shared = group if group.size > 1 else None
    return [sharded.trained(case, shared) for case in sharded.CASES[::13]], sharded.fitted(shared)


def same_loader_with_workers(group):
    loader = DataLoader(TensorDataset(*data()), batch_size=16, shuffle=True, num_workers=2)
    return fitted(loader)


class Plain(Dataset):
    """A map-style dataset that is no TensorDataset."""

    def __init__(self, n=50):
        self.inputs, self.targets = data(n)

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        return self.inputs[index], int(self.targets[index])


def same_loader_with_a_generator(group):
    generator = torch.Generator().manual_seed(7 if group.is_first else 77)
    loader = DataLoader(Plain(), batch_size=16, shuffle=True, drop_last=True, generator=generator)
    return fitted(loader)


def same_sizes(group):
    """One sample, fewer samples than processes, a last batch of one."""
    return [
        fitted(batches(n, batch_size=size), check="off") for n, size in ((1, 4), (2, 4), (9, 4))
    ]


# ------------------------------------------------------------------ loops of one's own


def same_loop_over_epochs_that_all_leave(group):
    model = network()
    run, seen = run_of(model), []
    for record in run:
        seen.append(record.epoch)
        break
    seen += [record.epoch for record in run]
    return seen, records_of(run.history), weights_of(model)


def same_loop_over_steps_that_all_leave(group):
    model = network()
    run, seen = run_of(model), []
    for limit in (2, 5, 100):
        for at in run.steps():
            seen.append((at.epoch, at.step, float(at.loss), at.record is None))
            if len(seen) == limit:
                break
    return seen, records_of(run.history), weights_of(model)


def same_next(group):
    run = run_of(network())
    return [next(run).epoch, next(run).epoch, records_of(run.history)]


def same_evaluation_in_mid_epoch(group):
    model = network()
    run, seen = run_of(model), []
    for at in run.steps():
        if at.step == 2:
            seen.append(tc.evaluate(model, in_pieces(33), loss_fn=LOSS, group=group).loss)
    return seen, records_of(run.history)


def same_stop_by_the_first(group):
    run = run_of(network(), epochs=10)
    for record in run:
        if record.epoch == 1 and group.is_first:
            run.stop()
    return records_of(run.history)


def differs_break_by_the_first(group):
    """What each process sees where the first one alone leaves, and what going on says."""
    run, seen = run_of(network()), []
    for at in run.steps():
        seen.append((at.epoch, at.step))
        if (at.epoch, at.step) == (1, 2) and run.group.is_first:
            break
    with pytest.raises(RuntimeError) as raised:  # the first one, too, or it would wait for them
        next(run)
    return seen, len(run.history), str(raised.value)


def differs_break_by_the_first_after_an_epoch(group):
    run, seen = run_of(network(), epochs=3), []
    for record in run:
        seen.append(record.epoch)
        if record.epoch == 1 and run.group.is_first:
            break
    return seen, records_of(run.history)


def fails_break_by_another(group):
    run, ignored = run_of(network()), []
    hook, sys.unraisablehook = sys.unraisablehook, ignored.append  # a break raises nothing
    try:
        for at in run.steps():
            if at.step == 2 and group.rank == 1:
                break
        del at
    finally:
        sys.unraisablehook = hook
    raise ignored[0].exc_value if ignored else RuntimeError("none")


def differs_stop_by_another(group):
    run = run_of(network())
    for _ in run:
        if not group.is_first:
            run.stop()
    return len(run.history)


def differs_time(group):
    run = run_of(network(), metrics=METRICS)
    return [list(record.items()) for record in run]


def differs_printing(group):
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        fitted(progress=None)
    return printed.getvalue()


def differs_warnings(group):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run = run_of(network(nn.BatchNorm1d(16)), batches(48), epochs=1)
        next(run)
    found = [(finding.code, finding.message) for finding in run.history.findings]
    return found, [str(one.message) for one in caught]


def differs_waiting(group):
    """How often an object would have waited for the other processes by itself."""
    WAITING.clear()
    fitted(metrics={"object": Weighted()})
    return len(WAITING)


def differs_findings_of_a_sharded_model(group):
    model = network()
    if group.size > 1:
        fully_shard(model)
    run = run_of(model, epochs=1)
    next(run)
    return [finding.code for finding in run.history.findings]


def differs_bits(group):
    """Weights and scale of a loss, where a gradient overflows in the last process alone."""
    inputs, targets = data(48)
    inputs[15::16] *= 300  # of every batch the last sample
    model = network()
    train = tc.Batches(inputs, targets, batch_size=16)
    run = run_of(model, train, precision="float16", check="off")
    for _ in run:
        pass
    return weights_of(model), run.step.precision.state_dict()["scale"]


# ------------------------------------------------------------------ random numbers


class Masks(nn.Module):
    """Keeps what dropout does."""

    def __init__(self):
        super().__init__()
        self.drop, self.seen = nn.Dropout(), []

    def forward(self, inputs):
        if self.training:
            self.seen.append(self.drop(torch.ones(16)) > 0)
        return inputs


def differs_dropout(group):
    torch.manual_seed(7)  # one seed in all, as a script has it
    masks = Masks()
    model = network(masks)
    run = run_of(model, epochs=1)
    next(run)
    return torch.stack(masks.seen)


class Draws(Dataset):
    """Inputs that are drawn: by torch, Python and numpy."""

    def __len__(self):
        return 12

    def __getitem__(self, index):
        return torch.tensor([torch.rand(()), random.random(), np.random.rand()]), index % 3


def drawn(workers):
    seen = []

    class Seen(nn.Linear):
        def forward(self, inputs):
            if self.training:
                seen.append(inputs)
            return super().forward(inputs)

    model = Seen(3, 3)
    loader = DataLoader(Draws(), batch_size=6, num_workers=workers)
    tc.fit(model, loader, loss_fn=LOSS, epochs=1, progress=False)
    return torch.cat(seen)


def differs_augmentation(group):
    return drawn(0)


def differs_augmentation_in_workers(group):
    return drawn(2)


# ------------------------------------------------------------------ evaluate and predict


def sources(n):
    """The same data in every form that goes without a group's help."""
    inputs, targets = data(n)
    yield tc.Batches(inputs, targets, batch_size=4)
    yield in_pieces(n, 4)
    yield DataLoader(TensorDataset(inputs, targets), batch_size=4)
    yield DataLoader(Plain(n), batch_size=4, shuffle=True)
    yield iter(in_pieces(n, 4))


def same_evaluate(group):
    found = []
    for n in (1, 2, 11):
        for source in sources(n):
            one = tc.evaluate(network(), source, loss_fn=LOSS, metrics=METRICS, group=group)
            found.append((one.loss, one.metrics, one.n))
    return found


def same_evaluate_with_workers(group):
    loader = DataLoader(Plain(11), batch_size=4, shuffle=True, num_workers=2)
    found = tc.evaluate(network(), loader, loss_fn=LOSS, metrics=METRICS, group=group)
    return found.loss, found.metrics, found.n


def same_predict(group):
    model, found = network(), []
    for n in (1, 2, 11):
        inputs, _ = data(n)
        loader = DataLoader(TensorDataset(inputs), batch_size=4)
        for source in (inputs, inputs.numpy(), loader, *sources(n)):
            one = tc.predict(model, source, loss_fn=LOSS, batch_size=4, group=group)
            found.append((one.outputs, one.predicted, one.targets))
    return found


def same_predict_of_a_dict(group):
    inputs, _ = data(7)
    forward = lambda model, inputs: model(inputs["x"])  # noqa: E731
    return tc.predict(network(), {"x": inputs}, batch_size=4, forward=forward, group=group).outputs


def same_predict_with_workers(group):
    loader = DataLoader(Plain(11), batch_size=4, num_workers=2)
    found = tc.predict(network(), loader, group=group)
    return found.outputs, found.targets


def same_small_loops_without_a_group(group):
    """Each process by itself, and none waits for another."""
    model = network()
    loss = tc.train_one_epoch(model, in_pieces(), LOSS, sgd(model))
    if group.is_first:
        tc.evaluate(model, in_pieces(), loss_fn=LOSS)
    return loss, tc.predict(model, data()[0]).outputs


# ------------------------------------------------------------------ streams

LENGTHS = (3, 0, 5, 2, 1, 4)  # of the streams, in batches
OPENED = []


def open_stream(number):
    OPENED.append(number)
    generator = torch.Generator().manual_seed(number)
    for length in range(LENGTHS[number]):
        inputs = torch.randn(2 + length % 2, 6, generator=generator)
        yield inputs, (inputs[:, :3] + inputs[:, 3:]).argmax(1)


def streams():
    return tc.Streams(open_stream, n=len(LENGTHS))


def same_fit_of_streams(group):
    return fitted(streams(), train_metrics=[tc.accuracy, order_counts])


def same_fit_of_streams_in_pieces(group):
    return fitted(streams(), micro_batch=2)


def same_evaluate_of_streams(group):
    found = tc.evaluate(network(), streams(), loss_fn=LOSS, metrics=METRICS, group=group)
    return found.loss, found.metrics, found.n


def same_predict_of_streams(group):
    found = tc.predict(network(), streams(), group=group)
    return found.outputs, found.targets


def differs_opened_streams(group):
    OPENED.clear()
    tc.evaluate(network(), streams(), loss_fn=LOSS, group=group)
    return list(OPENED)


# ------------------------------------------------------------------ the page in docs/


def same_blocks_of_the_page(group):
    """What the blocks print, but for times, and what they print in the other processes: nothing."""
    printed, folder, namespace = io.StringIO(), group.from_first(tempfile.mkdtemp()), {}
    home = os.getcwd()
    os.chdir(folder)
    try:
        with contextlib.redirect_stdout(printed):
            for code, _ in BLOCK.findall(PAGE):
                if can_run(code):
                    exec(code, namespace)
    finally:
        os.chdir(home)
    words = [word for word in printed.getvalue().split() if not re.fullmatch(r"\d+\.\d\ds", word)]
    words = [float(word) if word[0].isdigit() else word for word in words]
    return group.from_first(words), [] if group.is_first else words


# ------------------------------------------------------------------ what is refused


def split_loader(group):
    dataset = TensorDataset(*data())
    sampler = DistributedSampler(dataset, num_replicas=max(group.size, 2), rank=group.rank)
    return DataLoader(dataset, batch_size=16, sampler=sampler)


def fails_sampler_in_fit(group):
    fitted(split_loader(group))


def fails_sampler_in_validation(group):
    model = network()
    tc.fit(model, batches(), split_loader(group), loss_fn=LOSS, epochs=1, progress=False)


def fails_sampler_in_train_one_epoch(group):
    model = network()
    tc.train_one_epoch(model, split_loader(group), LOSS, sgd(model), group=group)


def fails_sampler_in_evaluate(group):
    tc.evaluate(network(), split_loader(group), loss_fn=LOSS, group=group)


def fails_sampler_in_predict(group):
    tc.predict(network(), split_loader(group), group=group)


def fails_dataset_of_rank(group):
    """As datasets.distributed.split_dataset_by_node leaves it."""
    dataset = TensorDataset(*data())
    dataset._distributed = (group.rank, group.size)
    fitted(DataLoader(dataset, batch_size=16))


def fails_other_batches(group):
    fitted(in_pieces()[group.rank :: group.size])


def fails_other_dataset(group):
    inputs, targets = data()
    fitted(DataLoader(TensorDataset(inputs + group.rank, targets), batch_size=16))


def fails_other_seed(group):
    fitted(batches(seed=group.rank))


def fails_more_batches(group):
    fitted(in_pieces()[: 2 + group.is_first])


class OfRank(IterableDataset):
    def __init__(self, group):
        self.group = group

    def __iter__(self):
        pairs = list(zip(*data(), strict=True))
        return iter(pairs[self.group.rank :: self.group.size])


def fails_stream_of_rank(group):
    fitted(DataLoader(OfRank(group), batch_size=8))


def fails_other_batches_in_validation(group):
    model, valid = network(), in_pieces()[group.rank :: group.size]
    tc.fit(model, batches(), valid, loss_fn=LOSS, epochs=1, progress=False)


def fails_other_batches_in_evaluate(group):
    pairs = in_pieces(48)[group.rank : group.rank + 1]
    tc.evaluate(network(), pairs, loss_fn=LOSS, group=group)


def fails_other_batches_in_predict(group):
    tc.predict(network(), in_pieces(48)[group.rank : group.rank + 1], group=group)


def fails_stray_parameter(group):
    model, stray = network(), nn.Parameter(torch.ones(()))
    optimizer = torch.optim.SGD([*model.parameters(), stray], lr=0.1)
    tc.train_one_epoch(model, in_pieces(), LOSS, optimizer, group=group)


def fails_wrapped_model(group):
    model = nn.parallel.DistributedDataParallel(network()) if group.size > 1 else network()
    tc.train_one_epoch(model, in_pieces(), LOSS, sgd(model), group=group)


def fails_lazy_layers(group):
    model = nn.LazyLinear(3)
    tc.train_one_epoch(model, in_pieces(), LOSS, sgd(model), group=group)


def fails_train_metrics(group):
    tc.fit(
        network(), batches(), loss_fn=LOSS, train_metrics=[tc.accuracy], checkpoint="never made",
        progress=False,
    )  # fmt: skip


def fails_too_few_streams(group):
    fitted(tc.Streams(open_stream, n=1))


def fails_too_few_streams_in_evaluate(group):
    tc.evaluate(network(), tc.Streams(open_stream, n=1), loss_fn=LOSS, group=group)


def fails_weight_for_each_row(group):
    loss_fn = nn.BCEWithLogitsLoss(weight=torch.ones(16, 1))
    pairs = [(inputs, (targets > 0).float()[:, None]) for inputs, targets in in_pieces(48)]
    model = nn.Linear(6, 1)
    tc.train_one_epoch(model, pairs, loss_fn, sgd(model), group=group)


# ------------------------------------------------------------------ failing in one process


def breaking(group, rank):
    """Batches of which the third cannot be read in one process."""
    for number, pair in enumerate(in_pieces()):
        if number == 2 and group.rank == rank:
            raise OSError("no such shard")
        yield pair


class Again:
    def __init__(self, make):
        self.make = make

    def __iter__(self):
        return self.make()


def fails_loader_of_the_last(group):
    fitted(Again(lambda: breaking(group, group.size - 1)))


def fails_evaluate_of_the_first(group):
    tc.evaluate(network(), Again(lambda: breaking(group, 0)), loss_fn=LOSS, group=group)


def fails_predict_of_the_last(group):
    tc.predict(network(), Again(lambda: breaking(group, group.size - 1)), group=group)


def fails_forward_of_the_first(group):
    model, calls = network(), []

    def forward(model, inputs):
        calls.append(1)
        if group.is_first and len(calls) == 3:
            raise OSError("no such shard")
        return model(inputs)

    tc.fit(model, in_pieces(), loss_fn=LOSS, forward=forward, check="off", progress=False)


def fails_loss_of_the_last(group):
    def loss_fn(outputs, targets):
        if group.rank == group.size - 1:
            raise OSError("no such shard")
        return LOSS(outputs, targets)

    model = network()
    tc.train_one_epoch(model, in_pieces(), loss_fn, sgd(model), group=group)


def fails_metric(group):
    def metric(outputs, targets):  # called in the first alone
        raise OSError("no such shard")

    model = network()
    tc.fit(model, batches(), in_pieces(), loss_fn=LOSS, metrics=[metric], progress=False)


def fails_argument_of_the_last(group):
    if group.rank < group.size - 1:
        fitted()
    else:
        tc.fit(network(), batches(), loss_fn=LOSS, lr=-1.0, progress=False)


def same_after_all_that(group):
    """Whatever has failed, all processes still stand at one place."""
    return fitted(metrics=METRICS)


REFUSED = {
    "sampler": "a DistributedSampler, which has split the data already",
    "dataset_of_rank": "batches must be the whole data in every process, which takes its share of",
    "other": "batches must be the same in every process, which takes its share of each",
    "more_batches": "batches must be the same in every process, which takes its share of each",
    "stream_of_rank": "batches must be the same in every process, which takes its share of each",
    "stray_parameter": "optimizer must hold parameters of model and loss_fn only where there are",
    "wrapped_model": "model must be the module itself, got it in DistributedDataParallel",
    "lazy_layers": "model must know the shapes of its parameters before it is shared by processes",
    "train_metrics": "train_metrics must be empty where",
    "too_few_streams": "n must be at least the number of processes",
    "weight_for_each_row": "has a row for each sample of the batch, since a piece has fewer (as ",
}
BROKEN = "OSError: no such shard"
ELSEWHERE = {
    "break_by_another": "the loop over a run must be left by the first process or by all, got 1 of",
    "argument": "lr must be above 0",
}


# ------------------------------------------------------------------ the tests

SAME = [name for name in globals() if name.startswith("same_")]
if IS_OLD_TORCH:  # which has no fully_shard on a CPU
    SAME = [name for name in SAME if name not in ("same_blocks_of_the_page", "same_sharded")]
FAILS = [name for name in globals() if name.startswith("fails_")]


@pytest.mark.parametrize("name", SAME)
def test_all_processes_have_the_numbers_of_one(name, found):
    alone = answers([name])[name]
    assert not isinstance(alone, str), alone
    for ours in (each := found[name]):
        assert close(ours, alone, TOLERANCES.get(name, 1e-6)), (ours, alone)
        assert close(ours, each[0], 0.0)  # and all have the same bits


def test_a_difference_is_seen():
    alone = [{"loss": 0.5}, torch.ones(3), math.nan]
    assert close([{"loss": 0.5 + 1e-8}, torch.ones(3) - 1e-7, math.nan], alone, 1e-6)
    for other in ({"loss": 0.50001}, {"loss": math.nan}, {"los": 0.5}):
        assert not close([other, *alone[1:]], alone, 1e-6)
    for other in (torch.ones(2), torch.ones(3).double(), torch.ones(3) + 1e-5):
        assert not close([alone[0], other, alone[2]], alone, 1e-6)


@pytest.mark.parametrize("name", FAILS)
def test_what_one_process_refuses_or_fails_at_ends_all(name, found):
    each = found[name]
    told = (REFUSED | ELSEWHERE).items()
    (words,) = [words for key, words in told if name.startswith(f"fails_{key}")] or [BROKEN]
    for said in each:
        assert isinstance(said, str), each
        assert words in said, each
        assert "another process has failed" not in said or "so all end: process " in said


def test_an_error_is_raised_where_it_was_and_told_to_the_others(found):
    *others, last = found["fails_loader_of_the_last"]
    assert last == BROKEN
    for said in others:
        told = f"another process has failed, and so all end: process {len(others)} with {BROKEN}"
        assert said == f"RuntimeError: {told}"


def test_the_first_leaves_the_loop_for_all(found):
    (first, length, _), *others = found["differs_break_by_the_first"]
    assert first[-1] == (1, 2)
    for seen, others_length, said in others:
        assert (seen, others_length) == (first, length)
        assert said.startswith("run must not go on after an error, an interrupt or a break in one")
    for epochs, records in (each := found["differs_break_by_the_first_after_an_epoch"]):
        assert epochs == [0, 1]
        assert records == each[0][1]


def test_stop_in_another_process_than_the_first_stops_nothing(found):
    assert set(found["differs_stop_by_another"]) == {2}


def test_all_have_one_history_to_the_time(found):
    for history in (each := found["differs_time"]):
        assert "time" in dict(history[0])
        assert history == each[0]


def test_the_first_alone_prints_and_warns(found):
    table, *others = found["differs_printing"]
    assert table.count("\n") == 3
    assert not any(others)
    (findings, warned), *others = found["differs_warnings"]
    (message,) = [message for code, message in findings if code == "batch-statistics"]
    assert message == (
        "BatchNorm (2) takes its statistics over each process's share of a batch, and moves "
        "them with each. Freeze it with .eval(), use GroupNorm, or train in one process."
    )
    assert any(message in one for one in warned)
    for other in others:
        assert other == (findings, [])


def test_no_metric_waits_for_other_processes_by_itself(found):
    assert set(found["differs_waiting"]) == {0}


@recent_torch
def test_a_sharded_model_has_no_finding(found):
    for codes in found["differs_findings_of_a_sharded_model"]:
        assert codes == []


def test_a_step_that_overflows_in_one_process_is_skipped_in_all(found):
    (weights, scale), *others = found["differs_bits"]
    assert scale < 65536
    assert weights.isfinite().all()
    for other, other_scale in others:
        assert torch.equal(other, weights)
        assert other_scale == scale


def test_each_process_has_a_dropout_of_its_own(found):
    masks = [tuple(mask.flatten().tolist()) for mask in found["differs_dropout"]]
    assert len(set(masks)) == len(masks)


@pytest.mark.parametrize("name", ["differs_augmentation", "differs_augmentation_in_workers"])
def test_each_process_draws_numbers_of_its_own(name, found):
    for by_torch_python_or_numpy in range(3):
        columns = [drawn[:, by_torch_python_or_numpy] for drawn in found[name]]
        together = torch.cat(columns)
        assert len(together) == 12
        assert len(together.unique()) == 12


def test_a_process_opens_its_own_streams_and_no_other(found):
    opened = found["differs_opened_streams"]
    assert [number for each in opened for number in each] == list(range(len(LENGTHS)))
    assert all(opened)


def test_the_page_has_the_words_of_all_that_is_refused():
    assert [words for words in REFUSED.values() if words not in PAGE] == []


@pytest.mark.parametrize("name", ["SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE"])
def test_processes_that_know_nothing_of_each_other_are_refused(name, monkeypatch):
    monkeypatch.setenv(name, "4")
    with pytest.raises(RuntimeError, match=rf"must be set, got {name}=4 and no RANK: each process"):
        tc.processes()
    monkeypatch.setenv("RANK", "0")
    assert tc.processes().size == 1  # of a launcher that has counted itself to 1


def test_a_rank_without_an_address_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(RuntimeError, match=r"WORLD_SIZE=2 must come .* got no MASTER_ADDR, MAST"):
        tc.processes()


def test_streams_may_give_arrays():
    streams = tc.Streams(lambda k: [(np.full((2, 3), k), np.full(2, k))], n=2)
    ((inputs, targets),) = streams
    assert inputs.shape == (4, 3)
    assert targets.tolist() == [0, 0, 1, 1]
