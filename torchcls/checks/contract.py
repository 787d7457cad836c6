"""Whether outputs, targets and loss fit each other: what the table in ``heads`` lays down."""

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchcls import heads
from torchcls.checks.findings import Finding, error, note, warning
from torchcls.checks.graph import Executed, last_executed
from torchcls.losses import recognise
from torchcls.step import Loss, Seen

_CLASS_LOSSES = ("cross_entropy", "nll_loss")
_BERNOULLI_LOSSES = ("binary_cross_entropy", "binary_cross_entropy_with_logits")
# Losses of torch outside the table, by what they do to their inputs.
_OTHER_LOSSES: tuple[tuple[type[nn.Module], str], ...] = (
    (nn.MultiLabelSoftMarginLoss, "multilabel_soft_margin_loss"),
    (nn.KLDivLoss, "kl_div"),
    (nn.SmoothL1Loss, "smooth_l1_loss"),
    (nn.HuberLoss, "huber_loss"),
    (nn.L1Loss, "l1_loss"),
)
_NEED_FLOATS = (*_BERNOULLI_LOSSES, "kl_div", "huber_loss")  # torch raises for whole numbers


def name_of(loss_fn: Loss) -> str | None:
    """The name of a loss in ``torch.nn.functional``; None for one of the user's own."""
    known = recognise(loss_fn)
    if known is not None:
        return known.name
    if isinstance(loss_fn, functools.partial):
        return None if loss_fn.args else name_of(loss_fn.func)
    return next(
        (
            name
            for kind, name in _OTHER_LOSSES
            if type(loss_fn) is kind or loss_fn is getattr(F, name)
        ),
        None,
    )


@dataclass(frozen=True)
class Named:
    """A loss that is known: its name in ``torch.nn.functional``, and what the user calls it."""

    name: str
    called: str

    def __str__(self) -> str:
        return self.called


def named(loss_fn: Loss) -> Named | None:
    """Name a loss; None for one of the user's own.

    Example:
        >>> named(nn.BCELoss())
        Named(name='binary_cross_entropy', called='BCELoss')
    """
    name = name_of(loss_fn)
    if name is None:
        return None
    return Named(name, type(loss_fn).__name__ if isinstance(loss_fn, nn.Module) else name)


def findings_of(seen: Seen, loss_fn: Loss) -> list[Finding]:
    """Everything that one step shows about outputs, targets and loss."""
    loss = named(loss_fn)
    found = [*_form(seen, loss)]
    if not found and isinstance(seen.outputs, Tensor) and isinstance(seen.targets, Tensor):
        found += _targets(seen.outputs, seen.targets, loss_fn, loss)
    if isinstance(seen.outputs, Tensor) and not any(f.code == "one-output" for f in found):
        found += _head(seen, loss)
    return found


def options_of(loss_fn: Loss) -> Iterator[Finding]:
    """What is wrong with the options of a loss, before anything runs."""
    known = recognise(loss_fn)
    if known is None:
        return
    smoothing = known.options["label_smoothing"]
    if not 0 <= smoothing <= 1:
        percent = f" Write {smoothing / 100:g} for {smoothing:g} %." if 1 < smoothing <= 100 else ""
        yield error(
            "label-smoothing",
            f"label_smoothing must lie in [0, 1], got {smoothing!r}.{percent}",
        )
    for option in ("weight", "pos_weight"):
        weight = known.options[option]
        if isinstance(weight, Tensor) and weight.device.type == "cpu":
            bad = ~(weight >= 0) | weight.isinf()
            if bad.any():
                yield error(
                    "loss-weight",
                    f"The {option} of the loss must be finite and not below 0, "
                    f"got {weight[bad][0].item():g}.",
                )
            elif option == "weight" and not weight.any():
                yield error("loss-weight", "The weight of the loss is 0 everywhere: set it above.")


# ------------------------------------------------------------------ kinds and numbers of samples


