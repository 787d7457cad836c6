"""This process's share of every batch, however the batches come: no sample twice, none left out."""

import random
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from torchcls.batches import Pair, cut, generators_of, mapped, parts_of, samples_of
from torchcls.group import Part
from torchcls.processes.streams import Streams

if TYPE_CHECKING:
    from torchcls.processes.group import Processes


class Shares:
    """The batches of a source, of each the rows of this process.

    ``Batches`` and map-style DataLoaders read those rows alone; anything else is read by every
    process and sliced. Where a batch has no row for a process, one sample of it stands in.

    Args:
        source: What the user gave.
        group: The group that shares; it is told which part of which batch is handed out.
        opened: From a source to what is iterated in its place.
    """

    def __init__(self, source: Any, group: "Processes", opened: Callable[[Any], Any]) -> None:
        self._source, self._group, self._opened = source, group, opened

    def __getattr__(self, name: str) -> Any:
        if name in ("dataset", "batch_size", "drop_last"):  # to say why there is no batch
            return getattr(self._source, name)
        raise AttributeError(name)

    def __iter__(self) -> Iterator[Pair]:
        source = self._source
        if isinstance(source, Streams):
            shares = self._streams(source)
        elif hasattr(source, "share"):  # Batches
            shares = self._batches(source)
        elif _has_indices(source):
            shares = self._loader(source)
        else:
            shares = self._slices(source)
        return self._handed_out(shares)

    def _handed_out(self, shares: Iterator[Pair]) -> Iterator[Pair]:
        group = self._group
        for pair in shares:
            group.seen = zlib.crc32(str(group.part.mark).encode(), group.seen) & 0xFFFF
            with _standing_in(group.model, is_needed=not group.part.rows):
                yield pair
        group.part = Part(1, 1, 0)

    def _taken(self, indices: Any, mark: int) -> tuple[Any, Part]:
        """Of the indices of a whole batch those of this process, or one of them that stands in."""
        start, stop = self._group.rows(len(indices))
        is_tensor = isinstance(indices, Tensor)
        content = indices.numpy().tobytes() if is_tensor else repr(indices).encode()
        part = Part(stop - start, len(indices), zlib.crc32(content, mark) & 0xFFFF)
        return indices[start : max(stop, start + 1)] if start < len(indices) else indices[:1], part

    def _batches(self, batches: Any) -> Iterator[Pair]:
        mark = _mark((batches.inputs, batches.targets))

        def pick(indices: Any) -> Any:
            mine, self._group.part = self._taken(indices, mark)
            return mine

        yield from self._opened(batches).share(pick)

    def _loader(self, loader: Any) -> Iterator[Pair]:
        group, order = self._group, _Order(loader, self._group)
        number = id(loader.dataset)
        if number not in group.marks:  # once: it takes samples; held, so that the id stays its own
            mark = _mark_of(loader.dataset)
            is_known = None not in group.from_all(mark)
            group.marks[number] = loader.dataset, mark if is_known and mark is not None else 0
        mark = group.marks[number][1]
        rows = _Rows(loader.batch_sampler, self._taken, mark)
        workers: dict[str, Any] = {}
        if loader.num_workers > 0:  # they are sent for indices as soon as there is an iterator
            names = ("num_workers", "timeout", "prefetch_factor", "multiprocessing_context")
            workers = {name: getattr(loader, name) for name in names}
            workers["worker_init_fn"] = _Offset(loader.worker_init_fn, group.rank)
        else:
            rows.order = order
        mine = DataLoader(
            loader.dataset,
            batch_sampler=rows,
            collate_fn=loader.collate_fn,
            pin_memory=loader.pin_memory,
            generator=loader.generator,
            **workers,
        )
        with order.of_the_first():
            pairs = iter(self._opened(mine))

        def noted() -> Iterator[Pair]:
            for pair in pairs:
                group.part = rows.notes.popleft()
                yield pair

        return noted()

    def _slices(self, source: Any) -> Iterator[Pair]:
        order = _Order(source, self._group)
        with order.of_the_first():
            batches = iter(self._opened(source))
        return self._sliced(batches, order)

    def _sliced(self, batches: Iterator[Any], order: "_Order") -> Iterator[Pair]:
        group, n = self._group, 0

        def places(samples: int) -> list[slice]:
            nonlocal n
            n, (start, stop) = samples, group.rows(samples)
            return [slice(start, stop) if start < stop else slice(0, 1)]

        with order.of_the_first():
            batch = next(batches, None)
        while batch is not None:
            if isinstance(batch, (tuple, list)) and len(batch) == 2:
                mark = _mark(batch[1]) & 0xFFFF
                (batch,) = cut(tuple(batch), places)
                start, stop = group.rows(n)
                group.part = Part(stop - start, n, mark)
            yield batch  # whoever asked for pairs says what is wrong with anything else
            batch = next(batches, None)

    def _streams(self, streams: Streams) -> Iterator[Pair]:
        group = self._group
        if streams.n < group.size:
            raise ValueError(
                f"n must be at least the number of processes, got n={streams.n} streams for "
                f"{group.size} processes. Fix more streams in the script, or start fewer processes."
            )
        batches = streams.batches(range(*group.rows(streams.n)))
        stand_in: Any = None
        is_known = False
        while True:
            pair = next(batches, None)
            rows = 0 if pair is None else samples_of(pair)
            whole = group.meet_over_stream(rows)
            if not whole:
                return
            if not is_known:
                first = None if pair is None else cut(pair, lambda n: [slice(0, 1)])[0]
                stand_in, is_known = group.of_anyone(first), True
            group.part = Part(rows, whole, 0)
            yield stand_in if pair is None else pair


