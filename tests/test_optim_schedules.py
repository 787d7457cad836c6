"""Schedules in a run: when each is asked, on what, how far it goes, and that it is resumed."""

import re
import warnings

import pytest
import torch
from helpers import IS_OLD_TORCH
from torch import nn
from torch.optim import SGD, Adam, swa_utils
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    ConstantLR,
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    CyclicLR,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    MultiplicativeLR,
    MultiStepLR,
    OneCycleLR,
    PolynomialLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)

import torchcls as tc

EPOCHS, STEPS = 3, 4


def batches(steps=STEPS):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8 * steps, 3, generator=generator)
    return list(zip(x.split(8), (x[:, 0] > 0).long().split(8), strict=True))


def optimizer_of(model):
    return SGD(model.parameters(), lr=0.1, momentum=0.9)


def network():
    torch.manual_seed(0)
    return nn.Linear(3, 2)


def begin(schedule_of, model=None, train=None, **keywords):
    model = network() if model is None else model
    optimizer = optimizer_of(model)
    return tc.epochs(
        model,
        batches() if train is None else train,
        **{"loss_fn": nn.CrossEntropyLoss(), "epochs": EPOCHS, "micro_batch": None, **keywords},
        optimizer=optimizer,
        schedule=schedule_of(optimizer),
        device="cpu",
        progress=False,
    )


def lrs_of(run):
    """The learning rate of every step."""
    lrs = []
    run.optimizer.register_step_pre_hook(lambda o, *_: lrs.append(o.param_groups[0]["lr"]))
    for _ in run:
        pass
    return lrs


SCHEDULERS = {
    "LambdaLR": lambda o: LambdaLR(o, lambda i: 1 / (1 + i)),
    "MultiplicativeLR": lambda o: MultiplicativeLR(o, lambda i: 0.9),
    "StepLR": lambda o: StepLR(o, 2),
    "MultiStepLR": lambda o: MultiStepLR(o, [1, 2]),
    "ConstantLR": lambda o: ConstantLR(o, total_iters=2),
    "LinearLR": lambda o: LinearLR(o, total_iters=2),
    "ExponentialLR": lambda o: ExponentialLR(o, 0.5),
    "PolynomialLR": lambda o: PolynomialLR(o, total_iters=3),
    "CosineAnnealingLR": lambda o: CosineAnnealingLR(o, 4),
    "CosineAnnealingWarmRestarts": lambda o: CosineAnnealingWarmRestarts(o, 2),
    "CyclicLR": lambda o: CyclicLR(o, 0.01, 0.1, step_size_up=2),
    "OneCycleLR": lambda o: OneCycleLR(o, 0.1, total_steps=EPOCHS * STEPS),
    "SWALR": lambda o: swa_utils.SWALR(o, 0.01, anneal_epochs=2),
    "SequentialLR": lambda o: SequentialLR(
        o, [LinearLR(o, 0.25, total_iters=2), ExponentialLR(o, 0.5)], [2]
    ),
    "ChainedScheduler": lambda o: ChainedScheduler([LinearLR(o, total_iters=2), StepLR(o, 2)]),
}


@pytest.mark.filterwarnings("ignore:The epoch parameter")  # SequentialLR steps by number
@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_of_torch_can_be_stepped_each_step_and_is_resumed(name, tmp_path):
    if name == "SWALR" and IS_OLD_TORCH:
        pytest.skip("its state holds a function")
    build = SCHEDULERS[name]
    model = network()
    optimizer = optimizer_of(model)
    scheduler, expected = build(optimizer), []
    for x, y in batches() * EPOCHS:
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        scheduler.step()

    def schedule(optimizer):
        return tc.each_step(build(optimizer))

    ours = network()
    assert lrs_of(begin(schedule, ours)) == expected
    assert torch.equal(ours.weight, model.weight)
    assert len(set(expected)) > 1

    first = begin(schedule)
    for at in first.steps():
        if (at.epoch, at.step) == (1, 2):
            tc.save_checkpoint(tmp_path / "state.pt", **first.state_dict())
            break
    resumed = network()
    run = begin(schedule, resumed)
    run.load_state_dict(tc.load_checkpoint(tmp_path / "state.pt"))
    assert lrs_of(run) == expected[STEPS + 2 :]
    assert torch.equal(resumed.weight, model.weight)


def test_a_run_is_not_resumed_at_another_pace(tmp_path):
    kept = {"checkpoint": tmp_path, "epochs": 2}
    next(begin(lambda o: tc.each_step(StepLR(o, 2)), **kept))
    with pytest.raises(ValueError, match=r"pace of the schedule must be 'EachStep'"):
        begin(lambda o: StepLR(o, 2), **kept, resume=True)


