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

from torchcls import heads
from torchcls.averaging import averaging_of
from torchcls.batches import Pair, as_pair, device_of, mapped, to_device
from torchcls.evaluation import Metrics, named_metrics
from torchcls.preflight import contract, failure, graph, inside, scores, sources, training
from torchcls.preflight import targets as of_targets
from torchcls.preflight.findings import Finding, Severity, error
from torchcls.preflight.reading import describe, untouched
from torchcls.run import training as in_training_mode
from torchcls.step import ForwardOf, Loss, forward_of, loss_on

_MOST_NUMBERS = 1_000_000  # of inputs that are sent through: enough to look at, and fast
_ORDER: dict[Severity, int] = {"error": 0, "warning": 1, "note": 2}


def check(
    model: nn.Module,
    batch: Any,
    loss_fn: Loss,
    metrics: Metrics = (),
    optimizer: Optimizer | None = None,
    *,
    forward: ForwardOf = None,
) -> list[Finding]:
    """Look for what is wrong with a training step before it is taken.

    Runs one forward and backward of the batch in training mode, and of a batch with more than a
    million numbers only as many samples as hold that. Weights, buffers, gradients, attributes,
    modes, hooks and random states are as before afterwards; metric objects are copied. Where there
    is one output for each sample, functions of your own are called, also on made-up answers.

    Args:
        model: Any module.
        batch: A pair (inputs, targets), as the loop would get it.
        loss_fn: Called as ``loss_fn(outputs, targets)``.
        metrics: As ``evaluate`` takes them.
        optimizer: The optimizer that is to train the model; None leaves out what concerns it.
        forward: Called as ``forward(model, inputs)`` in place of ``model(inputs)``.

    Returns:
        Findings, the worst first: each has ``.code``, ``.severity`` ("error", "warning" or "note")
        and ``.message``, which names the mistake, what was seen, and the fix. Empty where nothing
        was found.

    Raises:
        TypeError, ValueError: If an argument is not of its kind.

    Examples:
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
    forward_of(model, forward)
    found = [*training.findings_of(model, loss_fn, optimizer), *of_targets.options_of(loss_fn)]
    found += _of_batch(model, batch, loss_fn, named, optimizer, forward)
    return sorted(dict.fromkeys(found), key=lambda finding: _ORDER[finding.severity])


def _of_batch(
    model: nn.Module,
    batch: Any,
    loss_fn: Loss,
    named: dict[str, Any],
    optimizer: Optimizer | None,
    forward: ForwardOf,
) -> list[Finding]:
    try:
        pair = as_pair(batch, "batch")
    except TypeError as no_pair:
        return [error("batch-form", str(no_pair))]
    kept = [model, loss_fn]
    if any(is_lazy(tensor) for tensor in (*model.parameters(), *model.buffers())):
        try:  # a first forward gives them their shapes
            model, optimizer, kept = copy.deepcopy(model), None, [loss_fn]
        except Exception:  # some cannot be copied before
            return []
    with untouched(*kept), torch.enable_grad(), in_training_mode(model), eager(model):
        return _of_step(model, pair, loss_fn, named, optimizer, forward)


def eager(model: nn.Module) -> contextlib.AbstractContextManager[Any]:
    """Run a compiled model as it was written, so that its graph can be read."""
    stance: contextlib.AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance if is_compiled(model) else contextlib.nullcontext()


def is_compiled(model: nn.Module) -> bool:
    """Whether any part of a model is compiled."""
    return any(
        hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None
        for module in model.modules()
    )


def _of_step(
    model: nn.Module,
    pair: Pair,
    loss_fn: Loss,
    named: dict[str, Any],
    optimizer: Optimizer | None,
    forward: ForwardOf,
) -> list[Finding]:
    device = device_of(model)
    loss_fn = loss_on(loss_fn, device)
    loss_name = heads.named(loss_fn)
    batch = inputs, targets = to_device(pair if loss_name is None else _few(pair), device)
    try:
        outputs = forward_of(model, forward)(
            mapped(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, inputs)
        )
    except Exception as raised:
        explained = failure.explain_forward(raised, model, inputs)
        return [explained or _failed("forward-fails", "model", raised, inputs)]
    found = contract.findings_of(inputs, targets, outputs, loss_fn)
    if isinstance(pair[1], Tensor):  # all of them, where fewer went through
        found += of_targets.in_range(pair[1], outputs, loss_name)
    found += scores.findings_of(scores.copies_of(named), outputs, targets, loss_fn)
    found += scores.loss_findings(loss_fn, outputs, targets)
    averaging = averaging_of(loss_fn)
    try:
        with inside.Called() as called:
            called.result = loss_fn(outputs, targets)
        loss, count = averaging.read(called.result, batch)
    except Exception as raised:
        is_known = any(finding.severity == "error" for finding in found)
        return found if is_known else [*found, _failed("loss-fails", "loss", raised, outputs)]
    if loss_name is None:
        found += inside.loss_findings(called, loss_fn, outputs, targets)
    found += training.graph_findings(outputs, loss, model)
    found += inside.unheld_findings((outputs, loss), model, loss_fn, optimizer)
    value = averaging.reported(loss.detach(), count).item()
    if math.isfinite(value):
        found += sources.unscaled_pixels(inputs, outputs, value, loss_fn)
    elif isinstance(count, Tensor) or count != 0:  # where nothing counts a loop takes it for 0
        why = failure.what_went_first(batch, outputs, model)
        found.append(error("non-finite-loss", f"The loss is {value:g} in this batch. {why}"))
    if loss.requires_grad:
        if optimizer is not None:
            leaves, frozen = graph.leaves(loss), training.untrained(model, optimizer)
            found += training.held_findings(model, optimizer, set(map(id, leaves)), frozen)
        found += _of_gradients(loss, model, optimizer)
    return found


def _few(pair: Pair) -> Pair:
    """As many samples as are needed to look at; the whole batch where it is no large tensor."""
    inputs, targets = pair
    if not isinstance(inputs, Tensor) or not isinstance(targets, Tensor):
        return pair
    if inputs.numel() <= _MOST_NUMBERS or inputs.shape[:1] != targets.shape[:1]:
        return pair
    size = max(2, _MOST_NUMBERS // inputs[0].numel())
    return inputs[:size], targets[:size]


def _failed(code: str, what: str, raised: Exception, given: Any) -> Finding:
    return error(code, f"The {what} raises {type(raised).__name__} on {describe(given)}: {raised}")


def _of_gradients(loss: Tensor, model: nn.Module, optimizer: Optimizer | None) -> Iterator[Finding]:
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not parameters:
        return
    try:
        given = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    except RuntimeError:  # reentrant checkpoints, say, work with backward() alone
        return
    gradients = dict(zip(parameters, given, strict=True))
    got = {id(parameters[name]) for name, g in gradients.items() if g is not None}
    got |= set(map(id, graph.leaves(loss))) - set(map(id, model.parameters()))  # a loss's own
    yield from training.gradient_findings(got, model, optimizer)
    if math.isfinite(loss.item()) and not failure.is_finite(given):
        why = failure.which_gradient("this batch", gradients.items())
        yield error("non-finite-gradient", why)
