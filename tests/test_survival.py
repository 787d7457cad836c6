"""Runs that are stopped anywhere and go on to the bits of the run that never was."""

import contextlib
import functools
import gc
import importlib.util
import os
import random
import shutil
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import in_a_thread_that_sees_a_small_disk
from torch import nn
from torch.optim import SGD, AdamW, lr_scheduler
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    RandomSampler,
    Sampler,
    TensorDataset,
    WeightedRandomSampler,
)

import torchcls as tc
from torchcls.survival.files import load_checkpoint, save_checkpoint
from torchcls.survival.folder import Folder

EPOCHS = 3
BATCHES = 6  # in an epoch: 5 of 16 and one of 8


def data(n=88, seed=0):
    inputs = torch.randn(n, 4, generator=torch.Generator().manual_seed(seed))
    return inputs, inputs[:, :3].argmax(1)


class Noisy(Dataset):
    """Draws from every global generator that people use."""

    def __init__(self):
        self.inputs, self.targets = data()

    def __len__(self):
        return len(self.inputs)

    def __getitem__(self, i):
        noise = torch.randn(4) + random.random() + float(np.random.randn())
        return self.inputs[i] + 0.1 * noise, self.targets[i]


class Lazy(Sampler):
    """Draws each index from the global generator when it is asked for it."""

    def __len__(self):
        return 88

    def __iter__(self):
        for _ in range(88):
            yield int(torch.randint(88, ()))


def noise(inputs, targets):
    return inputs + 0.1 * torch.randn_like(inputs), targets


def of_tensors(**keywords):
    return DataLoader(TensorDataset(*data()), batch_size=16, **keywords)


def numpy_mixup(inputs, targets):
    share = float(np.random.beta(1, 1))
    return share * inputs + (1 - share) * inputs.flip(0), targets


SOURCES = {
    "a list": lambda: [(x, y) for x, y in tc.Batches(*data(), batch_size=16)],
    "Batches": lambda: tc.Batches(*data(), batch_size=16, shuffle=True, seed=3),
    "Batches that draw": lambda: tc.Batches(*data(), batch_size=16, shuffle=True, transform=noise),
    "Batches with numpy's": lambda: tc.Batches(*data(), batch_size=16, transform=numpy_mixup),
    "tensors": lambda: of_tensors(shuffle=True),
    "a generator": lambda: of_tensors(shuffle=True, generator=torch.Generator().manual_seed(9)),
    "replacement": lambda: of_tensors(sampler=RandomSampler(range(88), replacement=True)),
    "weights": lambda: of_tensors(sampler=WeightedRandomSampler(torch.rand(88).tolist(), 88)),
    "a lazy sampler": lambda: of_tensors(sampler=Lazy()),
    "a lazy batch sampler": lambda: DataLoader(
        TensorDataset(*data()), batch_sampler=BatchSampler(Lazy(), 16, drop_last=False)
    ),
    "samples that draw": lambda: DataLoader(Noisy(), batch_size=16, shuffle=True),
    "workers": lambda: DataLoader(Noisy(), batch_size=16, shuffle=True, num_workers=1),
    "a lazy sampler with workers": lambda: of_tensors(sampler=Lazy(), num_workers=1),
}


def stateful(**keywords):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchdata calls what newer torch has deprecated
        from torchdata.stateful_dataloader import StatefulDataLoader

        return StatefulDataLoader(Noisy(), batch_size=16, shuffle=True, **keywords)


if importlib.util.find_spec("torchdata") is not None:
    SOURCES["a StatefulDataLoader"] = stateful


class Stop:
    """A cross-entropy that is interrupted at one of its calls, training and validation counted."""

    def __init__(self, at=None, error=KeyboardInterrupt):
        self.left, self.error = at, error

    def __call__(self, outputs, targets):
        if self.left is not None:
            self.left -= 1
            if self.left == 0:
                raise self.error
        return nn.functional.cross_entropy(outputs, targets)


def network(dropout=0.3):
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, 3)
    )


class Result:
    """All that must be the same."""

    def __init__(self, run, model):
        self.run, self.model = run, model
        self.weights = {name: value.clone() for name, value in model.state_dict().items()}
        self.optimizer = run.optimizer.state_dict()
        self.records = [{**record, "time": None} for record in run.history]
        self.findings = list(run.history.findings)
        self.micro_batch = run.history.micro_batch


def begin(
    source="Batches", at=None, *, folder=None, resume=False, error=KeyboardInterrupt, **keywords
):
    """A run as a new process would have it, where nothing of an earlier one is left."""
    for seed in (torch.manual_seed, np.random.seed, random.seed):
        seed(0)
    model = network()
    optimizer = keywords.pop("optimizer", lambda model: None)(model)
    schedule = keywords.pop("schedule", lambda optimizer: tc.one_cycle())(optimizer)
    train = SOURCES[source]() if isinstance(source, str) else source
    run = tc.epochs(
        model,
        train,
        tc.Batches(*data(40, seed=1), batch_size=20),
        **{
            # One call comes first: validation is looked at before the first step.
            "loss_fn": Stop(None if at is None else 1 + at, error),
            "epochs": EPOCHS,
            "metrics": [tc.accuracy],
            "optimizer": optimizer,
            "schedule": schedule,
            "micro_batch": 6,
            "ignore": ["batch-statistics"],
            "checkpoint": folder,
            "resume": resume,
            "progress": False,
            "device": "cpu",
            **keywords,
        },
    )
    if resume:  # whoever resumes may have drawn whatever he liked
        torch.rand(3), np.random.rand(), random.random()
    return run, model


def finish(run, model):
    for _ in run:
        pass
    return Result(run, model)


def reference(source="Batches", **keywords):
    return finish(*begin(source, **keywords))


def stop_and_resume(folder, source="Batches", at=1, **keywords):
    run, model = begin(source, at, folder=folder, **keywords)
    with pytest.raises(keywords.get("error", KeyboardInterrupt)):
        finish(run, model)
    return finish(*begin(source, folder=folder, resume=True, **keywords))


def assert_same(found, expected):
    assert found.records == expected.records
    for name, value in expected.weights.items():
        assert torch.equal(found.weights[name], value), name
    for number, entry in expected.optimizer["state"].items():
        for name, value in entry.items():
            assert torch.equal(found.optimizer["state"][number][name], value), name
    assert found.optimizer["param_groups"] == expected.optimizer["param_groups"]
    assert found.findings == expected.findings
    assert found.micro_batch == expected.micro_batch


# --- the same bits --------------------------------------------------------------------------------

# Calls of the loss: 4 for 16 samples (3 pieces, and the whole for comparison) and 3 for the last 8,
# so 23 in an epoch, and 2 in validation. In the first piece; between pieces; at a later batch; in
# the last; in validation; in the first piece of an epoch; in the middle of later epochs.
MOMENTS = (1, 2, 10, 22, 24, 25, 26, 40, 60)
MIDDLE = 40  # after three batches of epoch 1


def more(*moments):
    return pytest.param(moments, marks=pytest.mark.system)


@pytest.mark.parametrize("moments", [(24, MIDDLE), more(*MOMENTS)], ids=["two", "all"])
@pytest.mark.parametrize("source", SOURCES)
def test_stopped_anywhere_it_ends_with_the_bits_of_the_run_that_never_was(
    tmp_path, source, moments
):
    expected = reference(source)
    for at in moments:
        assert_same(stop_and_resume(tmp_path / f"{at}", source, at), expected)


