"""What was executed last: read off the autograd graph of the outputs.

The modules of a model do not tell: a softmax may stand inside attention, a sigmoid in a gate.
"""

import re
from collections.abc import Iterator
from math import prod
from typing import Any, NamedTuple

from torch import Tensor

# What nodes of the graph do, by their names without "Backward0".
_DOES = {
    node: does
    for does, nodes in {
        # hand values on as they are, in another place or form
        "move": """Alias AsStrided Expand Gather Index IndexSelect Narrow Permute ReshapeAlias
            Select Slice Split SplitWithSizes Squeeze T Transpose Unbind UnsafeSplit UnsafeView
            Unsqueeze View""",
        "copy": "Clone ToCopy",
        "clamp": "Clamp ClampMin ClampMax Hardtanh",
        "join": "Cat Stack",
        "sum": "Add Sub Rsub",
        "scale": "Mul Div",
        "log": "Log",
        "exp": "Exp",
        "invert": "Reciprocal",
        "softmax": "Softmax",
        "log_softmax": "LogSoftmax",
        "sigmoid": "Sigmoid Hardsigmoid",
        "log_sigmoid": "LogSigmoid",
        "relu": "Relu",
        "tanh": "Tanh",
        # nothing bounds what comes out of these
        "linear": """Addmm Mm Linear MkldnnLinear Convolution ConvolutionOverrideable
            NativeBatchNorm CudnnBatchNorm NativeLayerNorm""",
    }.items()
    for node in nodes.split()
}
_ENDS = {"softmax", "log_softmax", "sigmoid", "log_sigmoid", "relu", "tanh", "linear"}
_LOG_OR_EXP = {
    ("log", "softmax"): "log_softmax",
    ("log", "sigmoid"): "log_sigmoid",
    ("exp", "log_softmax"): "softmax",
    ("exp", "log_sigmoid"): "sigmoid",
}
_WEIGHTS = {"Addmm": 2, "Mm": 1, "Convolution": 1}  # which of their operands is the weight


class Executed(NamedTuple):
    """The last operation that gave the outputs their values."""

    name: str  # one of _ENDS, or clamp (of raw scores)
    dim: int | None = None  # of the outputs, over which a softmax went; None where nobody can tell
    is_of_one: bool = False  # whether a softmax of torch's went over an axis of length 1


def last_executed(outputs: Tensor) -> Executed | None:
    """Tell what was executed last, through views, copies and casts; None for anything else."""
    return _executed(outputs.grad_fn, outputs.ndim, depth=0)


def _kind(node: Any) -> str:
    """What a node of torch's own does; a function of the user's own keeps its whole name."""
    return re.sub(r"Backward\d$", "", type(node).__name__)


def _executed(node: Any, ndim: int | None, depth: int) -> Executed | None:
    """Walk back from a node; ``ndim`` is None where its axes are not those of the outputs."""
    does = _DOES.get(_kind(node), "")
    if depth > 50 or not does:
        return None
    if does in _ENDS:
        weight = _WEIGHTS.get(_kind(node))
        if weight is not None and not _is_trained_weight(node.next_functions[weight][0]):
            return None  # a mixture by known shares, a table of log-probabilities
        dim = _signed(getattr(node, "_saved_dim", None)) if "softmax" in does else None
        is_of_one = dim is not None and _shape(node)[dim:][:1] == (1,)
        return Executed(does, _axis(dim, ndim), is_of_one)
    by_hand = _put_together(node)
    if by_hand is not None:
        return Executed(by_hand[0], _axis(by_hand[1], ndim))
    parts = [part for part, _ in node.next_functions if part is not None]
    keeps_axes = does not in ("move", "join") and len(parts) == 1
    behind = [_executed(part, ndim if keeps_axes else None, depth + 1) for part in parts]
    inner = behind[0] if behind else None
    if inner is None or does in ("move", "copy"):
        return inner
    if (does, inner.name) in _LOG_OR_EXP:
        return Executed(_LOG_OR_EXP[does, inner.name], inner.dim)
    if does == "clamp" and inner.name == "linear":
        return Executed("clamp")
    if does in ("clamp", "sum") and len(parts) == 1:
        # 1 - p is a probability as p is, and so, but for the rounding, is p + 1e-9.
        return inner if inner.name in ("softmax", "sigmoid", "linear") else None
    are_alike = all(other is not None and other.name == inner.name for other in behind)
    if are_alike and (does == "join" or (does in ("sum", "scale") and inner.name == "linear")):
        return Executed(inner.name)
    return None


