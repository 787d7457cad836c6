"""Whether a step trains what is to be trained: the model, the optimizer, the gradients."""

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from torchcls import heads
from torchcls.group import Group
from torchcls.preflight.findings import Finding, error, note, warning
from torchcls.step import Loss


def findings_of(
    model: nn.Module, loss_fn: Loss, optimizer: Optimizer | None, *, has_schedule: bool = False
) -> Iterator[Finding]:
    """What can be seen of model and optimizer before anything runs."""
    norms = {name: m for name, m in model.named_modules() if isinstance(m, _BatchNorm)}
    for name, module in norms.items():
        # Momentum 0 may keep statistics as they are, but not those of no batch at all.
        if module.momentum == module.num_batches_tracked == 0:
            seen = f"{type(module).__name__} {name!r} has momentum 0, so evaluation takes a mean of"
            yield warning("batch-statistics", f"{seen} 0 and a variance of 1. The default is 0.1.")
    move = {name: m for name, m in norms.items() if m.momentum != 0 and m.track_running_stats}
    frozen = [name for name, m in move.items() if m.affine and not m.weight.requires_grad]
    moves = [name for name in frozen if norms[name].training or not model.training]
    if moves:
        seen = f"BatchNorm ({_some(moves)}) has frozen weights, but statistics that move."
        yield note("batch-statistics", f"{seen} To keep them: model.train(), then body.eval().")
    if optimizer is None:
        return
    own = loss_fn.parameters() if isinstance(loss_fn, nn.Module) else ()
    ids = set(map(id, held_by(optimizer)))
    left = [p for p in own if p.requires_grad and id(p) not in ids]
    if left:
        seen = f"The loss has {len(left)} trainable parameters that the optimizer does not hold."
        fix = "To train them, give it [*model.parameters(), *loss_fn.parameters()]."
        yield note("loss-parameters", f"{seen} {fix}")
    groups = optimizer.param_groups
    if not has_schedule and all(float(group.get("lr", 1)) == 0 for group in groups):
        yield note("learning-rate", "The learning rate is 0 in every group: nothing will move.")
    if heads.named(loss_fn) is not None and all(group.get("maximize") for group in groups):
        yield warning("maximize", "The optimizer maximises the loss. Leave maximize=True out.")


def held_by(optimizer: Optimizer | None) -> list[Tensor]:
    """The parameters of an optimizer."""
    groups = [] if optimizer is None else optimizer.param_groups
    return [p for group in groups for p in group["params"]]


def untrained(model: nn.Module, optimizer: Optimizer) -> set[int]:
    """The ``id`` of what has no gradient where an optimizer has stepped: of what was frozen."""
    state = getattr(optimizer, "state", None)
    has_run = isinstance(state, dict) and bool(state)
    if has_run or any(p.grad is not None for p in held_by(optimizer)):
        return {id(p) for p in model.parameters() if p.grad is None}
    return set()


def batch_statistics(model: nn.Module, *, is_shared: bool = False) -> Iterator[Finding]:
    """Whether statistics are taken over the samples that go through at a time."""
    modules = model.named_modules()
    names = [name for name, m in modules if isinstance(m, _BatchNorm) and m.training]
    if names:
        part, instead = "each piece of micro_batch", "leave micro_batch at None"
        if is_shared:
            part, instead = "each process's share of a batch", "train in one process"
        seen = f"BatchNorm ({_some(names)}) takes its statistics over {part}"
        fix = f"Freeze it with .eval(), use GroupNorm, or {instead}."
        yield warning("batch-statistics", f"{seen}, and moves them with each. {fix}")


def idle_processes(group: Group) -> Iterator[Finding]:
    """Whether the first batch has fewer samples than there are processes."""
    whole, size = group.part.whole, group.size
    if whole < size:
        seen = f"The first batch has {whole} samples for {size} processes, of which some idle"
        yield note("idle-processes", f"{seen}: the numbers are exact all the same.")


def _frozen(model: nn.Module) -> Iterator[Finding]:
    n = len(list(model.parameters()))
    if n and not any(p.requires_grad for p in model.parameters()):
        last = [*dict(model.named_children()), ""][-2:][0]  # the last child, or the model itself
        access = f"[{last}]" if last.isdigit() else f".{last}" if last else ""
        seen = f"No parameter of the model needs a gradient ({n} of {n} are frozen)."
        yield error("all-frozen", f"{seen} Unfreeze the head: model{access}.requires_grad_(True).")