@pytest.mark.parametrize("moments", [(10, MIDDLE), more(24)], ids=["two", "another"])
@pytest.mark.parametrize("source", SOURCES)
def test_it_goes_on_from_the_last_saved_step(tmp_path, source, moments):
    expected = reference(source)
    # A sampler that draws between the steps gives others when the steps are passed over.
    for at in moments:
        is_said = "lazy" in source and at != 24  # after the last step there is nothing to repeat
        said = pytest.warns(UserWarning, match="from the start of epoch")
        with said if is_said else contextlib.nullcontext():
            found = stop_and_resume(tmp_path / f"{at}", source, at, save_every=1e-9)
        assert_same(found, expected)


@pytest.mark.system
def test_workers_of_a_stateful_loader_are_started_again(tmp_path, monkeypatch):
    pytest.importorskip("torchdata")
    monkeypatch.setitem(SOURCES, "stateful workers", lambda: stateful(num_workers=1))
    expected = reference("stateful workers")
    for at in (10, MIDDLE):
        folder = tmp_path / f"{at}"
        assert_same(stop_and_resume(folder, "stateful workers", at, save_every=1e-9), expected)


def test_an_interrupt_in_validation_loses_no_step(tmp_path):
    run, model = begin(at=24, folder=tmp_path)  # the first batch of the first validation
    with pytest.raises(KeyboardInterrupt):
        finish(run, model)
    assert not run.is_broken
    assert load_checkpoint(tmp_path / "last.pt")["at"]["step"] == BATCHES
    assert_same(finish(*begin(folder=tmp_path, resume=True)), reference())


def test_a_transform_that_draws_by_itself_is_not_taken_up_in_silence(tmp_path):
    run, model = begin(hidden_transform(), MIDDLE, folder=tmp_path, **OFTEN)
    with own_state(), pytest.raises(KeyboardInterrupt):
        finish(run, model)
    words = "from the start of epoch 1|train may give other batches"
    with pytest.warns(UserWarning, match=words) as said:
        finish(*begin(hidden_transform(), folder=tmp_path, resume=True, **OFTEN))
    assert len(said) == 2


def test_within_its_first_epoch_a_transform_that_draws_by_itself_is_exact(tmp_path):
    one_epoch = {"epochs": 1, "schedule": lambda o: None, **OFTEN}
    expected = reference(hidden_transform(), **one_epoch)
    run, model = begin(hidden_transform(), 10, folder=tmp_path, **one_epoch)
    with pytest.raises(KeyboardInterrupt):
        finish(run, model)
    with contextlib.suppress(UserWarning), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is found out when the epoch ends
        found = finish(*begin(hidden_transform(), folder=tmp_path, resume=True, **one_epoch))
    assert_same(found, expected)


@pytest.mark.parametrize("precision", ["float16", "float32"])
def test_an_interrupt_inside_the_optimizers_step_is_gone_back_from(tmp_path, precision):
    steps = []  # beside the optimizer, whose own counters go back with it

    class Torn(SGD):
        def step(self, closure=None):
            steps.append(1)
            if len(steps) == 9:
                raise KeyboardInterrupt
            super().step(closure)

    keywords = {"precision": precision, "micro_batch": None, "schedule": lambda o: None}
    expected = reference(optimizer=lambda m: SGD(m.parameters(), lr=0.1), **keywords)
    run, model = begin(
        folder=tmp_path, optimizer=lambda m: Torn(m.parameters(), lr=0.1), **keywords
    )
    with pytest.raises(KeyboardInterrupt):
        finish(run, model)
    found = finish(run, model)
    assert found.records == expected.records
    for name, value in expected.weights.items():
        assert torch.equal(found.weights[name], value), name


def test_an_epoch_that_was_found_wrong_at_its_end_is_not_passed_over_when_resumed(tmp_path):
    ignored = [(x, torch.full_like(y, -100)) for x, y in SOURCES["a list"]()]
    for resume in (False, True):
        run, model = begin(
            ignored,
            folder=tmp_path,
            resume=resume,
            loss_fn=nn.CrossEntropyLoss(),
            save_every=1e-9,
        )
        with pytest.raises(tc.ContractError, match="No target of epoch 0"):
            finish(run, model)


def test_a_run_begun_without_checks_goes_on_with_them(tmp_path):
    run, _ = begin(folder=tmp_path, check="off")
    next(run)
    assert_same(finish(*begin(folder=tmp_path, resume=True)), reference())


def test_best_weights_that_are_damaged_do_not_stand_in_the_way(tmp_path):
    run, _ = begin(folder=tmp_path)
    next(run)
    (tmp_path / "best.pt").write_bytes(b"")
    assert_same(finish(*begin(folder=tmp_path, resume=True)), reference())


@pytest.mark.parametrize("source", [name for name in SOURCES if "workers" not in name])
def test_keeping_a_run_changes_no_bit_of_it(tmp_path, source):
    assert_same(reference(source, folder=tmp_path, save_every=1e-9), reference(source))


def test_stopped_again_and_again_it_comes_to_the_same_end(tmp_path):
    expected = reference("samples that draw")
    for time in range(40):
        again = {"folder": tmp_path, "resume": time > 0, "save_every": 1e-9}
        run, model = begin("samples that draw", 8, **again)
        try:
            found = finish(run, model)
        except KeyboardInterrupt:
            continue
        break
    assert_same(found, expected)


def test_after_an_interrupt_the_same_run_goes_on_where_it_stopped(tmp_path):
    for source in ("Batches", "samples that draw"):
        for at in (2, 10, 24, MIDDLE):
            run, model = begin(source, at, folder=tmp_path / f"{source}{at}")
            with pytest.raises(KeyboardInterrupt):
                finish(run, model)
            torch.rand(5)
            assert_same(finish(run, model), reference(source))


@pytest.mark.parametrize("source", ["Batches", "samples that draw"])
@pytest.mark.parametrize("leave", ["break", "raise"])
def test_leaving_the_loop_over_the_steps_writes_where_it_stands(tmp_path, source, leave):
    def one(run):
        for at in run.steps():
            if (at.epoch, at.step) == (1, 3):
                if leave == "raise":
                    raise KeyError
                break

    run, _ = begin(source, folder=tmp_path)
    with contextlib.suppress(KeyError):
        one(run)
    state = load_checkpoint(tmp_path / "last.pt")
    assert (state["at"]["epoch"], state["at"]["step"]) == (1, 3)
    assert_same(finish(*begin(source, folder=tmp_path, resume=True)), reference(source))


def test_leaving_it_at_a_rest_that_is_kept_writes_nothing(tmp_path):
    run, _ = begin(folder=tmp_path)
    next(run)
    written = (tmp_path / "last.pt").stat().st_mtime_ns
    for at in run.steps():
        assert at.step == 1
        break
    assert (tmp_path / "last.pt").stat().st_mtime_ns > written
    run, _ = begin(folder=tmp_path, resume=True)
    written = (tmp_path / "last.pt").stat().st_mtime_ns
    run.steps().close()
    assert (tmp_path / "last.pt").stat().st_mtime_ns == written


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (nn.ReLU, nn.GELU),
        (lambda: nn.Dropout(0.3), lambda: nn.Dropout(0.5)),
        (lambda: nn.BatchNorm1d(8, momentum=0.1), lambda: nn.BatchNorm1d(8, momentum=0.5)),
    ],
)
def test_another_model_with_the_same_parameters_is_named(tmp_path, one, other):
    def run(layer, **keywords):
        model = nn.Sequential(nn.Linear(4, 8), layer(), nn.Linear(8, 3))
        keywords = {"loss_fn": nn.CrossEntropyLoss(), "progress": False, **keywords}
        return tc.epochs(model, SOURCES["Batches"](), checkpoint=tmp_path, **keywords)

    next(run(one))
    with pytest.raises(ValueError, match=r"1(\.momentum|) of the model must be .* got "):
        run(other, resume=True)


