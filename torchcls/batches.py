"""What a batch is: a pair (inputs, targets) of tensors as people nest them, on some device."""

import contextlib
import copy
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from numbers import Number
from types import NoneType
from typing import Any, SupportsIndex

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

Pair = tuple[Any, Any]


# ------------------------------------------------------------------ nested tensors


def mapped(
    change: Callable[[Any], Any],
    structure: Any,
    is_leaf: Callable[[Any], bool] = lambda structure: False,
) -> Any:
    """Apply a function to every leaf; tuples, named tuples, lists and dicts keep their form.

    Where no leaf changes, the very same structure is returned. Of a dict of one's own class a copy
    is changed, so that it keeps its attributes. ``is_leaf`` says of a container that it is a leaf.

    Examples:
        >>> mapped(lambda leaf: leaf * 10, {"ids": 1, "masks": (2, [3])})
        {'ids': 10, 'masks': (20, [30])}
    """
    if type(structure) is Tensor:  # most leaves, and this runs for every batch
        return change(structure)
    if isinstance(structure, (tuple, list)) and not is_leaf(structure):
        parts = [mapped(change, part, is_leaf) for part in structure]
        if all(map(operator.is_, parts, structure)):
            return structure
        is_named = hasattr(structure, "_fields")
        return type(structure)(*parts) if is_named else type(structure)(parts)
    if isinstance(structure, dict) and not is_leaf(structure):
        items = {key: mapped(change, part, is_leaf) for key, part in structure.items()}
        if all(map(operator.is_, items.values(), structure.values())):
            return structure
        if type(structure) is dict:
            return items
        copied = copy.copy(structure)
        for key, part in items.items():
            if part is not structure[key]:
                copied[key] = part
        return copied
    return change(structure)


def num_samples(structure: Any) -> int:
    """How many samples a batch's inputs or targets hold: the length of the first axis.

    0-d tensors and what is no tensor or array belong to the batch as a whole and are passed over. A
    list of dicts holds one dict for each sample, as detection targets do. A ValueError says that
    lengths differ, or that there are none.
    """
    lengths = set()

    def look(leaf: Any) -> Any:
        if _is_list(leaf) or (_is_array(leaf) and leaf.ndim > 0):
            lengths.add(len(leaf))
        return leaf  # unchanged: nothing is made anew

    mapped(look, structure, _is_list)
    if len(lengths) != 1:
        seen = f"lengths {sorted(lengths)}" if lengths else f"none in {type(structure).__name__}"
        raise ValueError(
            f"a batch must hold tensors that agree in the length of their first axis, got {seen}."
        )
    return lengths.pop()


def samples_of(batch: Pair) -> int:
    """How many samples a batch holds: as its targets say, else as its inputs do, else 1.

    For a loss of one's own, whose targets may be anything: None, strings, nodes beside graphs.
    """
    for part in reversed(batch):
        with contextlib.suppress(ValueError):
            return num_samples(part)
    return 1


def split(structure: Any, size: int) -> list[Any]:
    """Cut a batch, or a part of one, along the first axis into pieces of ``size`` samples.

    Cut is what has an entry for each sample: tensors, arrays, and lists and tuples (of strings, of
    dicts, of tensors of any lengths). Numbers, strings, None and 0-d tensors go with every piece;
    a ValueError names what is none of these, or could be read in two ways. The last piece may be
    smaller, and no sample gives no piece. Pieces of tensors are views.
    """
    return cut(structure, lambda n: [slice(at, at + size) for at in range(0, n, size)])


def cut(structure: Any, places: Callable[[int], list[slice]]) -> list[Any]:
    """Cut a batch, or a part of one, as ``split`` does, where ``places`` says for n samples."""
    is_pair = isinstance(structure, tuple) and len(structure) == 2
    parts = {"inputs": structure[0], "targets": structure[1]} if is_pair else {"batch": structure}
    found = [numbers for part in parts.values() if (numbers := _readings(part)) is not None]
    if not any(found):
        raise ValueError(
            "what is cut into samples must hold tensors, or lists with an entry for each, that "
            "agree in their number. Leave it whole: no micro_batch, or batches in a list."
        )
    agreed = [n for n in found[-1] if all(n in numbers for numbers in found)]
    n = agreed[0] if agreed else max(max(numbers) for numbers in found if numbers)
    slices = places(n)
    for name, part in parts.items() if slices and slices[0].stop < n else ():
        _check_cut(part, n, name)

    def piece(part: Any, where: slice) -> Any:
        return mapped(
            lambda leaf: leaf if _goes_with_all(leaf) else leaf[where],
            part,
            lambda part: _is_per_sample(part, n),
        )

    pieces = [tuple(piece(part, where) for part in parts.values()) for where in slices]
    return pieces if is_pair else [piece for (piece,) in pieces]


