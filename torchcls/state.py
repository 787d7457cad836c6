"""What training moves: the tensors of model, loss and optimizer, kept and put back."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer


def written(model: nn.Module) -> Any:
    """The module that the user wrote, behind ``torch.compile`` and ``DataParallel``."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, nn.DataParallel):
            inner = model.module
        if inner is None:
            return model
        model = inner


def modules_state(model: nn.Module, loss_fn: Any, optimizer: Optimizer) -> dict[str, Any]:
    """The live tensors under "model", "loss" and "optimizer", and "beside" what these leave out."""
    parts = {"model": written(model), "loss": loss_fn}
    modules = {name: part for name, part in parts.items() if isinstance(part, nn.Module)}
    return {
        "model": parts["model"].state_dict(),
        "loss": modules["loss"].state_dict() if "loss" in modules else None,
        "optimizer": optimizer.state_dict(),
        "beside": {
            **{name: _left_out(module) for name, module in modules.items()},
            "optimizer": [p.detach() for p in _held_alone(optimizer, modules)],
        },
    }


def load_modules(
    model: nn.Module, loss_fn: Any, optimizer: Optimizer, state: Mapping[str, Any]
) -> None:
    """Put back what ``modules_state`` gave: every tensor with its bits, shape and dtype."""
    parts = {"model": written(model), "loss": loss_fn}
    modules = {name: part for name, part in parts.items() if isinstance(part, nn.Module)}
    beside = state["beside"]
    _load_optimizer(optimizer, state["optimizer"])
    with torch.no_grad():
        for name, module in modules.items():
            if state[name] is None:
                continue
            _make_room(module, {**state[name], **beside[name]})
            module.load_state_dict(state[name])
            for key, value in _left_out(module).items():
                kept = beside[name].get(key, value).to(value.device)
                if not torch.equal(value, kept):  # some cannot be written, and never move
                    value.copy_(kept)
        held = _held_alone(optimizer, modules)
        for parameter, value in zip(held, beside["optimizer"], strict=True):
            parameter.copy_(value)


def _held_alone(optimizer: Optimizer, modules: Mapping[str, nn.Module]) -> list[Tensor]:
    """The parameters that the optimizer has and no module: a prompt, layers in a list."""
    known = {id(p) for module in modules.values() for p in module.parameters()}
    held = [p for group in optimizer.param_groups for p in group["params"]]
    return [p for p in held if id(p) not in known]


def _left_out(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers that a module's ``state_dict`` does not have, by name."""
    kept = module.state_dict().keys()
    tensors = (*module.named_parameters(), *module.named_buffers())
    return {name: tensor.detach() for name, tensor in tensors if name not in kept}


def _make_room(module: nn.Module, state: dict[str, Any]) -> None:
    """Give every buffer the shape that it has in a state: some grow, or come with a first step."""
    for path, part in module.named_modules():
        for name, buffer in part._buffers.items():
            value = state.get(f"{path}.{name}" if path else name)
            if not isinstance(value, Tensor) or (buffer is not None and is_lazy(buffer)):
                continue
            if buffer is None or buffer.shape != value.shape:
                device = value.device if buffer is None else buffer.device
                part._buffers[name] = torch.empty_like(value, device=device)


def _load_optimizer(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """``load_state_dict``, but every tensor keeps its dtype: torch casts it to its parameter's."""
    optimizer.load_state_dict(dict(state))
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    numbers = [i for group in state["param_groups"] for i in group["params"]]
    for number, parameter in zip(numbers, parameters, strict=True):
        held = optimizer.state.get(parameter, {})
        for name, value in state["state"].get(number, {}).items():
            if isinstance(value, Tensor) and held[name].dtype != value.dtype:
                held[name] = value.to(held[name].device)