# ------------------------------------------------------------------ on a column


def plateau(optimizer, mode="min", **keywords):
    return ReduceLROnPlateau(optimizer, mode=mode, patience=0, factor=0.5, **keywords)


@pytest.mark.parametrize(("mode", "lrs"), [("max", [0.1, 0.1, 0.05]), ("min", [0.1, 0.05, 0.025])])
def test_a_plateau_reads_the_column_that_is_named(mode, lrs):
    left = iter([0.1, 0.5, 0.4])
    run = begin(
        lambda o: tc.on("score", plateau(o, mode)),
        valid=batches(2),
        metrics={"score": lambda outputs, targets: torch.tensor(next(left))},
        check="off",
    )
    seen = [run.optimizer.param_groups[0]["lr"] for _ in run]
    values = [record.score for record in run.history]
    assert values == pytest.approx([0.1, 0.5, 0.4])
    assert seen == lrs


@pytest.mark.parametrize("column", ["train_loss", "smooth_loss", "train_accuracy"])
def test_a_column_of_training_needs_no_valid(column):
    mode = "max" if column == "train_accuracy" else "min"
    run = begin(lambda o: tc.on(column, plateau(o, mode)), train_metrics=[tc.accuracy])
    assert len(lrs_of(run)) == EPOCHS * STEPS


@pytest.mark.parametrize(
    ("schedule", "mode"),
    [
        (lambda o: plateau(o, "max"), "min"),
        (lambda o: tc.on("valid_loss", plateau(o, "max")), "min"),
        (lambda o: tc.on("train_loss", plateau(o, "max")), "min"),
        (lambda o: tc.on("error_rate", plateau(o, "max")), "min"),
        (lambda o: tc.on("accuracy", plateau(o)), "max"),
        (lambda o: tc.on("top", plateau(o)), "max"),
        (lambda o: tc.on("train_accuracy", plateau(o)), "max"),
    ],
)
def test_a_plateau_that_looks_for_the_worse_is_refused(schedule, mode):
    top = {"top": tc.top_k_accuracy, "accuracy": tc.accuracy, "error_rate": tc.error_rate}
    message = re.escape(f'schedule must be ReduceLROnPlateau(mode="{mode}") to read')
    with pytest.raises(ValueError, match=message):
        begin(schedule, valid=batches(2), metrics=top, train_metrics=[tc.accuracy])


@pytest.mark.parametrize("mode", ["min", "max"])
def test_where_nobody_knows_which_way_is_better_the_mode_is_trusted(mode):
    metrics = {"mine": lambda outputs, targets: outputs.mean()}
    begin(lambda o: tc.on("mine", plateau(o, mode)), valid=batches(2), metrics=metrics)


@pytest.mark.parametrize(
    ("schedule", "kind", "words"),
    [
        (lambda o: tc.on("f1", plateau(o)), ValueError, "read a column of the history (train_loss"),
        (lambda o: tc.on("valid_loss", plateau(o)), ValueError, 'tc.on("train_loss", scheduler)'),
        (lambda o: tc.on("train_loss", StepLR(o, 1)), TypeError, "must be a ReduceLROnPlateau"),
        (lambda o: tc.each_step(plateau(o)), TypeError, 'tc.on("valid_loss", scheduler)'),
        (lambda o: tc.each_step(StepLR), TypeError, "must be an instance of torch's"),
        (lambda o: tc.each_step(tc.one_cycle()), TypeError, "must be an instance of torch's"),
        (
            lambda o: tc.each_step(StepLR(Adam(network().parameters()), 1)),
            ValueError,
            "schedule must be a scheduler of this run's optimizer",
        ),
    ],
)
def test_what_cannot_work_is_refused_before_anything_runs(schedule, kind, words):
    with pytest.raises(kind, match=re.escape(words)):
        begin(schedule)


def test_a_plateau_on_a_matrix_is_refused():
    matrix = {"table": lambda outputs, targets: torch.eye(2)}
    run = begin(lambda o: tc.on("table", plateau(o)), valid=batches(2), metrics=matrix, check="off")
    with pytest.raises(TypeError, match="schedule must read a number, got the list in table"):
        next(run)


# ------------------------------------------------------------------ what cannot be meant

