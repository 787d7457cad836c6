"""What can be seen of the data before the first step: the loaders, and what they hold in memory."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

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

from torchcls.checks.contract import class_range, named, probability_range
from torchcls.checks.findings import Finding, error, note, warning
from torchcls.data.batches import Batches
from torchcls.losses import recognise
from torchcls.step import Loss


def findings_of(train: Any, valid: Any) -> Iterator[Finding]:
    """What the two sources show without being started."""
    yield from _order(train)
    yield from _shift(train)
    if valid is None:
        return
    yield from _same_samples(train, valid)
    yield from _class_tables(_dataset(train), _dataset(valid))
    yield from _dropped(valid)


# ------------------------------------------------------------------ what a source holds


@dataclass(frozen=True)
class _Held:
    """The tensors that a source cuts its batches from, and the rows it takes of them."""

    inputs: Tensor
    targets: Tensor
    rows: Tensor | None  # None: all of them
    is_transformed: bool

    def taken(self, tensor: Tensor) -> Tensor:
        return tensor if self.rows is None else tensor[self.rows.to(tensor.device)]


def _held(source: Any) -> _Held | None:
    if type(source) is Batches:
        return _Held(source.inputs, source.targets, None, source.transform is not None)
    if not _takes_all(source):  # a sampler may leave some out, or take what it likes
        return None
    dataset, rows = _dataset(source), None
    if type(dataset) is Subset:
        try:
            rows = torch.as_tensor(dataset.indices)
        except (TypeError, ValueError, RuntimeError):  # of slices, say
            return None
        if rows.ndim != 1 or rows.dtype not in (torch.int64, torch.int32):
            return None
        dataset = dataset.dataset
    if type(dataset) is not TensorDataset or len(dataset.tensors) != 2:
        return None
    collate = getattr(source, "collate_fn", None)
    is_transformed = collate is not torch.utils.data.default_collate
    return _Held(*dataset.tensors, rows, is_transformed)


def _dataset(source: Any) -> Any:
    return source.dataset if isinstance(source, DataLoader) else None


def _takes_all(source: Any) -> bool:
    """Whether a loader goes over its whole dataset, in order or at random."""
    if not isinstance(source, DataLoader) or type(source.batch_sampler) is not BatchSampler:
        return False
    return type(source.batch_sampler.sampler) in (SequentialSampler, RandomSampler)


def last_batch_of_one(source: Any) -> tuple[int, int] | None:
    """(samples, batch size) where the last batch of a pass holds one sample, else None."""
    if isinstance(source, Batches):
        n, size, drops = len(source.inputs), source.batch_size, source.drop_last
    elif isinstance(source, DataLoader) and type(source.batch_sampler) is BatchSampler:
        sampler: Any = source.sampler
        if not hasattr(sampler, "__len__"):
            return None
        n, size, drops = len(sampler), source.batch_sampler.batch_size, source.drop_last
    else:
        return None
    return (n, size) if size > 1 and n % size == 1 and not drops else None


# ------------------------------------------------------------------ order and alignment


def _order(train: Any) -> Iterator[Finding]:
    held = _held(train)
    if held is None or held.is_transformed or held.targets.device.type != "cpu":
        return
    is_shuffled = train.shuffle if isinstance(train, Batches) else not _is_in_order(train)
    ids = held.taken(held.targets)
    if ids.ndim != 1 or ids.is_floating_point() or len(ids) < 2:
        return
    if bool((ids == ids[0]).all()):
        yield note("one-class", f"All {len(ids)} training targets are {ids[0].item()}.")
    elif not is_shuffled and is_sorted(ids):
        yield sorted_note()


def is_sorted(ids: Tensor) -> bool:
    """Whether class ids come in rising or falling order."""
    steps = ids[1:].long() - ids[:-1].long()
    return bool((steps >= 0).all() or (steps <= 0).all())


def sorted_note() -> Finding:
    """Say that the targets come sorted."""
    return note(
        "sorted-targets",
        "The training targets come sorted by class, so a batch holds one class: the model forgets "
        "the others meanwhile. Set shuffle=True on the training batches, unless it is meant.",
    )


def _is_in_order(source: Any) -> bool:
    return isinstance(source, DataLoader) and type(source.sampler) is SequentialSampler


def _shift(train: Any) -> Iterator[Finding]:
    """Pairs made by ``zip`` of two tensors of different length: the rest is cut off in silence."""
    dataset = train if isinstance(train, list) else _dataset(train)
    if not isinstance(dataset, list) or len(dataset) < 2:
        return
    places = [_places(dataset[i]) for i in (0, len(dataset) // 2, -1)]
    if any(place is None or place[1:] != places[0][1:] for place in places if places[0]):
        return
    if places[0] is None:
        return
    _, shift, inputs, targets = places[0]
    n = len(dataset)
    if inputs == targets and shift == 0:
        return
    if max(inputs, targets) - n > 1 + abs(shift):
        return  # parts that were cut out on purpose
    yield warning(
        "shifted-targets",
        f"The {n} pairs take row i of {inputs} inputs and row i"
        f"{f' + {shift}' if shift else ''} of {targets} targets: do they belong together? zip "
        "stops at the shorter one in silence. Look at how the labels were read (a lost header or "
        "first row?).",
    )


def _places(pair: Any) -> tuple[int, int, int, int] | None:
    """Row of the inputs, how far the row of the targets is off, and how many rows each has."""
    if not isinstance(pair, tuple) or len(pair) != 2:
        return None
    found = []
    for part in pair:
        base = part._base if isinstance(part, Tensor) else None
        if base is None or base.ndim != part.ndim + 1 or not base.is_contiguous():
            return None
        found.append((part.storage_offset() // max(1, base.stride(0)), len(base)))
    (row, inputs), (other, targets) = found
    if pair[0]._base is pair[1]._base:
        return None
    return row, other - row, inputs, targets


# ------------------------------------------------------------------ training and validation


def _same_samples(train: Any, valid: Any) -> Iterator[Finding]:
    batches = _number_of(valid)
    if valid is train:
        # A stream may hold something else each time.
        is_stored = isinstance(train, (Batches, list, tuple)) or _takes_all(train)
        if is_stored and batches is not None and batches > 1:
            yield _valid_is_train("The validation batches are the training batches")
        return
    if isinstance(train, list) and isinstance(valid, list):
        tensors = {id(part) for batch in train for part in _inputs_of(batch)}
        shared = [batch for batch in valid if any(id(p) in tensors for p in _inputs_of(batch))]
        if len(shared) > 1 and len(shared) == len(valid):
            yield _valid_is_train(f"All {len(valid)} validation batches are training batches")
        return
    ours, theirs = _held(train), _held(valid)
    if ours is not None and theirs is not None:
        if _are_comparable(ours.inputs, theirs.inputs):
            is_same = ours.inputs.data_ptr() == theirs.inputs.data_ptr()
            yield from _overlap(ours, theirs, is_one_batch=is_same and _number_of(train) == 1)
    elif (
        _dataset(train) is not None
        and _dataset(train) is _dataset(valid)
        and _takes_all(train)
        and _takes_all(valid)
        and batches != 1
    ):
        yield _valid_is_train("Training and validation go over the same dataset")


def _number_of(source: Any) -> int | None:
    try:
        return len(source)
    except TypeError:
        return None


def _inputs_of(batch: Any) -> tuple[Any, ...]:
    is_pair = isinstance(batch, (tuple, list)) and len(batch) == 2
    return (batch[0],) if is_pair and isinstance(batch[0], Tensor) else ()


def _valid_is_train(what: str) -> Finding:
    return warning(
        "valid-is-train",
        f"{what}: the validation numbers say nothing about new data. Split the data first, as "
        "torch.utils.data.random_split does.",
    )


def _overlap(ours: _Held, theirs: _Held, *, is_one_batch: bool) -> Iterator[Finding]:
    """Look for some validation samples, input and target, among the training samples."""
    n = len(theirs.inputs) if theirs.rows is None else len(theirs.rows)
    width = max(1, theirs.inputs[0].numel())
    asked = torch.linspace(0, n - 1, min(n, 256, max(16, 4_000_000 // width))).long()
    if theirs.rows is not None:
        asked = theirs.rows[asked].long()
    stored = ours.inputs.reshape(len(ours.inputs), -1)
    samples = theirs.inputs.reshape(len(theirs.inputs), -1)[asked]
    # A few columns that tell samples apart say where to look; whole rows are compared then.
    among = torch.linspace(0, width - 1, min(width, 4096)).long()
    columns = among[samples[:, among].double().var(0).topk(min(16, len(among))).indices]
    keys = _hashed(stored[:, columns])
    rows = torch.arange(len(stored)) if ours.rows is None else ours.rows.long()
    keys = keys[rows]
    wanted = _hashed(samples[:, columns])
    alike = torch.isin(keys, wanted).nonzero()[:10_000, 0]
    places: dict[int, list[int]] = {}
    for key, row in zip(keys[alike].tolist(), rows[alike].tolist(), strict=True):
        places.setdefault(key, []).append(row)
    found = sum(
        any(
            torch.equal(sample, stored[row])
            and torch.equal(theirs.targets[place], ours.targets[row])
            for row in places.get(key, [])[:8]
        )
        for key, sample, place in zip(wanted.tolist(), samples, asked.tolist(), strict=True)
    )
    # Where training has many samples twice, inputs have few values: others meet by chance.
    repeats = 1 - len(keys.unique()) / len(keys)
    if found >= len(asked) / 2 and not is_one_batch and repeats < 0.1:
        yield _valid_is_train(
            f"Training and validation hold the same samples ({found} of {len(asked)} looked at)"
        )
    elif found:
        yield note(
            "valid-overlaps",
            f"{found} of {len(asked)} validation samples stand among the training samples, too.",
        )


def _are_comparable(ours: Tensor, theirs: Tensor) -> bool:
    if any(t.device.type != "cpu" or t.layout != torch.strided for t in (ours, theirs)):
        return False
    if ours.shape[1:] != theirs.shape[1:] or ours.dtype != theirs.dtype or ours.is_complex():
        return False
    return len(theirs) > 1 and not ours.is_quantized and ours[0].numel() > 0


def _hashed(columns: Tensor) -> Tensor:
    """A whole number for each row, the same for the same row: int64, which wraps around."""
    bits = columns.double().contiguous().view(torch.int64)
    # Small whole numbers differ in their upper bits alone: brought down, spread, mixed.
    factors = torch.arange(1, 2 * bits.shape[1], 2) * 0x9E3779B97F4A7C1 | 1
    spread = (bits ^ (bits >> 32)) * factors
    return ((spread ^ (spread >> 29)) * factors).sum(1)


def _class_tables(ours: Any, theirs: Any) -> Iterator[Finding]:
    tables = []
    for dataset in (ours, theirs):
        while type(dataset) is Subset:
            dataset = dataset.dataset
        names = getattr(dataset, "classes", None)
        if not isinstance(names, (list, tuple)) or not all(isinstance(n, str) for n in names):
            return
        tables.append({name: i for i, name in enumerate(names)})
    train, valid = tables
    moved = [name for name in valid if train.get(name) != valid[name]]
    if moved:
        name = moved[0]
        place = f"id {train[name]}" if name in train else "no id"
        yield error(
            "class-tables",
            f"The class {name!r} has id {valid[name]} in validation but {place} in training: the "
            "splits number their classes each by itself. Use torchcls.image_folder(root, "
            "classes=train.classes).",
        )


def _dropped(valid: Any) -> Iterator[Finding]:
    if isinstance(valid, Batches):
        n, size, drops = len(valid.inputs), valid.batch_size, valid.drop_last
    elif _takes_all(valid):
        n, size, drops = len(valid.sampler), valid.batch_sampler.batch_size, valid.drop_last
    else:
        return
    if drops and n % size:
        yield note(
            "valid-drops-samples",
            f"Validation leaves out the last {n % size} of {n} samples (drop_last=True). "
            "Set drop_last=False there.",
        )


def some_rows(source: Any, n: int = 256) -> tuple[Tensor, Tensor] | None:
    """Samples from all over a source in memory, as its batches will hold them; else None."""
    held = _held(source)
    if held is None or held.is_transformed:
        return None
    total = len(held.inputs) if held.rows is None else len(held.rows)
    chosen = torch.linspace(0, total - 1, min(n, total)).long()  # they may be sorted by class
    if held.rows is not None:
        chosen = held.rows[chosen]
    return tuple(t.index_select(0, chosen.to(t.device)) for t in (held.inputs, held.targets))  # type: ignore[return-value]


def targets_of(source: Any) -> Tensor | None:
    """All targets of a source in memory, on the CPU; None for any other."""
    held = _held(source)
    if held is None or held.is_transformed or held.targets.device.type != "cpu":
        return None
    return held.taken(held.targets)


def target_range(targets: Tensor, outputs: Any, loss_fn: Loss) -> Iterator[Finding]:
    """Whether all of some targets lie in the range that the loss has for these outputs."""
    loss, known = named(loss_fn), recognise(loss_fn)
    if loss is None or known is None or not isinstance(outputs, Tensor) or outputs.ndim < 1:
        return
    is_floating = targets.is_floating_point()
    if known.name in ("cross_entropy", "nll_loss") and not is_floating:
        if outputs.ndim > 1 and outputs.shape[1] > 1 and targets.ndim == outputs.ndim - 1:
            yield from class_range(targets, outputs.shape[1], known.options["ignore_index"])
    elif known.name.startswith("binary_cross_entropy") and is_floating:
        yield from probability_range(targets, loss)


# ------------------------------------------------------------------ scale


def scale_findings(train: Any, valid: Any) -> Iterator[Finding]:
    """Whether the inputs of the two splits have one size and one scale."""
    if not isinstance(train, Tensor) or not isinstance(valid, Tensor):
        return
    if any(t.device.type != "cpu" or t.layout != torch.strided for t in (train, valid)):
        return
    if train.ndim != valid.ndim or train.shape[1:] != valid.shape[1:]:
        yield note(
            "shape-differs",
            f"A training sample has shape {tuple(train.shape[1:])}, a validation sample "
            f"{tuple(valid.shape[1:])}.",
        )
    if not (train.is_floating_point() or valid.is_floating_point()):
        return  # ids, say
    if not train.numel() or not valid.numel() or train.is_complex() or valid.is_complex():
        return
    ours, theirs = _spread(train), _spread(valid)
    if not (0 < ours < math.inf and 0 < theirs < math.inf):
        return
    ratio = max(ours / theirs, theirs / ours)
    if ratio > 30:
        low, high = (x.detach().float().aminmax() for x in (train, valid))
        yield warning(
            "scale-differs",
            f"Training inputs run from {low[0].item():.4g} to {low[1].item():.4g}, validation "
            f"inputs from {high[0].item():.4g} to {high[1].item():.4g}: scale both alike.",
        )


def _spread(inputs: Tensor) -> float:
    some = inputs.detach().flatten()
    some = some[:: 1 + some.numel() // 100_000].float().abs()
    # Neither a few outliers nor many zeros move it.
    return float(some.kthvalue(1 + int(0.9 * (some.numel() - 1))).values)


def unscaled_pixels(inputs: Any, outputs: Any, loss: float, loss_fn: Loss) -> Iterator[Finding]:
    """Pixels from 0 to 255 as floats that a model does not scale itself, as its loss shows.

    A model that divides by 255 itself, or starts with batch statistics, begins near the loss of
    guessing and is left alone.
    """
    if not isinstance(inputs, Tensor) or not isinstance(outputs, Tensor) or inputs.ndim < 2:
        return
    if not inputs.is_floating_point() or inputs.device.type != "cpu" or inputs[0].numel() < 16:
        return
    inputs, guessing = inputs.detach(), _loss_of_guessing(outputs, loss_fn)
    if guessing is None or not math.isfinite(loss) or loss < 3 * guessing:
        return
    low, high = (bound.item() for bound in inputs.aminmax())
    if 0 <= low <= 10 and 100 < high <= 255.5:
        yield warning(
            "unscaled-inputs",
            f"The inputs run from {low:g} to {high:g} (mean {inputs.mean().item():.3g}), which "
            f"looks like unscaled pixels, and the first loss is {loss:.3g} where guessing gives "
            f"{guessing:.3g}. Divide them by 255.",
        )


def _loss_of_guessing(outputs: Tensor, loss_fn: Loss) -> float | None:
    known = recognise(loss_fn)
    if known is None or any(known.options[name] is not None for name in ("weight", "pos_weight")):
        return None
    if known.name in ("cross_entropy", "nll_loss"):
        return math.log(outputs.shape[1]) if outputs.ndim > 1 and outputs.shape[1] > 1 else None
    return math.log(2) if known.name.startswith("binary") else None
