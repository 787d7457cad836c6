"""The training step: a list of pieces and one total, each piece with its exact share of it."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from torchcls.averaging import (
    Averaging,
    Count,
    Sum,
    averaging_of,
    divided,
    fraction,
    is_fraction,
    one_number,
    wide,
)
from torchcls.batches import (
    Pair,
    check_whole_number,
    joined,
    mapped,
    no_rows,
    split,
    to_device,
)
from torchcls.group import Group

Loss = Callable[[Any, Any], Any]
Forward = Callable[[Any], Any]
ForwardOf = Callable[[Any, Any], Any] | None  # called as forward(model, inputs); None: the model is


@dataclass(slots=True)
class Taken:
    """What a step saw.

    Attributes:
        loss: What the loss function gave for the whole batch, 0-d, without its graph.
        mean: The loss as it is reported: a number on the CPU, a 0-d tensor elsewhere.
        numerator: What the batch adds to the numerator of an epoch's mean.
        count: What it adds to the denominator.
        inputs: The first piece of the batch; the whole batch where it was not cut.
        targets: Of the same piece.
        outputs: Of the same piece, with their graph.
        batch: The whole batch.
        parts: Outputs, without their graph, and targets of every piece, in order, where the step
            keeps them; see ``Step``.
    """

    loss: Tensor
    mean: Count
    numerator: Count
    count: Count
    inputs: Any
    targets: Any
    outputs: Any
    batch: Pair
    parts: Sequence[Pair] = ()


def forward_of(model: nn.Module, forward: ForwardOf) -> Forward:
    """What to call on inputs: the model, or what the user calls with it."""
    if forward is not None and not callable(forward):
        raise TypeError(f"forward must be callable as (model, inputs), got {forward!r}.")
    return model if forward is None else functools.partial(forward, model)


def check_can_train() -> None:
    """Refuse to train where no tensor can ever take a gradient."""
    if torch.is_inference_mode_enabled():
        raise RuntimeError(
            "training must not run under torch.inference_mode(): tensors made there never take "
            "gradients. Build the model and train it outside; torch.no_grad() may stay."
        )


class Pieces:
    """Cuts every batch into pieces of ``size`` samples; None leaves it whole.

    ``is_plain`` says whether the model is called as ``model(inputs)``.
    """

    def __init__(
        self, model: nn.Module, size: int | None = None, *, forward: ForwardOf = None
    ) -> None:
        self._model, self._call = model, forward_of(model, forward)
        self.size, self.is_plain = size, forward is None

    def renew(self, averaging: Averaging | None = None) -> None:
        """Look at the model and at how its loss averages, at the start of a pass."""

    def cut(self, batch: Pair) -> tuple[Forward, list[Pair]]:
        """Give what to call on the inputs of each piece, and the pieces."""
        if self.size is None:
            return self._call, [batch]
        return self._call, split(batch, self.size)

    def outputs(self, inputs: Any) -> Any:
        """The outputs of a whole batch, without gradients."""
        return self._call(inputs)

    def state_dict(self) -> dict[str, Any]:
        """How batches are cut from here on."""
        return {"size": self.size}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Cut as before."""
        self.size = state["size"]


def check_micro_batch(micro_batch: Any, *, may_be_auto: bool = False) -> None:
    """Check that ``micro_batch`` is None, a whole number above 0, or "auto" where it may be."""
    if micro_batch is None or (micro_batch == "auto" and may_be_auto):
        return
    if isinstance(micro_batch, str):
        other = "'auto', " if may_be_auto else ""
        fix = " 'auto' is for tc.fit and tc.epochs." if micro_batch == "auto" else ""
        raise TypeError(
            f"micro_batch must be {other}None or a whole number, got {micro_batch!r}.{fix}"
        )
    check_whole_number("micro_batch", micro_batch, at_least=1)


class Precision:
    """What a model runs in: float32, that is everything as the model has it."""

    def outputs(self, forward: Forward, inputs: Any) -> Any:
        """Run a model."""
        return forward(inputs)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss."""
        loss.backward()

    def unscale(self, optimizer: Optimizer) -> None:
        """Make the gradients the true ones, before anyone clips them or steps on them."""

    def step(self, optimizer: Optimizer) -> None:
        """Let the optimizer step on the gradients."""
        optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        """What moves from step to step: the scale of the loss, where there is one."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state."""


