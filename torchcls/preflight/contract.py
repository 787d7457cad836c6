"""Whether outputs, targets and loss fit each other: what the table in ``heads`` lays down."""

import math
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from torchcls import heads
from torchcls.heads import KnownLoss
from torchcls.preflight import targets as of_targets
from torchcls.preflight.findings import Finding, error, note, warning
from torchcls.preflight.graph import Executed, last_executed, nodes
from torchcls.preflight.reading import bounds, describe, dtype_of, span
from torchcls.step import Loss


def findings_of(inputs: Any, targets: Any, outputs: Any, loss_fn: Loss) -> list[Finding]:
    """Everything that one step shows about outputs, targets and loss."""
    loss = heads.named(loss_fn)
    found = [] if loss is None else [*_form(inputs, targets, outputs, loss)]
    if not isinstance(outputs, Tensor):
        return found
    if not found and loss is not None and isinstance(targets, Tensor):
        found += of_targets.findings_of(outputs, targets, loss)
    if not any(finding.code == "one-output" for finding in found) and not outputs.is_complex():
        found += _head(outputs, targets, loss)
    return found


# ------------------------------------------------------------------ kinds and numbers of samples


def _form(inputs: Any, targets: Any, outputs: Any, loss: KnownLoss) -> Iterator[Finding]:
    if not isinstance(outputs, Tensor):
        gives = f"{loss} needs one tensor of outputs, but the model gives {describe(outputs)}."
        yield error("output-form", gives + _how_to_pick(outputs))
    elif not (outputs.is_floating_point() or outputs.is_complex()):
        seen = f"The model gives {dtype_of(outputs)} where {loss} needs scores as floats."
        fix = "Leave out what makes whole numbers of them (argmax, a comparison)."
        yield error("output-form", f"{seen} {fix}")
    if not isinstance(targets, Tensor):
        yield error("target-form", _how_to_number(targets, loss))
    elif isinstance(outputs, Tensor):
        yield from _lengths(inputs, outputs, targets)


def _how_to_pick(outputs: Any) -> str:
    fix = " Return one of them, or pick it: forward=lambda model, inputs: "
    kind = next((kind for kind in (tuple, list, dict) if isinstance(outputs, kind)), None)
    if kind in (tuple, list) and outputs and isinstance(outputs[0], Tensor):
        one = "out[0]"
    elif kind is dict and outputs:
        one = f"out[{'logits' if 'logits' in outputs else next(iter(outputs))!r}]"
    elif isinstance(getattr(outputs, "logits", None), Tensor):
        return f"{fix}getattr(out := model(inputs), 'logits', out)."
    else:
        return ""
    # Some models give several outputs in training and one in evaluation.
    return f"{fix}{one} if isinstance(out := model(inputs), {kind.__name__}) else out."


def _how_to_number(targets: Any, loss: KnownLoss) -> str:
    names = targets.tolist() if hasattr(targets, "tolist") else targets  # of numpy, pandas
    names = [names] if isinstance(names, str) else names
    if isinstance(names, (tuple, list)) and names and all(isinstance(n, str) for n in names):
        some = ", ".join(map(repr, sorted(set(names))[:3]))
        seen = f"The targets are strings ({some}), but {loss} needs numbers."
        return f"{seen} Make ids of a sorted list of names: names.index(label)."
    needs = f"{loss} needs the targets as one tensor, got {describe(targets)}."
    return f"{needs} Make it where the data is read: torch.as_tensor(targets)."


