"""Whether a metric reads the outputs as the loss does, and whether it reads them at all."""

import contextlib
import copy
import functools
import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from torchcls import heads
from torchcls.evaluation import is_object
from torchcls.heads import Head, KnownLoss
from torchcls.preflight.findings import Finding, error, note, warning
from torchcls.preflight.graph import last_executed
from torchcls.preflight.reading import consists_of, drawing_nothing, is_readable
from torchcls.step import Loss


def copies_of(named: dict[str, Any]) -> dict[str, Any]:
    """The metrics to try out: what cannot be copied is left out."""
    copies: dict[str, Any] = {}
    for name, metric in named.items():
        with contextlib.suppress(Exception):
            copies[name] = copied = copy.deepcopy(metric)
            for part in copied.modules() if isinstance(copied, nn.Module) else [copied]:
                if hasattr(part, "distributed_available_fn"):  # torchmetrics would wait for others
                    part.distributed_available_fn = lambda: False
    return copies


def findings_of(
    copies: dict[str, Any],
    outputs: Any,
    targets: Any,
    loss_fn: Loss,
    *,
    is_asked: bool = True,
    shown: Any = None,
) -> list[Finding]:
    """What copies of the metrics, by name, would do with these outputs and targets.

    Functions of the user's own are tried out on one output per sample, where so much goes wrong,
    and objects with ``is_asked``. Where ``outputs`` have no graph, that of ``shown`` tells the last
    activation.
    """
    if not isinstance(outputs, Tensor) or not isinstance(targets, Tensor):
        return []
    found: list[Finding] = []
    loss = heads.named(loss_fn)
    with torch.no_grad(), drawing_nothing(outputs.device):
        for name, metric in copies.items():
            row = _row_of(metric)
            found += _ignores_alike(name, metric, row, loss)
            if row is not None:
                are_raw = _are_raw(outputs if shown is None else shown, loss)
                said = _wrong_threshold(name, metric, are_raw)
                found += said or _ours(name, metric, row, outputs, targets, loss)
            elif not is_object(metric):
                found += _own(name, metric, outputs.detach(), targets, loss)
            elif is_asked:
                found += _object(name, metric, outputs.detach(), targets)
    return found


def _row_of(metric: Any) -> Head | None:
    """The row of one of our metrics, by identity: an object may define equality."""
    while isinstance(metric, functools.partial) and not metric.args:
        metric = metric.func
    return next((row for row in heads.TABLE if any(metric is one for one in row.metrics)), None)


def _wrong_threshold(name: str, metric: Any, are_raw: bool | None) -> list[Finding]:
    option = inspect.signature(metric).parameters.get("from_logits")  # of a partial: what it binds
    if option is None or are_raw is not (not option.default):
        return []
    takes, are = ("raw scores", "probabilities")[:: 1 if option.default else -1]
    seen = f"The metric {name} takes the outputs for {takes}, but they are {are}."
    fix = f"Use functools.partial({name}, from_logits={not option.default})."
    return [error("metric-threshold", f"{seen} {fix}")]


def _ours(
    name: str, metric: Any, row: Head, outputs: Tensor, targets: Tensor, loss: KnownLoss | None
) -> Iterator[Finding]:
    try:
        metric(outputs.detach(), targets)
    except (TypeError, ValueError) as refusal:
        yield error("metric-refuses", f"The metric {name} cannot score this model: {refusal}")
        return
    rows = None if loss is None else heads.row_of(loss.name, outputs)
    if rows is not None and rows is not row:
        seen = f"The metric {name} belongs to another kind of target than {loss}"
        say = warning if row.decision == "argmax" and _are_of_several(targets) else note
        yield say("metric-of-another-row", f"{seen}, which has {rows.metric or 'none'}.")


def _are_of_several(targets: Tensor) -> bool:
    """Whether some row is of several classes or of none, which no argmax can say."""
    if targets.ndim < 2 or not targets.is_floating_point() or not is_readable(targets):
        return False
    is_one = ((targets > 0.5).sum(1) == 1) | ((targets.sum(1) - 1).abs() < 1e-2)  # smoothed, mixed
    return not bool(is_one.all())


def _ignores_alike(
    name: str, metric: Any, row: Head | None, loss: KnownLoss | None
) -> Iterator[Finding]:
    """Whether loss and metric leave out the same class."""
    ignored = loss.options["ignore_index"] if loss and "ids" in loss.kind.targets else -1
    theirs = getattr(metric, "ignore_index", ignored)
    if row is not None and "ignore_index" in (known := inspect.signature(metric).parameters):
        theirs = known["ignore_index"].default
    if ignored >= 0 and theirs != ignored:
        seen = f"The loss leaves out targets that are {ignored}, but the metric {name} counts them."
        yield warning("metric-ignore-index", f"{seen} Give it ignore_index={ignored}, too.")


def _are_raw(outputs: Any, loss: KnownLoss | None) -> bool | None:
    """Whether outputs are raw scores or probabilities; None where nobody can tell."""
    if loss is not None and (loss.kind.within or loss.kind.before == "sigmoid"):
        return loss.kind.within is not None
    executed = last_executed(outputs) if isinstance(outputs, Tensor) else None
    return False if executed is not None and executed.name in ("sigmoid", "softmax") else None


