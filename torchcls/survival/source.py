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
from torchcls.group import Group
from torchcls.run import Source
from torchcls.warn import warn


class CannotReplayError(Exception):
    """A source cannot hand out the rest of an epoch as it would have done."""


class Replayed(Source):
    """Batches that begin where another process has left them.

    What has ``state_dict`` and ``load_state_dict`` (``Batches``, torchdata's StatefulDataLoader),
    no workers and no transform goes on by itself. Anything else is started again as it stood at the
    epoch's start; what was handed out before is passed over, and its targets are compared by
    checksum. Whether a source can be started again at all is found by doing it, once, after the
    first epoch.

    Args:
        name: What errors call it.
        batches: What the user gave.
        opened: From the number of an epoch to what gives its batches.
        valid: The validation batches: their generators are kept, too.
        device: The device whose generator counts.
        group: The processes that share every batch: which one that was says its mark, not the share
            that one process has of it.
    """

    def __init__(
        self,
        name: str,
        batches: Any,
        opened: Callable[[int], Iterable[Any]],
        valid: Any,
        device: torch.device,
        group: Group,
    ) -> None:
        super().__init__(name, batches, opened)
        self._loaders, self._device, self._group = (batches, valid), device, group
        # What a transform draws from is not in the state of the batches that it is a part of.
        self._goes_on = self._is_stateful and getattr(batches, "transform", None) is None
        self._start: dict[str, Any] | None = None  # how all stood when the epoch at hand began
        self._passed = self._first = 0  # checksums: of its targets so far, of its first batch
        self._why = _why_never(batches)
        self._is_ahead = False  # whether its sampler draws while workers fetch ahead
        self._is_tried = False

    def rest_of(self, epoch: int, step: int) -> Iterator[Any]:
        """The batches of an epoch but for the first ``step``.

        Raises:
            CannotReplayError: If others come than have been handed out before.
        """
        kept, self._kept, self._passed = self._kept, None, 0
        if kept is None:
            self._start = self._stand(asked=not self._goes_on)
        elif step == 0:
            self._start = now = kept["now"]
            self._go_to(now, now["batches"])
            if self._is_stateful:  # to start from the end of an epoch is not what its start draws
                iter(self._batches)
                self._go_to(now)
            if self._why and epoch > 0:
                words = "train may give other batches than in a run that was not stopped"
                warn(f"{words}: {self._why}.")
        elif self._why or self._is_ahead:
            raise CannotReplayError(self._why or "its sampler draws while workers fetch ahead")
        else:
            of = kept["now"] if self._goes_on else kept["start"]
            self._go_to(kept["start"], of["batches"])
        iterator = self._started(epoch, may_be_empty=step > 0)
        if kept is not None and step > 0:
            if self._goes_on:
                self._passed = kept["passed"]
            else:
                self._pass_over(iterator, step, kept)
            self._go_to(kept["now"])
        return self._watched(iterator, is_first=step == 0)

    def _pass_over(self, iterator: Iterator[Any], step: int, kept: dict[str, Any]) -> None:
        number = sum(1 for _ in self._watched(islice(iterator, step), is_first=True))
        if number < step:
            raise CannotReplayError(f"it ended after {number} batches when it was started again")
        if kept["is_shared"] != (self._group.size > 1):
            return  # marks and checksums of targets: one says nothing of the other
        if (self._passed, self._first) != (kept["passed"], kept["first"]):
            raise CannotReplayError("it handed out other batches when it was started again")

    def _watched(self, iterator: Iterator[Any], *, is_first: bool) -> Iterator[Any]:
        look = _drawn if getattr(self._batches, "num_workers", 0) else tuple
        before = look()
        for batch in iterator:
            self._is_ahead |= before != look()  # between two steps, while workers fetch
            self._passed = checksum(self._told(batch[1]), self._passed)
            if is_first:
                self._first, is_first = checksum(self._told(batch)), False
            yield batch
            before = look()

    def _told(self, content: Any) -> Any:
        """What tells a batch from another one, in all processes alike."""
        return content if self._group.size == 1 else self._group.part.mark

    def begins_alike(self, epoch: int) -> bool:
        """Whether the epoch last begun would begin with the same batch, were it started again.

        True, too, for what goes on by itself and for what is known to differ.
        """
        if self._start is None or self._goes_on or self._why is not None:
            return True
        here = self._stand()
        try:
            self._go_to(self._start, self._start["batches"])
            return checksum(self._told(next(self._started(epoch)))) == self._first
        finally:
            self._go_to(here, here["batches"])

    def try_again(self, epoch: int) -> None:
        """Once: start the source again as it began an epoch, and see whether it begins alike."""
        if not self._is_tried and not self.begins_alike(epoch):
            self._why = "it handed out another first batch when it was started again"
            warn(f"train keeps a state of its own, so a resumed run may differ: {self._why}.")
        self._is_tried = True

    def _stand(self, *, asked: bool = True) -> dict[str, Any]:
        """Where all generators stand, and the batches where they can be ``asked``."""
        # In this order: to ask a source for its state may start it.
        now = random_states(self._device, self._loaders)
        return {
            **now,
            "batches": self._batches.state_dict() if asked and self._is_stateful else None,
        }

    def _go_to(self, stand: dict[str, Any], batches: Any = None) -> None:
        """Put the generators back, and the batches where a state of theirs is given."""
        if batches is not None:
            self._batches.load_state_dict(batches)
        set_random_states(stand, self._device, self._loaders)

    def state_dict(self) -> dict[str, Any]:
        """Where the source and all generators stand, at a rest."""
        stands = self._kept or {
            "now": self._stand(),
            "start": self._start,
            "passed": self._passed,
            "first": self._first,
        }
        is_shared = self._group.size > 1
        return {"is_shared": is_shared, **stands, "why": self._why, "is_ahead": self._is_ahead}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Stand where another source stood, from the next call of ``rest_of`` on."""
        self._kept, self._start, self._first = state, state["start"], state["first"]
        self._why = self._why or state["why"]
        self._is_ahead |= state["is_ahead"]


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


def random_states(device: torch.device, loaders: Iterable[Any]) -> dict[str, Any]:
    """Where the global generators stand, the device's, and those of loaders and samplers.

    Words of numpy and Python as tensors: as numbers they took most of the time of a save.
    """
    kind, key, *rest = np.random.get_state()
    version, words, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "numpy": (kind, torch.from_numpy(np.array(key, np.int64)), *rest),
        "python": (version, torch.from_numpy(np.array(words, np.int64)), gauss),
        "device": random_state(device),
        "own": [generator.get_state() for generator in _generators(loaders)],
    }


def set_random_states(states: dict[str, Any], device: torch.device, loaders: Iterable[Any]) -> None:
    """Put back what ``random_states`` gave."""
    torch.set_rng_state(states["torch"])
    kind, key, *rest = states["numpy"]
    np.random.set_state((kind, np.asarray(key), *rest))
    version, words, gauss = states["python"]
    random.setstate((version, tuple(np.asarray(words).tolist()), gauss))
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
