"""Classification metrics by hand: functions of (outputs, targets), and the counts behind them.

Every fraction is one count divided by another: a 0-d tensor in [0, 1], of the default dtype, on the
device of the outputs. The counts are int64 and 0-d: a loop over batches adds them and divides once;
a mean of batch means would be wrong. What all of them share:

* Ties go to the lowest class; "above the threshold" means strictly above.
* NaN never scores: a sample (or element) with NaN in its outputs is wrong, and is counted.
* Nothing counted (an empty split, every target ignored) gives NaN.
* Shapes are compared first; outputs and targets are never broadcast against each other.
* A TypeError says that an argument is of the wrong kind or dtype, a ValueError that a shape or a
  value does not fit. Values are checked where that is free, on the CPU: nothing here but
  ``confusion_matrix`` waits for an accelerator, where a target outside its range is a wrong sample.

This file needs torch alone and can be copied out.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

Counts = tuple[Tensor, Tensor]  # (correct, counted)

# ------------------------------------------------------------------ one class out of several


def accuracy(outputs: Tensor, targets: Tensor, *, ignore_index: int = -100) -> Tensor:
    """Fraction of samples whose highest score is at the true class, in [0, 1].

    The predicted class is ``outputs.argmax(dim=1)``. NaN in a target row is wrong, too.

    Args:
        outputs: Scores, floating point, shape (N, C), (N, C, d1, ...) or, for one sample, (C,),
            with C >= 2. Logits, log-probabilities and probabilities rank the same.
        targets: Class ids in [0, C - 1], int64 or uint8, of the shape of ``outputs`` without C; or
            floating rows of the shape of ``outputs`` (one-hot or soft), whose largest entry names
            the class. Rows need a batch dimension: (C,) against (C,) is far more often C single
            outputs, and is refused.
        ignore_index: Samples with this class id, an int, are left out of both counts. Class ids
            only: with rows it must be negative.

    Examples:
        >>> outputs = torch.tensor([[0.1, 0.7, 0.2], [0.5, 0.3, 0.2], [0.4, 0.4, 0.2]])
        >>> accuracy(outputs, torch.tensor([1, 2, 0]))  # right, wrong, a tie won by class 0: 2 / 3
        tensor(0.6667)
        >>> accuracy(outputs, torch.tensor([1, 2, -100]))  # the last one is ignored: 1 / 2
        tensor(0.5000)
    """
    return torch.div(*accuracy_counts(outputs, targets, ignore_index=ignore_index))


def accuracy_counts(outputs: Tensor, targets: Tensor, *, ignore_index: int = -100) -> Counts:
    """(correct, counted) behind ``accuracy``."""
    true, counted = _true_classes(outputs, targets, ignore_index)
    predicted, clean = _argmax(outputs)
    return ((predicted == true) & clean & counted).sum(), counted.sum()


def error_rate(outputs: Tensor, targets: Tensor, *, ignore_index: int = -100) -> Tensor:
    """Fraction of samples whose highest score is not at the true class, in [0, 1].

    Arguments and rules are those of ``accuracy``; a sample with NaN is wrong here, too.

    Examples:
        >>> outputs = torch.tensor([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7], [float("nan"), 1.0]])
        >>> error_rate(outputs, torch.tensor([1, 0, 1, 1]))  # the row with NaN is wrong: 1 / 4
        tensor(0.2500)
    """
    return torch.div(*error_counts(outputs, targets, ignore_index=ignore_index))


def error_counts(outputs: Tensor, targets: Tensor, *, ignore_index: int = -100) -> Counts:
    """(wrong, counted) behind ``error_rate``."""
    correct, counted = accuracy_counts(outputs, targets, ignore_index=ignore_index)
    return counted - correct, counted


def top_k_accuracy(
    outputs: Tensor, targets: Tensor, *, k: int = 5, ignore_index: int = -100
) -> Tensor:
    """Fraction of samples with fewer than k classes ahead of the true one, in [0, 1].

    Class c stands ahead when its score is higher, or equal with a lower index. So k=1 is
    ``accuracy`` on ties too, and a model that returns one constant scores k / C on balanced classes
    (``topk`` leaves open which of the tied classes it returns).

    ``k`` is an int in [1, C]; the other arguments are those of ``accuracy``.

    Examples:
        >>> outputs = torch.tensor([[0.1, 0.7, 0.2], [0.5, 0.3, 0.2], [0.2, 0.5, 0.3]])
        >>> targets = torch.tensor([1, 2, 2])
        >>> top_k_accuracy(outputs, targets, k=2)  # the true class is 1st, 3rd, 2nd: 2 / 3
        tensor(0.6667)
        >>> top_k_accuracy(torch.zeros(3, 3), targets, k=2)  # ties: classes 0 and 1 lead, 1 / 3
        tensor(0.3333)
    """
    return torch.div(*top_k_counts(outputs, targets, k=k, ignore_index=ignore_index))


def top_k_counts(
    outputs: Tensor, targets: Tensor, *, k: int = 5, ignore_index: int = -100
) -> Counts:
    """(correct, counted) behind ``top_k_accuracy``."""
    _check_int("k", k)
    true, counted = _true_classes(outputs, targets, ignore_index)
    dim = _class_dim(outputs)
    num_classes = outputs.shape[dim]
    if not 1 <= k <= num_classes:
        raise ValueError(f"k must be in [1, C] with C={num_classes}, got {k}.")
    known = (true >= 0) & (true < num_classes)  # on a GPU, gather out of range ends the process
    target = torch.where(known, true, 0).unsqueeze(dim)  # (N, 1, d1, ...)
    score = outputs.gather(dim, target)  # (N, 1, d1, ...)
    classes = torch.arange(num_classes, device=outputs.device)
    classes = classes.reshape(-1, *[1] * (outputs.ndim - dim - 1))  # (C, 1, ...)
    ahead = (outputs > score) | ((outputs == score) & (classes < target))  # (N, C, d1, ...)
    right = (ahead.sum(dim) < k) & known & ~outputs.isnan().any(dim) & counted
    return right.sum(), counted.sum()


def confusion_matrix(
    outputs: Tensor, targets: Tensor, *, num_classes: int | None = None, ignore_index: int = -100
) -> Tensor:
    """How often each true class (row) was predicted as each class (column).

    The trace over the total is ``accuracy``, a row sums to the samples of its class, and the
    matrices of two batches add up. NaN is an error: there is no column for "no class", and a sample
    left out would go unseen. Values are checked on any device: the call waits for an accelerator.

    Args:
        outputs: Floating point scores as in ``accuracy``, or predicted class ids, int64 or uint8,
            of the shape of ``targets``.
        targets: As in ``accuracy``; beside predicted ids, class ids.
        num_classes: C, the size of the matrix. Beside scores, their number of columns and nothing
            else. Beside ids, every id has to lie below it, and None means 1 + the largest id seen
            (of both; an error where none is): give it whenever matrices are to be added.
        ignore_index: Samples with this class id are left out, whatever their outputs.

    Returns:
        An int64 tensor of shape (C, C) on the device of ``outputs``. All zeros if nothing counts.

    Examples:
        >>> predicted, targets = torch.tensor([0, 1, 1, 2, 0]), torch.tensor([0, 1, 2, 2, 2])
        >>> confusion_matrix(predicted, targets)  # class 2: as 0, as 1 and right, once each
        tensor([[1, 0, 0],
                [0, 1, 0],
                [1, 1, 1]])
    """
    if num_classes is not None:
        _check_int("num_classes", num_classes)
    _check_tensors(outputs, targets)
    if outputs.is_floating_point():
        true, counted = _true_classes(outputs, targets, ignore_index, wait=True)
        dim = _class_dim(outputs)
        given, num_classes = num_classes, outputs.shape[dim]
        if given not in (None, num_classes):
            law = f"num_classes must be the {num_classes} columns of outputs"
            raise ValueError(f"{law}, got {given}. Leave it out.")
        clean = ~(outputs.isnan() & counted.unsqueeze(dim))
        _check_values(clean, outputs, "outputs must not be NaN")
        _check_values(~targets.isnan(), targets, "targets must not be NaN")
        predicted = outputs.argmax(dim)
    else:
        _check_same_shape(outputs, targets)
        _check_int("ignore_index", ignore_index)
        predicted, true = _ids("outputs", outputs), _ids("targets", targets)
        counted = true != ignore_index
        if num_classes is None:
            if not counted.any():
                raise ValueError("num_classes must be given when no class id is counted, got None.")
            num_classes = max(1, 1 + int(torch.maximum(true, predicted)[counted].max()))
        elif num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {num_classes}.")
        _check_range("targets", true, counted, num_classes, f" or ignore_index={ignore_index}")
        _check_range("outputs", predicted, counted, num_classes)
    cell = true[counted] * num_classes + predicted[counted]  # row by row, (counted,)
    return cell.bincount(minlength=num_classes**2).reshape(num_classes, num_classes)


# ------------------------------------------------------------------ yes or no, once or many times


def threshold_accuracy(
    outputs: Tensor, targets: Tensor, *, threshold: float = 0.5, from_logits: bool = False
) -> Tensor:
    """Fraction of outputs on the right side of the threshold, in [0, 1]: two classes, one output.

    The prediction is class 1 when the probability is strictly above ``threshold``, the truth when
    the target is above 0.5: a soft target counts as the class it is nearer to, 0.5 as class 0.

    Args:
        outputs: Probabilities, floating point, any shape, usually (N, 1) or (N,).
        targets: Values in [0, 1], floating, integer or bool, of exactly the shape of ``outputs``:
            (N, 1) against (N,) would compare N x N pairs.
        threshold: A probability in [0, 1), in both cases; compared in the dtype of ``outputs``.
        from_logits: Whether ``outputs`` are before the sigmoid. Logits that happen to lie in [0, 1]
            cannot be told from probabilities: say so.

    Examples:
        >>> targets = torch.tensor([[1.0], [1.0], [0.0], [0.0]])
        >>> probabilities = torch.tensor([[0.9], [0.4], [0.1], [0.5]])  # 0.5 is not above 0.5
        >>> threshold_accuracy(probabilities, targets)  # right, wrong, right, right: 3 / 4
        tensor(0.7500)
        >>> logits = torch.tensor([[0.3], [2.0], [-1.0], [0.1]])  # above 0 is above 0.5: 3 / 4
        >>> threshold_accuracy(logits, targets, from_logits=True)
        tensor(0.7500)
    """
    counts = threshold_counts(outputs, targets, threshold=threshold, from_logits=from_logits)
    return torch.div(*counts)


def threshold_counts(
    outputs: Tensor, targets: Tensor, *, threshold: float = 0.5, from_logits: bool = False
) -> Counts:
    """(correct, counted) behind ``threshold_accuracy``."""
    return multilabel_counts(outputs, targets, threshold=threshold, from_logits=from_logits)


def multilabel_accuracy(
    outputs: Tensor,
    targets: Tensor,
    *,
    threshold: float = 0.5,
    from_logits: bool = True,
    subset: bool = False,
) -> Tensor:
    """Fraction of labels predicted right, or of samples with all labels right, in [0, 1].

    Each label is a yes or no of its own with the same weight, decided as in ``threshold_accuracy``,
    whose arguments these are, but ``outputs`` (N, C), (C,) or (N, C, d1, ...) are logits unless
    ``from_logits=False``. (Probabilities passed as logits cannot be seen: their sigmoid is never
    below 0.5.) With ``subset`` it is samples that count, right only when every label is; labels lie
    in dim 1, or dim 0 of a single sample, and none at all is a ValueError.

    Examples:
        >>> logits = torch.tensor([[2.0, -1.0, 0.5], [-3.0, 1.0, -0.5]])
        >>> targets = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]])
        >>> multilabel_accuracy(logits, targets)  # only the very last label is wrong: 5 / 6
        tensor(0.8333)
        >>> multilabel_accuracy(logits, targets, subset=True)  # the first row is all right: 1 / 2
        tensor(0.5000)
    """
    counts = multilabel_counts(
        outputs, targets, threshold=threshold, from_logits=from_logits, subset=subset
    )
    return torch.div(*counts)


def multilabel_counts(
    outputs: Tensor,
    targets: Tensor,
    *,
    threshold: float = 0.5,
    from_logits: bool = True,
    subset: bool = False,
) -> Counts:
    """(correct, counted) behind ``multilabel_accuracy``."""
    right = _on_the_right_side(outputs, targets, threshold, from_logits)
    if subset:
        shape, dim = tuple(right.shape), _class_dim(right)
        if not shape or shape[dim] == 0:
            raise ValueError(f"outputs must have a label for subset=True, got shape {shape}.")
        right = right.all(dim)
    counted = torch.full((), right.numel(), dtype=torch.int64, device=right.device)  # no copy
    return right.sum(), counted


# ------------------------------------------------------------------ the counts behind each fraction

COUNTS: dict[Callable[..., Tensor], Callable[..., Counts]] = {
    accuracy: accuracy_counts,
    error_rate: error_counts,
    threshold_accuracy: threshold_counts,
    multilabel_accuracy: multilabel_counts,
    top_k_accuracy: top_k_counts,
}


def counts_behind(metric: object) -> Callable[..., Counts] | None:
    """The counts behind one of our fractions, or behind a ``partial`` with keywords; else None."""
    if isinstance(metric, partial) and not metric.args:
        inner = counts_behind(metric.func)
        return None if inner is None else partial(inner, **metric.keywords)
    # By identity: a metric object may be unhashable, or give == a meaning of its own.
    return next((counts for ours, counts in COUNTS.items() if ours is metric), None)


# ------------------------------------------------------------------ shared steps and checks


def _class_dim(rows: Tensor) -> int:
    """Where classes (or labels) lie: dim 1, and dim 0 of a single sample."""
    return min(1, rows.ndim - 1)


def _argmax(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The first largest class of each row, and whether the row is free of NaN."""
    return rows.argmax(_class_dim(rows)), ~rows.isnan().any(_class_dim(rows))


