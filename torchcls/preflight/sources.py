"""What can be seen of the data before the first step: the loaders, and what they hold in memory."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    RandomSampler,
    SequentialSampler,
    Subset,
    TensorDataset,
)

from torchcls import heads
from torchcls.batches import num_batches
from torchcls.preflight.findings import Finding, error, note, warning
from torchcls.preflight.graph import normalises_single_values
from torchcls.preflight.reading import bounds, is_readable, span
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
    dataset = _dataset(source)
    if _is_batches(source):
        tensors, is_changed = (source.inputs, source.targets), source.transform is not None
    elif _takes_all(source) and type(_whole(dataset)) is TensorDataset:
        tensors = _whole(dataset).tensors
        is_changed = source.collate_fn is not torch.utils.data.default_collate
    else:
        return None
    if len(tensors) != 2 or (is_changed and as_they_are):
        return None
    if type(dataset) is not Subset:
        return _Held(*tensors, torch.arange(len(tensors[0]), device="cpu"))
    try:
        rows = torch.as_tensor(dataset.indices, device="cpu")
    except (TypeError, ValueError, RuntimeError):  # of slices, say
        return None
    are_numbers = rows.ndim == 1 and rows.dtype in (torch.int64, torch.int32)
    is_nested = type(dataset.dataset) is Subset
    return _Held(*tensors, rows.long()) if are_numbers and not is_nested else None


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
    is_shuffled = type(_sampler(train)) is RandomSampler or getattr(train, "shuffle", False)
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
    batches = num_batches(valid)
    if valid is train:
        # A stream may hold something else each time.
        is_stored = isinstance(train, (list, tuple)) or _is_batches(train) or _takes_all(train)
        if is_stored and batches is not None and batches > 1:
            yield _valid_is_train("The validation batches are the training batches")
        return
    if isinstance(train, list) and isinstance(valid, list):
        tensors = {id(batch[0]) for batch in train if _is_pair(batch)}
        if len(valid) > 1 and all(_is_pair(batch) and id(batch[0]) in tensors for batch in valid):
            yield _valid_is_train(f"All {len(valid)} validation batches are training batches")
        return
    ours, theirs = _held(train), _held(valid)
    if ours is not None and theirs is not None:
        yield from _overlap(ours, theirs, is_one_batch=num_batches(train) == 1)
        return
    is_one = _dataset(train) is not None and _dataset(train) is _dataset(valid)
    if is_one and _takes_all(train) and _takes_all(valid) and batches != 1:
        yield _valid_is_train("Training and validation go over the same dataset")


def _is_pair(batch: Any) -> bool:
    return isinstance(batch, (tuple, list)) and len(batch) == 2 and isinstance(batch[0], Tensor)


def _valid_is_train(what: str) -> Finding:
    fix = "Split the data first, as random_split does."
    return warning("valid-is-train", f"{what}: that says nothing about new data. {fix}")


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
    """Pixels from 0 to 255 as floats that a model does not scale itself, as its loss shows."""
    if not isinstance(inputs, Tensor) or not isinstance(outputs, Tensor) or inputs.ndim < 2:
        return
    if not inputs.is_floating_point() or not is_readable(inputs) or inputs[0].numel() < 16:
        return
    low, high = bounds(inputs) or (0, 0)
    guessing = _loss_of_guessing(outputs, loss_fn)
    if guessing and 3 * guessing <= loss < math.inf and 0 <= low <= 10 and 100 < high <= 255.5:
        seen = f"The inputs run from {low:g} to {high:g}, as unscaled pixels do."
        first = f"The first loss is {loss:.3g} where guessing gives {guessing:.3g}."
        yield warning("unscaled-inputs", f"{seen} {first} Divide them by 255.")


def _loss_of_guessing(outputs: Tensor, loss_fn: Loss) -> float | None:
    known = heads.recognise(loss_fn)
    if known is None or any(known.options[name] is not None for name in ("weight", "pos_weight")):
        return None
    if "ids" in known.kind.targets:
        return math.log(outputs.shape[1]) if outputs.ndim > 1 and outputs.shape[1] > 1 else None
    return math.log(2) if known.kind.targets == "in [0, 1]" else None
