"""Metrics over a split: counted batch by batch, fed to an object, or called once on all of it."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from torchcls.averaging import Mean
from torchcls.metrics import counts_behind

Metrics = Sequence[Any] | Mapping[str, Any]


def named_metrics(metrics: Metrics) -> dict[str, Any]:
    """Give every metric a name: the keys of a dict, else ``__name__``, else the class's name.

    Raises:
        TypeError: If ``metrics`` is no list and no dict, or holds what is no metric.
        ValueError: If two metrics share a name.

    Example:
        >>> from torchcls.metrics import accuracy
        >>> list(named_metrics([accuracy])), list(named_metrics({"acc": accuracy}))
        (['accuracy'], ['acc'])
    """
    if callable(metrics) or not isinstance(metrics, (Mapping, Sequence)):
        raise TypeError(f"metrics must be a list or a dict, got {metrics!r}. Write [metric].")
    pairs = metrics.items() if isinstance(metrics, Mapping) else ((_name(m), m) for m in metrics)
    named: dict[str, Any] = {}
    for name, metric in pairs:
        if isinstance(metric, type) or not (callable(metric) or is_object(metric)):
            raise TypeError(
                "metrics must hold functions of (outputs, targets) or objects with update, "
                f"compute and reset, got {metric!r}."
            )
        if name in named:
            raise ValueError(
                f"metrics must have names of their own, got {name!r} twice. "
                "Name them with a dict: metrics={'name': metric, ...}."
            )
        named[name] = metric
    return named


def _name(metric: Any) -> str:
    if isinstance(metric, functools.partial):
        return _name(metric.func)
    return str(getattr(metric, "__name__", None) or type(metric).__name__)


def is_object(metric: Any) -> bool:
    """Whether a metric is an object that is fed and asked, as torchmetrics has them."""
    return all(callable(getattr(metric, name, None)) for name in ("update", "compute", "reset"))


class Scorer(Protocol):
    """A metric over a split: started, fed batch by batch, asked once."""

    def start(self, device: torch.device) -> None:
        """Forget what was fed before."""

    def add(self, outputs: Any, targets: Any) -> None:
        """Take in one batch."""

    def value(self) -> Any:
        """The metric of all that was fed."""


def scorer_for(metric: Any) -> Scorer:
    """Choose how a metric is taken over a whole split."""
    counts = counts_behind(metric)
    if counts is not None:
        return _Counted(counts)
    return _Fed(metric) if is_object(metric) else _Whole(metric)


class _Counted:
    """One of ours: (correct, counted) added over the batches, divided once."""

    def __init__(self, counts: Callable[..., tuple[Tensor, Tensor]]) -> None:
        self._counts = counts
        self._mean = Mean()

    def start(self, device: torch.device) -> None:
        pass

    def add(self, outputs: Any, targets: Any) -> None:
        correct, counted = self._counts(outputs, targets)
        self._mean.add_sum(correct, counted)

    def value(self) -> float:
        return self._mean.value()


class _Fed:
    """An object with update, compute and reset, as torchmetrics and torcheval have them."""

    def __init__(self, metric: Any) -> None:
        self._metric = metric

    def start(self, device: torch.device) -> None:
        if callable(getattr(self._metric, "to", None)):
            self._metric.to(device)
        self._metric.reset()

    def add(self, outputs: Any, targets: Any) -> None:
        self._metric.update(outputs, targets)

    def value(self) -> Any:
        return self._metric.compute()


class _Whole:
    """Any other function: only the whole split gives its exact value."""

    def __init__(self, metric: Callable[..., Any]) -> None:
        self._metric = metric
        self._outputs: list[Tensor] = []
        self._targets: list[Tensor] = []

    def start(self, device: torch.device) -> None:
        pass

    def add(self, outputs: Any, targets: Any) -> None:
        if not isinstance(outputs, Tensor) or not isinstance(targets, Tensor):
            raise TypeError(
                f"the metric {_name(self._metric)!r} must get tensors to be called on the whole "
                f"split, got outputs {type(outputs).__name__} and targets "
                f"{type(targets).__name__}. Use an object with update, compute and reset."
            )
        self._outputs.append(outputs)
        self._targets.append(targets)

    def value(self) -> Any:
        return self._metric(torch.cat(self._outputs), torch.cat(self._targets))


def plain(value: Any) -> Any:
    """Turn a tensor of one number into a float; anything else stays what it is."""
    if isinstance(value, Tensor):
        return value.item() if value.numel() == 1 else value
    return value
