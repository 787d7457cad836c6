"""Exact averages: a mean is one sum divided by one sum, however the data was cut.

The denominator of a loss follows from the targets alone. So a batch may be cut into pieces, or a
split into batches, and every part knows its exact share of the whole before anything is computed.
"""

import copy
import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from torchcls.batches import Pair, mapped, samples_of
from torchcls.heads import may_be_changed, named

Count = int | float | Tensor
"""How much a part counts: a number on the CPU; elsewhere a 0-d tensor, since reading it waits."""


@dataclass(frozen=True)
class Averaging:
    """How one loss averages."""

    count: Callable[[Pair], Count]  # from a batch to the denominator of its mean loss
    is_sum: bool = False  # is the numerator itself: stepped on as it is, reported per sample
    name: str | None = None  # in torch.nn.functional; None for the user's own, or one with hooks
    is_elementwise: bool = False  # outputs and targets have one shape (BCE, MSE, ...)
    weights: tuple[Tensor, ...] = ()  # of elements: torch broadcasts them against the targets
    # From outputs and targets to the sum of the losses, where that is not the mean times what it
    # counts: label smoothing spreads a target whose class has weight 0 over classes that have some,
    # so a part may count nothing and still add to the loss. None everywhere else.
    numerator: Callable[[Tensor, Tensor], Tensor] | None = None

    def may_be_cut(self, targets: Any) -> bool:
        """Whether the loss takes a piece of a batch: weights with a row for each sample do not."""
        weights = [weight for weight in self.weights if weight.ndim > 0]
        return all(weight.ndim < targets.ndim or weight.shape[0] == 1 for weight in weights)

    def share(self, count: Count, total: Count) -> Count:
        """What the loss of a part is multiplied by so that the parts add up to the whole."""
        if self.is_sum or (not isinstance(total, Tensor) and total == 0):
            return 1  # of nothing at all, any share adds nothing
        return count / total

    def reported(self, loss: Tensor, count: Count) -> Tensor:
        """The mean that is reported for a loss."""
        return loss / (count or 1) if self.is_sum else loss  # a batch may hold no sample

    def read(self, result: Any, batch: Pair) -> tuple[Tensor, Count]:
        """Read what a loss function returned: one number, or its own (numerator, denominator).

        Gives the loss (0-d, with its graph), and what the batch counts, which nobody asks of a
        batch whose denominator came with the loss.
        """
        return divided(result) if is_fraction(result) else (one_number(result), self.count(batch))


def averaging_of(loss_fn: Callable[..., Any]) -> Averaging:
    """Find how a loss averages over its targets.

    One that torchcls does not know is taken as a mean over samples. A TypeError names what is no
    loss function, a ValueError what cannot be averaged: ``reduction="none"``, or the deprecated
    ``size_average`` and ``reduce``.

    Examples:
        >>> loss_fn = torch.nn.CrossEntropyLoss(weight=torch.tensor([1.0, 3.0]))
        >>> targets = torch.tensor([0, 1, -100])
        >>> averaging_of(loss_fn).count((None, targets))  # 1 + 3, the last is ignored
        4.0
    """
    if isinstance(loss_fn, type):
        name = loss_fn.__name__
        raise TypeError(f"loss_fn must be a function or an instance, got {name}. Use {name}().")
    if not callable(loss_fn):
        raise TypeError(f"loss_fn must be callable as (outputs, targets), got {loss_fn!r}.")
    known = named(loss_fn)
    if known is None:
        return Averaging(samples_of)
    deprecated = [name for name in ("size_average", "reduce") if name in known.options]
    if deprecated:
        raise ValueError(
            f"loss_fn must say how it reduces by reduction=, got the deprecated {deprecated[0]}=. "
            "Use reduction='mean' or reduction='sum'."
        )
    # A hook may change the loss: its count holds, but it is tested where it is cut.
    trusted = None if may_be_changed(loss_fn) else known.name
    options, reduction = known.options, known.options["reduction"]
    if reduction not in ("mean", "sum") and (known.name, reduction) != ("kl_div", "batchmean"):
        raise ValueError(
            f"loss_fn must reduce a batch to one number, got reduction={reduction!r}. "
            "Use reduction='mean'."
        )
    is_sum, numerator = reduction == "sum", None
    count: Callable[[Pair], Count] = samples_of  # a sum is reported per sample, batchmean is one
    if reduction == "mean":
        count = {
            "numbers": lambda batch: _tensor(batch[1]).numel(),
            "rows": lambda batch: _tensor(batch[1])[..., :1].numel(),
            "classes": _classes(options),
        }[known.kind.counts]
        numerator = _smoothed_sum(options)
    if "ids" in known.kind.targets:  # weights belong to classes
        return Averaging(count, is_sum, trusted, numerator=numerator)
    weights = (options["weight"], options["pos_weight"], options["var"])
    tensors = tuple(weight for weight in weights if isinstance(weight, Tensor))
    return Averaging(count, is_sum, trusted, is_elementwise=True, weights=tensors)


