"""Training batches that can be handed out again from where a run stood."""

import random
import zlib
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchcls.batches import mapped, parts_of
from torchcls.device import random_state, set_random_state
from torchcls.run import Source
from torchcls.warn import warn


class CannotReplayError(Exception):
    """A source cannot hand out the rest of an epoch as it would have done."""


class Replayed(Source):
    """Batches that begin where another process has left them.

    What has ``state_dict`` and ``load_state_dict`` (``Batches``, torchdata's StatefulDataLoader),
    no workers and no transform goes on by itself. Anything else is started again from the random
    states at the epoch's start; what was handed out before is passed over, and its targets are
    compared by checksum. Whether a source can be started again at all is found by doing it, once,
    after the first epoch.

    Args:
        name: What errors call it.
        batches: What the user gave.
        opened: From the number of an epoch to what gives its batches.
        valid: The validation batches: their generators are kept, too.
        device: The device whose generator counts.
    """

    def __init__(
        self,
        name: str,
        batches: Any,
        opened: Callable[[int], Iterable[Any]],
        valid: Any,
        device: torch.device,
    ) -> None:
        super().__init__(name, batches, opened)
        self._loaders, self._device = (batches, valid), device
        self._start: Any = None  # the random states at the start of the epoch at hand
        self._start_of_batches: Any = None
        self._passed = self._first = 0  # checksums: of targets so far, of the first batch
        self._why = _why_never(batches)
        # What a transform draws from is not in the state of the batches that it is a part of.
        self._goes_on = self._is_stateful and getattr(batches, "transform", None) is None
        self._is_tried = self._goes_on or type(batches) in (list, tuple) or self._why is not None
        self._is_ahead = False  # whether its sampler draws while workers fetch ahead

    def rest_of(self, epoch: int, step: int) -> Iterator[Any]:
        """The batches of an epoch but for the first ``step``.

        Raises:
            CannotReplayError: If others come than have been handed out before.
        """
        kept, self._kept, self._passed = self._kept, None, 0
        why = self._why or ("its sampler draws while workers fetch ahead" if self._is_ahead else "")
        if kept is not None and step > 0 and why:
            raise CannotReplayError(why)
        if kept is None:
            self._start = _states(self._device, self._loaders)
            if self._is_stateful and not self._goes_on:
                self._start_of_batches = self._batches.state_dict()
        else:
            self._start = kept["start"] if step else kept["now"]
            self._start_of_batches = kept["start of batches"] if step else kept["batches"]
            _set_states(self._start, self._device, self._loaders)
        if kept is not None and self._is_stateful:
            of = kept["batches"] if self._goes_on else self._start_of_batches
            self._batches.load_state_dict(of)
            if step == 0:  # to start from the end of an epoch is not what its next start draws
                iter(self._batches)
                _set_states(self._start, self._device, self._loaders)
        iterator = self._started(epoch, may_be_empty=step > 0)
        if kept is not None and step > 0:
            if self._goes_on:
                self._passed = kept["passed"]
            else:
                self._pass_over(iterator, step, kept["passed"])
            _set_states(kept["now"], self._device, self._loaders)
        if kept is not None and self._why and step == 0 and epoch > 0:
            warn(f"train may give other batches than in a run that was not stopped: {self._why}.")
        return self._watched(iterator, is_first=step == 0 and not self._is_tried)

    def _pass_over(self, iterator: Iterator[Any], step: int, expected: int) -> None:
        number = 0
        for _, targets in islice(iterator, step):
            self._passed = checksum(targets, self._passed)
            number += 1
        if number < step:
            raise CannotReplayError(f"it ended after {number} batches when it was started again")
        if self._passed != expected:
            raise CannotReplayError("it handed out other batches when it was started again")

    def _watched(self, iterator: Iterator[Any], *, is_first: bool) -> Iterator[Any]:
        if getattr(self._batches, "num_workers", 0):
            iterator = self._fetched(iterator)
        for batch in iterator:
            self._passed = checksum(batch[1], self._passed)
            if is_first:
                self._first, is_first = checksum(batch), False
            yield batch

    def _fetched(self, iterator: Iterator[Any]) -> Iterator[Any]:
        """Notice a sampler that draws between steps while workers fetch ahead of them."""
        before = _drawn()
        for batch in iterator:
            self._is_ahead |= before != _drawn()
            yield batch
            before = _drawn()

    def try_again(self, epoch: int) -> None:
        """Start the source again as it began an epoch, and see whether it begins alike."""
        if self._is_tried:
            return
        self._is_tried = True
        now = _states(self._device, self._loaders)
        _set_states(self._start, self._device, self._loaders)
        batches = self._batches.state_dict() if self._is_stateful else None
        try:
            if batches is not None:
                self._batches.load_state_dict(self._start_of_batches)
            again = next(self._started(epoch))
        finally:
            if batches is not None:
                self._batches.load_state_dict(batches)
            _set_states(now, self._device, self._loaders)
        if checksum(again) != self._first:
            self._why = "it handed out another first batch when it was started again"
            warn(f"train keeps a state of its own, so a resumed run may differ: {self._why}.")

    def state_dict(self) -> dict[str, Any]:
        """Where the source and all generators stand, at a rest."""
        if self._kept is not None:
            return {**self._kept, "why": self._why, "is_tried": self._is_tried}
        return {  # in this order: to ask a source for its state may start it
            "now": _states(self._device, self._loaders),
            "start": self._start,
            "passed": self._passed,
            "first": self._first,
            **super().state_dict(),
            "start of batches": self._start_of_batches,
            "why": self._why,
            "is_ahead": self._is_ahead,
            "is_tried": self._is_tried,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Stand where another source stood, from the next call of ``rest_of`` on."""
        super().load_state_dict(state)
        self._start, self._start_of_batches = state["start"], state["start of batches"]
        self._first = state["first"]
        self._why, self._is_tried = state["why"], state["is_tried"]
        self._is_ahead = state["is_ahead"]


def _why_never(batches: Any) -> str | None:
    if getattr(batches, "num_workers", 0) == 0:
        return None
    if getattr(batches, "persistent_workers", False):
        return (
            "its persistent workers draw on from the epochs before. Use "
            "persistent_workers=False to be resumed bit for bit"
        )
    if not getattr(batches, "in_order", True):
        return "its workers hand out batches as they come (in_order=False)"
    return None


# ------------------------------------------------------------------ random states


def _states(device: torch.device, loaders: Iterable[Any]) -> dict[str, Any]:
    """Where the global generators stand, the device's, and those of loaders and samplers."""
    return {
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state(),
        "python": random.getstate(),
        "device": random_state(device),
        "own": [generator.get_state() for generator in _generators(loaders)],
    }


def _set_states(states: dict[str, Any], device: torch.device, loaders: Iterable[Any]) -> None:
    torch.set_rng_state(states["torch"])
    np.random.set_state(states["numpy"])
    random.setstate(states["python"])
    set_random_state(states["device"], device)
    for generator, state in zip(_generators(loaders), states["own"], strict=False):
        generator.set_state(state)


def _drawn() -> tuple[Any, ...]:
    """The global generators, to be compared."""
    return torch.get_rng_state().numpy().tobytes(), repr(np.random.get_state()), random.getstate()


def _generators(loaders: Iterable[Any]) -> list[torch.Generator]:
    found = {}
    for loader in loaders:
        for part in parts_of(loader):
            generator = getattr(part, "generator", None)
            if isinstance(generator, torch.Generator):
                found[id(generator)] = generator
    return list(found.values())


def checksum(structure: Any, start: int = 0) -> int:
    """A CRC-32 over kinds, shapes and content; tensors on an accelerator count with their shape."""
    total = start

    def add(leaf: Any) -> Any:
        nonlocal total
        content: Any = b""
        if isinstance(leaf, Tensor):
            kind = f"{leaf.dtype}{tuple(leaf.shape)}"
            if leaf.device.type == "cpu" and leaf.layout is torch.strided and not leaf.is_nested:
                plain = leaf.detach().resolve_conj().resolve_neg().contiguous().reshape(-1)
                content = plain.view(torch.uint8).numpy()
        elif isinstance(leaf, np.ndarray) and not leaf.dtype.hasobject:
            kind, content = f"{leaf.dtype}{leaf.shape}", np.ascontiguousarray(leaf).data
        else:
            is_plain = isinstance(leaf, (str, bytes, int, float, complex, np.generic, type(None)))
            kind = repr(leaf) if is_plain else type(leaf).__name__
        total = zlib.crc32(content, zlib.crc32(kind.encode(), total))
        return leaf

    mapped(add, structure)
    return total