def _form(seen: Seen, loss: Named | None) -> Iterator[Finding]:
    outputs, targets = seen.outputs, seen.targets
    if loss is not None and not isinstance(outputs, Tensor):
        yield error("output-form", _how_to_pick(outputs, loss))
    elif loss is not None and not (outputs.is_floating_point() or outputs.is_complex()):
        yield error(
            "output-form",
            f"The model gives {_kind(outputs)} where {loss} needs scores as floats: nothing can "
            "be learned through whole numbers. Leave out what makes them (argmax, .long(), a "
            "comparison); decide after training.",
        )
    if loss is not None and not isinstance(targets, Tensor):
        yield error("target-form", _how_to_number(targets, loss))
    if isinstance(outputs, Tensor) and isinstance(targets, Tensor):
        yield from _lengths(seen.inputs, outputs, targets, loss)


def _how_to_pick(outputs: Any, loss: Named) -> str:
    one = ""
    if isinstance(outputs, (tuple, list)) and outputs and isinstance(outputs[0], Tensor):
        one = "outputs[0]"
    elif isinstance(getattr(outputs, "logits", None), Tensor):
        one = "outputs.logits"
    elif isinstance(outputs, dict):
        keys = [key for key, part in outputs.items() if isinstance(part, Tensor) and part.ndim]
        key = "logits" if "logits" in keys else next(iter(keys), None)
        one = f"outputs[{key!r}]" if keys else ""
    fix = f" Pick one: loss_fn=lambda outputs, targets: F.{loss.name}({one}, targets)."
    needs = f"{loss} needs one tensor of outputs, but the model gives {_a(outputs)}."
    return needs + (fix if one else "")


def _a(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)}"
    return "None" if value is None else f"one {type(value).__name__}"


def _how_to_number(targets: Any, loss: Named) -> str:
    names = targets.tolist() if isinstance(targets, np.ndarray) and targets.ndim == 1 else targets
    names = [names] if isinstance(names, str) else names
    if isinstance(names, (tuple, list)) and names and all(isinstance(n, str) for n in names):
        some = ", ".join(map(repr, sorted(set(names))[:3]))
        return (
            f"The targets are strings ({some}), but {loss} needs numbers. Make ids of a sorted "
            "list of names where the data is read: names.index(label)."
        )
    fix = "Convert them where the data is read: torch.as_tensor(targets)."
    if isinstance(targets, dict):
        fix = "Pick one where the data is read."
    return (
        f"{loss} needs the targets as one tensor, got {_a(targets)}."
        f"{'' if targets is None else ' ' + fix}"
    )


def _lengths(
    inputs: Any, outputs: Tensor, targets: Tensor, loss: Named | None
) -> Iterator[Finding]:
    # A loss of one's own may take one row for several outputs, as pairs and triplets do.
    if loss is None or not targets.ndim or (outputs.ndim and len(outputs) == len(targets)):
        return
    given = len(inputs) if isinstance(inputs, Tensor) and inputs.ndim else None
    if outputs.ndim and given == len(outputs):
        yield error(
            "target-shape",
            f"There are {given} inputs but {len(targets)} targets in a batch: they do not belong "
            "together. Look at how the labels were read (a lost header or first row?).",
        )
        return
    why = ""
    if isinstance(inputs, Tensor) and inputs.ndim == 3 and given == len(targets):
        why = (
            " The model read the images as one: add the channel axis with "
            f"inputs.unsqueeze(1), giving {(given, 1, *inputs.shape[1:])}."
        )
    yield error(
        "output-shape",
        f"The model gives outputs of shape {tuple(outputs.shape)} for {len(targets)} targets: "
        f"their first axes must be the samples.{why}",
    )


# ------------------------------------------------------------------ targets


def _targets(outputs: Tensor, targets: Tensor, loss_fn: Loss, loss: Named | None) -> list[Finding]:
    if loss is None:
        return []
    if loss.name in _CLASS_LOSSES:
        known = recognise(loss_fn)
        assert known is not None
        found = list(_class_targets(outputs, targets, loss, known.options["ignore_index"]))
        return found or list(_class_weights(outputs, known.options["weight"]))
    return [*_same_shape(outputs, targets, loss), *_element_weights(outputs, loss_fn)]


