"""The processes that share a run: what a loop asks of them, answered by one that is alone."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.optim import Optimizer

from torchcls.averaging import Count


class Part(NamedTuple):
    """This process's part of the batch at hand.

    Attributes:
        rows: Samples of the batch that are its own; with 0 the one it has stands in for none.
        whole: Samples of the whole batch.
        mark: A number that tells one batch from another.
    """

    rows: int
    whole: int
    mark: int


class FirstLeftError(Exception):
    """The first process has left the loop over a run, and so all do."""


class Group:
    """The processes that share a run: this one alone, which starts nothing and sends nothing.

    ``tc.processes()`` gives the group that a launcher has started; ``run.group`` is that of a run.

    Attributes:
        rank: The number of this process, from 0.
        size: How many there are.
        is_first: Whether this is the one that prints and writes.
    """

    rank, size, is_first, is_sharded = 0, 1, True, False
    part = Part(1, 1, 0)

    def shares(self, batches: Any, opened: Callable[[Any], Any] = lambda source: source) -> Any:
        """This process's share of every batch; ``opened`` makes of a source what is iterated."""
        return opened(batches)

    def prepare(
        self, model: nn.Module, loss_fn: Any, optimizer: Optimizer, *, is_plain: bool
    ) -> None:
        """Called before the steps of an epoch."""

    def failing(self) -> AbstractContextManager[None]:
        """A context whose errors reach all processes at the next time they meet."""
        return nullcontext()

    def together(self) -> AbstractContextManager[None]:
        """A context whose errors all processes raise at its end."""
        return nullcontext()

    def evened(self, pieces: list[Any], size: int | None) -> tuple[list[Any], int]:
        """The pieces to send through, and how many of them count: the first ones."""
        return pieces, len(pieces)

    def total(self, count: Count, numerator: Count | None) -> tuple[Count, Count | None]:
        """Count and numerator of the whole batch; None where a process has not told its own."""
        return count, numerator

    def reduced(self, loss: Tensor, *, is_last: bool) -> Tensor:
        """What goes backward so that, after the last piece, the gradients are everybody's."""
        return loss

    def stepped(self) -> None:
        """Called when the backward pass of a batch is over."""

    def sum(self, *numbers: Count) -> tuple[float, ...]:
        """Each number added up over the processes. Waits for an accelerator."""
        return tuple(float(number) for number in numbers)

    def end_epoch(self) -> None:
        """Called when the batches of an epoch have come to their end."""

    def stops(self, is_stopped: bool) -> bool:
        """Whether the run ends before the next epoch: the first one says so."""
        return is_stopped

    def leave(self) -> bool:
        """Called where the loop over a run is left; whether all have left it there."""
        return True

    def from_first(self, value: Any) -> Any:
        """What the first process has for a value."""
        return value

    def gathered(self, parts: list[Any]) -> list[Any] | None:
        """The parts of all processes, batch by batch; None but in the first process."""
        return parts
