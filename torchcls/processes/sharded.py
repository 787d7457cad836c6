"""Models whose parameters the user has spread over the processes: FSDP2's ``fully_shard``."""

from typing import Any

from torch import nn

from torchcls.state import modules_of


def check(model: nn.Module, loss_fn: Any) -> None:
    """Refuse a loss that has parameters of its own beside a model that is spread."""
    loss = modules_of(model, loss_fn).get("loss")
    if loss is not None and any(p.requires_grad for p in loss.parameters()):
        raise ValueError(
            f"loss_fn must have no parameters of its own beside a model under fully_shard, got "
            f"{type(loss).__name__}. Make it a part of the model."
        )


def synchronise(model: nn.Module, *, is_last: bool) -> None:
    """Say whether the gradients of the backward pass that comes are reduced."""
    module: Any
    for module in model.modules():
        if hasattr(module, "set_requires_gradient_sync"):
            module.set_requires_gradient_sync(is_last, recurse=False)
            module.set_is_last_backward(is_last)