def _class_targets(
    outputs: Tensor, targets: Tensor, loss: Named, ignore_index: int
) -> Iterator[Finding]:
    shape, found = tuple(outputs.shape), tuple(targets.shape)
    one = _one_output(outputs, targets, loss)
    if one is not None:
        yield error("one-output", one)
        return
    if outputs.ndim < 2:
        return  # one sample alone: torch says what is wrong with it
    ids = (shape[0], *shape[2:])
    squeezed = found == (shape[0], 1, *shape[2:])
    if targets.is_floating_point():
        if found == shape and loss.name == "cross_entropy":
            yield from _rows(targets)
        elif found == ids or squeezed:
            squeeze = ".squeeze(1)" if squeezed else ""
            fix = f"Use targets{squeeze}.long()."
            if not _is_whole(targets):
                fix = "These are no class ids: look at how the labels were read."
            yield error(
                "target-dtype",
                f"The targets are {_kind(targets)}{_few(targets)}, but {loss} needs class ids as "
                f"int64. {fix}",
            )
        elif found == shape:
            yield error(
                "target-dtype",
                f"The targets are rows of {_kind(targets)}, but {loss} needs class ids as int64. "
                "Use targets.argmax(1), or CrossEntropyLoss on raw scores, which takes rows.",
            )
        else:
            yield _other_shape(outputs, targets, loss)
    elif found == ids:
        if targets.dtype not in (torch.int64, torch.uint8):
            yield error(
                "target-dtype",
                f"The targets are {_kind(targets)}, but {loss} needs int64. Use targets.long().",
            )
        yield from class_range(targets, shape[1], ignore_index)
        yield from _classes_in_last_axis(outputs)
    elif found == shape and _are_multi_hot(targets):
        yield error(
            "target-dtype",
            f"The targets look multi-hot {found}: a row holds several classes or none, but {loss} "
            "takes one for each sample. Use BCEWithLogitsLoss with targets.float().",
        )
    elif found == shape:
        use = "targets.argmax(1)"
        if loss.name == "cross_entropy":
            use = "targets.float() (probabilities) or targets.argmax(1) (class ids)"
        yield error(
            "target-dtype",
            f"The targets look one-hot {found} but are {_kind(targets)}. Use {use}.",
        )
    elif squeezed:
        long = "" if targets.dtype == torch.int64 else ".long()"
        yield error(
            "target-shape",
            f"The targets have shape {found}, but class ids must have {ids} beside outputs "
            f"{shape}. Use targets.squeeze(1){long}.",
        )
    else:
        yield _other_shape(outputs, targets, loss)


def _one_output(outputs: Tensor, targets: Tensor, loss: Named) -> str | None:
    is_one = outputs.ndim == 1 and targets.ndim > 0 and len(outputs) == len(targets)
    if not is_one and not (outputs.ndim >= 2 and outputs.shape[1] == 1):
        return None
    if outputs.ndim > 2 and targets.ndim == 1 and outputs.numel() > len(outputs):
        return None  # their axes are wrong before their number of classes is
    floats = "" if targets.is_floating_point() else ".float()"
    column = ".reshape(-1, 1)" if targets.ndim == 1 and outputs.ndim == 2 else ""
    change = f" with targets{floats}{column}" if floats or column else ""
    ids = "" if targets.ndim == 1 and floats else " and class ids as int64 (n,)"
    effect = "is always 0 and teaches nothing"
    if is_one:
        effect = "takes the samples for the classes of one sample"
    elif loss.name == "nll_loss":
        effect = "has one class alone to choose from and teaches nothing"
    return (
        f"{loss} over one output (outputs {tuple(outputs.shape)}) {effect}. "
        f"Use BCEWithLogitsLoss{change}, or give the last layer one output for each class{ids}."
    )


