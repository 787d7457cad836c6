"""Checkpoints that survive faults: replaced whole or not at all, and checked to the last bit."""

import codecs
import errno
import hashlib
import io
import os
import pickle
import re
import secrets
import stat
import warnings
from collections import Counter, OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

# The comment with which the zip archive of torch.save ends. Its last part is the SHA-256 of every
# byte before that part, in every format to come, so that damage is never taken for a new format.
_FORMAT = 1
_MARK = re.compile(rb"torchcls checkpoint, format (\d{1,9}), sha256 ([0-9a-f]{64})\Z")
_DIGEST_SIZE = 64


class DamagedError(ValueError):
    """A checkpoint is cut off, empty, or not what was written: an earlier one may be whole."""


_SCALARS = (type(None), bool, int, float, str, bytes, torch.Size, torch.dtype, torch.device)


def save_checkpoint(path: str | os.PathLike[str], **state: Any) -> None:
    """Write tensors and plain values to a file, which is replaced whole or left as it was.

    The file is what ``torch.save`` writes, with a checksum as the comment of its zip archive, so
    that ``torch.load(path, weights_only=True)`` gives the same dict without torchcls. It is written
    under a temporary name beside ``path``, brought to the disk, and renamed. Its permissions are
    those of the file it replaces, else those that ``open`` gives; a symbolic link is followed.

    Tensors keep their bits, dtype and shape, and one that stands in two places (tied weights) stays
    one. They come back as plain tensors on the CPU: a parameter's being one, ``requires_grad`` and
    attributes are not kept. A view is saved without the rest of its storage.

    Args:
        path: The file; its folder must be there.
        state: Dense and sparse tensors, None, bool, int (up to 2039 bits), float, str, bytes,
            torch.Size, torch.dtype, torch.device, and list, tuple, dict, OrderedDict and Counter of
            those: what the ``state_dict`` of a model, an optimizer or a schedule is made of.

    Raises:
        TypeError: If anything in ``state`` is of another kind; the message says where.
        FileNotFoundError: If the folder is not there.
        ValueError: If ``path`` is a folder or a device.
        OSError: If the file cannot be written: a full disk, say. What was there is untouched.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "model.pt")
        >>> model = nn.Linear(2, 3)
        >>> save_checkpoint(path, model=model.state_dict(), epoch=7)
        >>> load_checkpoint(path)["epoch"]
        7
        >>> model.load_state_dict(torch.load(path, weights_only=True)["model"])
        <All keys matched successfully>
    """
    target = Path(os.path.realpath(path))
    if not target.parent.is_dir():
        raise FileNotFoundError(
            f"{path} must lie in a folder that is there, got {target.parent}. Create it first."
        )
    earlier = target.exists()
    if earlier and not target.is_file():
        raise ValueError(f"{path} must be a file, got a folder or a device.")
    content = _serialised(state)
    # Random, not the process id: that one comes again in containers, where what a killed process
    # left behind would block it.
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}.tmp")
    outcome = "The earlier checkpoint is untouched." if earlier else "Nothing is left behind."
    try:
        with open(temporary, "xb") as file:
            if earlier:
                os.chmod(temporary, stat.S_IMODE(target.stat().st_mode))
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
        outcome = "It is whole, but may not survive a power cut."
        _sync_folder(target.parent)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if not isinstance(error, OSError):
            raise
        reason = f"{path} must be writable, got: {error.strerror or error}. {outcome}"
        raise OSError(error.errno, reason) from error


