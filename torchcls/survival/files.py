"""Checkpoints that survive faults: replaced whole or not at all, and checked to the last bit."""

import codecs
import errno
import hashlib
import io
import os
import pickle
import re
import stat
import zipfile
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from torchcls.history import replacing

# The comment with which the zip archive of torch.save ends. Its last part is the SHA-256 of every
# byte before that part, in every format to come, so that damage is never taken for a new format.
_FORMAT = 1
_MARK = re.compile(rb"torchcls checkpoint, format (\d{1,9}), sha256 ([0-9a-f]{64})\Z")
_Path = str | os.PathLike[str]
_SCALARS = (type(None), bool, int, float, str, bytes, torch.Size, torch.dtype, torch.device)


class DamagedError(ValueError):
    """A checkpoint is cut off, empty, or not what was written: an earlier one may be whole."""


def save_checkpoint(path: _Path, **state: Any) -> None:
    """Write tensors and plain values to a file, which is replaced whole or left as it was.

    The file is what ``torch.save`` writes, with a checksum as the comment of its zip archive, and
    ``torch.load(path, weights_only=True)`` reads it. It keeps the permissions of the one it
    replaces; a symbolic link is followed. Tensors keep their bits, dtype and shape, and tied ones
    stay tied. They come back plain and on the CPU; of a view only itself is kept.

    Args:
        path: The file; its folder must be there. A leading "~" is the user's home.
        state: Dense and sparse tensors, None, bool, int (up to 2039 bits), float, str, bytes,
            torch.Size, torch.dtype, torch.device, and list, tuple, dict, OrderedDict and Counter of
            those: what the ``state_dict`` of a model, an optimizer or a schedule is made of.

    Raises:
        TypeError: If anything in ``state`` is of another kind; the message says where.
        ValueError: If ``path`` is a folder or a device.
        OSError: If the file cannot be written: a full disk, say. What was there is untouched.

    Examples:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "model.pt")
        >>> save_checkpoint(path, model=nn.Linear(2, 3).state_dict(), epoch=7)
        >>> load_checkpoint(path)["epoch"], list(torch.load(path, weights_only=True)["model"])
        (7, ['weight', 'bias'])
    """
    target = Path(os.path.realpath(os.path.expanduser(path)))
    earlier = target.exists()
    if earlier and not target.is_file():
        raise ValueError(f"{path} must be a file, got a folder or a device.")
    file = io.BytesIO()
    torch.save(_storable(state, "state", {}), file)
    mark = b"torchcls checkpoint, format %d, sha256 " % _FORMAT
    # A zip archive ends in the length of its comment, two bytes: torch writes none, so 0.
    file.seek(-2, os.SEEK_END)
    file.write((len(mark) + 64).to_bytes(2, "little") + mark)
    file.write(hashlib.sha256(file.getbuffer()).hexdigest().encode())
    outcome = "The earlier checkpoint is untouched." if earlier else "Nothing is left behind."
    try:
        with replacing(target) as beside, open(beside, "xb") as new:
            if earlier:
                os.chmod(beside, stat.S_IMODE(target.stat().st_mode))
            new.write(file.getbuffer())
            new.flush()
            os.fsync(new.fileno())
        outcome = "It is whole, but may not survive a power cut."
        _sync_folder(target.parent)
    except OSError as error:
        reason = f"got: {error.strerror or error}, in the folder {target.parent}. {outcome}"
        raise OSError(error.errno, f"{path} must be writable, {reason}") from error