def no_rows(structure: Any) -> Any:
    """The same structure with no sample in it: the first axis of every tensor is empty."""

    def emptied(leaf: Any) -> Any:
        return leaf[:0] if isinstance(leaf, Tensor) and leaf.ndim > 0 else leaf

    return mapped(emptied, structure)


def joined(parts: Sequence[Any]) -> Any:
    """Put structures of tensors together along the first axis, leaf by leaf.

    Examples:
        >>> joined([{"logits": torch.zeros(2, 3)}, {"logits": torch.zeros(4, 3)}])["logits"].shape
        torch.Size([6, 3])
    """
    first = parts[0]
    if isinstance(first, dict):
        return {key: joined([part[key] for part in parts]) for key in first}
    if isinstance(first, (tuple, list)):
        columns = map(joined, zip(*parts, strict=True))
        return type(first)(*columns) if hasattr(first, "_fields") else type(first)(columns)
    if first.ndim == 0:
        raise ValueError(
            "tensors must have samples along the first axis to be joined, got one number."
        )
    return torch.cat(list(parts))


def _readings(part: Any) -> list[int] | None:
    """How many samples a part may hold, likelier numbers first; None where it goes with all.

    A list of 60 tensors of length 5 holds 5 samples of 60 parts or, less likely, 60 samples.
    """
    if _is_array(part):
        return [len(part)] if part.ndim else None
    if isinstance(part, dict):
        return _agreed(part.values())
    if not isinstance(part, (list, tuple)) or not part:
        return None
    inner = [] if _is_list(part) else _agreed(part)
    return inner if hasattr(part, "_fields") else [*(inner or []), len(part)]


def _agreed(parts: Iterable[Any]) -> list[int] | None:
    found = [numbers for part in parts if (numbers := _readings(part)) is not None]
    return [n for n in found[0] if all(n in other for other in found)] if found else None


def _is_per_sample(part: Any, n: int) -> bool:
    """Whether a list or tuple has one entry for each of n samples, and is no list of parts."""
    if not _is_sequence(part):
        return isinstance(part, PackedSequence)
    if len(part) == n:
        return _is_list(part) or n not in (_agreed(part) or [])
    return not any(n in (_readings(entry) or []) for entry in part)


def _check_cut(part: Any, n: int, name: str) -> None:
    """Name what has no entry for each of n samples, or may have: three images of three channels."""
    of_n = f"for each of {n} samples to be cut by micro_batch"
    if isinstance(part, dict):
        for key, entry in part.items():
            _check_cut(entry, n, f"{name}[{key!r}]")
    elif isinstance(part, (list, tuple)) and not _is_per_sample(part, n):
        kinds = {
            (type(entry), *(getattr(entry, k, 0) for k in ("dtype", "ndim"))) for entry in part
        }
        if len(part) == n and len(kinds) == 1:
            raise ValueError(
                f"{name} must have one entry {of_n}, or parts that do, got {n} entries of length "
                f"{n}, which may be either. Give parts in a dict, or samples as one tensor."
            )
        for i, entry in enumerate(part):
            _check_cut(entry, n, f"{name}[{i}]")
    elif not _goes_with_all(part):
        is_cut = _is_array(part) or _is_sequence(part)
        if not is_cut or len(part) != n:
            seen = f"{type(part).__name__}{f' of {len(part)}' if is_cut else ''}"
            fix = f"Make it a tensor, an array or a list of {n}, or leave micro_batch at None."
            raise ValueError(f"{name} must have an entry {of_n}, got {seen}. {fix}")


def _goes_with_all(leaf: Any) -> bool:
    is_empty = isinstance(leaf, (list, tuple, dict)) and not leaf
    return is_empty or (
        leaf.ndim == 0 if _is_array(leaf) else isinstance(leaf, (str, bytes, Number, NoneType))
    )


def _is_array(leaf: Any) -> bool:
    """A tensor, or an array of numpy and its kin: they are cut alike."""
    return isinstance(leaf, Tensor) or (hasattr(leaf, "ndim") and hasattr(leaf, "shape"))


def _is_sequence(part: Any) -> bool:
    """A list or a tuple, but no named one, whose entries are no samples."""
    return isinstance(part, (list, tuple)) and not hasattr(part, "_fields")


def _is_list(structure: Any) -> bool:  # that holds one dict for each sample
    return _is_sequence(structure) and bool(structure) and isinstance(structure[0], dict)


