"""A look at a model that leaves no trace: everything it may change is put back."""

import operator
import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from torchcls.device import device_of


@contextmanager
def untouched(*modules: Any) -> Iterator[None]:
    """Put back weights, buffers, attributes, modes and all random states afterwards.

    Gradients are not looked after: ask for them with ``torch.autograd.grad``, which leaves
    ``.grad`` and every hook on it alone.

    Args:
        modules: Models and losses; what is no module is passed over.
    """
    with ExitStack() as stack:
        stack.enter_context(_random_states(modules))
        for module in modules:
            if isinstance(module, nn.Module):
                stack.enter_context(_module(module))
        yield


@contextmanager
def _random_states(modules: tuple[Any, ...]) -> Iterator[None]:
    devices = {device_of(m) for m in modules if isinstance(m, nn.Module)}
    on_cuda = [device for device in devices if device.type == "cuda"]
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(on_cuda):
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