class Focal(nn.Module):
    def __init__(self, gamma):
        super().__init__()
        self.gamma = gamma

    def forward(self, outputs, targets):
        losses = nn.functional.cross_entropy(outputs, targets, reduction="none")
        return ((1 - (-losses).exp()) ** self.gamma * losses).mean()


def scaled(outputs, targets, scale):
    return scale * nn.functional.cross_entropy(outputs, targets)


@pytest.mark.parametrize(
    ("one", "other", "words"),
    [
        ({"loss_fn": Focal(2)}, {"loss_fn": Focal(3)}, "gamma of the loss must be 2 .* got 3"),
        (
            {"loss_fn": functools.partial(scaled, scale=2)},
            {"loss_fn": functools.partial(scaled, scale=3)},
            "scale of the loss must be 2 .* got 3",
        ),
        (
            {"metrics": {"top": functools.partial(tc.top_k_accuracy, k=1)}},
            {"metrics": {"top": functools.partial(tc.top_k_accuracy, k=2)}},
            "k of the metric top must be 1 .* got 2",
        ),
        (
            {"schedule": lambda o: lambda p: 1 - p},
            {"schedule": lambda o: lambda p: 1 - p / 2},
            r"value at 0\.1 of schedule must be 0\.9 .* got 0\.95",
        ),
    ],
)
def test_other_options_behind_the_same_names_are_named(tmp_path, one, other, words):
    run, _ = begin(folder=tmp_path, **{"loss_fn": nn.CrossEntropyLoss(), **one})
    next(run)
    with pytest.raises(ValueError, match=words):
        begin(folder=tmp_path, resume=True, **{"loss_fn": nn.CrossEntropyLoss(), **other})


def test_a_second_interrupt_while_it_goes_back_leaves_a_run_that_goes_back_later(
    tmp_path, monkeypatch
):
    run, model = begin(at=MIDDLE, folder=tmp_path)
    newest = Folder.newest

    def interrupted(folder):
        monkeypatch.setattr(Folder, "newest", newest)
        raise KeyboardInterrupt

    monkeypatch.setattr(Folder, "newest", interrupted)
    with pytest.raises(KeyboardInterrupt):
        finish(run, model)
    assert run.is_broken
    assert_same(finish(run, model), reference())


def test_what_only_the_optimizer_holds_is_kept(tmp_path):
    def run(**keywords):
        torch.manual_seed(0)
        model, prompt = nn.Linear(4, 3), torch.zeros(3, requires_grad=True)
        optimizer = SGD([*model.parameters(), prompt], lr=0.1, momentum=0.9)

        def loss_fn(outputs, targets):
            return nn.functional.cross_entropy(outputs + prompt, targets)

        run = tc.epochs(
            model,
            SOURCES["Batches"](),
            loss_fn=loss_fn,
            optimizer=optimizer,
            epochs=3,
            progress=False,
            **keywords,
        )
        return run, model, prompt

    begun, model, prompt = run()
    expected = finish(begun, model)
    begun, *_ = run(checkpoint=tmp_path)
    next(begun)
    again, model, found = run(checkpoint=tmp_path, resume=True)
    assert_same(finish(again, model), expected)
    assert torch.equal(found, prompt)


