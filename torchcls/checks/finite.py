"""What went wrong first where a loss, a gradient or a weight is not finite."""

import math
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from torchcls.checks.findings import Finding, error
from torchcls.checks.graph import ran_exp
from torchcls.structure import mapped


def is_finite(gradients: Iterable[Tensor | None]) -> bool:
    """Whether every number in some gradients is finite. Waits for an accelerator.

    A sum is finite unless one of its terms is not, or it overflows: only then each is looked at.
    """
    for gradient in gradients:
        if gradient is not None and not math.isfinite(abs(gradient.sum().item())):
            values = gradient.coalesce().values() if gradient.is_sparse else gradient
            if not values.isfinite().all():
                return False
    return True


def why_not_finite(
    code: str,
    where: str,
    loss: float,
    inputs: Any,
    targets: Any,
    outputs: Any,
    model: nn.Module,
    kept: str,
) -> Finding:
    """Say what went first: the inputs, the targets, the weights, the outputs or the loss.

    Args:
        code: The code of the finding.
        where: Which batch of which epoch.
        loss: The loss as a number.
        inputs: What the model was given.
        targets: What the loss was given.
        outputs: What the model gave, with its graph; None where nobody kept it.
        model: The model.
        kept: A sentence about what was kept.
    """
    first = _first(inputs, targets, outputs, model)
    return error(code, f"The loss is {loss:g} in {where}. {first} {kept}".rstrip())


def _first(inputs: Any, targets: Any, outputs: Any, model: nn.Module) -> str:
    seen = _bad_in(inputs, "inputs")
    if seen:
        return f"{seen} Clean or fill them: from such a batch on every weight would be NaN."
    seen = _bad_in(targets, "targets")
    if seen:
        return f"{seen} Clean them where the data is read."
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_floating_point() and not tensor.isfinite().all():
            return (
                f"Inputs and targets are finite, but the model's {name} is not: the batches "
                "before have ruined it. Lower the learning rate, or look at its gradient."
            )
    seen = _bad_in(outputs, "outputs")
    if seen:
        exp = ""
        if isinstance(outputs, Tensor) and ran_exp(outputs):
            exp = (
                " An exponential in the model overflows above 88, as in a softmax made by hand: "
                "use log_softmax, or CrossEntropyLoss on raw scores."
            )
        return f"Inputs and weights are finite. {seen}{exp}"
    return (
        "Inputs, weights and outputs are finite: the loss itself overflows, divides 0 by 0 or "
        "takes the logarithm of 0."
    )


def _bad_in(structure: Any, name: str) -> str:
    """The first value that is not finite, and how many there are; empty where all are."""
    seen: list[str] = []

    def look(leaf: Any) -> Any:
        if not seen and isinstance(leaf, Tensor) and leaf.is_floating_point():
            bad = ~leaf.detach().isfinite()
            if bad.any():
                n = int(bad.sum())
                index = bad.nonzero()[0].tolist()
                sample = f", first in sample {index[0]}" if index else ""
                kind = "NaN" if leaf.isnan().any() else "infinity"
                values = "1 value" if n == 1 else f"{n} values"
                seen.append(f"The {name} hold {kind} ({values}{sample}).")
        return leaf

    mapped(look, structure)
    return seen[0] if seen else ""


def why_gradient(where: str, bad: list[str], kept: str) -> Finding:
    """Say which parameters have a gradient that is not finite though the loss is."""
    first = f"the gradient of {bad[0]} is not" if bad else "a gradient is not"
    more = f" ({len(bad)} parameters in all)" if len(bad) > 1 else ""
    return error(
        "non-finite-gradient",
        f"The loss is finite in {where}, but {first}{more}: a square root or a division at 0, or a "
        f"logarithm that was masked only afterwards. {kept}".rstrip(),
    )


class OnDevice:
    """Where nobody waits for an accelerator: counts the losses up to the first that is not finite.

    A fused optimizer is told, without a wait, to skip its steps from there on. Others cannot be.

    Args:
        optimizer: The optimizer to hold back, or None.

    Attributes:
        holds_back: Whether the optimizer is one that can be told.
    """

    def __init__(self, optimizer: Optimizer | None) -> None:
        groups = [] if optimizer is None else optimizer.param_groups
        self.holds_back = bool(groups) and all(group.get("fused") for group in groups)
        self._optimizer: Any = optimizer if self.holds_back else None
        self._are_good: Tensor | None = None
        self._n: Tensor | None = None
        self._seen = 0

    def __enter__(self) -> "OnDevice":
        return self

    def __exit__(self, *failure: object) -> None:
        if self._optimizer is not None and self._seen:
            del self._optimizer.found_inf

    def add(self, loss: Tensor) -> None:
        """Take in the loss of one batch, before the optimizer's step."""
        is_good = loss.isfinite()
        self._are_good = is_good if self._are_good is None else self._are_good & is_good
        self._n = self._are_good.long() if self._n is None else self._n + self._are_good
        self._seen += 1
        if self._optimizer is not None:  # how a GradScaler tells a fused optimizer to skip a step
            self._optimizer.found_inf = (~self._are_good).float()

    def first_bad(self) -> int | None:
        """The number of the first batch whose loss is not finite. Waits for the accelerator."""
        n = self._seen if self._n is None else int(self._n)
        return None if n == self._seen else n
