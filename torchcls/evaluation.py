"""Evaluation and prediction: a pass over the data that leaves the model as it was found."""

import csv
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from torchcls import heads
from torchcls.arguments import check_whole_number
from torchcls.averaging import Mean, averaging_of, fraction, is_fraction, one_loss, wide
from torchcls.device import to_device
from torchcls.loops import Device, loss_on, pairs, place
from torchcls.modes import evaluating
from torchcls.pieces import Pieces, pieces_for
from torchcls.precision import Precision
from torchcls.scorers import Metrics, named_metrics, plain, scorer_for
from torchcls.step import Loss, zero_where_nothing_counts
from torchcls.structure import mapped, num_samples, split

Look = Callable[[int, float, tuple[Any, Any], Any], None]


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


def evaluate(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    loss_fn: Loss | None = None,
    metrics: Metrics = (),
    device: Device = None,
) -> Evaluation:
    """Measure a model on every batch: exact over the whole split, however it is cut.

    The model is evaluated in evaluation mode and without gradients. Modes, gradients, grad mode and
    torch's random state are as before afterwards, also when the model raises. On a CPU a large
    batch goes through a ``Sequential`` of torch's own layers in pieces that fit into the cache,
    which changes its outputs by rounding at most.

    Args:
        model: Any module.
        batches: Any iterable of pairs (inputs, targets).
        loss_fn: Called as ``loss_fn(outputs, targets)``, or None for no loss.
        metrics: A list (named by ``__name__``) or a dict of names. The metrics of torchcls, plain
            or as ``functools.partial``, are counted batch by batch and divided once. An object with
            ``update``, ``compute`` and ``reset`` is reset, fed and asked. Any other function is
            called once with the outputs and targets of the whole split.
        device: Where to work; the model is taken there. None stays where the model is.

    Returns:
        An ``Evaluation`` with ``.loss``, ``.metrics`` and ``.n``.

    Raises:
        TypeError, ValueError: If ``batches`` is empty or holds something else than pairs, if two
            metrics share a name, or for the reasons that the loss and the metrics have.

    Example:
        >>> from torchcls.metrics import accuracy
        >>> model = nn.Identity()
        >>> batches = [(torch.eye(2), torch.tensor([0, 1])), (torch.eye(2)[:1], torch.tensor([1]))]
        >>> evaluate(model, batches, metrics=[accuracy])  # 2 of 3, not the mean of 2/2 and 0/1
        Evaluation(loss=None, metrics={'accuracy': 0.6666666666666666}, n=3)
    """
    named_metrics(metrics)  # what is wrong with these shall show before anything is moved
    if loss_fn is not None:
        averaging_of(loss_fn)
    device = place(model, device)
    return measure(model, batches, loss_fn, metrics, device, pieces_for(model, "auto"), Precision())


def measure(
    model: nn.Module,
    batches: Iterable[Any],
    loss_fn: Loss | None,
    metrics: Metrics,
    device: torch.device,
    pieces: Pieces,
    precision: Precision,
    look: Look | None = None,
) -> Evaluation:
    """Do what ``evaluate`` says, on checked arguments.

    Args:
        model: The model.
        batches: The batches.
        loss_fn: The loss, or None.
        metrics: The metrics.
        device: Where all of it is.
        pieces: How the forward of a batch is cut.
        precision: What the model runs in.
        look: Called with the number of each batch, its loss, the batch and the outputs, where the
            loss is a number: on the CPU.
    """
    if loss_fn is not None:
        loss_fn = loss_on(loss_fn, device)
    averaging = None if loss_fn is None else averaging_of(loss_fn)
    scorers = {name: scorer_for(metric) for name, metric in named_metrics(metrics).items()}
    for scorer in scorers.values():
        scorer.start(device)
    mean, n = Mean(), 0
    with evaluating(model):
        pieces.renew()
        for number, batch in enumerate(pairs(batches, "batches")):
            inputs, targets = to_device(batch, device)
            outputs = precision.outputs(pieces.outputs, inputs)
            if loss_fn is not None and averaging is not None:
                result = loss_fn(outputs, targets)
                if number == 0 and is_fraction(result):
                    _check_denominator(loss_fn, outputs, targets)
                loss, count = one_loss(result, averaging.count(targets))
                loss = zero_where_nothing_counts(loss, outputs, count)
                reported = wide(averaging.reported(loss, count))
                if averaging.numerator is None:
                    mean.add(reported, count)
                else:
                    mean.add_sum(wide(averaging.numerator(outputs, targets)), count)
                if look is not None and not isinstance(reported, Tensor):
                    look(number, reported, (inputs, targets), outputs)
            for scorer in scorers.values():
                scorer.add(outputs, targets)
            n += num_samples(targets)
        values = {name: plain(scorer.value()) for name, scorer in scorers.items()}
    return Evaluation(None if loss_fn is None else mean.value(), values, n)


