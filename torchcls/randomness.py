"""States of random generators: the global ones, and those that a source of batches holds."""

import array
import functools
import random
import types
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchcls.data.batches import Batches

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


def source_state(source: Any) -> dict[str, Any]:
    """What of a source of batches moves from pass to pass, as far as can be seen.

    Returns:
        By the path of attributes that leads there: the states of torch's, numpy's and Python's
        generators, the ``epoch`` of a ``Batches``, and plain numbers.
    """
    return {path: _state_of(part) for path, part in _parts(source)}


def set_source_state(source: Any, state: Mapping[str, Any]) -> list[str]:
    """Put the generators that a source holds back to what ``source_state`` gave.

    Returns:
        The numbers that differ and were left alone, in words: the source keeps a state of its own.
    """
    differing = []
    for path, part in _parts(source):
        kept = state.get(path)
        if isinstance(part, Batches) and isinstance(kept, int):
            part.epoch = kept
        elif isinstance(part, torch.Generator) and isinstance(kept, Tensor):
            part.set_state(kept)
        elif isinstance(part, np.random.Generator) and isinstance(kept, dict):
            part.bit_generator.state = _to_array(kept)
        elif isinstance(part, np.random.RandomState) and isinstance(kept, dict):
            part.set_state(_to_array(kept))
        elif isinstance(part, random.Random) and isinstance(kept, tuple):
            part.setstate(kept)
        elif _is_number(part) and _is_number(kept) and part != kept:
            differing.append(f"{path.lstrip('.')} is {part}, in the checkpoint {kept}")
    return differing


def _state_of(part: Any) -> Any:
    if isinstance(part, Batches):
        return part.epoch
    if isinstance(part, torch.Generator):
        return part.get_state()
    if isinstance(part, np.random.Generator):
        return _of_array(part.bit_generator.state)
    if isinstance(part, np.random.RandomState):
        return _of_array(part.get_state(legacy=False))
    return part.getstate() if isinstance(part, random.Random) else part


_GENERATORS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)
_CLOSED = (Tensor, np.ndarray, types.ModuleType, type, str, bytes, torch.device)
_MOST_ITEMS = 100  # a longer list is data, not a list of transforms
_DEEPEST = 8
_MOST_PARTS = 10_000


def _parts(source: Any) -> Iterator[tuple[str, Any]]:
    """Every generator, ``Batches`` and plain number that a source holds, with its path."""
    seen: set[int] = set()
    left = [("", source, 0)]
    while left and len(seen) < _MOST_PARTS:
        path, part, depth = left.pop(0)
        if _is_number(part) or isinstance(part, (*_GENERATORS, Batches)):
            yield path, part
        # A Batches holds a transform of the user's, which may hold a generator.
        if id(part) in seen or isinstance(part, (*_GENERATORS, *_CLOSED)) or depth == _DEEPEST:
            continue
        seen.add(id(part))
        left += [(f"{path}.{name}", held, depth + 1) for name, held in _held_by(part)]


def _held_by(part: Any) -> list[tuple[str, Any]]:
    if isinstance(part, Batches):
        return [("transform", part.transform)]
    if isinstance(part, dict):
        return [(str(key), held) for key, held in part.items()] if len(part) <= _MOST_ITEMS else []
    if isinstance(part, (list, tuple)):
        return [(str(i), held) for i, held in enumerate(part)] if len(part) <= _MOST_ITEMS else []
    if isinstance(part, functools.partial):
        return [("func", part.func), ("args", part.args), ("keywords", part.keywords)]
    if isinstance(part, types.MethodType):
        return [("self", part.__self__)]
    if isinstance(part, types.FunctionType):
        names, cells = part.__code__.co_freevars, part.__closure__ or ()
        return [
            (name, cell.cell_contents)
            for name, cell in zip(names, cells, strict=True)
            if _is_filled(cell)
        ]
    return list(getattr(part, "__dict__", {}).items())


def _is_filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def _is_number(part: Any) -> bool:
    return type(part) in (int, float)


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
