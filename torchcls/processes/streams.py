"""Data that fits in no memory, as streams whose number the script fixes."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from torchcls.batches import Pair, as_pair, check_whole_number, joined, mapped


class Streams:
    """Batches from n streams: one batch of every stream makes a batch.

    The script fixes how many streams there are, and so what a batch is; how many processes read
    them changes nothing. Each process opens its own streams and no others. One that ends early
    leaves the rest of the epoch to the others.

    Args:
        open_stream: Called as ``open_stream(k)`` with k from 0 to n - 1, at the start of every
            pass; returns an iterable of pairs (inputs, targets) of tensors or arrays. It has to
            give the same batches again where a run is to be resumed inside an epoch.
        n: How many streams, at least the number of processes.

    Raises:
        TypeError: If ``open_stream`` cannot be called, or n is no whole number.
        ValueError: If n is below 1.

    Examples:
        >>> import torch
        >>> def open_stream(k):  # a shard each, say
        ...     for _ in range(2 + k):
        ...         yield torch.full((4, 1), k), torch.full((4,), k)
        >>> [targets.tolist() for _, targets in Streams(open_stream, n=2)]
        [[0, 0, 0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 1, 1, 1, 1], [1, 1, 1, 1]]
    """

    def __init__(self, open_stream: Callable[[int], Iterable[Any]], *, n: int) -> None:
        if not callable(open_stream):
            raise TypeError(
                f"open_stream must be callable with the number of a stream, got {open_stream!r}."
            )
        self.open_stream, self.n = open_stream, check_whole_number("n", n, at_least=1)

    def __iter__(self) -> Iterator[Pair]:
        return self.batches(range(self.n))

    def batches(self, numbers: Sequence[int]) -> Iterator[Pair]:
        """What some of the streams give, put together batch by batch."""
        open_ones = [iter(self.open_stream(number)) for number in numbers]
        while True:
            found = [(stream, next(stream, None)) for stream in open_ones]
            open_ones = [stream for stream, batch in found if batch is not None]
            if not open_ones:
                return
            pairs = [as_pair(batch, "a stream") for _, batch in found if batch is not None]
            inputs, targets = (
                joined([mapped(_as_tensor, part) for part in parts])
                for parts in zip(*pairs, strict=True)
            )
            yield inputs, targets


def _as_tensor(leaf: Any) -> Any:
    return torch.from_numpy(leaf) if isinstance(leaf, np.ndarray) else leaf
