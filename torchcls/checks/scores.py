"""Whether a metric reads the outputs as the loss does, and whether it reads them at all."""

import copy
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from torchcls import heads, metrics
from torchcls.checks.contract import name_of
from torchcls.checks.findings import Finding, error, note, warning
from torchcls.checks.graph import last_executed
from torchcls.scorers import is_object
from torchcls.step import Loss

_ROWS: dict[Callable[..., Any], str] = {
    metrics.accuracy: "accuracy",
    metrics.error_rate: "accuracy",
    metrics.top_k_accuracy: "accuracy",
    metrics.confusion_matrix: "accuracy",
    metrics.threshold_accuracy: "threshold_accuracy",
    metrics.multilabel_accuracy: "multilabel_accuracy",
}
_FROM_LOGITS = {metrics.threshold_accuracy: False, metrics.multilabel_accuracy: True}


def findings_of(
    named: dict[str, Any], outputs: Any, targets: Any, loss_fn: Loss, *, is_asked: bool
) -> list[Finding]:
    """What the metrics would do with these outputs and targets.

    Args:
        named: The metrics by name.
        outputs: What the model gave, with its graph.
        targets: Targets of the form that the metrics will get.
        loss_fn: The loss, which says what the outputs are.
        is_asked: Whether objects, and functions of the user's own, may be tried out on this batch.
            In a run only functions on one output per sample are, where so much goes wrong.
    """
    if not isinstance(outputs, Tensor) or not isinstance(targets, Tensor):
        return []
    found: list[Finding] = []
    loss = name_of(loss_fn)
    with torch.no_grad(), torch.random.fork_rng([]):
        for name, metric in named.items():
            function, keywords = _unwrapped(metric)
            if function in _ROWS:
                found += _ours(name, metric, function, keywords, outputs, targets, loss)
            elif is_object(metric):
                found += _object(name, metric, outputs, targets) if is_asked else []
            else:
                found += _own(name, metric, outputs.detach(), targets, loss, is_asked)
    return found


def _unwrapped(metric: Any) -> tuple[Any, dict[str, Any]]:
    """The function behind ``functools.partial``, and the keywords bound to it."""
    keywords: dict[str, Any] = {}
    while isinstance(metric, functools.partial):
        keywords = {**metric.keywords, **keywords}
        if metric.args:
            return None, keywords
        metric = metric.func
    try:
        hash(metric)
    except TypeError:  # an object of the user's own
        return None, keywords
    return metric, keywords


# ------------------------------------------------------------------ ours


def _ours(
    name: str,
    metric: Any,
    function: Callable[..., Any],
    keywords: dict[str, Any],
    outputs: Tensor,
    targets: Tensor,
    loss: str | None,
) -> Iterator[Finding]:
    if function in _FROM_LOGITS:
        from_logits = keywords.get("from_logits", _FROM_LOGITS[function])
        wrong = _read_otherwise(name, bool(from_logits), outputs, loss)
        if wrong is not None:
            yield wrong
            return
    try:
        metric(outputs.detach(), targets)
    except (TypeError, ValueError) as refusal:
        yield error("metric-refuses", f"The metric {name} cannot score this model: {refusal}")
        return
    if loss is not None and any(loss in (h.loss_on_raw, _first(h)) for h in heads.TABLE):
        row = heads.row_of(loss, outputs)
        if row.metric != _ROWS[function]:
            of = "no metric of its own" if row.metric == "-" else row.metric
            yield note(
                "metric-of-another-row",
                f"The metric {name} belongs to another kind of target than {loss}, whose row in "
                f"torchcls.heads has {of}: fine if it is meant.",
            )


def _first(head: heads.Head) -> str:
    return head.loss_on_activated.split()[0]


def _read_otherwise(
    name: str, from_logits: bool, outputs: Tensor, loss: str | None
) -> Finding | None:
    executed = last_executed(outputs)
    done = executed.name if executed else None
    if loss in ("binary_cross_entropy_with_logits", "cross_entropy"):
        is_raw = True
    elif loss == "binary_cross_entropy" or done in ("sigmoid", "softmax"):
        is_raw = False
    else:
        return None
    if is_raw == from_logits:
        return None
    if is_raw:
        seen, cut = f"raw scores ({loss})", "0, not at 0.5 (a probability of 0.62)"
    else:
        seen, cut = "probabilities", "0.5; their sigmoid is never below it"
    return error(
        "metric-threshold",
        f"The metric {name} takes the outputs for "
        f"{'probabilities' if is_raw else 'raw scores'}, but they are {seen}, which are cut at "
        f"{cut}. Use functools.partial({name}, from_logits={is_raw}).",
    )


