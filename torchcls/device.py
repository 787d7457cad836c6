"""Which device to work on, and taking a batch there."""

import os
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from torchcls.structure import mapped


def select_device(preferred: str | torch.device | None = None) -> torch.device:
    """Pick the device to work on.

    An explicit choice wins; else the accelerator that torch reports, with the index in the
    environment variable ``LOCAL_RANK`` where a launcher has set one; else the CPU.

    Args:
        preferred: A device or its name (``"cpu"``, ``"cuda:1"``), or None to have one picked.

    Raises:
        ValueError: If ``preferred`` or ``LOCAL_RANK`` names a device that is not there; the
            message lists what is.

    Example:
        >>> select_device("cpu")
        device(type='cpu')
    """
    if preferred is not None:
        return _existing(preferred)
    if not torch.accelerator.is_available():
        return torch.device("cpu")
    kind = _accelerator()
    rank = os.environ.get("LOCAL_RANK")
    return torch.device(kind) if rank is None else _existing(f"{kind}:{rank}")


def _existing(preferred: str | torch.device) -> torch.device:
    try:
        device = torch.device(preferred)
    except (RuntimeError, TypeError):  # a name or a kind that torch does not know
        device = None
    indices = {"cpu": 1}
    if torch.accelerator.is_available():
        indices[_accelerator()] = torch.accelerator.device_count()
    if device is None or (device.index or 0) >= indices.get(device.type, 0):
        names = ["cpu"] + [
            f"{kind}:{index}"
            for kind, count in indices.items()
            if kind != "cpu"
            for index in range(count)
        ]
        raise ValueError(
            f"device must be one that is there ({', '.join(names)}), got {str(preferred)!r}."
        )
    return device


def _accelerator() -> str:
    accelerator = torch.accelerator.current_accelerator()
    assert accelerator is not None  # asked for only where one is available
    return accelerator.type


def device_of(model: nn.Module) -> torch.device:
    """Where a model is: the device of its first parameter or buffer; the CPU if it has none."""
    for tensors in (model.parameters(), model.buffers()):
        for tensor in tensors:
            return tensor.device
    return torch.device("cpu")


def to_device(structure: Any, device: torch.device) -> Any:
    """Take every tensor of a nested structure to a device; anything else is left as it is.

    A batch that is there already is returned without a copy. Nothing waits for an accelerator: on
    the way to CUDA a tensor goes through pinned memory, so the copy overlaps with what the
    device is doing.

    Example:
        >>> to_device({"ids": torch.zeros(2), "names": ["a", "b"]}, torch.device("cpu"))
        {'ids': tensor([0., 0.]), 'names': ['a', 'b']}
    """

    def moved(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            here = leaf.device
        elif isinstance(leaf, PackedSequence):
            here = leaf.data.device
        else:
            return leaf
        if here == device:
            return leaf
        if device.type == "cuda" and here.type == "cpu" and _may_be_pinned(leaf):
            leaf = leaf.pin_memory()
        return leaf.to(device, non_blocking=True)

    return mapped(moved, structure, _is_packed)


def _may_be_pinned(leaf: Any) -> bool:
    """Not what is pinned already, and no expanded tensor, whose places in memory are shared."""
    tensor = leaf.data if isinstance(leaf, PackedSequence) else leaf
    return tensor.is_contiguous() and not tensor.is_pinned()


def _is_packed(structure: Any) -> bool:
    """Whether this moves itself: a packed sequence's ``batch_sizes`` have to stay on the CPU."""
    return isinstance(structure, PackedSequence)