def _true_classes(
    outputs: Tensor, targets: Tensor, ignore_index: int, *, wait: bool = False
) -> tuple[Tensor, Tensor]:
    """Check scores and targets; give true class ids (-1: none can be right) and who counts."""
    _check_tensors(outputs, targets, scores=True)
    _check_int("ignore_index", ignore_index)
    dim, shape, found = _class_dim(outputs), tuple(outputs.shape), tuple(targets.shape)
    if not shape:
        raise ValueError("outputs must have shape (N, C), (C,) or (N, C, d1, ...), got ().")
    if shape[dim] < 2:
        raise ValueError(
            f"outputs must have a column for each of at least 2 classes, got shape {shape}. "
            "The argmax over one column is always class 0: use threshold_accuracy."
        )
    if found == shape:
        if outputs.ndim == 1:
            raise ValueError(
                f"targets must have shape () for one sample with scores (C,), got both of {shape}. "
                "For one output per sample use threshold_accuracy."
            )
        if not targets.is_floating_point():
            raise TypeError(
                "targets of the shape of outputs must be floating point rows (one-hot or soft), "
                f"got {targets.dtype}. Use targets.float(), or targets.argmax(dim=1)."
            )
        if ignore_index >= 0:
            raise ValueError(
                "ignore_index must be left out when targets are rows (one-hot or soft), "
                f"got {ignore_index}."
            )
        true, clean = _argmax(targets)
        return torch.where(clean, true, -1), torch.ones_like(clean)
    expected = shape[:dim] + shape[dim + 1 :]
    if found != expected:
        one_too_many = dim == 1 and found == (shape[0], 1, *shape[2:])
        raise ValueError(
            f"targets must have shape {expected} as class ids to go with outputs {shape}"
            f"{', or the same shape as rows' if dim == 1 else ''}, got {found}."
            f"{' Use targets.squeeze(1).' if one_too_many else ''}"
        )
    true = _ids("targets", targets)
    counted = true != ignore_index
    if wait or targets.device.type == "cpu":
        _check_range("targets", true, counted, shape[dim], f" or ignore_index={ignore_index}")
    return true, counted


