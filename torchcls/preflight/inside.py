"""What happens inside functions of the user's own: which of torch's they call, and with what."""

import functools
from collections.abc import Iterator
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.optim import Optimizer
from torch.overrides import TorchFunctionMode

from torchcls.averaging import averaging_of, check_denominator, is_fraction
from torchcls.heads import LOSSES, KnownLoss, named
from torchcls.preflight import contract
from torchcls.preflight.findings import Finding, error, warning
from torchcls.preflight.graph import leaves
from torchcls.preflight.reading import drawing_nothing, is_readable, leaves_of
from torchcls.preflight.training import held_by
from torchcls.step import Loss


class Called(TorchFunctionMode):
    """Notes torch's losses that are called while it is entered, and what drops out.

    ``losses`` has each as a partial with its options, its outputs and targets, and what it gave;
    ``result`` is for what the whole function gave.
    """

    def __init__(self) -> None:
        super().__init__()
        self.losses: list[tuple[Loss, Any, Any, Any]] = []
        self.drops: set[str] = set()
        self.result: Any = None

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        name = getattr(function, "__name__", "")
        if name not in vars(F) or vars(F)[name] is not function:
            return result
        if name in LOSSES and len(args) == 2:
            options = {option: value for option, value in kwargs.items() if value is not None}
            self.losses.append((functools.partial(function, **options), args[0], args[1], result))
        elif name == "scaled_dot_product_attention":  # knows no mode
            if kwargs.get("dropout_p", [*args[4:5], 0][0]):
                self.drops.add(f"{name} with dropout_p")
        elif "dropout" in name and kwargs.get("training") and kwargs.get("p"):
            self.drops.add(name)
        return result


def loss_findings(called: Called, loss_fn: Loss, outputs: Any, targets: Any) -> Iterator[Finding]:
    """What the call of a loss of the user's own shows."""
    for inner, scores, labels, result in called.losses:
        loss = named(inner)
        if loss is None or not isinstance(scores, Tensor) or not isinstance(labels, Tensor):
            continue
        if _are_swapped(scores, labels, targets, loss):
            seen = f"{loss} gets the targets first, and what the model gives as its targets."
            yield error("swapped-arguments", f"{seen} Use {loss}(outputs, targets).")
            continue
        if "ids" in loss.kind.targets or scores.shape == labels.shape:  # else meant to broadcast
            yield from contract.findings_of(None, labels, scores, inner)
        if len(called.losses) == 1 and not is_fraction(called.result):
            yield from _average(inner, labels, loss, is_all=result is called.result)
    if is_fraction(called.result):
        try:
            with drawing_nothing():
                check_denominator(loss_fn, outputs, targets)
        except ValueError as refusal:
            yield error("loss-fails", str(refusal))
        except (TypeError, RuntimeError):  # the step itself has taken it
            return


def _are_swapped(scores: Tensor, labels: Tensor, targets: Any, loss: KnownLoss) -> bool:
    """Whether a loss gets the very targets of the batch where its outputs belong."""
    is_one_way = loss.kind.within is not None or loss.kind.before == "sigmoid"
    if not is_one_way or scores.requires_grad or not labels.requires_grad:
        return False
    is_like = isinstance(targets, Tensor) and scores.shape == targets.shape and is_readable(scores)
    return scores is targets or (is_like and bool((scores == targets).all()))


def _average(inner: Loss, labels: Tensor, loss: KnownLoss, *, is_all: bool) -> Iterator[Finding]:
    """Whether a loss is no mean over samples, which one of the user's own is taken for."""
    reduction = loss.options["reduction"]
    is_other = reduction == "sum" and is_all
    if reduction == "mean" and loss.kind.counts == "classes" and not labels.is_floating_point():
        count = averaging_of(inner).count((None, labels))  # on an accelerator nobody reads it
        is_part = not isinstance(count, Tensor) and count != labels.numel()
        is_other = is_part or loss.options["weight"] is not None
    if is_other:
        seen = f"The loss is a {reduction} of {loss} and no mean over samples, but one of your own"
        taken = "is taken for that: an epoch's loss weighs its batches by their samples."
        fix = "For the exact loss return (numerator, denominator), or pass torch's loss as it is."
        yield warning("averaged-by-samples", f"{seen} {taken} {fix}")


def unheld_findings(
    given: Any, model: nn.Module, loss_fn: Loss, optimizer: Optimizer | None
) -> Iterator[Finding]:
    """Whether outputs and loss come from parameters that nobody trains."""
    held = [*model.parameters(), *held_by(optimizer)]
    held += loss_fn.parameters() if isinstance(loss_fn, nn.Module) else []
    ids = set(map(id, held))
    tensors = [part for part in leaves_of(given) if isinstance(part, Tensor)]
    found = {id(leaf): leaf for tensor in tensors for leaf in leaves(tensor)}
    left = [p for place, p in found.items() if isinstance(p, nn.Parameter) and place not in ids]
    if left:
        shapes = ", ".join(str(tuple(p.shape)) for p in left[:3])
        seen = f"The loss has gradients for {len(left)} parameters (the first of shape {shapes})"
        where = "that neither the model nor the optimizer holds: nothing trains them."
        fix = "Make layers in __init__ and keep lists of them in nn.ModuleList; give the optimizer"
        rest = "those of a loss; freeze what is to stay as it is: requires_grad_(False)."
        yield warning("unheld-parameters", f"{seen} {where} {fix} {rest}")


def still_training(model: nn.Module) -> set[str]:
    """The kinds of layers that work in another way in training, and are in that mode now."""
    kinds = (_BatchNorm, _DropoutNd)
    return {type(m).__name__ for m in model.modules() if m.training and isinstance(m, kinds)}


def evaluation_findings(training: set[str], drops: set[str]) -> Iterator[Finding]:
    """Whether a model went on as in training when it was evaluated."""
    if training:
        seen = f"After model.eval() there is {' and '.join(sorted(training))} in training mode."
        fix = "A train() of your own must hand its mode on: super().train(mode)."
        yield warning("trains-in-evaluation", f"{seen} {fix}")
    elif drops:
        seen = f"The model still applies dropout in evaluation: {', '.join(sorted(drops))}."
        fix = "Use nn.Dropout, or give it training=self.training (no dropout_p in evaluation)."
        fix += " If it is meant, as in Monte Carlo dropout: ignore=['trains-in-evaluation']."
        yield warning("trains-in-evaluation", f"{seen} {fix}")