def _object(name: str, metric: Any, outputs: Tensor, targets: Tensor) -> Iterator[Finding]:
    try:
        if callable(getattr(metric, "to", None)):
            metric.to(outputs.device)
        metric.reset()
        metric.update(outputs, targets)
    except Exception as refusal:
        # Soft rows, as mixup makes them, may be for training alone.
        is_soft = targets.is_floating_point() and targets.ndim > 1 and targets.shape[1] > 1
        why = f"The metric {name} cannot score this model: {type(refusal).__name__}: {refusal}"
        yield (note if is_soft else error)("metric-refuses", why)


class _Watch(TorchFunctionMode):
    """Notes an argmax over one column, and samples compared with all samples."""

    takes_argmax_of_one = compares_all_with_all = False

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        tensors = [part for part in (*args, *kwargs.values()) if isinstance(part, Tensor)]
        if getattr(function, "__name__", "") in ("argmax", "argmin", "max") and len(tensors) == 1:
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
    name: str, metric: Any, outputs: Tensor, targets: Tensor, loss: KnownLoss | None
) -> Iterator[Finding]:
    takes_logits = loss is not None and loss.kind.within == "sigmoid"
    made_up = _made_up(outputs, targets, loss)
    fault = None if made_up is None else _fault_of(metric, outputs, *made_up)
    if fault == "argmax":
        seen = f"The metric {name} takes the argmax over 1 column, which is always class 0."
        share = "That is the share of zeros among the targets."
        use = f"threshold_accuracy{' with from_logits=True' if takes_logits else ''}"
        yield error("metric-ignores-outputs", f"{seen} {share} Use torchcls.{use}.")
    elif fault == "pairs":
        yield error("metric-broadcasts", f"The metric {name} compares {_pairs(outputs, targets)}")
    elif made_up and takes_logits and _cuts_at_half(metric, made_up[0]):
        seen = f"The metric {name} cuts raw scores at 0.5, which is a probability of 0.62."
        yield warning("metric-threshold", f"{seen} Cut at 0, or apply the sigmoid first.")


def loss_findings(loss_fn: Loss, outputs: Any, targets: Any) -> Iterator[Finding]:
    """Whether a loss of the user's own compares every output with every target.

    A copy is called, and only where the shapes are such that torch would broadcast them.
    """
    are_tensors = isinstance(outputs, Tensor) and isinstance(targets, Tensor)
    if heads.named(loss_fn) is not None or not are_tensors or outputs.shape == targets.shape:
        return
    outputs = outputs.detach()
    made_up = _made_up(outputs, targets, None)
    if made_up is None:
        return
    try:
        loss_fn = copy.deepcopy(loss_fn)  # it may keep a state
    except Exception:
        return
    with torch.no_grad(), drawing_nothing():
        fault = _fault_of(loss_fn, outputs, *made_up)
    if fault == "pairs":
        yield error("loss-broadcasts", f"The loss compares {_pairs(outputs, targets)}")


def _pairs(outputs: Tensor, targets: Tensor) -> str:
    shapes = f"outputs {tuple(outputs.shape)} with targets {tuple(targets.shape)}"
    fix = "targets.reshape(-1, 1)" if outputs.ndim == 2 else "targets.squeeze(1)"
    return f"{shapes}: that is {len(outputs)} x {len(outputs)} pairs. Give both one shape: {fix}."


def _made_up(
    outputs: Tensor, targets: Tensor, loss: KnownLoss | None
) -> tuple[Tensor, Tensor, Tensor] | None:
    """Targets that take turns, answers that are right about them, and those of other samples."""
    n = len(outputs) if outputs.ndim else 0
    shapes = ((n,), (n, 1))
    if n < 4 or tuple(outputs.shape) not in shapes or tuple(targets.shape) not in shapes:
        return None  # where so much goes wrong: one output for each sample, and 0 or 1
    if not consists_of(targets, 0, 1):
        return None
    truth = (
        torch.arange(n, device=outputs.device) // 2 % 2
    )  # 0 0 1 1: moved by one, half of the answers are wrong
    is_shown = loss is not None and loss.kind.before == "sigmoid"
    low, high = (0.1, 0.9) if is_shown else (-4.0, 4.0)
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
        return "pairs" if _is_number(paired) and not _are_alike(first, paired) else None
    constant = _value(function, torch.full_like(right, float(right.max())), targets)
    return "argmax" if _are_alike(first, constant) else None


def _value(function: Any, outputs: Any, targets: Tensor) -> Any:
    try:
        value = function(outputs, targets)
        return value.detach().double() if isinstance(value, Tensor) else value
    except Exception as failure:  # a whole split may be needed, or both classes
        return failure


def _are_alike(first: Any, second: Any) -> bool:
    if not _is_number(first) or not _is_number(second):
        return False
    first, second = (torch.as_tensor(v, device="cpu").double() for v in (first, second))
    return first.shape == second.shape and torch.allclose(first, second, rtol=1e-4, atol=1e-6)


def _is_number(value: Any) -> bool:
    return isinstance(value, (Tensor, int, float))


def _cuts_at_half(metric: Any, targets: Tensor) -> bool:
    """Whether the metric jumps between scores of 0.49 and 0.51, and nowhere else above 0."""
    far, above, below, near = (
        _value(metric, torch.where(targets > 0.5, score, -4.0), targets)
        for score in (4.0, 0.51, 0.49, 0.01)
    )
    is_flat = _are_alike(far, above) and _are_alike(below, near)
    return is_flat and not _are_alike(above, below)