def _ids(name: str, ids: Tensor) -> Tensor:
    if ids.dtype not in (torch.int64, torch.uint8):
        raise TypeError(
            f"{name} must be class ids of dtype int64 or uint8, got {ids.dtype}. Use {name}.long()."
        )
    return ids.long()


def _on_the_right_side(
    outputs: Tensor, targets: Tensor, threshold: float, from_logits: bool
) -> Tensor:
    """Element by element: whether outputs and targets say the same; False where either is NaN."""
    _check_tensors(outputs, targets, scores=True)
    _check_same_shape(outputs, targets)
    if targets.is_complex():
        raise TypeError(f"targets must be floating point, integer or bool, got {targets.dtype}.")
    if not isinstance(threshold, (int, float)):
        raise TypeError(f"threshold must be a number, got {type(threshold).__name__}.")
    if not 0 <= threshold < 1:
        raise ValueError(f"threshold must be a probability in [0, 1), got {threshold!r}.")
    known = (targets >= 0) & (targets <= 1)  # False for NaN
    if targets.device.type == "cpu":
        _check_values(known, targets, "targets must be in [0, 1]")
    if outputs.device.type == "cpu" and not from_logits:
        fits = ~((outputs < 0) | (outputs > 1))  # NaN passes, and is wrong
        law = "outputs must be probabilities in [0, 1]"
        _check_values(fits, outputs, law, " Pass from_logits=True if they are raw scores.")
    probabilities = outputs.sigmoid() if from_logits else outputs
    same = (probabilities > threshold) == (targets > 0.5)
    return same & ~outputs.isnan() & known


