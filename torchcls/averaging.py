"""Exact averages: a mean is one sum divided by one sum, however the data was cut.

The denominator of a loss follows from the targets alone. So a batch may be cut into pieces, or a
split into batches, and every part knows its exact share of the whole before anything is computed.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from torchcls.losses import KnownLoss, may_be_changed, recognise, reduction_of
from torchcls.structure import num_samples

Count = int | float | Tensor
"""How much a part counts: a number on the CPU; elsewhere a 0-d tensor, since reading it waits."""


@dataclass(frozen=True)
class Averaging:
    """How one loss averages.

    Attributes:
        count: From targets to the denominator of their mean loss.
        is_sum: Whether the loss is the numerator already (``reduction="sum"``). Training steps on
            that sum, and it is reported per sample.
        name: The loss's name in ``torch.nn.functional``; None for a loss of the user's own, or one
            that somebody hooked into.
        is_elementwise: Whether outputs and targets have one shape (BCE and MSE).
        weights: Weights of elements that torch broadcasts against the targets.
        numerator: From outputs and targets to the sum of the losses, where the mean times what it
            counts is not that sum: label smoothing spreads a target whose class has weight 0 over
            classes that have some, so a part may count nothing and still add to the loss. None
            everywhere else.
    """

    count: Callable[[Any], Count]
    is_sum: bool = False
    name: str | None = None
    is_elementwise: bool = False
    weights: tuple[Tensor, ...] = ()
    numerator: Callable[[Tensor, Tensor], Tensor] | None = None

    def may_be_cut(self, targets: Any) -> bool:
        """Whether the loss takes a piece of a batch: weights with a row for each sample do not."""
        return all(
            weight.ndim < targets.ndim or weight.shape[0] == 1
            for weight in self.weights
            if weight.ndim > 0
        )

    def share(self, count: Count, total: Count) -> Count:
        """What the loss of a part is multiplied by so that the parts add up to the whole."""
        if self.is_sum or (not isinstance(total, Tensor) and total == 0):
            return 1  # of nothing at all, any share adds nothing
        return count / total

    def reported(self, loss: Tensor, count: Count) -> Tensor:
        """The mean that is reported for a loss."""
        return loss / (count or 1) if self.is_sum else loss  # a batch may hold no sample


def averaging_of(loss_fn: Callable[..., Any]) -> Averaging:
    """Find how a loss averages over its targets.

    Args:
        loss_fn: Any callable ``(outputs, targets) -> loss``. One that torchcls does not know is
            taken as a mean over samples, or as a sum where it is one of torch's and says so.

    Raises:
        TypeError: If ``loss_fn`` cannot be called, or is a loss class and not an instance.
        ValueError: If ``loss_fn`` has ``reduction="none"``, one that torch does not know, or the
            deprecated ``size_average`` or ``reduce``.

    Example:
        >>> loss_fn = torch.nn.CrossEntropyLoss(weight=torch.tensor([1.0, 3.0]))
        >>> averaging_of(loss_fn).count(torch.tensor([0, 1, -100]))  # 1 + 3, the last is ignored
        4.0
    """
    if isinstance(loss_fn, type):
        name = loss_fn.__name__
        raise TypeError(f"loss_fn must be a function or an instance, got {name}. Use {name}().")
    if not callable(loss_fn):
        raise TypeError(f"loss_fn must be callable as (outputs, targets), got {loss_fn!r}.")
    known = recognise(loss_fn)
    if known is None:
        return Averaging(num_samples, is_sum=reduction_of(loss_fn) == "sum")
    deprecated = [name for name in ("size_average", "reduce") if name in known.options]
    if deprecated:
        raise ValueError(
            f"loss_fn must say how it reduces by reduction=, got the deprecated {deprecated[0]}=. "
            "Use reduction='mean' or reduction='sum'."
        )
    # A hook may change the loss: its count holds, but it is tested where it is cut.
    trusted = None if may_be_changed(loss_fn) else known.name
    reduction = known.options["reduction"]
    if reduction not in ("mean", "sum"):
        raise ValueError(
            f"loss_fn must reduce a batch to one number, got reduction={reduction!r}. "
            "Use reduction='mean'."
        )
    is_sum = reduction == "sum"
    if known.name in ("cross_entropy", "nll_loss"):  # their weights belong to classes
        count: Callable[[Any], Count] = functools.partial(_count_classes, known=known)
        numerator = None if is_sum else _smoothed_sum(known)
        return Averaging(num_samples if is_sum else count, is_sum, trusted, numerator=numerator)
    options = (known.options["weight"], known.options["pos_weight"])
    weights = tuple(weight for weight in options if isinstance(weight, Tensor))
    count = num_samples if is_sum else _count_elements
    return Averaging(count, is_sum, trusted, is_elementwise=True, weights=weights)


def _smoothed_sum(known: KnownLoss) -> Callable[[Tensor, Tensor], Tensor] | None:
    options = known.options
    weight, smoothing = options["weight"], options["label_smoothing"]
    if not smoothing or not isinstance(weight, Tensor) or bool(weight.all()):
        return None
    return functools.partial(
        F.cross_entropy,
        weight=weight,
        ignore_index=options["ignore_index"],
        label_smoothing=smoothing,
        reduction="sum",
    )


def _count_elements(targets: Tensor) -> Count:
    return int(_tensor(targets).numel())


def _count_classes(targets: Tensor, known: KnownLoss) -> Count:
    if _tensor(targets).is_floating_point():  # rows of probabilities: torch divides by their number
        return targets.numel() // targets.shape[1] if targets.ndim > 1 else 1
    counted = targets.long() != known.options["ignore_index"]  # uint8 ids would wrap around
    weight = known.options["weight"]
    if weight is None:
        count = counted.count_nonzero()
    else:
        # In float64 where there is one: a float32 sum loses digits over a million targets.
        precise = weight if weight.device.type == "mps" else weight.double()
        picked = precise[torch.where(counted, targets, 0).long()]
        count = torch.where(counted, picked, 0).sum()
    return float(count) if count.device.type == "cpu" else count


def _tensor(targets: Any) -> Tensor:
    if not isinstance(targets, Tensor):
        raise TypeError(
            f"targets must be a tensor for this loss_fn, got {type(targets).__name__}. "
            "Turn labels into numbers where the data is read."
        )
    return targets


def one_loss(result: Any, count: Count) -> tuple[Tensor, Count]:
    """Read what a loss function returned: one number, or its own (numerator, denominator).

    Returns:
        The loss (0-d, with its graph), and what it counts: ``count``, or the denominator that came
        with it. Where nothing counts the loss is 0 and its gradient to the parameters is 0 as well,
        not the NaN of 0/0.

    Raises:
        TypeError: If the result is no tensor and no pair.
        ValueError: If it holds more than one number.
    """
    if not is_fraction(result):
        return one_number(result), count
    numerator, denominator = fraction(result)
    if denominator.device.type == "cpu":  # also a plain number beside an accelerator
        return numerator / (denominator if denominator != 0 else 1), wide(denominator)
    return numerator / torch.where(denominator != 0, denominator, 1), wide(denominator)


def is_fraction(result: Any) -> bool:
    """Whether a loss function returned its own (numerator, denominator)."""
    return isinstance(result, tuple) and len(result) == 2


def fraction(result: tuple[Any, Any]) -> tuple[Tensor, Tensor]:
    """Numerator and denominator as 0-d tensors, with their graphs."""
    if not all(isinstance(part, (Tensor, int, float)) for part in result):
        kinds = " and ".join(type(part).__name__ for part in result)
        raise TypeError(
            "loss_fn must return one number as a tensor, or (numerator, denominator), "
            f"got a pair of {kinds}."
        )
    numerator, denominator = map(torch.as_tensor, result)
    if denominator.requires_grad:
        raise ValueError(
            "loss_fn must return one number, or (numerator, denominator) with a denominator that "
            "is a count of the targets, got two numbers that both depend on the model. Sum two "
            "losses: return a + b. Detach a count that has a graph: denominator.detach()."
        )
    return one_number(numerator), one_number(denominator)


def one_number(result: Any) -> Tensor:
    """Check that a loss is one number; returns it as a 0-d tensor with its graph."""
    if not isinstance(result, Tensor):
        raise TypeError(
            "loss_fn must return one number as a tensor, or (numerator, denominator), "
            f"got {type(result).__name__}."
        )
    if result.numel() != 1:
        raise ValueError(
            f"loss_fn must return one number for the batch, got shape {tuple(result.shape)}. "
            "Use reduction='mean'."
        )
    return result if result.ndim == 0 else result.reshape(())


class Sum:
    """A running sum in which small terms are not lost, on any device.

    In float64 where there is one: Python's floats on the CPU, a 0-d tensor elsewhere. A device
    without it (mps) keeps in a second float32 what the additions of the first one rounded off.

    Example:
        >>> total = Sum()
        >>> for term in torch.tensor([1e8, 1.0, 1.0, 1.0]):  # float32 steps by 8 up there
        ...     total.add(term)
        >>> total.value()
        100000003.0

    References:
        Knuth, The Art of Computer Programming, vol. 2, section 4.2.2: the error of an addition.
    """

    def __init__(self) -> None:
        self._sum: Count = 0  # whole: int64 tensors on an accelerator add up as such
        self._lost: Count = 0.0

    def add(self, term: Count) -> None:
        """Add a number, or a 0-d tensor; nothing waits for an accelerator."""
        if isinstance(term, Tensor):
            term = wide(term)
        if isinstance(term, Tensor) and term.dtype == torch.float32:
            self._add_float32(term)
        else:
            self._sum = self._sum + term

    def _add_float32(self, term: Tensor) -> None:
        rounded = term + self._sum
        added = rounded - self._sum
        lost = self._lost + ((self._sum - (rounded - added)) + (term - added))
        total = rounded + lost  # what was lost before may count by now
        is_finite = total.isfinite()  # infinity less infinity is no loss
        self._sum = torch.where(is_finite, total, rounded)
        self._lost = torch.where(is_finite, lost - (total - rounded), 0)

    def state_dict(self) -> dict[str, Count]:
        """The sum and what was rounded off."""
        return {"sum": self._sum, "lost": self._lost}

    def load_state_dict(self, state: dict[str, Count]) -> None:
        """Go on adding to a sum; a tensor must lie where the terms do."""
        self._sum, self._lost = state["sum"], state["lost"]

    def added(self) -> Count:
        """The sum where it lies."""
        return self._sum + self._lost

    def value(self) -> float:
        """The sum. Waits for an accelerator."""
        return float(self._sum) + float(self._lost)


class Mean:
    """A weighted mean over batches: one sum divided by one sum, in float64.

    Nothing waits for an accelerator until ``value`` is asked for.

    Example:
        >>> mean = Mean()
        >>> mean.add(0.5, 16)
        >>> mean.add(2.0, 4)
        >>> mean.value()  # (0.5 * 16 + 2.0 * 4) / 20
        0.8
    """

    def __init__(self) -> None:
        self._numerator = Sum()
        self._denominator = Sum()

    def add(self, mean: Count, count: Count) -> None:
        """Add a part with mean ``mean``, as ``wide`` gives it, that counts ``count``."""
        self.add_sum(mean * count, count)

    def add_sum(self, numerator: Count, count: Count) -> None:
        """Add a part whose sum is ``numerator``."""
        self._numerator.add(numerator)
        self._denominator.add(count)

    def state_dict(self) -> dict[str, dict[str, Count]]:
        """Both sums."""
        parts = {"numerator": self._numerator, "denominator": self._denominator}
        return {name: part.state_dict() for name, part in parts.items()}

    def load_state_dict(self, state: dict[str, dict[str, Count]]) -> None:
        """Go on with both sums; tensors must lie where the parts do."""
        self._numerator.load_state_dict(state["numerator"])
        self._denominator.load_state_dict(state["denominator"])

    def counted(self) -> float:
        """What all parts count together. Waits for an accelerator."""
        return self._denominator.value()

    def value(self) -> float:
        """The mean of all parts; NaN when nothing counted. Waits for an accelerator."""
        denominator = self._denominator.value()
        return self._numerator.value() / denominator if denominator else float("nan")


def wide(number: Tensor) -> Count:
    """A 0-d tensor without its graph, to add up: a number on the CPU, else wide where it lies."""
    number = number.detach()
    if number.device.type == "cpu":
        plain: int | float = number.item()
        return plain
    if not number.is_floating_point():
        return number.long()
    return number.float() if number.device.type == "mps" else number.double()
