"""Tensors in memory, cut into batches."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from torchcls.arguments import check_whole_number
from torchcls.data.generators import seeded_generator


class Batches:
    """In-memory tensors cut into ``(inputs, targets)`` batches; re-iterable, with a length.

    The order of the samples depends on ``(seed, epoch)`` and on nothing else: not on the
    device, not on what ran before, not on the global random state, which is left alone.
    Iterating does not advance ``epoch``: a second pass repeats the first one, and training
    loops advance it themselves.

    Storage keeps its dtype, so uint8 images take a quarter of the memory of float32 ones;
    ``transform`` turns each cut batch into what the model takes. Without shuffling and
    without a transform the batches are views of the stored tensors: writing into one writes
    into the data. What a transform gets is its own copy, so it may write in place.

    Args:
        inputs: Any dtype, shape (N, ...).
        targets: Any dtype, shape (N, ...); row i belongs to row i of ``inputs``.
        batch_size: Samples per batch, at least 1. The last batch may be smaller.
        shuffle: Whether each epoch has its own order; otherwise the order of the rows.
        seed: At least 0. Chooses the family of orders.
        drop_last: Whether to leave out a last batch smaller than ``batch_size``.
        transform: Called as ``transform(inputs, targets)`` on each cut batch; returns the
            pair that is handed out.

    Attributes:
        epoch: At least 0, 0 at first. Set it to choose the order of the next pass. The
            arguments are attributes, too.

    Raises:
        TypeError: If ``inputs`` or ``targets`` is no tensor, a number is not whole,
            ``transform`` cannot be called or, while iterating, does not return a pair.
        ValueError: If the tensors hold no sample or differ in length, a number is too
            small, or ``drop_last`` would leave no batch.

    Example:
        >>> images = torch.tensor([[0], [51], [255]], dtype=torch.uint8)
        >>> scale = lambda inputs, targets: (inputs / 255, targets)
        >>> batches = Batches(images, torch.tensor([0, 1, 1]), batch_size=2, transform=scale)
        >>> len(batches)  # 2 samples, then the last 1
        2
        >>> for inputs, targets in batches:
        ...     print(inputs.tolist(), targets.tolist())
        [[0.0], [0.20000000298023224]] [0, 1]
        [[1.0]] [1]
    """

    def __init__(
        self,
        inputs: Tensor,
        targets: Tensor,
        *,
        batch_size: int,
        shuffle: bool = False,
        seed: int = 0,
        drop_last: bool = False,
        transform: Callable[[Tensor, Tensor], tuple[Any, Any]] | None = None,
    ) -> None:
        _check_tensors(inputs, targets)
        if transform is not None and not callable(transform):
            raise TypeError(f"transform must be callable or None, got {transform!r}.")
        self.inputs = inputs
        self.targets = targets
        self.batch_size = check_whole_number("batch_size", batch_size, at_least=1)
        self.shuffle = shuffle
        self.seed = check_whole_number("seed", seed, at_least=0)
        self.drop_last = drop_last
        self.transform = transform
        self.epoch = 0
        if len(self) == 0:
            raise ValueError(
                f"batch_size must be at most the number of samples when drop_last=True, got "
                f"batch_size {self.batch_size} and {len(inputs)} samples: no batch would be left."
            )

    @property
    def epoch(self) -> int:
        """The number of the pass, which chooses its order; 0 at first."""
        return self._epoch

    @epoch.setter
    def epoch(self, value: int) -> None:
        self._epoch = check_whole_number("epoch", value, at_least=0)

    def to(self, device: str | torch.device) -> "Batches":
        """The same batches in the same order, with the tensors stored on a device.

        A transform then gets tensors that lie there, so what it draws or looks up must as well.

        Args:
            device: Where to keep the tensors; those that are there already are shared, not copied.
        """
        moved = copy.copy(self)
        moved.inputs, moved.targets = self.inputs.to(device), self.targets.to(device)
        return moved

    def __len__(self) -> int:
        whole, rest = divmod(len(self.inputs), self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        cuts = self._shuffled_cuts() if self.shuffle else self._cuts_in_order()
        if self.transform is None:
            yield from cuts
            return
        for inputs, targets in cuts:
            if not self.shuffle:  # views: a transform that writes in place must not reach the data
                inputs, targets = inputs.clone(), targets.clone()
            pair = self.transform(inputs, targets)
            if not isinstance(pair, (tuple, list)) or len(pair) != 2:
                raise TypeError(
                    f"transform must return a pair (inputs, targets), got {_describe(pair)}. "
                    "Return the targets too, also when they are unchanged."
                )
            yield pair[0], pair[1]

    def __repr__(self) -> str:
        transform = self.transform
        return (
            f"Batches(inputs={_describe(self.inputs)}, targets={_describe(self.targets)}, "
            f"batch_size={self.batch_size}, shuffle={self.shuffle}, seed={self.seed}, "
            f"drop_last={self.drop_last}, transform={getattr(transform, '__name__', transform)}, "
            f"epoch={self.epoch})"
        )

    def _starts(self) -> range:
        return range(0, len(self) * self.batch_size, self.batch_size)

    def _cuts_in_order(self) -> Iterator[tuple[Tensor, Tensor]]:
        for start in self._starts():
            stop = start + self.batch_size
            yield self.inputs[start:stop], self.targets[start:stop]

    def _shuffled_cuts(self) -> Iterator[tuple[Tensor, Tensor]]:
        generator = seeded_generator(self.seed, self.epoch)
        order = torch.randperm(len(self.inputs), generator=generator, device="cpu")
        rows = order.to(self.inputs.device)  # moved once per epoch, not once per batch
        target_rows = order.to(self.targets.device)
        for start in self._starts():
            stop = start + self.batch_size
            yield (
                self.inputs.index_select(0, rows[start:stop]),
                self.targets.index_select(0, target_rows[start:stop]),
            )


def _check_tensors(inputs: Tensor, targets: Tensor) -> None:
    for name, value in (("inputs", inputs), ("targets", targets)):
        if not isinstance(value, Tensor):
            raise TypeError(
                f"{name} must be a tensor, got {type(value).__name__}. "
                f"Convert it with torch.as_tensor({name})."
            )
        if value.ndim == 0:
            raise ValueError(f"{name} must have one row per sample, got a 0-d tensor.")
    if len(inputs) != len(targets):
        raise ValueError(
            "inputs and targets must have one row per sample each, got "
            f"{len(inputs)} inputs but {len(targets)} targets: they no longer belong together."
        )
    if len(inputs) == 0:
        raise ValueError(
            f"inputs and targets must hold at least one sample, got inputs {tuple(inputs.shape)}."
        )


def _describe(value: object) -> str:
    if isinstance(value, Tensor):
        return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of length {len(value)}"
    return type(value).__name__
