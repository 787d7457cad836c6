"""What can be seen of the data before the first step: the loaders, and what they hold in memory."""

import math
import random
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
)

from torchcls import heads
from torchcls.batches import num_batches
from torchcls.preflight.findings import Finding, error, note, warning
from torchcls.preflight.graph import normalises_single_values
from torchcls.preflight.reading import bounds, is_readable, leaves_of, span
from torchcls.step import Loss


def findings_of(train: Any, valid: Any) -> Iterator[Finding]:
    """What the two sources show without being started."""
    yield from _order(train)
    yield from _shift(train)
    if valid is not None:
        yield from _same_samples(train, valid)
        yield from _class_tables(_dataset(train), _dataset(valid))
        n, size, drops = _cut(valid)
        if drops and n % size:
            seen = f"Validation leaves out the last {n % size} of {n} samples."
            yield note("valid-drops-samples", f"{seen} Set drop_last=False.")


# ------------------------------------------------------------------ what a source holds


class _Held(NamedTuple):
    """The tensors that a source cuts its batches from, and the rows it takes of them."""

    inputs: Tensor
    targets: Tensor
    rows: Tensor


def _held(source: Any, *, as_they_are: bool = False) -> _Held | None:
    """What a source holds; with ``as_they_are`` only where its batches hold the same values."""
    dataset, rows = _rows_of(source)
    if dataset is source and source is not None:
        tensors: tuple[Any, ...] = (source.inputs, source.targets)
        is_changed = source.transform is not None
    elif type(dataset) is TensorDataset:
        tensors = dataset.tensors
        is_changed = source.collate_fn is not torch.utils.data.default_collate
    else:
        return None
    if len(tensors) != 2 or (is_changed and as_they_are):
        return None
    return _Held(*tensors, rows)


def _rows_of(source: Any) -> tuple[Any, Tensor]:
    """The dataset of a loader, behind all subsets, and which rows of it; None where unclear.

    A ``Batches`` is its own.
    """
    if _is_batches(source):
        return source, torch.arange(len(source.inputs), device="cpu")
    dataset, sampler, rows = _dataset(source), _sampler(source), torch.empty(0, device="cpu")
    try:
        if type(sampler) is SubsetRandomSampler:
            rows = _row_numbers(sampler.indices)
        elif _takes_all(source):
            rows = torch.arange(len(dataset), device="cpu")
        else:
            dataset = None
        while type(dataset) is Subset:
            rows, dataset = _row_numbers(dataset.indices)[rows], dataset.dataset
    except (TypeError, ValueError, RuntimeError, IndexError):  # of slices or names, say
        dataset = None
    return dataset, rows


def _row_numbers(indices: Any) -> Tensor:
    rows = torch.as_tensor(indices, device="cpu")
    if rows.ndim != 1 or rows.dtype not in (torch.int64, torch.int32):
        raise ValueError
    return rows.long()


def _is_batches(source: Any) -> bool:
    """Whether this is a ``Batches`` as it comes: a subclass may hand out what it likes."""
    return (type(source).__module__, type(source).__name__) == ("torchcls.data.batches", "Batches")


def _dataset(source: Any) -> Any:
    return source.dataset if isinstance(source, DataLoader) else None


def _whole(dataset: Any) -> Any:
    while type(dataset) is Subset:
        dataset = dataset.dataset
    return dataset


def _sampler(source: Any) -> Any:
    """What gives a loader its rows, where batches are cut from them as usual; else None."""
    cutter: Any = source.batch_sampler if isinstance(source, DataLoader) else None
    return cutter.sampler if type(cutter) is BatchSampler else None


def _takes_all(source: Any) -> bool:
    """Whether a loader goes over its whole dataset, in order or at random."""
    return type(_sampler(source)) in (SequentialSampler, RandomSampler)