def _lengths(inputs: Any, outputs: Tensor, targets: Tensor) -> Iterator[Finding]:
    if not targets.ndim or (outputs.ndim and len(outputs) == len(targets)):
        return
    shape = tuple(inputs.shape) if isinstance(inputs, Tensor) else ()
    if outputs.ndim and shape[:1] == (len(outputs),):
        seen = f"There are {shape[0]} inputs but {len(targets)} targets in a batch."
        fix = "Look at how the labels were read (a lost header or first row?)."
        yield error("target-shape", f"{seen} {fix}")
        return
    fix = "Their first axes must be the samples."
    if len(shape) == 3 and shape[0] == len(targets):  # read as one image
        fix = f"Add the channel axis: inputs.unsqueeze(1), giving {(shape[0], 1, *shape[1:])}."
    seen = f"The model gives outputs of shape {tuple(outputs.shape)} for {len(targets)} targets."
    yield error("output-shape", f"{seen} {fix}")


# ------------------------------------------------------------------ the last activation


def _head(outputs: Tensor, targets: Any, loss: KnownLoss | None) -> Iterator[Finding]:
    executed = last_executed(outputs)
    if executed is None or not _values_agree(outputs, executed):
        yield from () if loss is None else _by_value(outputs, loss)
    elif executed.is_of_one and outputs.numel() > 1:
        always = "1" if executed.name == "softmax" else "0"
        seen = f"The model ends in a {executed.name} over one output, which is always {always}."
        fix = "Use a sigmoid for one output, or give the last layer one output for each class."
        yield error("one-output", f"{seen} {fix}")
    elif _is_over_wrong_axis(outputs, targets, executed, loss):
        over = "the samples of the batch" if executed.dim == 0 else f"axis {executed.dim}"
        shape = tuple(outputs.shape)
        seen = f"{executed.name}(dim={executed.dim}) normalises outputs {shape} over {over}."
        yield error("wrong-axis", f"{seen} Use dim=1, the axis of the classes.")
    elif loss is not None and loss.kind.within is not None:
        yield from _within(outputs, executed.name, loss, loss.kind.within)
    elif loss is not None and loss.kind.before is not None:
        yield from _before(outputs, executed.name, loss, loss.kind.before)


_RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("softmax", "sigmoid"), (-1e-3, 1 + 1e-3)),
    **dict.fromkeys(("log_softmax", "log_sigmoid"), (-math.inf, 1e-3)),
    "tanh": (-1, 1),
    "relu": (0, math.inf),
}


def _values_agree(outputs: Tensor, executed: Executed) -> bool:
    """Whether the values are such as the operation gives; on an accelerator nobody asks."""
    found = bounds(outputs)
    if found is None:
        return True
    if not outputs.detach().isfinite().all():
        return executed.name == "linear"
    low, high = _RANGES.get(executed.name, (-math.inf, math.inf))
    return low <= found[0] and found[1] <= high


def _is_over_wrong_axis(
    outputs: Tensor, targets: Any, executed: Executed, loss: KnownLoss | None
) -> bool:
    if executed.dim in (None, 1) or "softmax" not in executed.name or outputs.ndim < 2:
        return False
    if loss is not None:
        return "ids" in loss.kind.targets
    # With a loss of one's own only what cannot be meant: class ids, and a softmax over samples.
    if not isinstance(targets, Tensor) or targets.is_floating_point():
        return False
    n, k = outputs.shape[:2]
    may_be_samples = k in (1, n)  # scores of a list, as in ranking; both axes samples
    has_ids = outputs.ndim == 2 and targets.shape == (n,)
    return executed.dim == 0 and has_ids and not may_be_samples


# What comes of an activation that the loss applies another to. Of log_sigmoid before a softmax
# there is none: sums of logarithms may be meant.
_EFFECTS = {
    ("softmax", "sigmoid"): "so no probability falls below 0.5 or rises above 0.73",
    ("sigmoid", "sigmoid"): "so no probability falls below 0.5 or rises above 0.73",
    ("log_softmax", "sigmoid"): "so no probability rises above 0.5",
    ("log_sigmoid", "sigmoid"): "so no probability rises above 0.5",
    ("relu", "sigmoid"): "so no probability falls below 0.5",
    ("tanh", "sigmoid"): "so probabilities stay within 0.27 and 0.73",
    ("relu", "softmax"): "so a class whose outputs are all 0 gets no gradient",
    ("tanh", "softmax"): "so no class can get a probability near 1",
}


