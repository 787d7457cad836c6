"""What a loader has handed out in an epoch, and how to have it hand out the same once more.

A loader cannot be wound forward, but it can be started again from the random states in which it was
started before, and what was seen already be passed over. A checksum tells whether it is the same.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from torchcls.checksum import checksum
from torchcls.data.batches import Batches
from torchcls.data.loaders import taken_at_once
from torchcls.randomness import (
    State,
    accelerator_state,
    global_state,
    set_accelerator_state,
    set_global_state,
)

_MOST_STATES = 10_000  # 10 kB each


class CannotReplayError(Exception):
    """A source that was started again has handed out something else."""


class Passed:
    """The batches of one epoch that have gone through a whole step.

    Where both the loader and the model draw from the global generators, they take turns, and the
    loader gets other numbers when the model is left out. So the state before a fetch is kept
    wherever it is another one than the loader alone would have come to.

    Attributes:
        number: How many batches.
    """

    def __init__(self, source: Any, device: torch.device) -> None:
        self._device = device
        self._draws = not _draws_at_the_start_alone(source)
        self.number = 0
        self._checksum = 0
        self._fetched = 0  # the checksum with the batch that is in its step
        self._alone: State = global_state()  # where the loader alone would have come to
        self._start = self._after = self._alone
        self._torch = torch.get_rng_state()
        self._accelerator = self._accelerator_start = accelerator_state(device)
        self._states: dict[int, State] = {}
        self._is_complete = True

    def watched(self, batches: Iterable[Any]) -> Iterator[Any]:
        """Hand on batches, and note what is needed to hand them out again."""
        for number, batch in enumerate(batches, start=self.number):
            if self._draws:
                self._note(number)
            self._fetched = checksum(batch, self._checksum)
            yield batch

    def _note(self, number: int) -> None:
        after = global_state()
        if after == self._after:
            return
        if self._after != self._alone:
            if len(self._states) == _MOST_STATES:
                self._is_complete = False
            else:
                self._states[number] = self._after
        self._alone = after

    def end_step(self) -> None:
        """Count the batch that was handed on last: its step is whole."""
        if self._draws:
            # What has not moved is the same object, of which a file holds one.
            now, before = global_state(), self._after
            self._after = tuple(b if n == b else n for n, b in zip(now, before, strict=True))
        else:  # numpy's and Python's cost more than a small step: they are asked for when needed
            self._torch = torch.get_rng_state()
        self._accelerator = accelerator_state(self._device)
        self._checksum = self._fetched
        self.number += 1

    def look_between_steps(self) -> None:
        """Note where the generators stand; between two steps only."""
        self._after = global_state()
        self._accelerator = accelerator_state(self._device)

    def look_inside_a_step(self) -> bool:
        """Note where the generators stood before the step at hand; whether that is known."""
        if not self._draws:
            now = global_state()
            if now[1:] != self._after[1:]:
                return False  # the model or the loss draws from numpy or Python
            self._after = self._torch.numpy().tobytes(), *now[1:]
        return True

    def passed_over(self, batches: Iterable[Any]) -> Iterator[Any]:
        """Start a source again and pass over the batches that were handed out already.

        Afterwards the generators stand where they stood after the last whole step.

        Raises:
            CannotReplayError: If other batches come.
        """
        if not self._is_complete:
            raise CannotReplayError("it drew random numbers between too many steps to keep them")
        iterator = iter(batches)
        found = 0
        set_global_state(self._start)
        set_accelerator_state(self._accelerator_start, self._device)
        for number in range(self.number):
            if number in self._states:
                set_global_state(self._states[number])
            try:
                batch = next(iterator)
            except StopIteration:
                raise CannotReplayError(f"it ended after {number} batches") from None
            found = checksum(batch, found)
        if found != self._checksum:
            raise CannotReplayError("it handed out other batches when it was started again")
        self.wind_up()
        return iterator

    def wind_up(self) -> None:
        """Put the generators where they stood after the last whole step."""
        set_global_state(self._after)
        set_accelerator_state(self._accelerator, self._device)

    def state_dict(self) -> dict[str, Any]:
        """What ``load_state_dict`` takes."""
        return {
            "number": self.number,
            "checksum": self._checksum,
            "start": self._start,
            "after": self._after,
            "alone": self._alone,
            "accelerator": self._accelerator,
            "accelerator_start": self._accelerator_start,
            # Of the fetch for a step that broke nothing is kept.
            "states": {i: state for i, state in self._states.items() if i < self.number},
            "is_complete": self._is_complete,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what was handed out before, and where the generators stood."""
        self.number, self._checksum = state["number"], state["checksum"]
        self._start, self._after, self._alone = state["start"], state["after"], state["alone"]
        self._accelerator = state["accelerator"]
        self._accelerator_start = state["accelerator_start"]
        self._states, self._is_complete = dict(state["states"]), state["is_complete"]


def _draws_at_the_start_alone(source: Any) -> bool:
    """Whether a source is known to leave the global generators alone once it was started."""
    if type(source) is DataLoader and taken_at_once(source) is not source:
        batches = source.batch_sampler
        return type(batches) is BatchSampler and type(batches.sampler) in _SAMPLERS
    return type(source) in (list, tuple) or (type(source) is Batches and source.transform is None)


_SAMPLERS = (SequentialSampler, RandomSampler, SubsetRandomSampler, WeightedRandomSampler)
