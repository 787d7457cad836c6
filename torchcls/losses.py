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
from torchcls.hooks import is_hooked

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
    loss_fn = _unwrapped(loss_fn)
    if isinstance(loss_fn, nn.Module):
        if "forward" in vars(loss_fn) or type(loss_fn).__call__ is not nn.Module.__call__:
            return None  # it computes something else
        name = _FORWARDS.get(type(loss_fn).forward)
        options = {key: getattr(loss_fn, key, default) for key, default in _DEFAULTS.items()}
        return None if name is None else KnownLoss(name, options)
    # By identity: a callable of the user's own may define equality and no hash.
    names = (name for function, name in _FUNCTIONS.items() if function is loss_fn)
    name = next(names, None)
    return None if name is None else KnownLoss(name, _DEFAULTS)


def _unwrapped(loss_fn: Callable[..., Any]) -> Callable[..., Any]:
    """The module behind ``module.forward`` and ``module.__call__``."""
    module = getattr(loss_fn, "__self__", None)
    if isinstance(module, nn.Module):
        function = getattr(loss_fn, "__func__", None)
        if function in (type(module).forward, nn.Module.__call__):
            return module
    return loss_fn


def may_be_changed(loss_fn: Callable[..., Any]) -> bool:
    """Whether somebody hooked into a loss module, so that it may give something else."""
    loss_fn = _unwrapped(loss_fn)
    return isinstance(loss_fn, nn.Module) and is_hooked(loss_fn)


def reduction_of(loss_fn: Callable[..., Any]) -> str | None:
    """The ``reduction`` of any loss of torch's, also one that ``recognise`` does not name.

    Example:
        >>> reduction_of(nn.L1Loss(reduction="sum")), reduction_of(lambda outputs, targets: None)
        ('sum', None)
    """
    if isinstance(loss_fn, functools.partial):
        is_torch = getattr(loss_fn.func, "__module__", None) == F.__name__
        return loss_fn.keywords.get("reduction") if is_torch else None
    loss_fn = _unwrapped(loss_fn)
    is_torch = type(loss_fn).__module__ == nn.modules.loss.__name__
    return getattr(loss_fn, "reduction", None) if is_torch else None
