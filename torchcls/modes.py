"""The mode a loop needs, and everything put back as it was found, also when something raises."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from torchcls.device import device_of


@contextmanager
def training(model: nn.Module) -> Iterator[None]:
    """Put a model into training mode, with gradients on, for as long as the context lasts.

    A model whose root is in training mode already keeps the modes of its submodules: what was
    frozen with ``model.body.eval()`` stays frozen. Every module gets its own mode back.
    """
    found = [(module, module.training) for module in model.modules()]
    if not model.training:
        model.train()
    try:
        with torch.enable_grad():
            yield
    finally:
        _restore(found)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode, without gradients, for as long as the context lasts.

    Under ``no_grad`` and not ``inference_mode``: a tensor that a model caches may then take part in
    a later backward pass. The random state of torch is put back too, since a mere ``iter`` of a
    DataLoader moves it: looking at a model does not change how it trains on.
    """
    found = [(module, module.training) for module in model.modules()]
    device = device_of(model)
    devices = [device] if device.type == "cuda" else []  # the CPU's state is always kept
    try:
        with torch.no_grad(), torch.random.fork_rng(devices):
            model.eval()
            yield
    finally:
        _restore(found)


def _restore(found: list[tuple[nn.Module, bool]]) -> None:
    for module, mode in found:
        module.training = mode