def _smoothed_sum(options: Mapping[str, Any]) -> Callable[[Tensor, Tensor], Tensor] | None:
    weight = options["weight"]
    if not options["label_smoothing"] or not isinstance(weight, Tensor) or bool(weight.all()):
        return None
    chosen = {name: options[name] for name in ("weight", "ignore_index", "label_smoothing")}
    return functools.partial(F.cross_entropy, reduction="sum", **chosen)


def _classes(options: Mapping[str, Any]) -> Callable[[Pair], Count]:
    """Count targets that are not ignored, each with the weight of its class."""
    weight, ignore_index = options["weight"], options["ignore_index"]

    def count(batch: Pair) -> Count:
        targets = _tensor(batch[1])
        if targets.is_floating_point():  # rows of probabilities: torch divides by their number
            return targets.numel() // targets.shape[1] if targets.ndim > 1 else 1
        is_here, n = targets.device.type == "cpu", targets.numel()
        # One operation in place of two, at every step: torch takes no id below 0 but the ignored
        # one, so all count where none is below 0.
        if weight is None and ignore_index < 0 and is_here and n and targets.min().item() >= 0:
            return float(n)
        ids = targets if targets.dtype == torch.int64 else targets.long()  # uint8 would wrap around
        counted = ids != ignore_index
        total = counted.count_nonzero()
        if weight is not None:
            # In float64 where there is one: a float32 sum loses digits over a million targets.
            precise = weight if weight.device.type == "mps" else weight.double()
            total = torch.where(counted, precise[torch.where(counted, ids, 0)], 0).sum()
        return float(total) if is_here else total

    return count


def _tensor(targets: Any) -> Tensor:
    if not isinstance(targets, Tensor):
        raise TypeError(
            f"targets must be a tensor for this loss_fn, got {type(targets).__name__}. "
            "Turn labels into numbers where the data is read."
        )
    return targets


def divided(result: tuple[Any, ...]) -> tuple[Tensor, Count]:
    """The loss that a fraction is, and its denominator.

    A fraction over nothing is 0, and so is its gradient, not the NaN of 0/0.
    """
    numerator, denominator = fraction(result)
    return numerator / torch.where(denominator != 0, denominator, 1), wide(denominator)


def is_fraction(result: Any) -> bool:
    """Whether a loss function returned its own (numerator, denominator)."""
    return isinstance(result, tuple) and len(result) == 2