# ------------------------------------------------------------------ objects


def _object(name: str, metric: Any, outputs: Tensor, targets: Tensor) -> Iterator[Finding]:
    try:
        metric = copy.deepcopy(metric)
    except Exception:  # what cannot be copied cannot be tried out
        return
    try:
        if callable(getattr(metric, "to", None)):
            metric.to(outputs.device)
        metric.reset()
        metric.update(outputs.detach(), targets)
    except Exception as refusal:
        # Soft rows, as mixup makes them, may be for training alone.
        is_soft = targets.is_floating_point() and targets.ndim > 1 and targets.shape[1] > 1
        yield (note if is_soft else error)(
            "metric-refuses",
            f"The metric {name} cannot score this model: {type(refusal).__name__}: {refusal}",
        )


# ------------------------------------------------------------------ functions of the user's own


class _Watch(TorchFunctionMode):
    """Notes an argmax over one column, and samples compared with all samples."""

    def __init__(self) -> None:
        super().__init__()
        self.takes_argmax_of_one = False
        self.compares_all_with_all = False

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        name = getattr(function, "__name__", "")
        tensors = [part for part in (*args, *kwargs.values()) if isinstance(part, Tensor)]
        if name in ("argmax", "argmin", "max") and len(tensors) == 1:
            dim = kwargs.get("dim", kwargs.get("axis", args[1] if len(args) > 1 else None))
            if isinstance(dim, int) and tensors[0].ndim and tensors[0].shape[dim] == 1:
                self.takes_argmax_of_one = True
        elif len(tensors) == 2 and isinstance(result, Tensor):
            one, other = sorted(tensors, key=lambda tensor: tensor.ndim)
            n = one.numel()
            if one.shape == (n,) and other.shape == (n, 1) and result.shape == (n, n) and n > 1:
                self.compares_all_with_all = True
        return result


def _own(
    name: str, metric: Any, outputs: Tensor, targets: Tensor, loss: str | None, is_asked: bool
) -> Iterator[Finding]:
    made_up = _made_up(outputs, targets, loss)
    fault = None if made_up is None else _fault_of(metric, outputs, *made_up)
    if fault == "argmax":
        yield error(
            "metric-ignores-outputs",
            f"The metric {name} takes the argmax over 1 column, which is always class 0: it "
            "scores the share of zeros among the targets, whatever the model says. With one "
            "output use a threshold: torchcls.threshold_accuracy"
            f"{' with from_logits=True' if _takes_logits(loss) else ''}.",
        )
    elif fault == "pairs":
        n = len(outputs)
        yield error(
            "metric-broadcasts",
            f"The metric {name} compares outputs {tuple(outputs.shape)} with targets "
            f"{tuple(targets.shape)}: that is {n} x {n} comparisons, every output with every "
            f"target. Give both one shape: {_one_shape(outputs)}.",
        )
    elif made_up and _takes_logits(loss) and _cuts_at_half(metric, made_up[0]):
        yield warning(
            "metric-threshold",
            f"The metric {name} cuts the outputs at 0.5, but they are raw scores "
            f"({loss}), where 0.5 is a probability of 0.62. Cut at 0, or apply the sigmoid "
            "first.",
        )
    elif is_asked:
        value = _value(metric, outputs, targets)
        if isinstance(value, Exception):
            yield note(
                "metric-refuses",
                f"The metric {name} raises on this batch (it will get the whole split): "
                f"{type(value).__name__}: {value}",
            )


def _takes_logits(loss: str | None) -> bool:
    return loss == "binary_cross_entropy_with_logits"


def _one_shape(outputs: Tensor) -> str:
    return "targets.reshape(-1, 1)" if outputs.ndim == 2 else "targets.squeeze(1)"


