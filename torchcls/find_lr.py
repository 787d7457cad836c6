"""A learning rate to begin with: one short pass over rising rates, of which nothing stays."""

import copy
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import Optimizer

from torchcls.batches import Pair, check_source, pairs, to_device
from torchcls.device import Device, place
from torchcls.optim import check_optimizer, default_optimizer
from torchcls.run import training
from torchcls.speed.loaders import taken_at_once
from torchcls.speed.pieces import AutoPieces
from torchcls.state import load_modules, modules_state
from torchcls.step import ForwardOf, Loss, Step, check_can_train
from torchcls.survival.source import random_states, set_random_states

_STEPS, _LEAST, _MOST = 100, 1e-7, 10.0


@dataclass(frozen=True)
class LRCurve:
    """What the loss does while the learning rate rises.

    Attributes:
        lrs: The learning rates, of the optimizer's group with the largest one.
        losses: The loss at each, as a running mean over the steps so far.
    """

    lrs: list[float]
    losses: list[float]

    @property
    def suggestion(self) -> float:
        """A learning rate half way down the longest valley of the curve (fastai's "valley").

        The first tenth of a whole curve and its last five points are left out: the ones are warming
        up, the others rise.

        Raises:
            ValueError: If the loss does not fall anywhere.
        """
        is_whole = len(self.lrs) == _STEPS
        first, last = (_STEPS // 10, -5) if is_whole or len(self.lrs) > 20 else (0, None)
        lrs, losses = self.lrs[first:last], self.losses[first:last]
        end, length = _longest_fall(losses)
        if length < 2:
            raise ValueError(
                "the loss must fall at some learning rate for one to be suggested, got none of "
                f"{len(self.lrs)} where it does. Look at .lrs and .losses; the model may not learn "
                "from these batches, or has learned from them already."
            )
        return lrs[max(0, end - length + int(length / 3) + int(length / 6))]


def find_lr(
    model: nn.Module,
    train: Iterable[Any],
    *,
    loss_fn: Loss,
    optimizer: Optimizer | None = None,
    forward: ForwardOf = None,
    device: Device = None,
) -> LRCurve:
    """Train for up to 100 steps at rates from 1e-7 to 10, look at the loss, and put all back.

    Ends where the loss is no number or above four times its least, as fastai's does; the idea is
    Smith's (https://arxiv.org/abs/1506.01186). Weights, buffers, gradients, the optimizer, modes,
    random states and the order of the batches are afterwards as they were found, to the last bit,
    also where something raises.

    Args:
        model: Any module.
        train: Training batches, as ``fit`` takes them; begun again where they end.
        loss_fn: Called as ``loss_fn(outputs, targets)``.
        optimizer: The one to be used in training, whose groups keep the ratios of their rates; None
            is ``default_optimizer(model)``.
        forward: Called as ``forward(model, inputs)`` in place of ``model(inputs)``.
        device: Where to work; the model is taken there and stays. None stays where the model is.

    Raises:
        TypeError, ValueError: For the reasons that ``fit`` has.

    Examples:
        >>> import torchcls as tc
        >>> train = tc.Batches(*tc.drawn_digits(600, classes=(0, 1)), batch_size=32, shuffle=True)
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(784, 2))
        >>> curve = find_lr(model, train, loss_fn=nn.CrossEntropyLoss())
        >>> 1e-5 < curve.suggestion < 1
        True
        >>> train.epoch  # nothing has moved
        0
    """
    check_can_train()
    check_source(train, "train")
    if optimizer is None:
        optimizer = default_optimizer(model)
    check_optimizer(optimizer)
    where = place(model, device, optimizer=optimizer)
    pieces = AutoPieces(model, forward=forward)
    step = Step(model, loss_fn, device=where, pieces=pieces)
    kept = copy.deepcopy(modules_state(model, step.loss_fn, optimizer))
    states = random_states(where, [train])
    is_stateful = hasattr(train, "load_state_dict") and not getattr(train, "num_workers", 0)
    stood: Any = train.state_dict() if is_stateful else None  # type: ignore[attr-defined]
    held = [p for group in optimizer.param_groups for p in group["params"]]
    gradients = [p.grad for p in held]
    try:
        with training(model):
            return _risen(step, optimizer, _cycled(train, where))
    finally:
        load_modules(model, step.loss_fn, optimizer, kept)
        for parameter, gradient in zip(held, gradients, strict=True):
            parameter.grad = gradient
        if is_stateful:
            train.load_state_dict(stood)  # type: ignore[attr-defined]
        set_random_states(states, where, [train])


def _cycled(train: Any, device: Any) -> Iterator[Pair]:
    while True:
        for pair in pairs(taken_at_once(train), "train"):
            yield to_device(pair, device)


def _risen(step: Step, optimizer: Optimizer, batches: Iterator[Pair]) -> LRCurve:
    rates = [float(group["lr"]) for group in optimizer.param_groups]
    most = max(rates) or 1.0
    curve = LRCurve([], [])
    smooth = 0.0
    for number, batch in zip(range(_STEPS), batches, strict=False):
        lr = _LEAST * (_MOST / _LEAST) ** (number / _STEPS)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = lr * (rate / most if any(rates) else 1.0)
        taken = step.gradients(batch, optimizer)
        smooth = 0.98 * smooth + 0.02 * float(taken.mean)
        loss = smooth / (1 - 0.98 ** (number + 1))
        if not math.isfinite(loss):
            break
        curve.lrs.append(lr)
        curve.losses.append(loss)
        if loss > 4 * min(curve.losses):
            break
        step.update(optimizer)
    return curve


def _longest_fall(losses: list[float]) -> tuple[int, int]:
    """Where the longest falling selection of points ends, the first of them, and its length."""
    lengths: list[int] = []
    for i, loss in enumerate(losses):
        before = [lengths[j] for j in range(i) if losses[j] > loss]
        lengths.append(1 + max(before, default=0))
    longest = max(lengths, default=0)
    return (lengths.index(longest) if lengths else 0), longest