def held_findings(
    model: nn.Module, optimizer: Optimizer, used: set[int], frozen: set[int]
) -> Iterator[Finding]:
    """Whether the optimizer holds what is to be trained.

    ``used`` has the ``id`` of what the loss has a gradient for, which may be no part of the model:
    in a closure, or behind ``functional_call``; ``frozen`` that of what ``untrained`` gave before.
    """
    parameters = dict(model.named_parameters())
    trainable = [name for name, p in parameters.items() if p.requires_grad]
    held = held_by(optimizer)
    ids, of_model = set(map(id, held)), set(map(id, parameters.values()))
    missing = [name for name in trainable if id(parameters[name]) not in ids]
    foreign = [p for p in held if id(p) not in of_model and id(p) not in used]
    which = f"{len(missing)} of {len(trainable)} trainable parameters ({_some(missing)})"
    seen = f"The optimizer does not hold {which}"
    # One with a zero_grad of its own may step on copies of the weights, in another precision, say.
    say = error if type(optimizer).zero_grad is Optimizer.zero_grad else note
    if missing and held and len(foreign) == len(held):
        seen = "The optimizer must hold parameters of the model, got one that holds none of them."
        fix = "Build it from model.parameters() after the last change of the model."
        yield say("optimizer-of-another-model", f"{seen} {fix}")
    elif missing and foreign:
        seen += f", but {len(foreign)} that the model does not have (any more)."
        yield say("optimizer-misses", f"{seen} Make it after the last change of the model.")
    elif any(id(parameters[name]) in used & frozen for name in missing):
        fix = "Make it anew after unfreezing, or add them: optimizer.add_param_group."
        yield warning("optimizer-part", f"{seen}, which were frozen when it stepped last. {fix}")
    elif missing:
        fix = "Freeze what is not to be trained: requires_grad_(False) saves its gradients."
        yield note("optimizer-part", f"{seen}. {fix}")


def norms(optimizer: Optimizer) -> dict[Tensor, Tensor]:
    """The norm of each parameter that a step should move, in float64: it tells whether it does."""
    stepped = [p for group in optimizer.param_groups if group.get("lr", 1) for p in group["params"]]
    dense = [p for p in stepped if p.dtype in _DTYPES and p.layout == torch.strided]
    # Not what a first gradient of 0 leaves alone: all that stands before a head of zeros.
    return {p: _norm(p.detach()) for p in dense if _is_pushed(p) and p.device.type != "mps"}


def _is_pushed(parameter: Tensor) -> bool:
    gradient = parameter.grad
    if gradient is None or gradient.device.type != "cpu":  # elsewhere nobody waits for a number
        return False
    return gradient.layout == torch.strided and bool(gradient.any())


_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_norm = functools.partial(torch.linalg.vector_norm, dtype=torch.float64)


def movement_findings(before: dict[Tensor, Tensor]) -> Iterator[Finding]:
    """Whether an epoch has moved most of what it steps on. Waits for an accelerator."""
    still = sum(p.numel() for p, norm in before.items() if torch.equal(norm, _norm(p.detach())))
    if still > sum(p.numel() for p in before) / 2:  # a number near 0 moves where no other does
        seen = f"{still} numbers in the parameters have not moved in a whole epoch of steps."
        fix = "Raise the learning rate, or keep the weights in float32: the steps are too small."
        yield warning("nothing-moves", f"{seen} {fix}")


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def graph_findings(outputs: Any, loss: Tensor, model: nn.Module) -> Iterator[Finding]:
    """Whether the loss is tied to the parameters at all."""
    if loss.requires_grad:
        return
    if torch.is_inference_mode_enabled():
        seen = "Nothing has a gradient under torch.inference_mode()."
        yield error("outputs-without-graph", f"{seen} Call it outside.")
    elif not any(p.requires_grad for p in model.parameters()):
        yield from _frozen(model)
    elif isinstance(outputs, Tensor) and not outputs.requires_grad:
        seen = (
            "The outputs have no gradient: the model cuts the graph (torch.no_grad(), .detach())."
        )
        yield error("outputs-without-graph", f"{seen} Remove that.")
    else:
        seen = "The loss has no gradient: it cuts the graph (argmax, a comparison, .detach())."
        yield error("loss-without-graph", f"{seen} Compute it from the scores.")


def gradient_findings(
    got: set[int], model: nn.Module, optimizer: Optimizer | None
) -> Iterator[Finding]:
    """Which parameters got no gradient: ``got`` has the ``id`` of those that did, a loss's too."""
    trains_others = bool(got - {id(p) for p in model.parameters()})
    ids = set(map(id, held_by(optimizer) if optimizer else model.parameters()))
    trained = {
        name: id(p)
        for name, p in model.named_parameters()
        if p.requires_grad and not is_lazy(p) and id(p) in ids
    }
    left = [name for name, place in trained.items() if place not in got]
    if not trained and not trains_others:
        yield from _frozen(model)
    elif left and len(left) == len(trained) and not trains_others:
        seen = f"None of the {len(left)} parameters to be trained gets a gradient ({_some(left)})."
        fix = "Look for torch.no_grad(), .detach() or .data in the model."
        yield error("no-gradient", f"{seen} {fix}")
    elif left:
        n, all_of_them = len(left), len(trained)
        seen = f"{n} of {all_of_them} parameters get no gradient from this batch ({_some(left)})"
        yield note("no-gradient", f"{seen}: unused, or cut off by .detach() or torch.no_grad().")
