"""The training step, the mechanism behind every exact number: a list of pieces and one total."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from torchcls.averaging import (
    Averaging,
    Count,
    Sum,
    fraction,
    is_fraction,
    one_loss,
    one_number,
)
from torchcls.layers import Forward
from torchcls.pieces import Pair, Pieces
from torchcls.precision import Precision
from torchcls.structure import num_samples

Loss = Callable[[Any, Any], Any]


@dataclass(slots=True)
class Seen:
    """What went through a step.

    Attributes:
        inputs: What the model was given.
        targets: What the loss was given.
        outputs: What the model gave, with its graph.
    """

    inputs: Any
    targets: Any
    outputs: Any


class Step:
    """Takes the steps of one run or epoch: each on a batch, cut as ``pieces`` says.

    Args:
        model: Any module.
        loss_fn: Called as ``loss_fn(outputs, targets)``.
        averaging: How that loss averages.
        pieces: How a batch is cut.
        precision: What the model runs in.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: Loss,
        averaging: Averaging,
        pieces: Pieces,
        precision: Precision | None = None,
    ) -> None:
        self._model, self._loss_fn, self._averaging = model, loss_fn, averaging
        self._pieces = pieces
        self._precision = precision or Precision()
        self._is_trusted = averaging.name is not None  # another loss is tested where it is cut
        self._seen: tuple[Any, Any, Any] = (None, None, None)

    @property
    def seen(self) -> Seen:
        """The first piece of a batch, between its backward pass and the optimizer's step."""
        return Seen(*self._seen)

    def take(self, batch: Pair, optimizer: Optimizer) -> tuple[Tensor, Count]:
        """Take one optimizer step on one batch; returns its loss and what the batch counts."""
        loss, count = self.gradients(batch, optimizer)
        self.update(optimizer)
        return loss, count

    def gradients(self, batch: Pair, optimizer: Optimizer) -> tuple[Tensor, Count]:
        """The first half of a step: the gradients of one batch and no others."""
        _clear_gradients(optimizer)
        return self.backward(batch)

    def update(self, optimizer: Optimizer) -> None:
        """The second half: the optimizer steps."""
        self._seen = (None, None, None)
        self._precision.step(optimizer)

    def backward(self, batch: Pair) -> tuple[Tensor, Count]:
        """Add a batch's gradients, piece by piece; returns its loss and what the batch counts."""
        forward, pieces = self._pieces.cut(batch)
        if len(pieces) != 1:
            return self._backward_in_pieces(forward, pieces, batch)
        inputs, targets = pieces[0]
        outputs = self._precision.outputs(forward, inputs)
        self._seen = (
            inputs,
            targets,
            outputs,
        )  # made into a Seen for who asks: each step comes here
        # The loss as it is: one piece keeps the very bits of the plain loop.
        loss, count = one_loss(self._loss_fn(outputs, targets), self._averaging.count(targets))
        loss = zero_where_nothing_counts(loss, outputs, count)
        self._precision.backward(loss)
        return loss.detach(), count

    def _backward_in_pieces(
        self, forward: Forward, pieces: list[Pair], batch: Pair
    ) -> tuple[Tensor, Count]:
        averaging = self._averaging
        if not averaging.may_be_cut(batch[1]):
            raise ValueError(
                "micro_batch must be None for a loss_fn whose weight has a row for each sample of "
                "the batch, since a piece has fewer. Give the weights with the targets instead."
            )
        counts = [averaging.count(targets) for _, targets in pieces]
        total: Count = sum(counts)
        whole = Sum()
        kept: list[Any] = []
        for i, ((inputs, targets), count) in enumerate(zip(pieces, counts, strict=True)):
            outputs = self._precision.outputs(forward, inputs)
            if i == 0:
                self._seen = (inputs, targets, outputs)
            if averaging.is_elementwise:
                _check_same_shape(outputs, targets)
            result = self._loss_fn(outputs, targets)
            if i == 0 and is_fraction(result):
                return self._backward_of_fractions(result, forward, pieces)
            if averaging.numerator is None:
                loss = one_number(result) * averaging.share(count, total)
            else:
                loss = averaging.numerator(outputs, targets) * averaging.share(1, total)
                count = total
            loss = zero_where_nothing_counts(loss, outputs, count)
            self._precision.backward(loss)
            whole.add(loss)
            if not self._is_trusted:
                kept.append(outputs.detach() if isinstance(outputs, Tensor) else outputs)
        if not pieces:  # a batch without a sample
            return torch.zeros(()), total
        mean = _as_loss(whole.added(), loss)
        if kept:
            check_pieces_add_up(mean, kept, batch[1], self._loss_fn)
            # A batch may pass by chance, and on the CPU every one is looked at. To look is to wait
            # for an accelerator: there the first one has to do.
            self._is_trusted = loss.device.type != "cpu"
        return mean, total

    def _backward_of_fractions(
        self, result: Any, forward: Forward, pieces: list[Pair]
    ) -> tuple[Tensor, Count]:
        """A loss that returns (numerator, denominator): its total is known after the last piece.

        So the gradients of the numerators are added up beside those that were there before, and
        divided at the end. Each is divided by the number of samples on the way, since float16 ends
        at 65504.
        """
        n = sum(num_samples(targets) for _, targets in pieces)
        whole, total = Sum(), Sum()
        with _beside_the_old_gradients(self._parameters()) as (set_aside, multiply):
            for i, (inputs, targets) in enumerate(pieces):
                if i > 0:
                    outputs = self._precision.outputs(forward, inputs)
                    result = self._loss_fn(outputs, targets)
                numerator, denominator = fraction(result)
                set_aside(_leaves(numerator))
                self._precision.backward(numerator / n)
                whole.add(numerator)
                total.add(denominator)
            count = total.added()
            share: Any  # of nothing at all, nothing
            if isinstance(count, Tensor):  # on an accelerator, where nobody reads it
                share = torch.where(torch.as_tensor(count != 0), 1 / count, 0)
            else:
                share = 1 / count if count else 0
            multiply(n * share)
        return _as_loss(whole.added() * share, numerator), count

    def _parameters(self) -> Iterator[nn.Parameter]:
        for module in (self._model, self._loss_fn):
            if isinstance(module, nn.Module):
                yield from module.parameters()


