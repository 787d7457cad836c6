"""Evaluation: a pass over the data that leaves the model as it was found."""

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchcls.averaging import Mean, averaging_of, check_denominator, is_fraction, wide
from torchcls.batches import (
    Pair,
    device_of,
    joined,
    mapped,
    no_rows,
    pairs,
    samples_of,
    to_device,
)
from torchcls.device import random_state, set_random_state
from torchcls.group import Group
from torchcls.metrics import (
    accuracy,
    confusion_matrix,
    counts_behind,
    error_rate,
    multilabel_accuracy,
    threshold_accuracy,
    top_k_accuracy,
)
from torchcls.step import (
    Loss,
    Pieces,
    Precision,
    Taken,
    loss_on,
    zero_where_nothing_counts,
)

Metrics = Sequence[Any] | Mapping[str, Any]


class Look(Protocol):
    """Who looks at a run as it goes: the preflight."""

    def __call__(self, taken: Taken, epoch: int, number: int) -> Tensor | None:
        """Called between the backward pass and the optimizer's step; see ``Step.update``."""

    def after_epoch(self, epoch: int, mean: Mean) -> None:
        """Called when all steps of an epoch are taken."""

    def at_valid(self, number: int, loss: float, batch: Pair, outputs: Any) -> None:
        """Called with the number of each validation batch, its loss, the batch and the outputs."""

    def explain(self, failure: Exception, batch: Any) -> None:
        """Raise an error that says more than what was raised on a batch, where there is one."""

    def state_dict(self) -> dict[str, Any]:
        """What was seen so far."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state."""


@dataclass(frozen=True)
class Evaluation:
    """What a pass over the data found.

    Attributes:
        loss: The mean loss over all targets that count; None where no loss was asked for.
        metrics: From the name of each metric to its value over the whole split: a float, or what
            the metric gave where that is not one number, single numbers in it as floats.
        n: Samples seen.
    """

    loss: float | None
    metrics: dict[str, Any]
    n: int