class Step:
    """Takes the steps of a run: each on one batch, cut as ``pieces`` says.

    Args:
        model: Any module.
        loss_fn: Called as ``loss_fn(outputs, targets)``.
        device: Where the batches will be, to take the loss's weights there; None leaves them.
        pieces: How a batch is cut; None leaves it whole.
        precision: What the model runs in; None is float32.
        clip_norm: The largest global norm of the gradients; longer ones are scaled down to it.
        keeps_outputs: Whether ``Taken.parts`` are wanted.
        group: The processes that share every batch; None is this one alone.
        watch: From the loss to what is called in its place, by whoever looks at its first call.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: Loss,
        *,
        device: torch.device | None = None,
        pieces: Pieces | None = None,
        precision: Precision | None = None,
        clip_norm: float | None = None,
        keeps_outputs: bool = False,
        group: Group | None = None,
        watch: Callable[[Loss], Loss] = lambda loss_fn: loss_fn,
    ) -> None:
        self._keeps_outputs, self._watch, self.group = keeps_outputs, watch, group or Group()
        self._given_loss, self._device, self._clip_norm = loss_fn, device, clip_norm
        self.pieces, self.precision = pieces or Pieces(model), precision or Precision()
        self.renew()

    def renew(self) -> None:
        """Ask how the loss averages, at the start of a pass: its class weights may have changed."""
        loss_fn, device = self._given_loss, self._device
        self.loss_fn = loss_fn if device is None else loss_on(loss_fn, device)
        self._called = self._watch(self.loss_fn)
        self._averaging = averaging_of(self.loss_fn)
        self._is_trusted = self._averaging.name is not None  # others are tested where they are cut
        self.pieces.renew(self._averaging)

    def gradients(self, batch: Pair, optimizer: Optimizer) -> Taken:
        """The first half of a step: the gradients of one batch and no others."""
        if getattr(optimizer.zero_grad, "__func__", None) is not Optimizer.zero_grad:
            optimizer.zero_grad()
        else:  # the same without the profiler's record around torch's own: a tenth of a small step
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.grad = None
        return self.backward(batch)

    def update(self, optimizer: Optimizer, hold: Tensor | None = None) -> None:
        """The second half: clip the true gradients, and let the optimizer step.

        Args:
            optimizer: The optimizer.
            hold: A 0-d tensor that is 1 where a fused optimizer is to skip this step, which is how
                a GradScaler tells it without a wait; None lets any optimizer step.
        """
        self.precision.unscale(optimizer)
        if self._clip_norm is not None:
            held = [p for group in optimizer.param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(held, self._clip_norm)
        if hold is None:
            self.precision.step(optimizer)
            return
        told: Any = optimizer
        told.found_inf = hold
        try:
            self.precision.step(optimizer)
        finally:
            del told.found_inf

    def backward(self, batch: Pair) -> Taken:
        """Add a batch's gradients, piece by piece."""
        forward, pieces = self.pieces.cut(batch)
        if len(pieces) != 1 or self.group.size > 1:
            return self._backward_in_pieces(forward, pieces, batch)
        inputs, targets = pieces[0]
        averaging = self._averaging
        outputs = self.precision.outputs(forward, inputs)
        # The loss as it is: one piece keeps the very bits of the plain loop.
        loss, count = averaging.read(self._called(outputs, targets), pieces[0])
        loss = zero_where_nothing_counts(loss, outputs, count)
        self.precision.backward(loss)
        loss = loss.detach()
        mean = wide(averaging.reported(loss, count))
        if averaging.numerator is None:
            numerator = mean * count
        else:
            numerator = wide(averaging.numerator(outputs.detach(), targets))
        parts = [(without_graph(outputs), targets)] if self._keeps_outputs else ()
        return Taken(loss, mean, numerator, count, inputs, targets, outputs, batch, parts)

    def _backward_in_pieces(self, forward: Forward, pieces: list[Pair], batch: Pair) -> Taken:
        averaging, group = self._averaging, self.group
        if not averaging.may_be_cut(batch[1]):
            raise ValueError(
                "micro_batch must be None for a loss_fn whose weight has a row for each sample of "
                "the batch, since a piece has fewer (as has the share of one of several "
                "processes). Give the weights with the targets instead."
            )
        pieces, real = group.evened(pieces, self.pieces.size)
        counts = [averaging.count(p) if i < real else 0 for i, p in enumerate(pieces)]
        total: Count = sum(counts)
        added: Count | None = None  # the numerator of the whole batch, where it is known early
        whole, numerators = Sum(), Sum()
        fractions: list[tuple[Tensor, Tensor]] = []
        parts: list[Pair] = []
        first: Any = (*batch, None)
        loss = torch.zeros((), device="cpu")
        for i, ((inputs, targets), count) in enumerate(zip(pieces, counts, strict=True)):
            is_real, is_last = i < real, i == len(pieces) - 1
            outputs = self.precision.outputs(forward, inputs)
            first = (inputs, targets, outputs) if i == 0 else first
            if self._keeps_outputs or not self._is_trusted:
                part = without_graph(outputs), targets
                parts.append(part if is_real else no_rows(part))
            if averaging.is_elementwise:
                _check_same_shape(outputs, targets)
            result = self._called(outputs, targets)
            if is_fraction(result):
                top, bottom = fraction(result)
                top = zero_where_nothing_counts(top, outputs, int(is_real))
                fractions.append((top, bottom * is_real))
                continue
            if averaging.numerator is None:
                term, times = one_number(result), 1 if averaging.is_sum else count
                term = zero_where_nothing_counts(term, outputs, count)
            else:
                term, times = averaging.numerator(outputs, targets), 1
                term = zero_where_nothing_counts(term, outputs, int(is_real))
            if group.size > 1 or averaging.numerator is not None:
                numerators.add(wide(term) * times)
            if i == 0:
                total, added = group.total(total, numerators.added() if is_last else None)
            loss = term * averaging.share(times, total)
            if averaging.numerator is not None:
                loss = zero_where_nothing_counts(loss, outputs, total)
            self.precision.backward(group.reduced(loss, is_last=is_last))
            whole.add(loss)
        if fractions:  # their total is known only now, so none could go backward before
            columns: Any = zip(*fractions, strict=True)
            summed: list[Any] = [sum(map(_wide_enough, column)) for column in columns]
            tops, bottoms = summed
            total, added = group.total(wide(bottoms), wide(tops))
            total = torch.as_tensor(total, dtype=bottoms.dtype, device=bottoms.device)
            loss, total = divided((tops, total))
            loss = zero_where_nothing_counts(loss, None, total)
            self.precision.backward(group.reduced(loss, is_last=True))
            whole.add(loss)
        group.stepped()
        result = whole.added()
        if group.size > 1:
            (added,) = group.sum(numerators.added()) if added is None else (added,)
            result = added * averaging.share(1, total)
            parts = [tuple(map(joined, zip(*parts, strict=True)))] if parts else []
        # Half precision cannot tell a sum.
        dtype = torch.promote_types(loss.dtype, torch.float32)
        of_batch = torch.as_tensor(result, dtype=dtype, device=loss.device)
        if parts and not fractions and not self._is_trusted:
            self._check_pieces_add_up(of_batch, parts, batch)
        mean = wide(averaging.reported(of_batch, total))
        if group.size == 1:
            added = mean * total if averaging.numerator is None else numerators.added()
        assert added is not None
        inputs, targets, outputs = first
        return Taken(of_batch, mean, added, total, inputs, targets, outputs, batch, parts)

    def _check_pieces_add_up(self, whole: Tensor, parts: list[Pair], batch: Pair) -> None:
        """Let the first process compare, and know from then on that a loss may be cut."""
        group = self.group
        found = parts if group.size == 1 else group.gathered(parts)
        with group.together():
            if found is not None:
                targets = batch[1] if group.size == 1 else joined([part[1] for part in found])
                _check_pieces_add_up(whole, [part[0] for part in found], targets, self.loss_fn)
        # A batch may pass by chance, and on the CPU every one is looked at. To look is to wait for
        # an accelerator, or for all processes: there the first one has to do.
        self._is_trusted = whole.device.type != "cpu" or group.size > 1

    def state_dict(self) -> dict[str, Any]:
        """What moves from step to step, beside weights and optimizer."""
        return {"precision": self.precision.state_dict(), "pieces": self.pieces.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.precision.load_state_dict(state["precision"])
        self.pieces.load_state_dict(state["pieces"])


def may_skip(optimizer: Optimizer) -> bool:
    """Whether an optimizer that is told to skip a step, by ``found_inf``, leaves its state alone.

    torch's fused SGD writes its momentum all the same, and the next good step ruins the weights.
    """
    is_sgd = isinstance(optimizer, SGD)
    groups = optimizer.param_groups
    return not (is_sgd and any(g.get("fused") and g.get("momentum") for g in groups))


def loss_on(loss_fn: Loss, device: torch.device) -> Loss:
    """The loss with its weights on a device: a module is moved, a partial made anew."""
    if isinstance(loss_fn, nn.Module):
        return loss_fn.to(device)
    if isinstance(loss_fn, functools.partial):
        keywords = to_device(loss_fn.keywords, device)
        return functools.partial(loss_fn.func, *loss_fn.args, **keywords)
    return loss_fn


def without_graph(outputs: Any) -> Any:
    """The same tensors, which no backward pass will go through."""
    return mapped(lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, outputs)


def _wide_enough(number: Tensor) -> Tensor:
    return number.to(torch.promote_types(number.dtype, torch.float32))


def _check_same_shape(outputs: Any, targets: Tensor) -> None:
    if isinstance(outputs, Tensor) and outputs.shape != targets.shape:
        raise ValueError(
            "targets must have the shape of outputs to be cut by micro_batch, since torch would "
            f"broadcast samples with samples, got targets {tuple(targets.shape)} and outputs "
            f"{tuple(outputs.shape)} in a piece."
        )


def _check_pieces_add_up(whole: Tensor, outputs: list[Any], targets: Any, loss_fn: Loss) -> None:
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
        uncut = one_number(loss_fn(torch.cat(outputs), targets))
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
