"""The default optimizer and the schedules."""

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import (
    CyclicLR,
    LRScheduler,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
)

from torchcls.history import Record
from torchcls.run import Schedule
from torchcls.warn import warn

_NORMS = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
    nn.LayerNorm,
)


def default_optimizer(model: nn.Module, lr: float = 1e-3) -> AdamW:
    """fastai's Adam as ``torch.optim.AdamW``.

    betas (0.9, 0.99), eps 1e-5, decoupled weight decay 0.01, and no decay on the parameters of
    BatchNorm, InstanceNorm and LayerNorm nor on any attribute that is called ``bias``. Fused where
    all parameters are floating point and dense in memory: the same numbers to 1e-7, in half the
    time of the loop.

    Args:
        model: The module whose parameters to train, frozen ones included (they are passed over for
            as long as they get no gradient).
        lr: Learning rate, above 0.

    Raises:
        TypeError: If ``model`` is no module, or ``lr`` no number.
        ValueError: If the model has no parameter, or ``lr`` is not above 0.

    Examples:
        >>> optimizer = default_optimizer(nn.Linear(2, 3))
        >>> [group["weight_decay"] for group in optimizer.param_groups]
        [0.01, 0.0]
    """
    check_lr(lr)
    if not isinstance(model, nn.Module):
        fix = "Give groups to an optimizer of torch's: torch.optim.AdamW(groups)."
        raise TypeError(f"model must be a module, got {type(model).__name__}. {fix}")
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    seen: set[nn.Parameter] = set()  # parameters hash by identity
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter not in seen:
                seen.add(parameter)
                groups[name != "bias" and not isinstance(module, _NORMS)].append(parameter)
    if not seen:
        raise ValueError("the model must have parameters to train, got none.")
    return AdamW(
        [
            {"params": parameters, "weight_decay": 0.01 if decays else 0.0}
            for decays, parameters in groups.items()
            if parameters
        ],
        lr=lr,
        betas=(0.9, 0.99),
        eps=1e-5,
        fused=all(map(_may_be_fused, seen)),
    )


def _may_be_fused(parameter: nn.Parameter) -> bool:
    """Floating point, and dense: torch's fused step on the CPU walks memory as if all of it were.

    A parameter may be a view into a larger tensor, such as one channel of another layer's weight.
    """
    if parameter.layout != torch.strided or not parameter.is_floating_point():
        return False
    if is_lazy(parameter):  # dense once it has a shape
        return True
    return parameter.stride() == torch.empty_like(parameter, device="meta").stride()


def check_lr(lr: float) -> None:
    """Check that a learning rate is a number above 0."""
    if isinstance(lr, bool) or not isinstance(lr, (int, float)):
        law = f"lr must be a number, got {lr!r}."
        raise TypeError(f"{law} Rates of their own go to an optimizer, in its parameter groups.")
    if not 0 < lr < math.inf:
        raise ValueError(f"lr must be above 0 and finite, got {lr!r}.")


def check_optimizer(optimizer: Any) -> None:
    """Check that an optimizer is an instance whose ``step`` can be called without a closure."""
    is_one = all(hasattr(optimizer, name) for name in ("step", "zero_grad", "param_groups"))
    if isinstance(optimizer, type) or not is_one:
        raise TypeError(
            f"optimizer must be an instance, got {optimizer!r}. "
            "Build it with the model's parameters: torch.optim.SGD(model.parameters(), lr=0.1)."
        )
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise TypeError(
            f"optimizer must step without a closure, got {type(optimizer).__name__}. "
            "Call tc.backward inside a closure in a loop of your own."
        )


def one_cycle() -> Callable[[float], tuple[float, float]]:
    """fastai's one-cycle policy: a function of progress in [0, 1).

    Over the first quarter of the batches the scale of the learning rate rises along a cosine from
    1/25 to 1, over the rest it falls to 1e-5; momentum mirrors it, 0.95 to 0.85 and back.

    Returns:
        A function from progress to (scale of each group's own lr, momentum). Momentum is the first
        of ``betas`` in Adam-like optimizers and ``momentum`` in the others.

    Examples:
        >>> schedule = one_cycle()
        >>> schedule(0.0), schedule(0.25)  # the first batch; the peak
        ((0.04, 0.95), (1.0, 0.85))

    References:
        Smith and Topin, "Super-convergence" (2018). fastai 2.8, ``fit_one_cycle``: batch i of T
        stands at progress i/T.
    """

    def schedule(progress: float) -> tuple[float, float]:
        if progress < 0.25:
            rise = _cosine(progress / 0.25)
            return _between(1 / 25, 1.0, rise), _between(0.95, 0.85, rise)
        fall = _cosine((progress - 0.25) / 0.75)
        return _between(1.0, 1e-5, fall), _between(0.85, 0.95, fall)

    return schedule


