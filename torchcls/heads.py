"""The table at the centre: what y is, and which activation, loss and decision go with it.

``check``, ``predict`` and the command line read this table; nobody else repeats it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torchcls import functional
from torchcls.losses import recognise


@dataclass(frozen=True)
class Head:
    """One row: a kind of y with the distribution, activation, losses, targets and metric it has."""

    y: str
    distribution: str
    activation: str
    loss_on_raw: str
    loss_on_activated: str
    outputs_and_targets: str
    decision: str
    metric: str


REAL = Head(
    y="real number",
    distribution="normal",
    activation="none",
    loss_on_raw="mse_loss",
    loss_on_activated="-",
    outputs_and_targets="same shape, float",
    decision="itself",
    metric="-",
)
BINARY = Head(
    y="0 or 1",
    distribution="Bernoulli",
    activation="sigmoid",
    loss_on_raw="binary_cross_entropy_with_logits",
    loss_on_activated="binary_cross_entropy",
    outputs_and_targets="(n,1) or (n,), the same for both, float",
    decision="p > 0.5",
    metric="threshold_accuracy",
)
MULTICLASS = Head(
    y="one of k",
    distribution="categorical",
    activation="softmax",
    loss_on_raw="cross_entropy",
    loss_on_activated="nll_loss of the log",
    outputs_and_targets="(n,k) / (n,) int64, or (n,k) float rows",
    decision="argmax",
    metric="accuracy",
)
MULTILABEL = Head(
    y="k times 0 or 1",
    distribution="k Bernoullis",
    activation="sigmoid",
    loss_on_raw="binary_cross_entropy_with_logits",
    loss_on_activated="binary_cross_entropy",
    outputs_and_targets="(n,k) / (n,k) float",
    decision="p > 0.5 each",
    metric="multilabel_accuracy",
)

TABLE: tuple[Head, ...] = (REAL, BINARY, MULTICLASS, MULTILABEL)


def table() -> str:
    """The table as text, in columns.

    Example:
        >>> print(table().splitlines()[0].split()[:3])
        ['y', 'distribution', 'activation']
    """
    names = list(Head.__dataclass_fields__)
    rows = [[name.replace("_", " ") for name in names]]
    rows += [[getattr(head, name) for name in names] for head in TABLE]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def activation_within(loss: str) -> str | None:
    """The activation that a loss applies by itself, or None.

    Example:
        >>> activation_within("cross_entropy"), activation_within("nll_loss")
        ('softmax', None)
    """
    found = (head.activation for head in TABLE if head.loss_on_raw == loss)
    return next((name for name in found if name != "none"), None)


def activation_before(loss: str) -> str | None:
    """The activation that a loss needs to have been applied, or None.

    Example:
        >>> activation_before("nll_loss"), activation_before("cross_entropy")
        ('log_softmax', None)
    """
    for head in TABLE:
        if head.loss_on_activated.split()[0] == loss:
            return f"log_{head.activation}" if "log" in head.loss_on_activated else head.activation
    return None


def row_of(loss: str, outputs: Tensor) -> Head:
    """The row of the table that a loss on outputs of this shape belongs to.

    Example:
        >>> row_of("binary_cross_entropy", torch.zeros(8, 1)).metric
        'threshold_accuracy'
    """
    rows = [
        head
        for head in TABLE
        if head.loss_on_raw == loss or head.loss_on_activated.split()[0] == loss
    ]
    has_columns = outputs.ndim > 1 and outputs.shape[1] > 1
    return rows[-1] if has_columns else rows[0]


def probabilities(outputs: Tensor, loss_fn: Callable[..., Any]) -> Tensor:
    """Turn raw outputs into probabilities, as the loss reads them.

    Args:
        outputs: What the model gave; classes in dim 1.
        loss_fn: A loss that torchcls knows; it names the activation.

    Returns:
        Same shape: softmax over dim 1 for cross-entropy, exp for NLL, sigmoid for BCE with logits,
        the outputs themselves for BCE.

    Raises:
        ValueError: If the loss has no probabilities, or is one of the user's own.

    Example:
        >>> probabilities(torch.tensor([[-2.0, -2.0, 0.0]]), torch.nn.CrossEntropyLoss())
        tensor([[0.1065, 0.1065, 0.7870]])
    """
    name = _name(loss_fn)
    if name not in _ACTIVATIONS:
        raise ValueError("probabilities must come from a classification loss, got mse_loss.")
    return _ACTIVATIONS[name](outputs)


def decisions(outputs: Tensor, loss_fn: Callable[..., Any]) -> Tensor:
    """Turn raw outputs into what they say y is.

    Returns:
        Class ids, int64, shape (n, ...) without dim 1, for cross-entropy and NLL; 0 or 1, int64,
        same shape, for the BCE losses; the outputs themselves for MSE. Ties go to the lowest class.
        A row (an element) that holds NaN decides nothing: -1.

    Raises:
        ValueError: If the loss is one of the user's own.

    Example:
        >>> decisions(torch.tensor([[1.0, 3.0], [2.0, 2.0]]), torch.nn.CrossEntropyLoss())
        tensor([1, 0])
        >>> decisions(torch.tensor([[0.2], [-0.2]]), torch.nn.BCEWithLogitsLoss())
        tensor([[1],
                [0]])
    """
    name = _name(loss_fn)
    if name == "mse_loss":
        return outputs
    if name in ("cross_entropy", "nll_loss"):
        return torch.where(outputs.isnan().any(1), -1, outputs.argmax(1))
    p = _ACTIVATIONS[name](outputs)
    return torch.where(p.isnan(), -1, (p > 0.5).long())


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "cross_entropy": lambda logits: functional.softmax(logits, dim=1),
    "nll_loss": torch.exp,
    "binary_cross_entropy_with_logits": functional.sigmoid,
    "binary_cross_entropy": lambda probs: probs,
}


def _name(loss_fn: Callable[..., Any]) -> str:
    known = recognise(loss_fn)
    if known is None:
        raise ValueError(
            "loss_fn must be one whose activation is known (cross_entropy, nll_loss, the two BCE "
            f"losses, mse_loss), got {loss_fn!r}. Apply your activation to .outputs yourself."
        )
    return known.name