def _leaves(loss: Tensor) -> Iterator[Tensor]:
    """The tensors that a loss has gradients for: whatever it was computed from."""
    seen = set()
    left: list[Any] = [loss.grad_fn]
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if type(node).__name__ == "AccumulateGrad":
            yield node.variable
        left.extend(following for following, _ in node.next_functions)


def _as_loss(value: Count, like: Tensor) -> Tensor:
    """A sum as a 0-d tensor; of losses in half precision as float32, which can tell it."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    return torch.as_tensor(value, dtype=dtype, device=like.device)


def _clear_gradients(optimizer: Optimizer) -> None:
    """``zero_grad``, without the profiler's record around torch's own: a tenth of a small step."""
    if getattr(optimizer.zero_grad, "__func__", None) is not Optimizer.zero_grad:
        optimizer.zero_grad()
        return
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = None


SetAside = Callable[[Iterable[Tensor]], None]


@contextmanager
def _beside_the_old_gradients(
    parameters: Iterable[Tensor],
) -> Iterator[tuple[SetAside, Callable[[Any], None]]]:
    """Collect new gradients beside the old ones, which are put back if something raises.

    Yields:
        A function that sets the gradients of further tensors aside, and one that multiplies the new
        gradients and adds them to the old ones.
    """
    before: dict[Tensor, Tensor | None] = {}  # tensors hash by identity

    def set_aside(leaves: Iterable[Tensor]) -> None:
        for leaf in leaves:
            if leaf not in before:
                before[leaf], leaf.grad = leaf.grad, None

    def multiply(factor: Any) -> None:
        for leaf, old in before.items():
            new = None if leaf.grad is None else leaf.grad.mul_(factor)
            if old is None or new is None:
                leaf.grad = old if new is None else new
            else:  # a sparse one takes no dense one in
                leaf.grad = new + old if old.is_sparse else old.add_(new)

    set_aside(parameters)
    try:
        yield set_aside, multiply
    except BaseException:
        for leaf, old in before.items():
            leaf.grad = old
        raise


def _check_same_shape(outputs: Any, targets: Tensor) -> None:
    if isinstance(outputs, Tensor) and outputs.shape != targets.shape:
        raise ValueError(
            "targets must have the shape of outputs to be cut by micro_batch, since torch would "
            f"broadcast samples with samples, got targets {tuple(targets.shape)} and outputs "
            f"{tuple(outputs.shape)} in a piece."
        )


def check_pieces_add_up(whole: Tensor, outputs: list[Any], targets: Any, loss_fn: Loss) -> None:
    """Hold the sum of the pieces against the loss of the whole batch, before the optimizer steps.

    Raises:
        ValueError: If a loss of the user's own is no mean over samples, so that it must not be cut.
    """
    fix = "Leave micro_batch at None, or use a loss that is a mean over samples."
    if not all(isinstance(output, Tensor) for output in outputs):
        raise ValueError(
            "micro_batch must be None for a loss_fn of your own on outputs that are no tensor, "
            f"since nothing shows that its pieces add up. {fix}"
        )
    with torch.no_grad():
        uncut, _ = one_loss(loss_fn(torch.cat(outputs), targets), 1)
    # Far wider than rounding, far narrower than what another kind of average is off by. This reads
    # two numbers, so it waits for an accelerator.
    rtol = max(1e-3, 8 * torch.finfo(uncut.dtype).eps)
    if not torch.isclose(whole, uncut.to(whole), rtol=rtol, atol=1e-6, equal_nan=True):
        raise ValueError(
            "loss_fn must be a mean over samples to be cut by micro_batch, got "
            f"{whole.item():.6g} from the pieces and {uncut.item():.6g} from the whole batch. {fix}"
        )


def zero_where_nothing_counts(loss: Tensor, outputs: Any, count: Count) -> Tensor:
    """Turn torch's 0/0, the mean over targets that are all ignored, into a loss of 0.

    The gradient is masked where it enters the outputs: further back it would meet 0 * NaN.
    """
    if not isinstance(count, Tensor) and count != 0:
        return loss
    counts = torch.as_tensor(count != 0, device=loss.device)  # no wait: compared on the device

    # Not where a model gives a parameter as it is: there the hook would stay.
    if isinstance(outputs, Tensor) and outputs.grad_fn is not None:
        outputs.register_hook(lambda gradient: torch.where(counts, gradient, 0))
    return torch.where(counts, loss, 0)