# ------------------------------------------------------------------ devices


def device_of(model: nn.Module) -> torch.device:
    """Where a model is: the device of its first parameter or buffer; the CPU if it has none."""
    for tensors in (model.parameters(), model.buffers()):
        for tensor in tensors:
            return tensor.device
    return torch.device("cpu")


def to_device(structure: Any, device: torch.device) -> Any:
    """Take every tensor of a nested structure, and every object with ``.to``, to a device.

    A batch that is there already is returned as it is. Nothing waits for an accelerator: on the way
    to CUDA a tensor goes through pinned memory, so the copy overlaps with what the device is doing.
    """
    if type(structure) is tuple and len(structure) == 2:  # every step comes here
        inputs, targets = structure
        if type(inputs) is type(targets) is Tensor and inputs.device == targets.device == device:
            return structure

    def moved(leaf: Any) -> Any:
        held = leaf.data if isinstance(leaf, PackedSequence) else leaf
        if not isinstance(held, Tensor):  # a graph, say, or what a tokenizer gives, moves itself
            return leaf.to(device) if callable(getattr(leaf, "to", None)) else leaf
        if held.device == device:
            return leaf
        # An expanded tensor, whose places in memory are shared, cannot be pinned.
        may_be_pinned = held.is_contiguous() and not held.is_pinned()
        if device.type == "cuda" and held.device.type == "cpu" and may_be_pinned:
            leaf = leaf.pin_memory()
        return leaf.to(device, non_blocking=True)

    # A packed sequence moves itself: its ``batch_sizes`` have to stay on the CPU.
    return mapped(moved, structure, lambda part: isinstance(part, PackedSequence))


# ------------------------------------------------------------------ sources of batches


def pairs(
    batches: Iterable[Any],
    name: str,
    *,
    may_be_empty: bool = False,
    read: Callable[[Any, str], Pair] | None = None,
) -> Iterator[Pair]:
    """Start a pass over batches, each read as a pair; without any it is a ValueError."""
    try:
        iterator = iter(batches)
    except TypeError:
        raise TypeError(_not_batches(batches, name)) from None

    def checked() -> Iterator[Pair]:
        is_empty = True
        for batch in iterator:
            pair = (read or as_pair)(batch, name)
            if is_empty:
                _check_no_sample(batches, pair, name)
                is_empty = False
            yield pair
        if is_empty and not may_be_empty:
            raise ValueError(_no_batch(batches, name))

    return checked()


def check_source(batches: Any, name: str) -> None:
    """Check what ``pairs`` would, as far as it can be seen without starting a pass."""
    if isinstance(batches, Iterator) and not hasattr(batches, "__len__"):
        raise TypeError(
            f"{name} must be something that can be iterated again, got {type(batches).__name__}, "
            "which runs dry after one epoch. Pass a list, a DataLoader or a tc.Batches."
        )
    is_iterable = hasattr(batches, "__iter__") or hasattr(batches, "__getitem__")
    # Arrays, too, and dicts of them: what comes out of these are rows and keys, never batches.
    if hasattr(batches, "__array__") or isinstance(batches, (str, Mapping)) or not is_iterable:
        raise TypeError(_not_batches(batches, name))
    if num_batches(batches) == 0:
        raise ValueError(_no_batch(batches, name))
    # Validation comes after a whole epoch: what can be seen without drawing is seen now.
    if type(batches) in (list, tuple):
        for batch in batches:
            as_pair(batch, name)
    if isinstance(batches, (list, tuple, TensorDataset)):
        _check_no_sample(batches, batches[0], name)


def num_batches(batches: Any) -> int | None:
    """How many batches a pass gives; None where the source does not tell."""
    try:
        return len(batches)
    except TypeError:  # no __len__, or the loader of a dataset without one
        return None


def set_epoch(batches: Any, epoch: int) -> None:
    """Tell samplers and datasets that shuffle by the number of the epoch which one begins.

    torch's ``DistributedSampler`` and many of people's own have a ``set_epoch``; without it each
    epoch comes in the same order.
    """
    for part in parts_of(batches):
        hear = getattr(part, "set_epoch", None)
        if callable(hear):
            hear(epoch)


def parts_of(loader: Any) -> list[Any]:
    """A loader with its samplers and its dataset, each once."""
    batch_sampler = getattr(loader, "batch_sampler", None)
    samplers = getattr(loader, "sampler", None), getattr(batch_sampler, "sampler", None)
    parts = (loader, batch_sampler, *samplers, getattr(loader, "dataset", None))
    return list({id(part): part for part in parts}.values())


