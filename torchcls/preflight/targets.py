"""Whether targets and the options of a loss fit the outputs: forms, shapes, dtypes and ranges."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from torchcls import heads
from torchcls.heads import KnownLoss
from torchcls.preflight.findings import Finding, error, note, warning
from torchcls.preflight.graph import was_written_into_last_axis
from torchcls.preflight.reading import bounds, consists_of, dtype_of, is_readable


def findings_of(outputs: Tensor, targets: Tensor, loss: KnownLoss) -> Iterator[Finding]:
    """Whether the targets, and the weights of a loss, go with the outputs."""
    by_class = "ids" in loss.kind.targets
    found = [*(_class_targets if by_class else _same_shape)(outputs, targets, loss)]
    yield from found or _weights(outputs, targets, loss)


def in_range(targets: Tensor, outputs: Tensor, loss: KnownLoss | None) -> Iterator[Finding]:
    """Whether all of some targets lie in the range that the loss has for these outputs."""
    if loss is None or not isinstance(outputs, Tensor) or outputs.ndim < 1:
        return
    if targets.is_floating_point():
        if loss.kind.targets == "in [0, 1]":
            yield from _probabilities(targets, loss)
    elif "ids" in loss.kind.targets and outputs.ndim == targets.ndim + 1 > 1 < outputs.shape[1]:
        yield from class_range(targets, outputs.shape[1], loss.options["ignore_index"])


# ------------------------------------------------------------------ class ids and rows


def _class_targets(outputs: Tensor, targets: Tensor, loss: KnownLoss) -> Iterator[Finding]:
    if (one := _one_output(outputs, targets, loss)) is not None:
        yield one
        return
    if outputs.ndim < 2:  # one sample alone: torch says what is wrong with it
        return
    shape, found = tuple(outputs.shape), tuple(targets.shape)
    n, k, *axes = shape
    form = {(n, *axes): "ids", (n, 1, *axes): "column", shape: "rows"}.get(found)
    are_floats = targets.is_floating_point()
    if form is None:
        yield _other_shape(outputs, targets, loss)
    elif form == "ids" and not are_floats:
        # torch takes uint8 as well, but only one for each sample.
        if targets.dtype != torch.int64 and (targets.dtype != torch.uint8 or axes):
            what = f"The targets are {dtype_of(targets)}, but {loss} needs int64."
            yield error("target-dtype", f"{what} Use targets.long().")
        yield from class_range(targets, k, loss.options["ignore_index"])
        # A linear layer writes its features into the last axis; torch reads classes from axis 1.
        # Only where the two are of one length does nobody else notice.
        if axes == [k] and was_written_into_last_axis(outputs):
            seen = (
                f"A linear layer wrote the classes of {shape} into the last axis; axis 1 is read."
            )
            yield note("wrong-axis", f"{seen} Use outputs.movedim(-1, 1).")
    elif form == "rows" and are_floats and "rows" in loss.kind.targets:
        yield from _rows(targets)
    elif form == "column" and not are_floats:
        long = "" if targets.dtype == torch.int64 else ".long()"
        seen = f"The targets have shape {found}, but as class ids they must have {(n, *axes)}."
        yield error("target-shape", f"{seen} Use targets.squeeze(1){long}.")
    else:
        yield error("target-dtype", _wrong_kind(targets, form, loss))


def _wrong_kind(targets: Tensor, form: str, loss: KnownLoss) -> str:
    dtype, needs_ids = dtype_of(targets), f"but {loss} needs class ids as int64."
    if form != "rows":
        fix, few = f"Use targets{'.squeeze(1)' if form == 'column' else ''}.long().", ""
        if is_readable(targets):
            few = f" ({', '.join(map(str, targets.flatten()[:1000].unique()[:3].tolist()))})"
            if not (targets == targets.trunc()).all():
                fix = "These are no class ids: look at how the labels were read."
        return f"The targets are {dtype}{few}, {needs_ids} {fix}"
    if targets.is_floating_point():
        fix = "Use targets.argmax(1), or CrossEntropyLoss on raw scores, which takes rows."
        return f"The targets are rows of {dtype}, {needs_ids} {fix}"
    if consists_of(targets, 0, 1) and (targets.long().sum(1) != 1).any():
        seen = f"The targets look multi-hot, but {loss} takes one class for each sample."
        return f"{seen} Use BCEWithLogitsLoss with targets.float()."
    rows = "targets.float() (probabilities) or " if "rows" in loss.kind.targets else ""
    return f"The targets look one-hot but are {dtype}. Use {rows}targets.argmax(1)."


def _one_output(outputs: Tensor, targets: Tensor, loss: KnownLoss) -> Finding | None:
    is_one = outputs.ndim == 1 and targets.ndim > 0 and len(outputs) == len(targets)
    are_shares = targets.is_floating_point() and is_readable(targets)
    if is_one and are_shares and abs(1 - targets.sum()) < 1e-2:
        return None  # one list, ranked as a whole
    if not is_one and not (outputs.ndim >= 2 and outputs.shape[1] == 1):
        return None
    if outputs.ndim > 2 and targets.ndim == 1 and outputs.numel() > len(outputs):
        return None  # their axes are wrong before their number of classes is
    floats = "" if targets.is_floating_point() else ".float()"
    column = ".reshape(-1, 1)" if targets.ndim == 1 and outputs.ndim == 2 else ""
    effect = (
        "has one class alone to choose from: after a softmax it is always 0 and teaches nothing"
    )
    if is_one:
        effect = "takes the samples for the classes of one sample"
    return error(
        "one-output",
        f"{loss} over one output (outputs {tuple(outputs.shape)}) {effect}. Use BCEWithLogitsLoss "
        f"with targets{floats}{column}, or one output for each class and class ids as int64.",
    )


def _other_shape(outputs: Tensor, targets: Tensor, loss: KnownLoss) -> Finding:
    shape, found = tuple(outputs.shape), tuple(targets.shape)
    n, k, *axes = shape
    if axes and found == shape[:-1]:
        seen = f"{loss} reads the classes from axis 1, but outputs {shape} have them in the last."
        return error("wrong-axis", f"{seen} Use outputs.movedim(-1, 1).")
    hint = ""
    if not axes and len(found) == 2 and found[0] == n:
        hint = f" The last layer has {k} outputs; rows of {found[1]} need as many."
    elif axes and found == (n,):
        hint = " Pool maps to (n, classes), as nn.AdaptiveAvgPool2d(1) and nn.Flatten() do."
    rows = f", or {shape} as rows of probabilities" if "rows" in loss.kind.targets else ""
    seen = f"The targets have shape {found} beside outputs {shape}."
    needs = f"{loss} needs {(n, *axes)} as class ids{rows}."
    return error("target-shape", f"{seen} {needs}{hint}")


def class_range(targets: Tensor, num_classes: int, ignore_index: int) -> Iterator[Finding]:
    """Whether class ids lie within 0..k-1; reads tensors on the CPU only."""
    if not is_readable(targets):
        return
    counted = targets[targets.long() != ignore_index].long()
    if counted.numel() == 0:
        return
    low, high = (int(bound) for bound in counted.aminmax())
    if low >= 0 and high < num_classes:
        return
    outside = counted[(counted < 0) | (counted >= num_classes)]
    mark = int(outside[0])
    fix = "Number the classes from 0."
    if low == 1 and high == num_classes:
        fix = "Subtract 1: targets - 1."
    elif (outside == mark).all() and (mark < 0 or mark in (254, 255)):
        mask = "Use targets // 255 for a mask of pixels. " if consists_of(counted, 0, 255) else ""
        fix = f"{mask}If {mark} marks what does not count, say ignore_index={mark} to the loss."
    elif low >= 0:
        fix = f"Give the last layer {high + 1} outputs, or number the classes from 0."
    ids = f"{num_classes} outputs mean class ids 0 to {num_classes - 1}"
    yield error("target-range", f"The targets run from {low} to {high}, but {ids}. {fix}")


def _rows(targets: Tensor) -> Iterator[Finding]:
    if not is_readable(targets) or not targets.isfinite().all():
        return
    sums = targets.sum(1)
    # A row of zeros counts for nothing, which some people mean.
    bad = ((sums - 1).abs() > 1e-2) & (sums != 0)
    if targets.min() < 0 or bad.any():
        seen = f"a row with the sum {sums[bad][0].item():g}" if bad.any() else "numbers below 0"
        law = f"Rows of targets should be probabilities that sum to 1, got {seen}."
        yield warning("row-sums", f"{law} For several classes at once use BCEWithLogitsLoss.")


# ------------------------------------------------------------------ number by number


_ONE_DTYPE = ("binary_cross_entropy", "huber_loss")  # the others promote


def _same_shape(outputs: Tensor, targets: Tensor, loss: KnownLoss) -> Iterator[Finding]:
    shape, found = tuple(outputs.shape), tuple(targets.shape)
    floats = "" if targets.is_floating_point() else ".float()"
    if shape != found:
        fix = "Give the last layer one output for each number in a target."
        if outputs.numel() == targets.numel():
            fix = f"Use targets{floats}.reshape({', '.join(map(str, (-1, *shape[1:])))})."
        elif len(shape) > 1 and outputs.numel() == targets.numel() * shape[1]:
            fix = "Class ids go with CrossEntropyLoss; else give the last layer one output."
        seen = f"{loss} compares number with number, got targets {found} and outputs {shape}."
        yield error("target-shape", f"{seen} {fix}")
    elif floats and loss.kind.targets != "numbers":
        is_mask = targets.dtype != torch.bool and consists_of(targets, 0, 255) and targets.any()
        use = "targets.float() / 255" if is_mask else "targets.float()"
        what = f"The targets are {dtype_of(targets)}, but {loss} needs floats. Use {use}."
        yield error("target-dtype", what)
    elif loss.name in _ONE_DTYPE and targets.dtype != outputs.dtype:
        seen = f"The targets are {dtype_of(targets)}, but the outputs {dtype_of(outputs)}."
        fix = f"{loss} needs one dtype for both: use targets.to({outputs.dtype})."
        yield error("target-dtype", f"{seen} {fix}")
    else:
        yield from in_range(targets, outputs, loss)


def _probabilities(targets: Tensor, loss: KnownLoss) -> Iterator[Finding]:
    low, high = bounds(targets) or (0, 1)
    if math.isnan(low) or (low >= -1e-4 and high <= 1 + 1e-4):  # rounding, of a smoothed target
        return
    scaled: dict[tuple[float, float], str] = {
        (-1, 1): "(targets + 1) / 2",
        (1, 2): "targets - 1",
        (0, 255): "targets / 255",
    }
    fix = "Scale them, or leave out what is not to count. Class ids go with CrossEntropyLoss."
    if (low, high) in scaled and consists_of(targets, low, high):
        fix = f"Use {scaled[low, high]}."
    seen = f"The targets of {loss} must lie in [0, 1], got {low:g} to {high:g}."
    yield error("target-range", f"{seen} {fix}")


# ------------------------------------------------------------------ options of the loss


def options_of(loss_fn: heads.Function) -> Iterator[Finding]:
    """What is wrong with the options of a loss, before anything runs."""
    known = heads.named(loss_fn)
    if known is None:
        return
    smoothing = known.options["label_smoothing"]
    if not 0 <= smoothing <= 1:
        what = f"label_smoothing must lie in [0, 1], got {smoothing!r}."
        percent = f" Write {smoothing / 100:g} for {smoothing:g} %." if 1 < smoothing <= 100 else ""
        yield error("label-smoothing", what + percent)
    for option in ("weight", "pos_weight"):
        weight = known.options[option]
        if not isinstance(weight, Tensor) or not is_readable(weight):
            continue
        bad = ~(weight >= 0) | weight.isinf()
        law = f"The {option} of the loss must be finite and not below 0"
        if bad.any():
            yield error("loss-weight", f"{law}, got {weight[bad][0].item():g}.")
        elif option == "weight" and not weight.any():
            yield error("loss-weight", f"{law}, and above 0 for some class, got 0 everywhere.")


def _weights(outputs: Tensor, targets: Tensor, loss: KnownLoss) -> Iterator[Finding]:
    """Whether the weights have the dtype and the shape that the outputs ask for."""
    shape, by_class = tuple(outputs.shape), "ids" in loss.kind.targets
    for option in ("weight", "pos_weight"):
        weight = loss.options[option]
        if not isinstance(weight, Tensor):
            continue
        found, dtype = tuple(weight.shape), outputs.dtype
        is_cast = targets.is_floating_point() or torch.is_autocast_enabled(outputs.device.type)
        fits = weight.is_floating_point() if is_cast else weight.dtype == dtype
        if by_class and not fits:
            what = f"The weight of the loss must be {dtype_of(outputs)} as the outputs are"
            use = "float()" if dtype == torch.float32 else f"to({dtype})"
            yield error("loss-weight", f"{what}, got {dtype_of(weight)}. Use weight.{use}.")
        # Beyond the outputs' own numbers torch raises, or spreads the loss.
        pairs = zip(found[::-1], shape[::-1], strict=False)
        fits = len(found) <= len(shape) and all(ours in (1, full) for ours, full in pairs)
        if not (outputs.ndim < 2 or weight.numel() == shape[1] if by_class else fits):
            seen = f"The {option} of the loss has shape {found} beside outputs {shape}."
            yield error("loss-weight", f"{seen} Give one number for each output.")