def _made_up(
    outputs: Tensor, targets: Tensor, loss: str | None
) -> tuple[Tensor, Tensor, Tensor] | None:
    """Targets that take turns, outputs that are right about them, and the same for each other.

    Only for one output for each sample and targets of 0 and 1 on the CPU; else None.
    """
    n = len(outputs) if outputs.ndim else 0
    shapes = ((n,), (n, 1))
    if n < 4 or tuple(outputs.shape) not in shapes or tuple(targets.shape) not in shapes:
        return None
    if targets.device.type != "cpu" or not torch.all((targets == 0) | (targets == 1)):
        return None
    truth = torch.arange(n) // 2 % 2  # 0 0 1 1: moved by one, half of the answers are wrong
    low, high = (0.1, 0.9) if loss == "binary_cross_entropy" else (-4.0, 4.0)
    right = torch.where(truth > 0, high, low).to(outputs.dtype).reshape(outputs.shape)
    return truth.reshape(targets.shape).to(targets.dtype), right, right.roll(1, 0)


def _fault_of(
    function: Any, outputs: Tensor, targets: Tensor, right: Tensor, swapped: Tensor
) -> str | None:
    """Say why a function gives the same for right answers and for those of other samples."""
    watch = _Watch()
    with watch:
        _value(function, outputs, targets)
    if not (watch.takes_argmax_of_one or watch.compares_all_with_all):
        return None
    first, second = (_value(function, answers, targets) for answers in (right, swapped))
    # What looks at each sample's own output changes when the samples change places.
    if not _are_alike(first, second):
        return None
    if watch.compares_all_with_all:
        # A mean of differences, say, is the same over all pairs.
        paired = _value(function, right, targets.reshape(right.shape))
        return "pairs" if _are_numbers(paired) and not _are_alike(first, paired) else None
    constant = _value(function, torch.full_like(right, float(right.max())), targets)
    return "argmax" if _are_alike(first, constant) else None


def _value(function: Any, outputs: Any, targets: Tensor) -> Any:
    try:
        value = function(outputs, targets)
        return value.detach().double() if isinstance(value, Tensor) else value
    except Exception as failure:  # a whole split may be needed, or both classes
        return failure


def _are_alike(first: Any, second: Any) -> bool:
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return first.shape == second.shape and torch.allclose(first, second, rtol=1e-4, atol=1e-6)
    if isinstance(first, (int, float)) and isinstance(second, (int, float)):
        return abs(first - second) <= 1e-6 + 1e-4 * abs(second)
    return False


def _cuts_at_half(metric: Any, targets: Tensor) -> bool:
    """Whether the metric jumps between scores of 0.49 and 0.51, and nowhere else above 0."""

    def at(score: float) -> Any:
        return _value(metric, torch.where(targets > 0.5, score, -4.0), targets)

    far, above, below, near = at(4.0), at(0.51), at(0.49), at(0.01)
    is_flat = _are_alike(far, above) and _are_alike(below, near)
    return is_flat and _are_numbers(above, below) and not _are_alike(above, below)


def _are_numbers(*values: Any) -> bool:
    return all(isinstance(value, (Tensor, int, float)) for value in values)


def loss_findings(loss_fn: Loss, outputs: Any, targets: Any) -> Iterable[Finding]:
    """Whether a loss of the user's own compares every output with every target.

    It is called on copies, and only where the shapes are such that torch would broadcast them.
    """
    if name_of(loss_fn) is not None or not isinstance(outputs, Tensor):
        return
    if not isinstance(targets, Tensor) or outputs.shape == targets.shape:
        return
    with torch.no_grad(), torch.random.fork_rng([]):
        outputs = outputs.detach()
        made_up = _made_up(outputs, targets, None)
        if made_up is None:
            return
        try:
            loss_fn = copy.deepcopy(loss_fn)  # it may keep a state
        except Exception:
            return
        if _fault_of(loss_fn, outputs, *made_up) == "pairs":
            n = len(outputs)
            yield error(
                "loss-broadcasts",
                f"The loss compares outputs {tuple(outputs.shape)} with targets "
                f"{tuple(targets.shape)}: that is {n} x {n} pairs, every output with every target. "
                f"Give both one shape: {_one_shape(outputs)}.",
            )
