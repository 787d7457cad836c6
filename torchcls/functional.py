"""The losses of classification by hand: drop-in for ``torch.nn.functional``, to be read.

Each function is its formula in elementary tensor operations (exp, log, where, gather, sum) and
gives torch's values, gradients and second gradients. What all of them share:

* Losses are in nats. float16 and bfloat16 are computed in float32 and rounded once, at the end;
  under autocast the losses stay float32, as torch's do.
* ``reduction`` is "none" (a loss per sample or element), "sum" or "mean" (0-d, both). The mean of
  nothing is NaN, as in torch. A loss has the dtype of its first argument if nothing else is said.
* A TypeError says that an argument is of the wrong kind or dtype, a ValueError that a shape or a
  value does not fit, where torch often has RuntimeError or IndexError. Values are read on the CPU
  only, so nothing waits for an accelerator; and not where there are none to read, under
  ``torch.func.vmap``, ``torch.compile``, ``torch.export`` and fake tensors.
* Positions and keywords are torch's, without the deprecated ``size_average`` and ``reduce``.

This file needs torch alone and can be copied out.
"""

import warnings
from typing import Any, SupportsIndex

import torch
from torch import Tensor

# --------------------------------------------------------------------------- activations


def softmax(x: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
    """Probabilities proportional to exp(x): non-negative, summing to 1 along ``dim``.

        softmax(x)[c] = exp(x[c] - m) / sum_k exp(x[k] - m)    with m = max_k x[k]

    The shift changes nothing mathematically and keeps exp from overflowing (Blanchard, Higham and
    Higham, IMA J. Numer. Anal. 41, 2021). A score of -inf has probability 0; a slice holding NaN or
    +inf, or nothing but -inf, is all NaN.

    Takes floating point (or what ``dtype`` casts to it first) of any shape; gives values in [0, 1]
    of the same shape and dtype. A ``dim`` that ``x`` does not have is an IndexError.

    Examples:
        >>> softmax(torch.tensor([-2.0, -2.0, 0.0]), dim=0)  # e^-2 = 0.1353; 0.1353 / 1.2707
        tensor([0.1065, 0.1065, 0.7870])

    Differs from torch: ``dim`` is required.
    """
    shifted, dtype = _shift_by_maximum(x, dim, dtype)
    exponentials = shifted.exp()
    return (exponentials / exponentials.sum(dim, keepdim=True)).to(dtype)


def log_softmax(x: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
    """Logarithm of ``softmax``, without the overflow and underflow of taking it afterwards.

        log_softmax(x)[c] = x[c] - m - log(sum_k exp(x[k] - m))    with m = max_k x[k]

    Values lie in [-inf, 0]. All else is as in ``softmax``.

    Examples:
        >>> log_softmax(torch.tensor([0.0, 0.0, -1000.0]), dim=0)  # -log 2, -log 2, -1000 - log 2
        tensor([-6.9315e-01, -6.9315e-01, -1.0007e+03])
    """
    shifted, dtype = _shift_by_maximum(x, dim, dtype)
    return (shifted - shifted.exp().sum(dim, keepdim=True).log()).to(dtype)


def sigmoid(x: Tensor) -> Tensor:
    """Probability of the positive class for a single logit.

        sigmoid(x) = 1 / (1 + exp(-x)) = exp(x) / (1 + exp(x))

    The first form is used for x >= 0 and the second below, so exp never overflows. Takes a tensor
    (else TypeError) of any shape, floating point or complex; integers and bools become the default
    dtype. Gives values of the same shape, in [0, 1] for real ``x``.

    Examples:
        >>> sigmoid(torch.tensor([0.0, 2.0, -1000.0]))  # 1 / 2, 1 / (1 + 0.1353), e^-1000
        tensor([0.5000, 0.8808, 0.0000])

    Differs from torch: complex numbers far left of 0 give 0, not NaN.
    """
    if not isinstance(x, Tensor):
        raise _wrong_kind("x", "be a tensor", x)
    if not (x.is_floating_point() or x.is_complex()):
        x = x.to(torch.get_default_dtype())
    wide = _widen(x)
    exponential = _exp_of_minus_magnitude(wide)
    return (torch.where(wide.real >= 0, 1.0, exponential) / (1 + exponential)).to(x.dtype)


def log_sigmoid(x: Tensor) -> Tensor:
    """Logarithm of ``sigmoid``, exact where the sigmoid itself rounds to 0 or 1.

        log_sigmoid(x) = -log(1 + exp(-x)) = min(x, 0) - log(1 + exp(-|x|))

    Takes floating point of any shape (else TypeError); gives values in [-inf, 0] of the same shape
    and dtype.

    Examples:
        >>> log_sigmoid(torch.tensor([0.0, 2.0, -1000.0]))  # -log 2, log 0.8808, -1000
        tensor([-6.9315e-01, -1.2693e-01, -1.0000e+03])
    """
    _check_floating("x", x)
    wide = _widen(x)
    # torch.minimum would split the gradient between its arguments where they tie, at x = 0.
    below_zero = torch.where(wide < 0, wide, 0.0)
    return (below_zero - _exp_of_minus_magnitude(wide).log1p()).to(x.dtype)


def one_hot(targets: Tensor, num_classes: int = -1) -> Tensor:
    """Class ids as rows with a single 1.

        one_hot(targets)[..., c] = 1 if targets[...] == c else 0

    Takes ids in [0, C - 1], int64 of any shape; ``num_classes`` is C, or -1 for the largest id plus
    one (which waits for an accelerator, and is a ValueError where ``targets`` is empty). Gives
    int64 of the shape of ``targets`` followed by C.

    Examples:
        >>> one_hot(torch.tensor([2, 0]), num_classes=3)
        tensor([[0, 0, 1],
                [1, 0, 0]])
    """
    _check_id_dtype(targets)
    _check_integer("num_classes", num_classes)
    if targets.numel() == 0 and num_classes <= 0:
        raise ValueError(
            f"num_classes must be positive where targets is empty, got {num_classes}; there is no "
            "largest id to infer it from."
        )
    if num_classes == -1:
        num_classes = int(targets.max()) + 1
    _check_id_range(targets, num_classes)
    classes = torch.arange(num_classes, device=targets.device)  # (C,)
    return (targets.unsqueeze(-1) == classes).to(torch.int64)


# --------------------------------------------------------------------------- one class out of C


def nll_loss(
    log_probs: Tensor,
    targets: Tensor,
    weight: Tensor | None = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """Negative log-likelihood of the true classes, given log-probabilities, in nats.

        loss[n] = -weight[y[n]] * log_probs[n, y[n]]    with y[n] the target of sample n
        mean    = sum_n loss[n] / sum_n weight[y[n]]    over the samples that are not ignored

    Args:
        log_probs: Log-probabilities, floating point, shape (N, C), (N, C, d1, ...) or, for one
            sample, (C,).
        targets: Class ids in [0, C - 1] or ``ignore_index``, int64 (or uint8, without extra
            dimensions), shape (N,), (N, d1, ...) or ().
        weight: One per class, shape (C,), dtype of ``log_probs``, without gradient; 1 by default.
        ignore_index: A sample with this target has loss 0, no gradient and no share in the mean.
        reduction: "none" (shape of ``targets``), "sum" or "mean".

    Examples:
        >>> log_probs = torch.tensor([[0.5, 0.5], [0.8, 0.2], [0.1, 0.9]]).log()
        >>> targets = torch.tensor([0, 1, -100])
        >>> nll_loss(log_probs, targets, reduction="none")  # -log 0.5, -log 0.2, ignored
        tensor([0.6931, 1.6094, 0.0000])
        >>> nll_loss(log_probs, targets, torch.tensor([1.0, 3.0]))  # (0.6931 + 3 * 1.6094) / 4
        tensor(1.3804)

    Differs from torch: ``weight`` must be (C,) exactly, also with extra dimensions.
    """
    log_probs, targets, weight = _given(
        reduction, log_probs=log_probs, targets=targets, weight=weight
    )
    targets = _check_classes("log_probs", log_probs, targets, weight, ignore_index, False)
    loss, counts = _pick_targets(_widen(log_probs), targets, weight, ignore_index)
    return _reduce(loss, reduction, counts.sum()).to(log_probs.dtype)


def cross_entropy(
    logits: Tensor,
    targets: Tensor,
    weight: Tensor | None = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """Softmax cross-entropy between logits and class ids or soft rows, in nats.

    With q the row of target probabilities (for a class id y: 1 at y, 0 elsewhere), smoothed to
    (1 - label_smoothing) * q + label_smoothing / C (Bishop, Pattern Recognition and Machine
    Learning, 2006, section 4.3.4),

        loss[n] = -sum_c weight[c] * q[n, c] * log_softmax(logits)[n, c]

    The mean divides by the sum of weight[y] over the samples that are not ignored; for soft rows by
    the number of rows, whatever the weights, and the dtype is promoted from all three tensors.

    Args:
        logits: Unnormalised scores (no probabilities), floating point, shape (N, C),
            (N, C, d1, ...) or, for one sample, (C,).
        targets: Class ids as in ``nll_loss``, of the shape of ``logits`` without C; or rows of
            floating point (one-hot or soft) of the very shape of ``logits``.
        weight: As in ``nll_loss``; with soft rows of any dtype, and it may require a gradient.
        ignore_index: As in ``nll_loss``. Class ids only: with soft rows it must be negative.
        reduction: "none" (shape of ``logits`` without C), "sum" or "mean".
        label_smoothing: How much of the target goes to all classes alike, in [0, 1] (Szegedy et
            al., "Rethinking the Inception architecture", 2016, section 7).

    Examples:
        >>> logits = torch.tensor([[2.0, 0.0, 0.0], [0.0, 0.0, 0.0], [9.0, 9.0, 9.0]])
        >>> targets = torch.tensor([0, 2, -100])
        >>> cross_entropy(logits, targets, reduction="none")  # log(1 + 2 / e^2), log 3, ignored
        tensor([0.2395, 1.0986, 0.0000])
        >>> cross_entropy(logits, targets)  # (0.2395 + 1.0986) / 2
        tensor(0.6691)
        >>> cross_entropy(logits[0], torch.tensor([0.5, 0.5, 0.0]))  # 0.5 * 0.2395 + 0.5 * 2.2395
        tensor(1.2395)

    Differs from torch: as ``nll_loss``; a ``label_smoothing`` below 0 or NaN is an error; a class
    masked by -inf adds nothing to a soft row that gives it 0, and an ignored sample has gradient 0
    whatever its logits (both are NaN in torch).
    """
    logits, targets, weight = _given(reduction, logits=logits, targets=targets, weight=weight)
    soft = targets.shape == logits.shape
    targets = _check_classes("logits", logits, targets, weight, ignore_index, soft)
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"label_smoothing must be in [0, 1], got {label_smoothing}.")
    class_dim = min(1, logits.ndim - 1)
    factors = None if weight is None else weight.reshape(-1, *[1] * (logits.ndim - 2))
    if soft:
        log_probs = log_softmax(_widen(logits), class_dim)
        dtype = torch.promote_types(logits.dtype, targets.dtype)
        dtype = dtype if weight is None else torch.promote_types(dtype, weight.dtype)
        rows = _widen(targets)
        if label_smoothing > 0:
            rows = (1 - label_smoothing) * rows + label_smoothing / logits.shape[class_dim]
        # 0 * -inf: what is impossible, and not asked for, adds nothing.
        is_masked = (rows == 0) & log_probs.isneginf()
        loss = _weigh(-rows * torch.where(is_masked, 0.0, log_probs), factors).sum(class_dim)
        return _reduce(loss, reduction, loss.numel()).to(dtype)
    counted = (targets != ignore_index).unsqueeze(class_dim)
    # Masked here and not at the end: further back a gradient of 0 would meet 0 * NaN.
    log_probs = log_softmax(torch.where(counted, _widen(logits), 0.0), class_dim)
    loss, counts = _pick_targets(log_probs, targets, weight, ignore_index)
    loss = _reduce((1 - label_smoothing) * loss, reduction, counts.sum())
    if label_smoothing > 0:
        uniform = _weigh(-log_probs, factors).mean(class_dim)  # the loss of q = 1 / C
        uniform = torch.where(targets == ignore_index, 0.0, uniform)
        loss = loss + _reduce(label_smoothing * uniform, reduction, counts.sum())
    return loss.to(logits.dtype)


# --------------------------------------------------------------------------- element by element


def binary_cross_entropy(
    probs: Tensor, targets: Tensor, weight: Tensor | None = None, *, reduction: str = "mean"
) -> Tensor:
    """Cross-entropy of probabilities p against targets t between 0 and 1, element by element.

        loss = -weight * (t * log(p) + (1 - t) * log(1 - p))    with both logarithms >= -100

    The bound keeps the loss finite at p = 0 and p = 1. ``binary_cross_entropy_with_logits`` needs
    none and is more precise: prefer it wherever the logits are at hand. The mean divides by the
    number of elements, also with weights.

    Args:
        probs: Probabilities in [0, 1], floating point, any shape.
        targets: Probabilities of the positive class (mostly 0 or 1), shape and dtype of ``probs``.
        weight: A factor per element, real, without gradient, broadcast to the shape of ``probs``.
        reduction: "none" (shape of ``probs``), "sum" or "mean".

    Examples:
        >>> probs = torch.tensor([0.5, 0.9, 0.0])
        >>> targets = torch.tensor([1.0, 0.0, 1.0])
        >>> binary_cross_entropy(probs, targets, reduction="none")  # -log 0.5, -log 0.1, bound
        tensor([  0.6931,   2.3026, 100.0000])

    Differs from torch: the gradient of ``targets`` keeps the bound of 100 (torch's is infinite at
    p = 0 and 1), and second gradients through it or through the upstream gradient are bounded as
    the first one is.
    """
    probs, targets, weight = _given(reduction, probs=probs, targets=targets, weight=weight)
    _check_elements("probs", probs, targets, weight=weight)
    if targets.dtype != probs.dtype:
        law = f"have the dtype of probs, {probs.dtype}"
        raise _wrong_kind("targets", law, targets, " Use targets.to(probs.dtype).")
    for name, values in (("probs", probs), ("targets", targets)):
        _check_values(name, values, (values >= 0) & (values <= 1), "in [0, 1]")
    loss = _binary_entropy(_widen(probs), _widen(targets))
    return _reduce(_weigh(loss, weight), reduction, loss.numel()).to(probs.dtype)


def _binary_entropy(p: Tensor, t: Tensor) -> Tensor:
    """The loss element by element, with torch's slopes, which stay finite where autograd's do not.

    Differentiating the bounded logarithms would give a slope of 0 at p = 0 and t = 1, where the
    model is as wrong as can be. torch bounds the denominators of the true slopes instead. Near an
    end, first and second slope are therefore stated, and none after them: those of a Taylor
    expansion around p itself.
    """

    def bounded(p: Tensor) -> Tensor:
        return -(t * p.log().clamp(min=-100) + (1 - t) * (-p).log1p().clamp(min=-100))

    here = p.detach()
    step = p - here  # 0, and moves as p does
    spread = here * (1 - here)
    slope = (here - t) / spread.clamp(min=1e-12)
    curvature = (here * here - 2 * here * t + t) / ((here + 1e-12) * (1 - here + 1e-12)).square()
    stated = bounded(here) + step * (slope + step / 2 * curvature)
    is_inside = spread > 1e-4
    return torch.where(is_inside, bounded(torch.where(is_inside, p, 0.5)), stated)


def binary_cross_entropy_with_logits(
    logits: Tensor,
    targets: Tensor,
    weight: Tensor | None = None,
    *,
    reduction: str = "mean",
    pos_weight: Tensor | None = None,
) -> Tensor:
    """Cross-entropy of sigmoid(x) against targets t between 0 and 1, element by element.

        loss = -weight * (pos_weight * t * log sigmoid(x) + (1 - t) * log(1 - sigmoid(x)))

    with log(1 - sigmoid(x)) = log sigmoid(-x), and both by ``log_sigmoid``, so that large logits
    stay exact. The mean divides by the number of elements, also with weights. The dtype is, as in
    torch, that of ``targets``.

    Args:
        logits: Unnormalised scores x (no probabilities), floating point, any shape.
        targets: Probabilities of the positive class (mostly 0 or 1), floating point, shape of
            ``logits``. Values outside [0, 1] are not refused.
        weight: As in ``binary_cross_entropy``.
        reduction: "none" (shape of ``logits``), "sum" or "mean".
        pos_weight: A factor for the positive part, as ``weight`` (often shape (C,)), but not bool.

    Examples:
        >>> logits = torch.tensor([0.0, 2.0, -1000.0])
        >>> targets = torch.tensor([1.0, 0.0, 1.0])
        >>> loss = binary_cross_entropy_with_logits(logits, targets, reduction="none")
        >>> loss  # log 2, log(1 + e^2) and 1000: no bound at 100 here
        tensor([6.9315e-01, 2.1269e+00, 1.0000e+03])

    Differs from torch: a logit of -inf with a target in (0, 1] costs inf, not NaN.
    """
    logits, targets, weight, pos_weight = _given(
        reduction, logits=logits, targets=targets, weight=weight, pos_weight=pos_weight
    )
    _check_elements("logits", logits, targets, weight=weight, pos_weight=pos_weight)
    _check_floating("targets", targets)
    if pos_weight is not None and pos_weight.dtype == torch.bool:
        raise _wrong_kind("pos_weight", "be numbers", pos_weight, " Use pos_weight.float().")
    x, t = _widen(logits), _widen(targets)
    positive = t if pos_weight is None else _widen(pos_weight) * t
    loss = -(positive * log_sigmoid(x) + (1 - t) * log_sigmoid(-x))
    return _reduce(_weigh(loss, weight), reduction, loss.numel()).to(targets.dtype)


def mse_loss(
    outputs: Tensor, targets: Tensor, *, reduction: str = "mean", weight: Tensor | None = None
) -> Tensor:
    """Squared error, element by element.

        loss = weight * (outputs - targets)^2
        mean = sum(loss) / number of elements, or sum(loss) / sum(weight) with weights

    Shapes that differ are broadcast with a warning: (N,) against (N, 1) compares all N x N pairs,
    which is hardly ever meant. The dtype is promoted from all tensors.

    Args:
        outputs: Predictions, real, any shape.
        targets: True values, real, shape of ``outputs``; one of the two is floating point.
        reduction: "none" (the broadcast shape), "sum" or "mean".
        weight: A factor per element, shape of ``outputs``.

    Examples:
        >>> outputs, targets = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 0.0, 0.0])
        >>> mse_loss(outputs, targets)  # (0 + 4 + 9) / 3
        tensor(4.3333)
        >>> mse_loss(outputs, targets, weight=torch.tensor([1.0, 2.0, 0.0]))  # 2 * 4 / 3
        tensor(2.6667)

    Differs from torch: two integer tensors, or complex ones, are refused with ``weight`` as well.
    """
    outputs, targets, weight = _given(reduction, outputs=outputs, targets=targets, weight=weight)
    if weight is not None and weight.shape != outputs.shape:
        raise _wrong_shape("weight", f"the shape of outputs, {tuple(outputs.shape)}", weight)
    if targets.shape != outputs.shape:
        if _broadcast(outputs, targets) is None:
            raise _shapes_differ("the shape of outputs", targets, "outputs", outputs)
        warnings.warn(
            f"targets of shape {tuple(targets.shape)} are broadcast against outputs of shape "
            f"{tuple(outputs.shape)}, which is hardly ever meant. Give them the same shape.",
            stacklevel=2,
        )
    dtype = torch.promote_types(outputs.dtype, targets.dtype)
    if not dtype.is_floating_point:
        raise TypeError(f"outputs or targets must be floating point, got {dtype} for both.")
    difference = _widen(outputs.to(dtype)) - _widen(targets.to(dtype))
    loss = difference * difference
    if weight is None:
        return _reduce(loss, reduction, loss.numel()).to(dtype)
    weighted = _reduce(loss * _widen(weight), reduction, _widen(weight).sum())
    return weighted.to(torch.promote_types(dtype, weight.dtype))


# --------------------------------------------------------------------------- shared steps


def _widen(x: Tensor) -> Tensor:
    """Half precision as float32, everything else as it is."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _shift_by_maximum(x: Tensor, dim: int, dtype: torch.dtype | None) -> tuple[Tensor, torch.dtype]:
    """Give x - max(x) along dim, widened, and the dtype of the result."""
    _check_integer("dim", dim)
    if dtype is not None and isinstance(x, Tensor):
        x = x.to(dtype)
    _check_floating("x", x)
    wide = _widen(x)
    if x.numel() == 0:
        return wide, x.dtype  # amax refuses an empty dimension
    # A constant as far as gradients go: the result does not depend on the shift.
    return wide - wide.detach().amax(dim, keepdim=True), x.dtype


def _exp_of_minus_magnitude(x: Tensor) -> Tensor:
    """exp(-|x|), never above 1; x.abs() would have the wrong slope, 0, at x = 0."""
    return torch.where(x.real >= 0, -x, x).exp()


def _weigh(terms: Tensor, weight: Tensor | None) -> Tensor:
    return terms if weight is None else terms * _widen(weight)


def _pick_targets(
    log_probs: Tensor, targets: Tensor, weight: Tensor | None, ignore_index: int
) -> tuple[Tensor, Tensor]:
    """Give -weight[y] * log_probs[n, y] per sample and its share of the mean's denominator."""
    class_dim = min(1, log_probs.ndim - 1)
    counted = targets != ignore_index
    ids = torch.where(counted, targets, 0)  # safe to index with
    picked = log_probs.gather(class_dim, ids.unsqueeze(class_dim)).squeeze(class_dim)
    weights = torch.ones_like(picked) if weight is None else _widen(weight)[ids]
    return torch.where(counted, -weights * picked, 0.0), torch.where(counted, weights, 0.0)


def _reduce(loss: Tensor, reduction: str, denominator: Tensor | int) -> Tensor:
    if reduction == "none":
        return loss
    return loss.sum() if reduction == "sum" else loss.sum() / denominator


def _check_integer(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, SupportsIndex):
        raise TypeError(f"{name} must be an integer, got {value!r}.")


def _given(reduction: str, **tensors: Tensor | None) -> Any:
    """Check what every loss takes; give the tensors as torch sees them, wide under autocast."""
    if reduction not in ("none", "mean", "sum"):
        raise ValueError(f"reduction must be 'none', 'mean' or 'sum', got {reduction!r}.")
    for name, value in tensors.items():
        if isinstance(value, Tensor):
            device = value.device.type
            if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
                tensors[name] = _widen(value)
        elif value is not None or not name.endswith("weight"):
            raise _wrong_kind(name, "be a tensor", value)
    return tensors.values()


def _wrong_kind(name: str, law: str, value: object, remedy: str = "") -> TypeError:
    kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
    return TypeError(f"{name} must {law}, got {kind}.{remedy}")


def _wrong_shape(name: str, law: str, x: Tensor) -> ValueError:
    return ValueError(f"{name} must have {law}, got {tuple(x.shape)}.")


def _shapes_differ(law: str, targets: Tensor, name: str, scores: Tensor) -> ValueError:
    return ValueError(
        f"targets must have {law}, "
        f"got targets {tuple(targets.shape)} and {name} {tuple(scores.shape)}."
    )


def _check_floating(name: str, x: Tensor) -> None:
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise _wrong_kind(name, "be a floating-point tensor", x)


def _check_classes(
    name: str, scores: Tensor, targets: Tensor, weight: Tensor | None, ignore_index: int, soft: bool
) -> Tensor:
    """Check one class out of C; give soft rows as they are, class ids as int64 without C."""
    _check_floating(name, scores)
    dim, shape = min(1, scores.ndim - 1), tuple(scores.shape)
    if not shape or shape[dim] == 0:
        law = "shape (N, C), (N, C, d1, ...) or (C,) with at least one class"
        raise _wrong_shape(name, law, scores)
    _check_integer("ignore_index", ignore_index)
    if weight is not None and weight.shape != (shape[dim],):
        raise _wrong_shape("weight", f"shape ({shape[dim]},), one per class", weight)
    if soft:
        if not targets.is_floating_point():
            remedy = " Use targets.float(), or targets.argmax(dim=1) for class ids."
            law = "be floating-point rows"
            raise _wrong_kind(f"targets of the shape of {name}", law, targets, remedy)
        if ignore_index >= 0:
            law = f"be negative with soft rows, got {ignore_index}; no row is ignored"
            raise ValueError(f"ignore_index must {law}.")
        return targets
    of_ids = shape[:dim] + shape[dim + 1 :]
    if targets.shape != of_ids and not (scores.ndim == 1 and targets.shape == (1,)):
        law = f"shape {of_ids}, that of {name} without classes"
        raise _shapes_differ(law, targets, name, scores)
    _check_id_dtype(targets, or_uint8=scores.ndim <= 2)
    targets = targets.reshape(of_ids).long()
    _check_id_range(targets, shape[dim], ignore_index)
    if weight is not None:
        if weight.dtype != scores.dtype:
            raise _wrong_kind("weight", f"have the dtype of {name}, {scores.dtype}", weight)
        _check_constant("weight", weight)
    return targets


def _check_id_dtype(targets: Tensor, *, or_uint8: bool = False) -> None:
    fits = (torch.int64, torch.uint8) if or_uint8 else (torch.int64,)
    if not isinstance(targets, Tensor) or targets.dtype not in fits:
        raise _wrong_kind("targets", "be int64 class ids", targets, " Use targets.long().")


def _check_id_range(targets: Tensor, num_classes: int, ignore_index: int | None = None) -> None:
    fits = (targets >= 0) & (targets < num_classes)
    law = f"class ids in [0, {num_classes - 1}]"
    if ignore_index is not None:
        fits = fits | (targets == ignore_index)
        law += f" or ignore_index={ignore_index}"
    _check_values("targets", targets, fits, law)


def _check_elements(name: str, scores: Tensor, targets: Tensor, **weights: Tensor | None) -> None:
    """Losses by element: targets of the same shape, weights real and of one that broadcasts."""
    _check_floating(name, scores)
    if targets.shape != scores.shape:
        raise _shapes_differ(f"the shape of {name}", targets, name, scores)
    for which, weight in weights.items():
        if weight is None:
            continue
        if weight.is_complex():
            raise _wrong_kind(which, "be real", weight)
        if _broadcast(weight, scores) != scores.shape:
            law = f"a shape that broadcasts to that of {name}, {tuple(scores.shape)}"
            raise _wrong_shape(which, law, weight)
        _check_constant(which, weight)


def _check_constant(name: str, weight: Tensor) -> None:
    """A weight that learns only learns to shrink the loss; torch refuses it too."""
    if weight.requires_grad and torch.is_grad_enabled():
        raise ValueError(f"{name} must not require a gradient. Use {name}.detach().")


def _broadcast(a: Tensor, b: Tensor) -> torch.Size | None:
    try:
        return torch.Size(torch.broadcast_shapes(a.shape, b.shape))
    except RuntimeError:
        return None


def _check_values(name: str, values: Tensor, good: Tensor, law: str) -> None:
    """Name the first bad value and count them all; CPU only, so that nothing waits."""
    if values.device.type != "cpu" or torch.compiler.is_compiling():
        return
    try:
        is_good = bool(good.all())
    except RuntimeError:  # a batched or a fake tensor has no values to read
        return
    if not is_good:
        bad = (~good).nonzero()
        first = tuple(bad[0].tolist())
        raise ValueError(
            f"{name} must be {law}, got {values[first].item()} at position {first} "
            f"({len(bad)} of {values.numel()} are out of range)."
        )