def _within(outputs: Tensor, done: str, loss: KnownLoss, within: str) -> Iterator[Finding]:
    """The model activates, and so does the loss."""
    effect = _EFFECTS.get((done, within))
    if within == "softmax" and done in ("softmax", "sigmoid"):
        # The smallest loss that probabilities can reach where raw scores are wanted.
        classes = outputs.shape[1] if outputs.ndim > 1 else len(outputs)
        floor = math.log(1 + (classes - 1) / math.e)
        effect = f"so the loss cannot fall below {floor:.3f} for {classes} classes"
    if (done, within) == ("log_softmax", "softmax"):
        seen = f"The model ends in log_softmax, and {loss} takes it once more: harmless."
        yield note("redundant-log-softmax", seen)
    elif effect and done in ("relu", "tanh"):
        needs = f"{loss} needs raw scores: remove the {done} behind the last layer."
        yield warning("bounded-outputs", f"The model ends in a {done}, {effect}. {needs}")
    elif effect:
        seen = f"The model ends in a {done}, but {loss} applies the {within} itself, {effect}."
        yield error("activated-twice", f"{seen} Remove the {done} from the model.")


def _before(outputs: Tensor, done: str, loss: KnownLoss, before: str) -> Iterator[Finding]:
    """The loss needs an activation that the model does not have."""
    is_log = before == "log_softmax"
    if done in (("log_softmax", "log_sigmoid") if is_log else ("sigmoid", "softmax")):
        return
    low, high = bounds(outputs) or (0.5, 0.5)
    if done == "clamp" and (is_log or low < 0 or high > 1):
        yield from _by_value(outputs, loss)
    elif done == "clamp":
        if low == 0 or high == 1:
            seen = "The model clamps raw scores: beyond the bounds there is no gradient."
            fix = f"{loss} needs probabilities: use BCEWithLogitsLoss, or a Sigmoid for the clamp."
            yield warning("not-probabilities", f"{seen} {fix}")
    elif not is_log:
        what = "raw scores" if done == "linear" else f"what comes out of a {done}"
        yield _no_probabilities(outputs, loss, f"the model gives {what}")
    else:
        needs = f"{loss} needs log-probabilities, but the model gives"
        seen, fix = f"{needs} probabilities.", "Use log_softmax(dim=1)."
        if done not in ("softmax", "sigmoid"):
            seen = f"{needs} raw scores{span(outputs)}, so the loss falls without limit."
            fix = "Add LogSoftmax(dim=1), or use CrossEntropyLoss for class ids."
        yield error("not-log-probabilities", f"{seen} {fix}")


def _no_probabilities(outputs: Tensor, loss: KnownLoss, what: str) -> Finding:
    seen = f"{loss} needs probabilities, but {what}{span(outputs)}."
    fix = "Use BCEWithLogitsLoss on raw scores, or add a Sigmoid."
    return error("not-probabilities", f"{seen} {fix}")


def _by_value(outputs: Tensor, loss: KnownLoss) -> Iterator[Finding]:
    """Values that no probability and no logarithm of one has; read on the CPU only."""
    low, high = bounds(outputs) or (0, 0)
    if loss.kind.before == "sigmoid" and (low < 0 or high > 1):
        yield _no_probabilities(outputs, loss, "the outputs are none")
    elif loss.kind.before == "log_softmax" and math.isfinite(high) and high > 1e-2:
        seen = f"{loss} needs log-probabilities, never above 0, but the outputs are{span(outputs)}."
        fix = "Use CrossEntropyLoss on raw scores, or add LogSoftmax(dim=1)."
        # Weighted by an advantage or a margin they may be what is meant.
        has_log = any("LogSoftmax" in type(node).__name__ for node in nodes(outputs))
        yield (note if has_log else warning)("not-log-probabilities", f"{seen} {fix}")