def warm_up_cosine(warm_up: float = 0.1) -> Callable[[float], float]:
    """Warm-up and cosine: a function of progress in [0, 1).

    Over the first share of the batches the scale of the learning rate rises on a line from 1/100 to
    1, over the rest it falls along a cosine towards 0. Momentum stays as it is.

    Args:
        warm_up: The share, in [0, 1); 0 begins at the peak.

    Returns:
        A function from progress to the scale of each group's own lr.

    Examples:
        >>> schedule = warm_up_cosine(0.2)
        >>> [round(schedule(progress), 4) for progress in (0.0, 0.1, 0.2, 0.6)]
        [0.01, 0.505, 1.0, 0.5]
    """
    if isinstance(warm_up, bool) or not isinstance(warm_up, (int, float)):
        raise TypeError(f"warm_up must be a number, got {warm_up!r}.")
    if not 0 <= warm_up < 1:
        raise ValueError(f"warm_up must be a share of the run in [0, 1), got {warm_up!r}.")

    def schedule(progress: float) -> float:
        if progress < warm_up:
            return _between(1 / 100, 1.0, progress / warm_up)
        return _between(1.0, 0.0, _cosine((progress - warm_up) / (1 - warm_up)))

    return schedule


def _cosine(x: float) -> float:
    return (1 - math.cos(math.pi * x)) / 2


def _between(start: float, end: float, share: float) -> float:
    return start + (end - start) * share


class _ByProgress(Schedule):
    """A function of progress. Each group has its own lr and momentum back between epochs."""

    def __init__(
        self, schedule: Callable[[float], Any], optimizer: Optimizer, epochs: int, steps: int
    ) -> None:
        self._schedule, self._optimizer = schedule, optimizer
        self._epochs, self._steps = epochs, steps
        self._epoch = self._taken = 0
        self._own: list[dict[str, Any]] = []

    @contextmanager
    def during_epoch(self, epoch: int, steps: int = 0) -> Iterator[None]:
        self._epoch, self._taken = epoch, steps
        groups = self._optimizer.param_groups
        kept = ("lr", "momentum", "betas")
        self._own = [{key: group[key] for key in kept if key in group} for group in groups]
        try:
            yield
        finally:
            self._give_back()

    def _give_back(self) -> None:
        """Give every group its own lr and momentum back, unless it has them."""
        for group, own in zip(self._optimizer.param_groups, self._own, strict=bool(self._own)):
            group.update(own)
        self._own = []

    def state_dict(self) -> dict[str, Any]:
        # Inside an epoch the optimizer's state holds what the schedule makes of them.
        return {"own": self._own, "steps": self._steps, "taken": self._taken}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._own, self._steps, self._taken = state["own"], state["steps"], state["taken"]
        self._give_back()

    def before_step(self) -> None:
        # More batches than the loader promised stay where its last one was meant to be.
        done = self._epoch * self._steps + min(self._taken, self._steps - 1)
        paced = self._schedule(done / (self._epochs * self._steps))
        scale, momentum = paced if isinstance(paced, tuple) else (paced, None)
        if not scale >= 0:
            raise ValueError(f"schedule must give a scale of the lr of at least 0, got {scale!r}.")
        for group, own in zip(self._optimizer.param_groups, self._own, strict=True):
            group["lr"] = own["lr"] * scale
            if momentum is not None and "betas" in own:
                group["betas"] = (momentum, *own["betas"][1:])
            elif momentum is not None and "momentum" in own:
                group["momentum"] = momentum
        self._taken += 1

    def after_epoch(self, record: Record) -> None:
        if self._epoch == 0 and self._taken < self._steps:
            warn(
                f"train must give as many batches as its len() for a schedule of progress, got "
                f"{self._taken} where len() is {self._steps}. It goes on with {self._taken}."
            )
        self._steps = self._taken


