"""The training step, the mechanism behind every exact number: a list of pieces and one total."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from torchcls.averaging import Averaging, Count, fraction, is_fraction, one_loss, one_number
from torchcls.layers import Forward
from torchcls.pieces import Pair, Pieces
from torchcls.precision import Precision
from torchcls.structure import mapped

Loss = Callable[[Any, Any], Any]


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

    def take(self, batch: Pair, optimizer: Optimizer) -> tuple[Tensor, Count]:
        """Take one optimizer step on one batch; returns its loss and what the batch counts."""
        _clear_gradients(optimizer)
        loss, count = self.backward(batch)
        self._precision.step(optimizer)
        return loss, count

    def backward(self, batch: Pair) -> tuple[Tensor, Count]:
        """Add a batch's gradients, piece by piece; returns its loss and what the batch counts."""
        forward, pieces = self._pieces.cut(batch)
        if len(pieces) != 1:
            return self._backward_in_pieces(forward, pieces, batch)
        inputs, targets = pieces[0]
        outputs = self._precision.outputs(forward, inputs)
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
        whole: Any = 0
        kept: list[Any] = []
        for i, ((inputs, targets), count) in enumerate(zip(pieces, counts, strict=True)):
            outputs = self._precision.outputs(forward, inputs)
            result = self._loss_fn(outputs, targets)
            if i == 0 and is_fraction(result):
                return self._backward_of_fractions(result, forward, pieces)
            loss = one_number(result) * averaging.share(count, total)
            loss = zero_where_nothing_counts(loss, outputs, count)
            self._precision.backward(loss)
            whole = whole + loss.detach()
            if not self._is_trusted:
                kept.append(outputs.detach() if isinstance(outputs, Tensor) else outputs)
        if kept:
            check_pieces_add_up(whole, kept, batch[1], self._loss_fn)
            # A batch may pass by chance, and on the CPU every one is looked at. To look is to wait
            # for an accelerator: there the first one has to do.
            self._is_trusted = whole.device.type != "cpu"
        return torch.as_tensor(whole), total  # a tensor already, but for a batch without a sample

    def _backward_of_fractions(
        self, result: Any, forward: Forward, pieces: list[Pair]
    ) -> tuple[Tensor, Count]:
        """A loss that returns (numerator, denominator): its total is known after the last piece.

        So the numerators' gradients are added up as they are, beside those that were there before,
        and divided at the end.
        """
        whole: Any = 0
        total: Any = 0
        with _divided_at_the_end(self._trained()) as divide_by:
            for i, (inputs, targets) in enumerate(pieces):
                if i > 0:
                    outputs = self._precision.outputs(forward, inputs)
                    result = self._loss_fn(outputs, targets)
                numerator, denominator = fraction(result)
                if denominator.requires_grad:
                    raise ValueError(
                        "micro_batch must be None for a loss_fn whose denominator depends on the "
                        "model. Return denominator.detach() if it is only a count."
                    )
                self._precision.backward(numerator)
                whole, total = whole + numerator.detach(), total + denominator
            divisor = torch.where(total != 0, total, 1)
            divide_by(divisor)
        return whole / divisor, total

    def _trained(self) -> list[nn.Parameter]:
        modules = [self._model, self._loss_fn]
        found = (
            parameter
            for module in modules
            if isinstance(module, nn.Module)
            for parameter in module.parameters()
        )
        return list(dict.fromkeys(found))


def _clear_gradients(optimizer: Optimizer) -> None:
    """``zero_grad``, without the profiler's record around torch's own: a tenth of a small step."""
    if getattr(optimizer.zero_grad, "__func__", None) is not Optimizer.zero_grad:
        optimizer.zero_grad()
        return
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = None


@contextmanager
def _divided_at_the_end(
    parameters: Iterable[nn.Parameter],
) -> Iterator[Callable[[Tensor], None]]:
    """Collect new gradients beside the old ones; the function that is handed out adds them."""
    before = [(parameter, parameter.grad) for parameter in parameters]
    for parameter, _ in before:
        parameter.grad = None

    def divide_by(total: Tensor) -> None:
        for parameter, old in before:
            new = parameter.grad
            if new is not None:
                parameter.grad = new.div_(total) if old is None else old.add_(new.div_(total))

    try:
        yield divide_by
    except BaseException:
        for parameter, old in before:
            parameter.grad = old
        raise
    for parameter, old in before:
        if parameter.grad is None:
            parameter.grad = old


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
    if not torch.isclose(whole, uncut.to(whole), rtol=1e-3, atol=1e-6, equal_nan=True):
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

    def mask(leaf: Any) -> None:
        if isinstance(leaf, Tensor) and leaf.requires_grad:
            leaf.register_hook(lambda gradient: torch.where(counts, gradient, 0))

    mapped(mask, outputs)
    return torch.where(counts, loss, 0)
