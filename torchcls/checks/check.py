"""``check``: one forward and backward of one batch, looked at from all sides, without a trace."""

import contextlib
import copy
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from torchcls.averaging import averaging_of, one_loss
from torchcls.checks import contract, failure, finite, scores, sources, training
from torchcls.checks.findings import Finding, Severity, error
from torchcls.checks.untouched import untouched
from torchcls.device import device_of, to_device
from torchcls.loops import as_pair, loss_on
from torchcls.modes import training as in_training_mode
from torchcls.scorers import Metrics, named_metrics
from torchcls.step import Loss, Seen
from torchcls.structure import mapped

_MOST_NUMBERS = 1_000_000  # of inputs that are sent through: enough to look at, and fast
_ORDER: dict[Severity, int] = {"error": 0, "warning": 1, "note": 2}


def check(
    model: nn.Module,
    batch: Any,
    loss_fn: Loss,
    metrics: Metrics = (),
    optimizer: Optimizer | None = None,
) -> list[Finding]:
    """Look for what is wrong with a training step before it is taken.

    Runs one forward and backward of the batch in training mode, and of a batch with more than a
    million numbers only as many samples as hold that. Weights, buffers, gradients, attributes,
    modes, hooks and random states are as before afterwards; metric objects are copied. Functions of
    your own in ``metrics`` are called on the batch, and on made-up answers where there is one
    output for each sample.

    What was executed last is read off the autograd graph of the outputs, not guessed from the
    names of modules. Where a rule cannot be certain it gives a note.

    Args:
        model: Any module.
        batch: A pair (inputs, targets), as the loop would get it.
        loss_fn: Called as ``loss_fn(outputs, targets)``.
        metrics: As ``evaluate`` takes them.
        optimizer: The optimizer that is to train the model; None leaves out what concerns it.

    Returns:
        Findings, the worst first: each has ``.code``, ``.severity`` ("error", "warning" or "note")
        and ``.message``, which names the mistake, what was seen, and the fix. Empty where nothing
        was found.

    Raises:
        TypeError, ValueError: If an argument is not of its kind.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.Softmax(dim=1))
        >>> batch = torch.zeros(4, 2), torch.tensor([0, 1, 2, 0])
        >>> for finding in check(model, batch, nn.CrossEntropyLoss()):
        ...     print(finding)
        The model ends in a softmax, but CrossEntropyLoss applies the softmax itself, so the loss
        cannot fall below 0.551 for 3 classes. Remove the softmax from the model. [activated-twice]
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an instance of nn.Module, got {model!r}.")
    named = named_metrics(metrics)
    averaging_of(loss_fn)
    found = [*training.findings_of(model, loss_fn, optimizer), *contract.options_of(loss_fn)]
    try:
        pair = as_pair(batch, "batch")
    except TypeError as no_pair:
        found.append(error("batch-form", str(no_pair)))
        return _sorted(found)
    kept = [model, loss_fn]
    if any(is_lazy(tensor) for tensor in (*model.parameters(), *model.buffers())):
        try:  # a first forward gives them their shapes
            model, optimizer, kept = copy.deepcopy(model), None, [loss_fn]
        except Exception:  # some cannot be copied before
            return _sorted(found)
    with untouched(*kept), in_training_mode(model), eager(model):
        found += _look_at_step(model, pair, loss_fn, named, optimizer)
    return _sorted(found)


def _sorted(findings: list[Finding]) -> list[Finding]:
    return sorted(dict.fromkeys(findings), key=lambda finding: _ORDER[finding.severity])


@contextlib.contextmanager
def eager(model: nn.Module) -> Iterator[None]:
    """Run a compiled model as it was written, so that its graph can be read."""
    if not is_compiled(model):
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def is_compiled(model: nn.Module) -> bool:
    """Whether any part of a model is compiled."""
    return any(
        hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None
        for module in model.modules()
    )


def _look_at_step(
    model: nn.Module,
    pair: tuple[Any, Any],
    loss_fn: Loss,
    named: dict[str, Any],
    optimizer: Optimizer | None,
) -> list[Finding]:
    device = device_of(model)
    loss_fn = loss_on(loss_fn, device)
    inputs, targets = to_device(_few(pair) if contract.name_of(loss_fn) else pair, device)
    inputs = mapped(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, inputs)
    try:
        outputs = model(inputs)
    except Exception as raised:
        explained = failure.explain_forward(raised, model, inputs)
        return [explained or _failed("forward-fails", "model", raised, inputs)]
    found = contract.findings_of(Seen(inputs, targets, outputs), loss_fn)
    if isinstance(pair[1], Tensor):  # all of them, where fewer went through
        found += sources.target_range(pair[1], outputs, loss_fn)
    found += scores.findings_of(named, outputs, targets, loss_fn, is_asked=True)
    found += scores.loss_findings(loss_fn, outputs, targets)
    try:
        averaging = averaging_of(loss_fn)
        loss, count = one_loss(loss_fn(outputs, targets), averaging.count(targets))
    except Exception as raised:
        is_known = any(finding.severity == "error" for finding in found)
        return found if is_known else [*found, _failed("loss-fails", "loss", raised, outputs)]
    found += training.graph_findings(outputs, loss, model)
    mean = averaging.reported(loss.detach(), count)
    found += _numbers(mean, count, inputs, targets, outputs, model, loss_fn)
    if loss.requires_grad:
        if optimizer is not None and contract.name_of(loss_fn) is None:
            found += training.held_findings(model, optimizer, training.leaves(loss))
        found += _gradients(loss, model, optimizer)
    return found


def _few(pair: tuple[Any, Any]) -> tuple[Any, Any]:
    """As many samples as are needed to look at; the whole batch where it is no large tensor."""
    inputs, targets = pair
    if not isinstance(inputs, Tensor) or not isinstance(targets, Tensor):
        return pair
    if inputs.numel() <= _MOST_NUMBERS or inputs.shape[:1] != targets.shape[:1]:
        return pair
    size = max(2, _MOST_NUMBERS // inputs[0].numel())
    return inputs[:size], targets[:size]


def _failed(code: str, what: str, raised: Exception, given: Any) -> Finding:
    return error(
        code,
        f"The {what} raises {type(raised).__name__} on {failure.describe(given)}: {raised}",
    )


def _numbers(
    loss: Tensor,
    count: Any,
    inputs: Any,
    targets: Any,
    outputs: Any,
    model: nn.Module,
    loss_fn: Loss,
) -> list[Finding]:
    value = loss.item()
    if isinstance(count, (int, float)) and count == 0:
        return []  # nothing counts: a loop takes it for 0
    if math.isfinite(value):
        return list(sources.unscaled_pixels(inputs, outputs, value, loss_fn))
    return [
        finite.why_not_finite(
            "non-finite-loss", "this batch", value, inputs, targets, outputs, model, ""
        )
    ]


def _gradients(loss: Tensor, model: nn.Module, optimizer: Optimizer | None) -> list[Finding]:
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        return []
    try:
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    except RuntimeError:  # reentrant checkpoints, say, work with backward() alone
        return []
    got = {id(p) for p, g in zip(parameters, gradients, strict=True) if g is not None}
    of_model = set(map(id, model.parameters()))
    got |= training.leaves(loss) - of_model  # a loss's own
    found = list(training.gradient_findings(got, model, optimizer))
    if math.isfinite(loss.item()) and not finite.is_finite(gradients):
        names = {id(p): name for name, p in model.named_parameters()}
        bad = [
            names[id(p)]
            for p, g in zip(parameters, gradients, strict=True)
            if g is not None and not finite.is_finite([g])
        ]
        found.append(finite.why_gradient("this batch", bad, ""))
    return found