def _put_together(node: Any) -> tuple[str, int | None] | None:
    """What was put together from exp, log, sums and division, and the axis that was summed over."""
    kind = _kind(node)
    first, second = [*(part for part, _ in node.next_functions), None, None][:2]
    total = _sum_in(second)
    if kind == "Div" and _kind(first) == "Exp" and _kind(_before(total)) == "Exp":
        return "softmax", _only(total)
    if kind == "Sub" and _kind(second) == "Log" and total is not None:
        return "log_softmax", _only(total)
    if kind == "Sub" and _kind(second) == "Logsumexp":
        return "log_softmax", _only(second)
    if kind == "Sub" and _kind(second) == "Log1P" and _kind(_before(second)) == "Exp":
        return "log_sigmoid", None
    if kind == "Mul" and second is None and _kind(first) == "Reciprocal":
        node, kind = first, "Reciprocal"  # 1 / x is reciprocal(x) * 1
    denominator: Any = {"Div": second, "Reciprocal": _before(node)}.get(kind)
    if _kind(denominator) == "Add":
        terms = [term for term, _ in denominator.next_functions if term is not None]
        if len(terms) == 1 and _kind(terms[0]) == "Exp":
            return "sigmoid", None
    return None


def _is_trained_weight(node: Any) -> bool:
    """Whether this is a parameter as it stands, turned or cast at most."""
    while _DOES.get(_kind(node)) in ("move", "copy"):
        node = _before(node)
    return _kind(node) == "AccumulateGrad"


def _before(node: Any) -> Any:
    return node.next_functions[0][0] if node is not None and node.next_functions else None


def _sum_in(node: Any) -> Any:
    """The sum that a node is, behind a logarithm, a reshape or a small number added; else None."""
    while _DOES.get(_kind(node)) in ("move", "clamp", "log", "sum"):
        if sum(part is not None for part, _ in node.next_functions) != 1:
            return None  # a sum of two tensors
        node = _before(node)
    return node if _kind(node) == "Sum" else None


def _only(total: Any) -> int | None:
    """The one axis that a sum went over."""
    dims: tuple[int, ...] = getattr(total, "_saved_dim", ())
    return _signed(dims[0]) if len(dims) == 1 else None


def _shape(node: Any) -> tuple[int, ...]:
    """The shape of what a node gave."""
    metadata = getattr(node, "_input_metadata", ())
    return tuple(metadata[0].shape) if metadata else ()


def _signed(dim: int | None) -> int | None:
    """Autograd keeps -1 as an unsigned number."""
    return dim - (1 << 64) if dim is not None and dim >= 1 << 63 else dim


def _axis(dim: int | None, ndim: int | None) -> int | None:
    return None if dim is None or ndim is None else dim % ndim


def was_written_into_last_axis(outputs: Tensor) -> bool:
    """Whether a linear layer gave the outputs, but for their shape: its features come last."""
    node: Any = outputs.grad_fn
    while "View" in _kind(node):
        node = _before(node)
    return _kind(node) in ("Addmm", "Mm", "Linear")


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
    """Whether batch statistics were taken over one value for each of n samples."""
    shapes = [
        _shape(node)
        for node in nodes(outputs)
        if "BatchNorm" in _kind(node) and getattr(node, "_saved_training", True)
    ]
    return any(len(shape) > 1 and shape[0] == n and prod(shape[2:]) == 1 for shape in shapes)


def ran_exp(outputs: Tensor) -> bool:
    """Whether an exponential was taken on the way, which overflows above 88 in float32."""
    return any(_kind(node) == "Exp" for node in nodes(outputs))


def leaves(loss: Tensor) -> list[Tensor]:
    """Every tensor that a loss has gradients for."""
    return [node.variable for node in nodes(loss) if _kind(node) == "AccumulateGrad"]
