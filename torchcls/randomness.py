"""States of random generators, as plain values that can be compared and kept in a file."""

import array
import random
from typing import Any

import numpy as np
import torch
from torch import Tensor

State = tuple[bytes, Any, Any]
"""Of the global generators on the CPU: torch's, numpy's and Python's, to be compared by ``==``."""


def global_state() -> State:
    """Where the global generators on the CPU stand."""
    numpy = _of_array(np.random.get_state(legacy=False))
    version, words, gauss = random.getstate()
    python = version, array.array("I", words).tobytes(), gauss
    return torch.get_rng_state().numpy().tobytes(), numpy, python


def set_global_state(state: State) -> None:
    """Put the global generators on the CPU back to a state."""
    of_torch, of_numpy, of_python = state
    torch.set_rng_state(torch.frombuffer(bytearray(of_torch), dtype=torch.uint8))
    np.random.set_state(_to_array(of_numpy))
    version, words, gauss = of_python
    random.setstate((version, tuple(array.array("I", words)), gauss))


def accelerator_state(device: torch.device) -> Tensor | None:
    """Where the generator of an accelerator stands; None on the CPU."""
    if device.type == "cpu":
        return None
    module = torch.get_device_module(device)
    state: Tensor = module.get_rng_state(*_which(device))
    return state


def set_accelerator_state(state: Tensor | None, device: torch.device) -> None:
    """Put the generator of an accelerator back, where there is one and its state is of its kind."""
    if state is not None and device.type != "cpu":
        torch.get_device_module(device).set_rng_state(state, *_which(device))


def _which(device: torch.device) -> tuple[torch.device, ...]:
    return () if device.type == "mps" else (device,)  # there is one mps only


GENERATORS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)


def generator_state(generator: Any) -> Any:
    """Where one of ``GENERATORS`` stands."""
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, np.random.Generator):
        return _of_array(generator.bit_generator.state)
    if isinstance(generator, np.random.RandomState):
        return _of_array(generator.get_state(legacy=False))
    if isinstance(generator, random.SystemRandom):  # the system's, which has no state
        return None
    return generator.getstate()


def set_generator_state(generator: Any, state: Any) -> None:
    """Put a generator back to a state of its kind; a state of another kind is passed over."""
    if isinstance(generator, torch.Generator) and isinstance(state, Tensor):
        generator.set_state(state)
    elif isinstance(generator, np.random.Generator) and isinstance(state, dict):
        generator.bit_generator.state = _to_array(state)
    elif isinstance(generator, np.random.RandomState) and isinstance(state, dict):
        generator.set_state(_to_array(state))
    elif isinstance(generator, random.Random) and isinstance(state, tuple):
        generator.setstate(state)


def _of_array(value: Any) -> Any:
    """Arrays as (kind, bytes), which can be compared and kept in a file; also inside dicts."""
    if isinstance(value, dict):
        return {key: _of_array(held) for key, held in value.items()}
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.tobytes()
    return value.item() if isinstance(value, np.generic) else value


def _to_array(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _to_array(held) for key, held in value.items()}
    if isinstance(value, tuple):
        kind, content = value
        return np.frombuffer(content, kind).copy()
    return value
