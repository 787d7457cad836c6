"""One exact backward pass, and one epoch of steps, for loops that stay the user's own."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from torchcls.averaging import averaging_of
from torchcls.batches import as_pair
from torchcls.device import Device, place
from torchcls.group import Group
from torchcls.run import Run, Source
from torchcls.step import ForwardOf, Loss, Pieces, Step, check_can_train, check_micro_batch


def backward(
    model: nn.Module,
    batch: Any,
    loss_fn: Loss,
    *,
    micro_batch: int | None = None,
    forward: ForwardOf = None,
) -> Tensor:
    """Run the exact forward and backward of one batch; the rest of the loop stays yours.

    With ``micro_batch`` the batch is cut into pieces that go through one after the other, which
    needs less memory. The gradients and the loss are those of the whole batch to rounding (for
    models that neither draw random numbers nor mix samples), whatever the sizes of the pieces,
    class weights or ignored targets: gradient accumulation without its usual errors. (A loss of
    your own that returns (numerator, denominator) is exact, too, but saves no memory: its total is
    known after the last piece, and nothing can go backward before.)

    Gradients are added to what ``.grad`` holds, as ``loss.backward()`` does. The mode of the model
    is left alone, and so is the device of the batch.

    Args:
        model: Any module.
        batch: A pair (inputs, targets): tensors, or tuples, lists and dicts of them.
        loss_fn: Called as ``loss_fn(outputs, targets)``. One that torchcls does not know is taken
            as a mean over samples; it may also return (numerator, denominator).
        micro_batch: Samples in a piece; None for the whole batch at once.
        forward: What to call in place of ``model(inputs)``, as ``forward(model, inputs)``: a model
            of several arguments takes ``forward=lambda model, inputs: model(*inputs)``.

    Returns:
        The loss of the whole batch, 0-d, without a graph: what ``loss_fn`` gives. A batch in which
        no target counts has loss 0 and gradients 0, where torch gives NaN.

    Raises:
        TypeError: If ``batch`` is no pair, ``micro_batch`` is no whole number, or ``loss_fn`` does
            not return a tensor.
        ValueError: If ``micro_batch`` is below 1, ``loss_fn`` returns more than one number, or is
            a loss of your own whose pieces do not add up to the whole batch. Where something raises
            between two pieces, ``.grad`` holds what the pieces before it added.

    Examples:
        >>> import torch
        >>> model = nn.Linear(2, 3)
        >>> batch = torch.randn(70, 2), torch.randint(3, (70,))
        >>> loss = backward(model, batch, nn.CrossEntropyLoss(), micro_batch=32)  # 32 + 32 + 6
        >>> bool(torch.isclose(loss, nn.CrossEntropyLoss()(model(batch[0]), batch[1])))
        True
    """
    check_can_train()
    check_micro_batch(micro_batch)
    pair = as_pair(batch, "batch")
    step = Step(model, loss_fn, pieces=Pieces(model, micro_batch, forward=forward))
    return step.backward(pair).loss


def train_one_epoch(
    model: nn.Module,
    batches: Iterable[Any],
    loss_fn: Loss,
    optimizer: Optimizer,
    *,
    device: Device = None,
    micro_batch: int | None = None,
    forward: ForwardOf = None,
    group: Group | None = None,
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
        forward: Called as ``forward(model, inputs)`` in place of ``model(inputs)``.
        group: The processes that share every batch, as ``tc.processes()`` gives them; None trains
            in this one alone.

    Returns:
        The mean loss of the epoch: one sum over all targets that count, divided by one sum, each
        loss taken before its step. With ``reduction="sum"`` it is the loss per sample.

    Raises:
        TypeError, ValueError: If ``batches`` is empty or holds something else than pairs, or for
            the reasons ``backward`` has.

    Examples:
        >>> import torch
        >>> model = nn.Linear(2, 3)
        >>> batches = [(torch.randn(16, 2), torch.randint(3, (16,))) for _ in range(4)]
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> loss = train_one_epoch(model, batches, nn.CrossEntropyLoss(), optimizer)
    """
    check_micro_batch(micro_batch)
    pieces = Pieces(model, micro_batch, forward=forward)
    averaging_of(loss_fn)  # what is wrong with it shall show before anything is moved
    device = place(model, device, optimizer=optimizer)
    step = Step(model, loss_fn, device=device, pieces=pieces, group=group)
    source = Source("batches", batches, lambda epoch: step.group.shares(batches))
    run = Run(model, source, step, optimizer, device)
    return float(next(run)["train_loss"])
