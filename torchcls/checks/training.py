"""Whether a step trains what is to be trained: the model, the optimizer, the gradients."""

from collections.abc import Collection, Iterator
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from torchcls.checks.contract import name_of
from torchcls.checks.findings import Finding, error, note, warning
from torchcls.checks.graph import nodes
from torchcls.step import Loss


def findings_of(
    model: nn.Module, loss_fn: Loss, optimizer: Optimizer | None, *, has_schedule: bool = False
) -> Iterator[Finding]:
    """What can be seen of model and optimizer before anything runs."""
    # A loss of one's own may have parameters that nobody sees, in a closure, say: its first step
    # tells which are used.
    is_known = name_of(loss_fn) is not None
    if is_known:
        yield from frozen_findings(model)
    if optimizer is None:
        return
    if is_known:
        yield from held_findings(model, optimizer, set())
    yield from _loss_parameters(loss_fn, optimizer)
    groups = optimizer.param_groups
    if not has_schedule and all(float(group.get("lr", 1)) == 0 for group in groups):
        yield note("learning-rate", "The learning rate is 0 in every group: nothing will move.")
    if is_known and all(group.get("maximize") for group in groups):
        yield warning(
            "maximize", "The optimizer maximises the loss (maximize=True). Leave maximize out."
        )


def frozen_findings(model: nn.Module) -> Iterator[Finding]:
    """Whether no parameter of the model needs a gradient."""
    parameters = list(model.parameters())
    if parameters and not any(p.requires_grad for p in parameters):
        last = [*dict(model.named_children())] or [""]
        yield error(
            "all-frozen",
            f"No parameter of the model needs a gradient ({len(parameters)} of {len(parameters)} "
            f"are frozen). Unfreeze the head: {_access(last[-1])}.requires_grad_(True).",
        )


def _access(name: str) -> str:
    if not name:
        return "model"
    return "model" + "".join(f"[{p}]" if p.isdigit() else f".{p}" for p in name.split("."))


def held_findings(
    model: nn.Module, optimizer: Optimizer, used: Collection[int]
) -> Iterator[Finding]:
    """Whether the optimizer holds what is to be trained, by identity.

    Args:
        model: The model.
        optimizer: Its optimizer.
        used: The ``id`` of every tensor that the loss has gradients for, as far as it is known.
    """
    parameters = dict(model.named_parameters())
    trainable = [name for name, p in parameters.items() if p.requires_grad]
    held = [p for group in optimizer.param_groups for p in group["params"]]
    ids, of_model = set(map(id, held)), set(map(id, parameters.values()))
    missing = [name for name in trainable if id(parameters[name]) not in ids]
    foreign = [p for p in held if id(p) not in of_model and id(p) not in used]
    if not missing:
        return
    which = f"{len(missing)} of {len(trainable)} trainable parameters ({_some(missing)})"
    if held and len(foreign) == len(held):
        yield error(
            "optimizer-of-another-model",
            "The optimizer must hold parameters of the model, got one that holds none of them. "
            "Build it from model.parameters() of this very model, after its last change.",
        )
    elif foreign:
        yield error(
            "optimizer-misses",
            f"The optimizer does not hold {which}, but {len(foreign)} that the model does not have "
            "(any more). Make it after the last change of the model.",
        )
    else:
        yield note(
            "optimizer-part",
            f"The optimizer does not hold {which}: they will stay as they are. Make it after the "
            "last change of the model, or freeze what is not to be trained with "
            "requires_grad_(False), which saves its gradients.",
        )


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _loss_parameters(loss_fn: Loss, optimizer: Optimizer) -> Iterator[Finding]:
    own = loss_fn.parameters() if isinstance(loss_fn, nn.Module) else ()
    ids = {id(p) for group in optimizer.param_groups for p in group["params"]}
    left = [p for p in own if p.requires_grad and id(p) not in ids]
    if left:
        yield note(
            "loss-parameters",
            f"The loss has {len(left)} trainable parameters that the optimizer does not hold: they "
            "will stay as they are. To train them, give it both: optimizer=torch.optim.AdamW("
            "[*model.parameters(), *loss_fn.parameters()]).",
        )


def graph_findings(outputs: Any, loss: Tensor | None, model: nn.Module) -> Iterator[Finding]:
    """Whether the loss is tied to the parameters at all."""
    if not any(p.requires_grad for p in model.parameters()):
        if loss is not None and not loss.requires_grad:
            yield from frozen_findings(model)
        return
    if isinstance(outputs, Tensor) and not outputs.requires_grad:
        yield error(
            "outputs-without-graph",
            "The outputs have no gradient to the parameters: something in the model cuts the graph "
            "(torch.no_grad(), .detach(), .data, .item() or .numpy()). Remove it behind the last "
            "layer that is to be trained.",
        )
    elif loss is not None and not loss.requires_grad:
        yield error(
            "loss-without-graph",
            "The loss has no gradient to the outputs: something in it cuts the graph (argmax, a "
            "comparison, .detach(), .item() or .round()). Compute it from the scores.",
        )


def gradient_findings(
    with_gradient: Collection[int], model: nn.Module, optimizer: Optimizer | None
) -> Iterator[Finding]:
    """Which parameters a backward pass left without gradient.

    Args:
        with_gradient: The ``id`` of every parameter that got one, the loss's own included.
        model: The model.
        optimizer: None: all parameters of the model count.
    """
    got = set(with_gradient)
    trains_others = bool(got - {id(p) for p in model.parameters()})
    held = (
        None
        if optimizer is None
        else {id(p) for group in optimizer.param_groups for p in group["params"]}
    )
    trained = [
        (name, p)
        for name, p in model.named_parameters()
        if p.requires_grad and not is_lazy(p) and (held is None or id(p) in held)
    ]
    left = [name for name, p in trained if id(p) not in got]
    if not left:
        return
    if len(left) == len(trained) and not trains_others:
        yield error(
            "no-gradient",
            f"None of the {len(left)} parameters to be trained gets a gradient from the loss "
            f"({_some(left)}): the graph is cut behind them. Look for torch.no_grad(), .detach() "
            "or .data in the model.",
        )
    else:
        yield note(
            "no-gradient",
            f"{len(left)} of {len(trained)} parameters get no gradient from this batch "
            f"({_some(left)}): unused, or cut off by .detach() or torch.no_grad().",
        )


def leaves(loss: Tensor) -> set[int]:
    """The ``id`` of every tensor that a loss has gradients for."""
    return {id(node.variable) for node in nodes(loss) if type(node).__name__ == "AccumulateGrad"}
