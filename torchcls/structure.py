"""Batches as people nest them: tensors in tuples, lists and dicts, walked through in one way."""

import copy
from collections.abc import Callable
from operator import is_
from typing import Any

from torch import Tensor


def mapped(
    change: Callable[[Any], Any],
    structure: Any,
    is_leaf: Callable[[Any], bool] = lambda structure: False,
) -> Any:
    """Apply a function to every leaf; tuples, named tuples, lists and dicts keep their form.

    Where no leaf changes, the very same structure is returned. Of a dict of one's own class a copy
    is changed, so that it keeps its attributes.

    Args:
        change: Called with each leaf in order; its result takes the leaf's place.
        structure: What to walk through.
        is_leaf: Says of a container that it is to be handed to ``change`` as it is.

    Example:
        >>> mapped(lambda leaf: leaf * 10, {"ids": 1, "masks": (2, [3])})
        {'ids': 10, 'masks': (20, [30])}
    """
    if type(structure) is Tensor:  # most leaves, and this runs for every batch
        return change(structure)
    if isinstance(structure, (tuple, list)) and not is_leaf(structure):
        parts = [mapped(change, part, is_leaf) for part in structure]
        if all(map(is_, parts, structure)):
            return structure
        is_named = hasattr(structure, "_fields")
        return type(structure)(*parts) if is_named else type(structure)(parts)
    if isinstance(structure, dict) and not is_leaf(structure):
        items = {key: mapped(change, part, is_leaf) for key, part in structure.items()}
        if all(map(is_, items.values(), structure.values())):
            return structure
        return items if type(structure) is dict else _with_items(structure, items)
    return change(structure)


def _with_items(structure: dict[Any, Any], items: dict[Any, Any]) -> dict[Any, Any]:
    copied = copy.copy(structure)
    for key, part in items.items():
        if part is not structure[key]:
            copied[key] = part
    return copied


def num_samples(structure: Any) -> int:
    """How many samples a batch's inputs or targets hold: the length of the first axis.

    Args:
        structure: A tensor, or a tuple, list or dict of such, nested as deep as you like. 0-d
            tensors and what is no tensor belong to the batch as a whole and are passed over. A list
            of dicts holds one dict for each sample, as detection targets do.

    Raises:
        ValueError: If the tensors in it have different lengths, or there are none.

    Example:
        >>> import torch
        >>> num_samples({"ids": torch.zeros(5, 7), "mask": torch.ones(5, 7), "scale": 2.0})
        5
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

    Example:
        >>> import torch
        >>> [piece.tolist() for piece in split(torch.arange(5), 2)]
        [[0, 1], [2, 3], [4]]
    """

    def cut(start: int) -> Any:
        where = slice(start, start + size)
        return mapped(lambda leaf: leaf[where] if _has_samples(leaf) else leaf, structure, _is_list)

    return [cut(start) for start in range(0, num_samples(structure), size)]


def _has_samples(leaf: Any) -> bool:
    return _is_list(leaf) or (isinstance(leaf, Tensor) and leaf.ndim > 0)


def _is_list(structure: Any) -> bool:
    """Whether this is a list with one dict for each sample."""
    return isinstance(structure, list) and bool(structure) and isinstance(structure[0], dict)
