"""What a batch is: a pair (inputs, targets) of tensors as people nest them, on some device."""

import copy
import operator
from collections.abc import Callable, Iterable, Iterator
from typing import Any, SupportsIndex

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils.data import Dataset, TensorDataset

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

    Example:
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

    0-d tensors and what is no tensor belong to the batch as a whole and are passed over. A list of
    dicts holds one dict for each sample, as detection targets do. A ValueError says that lengths
    differ, or that there are none.
    """
    lengths = set()

    def look(leaf: Any) -> Any:
        if _has_samples(leaf):
            lengths.add(len(leaf))
        return leaf  # unchanged: nothing is made anew

    mapped(look, structure, _is_list)
    if len(lengths) != 1:
        seen = f"lengths {sorted(lengths)}" if lengths else f"none in {type(structure).__name__}"
        raise ValueError(
            f"a batch must hold tensors that agree in the length of their first axis, got {seen}."
        )
    return lengths.pop()


def split(structure: Any, size: int) -> list[Any]:
    """Cut a structure of tensors along the first axis into pieces of ``size`` samples.

    The last piece may be smaller, and no sample gives no piece. Pieces are views, not copies.
    """

    def cut(start: int) -> Any:
        where = slice(start, start + size)
        return mapped(lambda leaf: leaf[where] if _has_samples(leaf) else leaf, structure, _is_list)

    return [cut(start) for start in range(0, num_samples(structure), size)]


def _has_samples(leaf: Any) -> bool:
    return _is_list(leaf) or (isinstance(leaf, Tensor) and leaf.ndim > 0)


def _is_list(structure: Any) -> bool:  # that holds one dict for each sample
    return isinstance(structure, list) and bool(structure) and isinstance(structure[0], dict)


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
    if isinstance(batches, Tensor) or not is_iterable:
        raise TypeError(_not_batches(batches, name))
    if num_batches(batches) == 0:
        raise ValueError(_no_batch(batches, name))
    # Validation comes after a whole epoch: what can be seen without drawing is seen now.
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
        seen, made = f"{len(batch)} parts", "        return default_collate(samples)[:2]"
    else:
        shape = f" of shape {tuple(batch.shape)}" if isinstance(batch, Tensor) else ""
        seen, made = f"one {type(batch).__name__}{shape}", ""
    remedy = "Put each input and its target together, as in TensorDataset(inputs, targets)."
    if made:  # a named function: workers that are spawned cannot be sent a lambda
        remedy = (
            "Give the DataLoader collate_fn=as_pair, with default_collate from torch.utils.data:\n"
            f"    def as_pair(samples):\n{made}"
        )
    raise TypeError(f"{name} must hold pairs (inputs, targets), got {seen}. {remedy}")


def _check_no_sample(batches: Any, first: Any, name: str) -> None:
    """Refuse a dataset, or a list of samples, where batches are wanted."""
    target = first[1] if isinstance(first, (tuple, list)) and len(first) == 2 else None
    is_one = target.ndim == 0 if isinstance(target, Tensor) else isinstance(target, (int, float))
    if is_one and isinstance(batches, (Dataset, list, tuple)):
        raise TypeError(
            f"{name} must give batches, got the single samples of a {type(batches).__name__}. "
            "Wrap it: torch.utils.data.DataLoader(samples, batch_size=64, shuffle=True)."
        )


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