class _EachEpoch(Schedule):
    """A scheduler of torch, stepped after every epoch."""

    def __init__(self, scheduler: LRScheduler) -> None:
        if not isinstance(scheduler, LRScheduler):
            raise TypeError(f"scheduler must be an instance of torch's, got {scheduler!r}.")
        self.scheduler = scheduler
        self.kind = type(self).__name__.strip("_")  # to be compared when a run is resumed

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = self.scheduler.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.scheduler.load_state_dict(state)

    def after_epoch(self, record: Record) -> None:
        self.scheduler.step()


class _EachStep(_EachEpoch):
    """A scheduler of torch, stepped after every step."""

    def after_step(self) -> None:
        self.scheduler.step()

    def after_epoch(self, record: Record) -> None:
        pass


class _OnColumn(_EachEpoch):
    """A ``ReduceLROnPlateau``, stepped after every epoch on a column of the history."""

    scheduler: ReduceLROnPlateau

    def __init__(self, column: str, scheduler: ReduceLROnPlateau) -> None:
        super().__init__(scheduler)
        self.column = column

    def after_epoch(self, record: Record) -> None:
        value = record[self.column]
        if not isinstance(value, (int, float)):
            kind = type(value).__name__
            raise TypeError(f"schedule must read a number, got the {kind} in {self.column}.")
        self.scheduler.step(value)


def each_step(scheduler: LRScheduler) -> Schedule:
    """Step a scheduler of torch after every step of a run, where ``fit`` would once per epoch.

    For what counts batches, such as a warm-up over the first hundred of them.

    Raises:
        TypeError: If it is no scheduler of torch, or one that waits for a number.

    Examples:
        >>> import torchcls as tc
        >>> model = nn.Linear(2, 3)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        >>> warm_up = torch.optim.lr_scheduler.LinearLR(optimizer, 0.25, total_iters=3)
        >>> batches = [(torch.randn(8, 2), torch.randint(3, (8,)))] * 2
        >>> run = tc.epochs(model, batches, loss_fn=nn.CrossEntropyLoss(), optimizer=optimizer,
        ...                 schedule=tc.each_step(warm_up), epochs=2, progress=False)
        >>> [optimizer.param_groups[0]["lr"] for at in run.steps() if at.record is None]
        [0.5, 0.75, 1.0, 1.0]
    """
    if isinstance(scheduler, ReduceLROnPlateau):
        raise TypeError(
            "scheduler must step without a number, got ReduceLROnPlateau. "
            'Name what it is to read after every epoch: tc.on("valid_loss", scheduler).'
        )
    return _EachStep(scheduler)


def on(column: str, scheduler: ReduceLROnPlateau) -> Schedule:
    """Step a ``ReduceLROnPlateau`` after every epoch on a column of the history.

    Args:
        column: A loss, or the name of one of the run's metrics.
        scheduler: With ``mode="max"`` where more of it is better, as of an accuracy.

    Raises:
        TypeError: If ``scheduler`` is no ``ReduceLROnPlateau``.

    Examples:
        >>> optimizer = default_optimizer(nn.Linear(2, 3))
        >>> plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, mode="max")
        >>> schedule = on("accuracy", plateau)  # fit(..., metrics=[tc.accuracy], schedule=schedule)
    """
    if not isinstance(scheduler, ReduceLROnPlateau):
        raise TypeError(
            f"scheduler must be a ReduceLROnPlateau to read {column}, got {scheduler!r}."
        )
    return _OnColumn(column, scheduler)


