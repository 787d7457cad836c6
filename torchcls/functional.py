"""The losses of classification by hand: drop-in for ``torch.nn.functional``, to be read.

Each function is its formula in elementary tensor operations (exp, log, where, gather, sum) and
gives torch's values, gradients and second gradients. What all of them share:

* Losses are in nats. float16 and bfloat16 are computed in float32 and rounded once, at the end;
  under autocast the losses stay float32, as torch's do.
* ``reduction`` is "none" (a loss per sample or element), "sum" or "mean". The mean of nothing is
  NaN, as in torch.
* Shapes and dtypes are always checked (ValueError, TypeError); values on CPU tensors only, so that
  nothing waits for an accelerator.
* Positions and keywords are torch's, without the deprecated ``size_average`` and ``reduce``.

This file needs torch alone and can be copied out.
"""

import functools
import warnings
from collections.abc import Callable
from typing import Any, SupportsIndex, TypeVar, cast

import torch
from torch import Tensor

# --------------------------------------------------------------------------- activations


def softmax(x: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
    """Probabilities proportional to exp(x): non-negative, summing to 1 along ``dim``.

        softmax(x)[c] = exp(x[c] - m) / sum_k exp(x[k] - m)    with m = max_k x[k]

    Subtracting the maximum changes nothing mathematically and keeps exp from overflowing. A score
    of -inf has probability 0; a slice holding NaN or +inf, or nothing but -inf, is all NaN.

    Args:
        x: Scores, floating point unless ``dtype`` is given, any shape.
        dim: The dimension that sums to 1.
        dtype: Cast ``x`` to this floating dtype first.

    Returns:
        Values in [0, 1] of the shape of ``x``, in ``dtype`` or else the dtype of ``x``.

    Raises:
        TypeError: If ``x`` (after the cast) is not floating point or ``dim`` is no integer.
        IndexError: If ``x`` has no dimension ``dim``.

    Example:
        >>> softmax(torch.tensor([-2.0, -2.0, 0.0]), dim=0)  # e^-2 = 0.1353; 0.1353 / 1.2707
        tensor([0.1065, 0.1065, 0.7870])

    Differs from torch: ``dim`` is required.

    References:
        Blanchard, Higham and Higham, "Accurately computing the log-sum-exp and softmax functions",
        IMA J. Numer. Anal. 41 (2021).
    """
    shifted, dtype = _shift_by_maximum(x, dim, dtype)
    exponentials = shifted.exp()
    return (exponentials / exponentials.sum(dim, keepdim=True)).to(dtype)


def log_softmax(x: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
    """Logarithm of ``softmax``, without the overflow and underflow of taking it afterwards.

        log_softmax(x)[c] = x[c] - m - log(sum_k exp(x[k] - m))    with m = max_k x[k]

    Args:
        x: Scores, floating point unless ``dtype`` is given, any shape.
        dim: The dimension whose exponentials sum to 1.
        dtype: Cast ``x`` to this floating dtype first.

    Returns:
        Values in [-inf, 0] of the shape of ``x``, in ``dtype`` or else the dtype of ``x``.

    Raises:
        TypeError: If ``x`` (after the cast) is not floating point or ``dim`` is no integer.
        IndexError: If ``x`` has no dimension ``dim``.

    Example:
        >>> log_softmax(torch.tensor([0.0, 0.0, -1000.0]), dim=0)  # -log 2, -log 2, -1000 - log 2
        tensor([-6.9315e-01, -6.9315e-01, -1.0007e+03])

    Differs from torch: ``dim`` is required.
    """
    shifted, dtype = _shift_by_maximum(x, dim, dtype)
    return (shifted - shifted.exp().sum(dim, keepdim=True).log()).to(dtype)


def sigmoid(x: Tensor) -> Tensor:
    """Probability of the positive class for a single logit.

        sigmoid(x) = 1 / (1 + exp(-x)) = exp(x) / (1 + exp(x))

    The first form is used for x >= 0 and the second below, so exp never overflows.

    Args:
        x: Logits of any shape; floating point or complex. Integers and bools are converted to the
            default dtype.

    Returns:
        Values in [0, 1] (for real ``x``) of the shape of ``x``.

    Raises:
        TypeError: If ``x`` is not a tensor.

    Example:
        >>> sigmoid(torch.tensor([0.0, 2.0, -1000.0]))  # 1 / 2, 1 / (1 + 0.1353), e^-1000
        tensor([0.5000, 0.8808, 0.0000])

    Differs from torch: complex numbers far left of 0 give 0, not NaN.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a tensor, got {type(x).__name__}.")
    if not (x.is_floating_point() or x.is_complex()):
        x = x.to(torch.get_default_dtype())
    wide = _widen(x)
    exponential = _exp_of_minus_magnitude(wide)
    return (torch.where(wide.real >= 0, 1.0, exponential) / (1 + exponential)).to(x.dtype)


def log_sigmoid(x: Tensor) -> Tensor:
    """Logarithm of ``sigmoid``, exact where the sigmoid itself rounds to 0 or 1.

        log_sigmoid(x) = -log(1 + exp(-x)) = min(x, 0) - log(1 + exp(-|x|))

    Args:
        x: Logits, floating point, any shape.

    Returns:
        Values in [-inf, 0] of the shape and dtype of ``x``.

    Raises:
        TypeError: If ``x`` is not floating point.

    Example:
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

    Args:
        targets: Class ids, int64, any shape, each in [0, num_classes - 1].
        num_classes: Length C of a row; -1 takes the largest id plus one (which waits for an
            accelerator).

    Returns:
        An int64 tensor of the shape of ``targets`` followed by C.

    Raises:
        TypeError: If ``targets`` is not int64 or ``num_classes`` is no integer.
        ValueError: If a class id is out of range (CPU only), or ``targets`` is empty and
            ``num_classes`` is not positive.

    Example:
        >>> one_hot(torch.tensor([2, 0]), num_classes=3)
        tensor([[0, 0, 1],
                [1, 0, 0]])

    Differs from torch: errors are TypeError and ValueError, not RuntimeError.
    """
    if not isinstance(targets, Tensor) or targets.dtype != torch.int64:
        raise TypeError(
            f"targets must be int64 class ids, got {_kind(targets)}. Use targets.long()."
        )
    _check_integer("num_classes", num_classes)
    if targets.numel() == 0 and num_classes <= 0:
        raise ValueError(
            f"num_classes must be positive where targets is empty, got {num_classes}; there is no "
            "largest id to infer it from."
        )
    if num_classes == -1:
        num_classes = int(targets.max()) + 1
    _check_values(
        "targets",
        targets,
        (targets >= 0) & (targets < num_classes),
        f"class ids in [0, {num_classes - 1}]",
    )
    classes = torch.arange(num_classes, device=targets.device)  # (C,)
    return (targets.unsqueeze(-1) == classes).to(torch.int64)


# --------------------------------------------------------------------------- one class out of C

_Loss = TypeVar("_Loss", bound=Callable[..., Tensor])


def _float32_under_autocast(loss: _Loss) -> _Loss:
    """Let a loss see half-precision arguments as float32 where autocast is on, as torch's do."""

    def widen(x: Any) -> Any:
        if not isinstance(x, Tensor) or not torch.amp.is_autocast_available(x.device.type):
            return x
        return _widen(x) if torch.is_autocast_enabled(x.device.type) else x

    @functools.wraps(loss)
    def wide_loss(*args: Any, **kwargs: Any) -> Tensor:
        return loss(*map(widen, args), **{name: widen(value) for name, value in kwargs.items()})

    return cast(_Loss, wide_loss)


@_float32_under_autocast
def nll_loss(
    log_probs: Tensor,
    targets: Tensor,
    weight: Tensor | None = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """Negative log-likelihood of the true classes, given log-probabilities, in nats.

    For a sample n whose target is y,

        loss[n] = -weight[y] * log_probs[n, y]
        mean    = sum_n loss[n] / sum_n weight[y[n]]    over the samples that are not ignored

    Args:
        log_probs: Log-probabilities, floating point, shape (N, C), (N, C, d1, ...) or, for one
            sample, (C,).
        targets: Class ids, int64 (or uint8, without extra dimensions), shape (N,), (N, d1, ...) or
            (), each in [0, C - 1] or equal to ``ignore_index``.
        weight: One weight per class, shape (C,), dtype of ``log_probs``; all 1 by default.
        ignore_index: A sample with this target has loss 0, no gradient, and is left out of the
            mean's denominator.
        reduction: "none", "sum" or "mean".

    Returns:
        A 0-d tensor, or for "none" one of the shape of ``targets``; dtype of ``log_probs``.

    Raises:
        TypeError: If a dtype is not as above or ``ignore_index`` is no integer.
        ValueError: If shapes do not match, a target is out of range (CPU only), ``weight``
            requires a gradient or ``reduction`` is unknown.

    Example:
        >>> log_probs = torch.tensor([[0.5, 0.5], [0.8, 0.2], [0.1, 0.9]]).log()
        >>> targets = torch.tensor([0, 1, -100])
        >>> nll_loss(log_probs, targets, reduction="none")  # -log 0.5, -log 0.2, ignored
        tensor([0.6931, 1.6094, 0.0000])
        >>> nll_loss(log_probs, targets, torch.tensor([1.0, 3.0]))  # (0.6931 + 3 * 1.6094) / 4
        tensor(1.3804)

    Differs from torch: a target out of range is a ValueError (torch: IndexError); ``weight`` must
    be (C,) exactly, also with extra dimensions.
    """
    _check_arguments(reduction, log_probs=log_probs, targets=targets, weight=weight)
    _check_scores("log_probs", log_probs)
    targets = _check_class_ids("log_probs", log_probs, targets, ignore_index)
    _check_class_weight("log_probs", log_probs, weight, constant=True)
    loss, counts = _pick_targets(_widen(log_probs), targets, weight, ignore_index)
    return _reduce(loss, reduction, counts.sum()).to(log_probs.dtype)


@_float32_under_autocast
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
    (1 - label_smoothing) * q + label_smoothing / C,

        loss[n] = -sum_c weight[c] * q[n, c] * log_softmax(logits)[n, c]

    The mean divides by the sum of weight[y] over the samples that are not ignored; for soft rows by
    the number of rows, whatever the weights.

    Args:
        logits: Unnormalised scores, floating point, shape (N, C), (N, C, d1, ...) or, for one
            sample, (C,). Do not pass probabilities.
        targets: Class ids, int64 (or uint8, without extra dimensions), of the shape of ``logits``
            without C, each in [0, C - 1] or equal to ``ignore_index``; or rows of floating point
            (one-hot or soft) of the very shape of ``logits``.
        weight: One weight per class, shape (C,); all 1 by default. With class ids its dtype is that
            of ``logits`` and it must not require a gradient.
        ignore_index: A sample with this class id has loss 0, no gradient, and is left out of the
            mean's denominator. Class ids only.
        reduction: "none", "sum" or "mean".
        label_smoothing: How much of the target goes to all classes alike, in [0, 1].

    Returns:
        A 0-d tensor, or for "none" one of the shape of ``logits`` without C. Dtype of ``logits``,
        for soft rows promoted with those of ``targets`` and ``weight``.

    Raises:
        TypeError: If a dtype is not as above or ``ignore_index`` is no integer.
        ValueError: If shapes do not match, a class id is out of range (CPU only), ``ignore_index``
            >= 0 comes with soft rows, ``weight`` requires a gradient with class ids,
            ``label_smoothing`` is outside [0, 1] or ``reduction`` is unknown.

    Example:
        >>> logits = torch.tensor([[2.0, 0.0, 0.0], [0.0, 0.0, 0.0], [9.0, 9.0, 9.0]])
        >>> targets = torch.tensor([0, 2, -100])
        >>> cross_entropy(logits, targets, reduction="none")  # log(1 + 2 / e^2), log 3, ignored
        tensor([0.2395, 1.0986, 0.0000])
        >>> cross_entropy(logits, targets)  # (0.2395 + 1.0986) / 2
        tensor(0.6691)
        >>> cross_entropy(logits[0], torch.tensor([0.5, 0.5, 0.0]))  # 0.5 * 0.2395 + 0.5 * 2.2395
        tensor(1.2395)

    Differs from torch: a class id out of range is a ValueError (torch: IndexError); a
    ``label_smoothing`` below 0 or NaN is an error (torch ignores it); ``weight`` must be (C,)
    exactly, also with extra dimensions.

    References:
        Bishop, Pattern Recognition and Machine Learning (2006), section 4.3.4.
        Szegedy et al., "Rethinking the Inception architecture" (2016), section 7: label smoothing.
    """
    _check_arguments(reduction, logits=logits, targets=targets, weight=weight)
    _check_scores("logits", logits)
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"label_smoothing must be in [0, 1], got {label_smoothing}.")
    class_dim = _class_dim(logits)
    log_probs = log_softmax(_widen(logits), class_dim)
    if targets.shape == logits.shape:
        _check_soft_rows(targets, ignore_index)
        _check_class_weight("logits", logits, weight)
        dtype = torch.promote_types(logits.dtype, targets.dtype)
        dtype = dtype if weight is None else torch.promote_types(dtype, weight.dtype)
        rows = _widen(targets)
        if label_smoothing > 0:
            rows = (1 - label_smoothing) * rows + label_smoothing / logits.shape[class_dim]
        loss = _weigh_classes(-rows * log_probs, weight).sum(class_dim)
        return _reduce(loss, reduction, loss.numel()).to(dtype)
    targets = _check_class_ids("logits", logits, targets, ignore_index)
    _check_class_weight("logits", logits, weight, constant=True)
    loss, counts = _pick_targets(log_probs, targets, weight, ignore_index)
    loss = _reduce(loss, reduction, counts.sum())
    if label_smoothing > 0:
        uniform = _weigh_classes(-log_probs, weight).mean(class_dim)  # the loss of q = 1 / C
        uniform = torch.where(targets == ignore_index, 0.0, uniform)
        uniform = _reduce(uniform, reduction, counts.sum())
        loss = (1 - label_smoothing) * loss + label_smoothing * uniform
    return loss.to(logits.dtype)


# --------------------------------------------------------------------------- 0 or 1


@_float32_under_autocast
def binary_cross_entropy(
    probs: Tensor, targets: Tensor, weight: Tensor | None = None, *, reduction: str = "mean"
) -> Tensor:
    """Cross-entropy of probabilities p against targets t between 0 and 1, element by element.

        loss = -weight * (t * log(p) + (1 - t) * log(1 - p))    with both logarithms >= -100

    The bound keeps the loss finite at p = 0 and p = 1. ``binary_cross_entropy_with_logits`` needs
    no bound and is more precise: prefer it wherever the logits are at hand. The mean divides by the
    number of elements, also with weights.

    Args:
        probs: Probabilities, floating point, any shape, each in [0, 1].
        targets: Probabilities of the positive class (mostly 0 or 1), shape and dtype of ``probs``.
        weight: A factor per element, of a shape that broadcasts to that of ``probs``; any real
            dtype, without gradient.
        reduction: "none", "sum" or "mean".

    Returns:
        A 0-d tensor, or for "none" one of the shape of ``probs``; dtype of ``probs``.

    Raises:
        TypeError: If a dtype is not as above.
        ValueError: If shapes do not match, a value lies outside [0, 1] (CPU only), ``weight``
            requires a gradient or ``reduction`` is unknown.

    Example:
        >>> probs = torch.tensor([0.5, 0.9, 0.0])
        >>> targets = torch.tensor([1.0, 0.0, 1.0])
        >>> binary_cross_entropy(probs, targets, reduction="none")  # -log 0.5, -log 0.1, bound
        tensor([  0.6931,   2.3026, 100.0000])

    Differs from torch: errors are TypeError and ValueError, not RuntimeError; the second gradient
    in the upstream gradient keeps the bound of the first (torch's differs below p = 1e-6).
    """
    _check_arguments(reduction, probs=probs, targets=targets, weight=weight)
    _check_same_shape("probs", probs, targets)
    if targets.dtype != probs.dtype:
        raise TypeError(
            f"targets must have the dtype of probs, {probs.dtype}, got {targets.dtype}. "
            "Use targets.to(probs.dtype)."
        )
    _check_element_weight("weight", weight, "probs", probs)
    for name, values in (("probs", probs), ("targets", targets)):
        _check_values(name, values, (values >= 0) & (values <= 1), "in [0, 1]")
    loss: Tensor = _BinaryCrossEntropy.apply(_widen(probs), _widen(targets))
    if weight is not None:
        loss = loss * _widen(weight)
    return _reduce(loss, reduction, loss.numel()).to(probs.dtype)


class _BinaryCrossEntropy(torch.autograd.Function):
    """The loss element by element, with torch's slopes, which stay finite where autograd's do not.

    Differentiating the bounded logarithms would give a slope of 0 at p = 0 and t = 1, where the
    model is as wrong as can be. torch bounds the denominator of the true slope instead.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(p: Tensor, t: Tensor) -> Tensor:
        return -(t * p.log().clamp(min=-100) + (1 - t) * (-p).log1p().clamp(min=-100))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        p, t = ctx.saved_tensors
        slope: Tensor = _BinaryCrossEntropySlope.apply(p, t)
        return grad * slope, grad * ((-p).log1p() - p.log())


class _BinaryCrossEntropySlope(torch.autograd.Function):
    """Slope of the loss in p: (p - t) / (p (1 - p)) with a denominator of at least 1e-12.

    Its own slopes are (p^2 - 2 p t + t) / (p (1 - p))^2 in p and -1 / (p (1 - p)) in t, kept finite
    as torch does it.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(p: Tensor, t: Tensor) -> Tensor:
        return (p - t) / (p * (1 - p)).clamp(min=1e-12)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        p, t = ctx.saved_tensors
        in_p = (p * p - 2 * p * t + t) / ((p + 1e-12) * (1 - p + 1e-12)).square()
        in_t = -1 / (p * (1 - p)).clamp(min=1e-12)
        return grad * in_p, grad * in_t


@_float32_under_autocast
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
    stay exact. The mean divides by the number of elements, also with weights.

    Args:
        logits: Unnormalised scores x, floating point, any shape. Do not pass probabilities.
        targets: Probabilities of the positive class (mostly 0 or 1), floating point, shape of
            ``logits``. Values outside [0, 1] are not refused.
        weight: A factor per element, of a shape that broadcasts to that of ``logits``; any real
            dtype, without gradient.
        reduction: "none", "sum" or "mean".
        pos_weight: A factor for the positive part, as ``weight`` (often shape (C,)), but not bool.

    Returns:
        A 0-d tensor, or for "none" one of the shape of ``logits``; dtype of ``targets``, as torch.

    Raises:
        TypeError: If a dtype is not as above.
        ValueError: If shapes do not match, a weight requires a gradient, or unknown ``reduction``.

    Example:
        >>> logits = torch.tensor([0.0, 2.0, -1000.0])
        >>> targets = torch.tensor([1.0, 0.0, 1.0])
        >>> loss = binary_cross_entropy_with_logits(logits, targets, reduction="none")
        >>> loss  # log 2, log(1 + e^2) and 1000: no bound at 100 here
        tensor([6.9315e-01, 2.1269e+00, 1.0000e+03])

    Differs from torch: a logit of -inf with a target in (0, 1] costs inf, not NaN.
    """
    _check_arguments(
        reduction, logits=logits, targets=targets, weight=weight, pos_weight=pos_weight
    )
    _check_same_shape("logits", logits, targets)
    _check_floating("targets", targets)
    _check_element_weight("weight", weight, "logits", logits)
    _check_element_weight("pos_weight", pos_weight, "logits", logits)
    if pos_weight is not None and pos_weight.dtype == torch.bool:
        raise TypeError("pos_weight must be numbers, got torch.bool. Use pos_weight.float().")
    x, t = _widen(logits), _widen(targets)
    positive = t if pos_weight is None else _widen(pos_weight) * t
    loss = -(positive * log_sigmoid(x) + (1 - t) * log_sigmoid(-x))
    if weight is not None:
        loss = loss * _widen(weight)
    return _reduce(loss, reduction, loss.numel()).to(targets.dtype)


# --------------------------------------------------------------------------- a real number


@_float32_under_autocast
def mse_loss(
    outputs: Tensor, targets: Tensor, *, reduction: str = "mean", weight: Tensor | None = None
) -> Tensor:
    """Squared error, element by element.

        loss = weight * (outputs - targets)^2
        mean = sum(loss) / number of elements, or sum(loss) / sum(weight) with weights

    Shapes that differ are broadcast with a warning: (N,) against (N, 1) compares all N x N pairs,
    which is hardly ever meant.

    Args:
        outputs: Predictions, any shape.
        targets: True values, shape of ``outputs``.
        weight: A factor per element, shape of ``outputs``.
        reduction: "none", "sum" or "mean".

    Returns:
        A 0-d tensor, or for "none" one of the broadcast shape, of the promoted dtype.

    Raises:
        TypeError: If neither ``outputs`` nor ``targets`` is floating point, or one is complex.
        ValueError: If the shapes cannot be broadcast, that of ``weight`` differs from that of
            ``outputs`` or ``reduction`` is unknown.

    Example:
        >>> outputs, targets = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 0.0, 0.0])
        >>> mse_loss(outputs, targets)  # (0 + 4 + 9) / 3
        tensor(4.3333)
        >>> mse_loss(outputs, targets, weight=torch.tensor([1.0, 2.0, 0.0]))  # 2 * 4 / 3
        tensor(2.6667)

    Differs from torch: two integer tensors, or complex ones, are refused with ``weight`` as well.
    """
    _check_arguments(reduction, outputs=outputs, targets=targets, weight=weight)
    if weight is not None and weight.shape != outputs.shape:
        raise ValueError(
            f"weight must have the shape of outputs, {tuple(outputs.shape)}, "
            f"got {tuple(weight.shape)}."
        )
    if targets.shape != outputs.shape:
        _check_broadcastable(outputs, targets)
        warnings.warn(
            f"targets of shape {tuple(targets.shape)} are broadcast against outputs of shape "
            f"{tuple(outputs.shape)}, which is hardly ever meant. Give them the same shape.",
            stacklevel=3,  # past the decorator
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


def _class_dim(scores: Tensor) -> int:
    return 0 if scores.ndim == 1 else 1


def _weigh_classes(terms: Tensor, weight: Tensor | None) -> Tensor:
    """Multiply terms (N, C, d1, ...) by weight (C,)."""
    if weight is None:
        return terms
    return terms * _widen(weight).reshape(-1, *[1] * (terms.ndim - 2))


def _pick_targets(
    log_probs: Tensor, targets: Tensor, weight: Tensor | None, ignore_index: int
) -> tuple[Tensor, Tensor]:
    """Give -weight[y] * log_probs[n, y] per sample and its share of the mean's denominator."""
    class_dim = _class_dim(log_probs)
    counted = targets != ignore_index
    ids = torch.where(counted, targets, 0)  # safe to index with
    picked = log_probs.gather(class_dim, ids.unsqueeze(class_dim)).squeeze(class_dim)
    weights = torch.ones_like(picked) if weight is None else _widen(weight)[ids]
    return torch.where(counted, -weights * picked, 0.0), torch.where(counted, weights, 0.0)


def _reduce(loss: Tensor, reduction: str, denominator: Tensor | int) -> Tensor:
    if reduction == "none":
        return loss
    return loss.sum() if reduction == "sum" else loss.sum() / denominator


# --------------------------------------------------------------------------- shared checks


def _kind(value: object) -> str:
    return str(value.dtype) if isinstance(value, Tensor) else type(value).__name__


def _check_integer(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, SupportsIndex):
        raise TypeError(f"{name} must be an integer, got {value!r}.")


def _check_arguments(reduction: str, **tensors: Tensor | None) -> None:
    """What every loss asks first: a known reduction, and tensors (a weight may be missing)."""
    if reduction not in ("none", "mean", "sum"):
        raise ValueError(f"reduction must be 'none', 'mean' or 'sum', got {reduction!r}.")
    for name, value in tensors.items():
        missing = value is None and name.endswith("weight")
        if not isinstance(value, Tensor) and not missing:
            raise TypeError(f"{name} must be a tensor, got {type(value).__name__}.")


def _check_floating(name: str, x: Tensor) -> None:
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise TypeError(f"{name} must be a floating-point tensor, got {_kind(x)}.")


def _check_scores(name: str, scores: Tensor) -> None:
    _check_floating(name, scores)
    if scores.ndim == 0 or scores.shape[_class_dim(scores)] == 0:
        raise ValueError(
            f"{name} must have shape (N, C), (N, C, d1, ...) or (C,) with at least one class, "
            f"got {tuple(scores.shape)}."
        )


def _check_class_ids(name: str, scores: Tensor, targets: Tensor, ignore_index: int) -> Tensor:
    """Give the class ids as int64, of the shape of scores without C."""
    _check_integer("ignore_index", ignore_index)
    shape = scores.shape[:1] + scores.shape[2:] if scores.ndim > 1 else torch.Size()
    one_for_one = scores.ndim == 1 and targets.shape == (1,)
    if targets.shape != shape and not one_for_one:
        raise ValueError(
            f"targets must have shape {tuple(shape)}, that of {name} without classes, "
            f"got targets {tuple(targets.shape)} and {name} {tuple(scores.shape)}."
        )
    if targets.dtype != torch.int64 and not (targets.dtype == torch.uint8 and scores.ndim <= 2):
        raise TypeError(
            f"targets must be int64 class ids, got {targets.dtype}. Use targets.long()."
        )
    targets = targets.reshape(shape).long()
    num_classes = scores.shape[_class_dim(scores)]
    in_range = (targets >= 0) & (targets < num_classes)
    _check_values(
        "targets",
        targets,
        in_range | (targets == ignore_index),
        f"class ids in [0, {num_classes - 1}] or ignore_index={ignore_index}",
    )
    return targets


def _check_soft_rows(targets: Tensor, ignore_index: int) -> None:
    if not targets.is_floating_point():
        raise TypeError(
            "targets of the shape of logits must be floating-point rows, "
            f"got {targets.dtype}. Use targets.float(), or targets.argmax(dim=1) for class ids."
        )
    _check_integer("ignore_index", ignore_index)
    if ignore_index >= 0:
        raise ValueError(
            f"ignore_index must be negative with soft rows, got {ignore_index}; no row is ignored."
        )


def _check_class_weight(
    name: str, scores: Tensor, weight: Tensor | None, *, constant: bool = False
) -> None:
    if weight is None:
        return
    num_classes = scores.shape[_class_dim(scores)]
    if weight.shape != (num_classes,):
        raise ValueError(
            f"weight must have shape ({num_classes},), one per class, got {tuple(weight.shape)}."
        )
    if constant:
        if weight.dtype != scores.dtype:
            raise TypeError(
                f"weight must have the dtype of {name}, {scores.dtype}, got {weight.dtype}."
            )
        _check_constant("weight", weight)


def _check_element_weight(name: str, weight: Tensor | None, of: str, scores: Tensor) -> None:
    if weight is None:
        return
    if weight.is_complex():
        raise TypeError(f"{name} must be real, got {weight.dtype}.")
    try:
        weight.expand(scores.shape)
    except RuntimeError as error:
        raise ValueError(
            f"{name} must have a shape that broadcasts to that of {of}, {tuple(scores.shape)}, "
            f"got {tuple(weight.shape)}."
        ) from error
    _check_constant(name, weight)


def _check_constant(name: str, weight: Tensor) -> None:
    """A weight that learns only learns to shrink the loss; torch refuses it too."""
    if weight.requires_grad and torch.is_grad_enabled():
        raise ValueError(f"{name} must not require a gradient. Use {name}.detach().")


def _check_same_shape(name: str, scores: Tensor, targets: Tensor) -> None:
    _check_floating(name, scores)
    if targets.shape != scores.shape:
        raise ValueError(
            f"targets must have the shape of {name}, "
            f"got targets {tuple(targets.shape)} and {name} {tuple(scores.shape)}."
        )


def _check_broadcastable(outputs: Tensor, targets: Tensor) -> None:
    pairs = zip(reversed(outputs.shape), reversed(targets.shape), strict=False)
    if any(a != b and 1 not in (a, b) for a, b in pairs):
        raise ValueError(
            "targets must have the shape of outputs, "
            f"got targets {tuple(targets.shape)} and outputs {tuple(outputs.shape)}."
        )


def _check_values(name: str, values: Tensor, good: Tensor, law: str) -> None:
    """Name the first bad value and count them all; CPU only, so that nothing waits."""
    if values.device.type == "cpu" and not good.all():
        bad = (~good).nonzero()
        first = tuple(bad[0].tolist())
        raise ValueError(
            f"{name} must be {law}, got {values[first].item()} at position {first} "
            f"({len(bad)} of {values.numel()} are out of range)."
        )
