"""Prediction: what a model says of every sample, and the file of it."""

import csv
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils.data import Dataset, IterableDataset, RandomSampler

from torchcls import heads
from torchcls.batches import (
    Pair,
    as_pair,
    check_whole_number,
    mapped,
    num_samples,
    pairs,
    split,
    to_device,
)
from torchcls.device import Device, place
from torchcls.evaluation import evaluating, kept_tensor
from torchcls.group import Group
from torchcls.history import replacing
from torchcls.step import Forward, ForwardOf, Loss, forward_of
from torchcls.warn import warn


@dataclass(frozen=True, eq=False, repr=False)
class Predictions:
    """What a model says of every sample, on the CPU.

    Attributes:
        outputs: What the model gave, shape (n, ...).
        targets: What was asked for, shape (n, ...); None where only inputs were given.
        loss_fn: The loss of the training, which names the activation; None where it was not given.
        classes: The name of each class, a tuple of text; None where they are only numbered.
    """

    outputs: Tensor
    targets: Tensor | None = None
    loss_fn: Loss | None = None
    classes: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if self.classes is not None:
            object.__setattr__(self, "classes", tuple(map(str, self.classes)))

    def __repr__(self) -> str:
        targets = "no targets" if self.targets is None else "targets"
        return f"Predictions(outputs of shape {tuple(self.outputs.shape)}, {targets})"

    @property
    def probabilities(self) -> Tensor:
        """The activated outputs, same shape: the loss names the activation."""
        return heads.probabilities(self.outputs, self._loss("probabilities"))

    @property
    def predicted(self) -> Tensor:
        """What the outputs say y is, as ``heads.decisions`` gives it; -1 where a row holds NaN."""
        return heads.decisions(self.outputs, self._loss("predicted"))

    def top(self, k: int) -> tuple[Tensor, Tensor]:
        """Probabilities and ids of the ``k`` most probable classes, best first, (n, k) each.

        Ties go to the lowest class; -1 stands for all classes of a row that holds NaN. The loss has
        to be one over classes (cross-entropy or NLL), of at least ``k``: else a ValueError.
        """
        check_whole_number("k", k, at_least=1)
        known = heads.recognise(self._loss("top"))
        if known and known.name not in heads.MULTICLASS.losses:
            law = "top must have a loss over classes, cross_entropy or nll_loss"
            raise ValueError(f"{law}, got {known}. Use .probabilities.")
        p, classes = self.probabilities.sort(dim=1, descending=True, stable=True)
        if k > p.shape[1]:
            raise ValueError(f"k must be at most the {p.shape[1]} classes, got {k}.")
        return p[:, :k], torch.where(p.isnan().any(1, keepdim=True), -1, classes)[:, :k]

    def to_csv(
        self, path: str | os.PathLike[str], *, classes: Sequence[object] | None = None
    ) -> None:
        """Write one row for each sample: outputs, probabilities, predicted class, target.

        Columns are ``output`` and ``probability`` (numbered from 0 where there are several; no
        probability for ``mse_loss``), ``predicted`` and, where targets are known, ``target``.
        Floats are written so that reading gives the same float32 back. A file that is there is
        replaced whole or left as it was.

        Args:
            path: The file to write; ``~`` is the home folder.
            classes: Names to write in place of class ids in ``predicted`` and ``target``, or,
                where a sample has several labels, in place of numbers in the names of columns.
                None takes those of the predictions.

        Raises:
            ValueError: If the outputs have more than two dimensions, no loss named the activation,
                or ``classes`` are too few, or stand beside targets that are no class ids.
        """
        if self.outputs.ndim > 2:
            shape = tuple(self.outputs.shape)
            raise ValueError(f"outputs must have shape (n,) or (n, k) for a CSV file, got {shape}.")
        n = _num_classes(self.outputs)
        if classes is not None and len(classes) < n:
            raise ValueError(f"classes must name {n} classes, got {len(classes)} names.")
        tables = {"output": self.outputs}
        if heads.has_probabilities(self._loss("probabilities")):
            tables["probability"] = self.probabilities
        tables["predicted"] = self.predicted
        if self.targets is not None:
            tables["target"] = self.targets
        is_several = tables["predicted"][:1].numel() > 1  # labels for a sample
        of_data = self.classes if classes is None and "probability" in tables else None
        header: list[str] = []
        columns: list[list[object]] = []
        for name, values in tables.items():
            names, is_one = None, values[:1].numel() <= 1
            if name in ("predicted", "target") and not is_several:
                names = of_data if is_one and classes is None else classes
            if names is not None and not is_one:
                raise ValueError(
                    f"classes must name class ids, got {name} of shape {tuple(values.shape)}. "
                    "Leave classes out."
                )
            parts = values.reshape(len(values), -1).unbind(1)
            ends: Sequence[object] = range(len(parts))
            if is_several:
                ends = classes or of_data or ends
            header += (
                [name] if len(parts) == 1 else [f"{name}_{ends[i]}" for i in range(len(parts))]
            )
            columns += [[_cell(value, names) for value in part.tolist()] for part in parts]
        with replacing(path) as new, open(new, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(header)
            writer.writerows(zip(*columns, strict=True))

    def _loss(self, name: str) -> Loss:
        if self.loss_fn is None:
            remedy = "Call predict(model, data, loss_fn=...)."
            raise ValueError(f".{name} needs the loss, which names the activation. {remedy}")
        return self.loss_fn


def _num_classes(outputs: Tensor) -> int:
    columns = int(outputs.shape[1]) if outputs.ndim > 1 else 1
    return max(columns, 2)  # a single sigmoid tells two apart


def _cell(value: float, classes: Sequence[object] | None) -> object:
    if classes is not None and value in range(len(classes)):  # 0.0 and 1.0 are ids as well
        return classes[int(value)]
    # Nine digits tell any two float32 numbers apart.
    return f"{value:.9g}" if isinstance(value, float) else value


def predict(
    model: nn.Module,
    data: Any,
    *,
    loss_fn: Loss | None = None,
    batch_size: int = 256,
    device: Device = None,
    forward: ForwardOf = None,
    group: Group | None = None,
) -> Predictions:
    """Run a model over data and keep, on the CPU, what it says of every sample, in order.

    Data that are shuffled are warned of, since that order is then another one than the data's.
    Modes, gradients, grad mode and torch's random state are as before afterwards.

    Args:
        model: Any module whose outputs are one tensor of shape (n, ...) for n samples.
        data: Inputs as one tensor, numpy array or dict of them, which are cut into batches of
            ``batch_size``; or an iterable of batches, such as a DataLoader. Each of these is a pair
            (inputs, targets), where targets may be None, or inputs alone: a tensor, a dict, or a
            list of one, as a loader over ``TensorDataset(inputs)`` gives. Where it has ``classes``,
            or its ``dataset`` or what that is a part of has, they name those of the predictions.
        loss_fn: The loss the model was trained with; it names the activation that turns outputs
            into probabilities and decisions. Without it ``.outputs`` is all there is.
        batch_size: Samples at a time, where it is here that ``data`` is cut.
        device: Where to work; the model is taken there. None stays where the model is.
        forward: Called as ``forward(model, inputs)`` in place of ``model(inputs)``.
        group: The processes that share every batch, as ``tc.processes()`` gives them; all get the
            predictions of the whole data. None predicts in this one alone.

    Raises:
        TypeError: If the model's outputs are no tensor, or ``data`` is neither inputs nor batches.
            A list of two tensors may be a pair or two batches: write [(inputs, targets)] for the
            one, iter(data) for the other.
        ValueError: If ``data`` is empty, one sample without the axis of samples, or has targets in
            some batches only; if outputs have not one row for each sample; or if ``batch_size`` is
            below 1.

    Examples:
        >>> model = nn.Linear(2, 3)
        >>> predictions = predict(model, torch.randn(5, 2), loss_fn=nn.CrossEntropyLoss())
        >>> predictions.probabilities.shape, predictions.predicted.shape, predictions.targets
        (torch.Size([5, 3]), torch.Size([5]), None)
    """
    check_whole_number("batch_size", batch_size, at_least=1)
    sampler, shuffles = (getattr(data, name, None) for name in ("sampler", "shuffle"))
    if isinstance(sampler, RandomSampler) or shuffles is True:
        warn(
            "data is shuffled: row i of the predictions is not sample i of the data. Predict from "
            "a loader with shuffle=False."
        )
    call, group = forward_of(model, forward), group or Group()
    device = place(model, device)
    whole = _whole(data)
    outputs: list[Tensor] = []
    targets: list[Tensor] = []
    with evaluating(model), group.together():
        shares = group.shares(data if whole is None else _Cut(whole, batch_size))
        for batch in pairs(shares, "data", read=_pair, may_be_empty=whole is not None):
            inputs, target = to_device(batch[0], device), batch[1]
            output = call(inputs) if outputs else _first(call, inputs, target, whole, device)
            remedy = "Wrap the model so that it returns the one to keep."
            outputs.append(kept_tensor(output, "the model's outputs must be one tensor", remedy))
            if target is not None:
                law = "targets must be one tensor to be kept"
                remedy = "Leave them out: predict(model, (inputs for inputs, _ in data))."
                targets.append(kept_tensor(target, law, remedy))
            if not group.part.rows:  # of a sample that stands in for none
                outputs[-1], targets[-1:] = outputs[-1][:0], [kept[:0] for kept in targets[-1:]]
    outputs = group.from_first(group.gathered(outputs))
    targets = group.from_first(group.gathered(targets))
    if not outputs:
        shape = mapped(lambda leaf: tuple(leaf.shape), whole)
        raise ValueError(f"data must hold at least one sample, got shape {shape}.")
    if len(targets) not in (0, len(outputs)):
        raise ValueError(
            f"data must have targets in all batches or in none, got {len(targets)} of "
            f"{len(outputs)} with targets. Leave them out: (inputs for inputs, _ in data)."
        )
    kept, asked = torch.cat(outputs), torch.cat(targets) if targets else None
    return Predictions(kept, asked, loss_fn, _classes_of(data, kept))


def _classes_of(data: Any, outputs: Tensor) -> Sequence[str] | None:
    """The names that data has for the classes of its targets, as many as the outputs tell apart.

    Others are passed over: whoever wants them learns it from where they are used, not from a pass
    that took an hour. So are those beside a ``target_transform``, which may number anew.
    """
    for _ in range(10):  # a loader, its dataset, parts of parts
        if getattr(data, "target_transform", None) is not None:
            return None
        names = getattr(data, "classes", None)
        if isinstance(names, (list, tuple)):
            return names if len(names) == _num_classes(outputs) else None
        data = getattr(data, "dataset", None)
    return None


# ------------------------------------------------------------------ what data may be


def _whole(data: Any) -> Any:
    """Inputs that are still to be cut, arrays as tensors; None for what holds batches."""
    kinds = (Tensor, np.ndarray, Mapping)
    if isinstance(data, kinds):
        return mapped(_as_tensor, dict(data) if isinstance(data, Mapping) else data)
    if isinstance(data, Dataset) and not isinstance(data, IterableDataset):
        raise TypeError(
            f"data must give batches, got the single samples of a {type(data).__name__}. "
            "Wrap it: torch.utils.data.DataLoader(data, batch_size=256)."
        )
    is_two = isinstance(data, (list, tuple)) and len(data) == 2
    if is_two and all(isinstance(part, kinds) for part in data):
        raise TypeError(
            f"data must say what it holds, got a {type(data).__name__} of two, which may be a pair "
            "(inputs, targets) or two batches of inputs. Write [(inputs, targets)] for the pair, "
            "iter(data) for the batches."
        )
    return None


class _Cut:
    """Whole inputs as batches, without targets."""

    def __init__(self, whole: Any, size: int) -> None:
        self._whole, self._size = whole, size

    def __iter__(self) -> Iterator[Pair]:
        return ((inputs, None) for inputs in split(self._whole, self._size))


def _as_tensor(value: Any) -> Any:
    if not isinstance(value, np.ndarray):
        return value
    # A copy where torch could not share it: of what is read-only, or has strides below 0.
    return torch.from_numpy(np.require(value, requirements=["C", "W"]))


def _pair(batch: Any, name: str) -> Pair:
    """Read a batch: one of inputs alone has None for targets."""
    if isinstance(batch, (list, tuple)) and not isinstance(batch, PackedSequence):
        return (batch[0], None) if len(batch) == 1 else as_pair(batch, name)
    if batch is None or isinstance(batch, (str, bytes, int, float)):
        law = f"{name} must be a tensor, an array or a dict of inputs, or batches of them"
        raise TypeError(f"{law}, got {batch!r:.40} in a batch's place.")
    return _as_tensor(batch), None


def _first(call: Forward, inputs: Any, targets: Any, whole: Any, device: torch.device) -> Any:
    """The outputs for the first batch, which show whether rows are samples.

    One sample without the axis of samples is told by what the model gives once it has one.
    ``whole`` is what the batch was cut from; None where it came as it is.
    """
    sample = inputs if whole is None else whole
    try:
        outputs = call(inputs)
    except Exception as failure:
        if _outputs_of_one(call, sample, device) is not None:
            raise ValueError(_one_sample(sample)) from failure
        raise
    if not isinstance(outputs, Tensor):
        return outputs
    are_rows = outputs.shape[:1] in (_rows(inputs), _rows(targets))
    if are_rows and (outputs.ndim > 1 or targets is not None):
        return outputs
    one = _outputs_of_one(call, sample, device)
    is_one = one is not None and one.shape == (1, *outputs.shape)
    if is_one and are_rows:  # by chance, with as many classes as features: is a row no sample?
        is_one = _outputs_of_one(call, mapped(lambda leaf: leaf[0], inputs), device) is None
    if is_one:
        raise ValueError(_one_sample(sample))
    law = "the model's outputs must have a row for each sample, got shape "
    law += f"{tuple(outputs.shape)} for"
    if not are_rows and (whole is not None or outputs.ndim == 0):
        raise ValueError(
            f"{law} {num_samples(inputs)} of them. Of one sample, add the axis: data[None]. "
            "Where rows are no samples, pass batches, such as [data]."
        )
    if not are_rows and isinstance(targets, Tensor) and len(outputs) < len(targets):
        raise ValueError(
            f"{law} the batch of {len(targets)}, which was read as (inputs, targets). Two inputs "
            "without targets are ((a, b), None), or a dict."
        )
    return outputs  # batches may count their samples in another way, as sequences in a row do


def _rows(structure: Any) -> tuple[int, ...] | None:
    try:
        return (num_samples(structure),)
    except ValueError:  # parts of different lengths, or none
        return None


def _outputs_of_one(call: Forward, sample: Any, device: torch.device) -> Tensor | None:
    """What the model gives for one sample in a batch of its own, if that is one row."""
    try:
        outputs = call(to_device(mapped(lambda leaf: leaf[None], sample), device))
    except Exception:
        return None
    return outputs if isinstance(outputs, Tensor) and outputs.shape[:1] == (1,) else None


def _one_sample(sample: Any) -> str:
    shape = mapped(lambda leaf: tuple(leaf.shape), sample)
    return (
        f"data must have the samples along the first axis, got one sample of shape {shape}. Add "
        "the axis: data[None]. Single samples in a list or a dataset go through a DataLoader."
    )