class _Order:
    """Lets a source draw its order from the random state of the first process.

    torch's samplers draw when a pass begins and for its first batch, and no further.
    """

    def __init__(self, source: Any, group: "Processes") -> None:
        state = group.from_first(torch.get_rng_state())
        self._state: Tensor | None = None if group.is_first else state
        for generator in generators_of(source):
            generator.set_state(group.from_first(generator.get_state()))

    @contextmanager
    def of_the_first(self) -> Iterator[None]:
        """A context in which the first process's state stands in the place of this one's own."""
        if self._state is None:
            yield
            return
        own = torch.get_rng_state()
        torch.set_rng_state(self._state)
        try:
            yield
        finally:
            self._state = torch.get_rng_state()
            torch.set_rng_state(own)


class _Rows:
    """The batches of indices of a batch sampler, of each those of this process.

    Attributes:
        notes: Which part of a batch each is, of those that are handed out and not yet taken.
        order: Where the order is drawn when the first one is asked for; None where it is before.
    """

    def __init__(
        self, whole: Any, taken: Callable[[Any, int], tuple[Any, Part]], mark: int
    ) -> None:
        self._whole, self._taken, self._mark = whole, taken, mark
        self.notes: deque[Part] = deque()
        self.order: _Order | None = None

    def __iter__(self) -> Iterator[Any]:
        with self.order.of_the_first() if self.order is not None else nullcontext():
            batches = iter(self._whole)
            indices = next(batches, None)
        while indices is not None:
            mine, part = self._taken(list(indices), self._mark)
            self.notes.append(part)
            yield mine
            indices = next(batches, None)

    def __len__(self) -> int:
        return len(self._whole)


class _Offset:
    """Lets the workers of this process draw other numbers than those of the others."""

    def __init__(self, then: Callable[[int], None] | None, rank: int) -> None:
        self._then, self._rank = then, rank

    def __call__(self, worker: int) -> None:
        if self._rank:
            seed = zlib.crc32(str((torch.initial_seed(), self._rank)).encode())
            torch.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed)
        if self._then is not None:
            self._then(worker)


class _standing_in:  # noqa: N801 - a context
    """BatchNorm takes no single sample in training, and this one is not to move its statistics."""

    def __init__(self, model: nn.Module | None, *, is_needed: bool) -> None:
        modules = model.modules() if model is not None and is_needed else ()
        self._norms = [m for m in modules if isinstance(m, _BatchNorm) and m.training]

    def __enter__(self) -> None:
        for norm in self._norms:
            norm.training = False

    def __exit__(self, *error: object) -> None:
        for norm in self._norms:
            norm.training = True


def check_not_shared(source: Any) -> None:
    """Refuse a source that says that it gives every process other samples already.

    Raises:
        ValueError: If a sampler or a dataset of it does.
    """
    for part in parts_of(source):
        is_split = hasattr(part, "num_replicas") or getattr(part, "_distributed", None) is not None
        if is_split:
            raise ValueError(
                "batches must be the whole data in every process, which takes its share of each "
                f"batch, got a {type(part).__name__}, which has split the data already. Leave it "
                "out: DataLoader(dataset, batch_size=..., shuffle=True) with the global batch size."
            )


def _has_indices(source: Any) -> bool:
    """Whether a loader picks samples by index, so that a process may read its own alone."""
    return (
        type(source) is DataLoader
        and source.batch_sampler is not None
        and not isinstance(source.dataset, IterableDataset)
    )


def _mark_of(dataset: Any) -> int | None:
    """A number that tells a dataset of other content apart: one that was split by rank, say.

    Of three samples their targets, and their inputs where taking them again gives the same.
    """
    if type(dataset) is TensorDataset:
        return _mark(dataset.tensors)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()
    try:
        numbers = sorted({0, len(dataset) // 2, len(dataset) - 1})
        samples, again = ([dataset[i] for i in numbers] for _ in range(2))
        are_same = _mark(samples) == _mark(again)
        return _mark((samples if are_same else [sample[1] for sample in samples], len(dataset)))
    except Exception:  # one that takes other keys, or cannot be read: its batches will say so
        return None
    finally:
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        np.random.set_state(states[2])


def _mark(structure: Any) -> int:
    """A number that tells data of other content apart, from some of its tensors' values."""
    total = 0

    def add(leaf: Any) -> Any:
        nonlocal total
        if isinstance(leaf, Tensor) and leaf.layout is torch.strided and not leaf.is_nested:
            some = leaf.detach()[:: 1 + len(leaf) // 64] if leaf.ndim else leaf.detach()
            kind = f"{leaf.dtype}{tuple(leaf.shape)}".encode()
            content = some.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
            total = zlib.crc32(content, zlib.crc32(kind, total))
        elif isinstance(leaf, (str, int, float)):
            total = zlib.crc32(repr(leaf).encode(), total)
        return leaf

    mapped(add, structure)
    return total
