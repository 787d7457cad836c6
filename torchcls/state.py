"""What training moves in model, loss and optimizer: tensors and numbers, kept and put back."""

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from torchcls.batches import mapped

_OF_ANY_MODULE = vars(nn.Module()).keys()  # modes and marks of torch's own


def written(model: nn.Module) -> Any:
    """The module that the user wrote, behind ``torch.compile`` and ``DataParallel``."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, nn.DataParallel):
            inner = model.module
        if inner is None:
            return model
        model = inner


def modules_of(model: nn.Module, loss_fn: Any) -> dict[str, nn.Module]:
    """The "model" that the user wrote, and the "loss" where a module is it or stands behind it."""
    while isinstance(loss_fn, functools.partial):
        loss_fn = loss_fn.func
    loss_fn = written(getattr(loss_fn, "__self__", loss_fn))
    modules = {"model": written(model)}
    return {**modules, "loss": loss_fn} if isinstance(loss_fn, nn.Module) else modules


def modules_state(model: nn.Module, loss_fn: Any, optimizer: Optimizer) -> dict[str, Any]:
    """The live tensors under "model", "loss" and "optimizer", and "beside" what these leave out."""
    modules = modules_of(model, loss_fn)
    return {
        "loss": None,
        **{name: module.state_dict() for name, module in modules.items()},
        "optimizer": optimizer.state_dict(),
        "beside": {
            **{name: _left_out(module) for name, module in modules.items()},
            "optimizer": [p.detach() for p in _held_alone(optimizer, modules)],
            "numbers": numbers_of(model, loss_fn, optimizer),
        },
    }


def load_modules(
    model: nn.Module, loss_fn: Any, optimizer: Optimizer, state: Mapping[str, Any]
) -> None:
    """Put back what ``modules_state`` gave: every tensor with its bits, shape and dtype."""
    modules, beside = modules_of(model, loss_fn), state["beside"]
    _load_optimizer(optimizer, state["optimizer"])
    with torch.no_grad():
        for name, module in modules.items():
            if state[name] is None:
                continue
            _make_room(module, {**state[name], **beside[name]})
            own = module.state_dict()
            module.load_state_dict({k: _spread_as(v, own.get(k)) for k, v in state[name].items()})
            for key, value in _left_out(module).items():
                kept = beside[name].get(key, value).to(value.device)
                if not torch.equal(value, kept):  # some cannot be written, and never move
                    value.copy_(kept)
        held = _held_alone(optimizer, modules)
        for parameter, value in zip(held, beside["optimizer"], strict=True):
            parameter.copy_(value)
    for name, holder, attribute in _numbers(model, loss_fn, optimizer):
        holder[attribute] = beside["numbers"].get(name, holder[attribute])


def is_sharded(model: nn.Module) -> bool:
    """Whether parameters of a model are spread over processes, as ``fully_shard`` does."""
    return any(hasattr(parameter, "device_mesh") for parameter in model.parameters())


def whole(structure: Any) -> Any:
    """The same structure with whole tensors, on the CPU, for those that processes share.

    To be called in all processes. ``load_modules`` spreads them again over as many as there are.
    """

    def gathered(leaf: Any) -> Any:
        return leaf.full_tensor().cpu() if hasattr(leaf, "full_tensor") else leaf

    return mapped(gathered, structure)


def _spread_as(value: Any, like: Any) -> Any:
    """A whole tensor, spread over processes as another one is."""
    if not hasattr(like, "device_mesh") or hasattr(value, "device_mesh"):
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)


def numbers_of(model: nn.Module, loss_fn: Any, optimizer: Optimizer) -> dict[str, Any]:
    """The plain numbers in model, loss and optimizer: a counter, say, "2.count of the model"."""
    numbers = _numbers(model, loss_fn, optimizer)
    return {name: holder[attribute] for name, holder, attribute in numbers}


def _numbers(
    model: nn.Module, loss_fn: Any, optimizer: Optimizer
) -> Iterator[tuple[str, dict[str, Any], str]]:
    """What to call each number, the attributes that it is one of, and its key there."""
    holders = {("optimizer", ""): vars(optimizer)}
    for of, module in modules_of(model, loss_fn).items():
        holders |= {(of, f"{path}."): vars(part) for path, part in module.named_modules()}
    for (of, path), holder in holders.items():
        for attribute, value in list(holder.items()):
            if type(value) in (bool, int, float) and attribute not in _OF_ANY_MODULE:
                yield f"{path}{attribute}".removeprefix(".") + f" of the {of}", holder, attribute


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
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    numbers = [i for group in state["param_groups"] for i in group["params"]]
    for number, parameter in zip(numbers, parameters, strict=False):
        if hasattr(parameter, "device_mesh"):
            held = state["state"].get(number, {})
            of_its_shape = {k: v for k, v in held.items() if v.shape == parameter.shape}
            held |= {k: _spread_as(v, parameter) for k, v in of_its_shape.items()}
    optimizer.load_state_dict(dict(state))
    for number, parameter in zip(numbers, parameters, strict=True):
        held = optimizer.state.get(parameter, {})
        for name, value in state["state"].get(number, {}).items():
            if isinstance(value, Tensor) and held[name].dtype != value.dtype:
                held[name] = value.to(held[name].device)
