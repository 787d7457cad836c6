"""Which loss a callable is: the one place that recognises torch's losses and our own.

How a loss averages (``averaging``) and which output it belongs to (``heads``) both follow from its
name and options, whether it comes as a module, a function or a ``functools.partial`` of one.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import nn

from torchcls import functional

_FUNCTIONS: dict[Callable[..., Any], str] = {
    F.cross_entropy: "cross_entropy",
    F.nll_loss: "nll_loss",
    F.binary_cross_entropy: "binary_cross_entropy",
    F.binary_cross_entropy_with_logits: "binary_cross_entropy_with_logits",
    F.mse_loss: "mse_loss",
    functional.cross_entropy: "cross_entropy",
    functional.nll_loss: "nll_loss",
    functional.binary_cross_entropy: "binary_cross_entropy",
    functional.binary_cross_entropy_with_logits: "binary_cross_entropy_with_logits",
    functional.mse_loss: "mse_loss",
}

# By the forward method: a subclass that computes something else has a forward of its own.
_FORWARDS: dict[Callable[..., Any], str] = {
    nn.CrossEntropyLoss.forward: "cross_entropy",
    nn.NLLLoss.forward: "nll_loss",
    nn.BCELoss.forward: "binary_cross_entropy",
    nn.BCEWithLogitsLoss.forward: "binary_cross_entropy_with_logits",
    nn.MSELoss.forward: "mse_loss",
}

_DEFAULTS: dict[str, Any] = {
    "weight": None,
    "ignore_index": -100,
    "reduction": "mean",
    "label_smoothing": 0.0,
    "pos_weight": None,
}


@dataclass(frozen=True)
class KnownLoss:
    """A recognised loss: its name in ``torch.nn.functional`` and the options in force."""

    name: str
    options: Mapping[str, Any]


def recognise(loss_fn: Callable[..., Any]) -> KnownLoss | None:
    """Name a loss and its options, or return None for a loss of the user's own.

    Args:
        loss_fn: Any callable. Known are ``nn.CrossEntropyLoss``, ``nn.NLLLoss``, ``nn.BCELoss``,
            ``nn.BCEWithLogitsLoss``, ``nn.MSELoss``, their forms in ``torch.nn.functional`` and in
            ``torchcls``, and ``functools.partial`` of those functions with keywords.

    Example:
        >>> recognise(nn.NLLLoss(ignore_index=255)).name
        'nll_loss'
        >>> recognise(functools.partial(F.cross_entropy, reduction="sum")).options["reduction"]
        'sum'
        >>> recognise(lambda outputs, targets: (outputs - targets).abs().mean()) is None
        True
    """
    if isinstance(loss_fn, functools.partial):
        known = None if loss_fn.args else recognise(loss_fn.func)
        return known and KnownLoss(known.name, {**known.options, **loss_fn.keywords})
    if getattr(loss_fn, "__func__", None) in _FORWARDS:  # loss.forward, called by hand
        return recognise(loss_fn.__self__)  # type: ignore[attr-defined]
    if isinstance(loss_fn, nn.Module):
        name = _FORWARDS.get(type(loss_fn).forward)
        options = {key: getattr(loss_fn, key, default) for key, default in _DEFAULTS.items()}
        return None if name is None else KnownLoss(name, options)
    # By identity: a callable of the user's own may define equality and no hash.
    names = (name for function, name in _FUNCTIONS.items() if function is loss_fn)
    name = next(names, None)
    return None if name is None else KnownLoss(name, _DEFAULTS)


def reduction_of(loss_fn: Callable[..., Any]) -> str | None:
    """The ``reduction`` of any loss of torch's, also one that ``recognise`` does not name.

    Example:
        >>> reduction_of(nn.L1Loss(reduction="sum")), reduction_of(lambda outputs, targets: None)
        ('sum', None)
    """
    if isinstance(loss_fn, functools.partial):
        is_torch = getattr(loss_fn.func, "__module__", None) == F.__name__
        return loss_fn.keywords.get("reduction") if is_torch else None
    is_torch = type(loss_fn).__module__ == nn.modules.loss.__name__
    return getattr(loss_fn, "reduction", None) if is_torch else None
