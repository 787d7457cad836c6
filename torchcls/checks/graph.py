"""What was executed last: read off the autograd graph of a model's output.

Neither the modules that a model contains nor the order in which they are registered tell that: a
softmax may stand inside attention, a sigmoid in a gate. The graph holds what really happened.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod
from typing import Any

from torch import Tensor

# Operations that hand values on as they are, in another place or form.
_MOVES = {
    "AliasBackward0",
    "AsStridedBackward0",
    "ExpandBackward0",
    "GatherBackward0",
    "IndexBackward0",
    "IndexSelectBackward0",
    "NarrowBackward0",
    "PermuteBackward0",
    "ReshapeAliasBackward0",
    "SelectBackward0",
    "SliceBackward0",
    "SplitBackward0",
    "SplitWithSizesBackward0",
    "SqueezeBackward0",
    "SqueezeBackward1",
    "SqueezeBackward2",
    "TBackward0",
    "TransposeBackward0",
    "UnbindBackward0",
    "UnsafeSplitBackward0",
    "UnsafeViewBackward0",
    "UnsqueezeBackward0",
    "ViewBackward0",
}
# These keep the place too. A probability stays one where it is clamped; a raw score may become one.
_COPIES = {"CloneBackward0", "ToCopyBackward0"}
_CLAMPS = {"ClampBackward1", "ClampMinBackward0", "ClampMaxBackward0"}
_JOINS = {"CatBackward0", "StackBackward0"}
_SUMS = {"AddBackward0", "SubBackward0", "RsubBackward1"}
_SCALES = {"MulBackward0", "DivBackward0"}
_LOGS_AND_EXPS = {
    "LogBackward0": {"softmax": "log_softmax", "sigmoid": "log_sigmoid"},
    "ExpBackward0": {"log_softmax": "softmax", "log_sigmoid": "sigmoid"},
}

_NAMES = {
    "SoftmaxBackward0": "softmax",
    "LogSoftmaxBackward0": "log_softmax",
    "SigmoidBackward0": "sigmoid",
    "HardsigmoidBackward0": "sigmoid",
    "LogSigmoidBackward0": "log_sigmoid",
    "ReluBackward0": "relu",
    "TanhBackward0": "tanh",
    "HardtanhBackward0": "clamp",
    # Nothing bounds what comes out of these.
    "AddmmBackward0": "linear",
    "MmBackward0": "linear",
    "LinearBackward0": "linear",
    "MkldnnLinearBackward0": "linear",
    "ConvolutionBackward0": "linear",
    "ConvolutionOverrideableBackward0": "linear",
    "NativeBatchNormBackward0": "linear",
    "CudnnBatchNormBackward0": "linear",
    "NativeLayerNormBackward0": "linear",
}
# Which of their operands is the weight.
_WEIGHTS = {"AddmmBackward0": 2, "MmBackward0": 1, "ConvolutionBackward0": 1}
_BATCH_NORMS = {"NativeBatchNormBackward0", "CudnnBatchNormBackward0", "MiopenBatchNormBackward0"}


@dataclass(frozen=True)
class Executed:
    """The last operation that gave the outputs their values.

    Attributes:
        name: softmax, log_softmax, sigmoid, log_sigmoid, relu, tanh, clamp (of raw scores) or
            linear (any layer whose outputs nothing bounds).
        dim: Over which axis of the outputs a softmax went; None where that cannot be told.
        is_moved: Whether its result was sliced, reshaped or turned afterwards.
        by_hand: Whether it was put together from exp, sum and division.
        is_of_one: Whether a softmax of torch's went over an axis of length 1.
    """

    name: str
    dim: int | None = None
    is_moved: bool = False
    by_hand: bool = False
    is_of_one: bool = field(default=False, repr=False)


def last_executed(outputs: Tensor) -> Executed | None:
    """Tell what was executed last, through views, copies and casts; None for anything else.

    Example:
        >>> import torch
        >>> logits = torch.nn.Linear(2, 3)(torch.zeros(4, 2))
        >>> last_executed(logits.softmax(-1))
        Executed(name='softmax', dim=1, is_moved=False, by_hand=False)
        >>> last_executed(logits[:, :1].sigmoid().squeeze(1)).name
        'sigmoid'
        >>> last_executed(logits * logits.sigmoid()) is None
        True
    """
    if outputs.grad_fn is None:
        return None
    return _executed(outputs.grad_fn, outputs.ndim, is_moved=False, depth=0)


def _executed(node: Any, ndim: int, *, is_moved: bool, depth: int) -> Executed | None:
    if node is None or depth > 50:
        return None
    kind = type(node).__name__
    if kind in _NAMES:
        if kind in _WEIGHTS and not _is_trained_weight(node.next_functions[_WEIGHTS[kind]][0]):
            return None  # a mixture by known shares, a table of log-probabilities
        dim = getattr(node, "_saved_dim", None) if "Softmax" in kind else None
        is_of_one = dim is not None and _length(node, dim) == 1
        return Executed(_NAMES[kind], _axis(dim, ndim, is_moved), is_moved, is_of_one=is_of_one)

    def behind(part: Any, is_moved: bool = is_moved) -> Executed | None:
        return _executed(part, ndim, is_moved=is_moved, depth=depth + 1)

    parts = [part for part, _ in node.next_functions if part is not None]
    if kind in _MOVES | _COPIES and parts:
        return behind(parts[0], is_moved or kind in _MOVES)
    if kind in _LOGS_AND_EXPS and parts:
        inner = behind(parts[0])
        name = _LOGS_AND_EXPS[kind].get(inner.name) if inner else None
        return Executed(name, inner.dim, inner.is_moved, by_hand=True) if inner and name else None
    by_hand = _put_together(node, ndim, is_moved)
    if by_hand is not None:
        return by_hand
    if len(parts) == 1 and kind in _CLAMPS | _SUMS:
        # 1 - p is a probability as p is, and so, but for the rounding, is p + 1e-9.
        inner = behind(parts[0])
        if inner and inner.name == "linear" and kind in _CLAMPS:
            return Executed("clamp", None, inner.is_moved)
        return inner if inner and inner.name in ("softmax", "sigmoid", "linear") else None
    if kind not in _JOINS | _SUMS | _SCALES:
        return None
    names = {inner.name if inner else None for inner in (behind(part, True) for part in parts)}
    name = names.pop() if len(names) == 1 else None
    return Executed(name, None, True) if name and (kind in _JOINS or name == "linear") else None


def _put_together(node: Any, ndim: int, is_moved: bool) -> Executed | None:
    """A softmax, its logarithm or a sigmoid put together from exp, log, sums and division."""
    kind = type(node).__name__
    first, second = [*(part for part, _ in node.next_functions), None, None][:2]
    if kind == "DivBackward0" and _is(first, "Exp") and _is(_before(_sum_in(second)), "Exp"):
        dim = _axis(_only(_sum_in(second)), ndim, is_moved)
        return Executed("softmax", dim, is_moved, by_hand=True)
    if kind == "SubBackward0" and _is(second, "LogBackward") and _is(_sum_in(second), "Sum"):
        dim = _axis(_only(_sum_in(second)), ndim, is_moved)
        return Executed("log_softmax", dim, is_moved, by_hand=True)
    if kind == "SubBackward0" and _is(second, "Logsumexp"):
        return Executed("log_softmax", _axis(_only(second), ndim, is_moved), is_moved, by_hand=True)
    if kind == "SubBackward0" and _is(second, "Log1P") and _is(_before(second), "Exp"):
        return Executed("log_sigmoid", None, is_moved, by_hand=True)
    if kind == "MulBackward0" and second is None and _is(first, "Reciprocal"):
        node, kind = first, "ReciprocalBackward0"  # 1 / x is reciprocal(x) * 1
    denominator: Any = {"DivBackward0": second, "ReciprocalBackward0": _before(node)}.get(kind)
    if _is(denominator, "AddBackward"):
        terms = [term for term, _ in denominator.next_functions if term is not None]
        if len(terms) == 1 and _is(terms[0], "Exp"):
            return Executed("sigmoid", None, is_moved, by_hand=True)
    return None


def _is_trained_weight(node: Any) -> bool:
    """Whether this is a parameter as it stands, turned or cast at most."""
    while type(node).__name__ in _MOVES | _COPIES:
        node = _before(node)
    return _is(node, "AccumulateGrad")


def _is(node: Any, name: str) -> bool:
    return type(node).__name__.startswith(name)


def _before(node: Any) -> Any:
    return node.next_functions[0][0] if node is not None and node.next_functions else None


def _sum_in(node: Any) -> Any:
    """The sum that a node is, behind a logarithm, a reshape or a small number added; else None."""
    passed = _MOVES | _CLAMPS | {"LogBackward0", "AddBackward0"}
    while type(node).__name__ in passed:
        if sum(part is not None for part, _ in node.next_functions) != 1:
            return None  # a sum of two tensors
        node = _before(node)
    return node if _is(node, "SumBackward") else None


def _only(total: Any) -> int | None:
    """The one axis that a sum went over."""
    dims: tuple[int, ...] = getattr(total, "_saved_dim", ())
    return dims[0] if len(dims) == 1 else None


def _length(node: Any, dim: int) -> int | None:
    metadata = getattr(node, "_input_metadata", ())
    shape = metadata[0].shape if metadata else ()
    return shape[dim - (1 << 64) if dim >= 1 << 63 else dim] if shape else None


def _axis(dim: int | None, ndim: int, is_moved: bool) -> int | None:
    if dim is None or is_moved:
        return None
    if dim >= 1 << 63:  # autograd keeps -1 as an unsigned number
        dim -= 1 << 64
    return dim + ndim if dim < 0 else dim


def nodes(outputs: Tensor) -> Iterator[Any]:
    """Every node of the graph behind a tensor, each once."""
    seen, left = set(), [outputs.grad_fn]
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        left.extend(following for following, _ in node.next_functions)


def normalises_single_values(outputs: Tensor, n: int) -> bool:
    """Whether batch statistics were taken over one value for each of n samples: one is too few.

    So by ``BatchNorm1d`` behind a linear layer, and by ``BatchNorm2d`` over 1 x 1 pixels.
    """
    for node in nodes(outputs):
        if type(node).__name__ in _BATCH_NORMS and getattr(node, "_saved_training", True):
            metadata = getattr(node, "_input_metadata", ())
            shape: tuple[int, ...] = tuple(metadata[0].shape) if metadata else ()
            if len(shape) > 1 and shape[0] == n and prod(shape[2:]) == 1:
                return True
    return False


def ran_exp(outputs: Tensor) -> bool:
    """Whether an exponential was taken on the way, which overflows above 88 in float32."""
    return any(_is(node, "ExpBackward0") for node in nodes(outputs))