def _check_tensors(outputs: Tensor, targets: Tensor, *, scores: bool = False) -> None:
    for name, value in (("outputs", outputs), ("targets", targets)):
        if not isinstance(value, Tensor):
            fix = f"Use torch.as_tensor({name})."
            if isinstance(value, (dict, tuple)):
                key = repr(next(iter(value), 0)) if isinstance(value, dict) else "0"
                fix = f"Pass the one that is to be scored, such as {name}[{key}]."
            raise TypeError(f"{name} must be a tensor, got {type(value).__name__}. {fix}")
    if scores and not outputs.is_floating_point():
        raise TypeError(
            f"outputs must be floating point scores, got {outputs.dtype}. "
            "Pass what the model returns, outputs first and targets second."
        )


def _check_int(name: str, value: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an int, got {value!r}.")


def _check_same_shape(outputs: Tensor, targets: Tensor) -> None:
    ours, theirs = tuple(outputs.shape), tuple(targets.shape)
    if ours == theirs:
        return
    remedy = ""
    if len(theirs) == 1 and ours == (*theirs, 1):
        remedy = " Use targets.reshape(-1, 1), or outputs.squeeze(1)."
    elif len(ours) == 1 and theirs == (*ours, 1):
        remedy = " Use targets.squeeze(1)."
    elif theirs == ours[:1] + ours[2:] and outputs.is_floating_point():
        remedy = " For class ids beside a column per class use accuracy."
    raise ValueError(
        f"targets must have the shape of outputs (they are never broadcast), got targets {theirs} "
        f"and outputs {ours}.{remedy}"
    )


def _check_range(
    name: str, ids: Tensor, counted: Tensor, num_classes: int, alternative: str = ""
) -> None:
    fits = ((ids >= 0) & (ids < num_classes)) | ~counted
    _check_values(fits, ids, f"{name} must be class ids in [0, {num_classes - 1}]{alternative}")


def _check_values(fits: Tensor, values: Tensor, law: str, remedy: str = "") -> None:
    """Raise for the first value that does not fit. Reads values: the caller minds the device."""
    if torch.compiler.is_compiling():
        return
    try:
        is_good = bool(fits.all())
    except RuntimeError:  # a batched or a fake tensor has no values to read
        return
    if not is_good:
        index = tuple((~fits).nonzero()[0].tolist())
        raise ValueError(
            f"{law}, got {values[index].item()} at index {index} "
            f"({int((~fits).sum())} of {fits.numel()} do not fit).{remedy}"
        )