def measure(
    model: nn.Module,
    batches: Iterable[Any],
    loss_fn: Loss | None,
    metrics: Metrics,
    device: torch.device,
    *,
    pieces: Pieces | None = None,
    precision: Precision | None = None,
    look: Look | None = None,
    name: str = "batches",
    group: Group | None = None,
) -> Evaluation:
    """Do what ``tc.evaluate`` says, on checked arguments, with the model on ``device``.

    ``pieces`` cuts the forward of a batch (None: whole) and ``precision`` runs it (None: float32).
    ``look`` sees the batches whose loss is a number, on the CPU; errors call the batches ``name``.
    ``batches`` are this process's share of those of the ``group``.
    """
    group = group or Group()
    pieces, precision = pieces or Pieces(model), precision or Precision()
    loss_fn = None if loss_fn is None else loss_on(loss_fn, device)
    averaging = None if loss_fn is None else averaging_of(loss_fn)
    scores = Scores(metrics, device, group)
    mean, n, batch = Mean(), 0, None
    try:
        with evaluating(model):
            with group.together():
                pieces.renew()
                for number, batch in enumerate(pairs(batches, name)):
                    inputs, targets = batch = to_device(batch, device)
                    outputs = precision.outputs(pieces.outputs, inputs)
                    if loss_fn is not None and averaging is not None and group.part.rows:
                        result = loss_fn(outputs, targets)
                        if number == 0 and look is None and is_fraction(result):  # a run looks
                            check_denominator(loss_fn, outputs, targets)
                        loss, count = averaging.read(result, batch)
                        loss = zero_where_nothing_counts(loss, outputs, count)
                        reported = wide(averaging.reported(loss, count))
                        if averaging.numerator is None:
                            mean.add(reported, count)
                        else:
                            mean.add_sum(wide(averaging.numerator(outputs, targets)), count)
                        if look is not None and not isinstance(reported, Tensor):
                            look.at_valid(number, reported, batch, outputs)
                    scores.add(outputs, targets)
                    n += samples_of(batch) if group.part.rows else 0
                    batch = None  # what the source raises next is no fault of this one
            if group.size > 1:
                _add_up(mean, group)
                n = int(*group.sum(n))
            values = scores.values()
    except Exception as failure:
        if look is not None:
            look.explain(failure, batch)
        raise
    return Evaluation(None if loss_fn is None else mean.value(), values, n)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode, without gradients, for as long as the context lasts.

    Not ``inference_mode``: a tensor that a model caches may take part in a later backward pass. The
    random state of torch is put back too, since a mere ``iter`` of a DataLoader moves it.
    """
    found = [(module, module.training) for module in model.modules()]
    device = device_of(model)
    states = torch.get_rng_state(), random_state(device)
    try:
        with torch.no_grad():
            model.eval()
            yield
    finally:
        torch.set_rng_state(states[0])
        set_random_state(states[1], device)
        for module, mode in found:
            module.training = mode


# ------------------------------------------------------------------ metrics over a split


def named_metrics(metrics: Metrics) -> dict[str, Any]:
    """Give every metric a name: the keys of a dict, else ``__name__``, else the class's name.

    Raises:
        TypeError: If ``metrics`` is no list and no dict, or holds what is no metric or no name.
        ValueError: If two metrics share a name.

    Examples:
        >>> from torchcls.metrics import accuracy
        >>> list(named_metrics([accuracy])), list(named_metrics({"acc": accuracy}))
        (['accuracy'], ['acc'])
    """
    if callable(metrics) or not isinstance(metrics, (Mapping, Sequence)):
        raise TypeError(f"metrics must be a list or a dict, got {metrics!r}. Write [metric].")
    items = metrics.items() if isinstance(metrics, Mapping) else ((_name(m), m) for m in metrics)
    named: dict[str, Any] = {}
    for name, metric in items:
        if not isinstance(name, str):
            raise TypeError(f"metrics must be named by strings, got {name!r}. Write '{name}'.")
        if isinstance(metric, type) or not (callable(metric) or is_object(metric)):
            fix = f" Pass the function itself, such as tc.{metric}." if type(metric) is str else ""
            raise TypeError(
                "metrics must hold functions of (outputs, targets) or objects with update, "
                f"compute and reset, got {metric!r}.{fix}"
            )
        if name in named:
            raise ValueError(
                f"metrics must have names of their own, got {name!r} twice. "
                "Name them with a dict: metrics={'name': metric, ...}."
            )
        named[name] = metric
    return named


def _name(metric: Any) -> str:
    metric = _function_of(metric)
    return str(getattr(metric, "__name__", None) or type(metric).__name__)


def _function_of(metric: Any) -> Any:
    return _function_of(metric.func) if isinstance(metric, functools.partial) else metric


def better(metric: Any) -> str | None:
    """Whether "min" or "max" of a metric is better, as far as torchcls knows it."""
    function = _function_of(metric)
    if function is error_rate:
        return "min"
    higher = (accuracy, threshold_accuracy, multilabel_accuracy, top_k_accuracy)
    return "max" if any(function is known for known in higher) else None


def is_object(metric: Any) -> bool:
    """Whether a metric is an object that is fed and asked, as torchmetrics has them."""
    return all(callable(getattr(metric, name, None)) for name in ("update", "compute", "reset"))


class Scores:
    """Metrics on their way through a split: fed batch by batch, asked at its end."""

    def __init__(self, metrics: Metrics, device: torch.device, group: Group) -> None:
        self._metrics = named_metrics(metrics)
        self._device, self._group = device, group
        self.reset()

    def reset(self) -> None:
        """Begin a split."""
        self._counted: dict[str, Mean] = {}
        self._added: dict[str, Tensor] = {}
        self._kept: dict[str, list[Pair]] = {}
        for name, metric in self._metrics.items():
            if counts_behind(metric) is not None:  # one of ours: counts are added, and divided once
                self._counted[name] = Mean()
            elif self._group.size > 1:  # rows go to the first process, in the order of one
                self._kept[name] = []
            elif _function_of(metric) is confusion_matrix:  # the matrices of batches add up
                self._added[name] = torch.zeros(0, 0, dtype=torch.int64, device="cpu")
            elif is_object(metric):
                if callable(getattr(metric, "to", None)):
                    metric.to(self._device)
                metric.reset()
            else:  # any other function: only the whole split is exact
                self._kept[name] = []

    def add(self, outputs: Any, targets: Any) -> None:
        """Feed a batch, or a piece of one."""
        is_stand_in = not self._group.part.rows
        for name, metric in self._metrics.items():
            if name in self._counted:
                counts: Any = counts_behind(metric)
                if not is_stand_in:
                    self._counted[name].add_sum(*counts(outputs, targets))
            elif name in self._added:
                matrices = self._added[name], metric(outputs, targets).cpu()
                size = max(map(len, matrices))  # predicted ids may show the last class late
                first, second = (F.pad(m, 2 * (0, size - len(m))) for m in matrices)
                self._added[name] = first + second
            elif name in self._kept:
                law = f"the metric {_name(metric)!r} must get tensors to be called on a whole split"
                remedy = "Use an object with update, compute and reset."
                keep = functools.partial(kept_tensor, law=law, remedy=remedy)
                kept = mapped(keep, outputs), mapped(keep, targets)
                self._kept[name].append(no_rows(kept) if is_stand_in else kept)
            else:
                metric.update(outputs, targets)

    def values(self) -> dict[str, Any]:
        """What each metric gives: a float, or what it is where that is not one number. Waits."""
        return {name: mapped(_as_number, self._value(name)) for name in self._metrics}

    def _value(self, name: str) -> Any:
        metric, group = self._metrics[name], self._group
        if name in self._counted:
            mean = self._counted[name]
            if group.size > 1:
                _add_up(mean, group)
            return mean.value()
        if name in self._added:
            return self._added[name]
        if name not in self._kept:
            return metric.compute()
        kept, value = group.gathered(self._kept[name]), None
        with group.together():
            if kept is not None and is_object(metric):
                value = _fed(metric, kept, group.size, self._device)
            elif kept is not None:
                value = metric(*map(joined, zip(*kept, strict=True)))
        return group.from_first(value)

    def state_dict(self) -> dict[str, Any]:
        """What was fed so far; an object keeps that to itself."""
        return {
            "counted": {name: mean.state_dict() for name, mean in self._counted.items()},
            "added": dict(self._added),
            "kept": {
                name: list(map(joined, zip(*pairs, strict=True)))
                for name, pairs in self._kept.items()
            },
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.reset()
        for name, mean in state["counted"].items():
            self._counted[name].load_state_dict(mean)
        self._added |= state["added"]
        for name, pair in state["kept"].items():
            self._kept[name] = [tuple(pair)] if pair else []


def _add_up(mean: Mean, group: Group) -> None:
    """Make a mean over one process's share the mean over all."""
    sums = mean.state_dict()
    mean.load_state_dict(dict(zip(sums, group.sum(*sums.values()), strict=True)))


def _fed(metric: Any, kept: list[Pair], size: int, device: torch.device) -> Any:
    """What an object gives, fed the batches that ``size`` processes have shared, one by one."""
    parts = metric.modules() if isinstance(metric, nn.Module) else [metric]
    asked = [
        (p, p.distributed_available_fn) for p in parts if hasattr(p, "distributed_available_fn")
    ]
    try:
        for part, _ in asked:  # torchmetrics would wait for the others
            part.distributed_available_fn = lambda: False
        metric.reset()
        for i in range(0, len(kept), size):
            batch = tuple(map(joined, zip(*kept[i : i + size], strict=True)))
            metric.update(*to_device(batch, device))
        return metric.compute()
    finally:
        for part, before in asked:
            part.distributed_available_fn = before


def kept_tensor(value: Any, law: str, remedy: str) -> Tensor:
    """Take a tensor to the CPU; what is none is a TypeError."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{law}, got {type(value).__name__}. {remedy}")
    return value.cpu()  # waits for an accelerator, whose memory need not hold a whole split


def _as_number(value: Any) -> Any:
    return value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
