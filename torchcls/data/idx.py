"""The IDX format, in which MNIST is distributed."""

import gzip
import os
import zlib
from math import prod
from pathlib import Path

import torch
from torch import Tensor

# Two zero bytes, 8 for uint8, the number of dimensions.
_MAGIC_DIMENSIONS = {0x00000801: 1, 0x00000803: 3}


def read_idx(path: str | os.PathLike[str]) -> Tensor:
    """Images or labels from an IDX file, as stored: uint8.

    The file is a header of four-byte big-endian numbers (the magic number 0x00000803 and
    then N, H, W for images; 0x00000801 and then N for labels), followed by one byte per
    element, the last index running fastest. Nothing may be missing and nothing may follow.

    Args:
        path: The file, plain or packed with gzip; its first two bytes tell, not its name.

    Returns:
        uint8, shape (N, H, W) for images and (N,) for labels.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the path is a folder, the magic number is another one, the file is
            shorter or longer than its header says, or gzip finds it damaged.

    Examples:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "labels")
        >>> path.write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 3, 5, 0, 4]))  # magic, N = 3, 5 0 4
        11
        >>> read_idx(path)
        tensor([5, 0, 4], dtype=torch.uint8)

    References:
        LeCun, Cortes and Burges, "The MNIST database of handwritten digits" (1998), section
        "File formats".
    """
    path = Path(path)
    data = _read_unpacked(path)
    magic = int.from_bytes(data[:4], "big")
    if len(data) < 4 or magic not in _MAGIC_DIMENSIONS:
        raise ValueError(
            f"{path} must start with the IDX magic number 0x00000803 (images) or 0x00000801 "
            f"(labels), got {quote_start(data)}."
        )
    header = 4 + 4 * _MAGIC_DIMENSIONS[magic]
    if len(data) < header:
        raise ValueError(f"{path} must hold an IDX header of {header} bytes, got {len(data)}.")
    shape = [int.from_bytes(data[i : i + 4], "big") for i in range(4, header, 4)]
    expected = header + prod(shape)
    if len(data) != expected:
        items = f"{shape[0]} {'labels' if len(shape) == 1 else 'images'}"
        raise ValueError(
            f"{path} must hold {expected} bytes for the {items} that its header promises, "
            f"got {len(data)}: it is {'cut off' if len(data) < expected else 'too long'}. "
            "Fetch it again."
        )
    return torch.frombuffer(data, dtype=torch.uint8)[header:].reshape(shape)


def quote_start(data: bytes | bytearray) -> str:
    """The first bytes of a file for an error message: as text where they are text."""
    start = bytes(data[:8])
    if not start:
        return "an empty file"
    if all(32 <= byte < 127 or byte in b"\t\r\n" for byte in start):
        return f"a file that starts with {start.decode('ascii')!r}"
    return f"a file that starts with 0x{start[:4].hex()}"


def _read_unpacked(path: Path) -> bytearray:
    """The content, unpacked where it is packed; held once, and writable for torch.frombuffer."""
    if path.is_dir():
        raise ValueError(f"{path} must be an IDX file, got a folder.")
    if not path.exists():
        raise FileNotFoundError(f"{path} must be an IDX file, got a path that is not there.")
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        if not packed:
            data = bytearray(os.fstat(file.fileno()).st_size)
            file.readinto(data)
            return data
        data = bytearray()
        try:
            with gzip.GzipFile(fileobj=file) as unpacked:
                while chunk := unpacked.read(1 << 20):
                    data += chunk
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(
                f"{path} must be a whole gzip file, got a cut-off or damaged one ({error}). "
                "Fetch it again."
            ) from error
        return data
