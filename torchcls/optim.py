"""The default optimizer and the schedules."""

import inspect
import math
from collections.abc import Callable, Iterator
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
)

from torchcls.history import Record
from torchcls.run import Schedule

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
        ValueError: If the model has no parameter, or ``lr`` is not above 0.

    Example:
        >>> optimizer = default_optimizer(nn.Linear(2, 3))
        >>> [group["weight_decay"] for group in optimizer.param_groups]
        [0.01, 0.0]
    """
    check_lr(lr)
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
        raise TypeError(f"lr must be a number, got {lr!r}.")
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

    Example:
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
        self._done = 0
        self._own: list[dict[str, Any]] = []

    @contextmanager
    def during_epoch(self, epoch: int, steps: int = 0) -> Iterator[None]:
        self._done = epoch * self._steps + steps
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
        return {"own": self._own}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._own = state["own"]
        self._give_back()

    def before_step(self) -> None:
        paced = self._schedule(self._done / (self._epochs * self._steps))
        scale, momentum = paced if isinstance(paced, tuple) else (paced, None)
        for group, own in zip(self._optimizer.param_groups, self._own, strict=True):
            group["lr"] = own["lr"] * scale
            if momentum is not None and "betas" in own:
                group["betas"] = (momentum, *own["betas"][1:])
            elif momentum is not None and "momentum" in own:
                group["momentum"] = momentum
        self._done += 1


class _Torch(Schedule):
    def __init__(self, scheduler: LRScheduler) -> None:
        self._scheduler = scheduler

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = self._scheduler.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._scheduler.load_state_dict(state)


class _EachStep(_Torch):
    def after_step(self) -> None:
        self._scheduler.step()


class _EachEpoch(_Torch):
    def after_epoch(self, record: Record) -> None:
        if isinstance(self._scheduler, ReduceLROnPlateau):
            self._scheduler.step(record["valid_loss"])  # schedule_of has asked for validation
        else:
            self._scheduler.step()


def schedule_of(
    schedule: Any, optimizer: Optimizer, *, epochs: int, steps: int | None, has_valid: bool
) -> Schedule:
    """Say when a schedule is to be asked.

    Args:
        schedule: None; a function from progress in [0, 1) to a scale of the learning rate or to
            (scale, momentum); or a scheduler of torch: stepped once per epoch, ``OneCycleLR`` and
            ``CyclicLR`` after every step, ``ReduceLROnPlateau`` on the validation loss.
        optimizer: The optimizer it acts on.
        epochs: Epochs of the run.
        steps: Batches of one epoch, or None where the loader does not tell.
        has_valid: Whether there is a validation set.

    Raises:
        TypeError: If ``schedule`` is none of these.
        ValueError: If it cannot work: another optimizer's scheduler, no length for a schedule that
            needs one, too few steps in a ``OneCycleLR``, no validation set for a plateau.
    """
    if schedule is None:
        return Schedule()
    if isinstance(schedule, LRScheduler):
        if schedule.optimizer is not optimizer:
            raise ValueError(
                "schedule must be a scheduler of this run's optimizer, got one of another. "
                "Pass the same object as optimizer=."
            )
        if isinstance(schedule, ReduceLROnPlateau) and not has_valid:
            raise ValueError("schedule must not be ReduceLROnPlateau without valid: it reads it.")
        if not isinstance(schedule, (OneCycleLR, CyclicLR)):
            return _EachEpoch(schedule)
        if isinstance(schedule, OneCycleLR) and steps is not None:
            left = schedule.total_steps - schedule.last_epoch
            if left < epochs * steps:
                raise ValueError(
                    f"schedule must last for {epochs} epochs of {steps} steps, got a OneCycleLR "
                    f"with {left} steps left. Use total_steps={epochs * steps}."
                )
        return _EachStep(schedule)
    if isinstance(schedule, type) or not callable(schedule):
        raise TypeError(
            "schedule must be a function of progress, as tc.one_cycle() returns, or an instance of "
            f"a torch scheduler, got {schedule!r}."
        )
    if schedule is one_cycle:
        raise TypeError("schedule must be tc.one_cycle(), got tc.one_cycle without the brackets.")
    if steps is None:
        raise ValueError(
            "train must have a length for a schedule of progress, got one without len(). "
            "Give its class __len__, the number of batches."
        )
    return _ByProgress(schedule, optimizer, epochs, steps)