def generators_of(loader: Any) -> list[torch.Generator]:
    """The generators that a loader, its samplers and its dataset draw from."""
    found = (getattr(part, "generator", None) for part in parts_of(loader))
    return [generator for generator in found if isinstance(generator, torch.Generator)]


def as_pair(batch: Any, name: str) -> Pair:
    """Check that a batch is a pair (inputs, targets); the TypeError shows how to make it one."""
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        return batch[0], batch[1]
    if isinstance(batch, dict):
        seen = f"a dict with the keys {', '.join(map(repr, batch)) or '(none)'}"
        names = ("labels", "label", "targets", "target", "y")
        target = next((key for key in names if key in batch), next(reversed(batch), "y"))
        others = [key for key in batch if key != target]
        inputs = f"b[{others[0]!r}]" if len(others) == 1 else "b"  # several: the model takes all
        made = f"        b = default_collate(samples)\n        return {inputs}, b[{target!r}]"
    elif isinstance(batch, (tuple, list)) and len(batch) > 2:
        seen = f"{len(batch)} parts"
        made = (
            "        parts = default_collate(samples)  # the target second: return parts[:2]\n"
            "        return tuple(parts[:-1]), parts[-1]"
            "  # and forward=lambda model, inputs: model(*inputs)"
        )
    else:
        shape = f" of shape {tuple(batch.shape)}" if hasattr(batch, "shape") else ""
        parts = len(batch) if isinstance(batch, (tuple, list)) else None
        seen = f"one {type(batch).__name__}{shape}" if parts is None else f"{parts} part"
        made = ""
    remedy = "Put inputs and targets together: tc.Batches(inputs, targets, batch_size=64)."
    if made:  # a named function: workers that are spawned cannot be sent a lambda
        remedy = (
            "Give the DataLoader collate_fn=as_pair, with default_collate from torch.utils.data:\n"
            f"    def as_pair(samples):\n{made}"
        )
    raise TypeError(f"{name} must hold pairs (inputs, targets), got {seen}. {remedy}")


def _check_no_sample(batches: Any, first: Any, name: str) -> None:
    """Refuse a dataset, or a list of samples, where batches are wanted."""
    if not isinstance(first, (tuple, list)) or len(first) != 2:
        return
    inputs, target = first
    is_one = getattr(target, "ndim", None) == 0 or isinstance(target, (int, float))
    if isinstance(batches, TensorDataset) and target is not None:  # rows may have axes of their own
        is_one = is_one or inputs.shape[:1] != target.shape[:1]
    gives_samples = isinstance(batches, (Dataset, list, tuple))
    if isinstance(batches, DataLoader):
        gives_samples = batches.batch_sampler is None
    if not (is_one and gives_samples):
        return
    seen = f"{name} must give batches, got the single samples of a {type(batches).__name__}. "
    if isinstance(batches, DataLoader):
        raise TypeError(f"{seen}Give it a batch_size.")
    is_ordered = isinstance(batches, IterableDataset) or not name.startswith("train")
    shuffle = "" if is_ordered else ", shuffle=True"
    fix = f"Wrap it: torch.utils.data.DataLoader(samples, batch_size=64{shuffle})."
    raise TypeError(seen + fix)


def _not_batches(batches: Any, name: str) -> str:
    return (
        f"{name} must be an iterable of pairs (inputs, targets), got {type(batches).__name__}. "
        "Cut tensors into batches with tc.Batches(inputs, targets, batch_size=64)."
    )


def _no_batch(batches: Any, name: str) -> str:
    """Say that ``batches`` gives none, and why where that can be seen."""
    dataset: Any = getattr(batches, "dataset", None)
    batch_size = getattr(batches, "batch_size", None)
    why = "."
    if getattr(batches, "drop_last", False) and batch_size and hasattr(dataset, "__len__"):
        why = (
            f" ({len(dataset)} samples, batch_size={batch_size}, drop_last=True). "
            "Lower batch_size or set drop_last=False."
        )
    elif isinstance(batches, Iterator):
        why = ": an iterator runs dry after one pass. Pass a list, a DataLoader or a tc.Batches."
    return f"{name} must give at least one batch, got none{why}"


# ------------------------------------------------------------------ plain arguments


def check_whole_number(name: str, value: SupportsIndex, *, at_least: int | None = None) -> int:
    """Return ``value`` as an int; numpy's whole numbers count as whole, bools and 2.0 do not."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be a whole number, got {value!r}.")
    number = operator.index(value)
    if at_least is not None and number < at_least:
        raise ValueError(f"{name} must be at least {at_least}, got {number}.")
    return number