def schedule_of(
    schedule: Any,
    optimizer: Optimizer,
    *,
    epochs: int,
    steps: int | None,
    columns: Mapping[str, str | None],
) -> Schedule:
    """Say when a schedule is to be asked.

    Args:
        schedule: None; a function from progress in [0, 1) to a scale of the learning rate or to
            (scale, momentum); what ``each_step`` or ``on`` gives; or a scheduler of torch: stepped
            once per epoch, ``OneCycleLR`` and ``CyclicLR`` after every step, ``ReduceLROnPlateau``
            on valid_loss.
        optimizer: The optimizer it acts on.
        epochs: Epochs of the run.
        steps: Batches of one epoch, or None where the loader does not tell.
        columns: What a record will hold, and where it is known whether "min" or "max" is better.

    Raises:
        TypeError: If ``schedule`` is none of these.
        ValueError: If it cannot work: another optimizer's scheduler, no length for a schedule that
            needs one, too few steps in a ``OneCycleLR``, a plateau that reads what is not there or
            looks for the worse.
    """
    if schedule is None:
        return Schedule()
    if isinstance(schedule, ReduceLROnPlateau):
        schedule = _OnColumn("valid_loss", schedule)
    elif isinstance(schedule, LRScheduler):
        is_of_steps = isinstance(schedule, (OneCycleLR, CyclicLR))
        schedule = _EachStep(schedule) if is_of_steps else _EachEpoch(schedule)
    if isinstance(schedule, _EachEpoch):
        scheduler = schedule.scheduler
        if scheduler.optimizer is not optimizer:
            raise ValueError(
                "schedule must be a scheduler of this run's optimizer, got one of another. "
                "Pass the same object as optimizer=."
            )
        if isinstance(schedule, _OnColumn):
            _check_column(schedule, columns)
        if isinstance(scheduler, OneCycleLR) and isinstance(schedule, _EachStep) and steps:
            left = scheduler.total_steps - scheduler.last_epoch
            if left < epochs * steps:
                raise ValueError(
                    f"schedule must last for {epochs} epochs of {steps} steps, got a OneCycleLR "
                    f"with {left} steps left. Use total_steps={epochs * steps}."
                )
        return schedule
    if isinstance(schedule, type) or not callable(schedule):
        raise TypeError(
            "schedule must be a function of progress, as tc.one_cycle() returns, or an instance of "
            f"a torch scheduler, got {schedule!r}."
        )
    if schedule is one_cycle or schedule is warm_up_cosine:
        name = f"tc.{schedule.__name__}"
        raise TypeError(f"schedule must be {name}(), got {name} without the brackets.")
    if steps is None:
        raise ValueError(
            "train must have a length for a schedule of progress, got one without len(). "
            "Give its class __len__, the number of batches."
        )
    return _ByProgress(schedule, optimizer, epochs, steps)


def _check_column(schedule: _OnColumn, columns: Mapping[str, str | None]) -> None:
    column, mode = schedule.column, schedule.scheduler.mode
    if column == "valid_loss" and column not in columns:
        raise ValueError(
            "schedule must not be ReduceLROnPlateau without valid, whose loss it reads. Give a "
            'valid, or name another column: tc.on("train_loss", scheduler).'
        )
    if column not in columns:
        raise ValueError(
            f"schedule must read a column of the history ({', '.join(columns)}), got {column!r}."
        )
    better = columns[column] or mode
    if mode != better:
        fix = 'Name the column that it is meant for: tc.on("accuracy", scheduler).'
        if better == "max":
            fix = 'Build it with mode="max".'
        raise ValueError(
            f'schedule must be ReduceLROnPlateau(mode="{better}") to read {column}, got '
            f'mode="{mode}". {fix}'
        )


def doubts_about(schedule: Schedule, *, epochs: int, steps: int | None) -> Iterator[str]:
    """What can hardly be meant: a first epoch that moves nothing, a plan longer than the run."""
    if not isinstance(schedule, _EachEpoch) or isinstance(schedule, _OnColumn):
        return
    scheduler, each, total = schedule.scheduler, "epoch", epochs
    name, fix = type(scheduler).__name__, "For one that counts batches: tc.each_step(scheduler)."
    if isinstance(schedule, _EachStep):
        each, total = "step", epochs * (steps or 0)
        fix = f"Lay it out for the {total} steps of the run."
    elif all(float(group["lr"]) == 0 for group in scheduler.optimizer.param_groups):
        seen = (
            f"The learning rate is 0 in the whole first epoch, since {name} steps once per epoch."
        )
        yield f"{seen} {fix}"
    left = _length(scheduler) - getattr(scheduler, "last_epoch", 0)
    # One cycle has to come to its end; others may be cut short, but not by half.
    if total and left >= total * (1.1 if isinstance(scheduler, OneCycleLR) else 2):
        seen = f"{name} is planned for {left} steps, but this run takes {total}, one per {each}."
        yield f"{seen} {fix}"


def _length(scheduler: LRScheduler) -> int:
    """How many of its steps a scheduler of torch is laid out for; 0 where it does not say."""
    parts: Sequence[LRScheduler] = getattr(scheduler, "_schedulers", ())
    if isinstance(scheduler, SequentialLR):
        return int(scheduler._milestones[-1] if parts[1:] else 0) + _length(parts[-1])
    names = ("T_max", "T_0", "total_iters", "total_steps", "total_size", "step_size")
    said = [getattr(scheduler, name, 0) for name in names]
    said += getattr(scheduler, "milestones", None) or ()
    return max(*(int(n) for n in said if isinstance(n, (int, float))), 0, *map(_length, parts))