def fraction(result: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
    """Numerator and denominator as 0-d tensors, with their graphs."""
    if not all(isinstance(part, (Tensor, int, float)) for part in result):
        raise _no_loss("a pair of " + " and ".join(type(part).__name__ for part in result))
    device = next((part.device for part in result if isinstance(part, Tensor)), torch.device("cpu"))
    numerator, denominator = (torch.as_tensor(part, device=device) for part in result)
    if denominator.requires_grad:
        raise ValueError(
            "loss_fn must return one number, or (numerator, denominator) with a denominator that "
            "is a count of the targets, got two numbers that both depend on the model. Sum two "
            "losses: return a + b. Detach a count that has a graph: denominator.detach()."
        )
    return one_number(numerator), one_number(denominator)


def check_denominator(loss_fn: Callable[..., Any], outputs: Any, targets: Any) -> None:
    """Refuse a pair whose second number is no count, by calling the loss on the batch twice over.

    A second loss depends on the outputs, also where no graph shows it; a score does not grow.
    """

    def repeated(leaf: Any, n: int) -> Any:
        return torch.cat([leaf] * n) if isinstance(leaf, Tensor) and leaf.ndim else leaf

    def tied(leaf: Any, n: int) -> Any:
        is_float = isinstance(leaf, Tensor) and leaf.is_floating_point()
        return repeated(leaf.detach(), n).requires_grad_() if is_float else repeated(leaf, n)

    try:
        loss_fn = copy.deepcopy(loss_fn)  # it may keep a state
    except Exception:  # some cannot be copied
        return
    found: list[Any] = []
    with torch.enable_grad():
        for n in (1, 2) if isinstance(targets, Tensor) else (1,):  # not a list of samples
            try:
                given = mapped(functools.partial(tied, n=n), outputs)
                found.append(loss_fn(given, repeated(targets, n)))
            except Exception:  # it takes no other batch, or writes into the outputs
                break
    pairs = [fraction(result) for result in found]
    if len(pairs) < 2 or not any(pairs[0]):
        return
    once, twice = (float(denominator) for _, denominator in pairs)
    if math.isclose(once, twice, rel_tol=1e-3):
        raise ValueError(
            "loss_fn must return one number, or (numerator, denominator) that both grow with the "
            f"batch, got {once:.3g} as the second, also for the batch twice over. "
            "Of a loss and a score return the loss alone: the score is a metric."
        )


def one_number(result: Any) -> Tensor:
    """Check that a loss is one number; returns it as a 0-d tensor with its graph."""
    if not isinstance(result, Tensor):
        raise _no_loss(type(result).__name__)
    if result.numel() != 1:
        raise ValueError(
            f"loss_fn must return one number for the batch, got shape {tuple(result.shape)}. "
            "Use reduction='mean'."
        )
    return result if result.ndim == 0 else result.reshape(())


def _no_loss(got: str) -> TypeError:
    law = "loss_fn must return one number as a tensor, or (numerator, denominator)"
    return TypeError(f"{law}, got {got}.")


class Sum:
    """A running sum in which small terms are not lost: in float64, on the device of its terms.

    A device without float64 (mps) keeps them, to be added up on the CPU when the sum is asked for.
    """

    def __init__(self, value: Count = 0) -> None:
        self._sum = value
        self._terms: list[Tensor] = []

    def add(self, term: Count) -> None:
        """Add a number, or a 0-d tensor; nothing waits for an accelerator."""
        term = wide(term) if isinstance(term, Tensor) else term
        if isinstance(term, Tensor) and term.dtype != torch.float64:
            self._terms.append(term)
        else:
            self._sum = self._sum + term

    def added(self) -> Count:
        """The sum where it lies."""
        return self._sum + sum(self._terms)

    def value(self) -> float:
        """The sum. Waits for an accelerator."""
        return float(self._sum) + sum(float(term) for term in self._terms)


class Mean:
    """A weighted mean over batches: one sum divided by one sum, in float64.

    To add waits for no accelerator, to ask does.
    """

    def __init__(self) -> None:
        self._numerator, self._denominator = Sum(), Sum()

    def add(self, mean: Count, count: Count) -> None:
        """Add a part with mean ``mean``, as ``wide`` gives it, that counts ``count``."""
        self.add_sum(mean * count, count)

    def add_sum(self, numerator: Count, count: Count) -> None:
        """Add a part whose sum is ``numerator``."""
        self._numerator.add(numerator)
        self._denominator.add(count)

    def state_dict(self) -> dict[str, float]:
        """Both sums."""
        return {"numerator": self._numerator.value(), "denominator": self._denominator.value()}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Go on with both sums."""
        self._numerator, self._denominator = Sum(state["numerator"]), Sum(state["denominator"])

    def counted(self) -> float:
        """What all parts count together."""
        return self._denominator.value()

    def value(self) -> float:
        """The mean of all parts; NaN when nothing counted."""
        denominator = self._denominator.value()
        return self._numerator.value() / denominator if denominator else float("nan")


def wide(number: Tensor) -> Count:
    """A 0-d tensor without its graph, to add up: a number on the CPU, else wide where it lies."""
    if number.requires_grad:
        number = number.detach()
    if number.device.type == "cpu":
        return number.item()
    return number if number.device.type == "mps" else number.double()