def _other_shape(outputs: Tensor, targets: Tensor, loss: Named) -> Finding:
    shape, found = tuple(outputs.shape), tuple(targets.shape)
    if len(shape) > 2 and found == shape[:-1]:
        return error(
            "wrong-axis",
            f"{loss} reads the classes from axis 1, but the outputs {shape} beside targets {found} "
            "have them in the last one. Use outputs.movedim(-1, 1).",
        )
    rows = f", or {shape} as rows of probabilities" if loss.name == "cross_entropy" else ""
    hint = ""
    if len(found) == 2 and found[0] == shape[0] and len(shape) == 2:
        hint = f" The last layer has {shape[1]} outputs; rows of {found[1]} need as many."
    elif len(shape) > 2 and found == (shape[0], *shape[2:], shape[1]):
        floats = "" if targets.is_floating_point() else ".float()"
        hint = f" Use targets.argmax(-1), or targets.movedim(-1, 1){floats} for rows."
    elif len(shape) > 2 and found == shape[:1] and math.prod(shape[2:]) == 1:
        hint = f" Use outputs.flatten(1), giving {shape[:2]}."
    elif len(shape) == 4 and found == shape[:1]:
        hint = (
            " For one class for each sample bring the outputs to (n, classes), as "
            "nn.AdaptiveAvgPool2d(1) and nn.Flatten() do with maps."
        )
    return error(
        "target-shape",
        f"The targets have shape {found}, but beside outputs {shape} {loss} needs "
        f"{(shape[0], *shape[2:])} as class ids{rows}.{hint}",
    )


def class_range(targets: Tensor, num_classes: int, ignore_index: int) -> Iterator[Finding]:
    """Whether class ids lie within 0..k-1; reads tensors on the CPU only."""
    if targets.device.type != "cpu" or targets.numel() == 0:
        return
    counted = targets[targets.long() != ignore_index]
    if counted.numel() == 0:
        return
    low, high = (int(bound) for bound in counted.aminmax())
    if low >= 0 and high < num_classes:
        return
    if low == 1 and high == num_classes:
        fix = "Subtract 1: targets - 1."
    elif high < num_classes and low < 0 and (counted[counted < 0] == low).all():
        fix = f"If {low} marks what does not count, say ignore_index={low} to the loss."
    elif high == 255 and low == 0 and ((counted == 0) | (counted == 255)).all():
        fix = (
            "Use targets // 255 for a mask of pixels, or say ignore_index=255 to the loss if 255 "
            "marks what does not count."
        )
    elif (counted[counted >= num_classes] == high).all() and low >= 0 and high in (254, 255):
        fix = f"If {high} marks what does not count, say ignore_index={high} to the loss."
    elif low >= num_classes > high - low:
        fix = "Number the classes from 0, as targets - targets.min() over all of them does."
    elif low >= 0:
        fix = f"Give the last layer {high + 1} outputs, or number the classes from 0."
    else:
        fix = "Number the classes from 0."
    yield error(
        "target-range",
        f"The targets run from {low} to {high}, but {num_classes} outputs mean class ids 0 to "
        f"{num_classes - 1}. {fix}",
    )


def _rows(targets: Tensor) -> Iterator[Finding]:
    if targets.device.type != "cpu" or targets.numel() == 0 or not targets.isfinite().all():
        return
    if targets.min() < 0:
        yield warning(
            "row-sums",
            f"Rows of targets should be probabilities, got {targets.min().item():g}.",
        )
        return
    sums = targets.sum(1)
    # A row of zeros counts for nothing, which some people mean.
    bad = ((sums - 1).abs() > 1e-2) & (sums != 0)
    if bad.any():
        yield warning(
            "row-sums",
            f"Rows of targets should sum to 1 for cross_entropy, got {sums[bad][0].item():g} "
            f"({int(bad.sum())} of {bad.numel()} rows). For several classes at once use "
            "BCEWithLogitsLoss; for weights divide each row by its sum.",
        )