class Bank(nn.Module):
    """Buffers that grow, in and out of the state_dict, and one that comes with the first step."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.register_buffer("kept", torch.zeros(0, 3))
        self.register_buffer("left_out", torch.zeros(0, 3), persistent=False)
        self.register_buffer("late", None)

    def forward(self, x):
        outputs = self.linear(x)
        if self.training:
            self.kept = torch.cat([self.kept, outputs.detach()])[-50:]
            self.left_out = torch.cat([self.left_out, outputs.detach()])[-60:]
            self.late = outputs.detach().mean(0)
        return outputs + self.kept.mean(0) + self.left_out.mean(0) + self.late


def test_buffers_that_grow_are_kept(tmp_path):
    def run(**keywords):
        torch.manual_seed(0)
        model = Bank()
        keywords = {"loss_fn": nn.CrossEntropyLoss(), "epochs": 3, "progress": False, **keywords}
        return tc.epochs(model, SOURCES["Batches"](), **keywords), model

    begun, model = run()
    finish(begun, model)
    expected = Result(begun, model)
    begun, _ = run(checkpoint=tmp_path)
    next(begun)
    assert_same(finish(*run(checkpoint=tmp_path, resume=True)), expected)


def test_a_compiled_model_is_kept_under_the_keys_of_the_plain_one(tmp_path):
    def run(model, **keywords):
        keywords = {"loss_fn": nn.CrossEntropyLoss(), "progress": False, **keywords}
        return tc.epochs(model, SOURCES["Batches"](), checkpoint=tmp_path, **keywords)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        list(run(torch.compile(nn.Sequential(nn.Linear(4, 3)), backend="eager"), epochs=1))
    weights = load_checkpoint(tmp_path / "last.pt")["model"]
    assert list(weights) == ["0.weight", "0.bias"]
    plain = nn.Sequential(nn.Linear(4, 3))
    assert len(run(plain, epochs=1, resume=True).history) == 1
    assert torch.equal(plain[0].weight, weights["0.weight"])
    with pytest.warns(UserWarning, match="a compiled model may get other kernels in another"):
        run(torch.compile(plain, backend="eager"), epochs=1, resume=True)


def test_an_error_is_survived_like_an_interrupt(tmp_path):
    found = stop_and_resume(tmp_path, at=MIDDLE, error=OSError)
    assert_same(found, reference())


@pytest.mark.parametrize(
    ("optimizer", "schedule"),
    [
        (lambda m: SGD(m.parameters(), lr=0.1, momentum=0.9, nesterov=True), lambda o: None),
        (lambda m: AdamW(m.parameters(), lr=0.01), lambda o: lr_scheduler.StepLR(o, 1, 0.5)),
        (
            lambda m: SGD(m.parameters(), lr=0.1, momentum=0.9),
            lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=EPOCHS * BATCHES),
        ),
        (
            lambda m: SGD(m.parameters(), lr=0.1),
            lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0, threshold=1.0),
        ),
        (lambda m: None, lambda o: lambda progress: 1 - progress),
        (
            lambda m: SGD(m.parameters(), lr=0.1),
            lambda o: lr_scheduler.SequentialLR(
                o, [lr_scheduler.ConstantLR(o), lr_scheduler.ExponentialLR(o, 0.5)], [1]
            ),
        ),
    ],
)
def test_every_optimizer_and_schedule_goes_on(tmp_path, optimizer, schedule):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # SequentialLR steps its schedulers by number
        expected = reference(optimizer=optimizer, schedule=schedule)
        for at in (10, 25, MIDDLE):
            found = stop_and_resume(
                tmp_path / f"{at}", at=at, optimizer=optimizer, schedule=schedule
            )
            assert_same(found, expected)


@pytest.mark.parametrize("source", ["Batches", "samples that draw"])
@pytest.mark.parametrize(
    "schedule",
    [lambda o: tc.one_cycle(), lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=18)],
)
def test_killed_between_two_steps_it_goes_on_from_the_state_that_was_written_there(
    tmp_path, source, schedule
):
    class Copying(Stop):
        """What a killed process would leave: the folder as it stands, with no time to tidy up."""

        def __call__(self, outputs, targets):
            if self.left == 1:
                shutil.copytree(tmp_path / "run", tmp_path / "left")
                self.left = None
            return super().__call__(outputs, targets)

    Copying.__name__ = "Stop"
    keywords = {
        "schedule": schedule,
        "optimizer": lambda m: SGD(m.parameters(), lr=0.1, momentum=0.9),
    }
    run, model = begin(
        source, folder=tmp_path / "run", save_every=1e-9, loss_fn=Copying(MIDDLE), **keywords
    )
    expected = finish(run, model)
    state = load_checkpoint(tmp_path / "left" / "last.pt")
    assert (state["at"]["epoch"], state["at"]["step"]) == (1, 3)
    found = finish(*begin(source, folder=tmp_path / "left", resume=True, **keywords))
    assert_same(found, expected)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_goes_on_with_its_scale(tmp_path, precision):
    keywords = {"precision": precision, "micro_batch": None}
    expected = reference(**keywords)
    assert_same(stop_and_resume(tmp_path, at=11, **keywords), expected)


def test_auto_pieces_are_those_of_the_run(tmp_path, monkeypatch):
    inputs = torch.rand(640, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    made = tc.Batches(inputs, (inputs.sum((1, 2, 3)) > 128).long(), batch_size=320, shuffle=True)

    def run(**keywords):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(1, 8, 5), nn.ReLU(), nn.Flatten(), nn.Linear(1152, 2))
        made.epoch = 0
        run = tc.epochs(
            model, made, loss_fn=nn.CrossEntropyLoss(), epochs=3, progress=False, **keywords
        )
        return run, model

    monkeypatch.setattr("torchcls.speed.pieces.cache_bytes", lambda: 2**20)
    expected = finish(*run())
    assert expected.micro_batch is not None
    begun, _ = run(checkpoint=tmp_path)
    next(begun)
    monkeypatch.setattr("torchcls.speed.pieces.cache_bytes", lambda: 2**22)  # another machine
    found = finish(*run(checkpoint=tmp_path, resume=True))
    assert_same(found, expected)
    assert finish(*run()).micro_batch != expected.micro_batch


def test_losses_with_weights_and_buffers_out_of_the_state_dict_go_on(tmp_path):
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 3)
            self.register_buffer("seen", torch.zeros(()), persistent=False)

        def forward(self, x):
            if self.training:
                self.seen += len(x)
            return self.linear(x) * (1 + self.seen / 1000)

    class Margin(nn.Module):
        def __init__(self, at=None):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))
            self.stop = Stop(at)

        def forward(self, outputs, targets):
            return self.stop(outputs * self.scale, targets)

    def run(at=None, **keywords):
        torch.manual_seed(0)
        model, loss_fn = Counting(), Margin(at)
        both = [*model.parameters(), *loss_fn.parameters()]
        run = tc.epochs(
            model,
            SOURCES["Batches"](),
            loss_fn=loss_fn,
            optimizer=SGD(both, lr=0.1, momentum=0.9),
            progress=False,
            epochs=3,
            **keywords,
        )
        return run, model, loss_fn

    run_, model, loss_fn = run()
    expected = finish(run_, model)
    begun, *_ = run(9, checkpoint=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        list(begun)
    again, model_, loss_ = run(checkpoint=tmp_path, resume=True)
    assert_same(finish(again, model_), expected)
    assert torch.equal(loss_.scale, loss_fn.scale)
    assert torch.equal(model_.seen, model.seen)


def test_a_state_of_another_dtype_than_its_parameter_keeps_its_bits(tmp_path):
    class Wide(SGD):
        """Keeps its momentum in float64."""

        def step(self, closure=None):
            with torch.no_grad():
                for p in self.param_groups[0]["params"]:
                    state = self.state[p]
                    state["m"] = 0.9 * state.get("m", torch.zeros_like(p).double()) + p.grad
                    p -= (0.1 * state["m"]).float()

    def wide(model):
        return Wide(model.parameters(), lr=0.1)

    expected = reference(optimizer=wide)
    found = stop_and_resume(tmp_path, at=MIDDLE, optimizer=wide)
    assert found.optimizer["state"][0]["m"].dtype == torch.float64
    assert_same(found, expected)


def test_more_epochs_may_follow_where_no_schedule_depends_on_their_number(tmp_path):
    plain = {"schedule": lambda o: None}
    expected = reference(epochs=5, **plain)
    reference(epochs=2, folder=tmp_path, **plain)
    assert_same(finish(*begin(epochs=5, folder=tmp_path, resume=True, **plain)), expected)
    reference(folder=tmp_path / "other")
    with pytest.raises(ValueError, match="epochs must be 3 as in the run that is resumed, got 4"):
        begin(epochs=4, folder=tmp_path / "other", resume=True)


def test_a_note_of_the_first_epoch_is_not_lost(tmp_path):
    order = torch.arange(88)
    batches = [(data()[0][i], i // 30) for i in order.split(16)]
    expected = reference(batches)
    assert [finding.code for finding in expected.findings] == ["sorted-targets"]
    assert_same(stop_and_resume(tmp_path, batches, 10), expected)


def test_a_doubt_is_not_said_again_in_other_numbers(tmp_path):
    def pixels(at=None, **keywords):
        calls = []

        def interrupted(inputs, targets):
            calls.append(1)
            if len(calls) == at:
                raise KeyboardInterrupt
            return inputs, targets

        torch.manual_seed(0)
        inputs = torch.randint(256, (64, 1, 8, 8)).float()
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
        train = tc.Batches(
            inputs, torch.randint(3, (64,)), batch_size=16, shuffle=True, transform=interrupted
        )
        keywords = {"loss_fn": nn.CrossEntropyLoss(), "epochs": 2, "progress": False, **keywords}
        return tc.epochs(model, train, **keywords), model

    with pytest.warns(UserWarning, match="unscaled-inputs"):
        expected = finish(*pixels())
    run, model = pixels(6, checkpoint=tmp_path)
    with pytest.warns(UserWarning, match="unscaled-inputs"), pytest.raises(KeyboardInterrupt):
        finish(run, model)
    assert_same(finish(*pixels(checkpoint=tmp_path, resume=True)), expected)


# --- what cannot be replayed ----------------------------------------------------------------------


class Moving:
    """An iterable with a state of its own: every pass begins where the last one ended."""

    def __init__(self):
        self.passes = 0

    def __iter__(self):
        self.passes += 1
        inputs, targets = data(seed=self.passes)
        yield from zip(inputs.split(16), targets.split(16), strict=True)


OFTEN = {"save_every": 1e-9}  # a state after every step


def own_state():
    """That a source was found to keep a state of its own, at the end of epoch 0."""
    return pytest.warns(UserWarning, match="train keeps a state of its own, so a resumed run may")


def test_an_iterable_with_a_state_of_its_own_begins_its_epoch_again_and_says_so(tmp_path):
    keywords = {"folder": tmp_path, "schedule": lambda o: None, **OFTEN}
    run, model = begin(Moving(), MIDDLE, **keywords)
    with own_state(), pytest.raises(KeyboardInterrupt):
        finish(run, model)
    with pytest.warns(UserWarning, match="run") as said:
        found = finish(*begin(Moving(), resume=True, **keywords))
    texts = [str(warning.message) for warning in said]
    assert "start of epoch 1 (counted from 0) and not from its batch 3" in texts[0]
    assert "handed out another first batch when it was started again" in texts[0]
    assert "train may give other batches than in a run that was not stopped" in texts[1]
    assert len(found.records) == EPOCHS


def test_between_epochs_a_state_of_its_own_is_seen_too(tmp_path):
    run, _ = begin(Moving(), folder=tmp_path, schedule=lambda o: None)
    with own_state():
        next(run), next(run)
    with pytest.warns(UserWarning, match=r"train may give other batches .* another first batch"):
        finish(*begin(Moving(), folder=tmp_path, resume=True, schedule=lambda o: None))


class Hidden:
    """A generator where no search of attributes finds it."""

    __slots__ = ("rng",)

    def __init__(self):
        self.rng = np.random.default_rng(4)


def hidden_loader():
    hidden = Hidden()

    class Own(Dataset):
        def __len__(self):
            return 88

        def __getitem__(self, i):
            return data()[0][i] + float(hidden.rng.random()), data()[1][i]

    return DataLoader(Own(), 16, shuffle=True)


def hidden_transform():
    hidden = Hidden()

    def transform(inputs, targets):
        return inputs + float(hidden.rng.random()), targets

    return tc.Batches(*data(), batch_size=16, shuffle=True, transform=transform)


@pytest.mark.parametrize("source", [hidden_loader, hidden_transform])
def test_a_generator_of_its_own_is_found_wherever_it_hides(tmp_path, source):
    run, _ = begin(source(), folder=tmp_path)
    with own_state():
        next(run)
    with pytest.warns(UserWarning, match="train may give other batches"):
        finish(*begin(source(), folder=tmp_path, resume=True))


def test_persistent_workers_begin_their_epoch_again_and_say_so(tmp_path):
    def loader():
        return DataLoader(
            TensorDataset(*data()), 16, shuffle=True, num_workers=1, persistent_workers=True
        )

    run, model = begin(loader(), MIDDLE, folder=tmp_path, **OFTEN)
    with pytest.raises(KeyboardInterrupt):
        finish(run, model)
    with pytest.warns(UserWarning, match="persistent_workers=False") as said:
        found = finish(*begin(loader(), folder=tmp_path, resume=True, **OFTEN))
    assert "start of epoch 1" in str(said[0].message)
    assert len(found.records) == EPOCHS


def test_workers_that_hand_out_batches_as_they_come_are_named(tmp_path):
    def loader():
        return DataLoader(TensorDataset(*data()), 16, num_workers=1, in_order=False)

    run, _ = begin(loader(), folder=tmp_path)
    next(run)
    with pytest.warns(UserWarning, match=r"train may give other batches .*in_order=False"):
        finish(*begin(loader(), folder=tmp_path, resume=True))


def test_other_targets_are_noticed_in_the_middle_of_an_epoch(tmp_path):
    inputs, targets = data()
    batches = list(zip(inputs.split(16), targets.split(16), strict=True))
    run, model = begin(batches, MIDDLE, folder=tmp_path, **OFTEN)
    with pytest.raises(KeyboardInterrupt):
        finish(run, model)
    batches[1] = (batches[1][0], batches[1][1].flip(0))
    with pytest.warns(UserWarning, match="it handed out other batches when it was started again"):
        finish(*begin(batches, folder=tmp_path, resume=True, **OFTEN))


def test_a_source_that_ends_sooner_is_noticed(tmp_path):
    inputs, targets = data()
    batches = list(zip(inputs.split(16), targets.split(16), strict=True))

    class Shorter:
        def __init__(self, length):
            self.length = length

        def __iter__(self):
            return iter(batches[: self.length])

        def __len__(self):
            return 6

    run, model = begin(Shorter(6), MIDDLE, folder=tmp_path, **OFTEN)
    with pytest.raises(KeyboardInterrupt):
        finish(run, model)
    with pytest.warns(UserWarning, match="it ended after 2 batches when it was started again"):
        finish(*begin(Shorter(2), folder=tmp_path, resume=True, **OFTEN))


class Counting:
    """Batches whose content depends on how often they were gone through."""

    def __init__(self):
        self.passes = 0

    def __iter__(self):
        self.passes += 1
        yield data(20, seed=self.passes)

    def __len__(self):
        return 1


def test_an_interrupt_in_validation_hides_nothing(tmp_path):
    def run(at=None, **keywords):
        torch.manual_seed(0)
        model = nn.Linear(4, 3)
        keywords = {"loss_fn": Stop(at), "epochs": 3, "progress": False, **keywords}
        return tc.epochs(model, Counting(), Counting(), **keywords), model

    begun, model = run(4, checkpoint=tmp_path)  # training, validation, training, validation
    with own_state(), pytest.raises(KeyboardInterrupt):
        finish(begun, model)
    with pytest.warns(UserWarning, match="train may give other batches"):
        finish(*run(checkpoint=tmp_path, resume=True))


def test_forward_that_moves_buffers_or_parameters_by_itself_is_undone(tmp_path):
    class Teaching(nn.Module):
        def __init__(self, moves_weights):
            super().__init__()
            self.student, self.teacher = nn.Linear(4, 3), nn.Linear(4, 3)
            self.teacher.requires_grad_(False)
            self.register_buffer("seen", torch.zeros(()))
            self.moves_weights = moves_weights

        def forward(self, x):
            if self.training:
                self.seen = self.seen + 1
                if self.moves_weights:
                    with torch.no_grad():
                        self.teacher.weight.lerp_(self.student.weight, 0.1)
            return self.student(x) + self.teacher(x) * (1 + self.seen / 100)

    def run(moves_weights, at=None, **keywords):
        torch.manual_seed(0)
        model = Teaching(moves_weights)
        keywords = {"loss_fn": Stop(at), "epochs": 3, "progress": False, **keywords}
        return tc.epochs(model, SOURCES["Batches"](), **keywords), model

    expected = finish(*run(False))
    begun, model = run(False, 9, checkpoint=tmp_path / "a")
    with pytest.raises(KeyboardInterrupt):
        finish(begun, model)
    assert_same(finish(*run(False, checkpoint=tmp_path / "a", resume=True)), expected)

    expected = finish(*run(True))
    begun, model = run(True, 9, checkpoint=tmp_path / "b")
    with pytest.raises(KeyboardInterrupt):
        finish(begun, model)
    assert_same(finish(*run(True, checkpoint=tmp_path / "b", resume=True)), expected)


# --- stopping on purpose --------------------------------------------------------------------------


def test_a_run_that_was_stopped_is_not_trained_further(tmp_path):
    run, model = begin(folder=tmp_path)
    for record in run:
        if record.epoch == 1:
            run.stop()
    ended = Result(run, model)
    assert len(ended.records) == 2
    again, model = begin(folder=tmp_path, resume=True)
    assert_same(finish(again, model), ended)


def test_a_run_that_is_stopped_inside_an_epoch_comes_to_the_end_of_it(tmp_path):
    class Stopping(Stop):
        run = None

        def __call__(self, outputs, targets):
            if self.left == 3:
                self.run.stop()
            return super().__call__(outputs, targets)

    loss_fn = Stopping(14)
    run, model = begin(folder=tmp_path, loss_fn=loss_fn, **OFTEN)
    loss_fn.run = run
    with pytest.raises(KeyboardInterrupt):
        finish(run, model)
    found = finish(*begin(folder=tmp_path, loss_fn=Stopping(), resume=True))
    assert found.records == reference(epochs=3).records[:1]


def test_a_run_that_came_to_its_end_gives_its_history_and_touches_no_generator(tmp_path):
    expected = reference(folder=tmp_path)
    run, model = begin(folder=tmp_path, resume=True)
    state = torch.get_rng_state()
    assert_same(finish(run, model), expected)
    assert torch.equal(torch.get_rng_state(), state)


def test_breaking_out_leaves_nothing_behind_and_another_process_goes_on(tmp_path):
    expected = reference()
    gc.collect()
    before = threading.active_count(), len(os.listdir("/proc/self/fd"))
    run, _ = begin(folder=tmp_path)
    for _ in run:
        break
    del run
    gc.collect()  # the lock on the folder goes with the run
    assert (threading.active_count(), len(os.listdir("/proc/self/fd"))) == before
    assert_same(finish(*begin(folder=tmp_path, resume=True)), expected)


# --- interrupts -----------------------------------------------------------------------------------


def test_after_an_interrupt_weights_and_buffers_are_those_of_the_last_state(tmp_path):
    kept = []

    class Watched(SGD):
        def step(self, closure=None):
            super().step(closure)
            kept.append({name: v.clone() for name, v in self.model.state_dict().items()})

    def watched(model):
        optimizer = Watched(model.parameters(), lr=0.1)
        optimizer.model = model
        return optimizer

    # A piece of the second batch.
    run, model = begin(at=5, folder=tmp_path, optimizer=watched, **OFTEN)
    with pytest.raises(KeyboardInterrupt):
        finish(run, model)
    assert len(kept) == 1
    for name, value in model.state_dict().items():
        assert torch.equal(value, kept[-1][name]), name
    assert len(run.history) == 0


def test_an_interrupt_inside_the_optimizer_goes_back_to_the_last_checkpoint(tmp_path):
    class Torn(SGD):
        steps = 0

        def step(self, closure=None):
            Torn.steps += 1
            if Torn.steps == 10:
                with torch.no_grad():
                    self.param_groups[0]["params"][0].add_(1)
                raise KeyboardInterrupt
            super().step(closure)

    def torn(model):
        return Torn(model.parameters(), lr=0.1)

    expected = reference(optimizer=lambda m: SGD(m.parameters(), lr=0.1))
    run, model = begin(folder=tmp_path, optimizer=torn)
    with pytest.raises(KeyboardInterrupt):
        finish(run, model)
    assert run.position == (1, 0, False)
    state = load_checkpoint(tmp_path / "last.pt")
    for name, value in model.state_dict().items():
        assert torch.equal(value, state["model"][name]), name
    assert_same(finish(run, model), expected)


def test_a_model_that_draws_from_numpy_in_a_step_that_breaks_goes_back_as_well(tmp_path):
    class Drawing(nn.Linear):
        def forward(self, x):
            return super().forward(x) + (float(np.random.rand()) if self.training else 0)

    def run(at=None, **keywords):
        torch.manual_seed(0), np.random.seed(0)
        model, loss_fn = Drawing(4, 3), Stop(at)
        keywords = {"loss_fn": loss_fn, "progress": False, "epochs": 3, **keywords}
        return tc.epochs(model, SOURCES["Batches"](), **keywords), model

    expected = finish(*run())
    begun, model = run(9, checkpoint=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        finish(begun, model)
    assert begun.position == (1, 0, False)
    assert_same(finish(*run(checkpoint=tmp_path, resume=True)), expected)


def test_where_the_way_back_is_lost_it_says_so(tmp_path):
    class Torn(SGD):
        def step(self, closure=None):
            (tmp_path / "last.pt").unlink()
            raise KeyboardInterrupt

    run, model = begin(folder=tmp_path, optimizer=lambda m: Torn(m.parameters(), lr=0.1))
    lost = pytest.warns(UserWarning, match=r"there is no way back: .*No such file .*last\.pt")
    with lost, pytest.raises(KeyboardInterrupt):
        finish(run, model)


def test_without_a_folder_an_interrupt_keeps_the_history_and_the_epoch_begins_again():
    run, model = begin(at=MIDDLE)
    with pytest.raises(KeyboardInterrupt):
        finish(run, model)
    assert len(run.history) == 1
    assert len(finish(run, model).records) == EPOCHS


def test_it_sets_no_signal_handler(tmp_path):
    import signal

    def handlers():
        return [signal.getsignal(number) for number in signal.valid_signals()]

    before = handlers()
    run, _ = begin(folder=tmp_path)
    next(run)
    assert handlers() == before


def test_two_runs_in_threads_that_draw_nothing_do_not_disturb_each_other(tmp_path):
    def train(folder):
        generator = torch.Generator().manual_seed(0)
        model = nn.Linear(4, 3)
        with torch.no_grad():
            for p in model.parameters():
                p.copy_(torch.randn(p.shape, generator=generator))
        run = tc.epochs(
            model,
            SOURCES["Batches"](),
            loss_fn=nn.CrossEntropyLoss(),
            epochs=20,
            checkpoint=folder,
            save_every=1e-9,
            progress=False,
        )
        results[folder] = finish(run, model)

    results = {}
    train(None)
    threads = [threading.Thread(target=train, args=(tmp_path / name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name in "ab":
        assert_same(results[tmp_path / name], results[None])


# --- files ----------------------------------------------------------------------------------------


def middle_of_a_run(folder, at=MIDDLE):
    """A folder with last.pt in the middle of an epoch and epoch.pt at its start."""
    run, model = begin(at=at, folder=folder)
    with pytest.raises(KeyboardInterrupt):
        finish(run, model)


def test_the_weights_load_without_torchcls(tmp_path):
    found = reference(folder=tmp_path)
    for name in ("last", "best"):
        model = network()
        state = torch.load(tmp_path / f"{name}.pt", weights_only=True)
        model.load_state_dict(state["model"])
    best = min(range(EPOCHS), key=lambda i: found.records[i]["valid_loss"])
    assert state["record"]["epoch"] == best
    valid = tc.Batches(*data(40, seed=1), batch_size=20)
    measured = tc.evaluate(model, valid, loss_fn=nn.CrossEntropyLoss())
    assert measured.loss == pytest.approx(found.records[best]["valid_loss"], rel=1e-6)


def damaged(content, kind):
    if kind == "empty":
        return b""
    if kind == "cut off":
        return content[: len(content) // 2]
    if kind == "garbage":
        return b"\0" * 100
    at = len(content) * int(kind) // 100
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


@pytest.mark.parametrize("kind", ["empty", "cut off", "garbage", *map(str, range(0, 100, 9))])
def test_a_damaged_state_falls_back_to_the_one_before_it_and_says_so(tmp_path, kind):
    middle_of_a_run(tmp_path)
    last = tmp_path / "last.pt"
    last.write_bytes(damaged(last.read_bytes(), kind))
    with pytest.warns(UserWarning, match=r"last\.pt must .* goes on from epoch\.pt, which is"):
        run, model = begin(folder=tmp_path, resume=True)
    assert_same(finish(run, model), reference())


def test_where_both_are_damaged_both_are_named_and_nothing_is_overwritten(tmp_path):
    middle_of_a_run(tmp_path)
    for name in ("last.pt", "epoch.pt"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(ValueError, match=r"last\.pt must .* So is the earlier one: .*epoch\.pt"):
        begin(folder=tmp_path, resume=True)
    assert (tmp_path / "last.pt").read_bytes() == b""


def test_the_start_of_an_epoch_that_is_needed_and_damaged_is_an_error(tmp_path):
    run, model = begin(Moving(), MIDDLE, folder=tmp_path, schedule=lambda o: None, **OFTEN)
    with own_state(), pytest.raises(KeyboardInterrupt):
        finish(run, model)
    last = (tmp_path / "last.pt").read_bytes()
    (tmp_path / "epoch.pt").unlink()
    with pytest.raises(ValueError, match=r"epoch\.pt must be the state at the start of epoch 1"):
        finish(*begin(Moving(), folder=tmp_path, resume=True, schedule=lambda o: None))
    assert (tmp_path / "last.pt").read_bytes() == last


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_a_state_that_carries_code_is_refused_and_nothing_is_run(tmp_path):
    middle_of_a_run(tmp_path)
    torch.save({"model": Payload(tmp_path / "ran")}, tmp_path / "last.pt")
    content = (tmp_path / "last.pt").read_bytes()
    with pytest.raises(ValueError, match="could run code"):
        begin(folder=tmp_path, resume=True)
    assert not (tmp_path / "ran").exists()
    assert (tmp_path / "last.pt").read_bytes() == content


def rewritten(folder, **changed):
    state = load_checkpoint(folder / "last.pt")
    save_checkpoint(folder / "last.pt", **{**state, **changed})
    return (folder / "last.pt").read_bytes()


def test_another_torchcls_of_the_same_format_goes_on_and_another_format_is_named(tmp_path):
    middle_of_a_run(tmp_path)
    rewritten(tmp_path, torchcls="0.0.1")
    assert_same(finish(*begin(folder=tmp_path, resume=True)), reference())
    content = rewritten(tmp_path, torchcls="9.1.0", format=9)
    with pytest.raises(
        ValueError, match=r"last\.pt must have format .* got format 9 of torchcls 9"
    ):
        begin(folder=tmp_path, resume=True)
    assert (tmp_path / "last.pt").read_bytes() == content


def test_a_checkpoint_of_ones_own_is_no_state_of_a_run(tmp_path):
    save_checkpoint(tmp_path / "last.pt", weights=torch.ones(2))
    with pytest.raises(ValueError, match="must be the state of a run, got a checkpoint with weig"):
        begin(folder=tmp_path, resume=True)


def test_another_architecture_is_named_with_both_shapes_and_nothing_is_loaded(tmp_path):
    middle_of_a_run(tmp_path)
    content = (tmp_path / "last.pt").read_bytes()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 9), nn.Linear(9, 3))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"0 of the model must be .*=8.* got .*=9"):
        tc.epochs(
            model,
            SOURCES["Batches"](),
            loss_fn=nn.CrossEntropyLoss(),
            checkpoint=tmp_path,
            resume=True,
        )
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert (tmp_path / "last.pt").read_bytes() == content


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"lr": 0.5}, r"lr of the optimizer must be 0\.001 .* got 0\.5"),
        ({"metrics": [tc.error_rate]}, "metrics must be 'accuracy' .* got 'error_rate'"),
        ({"micro_batch": None}, "micro_batch must be 6 .* got None"),
        ({"precision": "bfloat16"}, "precision must be 'float32' .* got 'bfloat16'"),
        ({"loss_fn": nn.CrossEntropyLoss()}, "loss_fn must be 'Stop' .* got 'cross_entropy'"),
        ({"schedule": lambda o: None}, "schedule must be 'schedule' .* got None"),
        ({"optimizer": lambda m: SGD(m.parameters(), lr=0.1)}, "optimizer must be 'AdamW'"),
        ({"clip_norm": 1.0}, r"clip_norm must be None .* got 1\.0"),
        ({"best": "accuracy"}, "best must be 'valid_loss' .* got 'accuracy'"),
        ({"schedule": lambda o: lambda progress: 1.0}, "schedule must be 'schedule' .* got '<lam"),
        ({"source": "tensors"}, r"train must be .* got 'DataLoader\(.*RandomSampler"),
        ({"source": "a list"}, r"train must be '88 samples in Batches\(batch_size=16, .* 'list of"),
    ],
)
def test_a_run_that_is_told_something_else_is_refused(tmp_path, changed, words):
    middle_of_a_run(tmp_path)
    with pytest.raises(ValueError, match=words) as refused:
        begin(folder=tmp_path, resume=True, **changed)
    assert "model.load_state_dict(torch.load(" in str(refused.value)


def test_other_circumstances_are_said(tmp_path):
    middle_of_a_run(tmp_path)
    state = load_checkpoint(tmp_path / "last.pt")
    rewritten(tmp_path, circumstances={**state["circumstances"], "torch": "2.0.0"})
    with pytest.warns(UserWarning, match=r"not to the same bits: torch was 2\.0\.0, is "):
        finish(*begin(folder=tmp_path, resume=True))


def test_a_folder_with_a_run_is_not_begun_anew(tmp_path):
    middle_of_a_run(tmp_path)
    content = (tmp_path / "last.pt").read_bytes()
    with pytest.raises(ValueError, match=r"must be a folder without a run, .* Pass resume=True"):
        begin(folder=tmp_path)
    assert (tmp_path / "last.pt").read_bytes() == content


def test_a_run_that_never_took_a_step_stands_in_nobodys_way(tmp_path):
    model = nn.Sequential(nn.Linear(4, 3), nn.Softmax(1))
    with pytest.raises(tc.ContractError):
        tc.fit(
            model,
            SOURCES["Batches"](),
            loss_fn=nn.CrossEntropyLoss(),
            checkpoint=tmp_path,
            progress=False,
        )
    assert_same(reference(folder=tmp_path), reference())


def test_resuming_where_nothing_is_yet_begins(tmp_path):
    found = finish(*begin(folder=tmp_path / "new" / "folder", resume=True))
    assert len(found.records) == EPOCHS


def test_what_a_killed_process_left_half_written_is_removed(tmp_path):
    middle_of_a_run(tmp_path)
    (tmp_path / ".01234567-last.pt").write_bytes(b"half")
    finish(*begin(folder=tmp_path, resume=True))
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [".lock", "best.pt", "epoch.pt", "last.pt"]


def test_where_files_have_no_second_names_the_earlier_state_is_copied(tmp_path, monkeypatch):
    def no_links(*_):
        raise OSError("not supported")

    monkeypatch.setattr(os, "link", no_links)
    middle_of_a_run(tmp_path)
    (tmp_path / "last.pt").write_bytes(b"")
    with pytest.warns(UserWarning, match="goes on from epoch"):
        assert_same(finish(*begin(folder=tmp_path, resume=True)), reference())


# --- disks ----------------------------------------------------------------------------------------


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_found_before_training(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(OSError, match="checkpoint must be a folder that can be written, got"):
        begin(folder=tmp_path)


def test_a_folder_that_cannot_be_made_is_found_before_training(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="checkpoint must be a folder that can be written, got"):
        begin(folder=tmp_path / "file" / "folder")


@pytest.mark.system
@pytest.mark.skipif(sys.platform != "linux", reason="a mount that one thread sees is Linux's")
def test_a_disk_that_fills_up_costs_warnings_and_not_the_run(tmp_path):
    expected = reference()

    def run():
        begun, model = begin(folder=tmp_path)
        next(begun)
        content = (tmp_path / "last.pt").read_bytes()
        fill(tmp_path)
        with pytest.warns(UserWarning, match="could not be written, and the run goes on"):
            found = finish(begun, model)
        assert_same(found, expected)
        assert (tmp_path / "last.pt").read_bytes() == content
        (tmp_path / "rest").unlink()
        assert_same(finish(*begin(folder=tmp_path, resume=True)), expected)

    in_a_thread_that_sees_a_small_disk(tmp_path, run, "1m")


def fill(folder):
    with open(folder / "rest", "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"0" * 4096)


@pytest.mark.system
@pytest.mark.skipif(sys.platform != "linux", reason="a mount that one thread sees is Linux's")
def test_a_disk_without_room_for_two_states_is_found_before_training(tmp_path):
    def run():
        with pytest.raises(OSError, match=r"room for two states of .* bytes"):
            finish(*begin(folder=tmp_path))

    in_a_thread_that_sees_a_small_disk(tmp_path, run, "32k")


def test_a_metric_that_no_file_can_hold_costs_a_warning(tmp_path):
    class Odd:
        def update(self, outputs, targets):
            pass

        def compute(self):
            return {1, 2}

        def reset(self):
            pass

    with pytest.warns(UserWarning, match=r"plain value .*, got builtins\.set"):
        found = reference(folder=tmp_path, metrics={"odd": Odd()})
    assert found.records[-1]["odd"] == {1, 2}


# --- arguments and the best -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"resume": True}, "resume must not be True without checkpoint"),
        ({"folder": 3}, "checkpoint must be the path of a folder, got 3"),
        ({"save_every": "60"}, "save_every must be a number of seconds, got '60'"),
        ({"save_every": 0}, "save_every must be above 0 seconds, got 0"),
        ({"best": "auc"}, r"best must be a column of the history \(valid_loss, .*got 'auc'"),
        ({"best": "mean:accuracy"}, "got 'mean:accuracy'"),
        (
            {"best": "own", "metrics": {"own": lambda o, t: o.mean()}},
            'Write best="min:own" or best="max:own"',
        ),
    ],
)
def test_arguments_that_do_not_fit_are_refused(keywords, words):
    with pytest.raises((TypeError, ValueError), match=words):
        begin(**keywords)


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="checkpoint must be a folder, got the file"):
        begin(folder=tmp_path / "file")


@pytest.mark.parametrize(
    ("best", "column", "choose"),
    [
        ("valid_loss", "valid_loss", min),
        ("accuracy", "accuracy", max),
        ("error_rate", "error_rate", min),
        ("min:accuracy", "accuracy", min),
        ("max:train_loss", "train_loss", max),
        ("half", "half", max),
    ],
)
def test_the_best_is_the_first_of_the_best_in_its_column(tmp_path, best, column, choose):
    from functools import partial

    half = partial(tc.top_k_accuracy, k=1)
    metrics = {"accuracy": tc.accuracy, "error_rate": tc.error_rate, "half": half}
    found = reference(folder=tmp_path, best=best, metrics=metrics)
    values = [record[column] for record in found.records]
    record = load_checkpoint(tmp_path / "best.pt")["record"]
    assert record["epoch"] == values.index(choose(values))


def test_a_best_that_an_interrupt_has_lost_is_written_when_the_run_goes_on(tmp_path, monkeypatch):
    run, _ = begin(folder=tmp_path, best="max:train_loss")
    next(run)
    (tmp_path / "best.pt").unlink()
    begin(folder=tmp_path, best="max:train_loss", resume=True)
    assert load_checkpoint(tmp_path / "best.pt")["record"]["epoch"] == 0


def test_weights_that_were_kept_as_the_best_of_another_run_are_not_replaced(tmp_path):
    reference(folder=tmp_path)
    for name in ("last", "epoch"):
        (tmp_path / f"{name}.pt").unlink()
    with pytest.raises(ValueError, match=r"with a best\.pt, which would be replaced"):
        begin(folder=tmp_path)


def test_a_relative_folder_stays_where_it_was(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run, model = begin(folder="run")
    next(run)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    finish(run, model)
    assert len(load_checkpoint(tmp_path / "run" / "last.pt")["history"]["records"]) == EPOCHS
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_numpys_numbers_are_kept_as_pythons(tmp_path):
    def report(outputs, targets):
        return {"mean": np.float32(outputs.mean()), "each": np.ones(2)}

    keywords = {
        "metrics": {"report": report},
        "optimizer": lambda m: SGD(m.parameters(), lr=np.float64(0.1)),
        "schedule": lambda o: lambda progress: np.cos(progress),
        "save_every": 1e-9,
    }
    expected = reference(**keywords)
    assert_same(stop_and_resume(tmp_path, at=MIDDLE, **keywords), expected)
    assert expected.records[0]["report"]["each"] == [1, 1]


def test_generators_of_a_state_stay_those_until_an_epoch_has_begun_from_it(tmp_path):
    expected = reference()
    run, _ = begin(folder=tmp_path)
    next(run)
    again, _ = begin(folder=tmp_path, resume=True)
    again.stop()  # with which its state is another one, to be written
    list(again)
    rewritten(tmp_path, at={**load_checkpoint(tmp_path / "last.pt")["at"], "stopped": False})
    assert_same(finish(*begin(folder=tmp_path, resume=True)), expected)


def test_lazy_modules_are_kept_from_their_first_step_on(tmp_path):
    def run(at=None, **keywords):
        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = nn.Sequential(
                nn.LazyLinear(8), nn.LazyBatchNorm1d(affine=False), nn.Linear(8, 3)
            )
        keywords = {"loss_fn": Stop(at), "epochs": 3, "progress": False, **keywords}
        return tc.epochs(model, SOURCES["Batches"](), **keywords), model

    expected = finish(*run())
    begun, model = run(9, checkpoint=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        finish(begun, model)
    assert_same(finish(*run(checkpoint=tmp_path, resume=True)), expected)


def test_without_validation_there_is_no_best(tmp_path):
    tc.fit(
        network(),
        SOURCES["Batches"](),
        loss_fn=nn.CrossEntropyLoss(),
        epochs=2,
        checkpoint=tmp_path,
        progress=False,
    )
    assert not (tmp_path / "best.pt").exists()


# --- memory ---------------------------------------------------------------------------------------


@pytest.mark.long
def test_memory_stays_flat_over_four_thousand_steps(tmp_path):
    def held():
        gc.collect()
        things = gc.get_objects()
        tensors = sum(type(thing) is torch.Tensor for thing in things)
        resident = int(Path("/proc/self/statm").read_text().split()[1])
        return tensors, len(things), resident * os.sysconf("SC_PAGESIZE")

    torch.manual_seed(0)
    batches = [(torch.randn(2, 4), torch.tensor([0, 1])) for _ in range(100)]
    model = nn.Linear(4, 3)
    run = tc.epochs(
        model,
        batches,
        batches[:1],
        optimizer=SGD(model.parameters(), lr=0.1),
        loss_fn=nn.CrossEntropyLoss(),
        epochs=45,
        checkpoint=tmp_path,
        progress=False,
    )
    for record in run:
        if record.epoch == 4:
            before = held()
    tensors, things, resident = (now - then for now, then in zip(held(), before, strict=True))
    assert tensors <= 2
    assert things <= 3 * 40  # a record for each epoch
    assert resident < 2**22  # and no more: a graph of every step would be 8 MB
