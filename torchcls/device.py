"""Which device to work on, and taking a model there."""

import os

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from torchcls.batches import device_of

Device = str | torch.device | None


def select_device(preferred: str | torch.device | None = None) -> torch.device:
    """Pick the device to work on.

    An explicit choice wins; else the accelerator that torch reports, with the index in the
    environment variable ``LOCAL_RANK`` where a launcher has set one; else the CPU.

    Args:
        preferred: A device or its name (``"cpu"``, ``"cuda:1"``), or None to have one picked.

    Raises:
        ValueError: If ``preferred`` or ``LOCAL_RANK`` names a device that is not there; the
            message lists what is.

    Examples:
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


def random_state(device: torch.device) -> Tensor | None:
    """Where the random generator of an accelerator stands; None on the CPU."""
    if device.type == "cpu":
        return None
    state: Tensor = torch.get_device_module(device).get_rng_state(*_which(device))
    return state


def set_random_state(state: Tensor | None, device: torch.device) -> None:
    """Put the generator of an accelerator back; nothing to do where there is no state or no one."""
    if state is not None and device.type != "cpu":
        torch.get_device_module(device).set_rng_state(state, *_which(device))


def _which(device: torch.device) -> tuple[torch.device, ...]:
    return () if device.type == "mps" else (device,)  # there is one mps only


def place(model: nn.Module, device: Device, *, optimizer: Optimizer | None = None) -> torch.device:
    """Take the model and its optimizer's state to a device.

    ``module.to`` keeps its parameters' identity, so an optimizer built before still holds them;
    only what it remembers about them (momentum) has to follow.
    """
    place = device_of(model) if device is None else select_device(device)
    if device is not None:
        model.to(place)
    if optimizer is not None and _is_elsewhere(optimizer):
        optimizer.load_state_dict(optimizer.state_dict())  # casts every state to its parameter
    return place


def _is_elsewhere(optimizer: Optimizer) -> bool:
    return any(
        isinstance(value, Tensor) and value.ndim > 0 and value.device != parameter.device
        for parameter, state in optimizer.state.items()
        for value in state.values()
    )