def _class_weights(outputs: Tensor, weight: Any) -> Iterator[Finding]:
    is_wide = isinstance(weight, Tensor) and weight.dtype == torch.float64
    if is_wide and outputs.dtype == torch.float32:
        yield error("loss-weight", "The weight of the loss is float64: use weight.float().")
    if isinstance(weight, Tensor) and not weight.is_floating_point():
        yield error(
            "loss-weight",
            f"The weight of the loss must be floats, got {_kind(weight)}: use weight.float().",
        )
    if isinstance(weight, Tensor) and outputs.ndim >= 2 and weight.numel() != outputs.shape[1]:
        yield error(
            "loss-weight",
            f"The loss has weights for {weight.numel()} classes, but the model has "
            f"{outputs.shape[1]} outputs. Give one weight for each output.",
        )


def _element_weights(outputs: Tensor, loss_fn: Loss) -> Iterator[Finding]:
    """Weights that have more numbers than the outputs: torch raises, or broadcasts the loss."""
    known = recognise(loss_fn)
    for option in ("weight", "pos_weight") if known is not None else ():
        weight = known.options[option] if known is not None else None
        if not isinstance(weight, Tensor):
            continue
        shape, found = tuple(outputs.shape), tuple(weight.shape)
        one_each = all(
            ours in (1, full) for ours, full in zip(found[::-1], shape[::-1], strict=False)
        )
        if len(found) > len(shape) or not one_each:
            only = " One output takes one pos_weight: that of the 1." if shape[1:] == (1,) else ""
            yield error(
                "loss-weight",
                f"The {option} of the loss has shape {found}, which does not go with outputs "
                f"{shape}.{only if option == 'pos_weight' else ''}",
            )


def _classes_in_last_axis(outputs: Tensor) -> Iterator[Finding]:
    """A linear layer writes its features into the last axis; torch reads classes from axis 1.

    Only where the two are of one length does nobody else notice.
    """
    if outputs.ndim == 3 and outputs.shape[1] == outputs.shape[2] and outputs.grad_fn is not None:
        names = []
        node: Any = outputs.grad_fn
        while node is not None and "View" in type(node).__name__:
            node = node.next_functions[0][0]
        names.append(type(node).__name__)
        if names[-1] in ("AddmmBackward0", "MmBackward0", "LinearBackward0"):
            yield warning(
                "wrong-axis",
                f"The classes are read from axis 1 of the outputs {tuple(outputs.shape)}, but a "
                "linear layer wrote them into the last one. Use outputs.movedim(-1, 1).",
            )


def _same_shape(outputs: Tensor, targets: Tensor, loss: Named) -> Iterator[Finding]:
    shape, found = tuple(outputs.shape), tuple(targets.shape)
    if shape != found:
        floats = "" if targets.is_floating_point() else ".float()"
        if len(found) == 1 and shape == (*found, 1):
            fix = f"Use targets{floats}.reshape(-1, 1), or outputs.squeeze(1)."
        elif len(shape) == 1 and found == (*shape, 1):
            fix = f"Use targets.squeeze(1){floats}."
        elif len(shape) > 2 and shape == (found[0], 1, *found[1:]):
            fix = f"Use targets{floats}.unsqueeze(1)."
        elif len(shape) == 2 and shape[1] > 1 and found == (shape[0], 1):
            fix = (
                "Class ids go with CrossEntropyLoss and targets.squeeze(1).long(); for one number "
                "for each sample give the last layer one output."
            )
        elif outputs.numel() == targets.numel():
            fix = f"Use targets{floats}.reshape({', '.join(map(str, (-1, *shape[1:])))})."
        elif found == shape[:1] + shape[2:] and len(shape) > 1:
            rows = "torchcls.one_hot(targets, k)" if len(shape) == 2 else "one-hot rows"
            fix = (
                f"Class ids go with CrossEntropyLoss; {loss} needs {rows}.float() of the shape "
                "of the outputs."
            )
        else:
            fix = "Give the last layer one output for each number in a target."
        yield error(
            "target-shape",
            f"{loss} compares number with number, so the targets must have the shape of the "
            f"outputs, got targets {found} and outputs {shape}. {fix}",
        )
    elif not targets.is_floating_point() and loss.name in _NEED_FLOATS:
        yield error(
            "target-dtype",
            f"The targets are {_kind(targets)}, but {loss} needs floats. Use targets.float()"
            f"{' / 255' if _is_mask(targets) else ''}.",
        )
    elif loss.name in _BERNOULLI_LOSSES and targets.is_floating_point():
        yield from probability_range(targets, loss)


