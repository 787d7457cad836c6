"""The training step and one epoch of it, as a plain loop that never takes a mean of means."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from torchcls.arguments import check_whole_number
from torchcls.averaging import Averaging, Count, Mean, averaging_of, one_loss
from torchcls.data.batches import Batches
from torchcls.device import device_of, select_device, to_device
from torchcls.modes import training
from torchcls.structure import split

Loss = Callable[[Any, Any], Any]
Device = str | torch.device | None


def backward(
    model: nn.Module, batch: Any, loss_fn: Loss, *, micro_batch: int | None = None
) -> Tensor:
    """Run the exact forward and backward of one batch; the rest of the loop stays yours.

    With ``micro_batch`` the batch is cut into pieces that go through one after the other, which
    needs less memory. The gradients and the loss are those of the whole batch to rounding (for
    models that neither draw random numbers nor mix samples), whatever the sizes of the pieces,
    class weights or ignored targets: gradient accumulation without its usual errors.

    Gradients are added to what ``.grad`` holds, as ``loss.backward()`` does. The mode of the model
    is left alone, and so is the device of the batch.

    Args:
        model: Any module.
        batch: A pair (inputs, targets): tensors, or tuples, lists and dicts of them.
        loss_fn: Called as ``loss_fn(outputs, targets)``. One that torchcls does not know is taken
            as a mean over samples; it may also return (numerator, denominator).
        micro_batch: Samples in a piece; None for the whole batch at once.

    Returns:
        The loss of the whole batch, 0-d, without a graph: what ``loss_fn`` gives. A batch in which
        no target counts has loss 0 and gradients 0, where torch gives NaN.

    Raises:
        TypeError: If ``batch`` is no pair, ``micro_batch`` is no whole number, or ``loss_fn`` does
            not return a tensor.
        ValueError: If ``micro_batch`` is below 1, ``loss_fn`` returns more than one number, or it
            returns (numerator, denominator), or is a loss of your own whose pieces do not add up to
            the whole, for a batch that is cut into several pieces.

    Example:
        >>> model = nn.Linear(2, 3)
        >>> batch = torch.randn(70, 2), torch.randint(3, (70,))
        >>> loss = backward(model, batch, nn.CrossEntropyLoss(), micro_batch=32)  # 32 + 32 + 6
        >>> bool(torch.isclose(loss, nn.CrossEntropyLoss()(model(batch[0]), batch[1])))
        True
    """
    check_micro_batch(micro_batch)
    loss, _ = forward_backward(
        model, as_pair(batch, "batch"), loss_fn, averaging_of(loss_fn), micro_batch
    )
    return loss


def train_one_epoch(
    model: nn.Module,
    batches: Iterable[Any],
    loss_fn: Loss,
    optimizer: Optimizer,
    *,
    device: Device = None,
    micro_batch: int | None = None,
) -> float:
    """Train on every batch once.

    The model is in training mode meanwhile and every module gets its own mode back. A root that is
    in training mode already keeps the modes of its submodules, so what is frozen stays frozen.

    Args:
        model: Any module.
        batches: Any iterable of pairs (inputs, targets). The ``epoch`` of a ``Batches`` moves on by
            one, so that the next pass takes another order.
        loss_fn: Called as ``loss_fn(outputs, targets)``; see ``backward``.
        optimizer: Any optimizer whose ``step`` needs no closure.
        device: Where to work; the model and the optimizer's state are taken there. None stays where
            the model is.
        micro_batch: Samples in a piece of a batch; None for whole batches. See ``backward``.

    Returns:
        The mean loss of the epoch: one sum over all targets that count, divided by one sum, each
        loss taken before its step. With ``reduction="sum"`` it is the loss per sample.

    Raises:
        TypeError, ValueError: If ``batches`` is empty or holds something else than pairs, or for
            the reasons ``backward`` has.

    Example:
        >>> model = nn.Linear(2, 3)
        >>> batches = [(torch.randn(16, 2), torch.randint(3, (16,))) for _ in range(4)]
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> loss = train_one_epoch(model, batches, nn.CrossEntropyLoss(), optimizer)
    """
    check_micro_batch(micro_batch)
    averaging = averaging_of(loss_fn)
    device = place(model, device, loss_fn=loss_fn, optimizer=optimizer)
    mean = Mean()
    with training(model):
        for batch in pairs(batches, "batches"):
            batch = to_device(batch, device)
            loss, count = train_step(model, batch, loss_fn, averaging, optimizer, micro_batch)
            mean.add(averaging.reported(loss, count), count)
    move_on(batches)
    return mean.value()


def train_step(
    model: nn.Module,
    batch: tuple[Any, Any],
    loss_fn: Loss,
    averaging: Averaging,
    optimizer: Optimizer,
    micro_batch: int | None,
) -> tuple[Tensor, Count]:
    """Take one optimizer step on one batch; returns its loss and what the batch counts."""
    optimizer.zero_grad()
    loss, count = forward_backward(model, batch, loss_fn, averaging, micro_batch)
    optimizer.step()
    return loss, count


def forward_backward(
    model: nn.Module,
    batch: tuple[Any, Any],
    loss_fn: Loss,
    averaging: Averaging,
    micro_batch: int | None,
) -> tuple[Tensor, Count]:
    """Add a batch's gradients, piece by piece; returns its loss and what the batch counts.

    This is the mechanism behind every exact number: a list of pieces and one total.
    """
    pieces = split(batch, micro_batch) if micro_batch else [batch]
    counts = [averaging.count(targets) for _, targets in pieces]
    total: Count = sum(counts)
    whole: Any = 0
    kept: list[Any] = []
    for (inputs, targets), count in zip(pieces, counts, strict=True):
        outputs = model(inputs)
        loss, own = one_loss(loss_fn(outputs, targets), count)
        if own is not count:  # the loss brought its own denominator
            if len(pieces) > 1:
                raise ValueError(
                    "micro_batch must be None for a loss_fn that returns (numerator, denominator), "
                    "since the share of a piece is not known before the last one."
                )
            total = own
        elif len(pieces) > 1:  # one piece keeps the very bits of the plain loop
            loss = loss * averaging.share(count, total)
        loss = zero_where_nothing_counts(loss, outputs, count)
        loss.backward()
        whole = whole + loss.detach()
        if len(pieces) > 1 and averaging.name is None:
            kept.append(outputs.detach() if isinstance(outputs, Tensor) else outputs)
    if kept:
        check_pieces_add_up(whole, kept, batch[1], loss_fn)
    return torch.as_tensor(whole), total  # a tensor already, but for a batch without a sample


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
    if isinstance(outputs, Tensor) and outputs.requires_grad:
        outputs.register_hook(lambda gradient: torch.where(counts, gradient, 0))
    return torch.where(counts, loss, 0)


def place(
    model: nn.Module,
    device: Device,
    *,
    loss_fn: Loss | None = None,
    optimizer: Optimizer | None = None,
) -> torch.device:
    """Take the model, its optimizer's state and its loss's weights to a device.

    ``module.to`` keeps its parameters' identity, so an optimizer built before still holds them;
    only what it remembers about them (momentum) has to follow.
    """
    place = device_of(model) if device is None else select_device(device)
    if device is not None:
        model.to(place)
    if isinstance(loss_fn, nn.Module):
        loss_fn.to(place)
    if optimizer is not None and _is_elsewhere(optimizer):
        optimizer.load_state_dict(optimizer.state_dict())  # casts every state to its parameter
    return place


def _is_elsewhere(optimizer: Optimizer) -> bool:
    return any(
        isinstance(value, Tensor) and value.ndim > 0 and value.device != parameter.device
        for parameter, state in optimizer.state.items()
        for value in state.values()
    )


def move_on(batches: Iterable[Any]) -> None:
    """After a whole training pass: let a ``Batches`` take its next order."""
    if isinstance(batches, Batches):
        batches.epoch += 1


def pairs(batches: Iterable[Any], name: str) -> Iterator[tuple[Any, Any]]:
    """Yield the batches, each checked to be a pair (inputs, targets).

    Raises:
        TypeError: If ``batches`` cannot be iterated, or a batch is no pair.
        ValueError: If there is no batch at all.
    """
    try:
        iterator = iter(batches)
    except TypeError:
        raise TypeError(not_batches(batches, name)) from None
    is_empty = True
    for batch in iterator:
        yield as_pair(batch, name)
        is_empty = False
    if is_empty:
        raise ValueError(no_batch(batches, name))


def num_batches(batches: Any) -> int | None:
    """How many batches a pass gives; None where the source does not tell."""
    try:
        return len(batches)
    except TypeError:  # no __len__, or the loader of a dataset without one
        return None


def not_batches(batches: Any, name: str) -> str:
    """Say that ``batches`` cannot be iterated as pairs."""
    return (
        f"{name} must be an iterable of pairs (inputs, targets), got {type(batches).__name__}. "
        "Cut tensors into batches with tc.Batches(inputs, targets, batch_size=64)."
    )


def no_batch(batches: Any, name: str) -> str:
    """Say that ``batches`` gives none, and why where that can be seen."""
    dataset: Any = getattr(batches, "dataset", None)
    batch_size = getattr(batches, "batch_size", None)
    why = "."
    if getattr(batches, "drop_last", False) and batch_size and hasattr(dataset, "__len__"):
        why = (
            f" ({len(dataset)} samples, batch_size={batch_size}, drop_last=True). "
            "Lower batch_size or set drop_last=False."
        )
    elif isinstance(batches, Iterator):
        why = ": an iterator runs dry after one pass. Pass a list, a DataLoader or a tc.Batches."
    return f"{name} must give at least one batch, got none{why}"


def as_pair(batch: Any, name: str) -> tuple[Any, Any]:
    """Check that a batch is a pair (inputs, targets).

    Raises:
        TypeError: If it is not; the message shows the one line that makes it a pair.
    """
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        return batch[0], batch[1]
    if isinstance(batch, dict):
        seen = f"a dict with the keys {', '.join(map(repr, batch)) or '(none)'}"
        target = next((key for key in _TARGET_KEYS if key in batch), next(reversed(batch), "y"))
        others = [key for key in batch if key != target]
        inputs = f"b[{others[0]!r}]" if len(others) == 1 else "b"  # several: the model takes all
        fix = f"next(({inputs}, b[{target!r}]) for b in [default_collate(items)])"
    elif isinstance(batch, (tuple, list)) and len(batch) > 2:
        seen, fix = f"{len(batch)} parts", "default_collate(items)[:2]"
    else:
        shape = f" of shape {tuple(batch.shape)}" if isinstance(batch, Tensor) else ""
        seen, fix = f"one {type(batch).__name__}{shape}", ""
    remedy = (
        f"Give the DataLoader collate_fn=lambda items: {fix}, "
        "with default_collate from torch.utils.data."
        if fix
        else "Put each input and its target together, as in TensorDataset(inputs, targets)."
    )
    raise TypeError(f"{name} must hold pairs (inputs, targets), got {seen}. {remedy}")


_TARGET_KEYS = ("labels", "label", "targets", "target", "y")


def check_micro_batch(micro_batch: int | None) -> None:
    """Check that ``micro_batch`` is None or a whole number of at least 1."""
    if micro_batch is not None:
        check_whole_number("micro_batch", micro_batch, at_least=1)
