"""The benchmark's task, and how it is done with torch alone and with torchcls.

A contestant takes a ``Task`` and a clock, starts the clock when everything is imported and built,
laps it after the training and validation of each epoch, and returns the last epoch's validation
loss and accuracy.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import torchcls as tc

Split = tuple[Tensor, Tensor]
Result = tuple[float, float]

LR, BETAS, EPS, DECAY = 1e-3, (0.9, 0.99), 1e-5, 0.01  # fastai's Adam, for everyone


class Clock(Protocol):
    """What a contestant is timed with."""

    def start(self) -> None: ...  # noqa: D102
    def lap(self) -> None: ...  # noqa: D102


@dataclass
class Task:
    """A model and its data, in the order in which everyone goes through them."""

    model: nn.Module
    train: Split
    valid: Split
    batch_size: int
    valid_batch_size: int
    epochs: int
    ready: bool = False  # the batches are cut beforehand: what is timed is the step alone
    loss_fn: nn.Module = field(default_factory=nn.CrossEntropyLoss)

    @property
    def device(self) -> torch.device:
        """Where the model is, and where everyone works."""
        return next(self.model.parameters()).device

    def batches(self) -> tuple[Any, Any]:
        """Training and validation as people write it: a DataLoader; or the batches cut before."""
        if self.ready:
            return self.ready_batches()
        train, valid = TensorDataset(*self.train), TensorDataset(*self.valid)
        return (
            DataLoader(train, batch_size=self.batch_size),
            DataLoader(valid, batch_size=self.valid_batch_size),
        )

    def loaders(self) -> tuple[DataLoader[Any], DataLoader[Any]]:
        """The same for a library that insists on DataLoaders."""
        train, valid = self.batches()
        if self.ready:  # batch_size=None: a list item is a batch, and nothing is collated
            return DataLoader(train, batch_size=None), DataLoader(valid, batch_size=None)
        return train, valid

    def ready_batches(self) -> tuple[list[Split], list[Split]]:
        """All batches, cut."""
        return cut(self.train, self.batch_size), cut(self.valid, self.valid_batch_size)


def cut(split: Split, size: int) -> list[Split]:
    """A split as a list of batches; the last one may be smaller."""
    return list(zip(*(part.split(size) for part in split), strict=True))


def adamw(model: nn.Module, **options: Any) -> torch.optim.AdamW:
    """AdamW as people write it: two groups, no decay on biases and on the scales of BatchNorm."""
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": DECAY},
        {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=LR, betas=BETAS, eps=EPS, **options)


# --- torch alone ----------------------------------------------------------------------------------


def plain_loop(task: Task, clock: Clock, **options: Any) -> Result:
    """The loop of every tutorial; it keeps the loss of each epoch, as everyone else does."""
    train, valid = task.batches()
    optimizer = adamw(task.model, **options)
    history = []
    clock.start()
    for _ in range(task.epochs):
        task.model.train()
        total, seen = 0.0, 0
        for inputs, targets in train:
            optimizer.zero_grad()
            loss = task.loss_fn(task.model(inputs), targets)
            loss.backward()
            optimizer.step()
            total, seen = total + loss.item() * len(targets), seen + len(targets)
        history.append((total / seen, *plain_validation(task, valid)))
        clock.lap()
    return history[-1][1:]


def plain_validation(task: Task, valid: Iterable[Split]) -> Result:
    """Exact loss and accuracy of the validation split."""
    task.model.eval()
    loss, correct, seen = 0.0, 0, 0
    with torch.no_grad():
        for inputs, targets in valid:
            outputs = task.model(inputs)
            loss += task.loss_fn(outputs, targets).item() * len(targets)
            correct += (outputs.argmax(dim=1) == targets).sum().item()
            seen += len(targets)
    return loss / seen, correct / seen


def plain_loop_fused(task: Task, clock: Clock) -> Result:
    return plain_loop(task, clock, fused=True)


# --- torchcls -------------------------------------------------------------------------------------


def torchcls(task: Task, clock: Clock) -> Result:
    """Fit on ``Batches``, or on the list of ready ones."""
    if task.ready:
        return torchcls_on(task, clock, *task.batches())
    return torchcls_on(
        task,
        clock,
        tc.Batches(*task.train, batch_size=task.batch_size),
        tc.Batches(*task.valid, batch_size=task.valid_batch_size),
    )


def torchcls_dataloader(task: Task, clock: Clock) -> Result:
    """Fit on the DataLoaders that everyone else gets."""
    return torchcls_on(task, clock, *task.batches())


def torchcls_on(task: Task, clock: Clock, train: Any, valid: Any, **options: Any) -> Result:
    clock.start()
    run = tc.epochs(  # fit is this loop; written out, it can be timed like the others
        task.model,
        train,
        valid,
        loss_fn=task.loss_fn,
        epochs=task.epochs,
        metrics=[tc.accuracy],
        device=task.device,
        progress=False,
        **options,
    )
    for _ in run:
        clock.lap()
    return run.history[-1].valid_loss, run.history[-1].accuracy