def probability_range(targets: Tensor, loss: Named) -> Iterator[Finding]:
    """Whether targets of a yes or no lie in [0, 1]; reads tensors on the CPU only."""
    if targets.device.type != "cpu" or targets.numel() == 0 or targets.isnan().any():
        return
    low, high = (bound.item() for bound in targets.aminmax())
    if low >= -1e-4 and high <= 1 + 1e-4:  # rounding, as of a smoothed target
        return
    is_two = bool(((targets == low) | (targets == high)).all())
    if low == -1 and high == 1 and is_two:
        fix = "Use (targets + 1) / 2 for -1 and 1."
    elif low == 1 and high == 2 and is_two:
        fix = "Use targets - 1 for 1 and 2."
    elif low < 0 and high <= 1 and (targets[targets < 0] == low).all():
        fix = (
            f"If {low:g} marks what does not count, leave it out in a loss of your own, since "
            f"{loss} has no ignore_index."
        )
    elif low >= 0 and 100 < high <= 255:
        fix = "Use targets / 255 for a mask of pixels."
    elif low >= 0 and not (targets % 1).any():
        fix = "Class ids go with CrossEntropyLoss and one output for each class."
    else:
        fix = "Scale them."
    yield error(
        "target-range",
        f"The targets of {loss} must lie in [0, 1], got {low:g} to {high:g}: beyond it the loss "
        f"falls without limit. {fix}",
    )


def _is_mask(targets: Tensor) -> bool:
    """Whether these are pixels of 0 and 255."""
    if targets.device.type != "cpu" or targets.dtype == torch.bool:
        return False
    return bool((targets == 255).any() and ((targets == 0) | (targets == 255)).all())


def _is_whole(targets: Tensor) -> bool:
    return targets.device.type != "cpu" or bool((targets == targets.trunc()).all())


def _are_multi_hot(targets: Tensor) -> bool:
    if targets.device.type != "cpu" or targets.numel() == 0:
        return False
    are_hot = ((targets == 0) | (targets == 1)).all()
    return bool(are_hot and (targets.long().sum(1) != 1).any())


