"""The training step and one epoch of it, as a plain loop that never takes a mean of means."""

import functools
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import Dataset

from torchcls.averaging import Mean, averaging_of, wide
from torchcls.data.batches import Batches
from torchcls.data.loaders import taken_at_once
from torchcls.device import device_of, select_device, to_device
from torchcls.modes import training
from torchcls.pieces import check_micro_batch, pieces_for
from torchcls.step import Loss, Step

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
        ValueError: If ``micro_batch`` is below 1, ``loss_fn`` returns more than one number, or is
            a loss of your own whose pieces do not add up to the whole batch. Where something raises
            between two pieces, ``.grad`` holds what the pieces before it added.

    Example:
        >>> model = nn.Linear(2, 3)
        >>> batch = torch.randn(70, 2), torch.randint(3, (70,))
        >>> loss = backward(model, batch, nn.CrossEntropyLoss(), micro_batch=32)  # 32 + 32 + 6
        >>> bool(torch.isclose(loss, nn.CrossEntropyLoss()(model(batch[0]), batch[1])))
        True
    """
    check_micro_batch(micro_batch)
    step = Step(model, loss_fn, averaging_of(loss_fn), pieces_for(model, micro_batch))
    loss, _ = step.backward(as_pair(batch, "batch"))
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
    averaging_of(loss_fn)  # what is wrong with it shall show before anything is moved
    device = place(model, device, optimizer=optimizer)
    loss_fn = loss_on(loss_fn, device)
    averaging = averaging_of(loss_fn)
    step = Step(model, loss_fn, averaging, pieces_for(model, micro_batch))
    mean = Mean()
    with training(model):
        for batch in pairs(batches, "batches"):
            loss, count = step.take(to_device(batch, device), optimizer)
            mean.add(wide(averaging.reported(loss, count)), count)
    move_on(batches)
    return mean.value()


def place(model: nn.Module, device: Device, *, optimizer: Optimizer | None = None) -> torch.device:
    """Take the model and its optimizer's state to a device.

    ``module.to`` keeps its parameters' identity, so an optimizer built before still holds them;
    only what it remembers about them (momentum) has to follow.
    """
    place = device_of(model) if device is None else select_device(device)
    if device is not None:
        model.to(place)
    if optimizer is not None and _is_elsewhere(optimizer):
        optimizer.load_state_dict(optimizer.state_dict())  # casts every state to its parameter
    return place


def loss_on(loss_fn: Loss, device: torch.device) -> Loss:
    """The loss with its weights on a device: a module is moved, a partial made anew."""
    if isinstance(loss_fn, nn.Module):
        return loss_fn.to(device)
    if isinstance(loss_fn, functools.partial):
        keywords = to_device(loss_fn.keywords, device)
        return functools.partial(loss_fn.func, *loss_fn.args, **keywords)
    return loss_fn


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


def set_epoch(batches: Any, epoch: int) -> None:
    """Tell samplers and datasets that shuffle by the number of the epoch which one begins.

    torch's ``DistributedSampler`` and many of people's own have a ``set_epoch``; without it each
    epoch comes in the same order.
    """
    batch_sampler = getattr(batches, "batch_sampler", None)
    parts = (
        batches,
        getattr(batches, "sampler", None),
        batch_sampler,
        getattr(batch_sampler, "sampler", None),
        getattr(batches, "dataset", None),
    )
    for part in {id(part): part for part in parts}.values():
        if callable(getattr(part, "set_epoch", None)):
            part.set_epoch(epoch)


def pairs(batches: Iterable[Any], name: str) -> Iterator[tuple[Any, Any]]:
    """Yield the batches, each checked to be a pair (inputs, targets).

    Raises:
        TypeError: If ``batches`` cannot be iterated, or a batch is no pair.
        ValueError: If there is no batch at all.
    """
    source = taken_at_once(batches)
    try:
        iterator = iter(source)
    except TypeError:
        raise TypeError(not_batches(batches, name)) from None
    is_empty = True
    for batch in iterator:
        pair = as_pair(batch, name)
        if is_empty:
            check_no_sample(batches, pair, name)
        yield pair
        is_empty = False
    if is_empty:
        raise ValueError(no_batch(batches, name))


def check_no_sample(batches: Any, pair: tuple[Any, Any], name: str) -> None:
    """Refuse a dataset, or a list of samples, where batches are wanted.

    Raises:
        TypeError: If the first item of a dataset or a list has a single number as its target.
    """
    target = pair[1]
    is_one = target.ndim == 0 if isinstance(target, Tensor) else isinstance(target, (int, float))
    if is_one and isinstance(batches, (Dataset, list, tuple)):
        raise TypeError(
            f"{name} must give batches, got the single samples of a {type(batches).__name__}. "
            "Wrap it: torch.utils.data.DataLoader(samples, batch_size=64, shuffle=True)."
        )


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