DOUBTFUL = {
    "a warm-up from 0": lambda o: LambdaLR(o, lambda i: min(i / 5, 1)),
    "a cosine over all steps": lambda o: CosineAnnealingLR(o, EPOCHS * STEPS),
    "milestones in steps": lambda o: MultiStepLR(o, [6, 9]),
    "a linear warm-up over steps": lambda o: LinearLR(o, total_iters=6),
    "decay after steps": lambda o: StepLR(o, 6),
    "warm-up, then cosine": lambda o: SequentialLR(
        o, [LinearLR(o, total_iters=2), CosineAnnealingLR(o, 10)], [2]
    ),
    "warm-up, then one cycle": lambda o: SequentialLR(
        o, [LinearLR(o, total_iters=2), OneCycleLR(o, 0.5, total_steps=EPOCHS * STEPS)], [2]
    ),
    "chained": lambda o: ChainedScheduler([ExponentialLR(o, 0.9), CosineAnnealingLR(o, 12)]),
    "one cycle, too long": lambda o: OneCycleLR(o, 0.5, total_steps=2 * EPOCHS * STEPS),
    "steps of a longer run": lambda o: tc.each_step(CosineAnnealingLR(o, 2 * EPOCHS * STEPS)),
}


@pytest.mark.filterwarnings("ignore:The epoch parameter")
@pytest.mark.parametrize("name", DOUBTFUL)
def test_what_cannot_be_meant_is_a_warning(name):
    with pytest.warns(UserWarning, match=r"\[learning-rate\]"):
        run = begin(DOUBTFUL[name])
    assert [(f.code, f.severity) for f in run.history.findings] == [("learning-rate", "warning")]


@pytest.mark.filterwarnings("ignore:The epoch parameter")
@pytest.mark.parametrize(
    "schedule",
    [
        *SCHEDULERS.values(),
        *(lambda o, build=build: tc.each_step(build(o)) for build in SCHEDULERS.values()),
        lambda o: CosineAnnealingLR(o, EPOCHS),
        lambda o: CosineAnnealingLR(o, EPOCHS + 2),
        lambda o: OneCycleLR(o, 0.5, total_steps=EPOCHS * STEPS + 1),
        lambda o: tc.each_step(LambdaLR(o, lambda i: min(i / 5, 1))),
        lambda o: tc.each_step(CosineAnnealingLR(o, EPOCHS * STEPS)),
    ],
)
def test_usual_schedules_are_left_alone(schedule):
    assert begin(schedule, check="warn").history.findings == []  # a warning would be an error


def test_the_warm_up_that_moves_nothing_moves_each_step():
    model = network()
    before = model.weight.clone()
    run = begin(lambda o: tc.each_step(LambdaLR(o, lambda i: min(i / 5, 1))), model)
    next(run)
    assert not torch.equal(model.weight, before)


# ------------------------------------------------------------------ progress


class Said:
    """A loader whose length is not what it gives."""

    def __init__(self, length, *gives):
        self.length, self.gives = length, list(gives)

    def __len__(self):
        return self.length

    def __iter__(self):
        steps = self.gives.pop(0) if len(self.gives) > 1 else self.gives[0]
        return iter(batches(steps))


@pytest.mark.parametrize("said", [1, 2, 3, 4, 9])
@pytest.mark.parametrize("gives", [(3,), (3, 5, 2), (1,)])
def test_progress_never_leaves_its_range_nor_turns_back(said, gives):
    asked = []

    def schedule(progress):
        asked.append(progress)
        return 1.0

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lrs_of(begin(lambda o: schedule, train=Said(said, *gives), check="off"))
    assert asked == sorted(asked)
    assert asked[0] == 0
    assert asked[-1] < 1
    # From the second epoch on it goes by what the one before gave.
    assert 1 / EPOCHS in asked
    if len(gives) == 1:
        assert asked[gives[0] :] == [i / (EPOCHS * gives[0]) for i in range(gives[0], 3 * gives[0])]


def test_progress_is_resumed_with_the_length_that_was_found(tmp_path):
    def run(asked, **keywords):
        def schedule(progress):
            asked.append(progress)
            return 1 - progress

        return begin(lambda o: schedule, train=Said(1, 3), check="off", **keywords)

    expected, before, after = [], [], []
    lrs_of(run(expected))
    kept = {"checkpoint": tmp_path, "save_every": 1e-9}
    for at in run(before, **kept).steps():
        if (at.epoch, at.step) == (1, 2):
            break
    taken = before[-5:]  # the first ones describe the run for its folder
    before.clear()
    lrs_of(run(after, **kept, resume=True))
    assert taken + after[-4:] == expected


def test_fewer_batches_than_promised_are_said_once():
    run = begin(lambda o: tc.one_cycle(), train=Said(9, 3))
    with pytest.warns(UserWarning, match=r"got 3 where len\(\) is 9. It goes on with 3") as said:
        lrs_of(run)
    assert len(said) == 1
