"""What a source of batches holds that moves from pass to pass: generators, counters, orders."""

import functools
import types
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from torchcls.checksum import checksum
from torchcls.data.batches import Batches
from torchcls.randomness import GENERATORS, generator_state, set_generator_state


def source_state(source: Any) -> dict[str, Any]:
    """What of a source of batches moves from pass to pass, as far as can be seen.

    Returns:
        By the path of attributes that leads there: the states of torch's, numpy's and Python's
        generators, the ``epoch`` of a ``Batches``, numbers, and checksums of arrays.
    """
    return {path: _state_of(part) for path, part in _parts(source)}


def set_source_state(source: Any, state: Mapping[str, Any]) -> list[str]:
    """Put the generators that a source holds back to what ``source_state`` gave.

    Returns:
        What else differs, in words, and was left alone: the source keeps a state of its own.
    """
    differing = []
    for path, part in _parts(source):
        if path not in state:
            continue
        kept = state[path]
        if isinstance(part, Batches):
            part.epoch = kept
        elif isinstance(part, GENERATORS):
            set_generator_state(part, kept)
        elif isinstance(part, Iterator):
            differing.append(f"{path} is an iterator, which goes on and cannot be put back")
        elif _is_number(part):
            if repr(_state_of(part)) != repr(kept):
                differing.append(f"{path} is {part}, in the checkpoint {kept}")
        elif _state_of(part) != kept:
            differing.append(f"{path} has another content than in the checkpoint")
    return differing


def why_not_replayed(source: Any) -> str | None:
    """Say why a source that has been gone through before cannot start another epoch as it did."""
    for _, part in _walk(source):
        if isinstance(part, DataLoader) and part.num_workers > 0 and part.persistent_workers:
            return (
                "its persistent workers draw on from the epochs before. Use "
                "persistent_workers=False to be resumed bit for bit"
            )
    return None


def _state_of(part: Any) -> Any:
    if isinstance(part, Batches):
        return part.epoch
    if isinstance(part, GENERATORS):
        return generator_state(part)
    if isinstance(part, Iterator):
        return None
    return part.item() if isinstance(part, np.generic) else part if _is_number(part) else _sum(part)


def _sum(part: Any) -> int:
    if isinstance(part, (list, tuple)):
        try:
            part = np.asarray(part)  # a million of numbers at once
        except (ValueError, OverflowError):
            return len(part)
    return checksum(part)


_CLOSED = (types.ModuleType, str, bytes, torch.device, torch.dtype)
_MOST_ITEMS = 1_000  # a longer list is data, not a list of transforms
_DEEPEST = 8
_MOST_PARTS = 10_000
_MOST_ARRAYS = 4  # of a list of batches the first will do


def _parts(source: Any) -> Iterator[tuple[str, Any]]:
    """Everything that may move: generators, ``Batches``, iterators, numbers and arrays of them."""
    arrays = 0
    for path, part in _walk(source):
        if isinstance(part, (Tensor, np.ndarray, list, tuple)):
            is_array = not isinstance(part, (list, tuple)) or (part and _is_number(part[0]))
            if is_array and arrays < _MOST_ARRAYS:
                arrays += 1
                yield path, part
        elif (
            isinstance(part, (*GENERATORS, Batches))
            or _is_number(part)
            or (path and isinstance(part, Iterator))
        ):
            yield path, part


def _goes_on(path: str, part: Any) -> bool:
    return path != "" and isinstance(part, Iterator)


def _walk(source: Any) -> Iterator[tuple[str, Any]]:
    """What a source holds, from the outside to the inside, with the path that leads there."""
    seen: set[int] = set()
    left = deque([("", source, 0)])
    for _ in range(_MOST_PARTS):
        if not left:
            return
        path, part, depth = left.popleft()
        if isinstance(part, _CLOSED) or (id(part) in seen and not _is_number(part)):
            continue
        seen.add(id(part))
        yield path, part
        # A Batches holds a transform of the user's, which may hold a generator.
        if depth < _DEEPEST and not isinstance(part, (*GENERATORS, Tensor, np.ndarray)):
            for name, held in _held_by(part):
                left.append((f"{path}.{name}" if path else name, held, depth + 1))


def _held_by(part: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(part, Batches):
        yield "transform", part.transform
    elif isinstance(part, dict):
        if len(part) <= _MOST_ITEMS:
            yield from ((str(key), held) for key, held in part.items())
    elif isinstance(part, (list, tuple)):
        if len(part) <= _MOST_ITEMS and not (part and _is_number(part[0])):
            yield from ((str(i), held) for i, held in enumerate(part))
    elif isinstance(part, functools.partial):
        yield from (("func", part.func), ("args", part.args), ("keywords", part.keywords))
    elif isinstance(part, types.MethodType):
        yield from (("self", part.__self__), ("function", part.__func__))
    elif isinstance(part, types.FunctionType):
        yield from _held_by_function(part)
    elif not isinstance(part, type):
        yield from getattr(part, "__dict__", {}).items()
        for kind in type(part).__mro__:  # what its methods reach
            if not kind.__module__.startswith(("builtins", "torch", "numpy", "collections")):
                yield from ((f"{name} of its class", held) for name, held in _of_class(kind))


def _of_class(kind: type) -> Iterator[tuple[str, Any]]:
    for name, held in vars(kind).items():
        if isinstance(held, (*GENERATORS, types.FunctionType)):
            yield name, held


def _held_by_function(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """What a function closes over and its defaults, and generators among the globals it names."""
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        if _is_filled(cell):
            yield name, cell.cell_contents
    yield "defaults", [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    for name in function.__code__.co_names:
        held = function.__globals__.get(name)
        if isinstance(held, GENERATORS):
            yield name, held


def _is_filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def _is_number(part: Any) -> bool:
    return type(part) in (int, float, bool) or isinstance(part, np.generic)
