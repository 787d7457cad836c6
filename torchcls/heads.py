"""The table at the centre: what y is, and which loss, activation, decision and metric go with it.

Data that everybody else reads: nobody keeps a second list, or asks which loss a callable is.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchcls import functional, metrics

Function = Callable[..., Any]


@dataclass(frozen=True)
class LossKind:
    """What a loss does to the outputs, and what it takes for targets."""

    name: str  # in torch.nn.functional
    module: type[nn.Module]  # in torch.nn
    targets: str  # "ids", "ids or rows", or of the outputs' shape "in [0, 1]", "floats", "numbers"
    within: str | None = None  # the activation that it applies itself
    counts: str = "numbers"  # of the targets, what its mean divides by: or "rows", or "classes"
    before: str | None = None  # the activation that it needs to have been applied


_KINDS = (
    LossKind("mse_loss", nn.MSELoss, "numbers"),
    LossKind("binary_cross_entropy_with_logits", nn.BCEWithLogitsLoss, "in [0, 1]", "sigmoid"),
    LossKind("binary_cross_entropy", nn.BCELoss, "in [0, 1]", before="sigmoid"),
    LossKind("cross_entropy", nn.CrossEntropyLoss, "ids or rows", "softmax", counts="classes"),
    LossKind("nll_loss", nn.NLLLoss, "ids", before="log_softmax", counts="classes"),
    # No row of the table has these, but what they do is known.
    LossKind(
        "multilabel_soft_margin_loss", nn.MultiLabelSoftMarginLoss, "numbers", "sigmoid", "rows"
    ),
    LossKind("multilabel_margin_loss", nn.MultiLabelMarginLoss, "numbers", counts="rows"),
    LossKind("multi_margin_loss", nn.MultiMarginLoss, "ids"),
    LossKind("kl_div", nn.KLDivLoss, "floats", before="log_softmax"),
    LossKind("smooth_l1_loss", nn.SmoothL1Loss, "numbers"),
    LossKind("huber_loss", nn.HuberLoss, "floats"),
    LossKind("l1_loss", nn.L1Loss, "numbers"),
    LossKind("poisson_nll_loss", nn.PoissonNLLLoss, "numbers"),
    LossKind("gaussian_nll_loss", nn.GaussianNLLLoss, "numbers"),  # a partial that has its var
    LossKind("soft_margin_loss", nn.SoftMarginLoss, "numbers"),
    LossKind("hinge_embedding_loss", nn.HingeEmbeddingLoss, "numbers"),
)
LOSSES: Mapping[str, LossKind] = {kind.name: kind for kind in _KINDS}


@dataclass(frozen=True)
class Head:
    """One row of the table: a kind of y, and what goes with it."""

    y: str
    distribution: str
    activation: str | None  # the last one of a model
    losses: tuple[str, ...]  # on raw outputs, and on activated ones
    outputs: str  # how many numbers a model gives for a sample: "one", "many" or "any" number
    decision: str  # what outputs say y is: "itself", "p > 0.5", "p > 0.5 each" or "argmax"
    metrics: tuple[Function, ...] = ()  # what reads outputs and targets of it, the usual one first

    @property
    def metric(self) -> str | None:
        """The name of the usual metric."""
        return self.metrics[0].__name__ if self.metrics else None

    @property
    def targets(self) -> str:
        """The form of its targets, as its losses take them."""
        return LOSSES[self.losses[0]].targets

    def cells(self) -> dict[str, str]:
        """The row as text, column by column."""
        raw, activated = (*self.losses, "-")[:2]
        shapes = {
            ("any", "numbers"): "same shape, float",
            ("one", "in [0, 1]"): "(n,1) or (n,), the same for both, float",
            ("many", "in [0, 1]"): "(n,k) / (n,k) float",
            ("many", "ids or rows"): "(n,k) / (n,) int64, or (n,k) float rows",
        }
        return {
            "y": self.y,
            "distribution": self.distribution,
            "last activation": self.activation or "none",
            "loss on raw outputs": raw,
            "loss on activated outputs": activated.replace("nll_loss", "nll_loss of the log"),
            "outputs / targets": shapes[self.outputs, self.targets],
            "decision": self.decision,
            "metric": self.metric or "-",
        }


_BY_CLASS = ("cross_entropy", "nll_loss")
_BY_BIT = ("binary_cross_entropy_with_logits", "binary_cross_entropy")
_OF_BITS, _OF_ONE = (metrics.multilabel_accuracy,), (metrics.threshold_accuracy,)
_OF_IDS = (metrics.accuracy, metrics.error_rate, metrics.top_k_accuracy, metrics.confusion_matrix)
REAL = Head("real number", "normal", None, ("mse_loss",), "any", "itself")
BINARY = Head("0 or 1", "Bernoulli", "sigmoid", _BY_BIT, "one", "p > 0.5", _OF_ONE)
MULTICLASS = Head("one of k", "categorical", "softmax", _BY_CLASS, "many", "argmax", _OF_IDS)
MULTILABEL = Head(
    "k times 0 or 1", "k Bernoullis", "sigmoid", _BY_BIT, "many", "p > 0.5 each", _OF_BITS
)
TABLE: tuple[Head, ...] = (REAL, BINARY, MULTICLASS, MULTILABEL)


def table() -> str:
    """The table as text, in columns.

    Examples:
        >>> print(table().splitlines()[-1].split("  ")[0])
        k times 0 or 1
    """
    rows = [list(REAL.cells()), *(list(head.cells().values()) for head in TABLE)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def row_of(loss: str, outputs: Tensor) -> Head | None:
    """The row that a loss on outputs of this shape belongs to; None for a loss outside the table.

    Examples:
        >>> row_of("binary_cross_entropy", torch.zeros(8, 1)).metric
        'threshold_accuracy'
    """
    rows = [head for head in TABLE if loss in head.losses]
    has_many = outputs.ndim > 1 and outputs.shape[1] > 1
    return next((row for row in rows if (row.outputs == "many") == has_many), (*rows, None)[0])


# ------------------------------------------------------------------ which loss a callable is


@dataclass(frozen=True)
class KnownLoss:
    """A recognised loss: its name in ``torch.nn.functional`` and the options in force."""

    name: str
    options: Mapping[str, Any]
    called: str = field(default="", compare=False)  # by the user: CrossEntropyLoss, cross_entropy

    @property
    def kind(self) -> LossKind:
        """What it does to the outputs."""
        return LOSSES[self.name]

    def __str__(self) -> str:
        return self.called or self.name


_FUNCTIONS = [
    (vars(of)[name], name) for of in (F, functional) for name in LOSSES if name in vars(of)
]
# By the forward method: a subclass that computes something else has a forward of its own.
_FORWARDS = {kind.module.forward: kind.name for kind in _KINDS}
_DEFAULTS: dict[str, Any] = {
    "weight": None,
    "ignore_index": -100,
    "reduction": "mean",
    "label_smoothing": 0.0,
    "pos_weight": None,
    "var": None,
}


def recognise(loss_fn: Function) -> KnownLoss | None:
    """Name a loss of the table and its options, or return None for any other.

    A module of torch's is known, compiled and subclassed too, and so is its function, torch's or
    ours, and a ``functools.partial`` of that with keywords.

    Examples:
        >>> recognise(nn.NLLLoss(ignore_index=255)).name
        'nll_loss'
        >>> recognise(functools.partial(F.cross_entropy, reduction="sum")).options["reduction"]
        'sum'
    """
    known = named(loss_fn)
    return known if known and any(known.name in head.losses for head in TABLE) else None


def named(loss_fn: Function) -> KnownLoss | None:
    """``recognise``, for the losses outside the table too whose outputs and targets are known."""
    loss_fn = _unwrapped(loss_fn)
    if isinstance(loss_fn, functools.partial):
        known = None if loss_fn.args else named(loss_fn.func)
        return known and replace(known, options={**known.options, **loss_fn.keywords})
    if isinstance(loss_fn, nn.Module):
        if "forward" in vars(loss_fn) or type(loss_fn).__call__ is not nn.Module.__call__:
            return None  # it computes something else
        name = _FORWARDS.get(type(loss_fn).forward)
        options = {key: getattr(loss_fn, key, default) for key, default in _DEFAULTS.items()}
        return None if name is None else KnownLoss(name, options, type(loss_fn).__name__)
    # By identity: a callable of the user's own may define equality and no hash.
    name = next((name for function, name in _FUNCTIONS if function is loss_fn), None)
    return None if name is None else KnownLoss(name, _DEFAULTS, name)


def _unwrapped(loss_fn: Function) -> Function:
    """What is behind ``torch.compile``, ``module.forward`` and ``module.__call__``."""
    for behind in ("_orig_mod", "_torchdynamo_orig_callable"):  # of a module, of a function
        loss_fn = getattr(loss_fn, behind, loss_fn)
    if getattr(loss_fn, "__globals__", {}).get("__name__") == "torch._dynamo.external_utils":
        loss_fn = inspect.unwrap(loss_fn)  # what is torch's own is wrapped once more
    module = getattr(loss_fn, "__self__", None)
    function = getattr(loss_fn, "__func__", None)
    if isinstance(module, nn.Module) and function in (type(module).forward, nn.Module.__call__):
        return module
    return loss_fn


def may_be_changed(loss_fn: Function) -> bool:
    """Whether somebody hooked into a loss module, so that it may give something else."""
    loss_fn = _unwrapped(loss_fn)
    return isinstance(loss_fn, nn.Module) and is_hooked(loss_fn)


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def is_hooked(module: nn.Module) -> bool:
    """Whether a call of this very module may do more than its type says.

    So it may with a hook, its own or one on all modules; with a ``forward`` put in place of its
    type's; and compiled. Submodules are not looked at.
    """
    everywhere = vars(torch.nn.modules.module)
    return (
        any(getattr(module, name, None) or everywhere.get(f"_global{name}") for name in _HOOKS)
        or "forward" in vars(module)
        or getattr(module, "_compiled_call_impl", None) is not None
    )


# ------------------------------------------------------------------ what outputs say


def probabilities(outputs: Tensor, loss_fn: Function) -> Tensor:
    """Turn raw outputs, classes in dim 1, into probabilities of the same shape, as the loss does.

    That is softmax over dim 1 for cross-entropy, exp for NLL, sigmoid for BCE with logits, nothing
    for BCE. A loss without probabilities, or one of the user's own, is a ValueError.

    Examples:
        >>> probabilities(torch.tensor([[-2.0, -2.0, 0.0]]), torch.nn.CrossEntropyLoss())
        tensor([[0.1065, 0.1065, 0.7870]])
    """
    kind = _known(loss_fn)
    if not has_probabilities(loss_fn):
        raise ValueError(f"probabilities must come from a classification loss, got {kind.name}.")
    if kind.within == "softmax":
        return functional.softmax(outputs, dim=1)
    if kind.within == "sigmoid":
        return functional.sigmoid(outputs)
    return outputs.exp() if kind.before == "log_softmax" else outputs


def has_probabilities(loss_fn: Function) -> bool:
    """Whether a loss that torchcls knows belongs to a distribution over classes: all but MSE."""
    kind = _known(loss_fn)
    return kind.within is not None or kind.before is not None


def decisions(outputs: Tensor, loss_fn: Function) -> Tensor:
    """Turn raw outputs into what they say y is.

    Class ids, int64, shape (n, ...) without dim 1, for cross-entropy and NLL; 0 or 1, int64, same
    shape, for the BCE losses; the outputs themselves for MSE. Ties go to the lowest class. A row
    (an element) that holds NaN decides nothing: -1. A loss of the user's own is a ValueError.

    Examples:
        >>> decisions(torch.tensor([[1.0, 3.0], [2.0, 2.0]]), torch.nn.CrossEntropyLoss())
        tensor([1, 0])
        >>> decisions(torch.tensor([[0.2], [-0.2]]), torch.nn.BCEWithLogitsLoss())
        tensor([[1],
                [0]])
    """
    row = row_of(_known(loss_fn).name, outputs)
    if row is None or row.decision == "itself":
        return outputs
    if row.decision == "argmax":
        return torch.where(outputs.isnan().any(1), -1, outputs.argmax(1))
    p = probabilities(outputs, loss_fn)
    return torch.where(p.isnan(), -1, (p > 0.5).long())


def _known(loss_fn: Function) -> LossKind:
    known = recognise(loss_fn)
    if known is None:
        raise ValueError(
            "loss_fn must be one whose activation is known (cross_entropy, nll_loss, the two BCE "
            f"losses, mse_loss), got {loss_fn!r}. Leave loss_fn out, and apply your "
            "activation to the outputs."
        )
    return known.kind
