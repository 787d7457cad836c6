"""Batches as people nest them: tensors in tuples, lists and dicts, walked through in one way."""

from collections.abc import Callable
from typing import Any

from torch import Tensor


def mapped(
    change: Callable[[Any], Any],
    structure: Any,
    is_leaf: Callable[[Any], bool] = lambda structure: False,
) -> Any:
    """Apply a function to every leaf; tuples, named tuples, lists and dicts keep their form.

    Args:
        change: Called with each leaf in order; its result takes the leaf's place.
        structure: What to walk through.
        is_leaf: Says of a container that it is to be handed to ``change`` as it is.

    Example:
        >>> mapped(lambda leaf: leaf * 10, {"ids": 1, "masks": (2, [3])})
        {'ids': 10, 'masks': (20, [30])}
    """
    if is_leaf(structure):
        return change(structure)
    if isinstance(structure, dict):
        return {key: mapped(change, part, is_leaf) for key, part in structure.items()}
    if isinstance(structure, (tuple, list)):
        parts = [mapped(change, part, is_leaf) for part in structure]
        is_named = hasattr(structure, "_fields")
        return type(structure)(*parts) if is_named else type(structure)(parts)
    return change(structure)


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
    mapped(lambda leaf: lengths.add(len(leaf)) if _has_samples(leaf) else None, structure, _is_list)
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