def load_checkpoint(path: _Path) -> dict[str, Any]:
    """Read what ``save_checkpoint`` wrote, or say what is wrong with the file.

    A checksum over the very bytes that are then read finds accidents; against malice stands that
    no code in the file is ever run. All tensors come on the CPU.

    Raises:
        FileNotFoundError: If there is no such file.
        DamagedError: If it is empty, cut off or damaged: an earlier one may be whole.
        ValueError: If it is a folder, another program's, of another format, holds objects that
            could run code, or anything else that ``save_checkpoint`` does not write.
    """
    file = Path(path).expanduser()
    if file.is_dir():
        raise ValueError(f"{path} must be a checkpoint, got a folder.")
    data = file.read_bytes()
    mark = _MARK.search(data, max(0, len(data) - 128))
    if mark is None:
        raise _unmarked(path, data)
    if hashlib.sha256(memoryview(data)[:-64]).hexdigest().encode() != mark[2]:
        raise DamagedError(
            f"{path} must have the checksum that it was written with, got another one over "
            f"{len(data)} bytes: it is damaged. Load an earlier one."
        )
    if int(mark[1]) != _FORMAT:
        found = f"{path} must have format {_FORMAT}, got format {int(mark[1])}."
        raise ValueError(f"{found} Install the torchcls that wrote it.")
    try:
        records = zipfile.ZipFile(io.BytesIO(data)).infolist()
        # A small file must not become gigabytes.
        if any(record.compress_type != zipfile.ZIP_STORED for record in records):
            raise ValueError("compressed records")
        # mmap is said because a global setting of torch could turn it on, which bytes cannot do.
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True, mmap=False)
        if not isinstance(state, dict):
            raise TypeError(f"{type(state).__name__} in place of a dict")
        return state
    except Exception as error:  # torch, pickle and zipfile raise all kinds
        why = f"{type(error).__name__}: {error}"
        if isinstance(error, pickle.UnpicklingError):  # torch's text advises to run the code
            why = "Python objects that could run code, not only tensors"
        raise ValueError(f"{path} must hold what save_checkpoint writes, got {why}.") from None


def _storable(value: Any, where: str, seen: dict[Any, Any]) -> Any:
    """The value as ``weights_only=True`` gives it back; ``seen`` is for `_stored_tensor`."""
    kind = type(value)
    if kind in (Tensor, nn.Parameter) and not (value.is_meta or value.is_nested):
        return _stored_tensor(value, seen)
    if kind is bytes and not value:
        return _EmptyBytes()
    if kind in _SCALARS and not (kind is int and value.bit_length() > 2039):
        return value
    if kind in (list, tuple):
        return kind(_storable(item, f"{where}[{i}]", seen) for i, item in enumerate(value))
    if kind in (dict, OrderedDict, Counter):
        copy: dict[Any, Any] = kind()
        for key, item in value.items():
            stored = _storable(key, f"the key {key!r} of {where}", seen)
            copy[stored] = _storable(item, f"{where}[{key!r}]", seen)
        if kind is OrderedDict:  # a model's state_dict keeps the versions of its modules there
            vars(copy).update(_storable(vars(value), f"vars({where})", seen))
        return copy
    remedy = " Save its .state_dict()." if hasattr(value, "state_dict") else ""
    raise TypeError(
        f"{where} must be a dense or sparse tensor, or a plain value (an int of up to 2039 bits), "
        f"got {kind.__module__}.{kind.__name__}.{remedy}"
    )


def _stored_tensor(tensor: Tensor, seen: dict[Any, Any]) -> Tensor:
    """The tensor on the CPU, without the rest of its storage; the same one again if seen before."""
    if tensor.layout is not torch.strided:
        return tensor.detach().cpu()
    place = tensor.device, tensor.untyped_storage().data_ptr(), tensor.storage_offset()
    form = tensor.shape, tensor.stride(), tensor.dtype, tensor.is_conj(), tensor.is_neg()
    stored: Tensor | None = seen.get((place, form))
    if stored is None:
        stored = tensor.detach().cpu()
        # torch.save refuses one storage under two dtypes: the second gets its own.
        dtype = seen.setdefault(stored.untyped_storage().data_ptr(), stored.dtype)
        if stored.untyped_storage().nbytes() > stored.nbytes or dtype != stored.dtype:
            stored = stored.clone()
        seen[place, form] = stored
    return stored


class _EmptyBytes:  # pickles as other bytes do: weights_only=True refuses Python's own way for b""
    def __reduce__(self) -> tuple[Any, ...]:
        return codecs.encode, ("", "latin1")


def _sync_folder(folder: Path) -> None:
    """Let the new name reach the disk, too, where the platform can."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EINVAL, errno.ENOTSUP):
            raise


def _unmarked(path: _Path, data: bytes) -> ValueError:
    # Ours is a zip archive with a comment: a whole one without, and a pickle, are other programs'.
    start = f"{path} must end in the mark of a torchcls checkpoint, got"
    is_whole_archive = data[-22:-18] == b"PK\5\6" and data[-2:] == b"\0\0"
    if is_whole_archive or re.match(rb"\x80[\2-\5]", data):
        return ValueError(
            f"{start} another program's file, which could run code: refused. Load tensors by "
            "torch.load(path, weights_only=True); if you made it yourself, save the state_dict."
        )
    seen = f"{len(data)} bytes that start with {data[:12]!r}" if data else "an empty file"
    return DamagedError(f"{start} {seen}: cut off or damaged. Load an earlier one.")
