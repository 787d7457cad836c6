"""Tensors in memory, cut into batches."""

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchcls.batches import check_whole_number


def seeded_generator(*numbers: int) -> torch.Generator:
    """A generator of its own for each tuple of whole numbers >= 0, however large or alike."""
    mixed = np.random.SeedSequence(numbers).generate_state(1)  # torch's generator uses 32 bits
    return torch.Generator().manual_seed(int(mixed[0]))


class Batches:
    """In-memory tensors cut into ``(inputs, targets)`` batches; re-iterable, with a length.

    The order of the samples depends on ``(seed, epoch)`` and on nothing else: not on the
    device and not on the global random state, which is left alone.

    A pass that is begun with gradients enabled is a training pass: when it comes to its end,
    ``epoch`` moves on by one, so that the next pass takes another order. One that is broken
    off leaves ``epoch`` as it is, and so does every pass under ``torch.no_grad()`` or
    inference mode: evaluation and prediction go through everything from the start, in the
    same order again and again, and move nothing.

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
        epoch: At least 0, 0 at first. Set it to choose the order of the next pass, which
            then begins at its start. The arguments are attributes, too.

    Raises:
        TypeError: If ``inputs`` or ``targets`` is no tensor, a number is not whole,
            ``transform`` cannot be called or, while iterating, does not return a pair.
        ValueError: If the tensors hold no sample or differ in length, a number is too
            small, or ``drop_last`` would leave no batch.

    Examples:
        >>> images = torch.tensor([[0], [51], [255]], dtype=torch.uint8)
        >>> scale = lambda inputs, targets: (inputs / 255, targets)
        >>> batches = Batches(images, torch.tensor([0, 1, 1]), batch_size=2, transform=scale)
        >>> len(batches)  # 2 samples, then the last 1
        2
        >>> for inputs, targets in batches:
        ...     print(inputs.tolist(), targets.tolist())
        [[0.0], [0.20000000298023224]] [0, 1]
        [[1.0]] [1]
        >>> batches.epoch  # that was a whole pass with gradients enabled
        1
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
        self._position = _Position()
        self._picked: Callable[[Any], Any] | None = None  # of the rows of a batch some
        if len(self) == 0:
            raise ValueError(
                f"batch_size must be at most the number of samples when drop_last=True, got "
                f"batch_size {self.batch_size} and {len(inputs)} samples: no batch would be left."
            )

    @property
    def epoch(self) -> int:
        """The number of the pass, which chooses its order; 0 at first."""
        return self._position.epoch

    @epoch.setter
    def epoch(self, value: int) -> None:
        self._position.move_to(check_whole_number("epoch", value, at_least=0))

    def state_dict(self) -> dict[str, int]:
        """Where the training pass at hand stands.

        Returns:
            ``{"epoch": e, "batch": k}``: k batches of epoch e are handed out. Between two
            training passes k is 0 and e the epoch of the next one.
        """
        return {"epoch": self._position.epoch, "batch": self._position.batch}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Have the next training pass begin where ``state_dict`` stood.

        It starts at batch k of epoch e; those before are neither cut nor transformed again. Its
        end is the usual one, and the pass after it is whole.

        Args:
            state: What ``state_dict`` gave, for the same data and batch size.

        Raises:
            TypeError: If a number in it is not whole.
            ValueError: If a number is below 0, or k above the number of batches.
        """
        epoch = check_whole_number("epoch", state["epoch"], at_least=0)
        batch = check_whole_number("batch", state["batch"], at_least=0)
        if batch > len(self):
            raise ValueError(f"batch must be at most the {len(self)} of a pass, got {batch}.")
        self._position.move_to(epoch, batch)

    def to(self, device: str | torch.device) -> "Batches":
        """The same batches in the same order, with the tensors stored on a device.

        A transform then gets tensors that lie there, so what it draws or looks up must as well.
        From then on either counts its own epochs.

        Args:
            device: Where to keep the tensors; those that are there already are shared, not copied.
        """
        moved = copy.copy(self)
        moved.inputs, moved.targets = self.inputs.to(device), self.targets.to(device)
        moved._position = copy.copy(self._position)
        return moved

    def share(self, picked: Callable[[Any], Any]) -> "Batches":
        """The same pass over a part of every batch.

        Args:
            picked: From the numbers of a batch's rows, a range or a tensor, to some of them, in
                order.
        """
        shared = copy.copy(self)
        shared._picked = picked
        return shared

    def __len__(self) -> int:
        whole, rest = divmod(len(self.inputs), self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        position = self._position
        if not torch.is_grad_enabled():
            yield from self._pass(position.epoch, 0)
            return
        start, position.start = position.start, 0
        moves = position.moves
        for number, pair in enumerate(self._pass(position.epoch, start), start=start + 1):
            if position.moves == moves:
                position.batch = number
            yield pair
        if position.moves == moves:  # nobody has chosen another epoch meanwhile
            position.move_to(position.epoch + 1)

    def _pass(self, epoch: int, start: int) -> Iterator[tuple[Any, Any]]:
        """The pairs of an epoch from batch ``start`` on."""
        for inputs, targets in self._cuts(epoch, start):
            if self.transform is None:
                yield inputs, targets
                continue
            if not self.shuffle:  # views: a transform that writes in place must not reach the data
                inputs, targets = inputs.clone(), targets.clone()
            pair = self.transform(inputs, targets)
            if not isinstance(pair, (tuple, list)) or len(pair) != 2:
                raise TypeError(
                    f"transform must return a pair (inputs, targets), got {_describe(pair)}. "
                    "Return the targets too, also when they are unchanged."
                )
            yield pair[0], pair[1]

    def _cuts(self, epoch: int, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        size = self.batch_size
        slices = [slice(i * size, (i + 1) * size) for i in range(start, len(self))]
        if not self.shuffle:
            for cut in slices:
                if self._picked is not None:
                    rows = self._picked(range(*cut.indices(len(self.inputs))))
                    cut = slice(rows.start, rows.stop)
                yield self.inputs[cut], self.targets[cut]
            return
        generator = seeded_generator(self.seed, epoch)
        order = torch.randperm(len(self.inputs), generator=generator, device="cpu")
        rows = order.to(self.inputs.device)  # moved once per epoch, not once per batch
        target_rows = order.to(self.targets.device)
        for cut in slices:
            of_inputs, of_targets = rows[cut], target_rows[cut]
            if self._picked is not None:
                some = self._picked(order[cut])
                of_inputs, of_targets = some.to(rows.device), some.to(target_rows.device)
            yield self.inputs.index_select(0, of_inputs), self.targets.index_select(0, of_targets)

    def __repr__(self) -> str:
        transform = self.transform
        return (
            f"Batches(inputs={_describe(self.inputs)}, targets={_describe(self.targets)}, "
            f"batch_size={self.batch_size}, shuffle={self.shuffle}, seed={self.seed}, "
            f"drop_last={self.drop_last}, transform={getattr(transform, '__name__', transform)}, "
            f"epoch={self.epoch})"
        )


@dataclasses.dataclass
class _Position:
    """Where training stands; shared with a copy that stands in for the first one."""

    epoch: int = 0
    batch: int = 0  # handed out by the training pass at hand
    start: int = 0  # of the next training pass
    moves: int = 0  # tells a pass that was begun before the last move

    def move_to(self, epoch: int, batch: int = 0) -> None:
        self.epoch, self.batch, self.start = epoch, batch, batch
        self.moves += 1


def _check_tensors(inputs: Tensor, targets: Tensor) -> None:
    for name, value in (("inputs", inputs), ("targets", targets)):
        if not isinstance(value, Tensor):
            fix = f"Convert it with torch.as_tensor({name})."
            if isinstance(value, (tuple, dict)):
                fix = "Of several tensors, make batches: a DataLoader over a dataset of samples."
            raise TypeError(f"{name} must be a tensor, got {type(value).__name__}. {fix}")
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
