"""Half precision: a context around a model's forward, and loss scaling for float16."""

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from torchcls.batches import mapped
from torchcls.step import Forward, Precision, may_skip


class _Mixed(Precision):
    """Weights stay float32; the layers that gain by it compute in ``dtype``.

    The loss and the metrics get float32 outputs, so averages lose nothing, and a loss that torch
    refuses to compute in float16 (BCE on probabilities) works.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self._dtype, self._device = dtype, device

    def outputs(self, forward: Forward, inputs: Any) -> Any:
        with torch.autocast(self._device.type, self._dtype):
            outputs = forward(inputs)
        return mapped(self._widened, outputs)

    def _widened(self, leaf: Any) -> Any:
        return leaf.float() if isinstance(leaf, Tensor) and leaf.dtype == self._dtype else leaf


class _Scaled(_Mixed):
    """float16, whose small gradients would vanish: the loss is scaled up, the gradients down again.

    They are scaled down before the optimizer's step, so that clipping and hooks see true gradients.
    A step whose gradients overflow is skipped and the scale is halved. A fused optimizer, as the
    default one, does that without a wait for the accelerator; but for SGD with momentum.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__(torch.float16, device)
        self._scaler = torch.amp.GradScaler(device.type)
        self._has_gradients = False  # a batch without a sample gives none

    def backward(self, loss: Tensor) -> None:
        self._scaler.scale(loss).backward()
        self._has_gradients = True

    def unscale(self, optimizer: Optimizer) -> None:
        if self._has_gradients:
            self._scaler.unscale_(optimizer)

    def step(self, optimizer: Optimizer) -> None:
        if self._has_gradients:
            if may_skip(optimizer) or _are_finite(optimizer):
                self._scaler.step(optimizer)
            self._scaler.update()
        self._has_gradients = False

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = self._scaler.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._scaler = torch.amp.GradScaler(self._device.type)  # a broken step leaves marks
        self._scaler.load_state_dict(state)
        self._has_gradients = False


def _are_finite(optimizer: Optimizer) -> bool:
    """Whether all gradients are finite. On an accelerator this waits."""
    held = (p.grad for group in optimizer.param_groups for p in group["params"])
    return all(bool(gradient.isfinite().all()) for gradient in held if gradient is not None)


PRECISIONS = ("float32", "bfloat16", "float16")


def check_precision(precision: str) -> None:
    """Check that a precision is one of ``PRECISIONS``."""
    if precision not in PRECISIONS:
        names = ", ".join(map(repr, PRECISIONS))
        raise ValueError(f"precision must be one of {names}, got {precision!r}.")


def precision_of(precision: str, device: torch.device) -> Precision:
    """What ``precision`` means on a device.

    Raises:
        ValueError: If it is none of ``PRECISIONS``.
    """
    check_precision(precision)
    if precision == "float16":
        return _Scaled(device)
    return _Mixed(torch.bfloat16, device) if precision == "bfloat16" else Precision()
