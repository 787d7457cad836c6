"""A checksum over batches as people nest them, to tell whether two are the same."""

import dataclasses
import functools
import math
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

MOST_BYTES = 2**18  # of a tensor that are read; of a larger one every k-th line of 64


def checksum(structure: Any, start: int = 0, depth: int = 0) -> int:
    """A CRC-32 over kinds, shapes and content.

    Of a large tensor every k-th line is read, up to 256 kB in all. Tensors on an accelerator count
    with their shape alone, since reading them would wait for it.

    Args:
        structure: Tensors, arrays and plain values, in tuples, lists, dicts, dataclasses and other
            objects with attributes.
        start: The checksum of what came before.
        depth: How deep this one lies; below 20 only kinds count, since objects may hold each other.
    """
    if depth > 20:
        return zlib.crc32(type(structure).__name__.encode(), start)
    if isinstance(structure, Tensor):
        if structure.is_nested:
            return zlib.crc32(b"nested", start)
        start = zlib.crc32(_kind(structure.dtype, structure.shape), start)
        if structure.device.type != "cpu" or structure.layout is not torch.strided:
            return start
        return zlib.crc32(_some_bytes(structure), start)
    if isinstance(structure, (tuple, list)):
        for part in structure:
            start = checksum(part, start, depth + 1)
        return zlib.crc32(b"%d" % len(structure), start)
    if isinstance(structure, Mapping):
        for key, part in structure.items():
            start = checksum(part, zlib.crc32(repr(key).encode(), start), depth + 1)
        return start
    if isinstance(structure, (str, bytes, int, float, complex, np.generic, type(None))):
        return zlib.crc32(repr(structure).encode(), start)
    if isinstance(structure, np.ndarray):
        start = zlib.crc32(f"{structure.dtype}{structure.shape}".encode(), start)
        return start if structure.dtype.hasobject else zlib.crc32(_some_of(structure), start)
    start = zlib.crc32(type(structure).__name__.encode(), start)
    if dataclasses.is_dataclass(structure) and not isinstance(structure, type):
        fields = dataclasses.fields(structure)
        return checksum([getattr(structure, field.name) for field in fields], start, depth + 1)
    held = getattr(structure, "__dict__", None)
    return checksum(held, start, depth + 1) if type(held) is dict else start


@functools.lru_cache
def _kind(dtype: torch.dtype, shape: torch.Size) -> bytes:
    return f"{dtype}{tuple(shape)}".encode()


_COMMON = (torch.float32, torch.float64, torch.int64, torch.uint8)


def _some_bytes(tensor: Tensor) -> Any:
    tensor = tensor.detach()
    # Most are read as they are, which saves a small step a tenth of its time.
    if tensor.nbytes > MOST_BYTES or tensor.dtype not in _COMMON or tensor.is_neg():
        tensor = tensor.resolve_conj().resolve_neg().reshape(-1).view(torch.uint8)
    array = tensor.numpy()
    return array if array.nbytes <= MOST_BYTES and array.flags.c_contiguous else _some_of(array)


def _some_of(array: Any) -> Any:
    plain = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    if len(plain) <= MOST_BYTES:
        return plain
    lines = plain[: len(plain) // 64 * 64].reshape(-1, 64)
    # An odd step, so as not to stay in one column of an image.
    return np.ascontiguousarray(lines[:: math.ceil(len(plain) / MOST_BYTES) | 1])