def may_start_early(source: Any) -> bool:
    """Whether a first batch may be fetched, and all be put back as if it never was.

    Not from workers, which cost seconds and, where they persist, draw on from there; from samplers
    that are not torch's, which may count their passes; from datasets that hold a generator, which
    training may draw from, too; from iterable datasets, iterators and loaders of one's own, whose
    pass may be the only one.
    """
    is_plain = isinstance(source, DataLoader) and type(source).__iter__ is DataLoader.__iter__
    if not is_plain or source.num_workers > 0:
        return _is_batches(source) or type(source) in (list, tuple)
    is_torchs = type(_sampler(source)).__module__ == torch.utils.data.sampler.__name__
    return is_torchs and not _holds_a_generator(source.dataset)


_GENERATORS = (random.Random, np.random.Generator, np.random.RandomState, torch.Generator)


def _holds_a_generator(part: Any) -> bool:
    """Whether a dataset, one below it or a transform of either has random numbers of its own."""
    held = getattr(part, "__dict__", {})
    below = [held.get("dataset"), held.get("transform"), *(held.get("datasets") or ())]
    return any(isinstance(value, _GENERATORS) for value in held.values()) or any(
        _holds_a_generator(one) for one in below if one is not None
    )


def _cut(source: Any) -> tuple[int, int, bool]:
    """Samples in a pass and in a batch, and whether the rest is dropped; none where unknown."""
    cutter: Any = source if _is_batches(source) else getattr(source, "batch_sampler", None)
    n = len(source.inputs) if _is_batches(source) else num_batches(_sampler(source))
    return (0, 1, False) if n is None else (n, cutter.batch_size, cutter.drop_last)


def last_batch(train: Any, targets: Any, outputs: Any) -> Iterator[Finding]:
    """Whether the last batch has one sample, and a step showed statistics over single values."""
    n, size, drops = _cut(train)
    if size < 2 or n % size != 1 or drops:
        return
    if not isinstance(targets, Tensor) or not isinstance(outputs, Tensor):
        return
    if targets.shape[:1] == (size,) and normalises_single_values(outputs, size):
        seen = f"The last batch has 1 sample ({n} samples, batch size {size}), and BatchNorm fails."
        yield error("last-batch", f"{seen} Use drop_last=True, or another batch size.")


def _some_of(rows: Tensor, n: int) -> Tensor:
    """Row numbers from all over, since they may be sorted by class."""
    return rows[torch.linspace(0, len(rows) - 1, min(n, len(rows)), device="cpu").long()]


def some_rows(source: Any) -> tuple[Tensor, Tensor] | None:
    """Samples from all over a source in memory, as its batches will hold them; else None."""
    held = _held(source, as_they_are=True)
    if held is None:
        return None
    rows = _some_of(held.rows, 256)
    return held.inputs[rows.to(held.inputs.device)], held.targets[rows.to(held.targets.device)]


def targets_of(source: Any) -> Tensor | None:
    """All targets of a source in memory, on the CPU; None for any other."""
    held = _held(source, as_they_are=True)
    return held.targets[held.rows] if held and held.targets.device.type == "cpu" else None


# ------------------------------------------------------------------ order and alignment


def _order(train: Any) -> Iterator[Finding]:
    ids = _ids_in_order(train)
    if ids is None or not _are_ids(ids) or len(ids) < 2:
        return
    steps = ids[1:].long() - ids[:-1].long()
    is_random = type(_sampler(train)) in (RandomSampler, SubsetRandomSampler)
    is_shuffled = is_random or getattr(train, "shuffle", False)
    if not steps.any():
        yield note("one-class", f"All {len(ids)} training targets are {ids[0].item()}.")
    elif not is_shuffled and ((steps >= 0).all() or (steps <= 0).all()):
        seen = "The training targets come sorted by class, so a batch holds one class."
        yield note("sorted-targets", f"{seen} Set shuffle=True on the training batches.")