def _kind(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _few(targets: Tensor) -> str:
    if targets.device.type != "cpu" or targets.numel() == 0:
        return ""
    few = targets.flatten()[:1000].unique()[:3].tolist()
    return f" ({', '.join(map(str, few))})"


# ------------------------------------------------------------------ the head


def _head(seen: Seen, loss: Named | None) -> Iterator[Finding]:
    outputs = seen.outputs
    if outputs.is_complex():
        return
    executed = last_executed(outputs)
    if executed is not None and not _values_agree(outputs, executed):
        executed = None
    if executed is not None and executed.is_of_one and outputs.numel() > 1:
        always = "1" if executed.name == "softmax" else "0"
        yield error(
            "one-output",
            f"The model ends in a {executed.name} over one output (outputs "
            f"{tuple(outputs.shape)}), which is always {always}, whatever the model says. Use a "
            "sigmoid for one output, or give the last layer one output for each class.",
        )
        return
    if executed is not None and executed.dim is not None:
        wrong = _wrong_axis(outputs, seen.targets, executed, loss)
        if wrong is not None:
            yield wrong
            return
    if loss is not None and executed is None:
        yield from _by_value(outputs, loss)
    if loss is None or executed is None:
        return
    if loss.name == "multilabel_soft_margin_loss":
        within: str | None = "sigmoid"
    else:
        within = heads.activation_within(loss.name)
    before = "log_softmax" if loss.name == "kl_div" else heads.activation_before(loss.name)
    if within is not None:
        yield from _within(outputs, executed, loss, within)
    elif before == "log_softmax" and executed.name not in ("log_softmax", "log_sigmoid"):
        yield from _no_log_probabilities(outputs, executed, loss)
    elif before == "sigmoid" and executed.name not in ("sigmoid", "softmax"):
        yield from _no_probabilities(outputs, executed, loss)


def _values_agree(outputs: Tensor, executed: Executed) -> bool:
    """Whether the values are such as the operation gives; on an accelerator nobody asks."""
    if outputs.device.type != "cpu" or outputs.numel() == 0:
        return True
    values = outputs.detach()
    if not values.isfinite().all():
        return executed.name == "linear"
    low, high = values.aminmax()
    if executed.name in ("softmax", "sigmoid"):
        return bool(low >= -1e-3 and high <= 1 + 1e-3)
    if executed.name in ("log_softmax", "log_sigmoid"):
        return bool(high <= 1e-3)
    if executed.name == "tanh":
        return bool(low >= -1 and high <= 1)
    return executed.name != "relu" or bool(low >= 0)


def _wrong_axis(
    outputs: Tensor, targets: Any, executed: Executed, loss: Named | None
) -> Finding | None:
    assert executed.dim is not None
    if executed.name not in ("softmax", "log_softmax") or outputs.ndim < 2 or executed.dim == 1:
        return None
    call = executed.name if executed.by_hand else executed.name.title().replace("_", "")
    if loss is None or loss.name not in _CLASS_LOSSES:
        # With a loss of one's own only what cannot be meant: class ids, and a softmax over samples.
        has_ids = isinstance(targets, Tensor) and not targets.is_floating_point()
        is_square = outputs.shape[0] == outputs.shape[1]  # both axes may be samples
        is_square |= outputs.shape[1] == 1  # scores of a list, as in ranking
        if loss is not None or executed.dim != 0 or outputs.ndim != 2 or is_square or not has_ids:
            return None
        if targets.shape != outputs.shape[:1]:
            return None
    over = "the samples of the batch" if executed.dim == 0 else f"axis {executed.dim}"
    return error(
        "wrong-axis",
        f"{call}(dim={executed.dim}) normalises the outputs {tuple(outputs.shape)} over {over}, "
        "not over the classes, which are in axis 1. Use dim=1.",
    )


def _within(outputs: Tensor, executed: Executed, loss: Named, within: str) -> Iterator[Finding]:
    done = executed.name
    if done == "log_softmax" and within == "softmax":
        yield note(
            "redundant-log-softmax",
            f"The model ends in log_softmax, and {loss} takes it once more: harmless (it is its "
            "own log_softmax), and may be left out.",
        )
    elif done in ("softmax", "sigmoid", "log_sigmoid", "log_softmax"):
        if done == "log_sigmoid" and within == "softmax":
            return  # sums of log-probabilities may be meant
        floor = _floor(outputs, done, within)
        yield error(
            "activated-twice",
            f"The model ends in a {done}, but {loss} applies the {within} itself{floor}. "
            f"Remove the {done} from the model.",
        )
    elif done in ("relu", "tanh"):
        values = "below 0" if done == "relu" else "outside -1 and 1"
        effect = {
            ("relu", "sigmoid"): "so no probability falls below 0.5",
            ("tanh", "sigmoid"): "so probabilities stay within 0.27 and 0.73",
            ("relu", "softmax"): "so a class whose outputs are all 0 gets no gradient",
            ("tanh", "softmax"): "so no class can get a probability near 1",
        }[done, within]
        yield warning(
            "bounded-outputs",
            f"The model ends in a {done}: no output is {values}, {effect}. "
            f"{loss} needs raw scores: remove the {done} behind the last layer.",
        )


def _floor(outputs: Tensor, done: str, within: str) -> str:
    """The smallest loss that probabilities can reach where raw scores are wanted."""
    if within == "softmax" and done in ("softmax", "sigmoid"):
        classes = outputs.shape[1] if outputs.ndim > 1 else len(outputs)
        floor = math.log(1 + (classes - 1) / math.e)
        return f", so the loss cannot fall below {floor:.3f} for {classes} classes"
    if done in ("softmax", "sigmoid"):
        return ", so no probability falls below 0.5 or rises above 0.73"
    return ", so no probability rises above 0.5"


def _by_value(outputs: Tensor, loss: Named) -> Iterator[Finding]:
    """Values that no probability and no logarithm of one has; read on the CPU only."""
    if outputs.device.type != "cpu" or outputs.numel() == 0:
        return
    low, high = outputs.detach().aminmax()
    if loss.name == "binary_cross_entropy" and bool((low < 0) | (high > 1)):
        yield error(
            "not-probabilities",
            f"{loss} needs probabilities, but the outputs are none{_span(outputs)}. "
            "Use BCEWithLogitsLoss on raw scores, or add a Sigmoid.",
        )
    elif loss.name == "nll_loss" and math.isfinite(high) and high > 1e-2:
        yield warning(
            "not-log-probabilities",
            f"{loss} needs log-probabilities, which are never above 0, but the outputs are"
            f"{_span(outputs)}. Use CrossEntropyLoss on raw scores, or add LogSoftmax(dim=1).",
        )


def _no_log_probabilities(outputs: Tensor, executed: Executed, loss: Named) -> Iterator[Finding]:
    use = "CrossEntropyLoss" if loss.name == "nll_loss" else "log_softmax at the end"
    if executed.name in ("softmax", "sigmoid"):
        yield error(
            "not-log-probabilities",
            f"{loss} needs log-probabilities, but the model ends in a {executed.name}, which gives "
            "probabilities. Use log_softmax(dim=1) in its place, or raw scores and "
            f"{use}.",
        )
    elif executed.name == "clamp":
        yield from _by_value(outputs, loss)
    else:
        yield error(
            "not-log-probabilities",
            f"{loss} needs log-probabilities, but the model gives raw scores{_span(outputs)}, so "
            f"the loss falls without limit. Use {use}, or add LogSoftmax(dim=1).",
        )


def _no_probabilities(outputs: Tensor, executed: Executed, loss: Named) -> Iterator[Finding]:
    if executed.name == "clamp":
        yield from _clamped(outputs, loss)
        return
    if executed.name in ("log_softmax", "log_sigmoid"):
        what = "log-probabilities"
    elif executed.name == "linear":
        what = "raw scores"
    else:
        what = f"what comes out of a {executed.name}"
    yield error(
        "not-probabilities",
        f"{loss} needs probabilities, but the model gives {what}{_span(outputs)}. "
        "Use BCEWithLogitsLoss on raw scores, or add a Sigmoid.",
    )


def _clamped(outputs: Tensor, loss: Named) -> Iterator[Finding]:
    if outputs.device.type != "cpu" or outputs.numel() == 0:
        return
    low, high = outputs.detach().aminmax()
    if low < 0 or high > 1:
        yield from _by_value(outputs, loss)
    elif bool(low == 0) or bool(high == 1):
        yield warning(
            "not-probabilities",
            f"{loss} needs probabilities, but the model clamps raw scores{_span(outputs)}: beyond "
            "the bounds there is no gradient. Use BCEWithLogitsLoss on raw scores, or a Sigmoid in "
            "place of the clamp.",
        )


def _span(outputs: Tensor) -> str:
    if outputs.device.type != "cpu" or outputs.numel() == 0:
        return ""
    low, high = outputs.detach().aminmax()
    return f" ({low.item():.3g} to {high.item():.3g})"