def _check_denominator(loss_fn: Loss, outputs: Any, targets: Any) -> None:
    """Let ``fraction`` refuse a denominator that depends on the outputs: no graph shows it here."""

    def tied(leaf: Any) -> Any:
        is_float = isinstance(leaf, Tensor) and leaf.is_floating_point()
        return leaf.detach().requires_grad_() if is_float else leaf

    with torch.enable_grad():
        fraction(loss_fn(mapped(tied, outputs), targets))


@dataclass(frozen=True)
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
        """What the outputs say y is: class ids (n,), or 0 and 1 in the shape of the outputs.

        -1 where a row holds NaN, which decides nothing.
        """
        return heads.decisions(self.outputs, self._loss("predicted"))

    def to_csv(
        self, path: str | os.PathLike[str], *, classes: Sequence[object] | None = None
    ) -> None:
        """Write one row for each sample: outputs, probabilities, predicted class, target.

        Columns are ``output`` and ``probability`` (numbered from 0 where there are several),
        ``predicted`` and, where targets are known, ``target``. Floats are written so that reading
        gives the same float32 back.

        Args:
            path: The file to write.
            classes: Names to write in place of class ids in ``predicted`` and ``target``.

        Raises:
            ValueError: If the outputs have more than two dimensions, no loss named the activation,
                or ``classes`` stands beside predictions that are no class ids.
        """
        if self.outputs.ndim > 2:
            raise ValueError(
                f"outputs must have shape (n,) or (n, k) for a CSV file, "
                f"got {tuple(self.outputs.shape)}."
            )
        columns = _columns("output", self.outputs) | _columns("probability", self.probabilities)
        for name, values in (("predicted", self.predicted), ("target", self.targets)):
            if values is None:
                continue
            if classes is not None and values[:1].numel() > 1:
                raise ValueError(
                    f"classes must name class ids, got {name} of shape {tuple(values.shape)}. "
                    "Leave classes out."
                )
            columns |= _columns(name, values, classes)
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            writer.writerows(zip(*columns.values(), strict=True))

    def _loss(self, name: str) -> Loss:
        if self._loss_fn is None:
            raise ValueError(
                f".{name} needs the loss, which names the activation. "
                "Call predict(model, data, loss_fn=...)."
            )
        return self._loss_fn


def _columns(
    name: str, values: Tensor, classes: Sequence[object] | None = None
) -> dict[str, list[object]]:
    columns = values.reshape(len(values), -1).unbind(1)
    names = [name] if len(columns) == 1 else [f"{name}_{i}" for i in range(len(columns))]
    return {
        name: [_cell(value, classes) for value in column.tolist()]
        for name, column in zip(names, columns, strict=True)
    }


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
    """Run a model over data and keep what it says of every sample, in order.

    Modes, gradients, grad mode and torch's random state are as before afterwards.

    Args:
        model: Any module whose outputs are one tensor of shape (n, ...) for n samples.
        data: A tensor of inputs, cut into batches of ``batch_size``; anything else is an iterable
            of pairs (inputs, targets).
        loss_fn: The loss the model was trained with; it names the activation that turns outputs
            into probabilities and decisions. Without it ``.outputs`` is all there is.
        batch_size: Samples at a time, where ``data`` is a tensor.
        device: Where to work; the model is taken there. None stays where the model is.

    Returns:
        ``Predictions`` with ``.outputs``, ``.probabilities``, ``.predicted``, ``.targets`` and
        ``.to_csv(path)``.

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
    outputs: list[Tensor] = []
    targets: list[Tensor] = []
    with evaluating(model):
        for inputs, target in _inputs_and_targets(data, batch_size):
            output = model(to_device(inputs, device))
            if not isinstance(output, Tensor):
                raise TypeError(
                    f"the model's outputs must be one tensor, got {type(output).__name__}. "
                    "Wrap the model so that it returns the one to keep."
                )
            outputs.append(output)
            if target is not None:
                if not isinstance(target, Tensor):
                    raise TypeError(
                        f"targets must be one tensor to be kept, got {type(target).__name__}. "
                        "Predict on the inputs alone."
                    )
                targets.append(target)
        # One wait for an accelerator, at the end.
        return Predictions(
            torch.cat(outputs).cpu(), torch.cat(targets).cpu() if targets else None, loss_fn
        )


def _inputs_and_targets(data: Any, batch_size: int) -> Iterator[tuple[Any, Any]]:
    if not isinstance(data, Tensor):
        yield from pairs(data, "data")
        return
    pieces = split(data, batch_size)
    if not pieces:
        raise ValueError(f"data must hold at least one sample, got shape {tuple(data.shape)}.")
    for inputs in pieces:
        yield inputs, None