def _ids_in_order(train: Any) -> Tensor | None:
    """The training targets as they stand in memory, in a list of batches or beside files."""
    ids: Any = None
    if isinstance(train, list) and train and all(map(_is_pair, train)):
        parts = [targets for _, targets in train]
        ids = torch.cat(parts) if all(map(_are_ids, parts)) else None
    elif _takes_all(train):
        ids = getattr(_dataset(train), "targets", None)
        is_list = isinstance(ids, list) and ids and type(ids[0]) is int
        ids = torch.tensor(ids, device="cpu") if is_list else ids
        ids = ids if _are_ids(ids) and len(ids) == len(_dataset(train)) else None
    return targets_of(train) if ids is None else ids


def _are_ids(ids: Any) -> bool:
    is_here = isinstance(ids, Tensor) and ids.device.type == "cpu"
    return is_here and ids.ndim == 1 and not ids.is_floating_point()


def _shift(train: Any) -> Iterator[Finding]:
    """Pairs made by ``zip`` of two tensors of different length: the rest is cut off in silence."""
    dataset = train if isinstance(train, list) else _dataset(train)
    if not isinstance(dataset, list) or len(dataset) < 2:
        return
    first, *others = (_places(dataset[i]) for i in (0, len(dataset) // 2, -1))
    if not first or any(other[1:] != first[1:] for other in others):
        return
    n, (_, shift, inputs, targets) = len(dataset), first
    if (inputs == targets and shift == 0) or max(inputs, targets) - n > 1 + abs(shift):
        return  # they go together, or are parts that were cut out on purpose
    row = f"row i + {shift}" if shift else "row i"
    seen = f"The {n} pairs take row i of {inputs} inputs and {row} of {targets} targets."
    fix = "Look at how the labels were read (a lost header or first row?)."
    yield warning("shifted-targets", f"{seen} {fix}")


def _places(pair: Any) -> tuple[int, ...]:
    """Row of the inputs, how far that of the targets is off, and how many rows each has."""
    if not isinstance(pair, tuple) or len(pair) != 2:
        return ()
    bases: list[Any] = [part._base if isinstance(part, Tensor) else None for part in pair]
    if bases[0] is bases[1]:  # None, or two parts of one table
        return ()
    rows = []
    for part, base in zip(pair, bases, strict=True):
        if base is None or base.ndim != part.ndim + 1 or not base.is_contiguous():
            return ()
        rows.append(part.storage_offset() // max(1, base.stride(0)))
    return rows[0], rows[1] - rows[0], *map(len, bases)


# ------------------------------------------------------------------ training and validation


def _same_samples(train: Any, valid: Any) -> Iterator[Finding]:
    if isinstance(train, (list, tuple)) and isinstance(valid, (list, tuple)):
        tensors = {id(batch[0]) for batch in train if _is_pair(batch)}
        if len(valid) > 1 and all(_is_pair(batch) and id(batch[0]) in tensors for batch in valid):
            yield _valid_is_train(f"All {len(valid)} validation batches are training batches")
        return
    (ours, rows), (theirs, asked) = _rows_of(train), _rows_of(valid)
    is_same = ours is not None and ours is theirs
    shared = int(torch.isin(asked, rows).sum()) if is_same else 0
    is_one_batch = num_batches(train) == 1  # to overfit one is a test of its own
    if shared:
        code = "valid-is-train" if shared >= len(asked) / 2 else "valid-overlaps"
        what = f"{shared} of {len(asked)} validation samples are training samples of one dataset"
        yield from () if is_one_batch else [_valid_is_train(what, code)]
        return
    held, other = _held(train), _held(valid)
    if held is not None and other is not None:
        yield from _overlap(held, other, is_one_batch=is_one_batch)


def _is_pair(batch: Any) -> bool:
    return isinstance(batch, (tuple, list)) and len(batch) == 2 and isinstance(batch[0], Tensor)


def _valid_is_train(what: str, code: str = "valid-is-train") -> Finding:
    fix = "Split the data first, so that no sample is in both."
    return warning(code, f"{what}: that says nothing about new data. {fix}")


def _overlap(ours: _Held, theirs: _Held, *, is_one_batch: bool) -> Iterator[Finding]:
    """Look for some validation samples, input and target, among the training samples."""
    x, y = ours.inputs, theirs.inputs
    if not is_readable(x) or not is_readable(y) or x.is_complex() or x.is_quantized:
        return
    if x.shape[1:] != y.shape[1:] or x.dtype != y.dtype or len(y) < 2:
        return
    width = y[0].numel()
    asked = _some_of(theirs.rows, min(256, max(16, 4_000_000 // width)))
    stored, samples = x.reshape(len(x), -1), y.reshape(len(y), -1)[asked]
    # A few columns that tell samples apart say where to look; whole rows are compared then.
    among = torch.linspace(0, width - 1, min(width, 4096), device=x.device).long()
    columns = among[samples[:, among].double().var(0).topk(min(16, len(among))).indices]
    factors = torch.arange(1, len(columns) + 1, device=x.device).double().sqrt()
    keys, wanted = ((part[:, columns].double() * factors).sum(1) for part in (stored, samples))
    keys = keys[ours.rows]
    found = 0
    for key, sample, place in zip(wanted, samples, asked, strict=True):
        rows = ours.rows[(keys == key).nonzero()[:8, 0]]
        target = theirs.targets[place]
        alike = (row for row in rows if torch.equal(sample, stored[row]))
        found += any(torch.equal(target, ours.targets[row]) for row in alike)
    # Where training has many samples twice, inputs have few values: others meet by chance.
    repeats = 1 - len(keys.unique()) / len(keys)
    is_meant = is_one_batch and x.data_ptr() == y.data_ptr()
    if found >= len(asked) / 2 and not is_meant and repeats < 0.1:
        what = f"Training and validation hold the same samples ({found} of {len(asked)} looked at)"
        yield _valid_is_train(what)
    elif found:
        seen = f"{found} of {len(asked)} validation samples stand among the training samples, too."
        yield note("valid-overlaps", seen)


def _class_tables(ours: Any, theirs: Any) -> Iterator[Finding]:
    tables = []
    for dataset in (ours, theirs):
        names = getattr(_whole(dataset), "classes", None)
        if not isinstance(names, (list, tuple)) or not all(isinstance(n, str) for n in names):
            return
        tables.append({name: i for i, name in enumerate(names)})
    train, valid = tables
    name = next((name for name in valid if train.get(name) != valid[name]), None)
    if name is not None:
        place = train.get(name, "no id")
        seen = f"The class {name!r} has id {valid[name]} in validation but {place} in training."
        fix = "Use torchcls.image_folder(root, classes=train.classes)."
        yield error("class-tables", f"{seen} {fix}")


# ------------------------------------------------------------------ scale


def scale_findings(train: Any, valid: Any) -> Iterator[Finding]:
    """Whether the inputs of the two splits have one size and one scale."""
    if not isinstance(train, Tensor) or not isinstance(valid, Tensor):
        return
    if any(t.device.type != "cpu" or t.layout != torch.strided for t in (train, valid)):
        return
    if train.ndim != valid.ndim or train.shape[1:] != valid.shape[1:]:
        seen = f"Training samples have shape {tuple(train.shape[1:])}"
        yield note("shape-differs", f"{seen}, validation samples {tuple(valid.shape[1:])}.")
    are_ids = not (train.is_floating_point() or valid.is_floating_point())
    if are_ids or bounds(train) is None or bounds(valid) is None:
        return
    one, other = _spread(train), _spread(valid)
    if 0 < one < math.inf and 0 < other < math.inf and not 1 / 30 <= one / other <= 30:
        seen = f"Training inputs{span(train)} and validation inputs{span(valid)} differ"
        yield warning("scale-differs", f"{seen}: scale both alike.")


def _spread(inputs: Tensor) -> float:
    some = inputs.detach().flatten()
    some = some[:: 1 + some.numel() // 100_000].float().abs()
    # Neither a few outliers nor many zeros move it.
    return float(some.kthvalue(1 + int(0.9 * (some.numel() - 1))).values)


def unscaled_pixels(inputs: Any, outputs: Any, loss: float, loss_fn: Loss) -> Iterator[Finding]:
    """Images of 0 to 255 that a model does not scale itself, as its loss shows."""
    if not isinstance(inputs, Tensor) or not isinstance(outputs, Tensor) or inputs.ndim < 3:
        return
    # Narrower than 4 in height or width they are spectra or series, as tables are no images.
    if not is_readable(inputs) or min(inputs.shape[-2:]) < 4:
        return
    if not inputs.is_floating_point() and inputs.dtype != torch.uint8:
        return
    if inputs.ndim == 3 and (inputs != inputs.trunc()).any():
        return  # several series of one length
    low, high = bounds(inputs) or (0, 0)
    guessing = _loss_of_guessing(outputs, loss_fn)
    if guessing and 3 * guessing <= loss < math.inf and 0 <= low <= 10 and 100 < high <= 255.5:
        seen = f"The inputs run from {low:g} to {high:g}, as unscaled pixels do."
        first = f"The first loss is {loss:.3g} where guessing gives {guessing:.3g}."
        yield warning("unscaled-inputs", f"{seen} {first} Divide them by 255.")


def one_input(inputs: Any, targets: Any) -> Iterator[Finding]:
    """Whether all samples of a batch have one input, but not one target."""
    if not isinstance(inputs, Tensor) or not isinstance(targets, Tensor):
        return
    n = len(inputs) if inputs.ndim else 0
    if n < 8 or not is_readable(inputs) or not is_readable(targets) or len(targets) != n:
        return
    if (inputs == inputs[:1]).all() and not (targets == targets[:1]).all():
        seen = f"All {n} inputs of the first batch are equal, and their targets are not."
        yield warning("one-input", f"{seen} Look at how the inputs are read and collated.")


def repeated_batches(first: Any, second: Any) -> Iterator[Finding]:
    """Whether the first two batches of a stream, which come from two workers, are the same."""
    parts = [*zip(leaves_of(first), leaves_of(second), strict=False)]
    are_tensors = all(isinstance(leaf, Tensor) and is_readable(leaf) for p in parts for leaf in p)
    if are_tensors and all(torch.equal(*pair) for pair in parts):
        yield warning("repeated-batches", f"The first two batches are the same. {_SHARE}")


def more_batches(train: Any, given: int) -> Iterator[Finding]:
    """Whether an epoch had more batches than its source promises."""
    promised, readers = num_batches(train), workers(train)
    if promised is not None and given >= promised + readers:  # the last of each may be a small one
        seen = f"An epoch had {given} training batches where their len() is {promised}."
        fix = _SHARE if readers > 1 else "Correct its __len__: schedules rely on it."
        yield warning("repeated-batches", f"{seen} {fix}")


_SHARE = (
    "Every worker goes through the whole IterableDataset unless its __iter__ shares it out: "
    "itertools.islice(samples, info.id, None, info.num_workers), "
    "with info = torch.utils.data.get_worker_info()."
)


def workers(train: Any) -> int:
    """How many processes read a stream, each of them all of it unless it shares itself out."""
    return max(1, train.num_workers) if isinstance(_dataset(train), IterableDataset) else 1


def _loss_of_guessing(outputs: Tensor, loss_fn: Loss) -> float | None:
    known = heads.recognise(loss_fn)
    if known is None or any(known.options[name] is not None for name in ("weight", "pos_weight")):
        return None
    if "ids" in known.kind.targets:
        return math.log(outputs.shape[1]) if outputs.ndim > 1 and outputs.shape[1] > 1 else None
    return math.log(2) if known.kind.targets == "in [0, 1]" else None
