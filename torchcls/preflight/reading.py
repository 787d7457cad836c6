"""Reading without a trace: what a look changes is put back, and only the CPU's values are read."""

import operator
import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from torchcls.batches import device_of, mapped


@contextmanager
def untouched(*modules: Any) -> Iterator[None]:
    """Put back weights, buffers, attributes, modes and all random states afterwards.

    But for gradients: ``torch.autograd.grad`` leaves them alone. What is no module is passed over.
    """
    with ExitStack() as stack:
        found = [module for module in modules if isinstance(module, nn.Module)]
        stack.enter_context(drawing_nothing(*map(device_of, found)))
        for module in found:
            stack.enter_context(_module(module))
        yield


@contextmanager
def drawing_nothing(*devices: torch.device) -> Iterator[None]:
    """Put back the random states of torch, on these devices too, of numpy and of Python."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng({device for device in devices if device.type == "cuda"}):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


@contextmanager
def _module(root: nn.Module) -> Iterator[None]:
    # Every module's own attributes, and what stands in those that are containers: the tables of
    # parameters, buffers and hooks among them.
    attributes = [(module, dict(vars(module))) for module in root.modules()]
    containers = [
        (container, container.copy())
        for _, found in attributes
        for container in found.values()
        if isinstance(container, (dict, list, set))
    ]
    tensors = (*root.parameters(), *root.buffers())
    values = [tensor.detach().clone() for tensor in tensors]
    try:
        yield
    finally:
        for module, found in attributes:
            vars(module).clear()
            vars(module).update(found)
        for container, content in containers:
            if _are_same(container, content):  # some cannot be written at all
                continue
            container.clear()
            container.extend(content) if isinstance(container, list) else container.update(content)
        with torch.no_grad():
            for tensor, value in zip(tensors, values, strict=True):
                # Not written where nothing changed: a graph of the user's may hold the tensor.
                if not torch.equal(tensor, value):
                    tensor.copy_(value)


def _are_same(container: Any, content: Any) -> bool:
    """Whether two containers hold the very same objects."""
    if len(container) != len(content) or not all(map(operator.is_, container, content)):
        return False
    if isinstance(container, dict):
        return all(map(operator.is_, container.values(), content.values()))
    return True


def is_readable(tensor: Tensor) -> bool:
    """Whether a tensor has values that may be looked at."""
    return tensor.device.type == "cpu" and tensor.layout == torch.strided and tensor.numel() > 0


def bounds(tensor: Tensor) -> tuple[float, float] | None:
    """The smallest and the largest value, NaN where there is one; None where nobody may look."""
    if not is_readable(tensor) or tensor.is_complex():
        return None
    low, high = tensor.detach().aminmax()
    return low.item(), high.item()


def span(tensor: Tensor) -> str:
    """The bounds for a sentence."""
    found = bounds(tensor)
    return "" if found is None else f" ({found[0]:.3g} to {found[1]:.3g})"


def dtype_of(tensor: Tensor) -> str:
    """The dtype as it is called after ``torch.``."""
    return str(tensor.dtype).removeprefix("torch.")


def consists_of(tensor: Tensor, one: float, other: float) -> bool:
    """Whether a tensor that may be looked at holds these numbers alone."""
    return is_readable(tensor) and bool(((tensor == one) | (tensor == other)).all())


def leaves_of(structure: Any) -> list[Any]:
    """What stands in nested tuples, lists and dicts."""
    found: list[Any] = []

    def look(leaf: Any) -> Any:
        found.append(leaf)
        return leaf

    mapped(look, structure)
    return found


def describe(structure: Any) -> str:
    """The shapes and dtypes in a structure, in a few words."""
    parts = [
        f"{tuple(leaf.shape)} {dtype_of(leaf)}" if isinstance(leaf, Tensor) else type(leaf).__name__
        for leaf in leaves_of(structure)
    ]
    more = f" and {len(parts) - 4} more" if len(parts) > 4 else ""
    return ", ".join(parts[:4]) + more
