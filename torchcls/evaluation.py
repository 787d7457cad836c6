"""Evaluation and prediction: a pass over the data that leaves the model as it was found."""

import csv
import functools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from torchcls import heads
from torchcls.averaging import Mean, averaging_of, check_denominator, is_fraction, wide
from torchcls.batches import (
    Pair,
    check_whole_number,
    device_of,
    pairs,
    samples_of,
    split,
    to_device,
)
from torchcls.device import Device, place, random_state, set_random_state
from torchcls.metrics import counts_behind
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
            the metric gave where that is not one number.
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
) -> Evaluation:
    """Do what ``tc.evaluate`` says, on checked arguments, with the model on ``device``.

    ``pieces`` cuts the forward of a batch (None: whole) and ``precision`` runs it (None: float32).
    ``look`` sees the batches whose loss is a number, on the CPU; errors call the batches ``name``.
    """
    pieces, precision = pieces or Pieces(model), precision or Precision()
    loss_fn = None if loss_fn is None else loss_on(loss_fn, device)
    averaging = None if loss_fn is None else averaging_of(loss_fn)
    scorers = {name: _scorer(metric, device) for name, metric in named_metrics(metrics).items()}
    mean, n, batch = Mean(), 0, None
    try:
        with evaluating(model):
            pieces.renew()
            for number, batch in enumerate(pairs(batches, name)):
                inputs, targets = batch = to_device(batch, device)
                outputs = precision.outputs(pieces.outputs, inputs)
                if loss_fn is not None and averaging is not None:
                    result = loss_fn(outputs, targets)
                    if number == 0 and is_fraction(result):
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
                for add, _ in scorers.values():
                    add(outputs, targets)
                n += samples_of(batch)
                batch = None  # what the source raises next is no fault of this one
            values = {name: _as_number(value()) for name, (_, value) in scorers.items()}
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


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a model says of every sample, on the CPU.

    Attributes:
        outputs: What the model gave, shape (n, ...).
        targets: What was asked for, shape (n, ...); None where only inputs were given.
    """

    outputs: Tensor
    targets: Tensor | None = None
    _loss_fn: Loss | None = field(default=None, repr=False)

    @property
    def probabilities(self) -> Tensor:
        """The activated outputs, same shape: the loss names the activation."""
        return heads.probabilities(self.outputs, self._loss("probabilities"))

    @property
    def predicted(self) -> Tensor:
        """What the outputs say y is, as ``heads.decisions`` gives it; -1 where a row holds NaN."""
        return heads.decisions(self.outputs, self._loss("predicted"))

    def to_csv(
        self, path: str | os.PathLike[str], *, classes: Sequence[object] | None = None
    ) -> None:
        """Write one row for each sample: outputs, probabilities, predicted class, target.

        Columns are ``output`` and ``probability`` (numbered from 0 where there are several; no
        probability for ``mse_loss``), ``predicted`` and, where targets are known, ``target``.
        Floats are written so that reading gives the same float32 back.

        Args:
            path: The file to write.
            classes: Names to write in place of class ids in ``predicted`` and ``target``.

        Raises:
            ValueError: If the outputs have more than two dimensions, no loss named the activation,
                or ``classes`` stands beside predictions that are no class ids.
        """
        if self.outputs.ndim > 2:
            shape = tuple(self.outputs.shape)
            raise ValueError(f"outputs must have shape (n,) or (n, k) for a CSV file, got {shape}.")
        tables = {"output": self.outputs}
        if heads.has_probabilities(self._loss("probabilities")):
            tables["probability"] = self.probabilities
        tables["predicted"] = self.predicted
        if self.targets is not None:
            tables["target"] = self.targets
        header: list[str] = []
        columns: list[list[object]] = []
        for name, values in tables.items():
            names = classes if name in ("predicted", "target") else None
            if names is not None and values[:1].numel() > 1:
                raise ValueError(
                    f"classes must name class ids, got {name} of shape {tuple(values.shape)}. "
                    "Leave classes out."
                )
            parts = values.reshape(len(values), -1).unbind(1)
            header += [name] if len(parts) == 1 else [f"{name}_{i}" for i in range(len(parts))]
            columns += [[_cell(value, names) for value in part.tolist()] for part in parts]
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(header)
            writer.writerows(zip(*columns, strict=True))

    def _loss(self, name: str) -> Loss:
        if self._loss_fn is None:
            remedy = "Call predict(model, data, loss_fn=...)."
            raise ValueError(f".{name} needs the loss, which names the activation. {remedy}")
        return self._loss_fn


def _cell(value: float, classes: Sequence[object] | None) -> object:
    if classes is not None and value >= 0 and value == int(value):  # 0.0 and 1.0 are ids as well
        return classes[int(value)]
    # Nine digits tell any two float32 numbers apart.
    return f"{value:.9g}" if isinstance(value, float) else value


def predict(
    model: nn.Module,
    data: Any,
    *,
    loss_fn: Loss | None = None,
    batch_size: int = 256,
    device: Device = None,
) -> Predictions:
    """Run a model over data and keep, on the CPU, what it says of every sample, in order.

    Modes, gradients, grad mode and torch's random state are as before afterwards.

    Args:
        model: Any module whose outputs are one tensor of shape (n, ...) for n samples.
        data: A tensor of inputs, cut into batches of ``batch_size``; anything else is an iterable
            of pairs (inputs, targets).
        loss_fn: The loss the model was trained with; it names the activation that turns outputs
            into probabilities and decisions. Without it ``.outputs`` is all there is.
        batch_size: Samples at a time, where ``data`` is a tensor.
        device: Where to work; the model is taken there. None stays where the model is.

    Raises:
        TypeError: If the model's outputs are no tensor, or ``data`` holds other than pairs.
        ValueError: If ``data`` is empty or ``batch_size`` is below 1.

    Example:
        >>> model = nn.Linear(2, 3)
        >>> predictions = predict(model, torch.randn(5, 2), loss_fn=nn.CrossEntropyLoss())
        >>> predictions.probabilities.shape, predictions.predicted.shape, predictions.targets
        (torch.Size([5, 3]), torch.Size([5]), None)
    """
    check_whole_number("batch_size", batch_size, at_least=1)
    device = place(model, device)
    outputs, targets = [], []
    with evaluating(model):
        if isinstance(data, Tensor):
            batches: Iterator[Pair] = ((inputs, None) for inputs in split(data, batch_size))
        else:
            batches = pairs(data, "data")
        for inputs, target in batches:
            output = model(to_device(inputs, device))
            remedy = "Wrap the model so that it returns the one to keep."
            outputs.append(_kept(output, "the model's outputs must be one tensor", remedy))
            if target is not None:
                law = "targets must be one tensor to be kept"
                targets.append(_kept(target, law, "Predict on the inputs alone."))
    if not outputs:
        raise ValueError(f"data must hold at least one sample, got shape {tuple(data.shape)}.")
    return Predictions(torch.cat(outputs), torch.cat(targets) if targets else None, loss_fn)


def _kept(value: Any, law: str, remedy: str) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(f"{law}, got {type(value).__name__}. {remedy}")
    return value.cpu()  # waits for an accelerator, whose memory need not hold a whole split


# ------------------------------------------------------------------ metrics over a split


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
    items = metrics.items() if isinstance(metrics, Mapping) else ((_name(m), m) for m in metrics)
    named: dict[str, Any] = {}
    for name, metric in items:
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


def _scorer(
    metric: Any, device: torch.device
) -> tuple[Callable[[Any, Any], object], Callable[[], Any]]:
    """How a metric is taken over a split: what is fed each batch, and what gives the value then."""
    counts = counts_behind(metric)
    if counts is not None:  # one of ours: counts are added, and divided once
        mean = Mean()
        return lambda outputs, targets: mean.add_sum(*counts(outputs, targets)), mean.value
    if is_object(metric):
        if callable(getattr(metric, "to", None)):
            metric.to(device)
        metric.reset()
        return metric.update, metric.compute
    kept: list[tuple[Tensor, Tensor]] = []  # any other function: only the whole split is exact

    def keep(outputs: Any, targets: Any) -> None:
        law = f"the metric {_name(metric)!r} must get tensors to be called on the whole split"
        remedy = "Use an object with update, compute and reset."
        kept.append((_kept(outputs, law, remedy), _kept(targets, law, remedy)))

    return keep, lambda: metric(*map(torch.cat, zip(*kept, strict=True)))


def _as_number(value: Any) -> Any:
    return value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