def load_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read what ``save_checkpoint`` wrote, or say what is wrong with the file.

    One flipped bit anywhere in the file is found, by a checksum over the very bytes that are then
    read. The checksum finds accidents; against malice stands that no code in the file is ever run.

    Args:
        path: A file that ``save_checkpoint`` wrote.

    Returns:
        The ``state`` it was given; all tensors are plain ones on the CPU.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the path is a folder, or the file is empty, cut off, damaged, another
            program's, of another format, or holds objects that could run code. Where an earlier
            file may be whole it is a ``DamagedError``.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "model.pt")
        >>> save_checkpoint(path, weights=torch.ones(2))
        >>> load_checkpoint(path)
        {'weights': tensor([1., 1.])}
        >>> _ = path.write_bytes(path.read_bytes().replace(b"weights", b"Weights"))  # one bit
        >>> load_checkpoint(path)
        Traceback (most recent call last):
            ...
        torchcls.checkpoint.DamagedError: ...model.pt must have the checksum that it was written
        with, got another ...
    """
    if os.path.isdir(path):
        raise ValueError(f"{path} must be a checkpoint, got a folder.")
    if not os.path.exists(path):
        raise FileNotFoundError(f"{path} must be a checkpoint, got a path that is not there.")
    data = Path(path).read_bytes()
    mark = _MARK.search(data, max(0, len(data) - 128))
    if mark is None:
        raise _not_ours(path, data)
    digest = hashlib.sha256(memoryview(data)[:-_DIGEST_SIZE]).hexdigest()
    if digest.encode() != mark[2]:
        raise DamagedError(
            f"{path} must have the checksum that it was written with, got another one over its "
            f"{len(data)} bytes: it is damaged. Load an earlier one."
        )
    if int(mark[1]) != _FORMAT:
        raise ValueError(
            f"{path} must have format {_FORMAT}, which this torchcls reads, got format "
            f"{int(mark[1])}. Install the torchcls that wrote it."
        )
    try:
        state: dict[str, Any] = _parsed(data)
    except pickle.UnpicklingError:
        raise ValueError(_could_run_code(path)) from None  # torch's text advises to run the code
    return state


def check_architecture(
    model: nn.Module, state: Mapping[str, Tensor], path: str | os.PathLike[str]
) -> None:
    """Refuse weights of another architecture before ``load_state_dict`` overwrites half a model.

    Args:
        model: The model that is to take the weights; it is left alone.
        state: What a model's ``state_dict()`` gave.
        path: Where the weights are from, for the message.

    Raises:
        ValueError: If names are missing or unknown or shapes differ; up to five of each are shown.

    Example:
        >>> check_architecture(nn.Linear(2, 3), nn.Linear(2, 5).state_dict(), "model.pt")
        Traceback (most recent call last):
            ...
        ValueError: model.pt must hold the weights of this model, got weight (5, 2) where the model
        has (3, 2), bias (5,) where the model has (3,). Build the model as it was when saved.
    """
    own = model.state_dict()
    differing = [
        f"{name} {_shape(state[name])} where the model has {_shape(value)}"
        for name, value in own.items()
        # A lazy module takes whatever shape it is given; extra state is the module's own matter.
        if name in state and isinstance(value, Tensor) and not is_lazy(value)
        if _shape(state[name]) != _shape(value)
    ]
    missing = [name for name in own if name not in state]
    unknown = [name for name in state if name not in own]
    groups = [("", differing), ("nothing for ", missing), ("the unknown ", unknown)]
    found = "; ".join(start + _at_most_five(names) for start, names in groups if names)
    if found:
        raise ValueError(
            f"{path} must hold the weights of this model, got {found}. "
            "Build the model as it was when saved."
        )


def _serialised(state: dict[str, Any]) -> memoryview:
    """The file: what torch.save writes, and our mark as the comment of the zip archive."""
    file = io.BytesIO()
    torch.save(_storable(state, "state", {}), file)
    mark = b"torchcls checkpoint, format %d, sha256 " % _FORMAT
    # A zip archive ends in the length of its comment, two bytes: torch writes none, so 0.
    file.seek(-2, os.SEEK_END)
    file.write((len(mark) + _DIGEST_SIZE).to_bytes(2, "little") + mark)
    with file.getbuffer() as written:
        digest = hashlib.sha256(written).hexdigest()
    file.write(digest.encode())
    return file.getbuffer()


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
    raise TypeError(f"{where} must be a tensor or plain value, got {_kind_and_remedy(value)}")


def _stored_tensor(tensor: Tensor, seen: dict[Any, Any]) -> Tensor:
    """The tensor on the CPU, without the rest of its storage; the same one again if seen before."""
    if tensor.layout is not torch.strided:
        return tensor.detach().cpu()
    place = tensor.device, tensor.untyped_storage().data_ptr(), tensor.storage_offset()
    form = tensor.shape, tensor.stride(), tensor.dtype, tensor.is_conj(), tensor.is_neg()
    if (place, form) not in seen:
        stored = tensor.detach().cpu()
        storage = stored.untyped_storage()
        # torch.save refuses one storage under two dtypes: the second gets its own.
        dtype = seen.setdefault(storage.data_ptr(), stored.dtype)
        if storage.nbytes() > stored.nbytes or dtype != stored.dtype:
            stored = stored.clone()
        seen[place, form] = stored
    found: Tensor = seen[place, form]
    return found


class _EmptyBytes:
    """Pickles as b"" in the way of other bytes; Python's own is refused by weights_only=True."""

    def __reduce__(self) -> tuple[Any, ...]:
        return codecs.encode, ("", "latin1")


def _kind_and_remedy(value: Any) -> str:
    name = type(value).__name__
    if type(value) is int:
        return f"an int of {value.bit_length()} bits, more than torch.load reads. Use a str."
    if isinstance(value, Tensor) and (value.is_meta or value.is_nested):
        return "a tensor that is nested or on the meta device."
    if hasattr(value, "state_dict"):
        return f"{name}. Save its .state_dict()."
    if type(value).__module__ == "numpy":
        remedy = "torch.from_numpy(x)" if name == "ndarray" else "float(x) or int(x)"
        return f"numpy's {name}. Save {remedy}."
    return f"{name}."


def _sync_folder(folder: Path) -> None:
    """Let the new name reach the disk, too, where the platform can."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:  # Windows, or a folder that one may write to but not list
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # what file systems say that cannot
            raise
    finally:
        os.close(descriptor)


def _parsed(data: bytes) -> Any:
    # mmap is said because a global setting of torch could turn it on, which bytes cannot do.
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True, mmap=False)


def _not_ours(path: str | os.PathLike[str], data: bytes) -> ValueError:
    start = f"{path} must end in the mark of a torchcls checkpoint, got"
    if not data:
        return DamagedError(f"{start} an empty file. Load an earlier one.")
    if not data.startswith((b"PK\3\4", b"\x80")):  # zip archives, and pickles of old
        seen = f"{len(data)} bytes that start with {data[:12]!r}"
        return DamagedError(f"{start} {seen}. Load an earlier one.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _parsed(data)  # only to tell what it is; nothing in it is run
    except pickle.UnpicklingError:
        return ValueError(_could_run_code(path))
    except Exception:
        seen = f"{len(data)} bytes that are cut off or damaged"
        return DamagedError(f"{start} {seen}. Load an earlier one.")
    return ValueError(
        f"{start} another program's file, or {len(data)} bytes that are cut off or damaged at the "
        "end. Load an earlier one, or other programs' files by torch.load(path, weights_only=True)."
    )


def _could_run_code(path: str | os.PathLike[str]) -> str:
    return (
        f"{path} holds Python objects that could run code, not only tensors: refused. "
        "If you made the file yourself, save the state_dict instead."
    )


def _shape(value: object) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else type(value).__name__


def _at_most_five(names: list[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more
