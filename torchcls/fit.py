"""A whole run: epochs of training and validation, with a history. The loop stays the user's."""

import contextlib
import sys
import time
from collections.abc import Collection, Iterable, Iterator
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from torchcls.arguments import check_whole_number
from torchcls.averaging import Count, Mean, averaging_of, wide
from torchcls.checks.findings import Check, check_choice
from torchcls.checks.preflight import Preflight
from torchcls.data.nearby import Nearby
from torchcls.device import device_of, select_device, to_device
from torchcls.evaluation import Evaluation, measure
from torchcls.history import History, Record, header, row
from torchcls.loops import (
    Device,
    loss_on,
    move_on,
    no_batch,
    not_batches,
    num_batches,
    pairs,
    place,
)
from torchcls.modes import training
from torchcls.optim import check_lr, check_optimizer, default_optimizer, pace_of
from torchcls.pieces import MicroBatch, check_micro_batch, pieces_for
from torchcls.precision import check_precision, precision_of
from torchcls.scorers import Metrics, named_metrics
from torchcls.step import Loss, Step

_RESERVED = ("epoch", "train_loss", "smooth_loss", "valid_loss", "time")


def fit(
    model: nn.Module,
    train: Iterable[Any],
    valid: Iterable[Any] | None = None,
    *,
    loss_fn: Loss,
    epochs: int = 10,
    metrics: Metrics = (),
    optimizer: Optimizer | None = None,
    lr: float | None = None,
    schedule: Any = None,
    device: Device = None,
    precision: str = "float32",
    micro_batch: MicroBatch = "auto",
    check: Check = "error",
    ignore: Collection[str] = (),
    progress: bool | None = None,
) -> History:
    """Train a model for some epochs, validate after each, and return the history.

    Args:
        model: Any module.
        train: Anything that can be iterated again and yields pairs (inputs, targets): a DataLoader,
            a ``Batches``, a list.
        valid: The same for validation, or None.
        loss_fn: Called as ``loss_fn(outputs, targets)``. Averages are exact for the losses of torch
            and torchcls; another one is taken as a mean over samples, or returns
            (numerator, denominator).
        epochs: How often to go through ``train``.
        metrics: What to measure on ``valid``, as ``evaluate`` takes it.
        optimizer: Any optimizer over the model's parameters. None builds ``default_optimizer``.
        lr: Learning rate of the default optimizer, 1e-3 if None; not beside ``optimizer``.
        schedule: ``tc.one_cycle()``, any function from progress in [0, 1) to a scale of each
            group's own lr (or to scale and momentum), or a scheduler of torch, which is stepped
            once per epoch; ``OneCycleLR`` and ``CyclicLR`` per step, ``ReduceLROnPlateau`` on
            valid_loss.
        device: Where to work. None keeps a model that is on an accelerator, and else takes it to
            ``select_device()``. The model stays there afterwards.
        precision: "float32"; "bfloat16" or "float16" run the model under ``torch.autocast``, with
            float32 weights, and hand float32 outputs to loss and metrics. "float16" scales the loss
            and skips a step whose gradients overflow.
        micro_batch: Samples that go through at a time. The step is that of the whole batch to
            rounding; see ``backward``. None leaves batches whole. "auto" cuts on the CPU, where a
            batch's activations are larger than the cache and the model is a ``Sequential`` of
            torch's own layers that treat every sample by itself, with a loss that torchcls knows;
            everywhere else, and in another precision than float32, it leaves batches whole.
            ``history.micro_batch`` says what it chose.
        check: What to do about what the preflight finds in model, loss, targets, metrics, optimizer
            and data; see ``check``. It reads the first training step before the optimizer does, and
            the loss and gradients of every step on the CPU. "error" raises ``ContractError`` where
            something is certainly wrong and warns once of what almost certainly is; "warn" warns of
            both; "off" does not look. ``history.findings`` keeps all of it, notes included.
        ignore: Codes of findings to leave out, such as ``["valid-is-train"]``.
        progress: None shows a bar in a terminal and plain lines in a pipe; True and False force it
            on and off.

    Returns:
        A ``History``: one record for each epoch.

    Raises:
        TypeError, ValueError: Before anything runs where an argument does not fit; at the batch
            where a batch does not.
        ContractError: A ValueError: before the weights have moved where the preflight finds a
            mistake; at the first batch whose loss or gradients are not finite, with the weights of
            the step before it.

    Example:
        >>> import torch
        >>> from torchcls import Batches, accuracy, drawn_digits
        >>> train = Batches(*drawn_digits(200, classes=(0, 1)), batch_size=32, shuffle=True)
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(784, 2))
        >>> valid = Batches(*drawn_digits(100, classes=(0, 1), seed=1), batch_size=100)
        >>> history = fit(model, train, valid, loss_fn=nn.CrossEntropyLoss(), epochs=2,
        ...               metrics=[accuracy], progress=False)
        >>> list(history[-1])
        ['epoch', 'train_loss', 'smooth_loss', 'valid_loss', 'accuracy', 'time']
    """
    run = Run(
        model,
        train,
        valid,
        loss_fn=loss_fn,
        epochs=epochs,
        metrics=metrics,
        optimizer=optimizer,
        lr=lr,
        schedule=schedule,
        device=device,
        precision=precision,
        micro_batch=micro_batch,
        check=check,
        ignore=ignore,
        progress=progress,
    )
    for _ in run:
        pass
    return run.history


class Run:
    """A run as an iterator over its epochs: the loop, and so early stopping, is yours.

    Takes the arguments of ``fit``, and checks them here and not at the first epoch. Each round of
    the loop trains one epoch, validates, and hands out its record. Between epochs nothing is held:
    ``break`` needs no clean-up, and iterating again goes on where the last loop stopped.

    Attributes:
        history: What was reached so far; complete also after an interrupt.
        optimizer: The optimizer, the user's own or the default one.

    Example:
        >>> import torch
        >>> batches = [(torch.randn(8, 2), torch.randint(3, (8,)))]
        >>> run = epochs(nn.Linear(2, 3), batches, loss_fn=nn.CrossEntropyLoss(),
        ...              epochs=100, progress=False)
        >>> for epoch in run:
        ...     if epoch.epoch == 1:
        ...         run.stop()
        >>> len(run.history)
        2
    """

    def __init__(
        self,
        model: nn.Module,
        train: Iterable[Any],
        valid: Iterable[Any] | None = None,
        *,
        loss_fn: Loss,
        epochs: int = 10,
        metrics: Metrics = (),
        optimizer: Optimizer | None = None,
        lr: float | None = None,
        schedule: Any = None,
        device: Device = None,
        precision: str = "float32",
        micro_batch: MicroBatch = "auto",
        check: Check = "error",
        ignore: Collection[str] = (),
        progress: bool | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be an instance of nn.Module, got {model!r}.")
        check_whole_number("epochs", epochs, at_least=1)
        check_micro_batch(micro_batch, may_be_auto=True)
        check_precision(precision)
        check_choice(check, ignore)
        _check_source(train, "train")
        if valid is not None:
            _check_source(valid, "valid")
        _check_metrics(metrics, has_valid=valid is not None)
        if optimizer is not None and lr is not None:
            raise ValueError(
                f"lr must not stand beside optimizer, which has its own, got lr={lr!r}. "
                "Set the lr where the optimizer is built."
            )
        if optimizer is not None:
            check_optimizer(optimizer)
        if lr is not None:
            check_lr(lr)
        averaging_of(loss_fn)
        target = _target_device(model, device)
        self.optimizer = (
            default_optimizer(model, 1e-3 if lr is None else lr) if optimizer is None else optimizer
        )
        self.history = History()
        self._pace = pace_of(
            schedule,
            self.optimizer,
            epochs=epochs,
            steps=num_batches(train),
            has_valid=valid is not None,
        )
        self._preflight = Preflight(
            model,
            loss_fn,
            metrics,
            self.optimizer,
            train,
            valid,
            check=check,
            ignore=ignore,
            has_schedule=schedule is not None,
            scales_loss=precision == "float16",
        )
        self.history.findings = self._preflight.findings  # the same list: more may follow
        # Everything is checked: from here on something changes.
        self._device = place(model, target, optimizer=self.optimizer)
        self._model, self._train, self._valid = model, train, valid
        self._loss_fn, self._metrics = loss_fn, metrics
        self._epochs = epochs
        self._precision = precision_of(precision, self._device)
        if precision != "float32" and micro_batch == "auto":
            micro_batch = None  # what "auto" knows of layers and sizes, it knows of float32
        self._pieces = pieces_for(model, micro_batch)
        # Validation has a mode and a batch of its own; a size that was asked for is for training.
        self._valid_pieces = pieces_for(model, "auto" if micro_batch == "auto" else None)
        self._nearby = Nearby(self._device)
        self._smooth = _Smooth()
        self._display = _Display(progress, epochs)
        self._stopped = False

    def stop(self) -> None:
        """End the run after the epoch at hand."""
        self._stopped = True

    def __iter__(self) -> "Run":
        return self

    def __next__(self) -> Record:
        if self._stopped or len(self.history) == self._epochs:
            raise StopIteration
        started = time.perf_counter()
        epoch = len(self.history)
        mean = self._train_one_epoch(epoch)
        self._preflight.end_epoch(mean)
        found = None if self._valid is None else self._validate(self._valid, epoch)
        # Asked for only now: on an accelerator this is the first moment that waits for training.
        record = Record(epoch=epoch, train_loss=mean.value(), smooth_loss=self._smooth.value())
        if found is not None:
            record["valid_loss"] = found.loss
            for name, value in found.metrics.items():  # a matrix, say, as nested lists
                record[name] = value.tolist() if isinstance(value, Tensor) else value
        self._pace.after_epoch(record.get("valid_loss"))
        record["time"] = time.perf_counter() - started
        self.history.append(record)
        self._display.show(record)
        return record

    def _pass(
        self, source: Iterable[Any], name: str, epoch: int
    ) -> contextlib.AbstractContextManager[Iterable[Any]]:
        """One pass over a source, or over its copy on the accelerator, behind a bar."""
        return self._display.bar(self._nearby.copy(source), name, epoch)

    def _validate(self, valid: Iterable[Any], epoch: int) -> Evaluation:
        with (
            self._pass(valid, "valid", epoch) as batches,
            self._preflight.of_valid(batches) as seen,
        ):
            return measure(
                self._model,
                seen,
                self._loss_fn,
                self._metrics,
                self._device,
                self._valid_pieces,
                self._precision,
                self._preflight.at_valid,
            )

    def _train_one_epoch(self, epoch: int) -> Mean:
        """``train_one_epoch`` with a schedule, the running mean and a display around its steps."""
        # Asked again in every epoch: class weights may have changed since.
        loss_fn = loss_on(self._loss_fn, self._device)
        averaging = averaging_of(loss_fn)
        step = Step(self._model, loss_fn, averaging, self._pieces, self._precision)
        mean, preflight = Mean(), self._preflight
        with (
            training(self._model),
            self._pace.during_epoch(epoch),
            self._pass(self._train, "train", epoch) as batches,
            preflight.of_epoch(epoch, batches) as seen,
        ):
            self._pieces.renew(averaging)
            for batch in seen:
                batch = to_device(batch, self._device)
                self._pace.before_step()
                loss, count = step.gradients(batch, self.optimizer)
                reported = wide(averaging.reported(loss, count))
                preflight.before_step(batch, step, reported)
                step.update(self.optimizer)
                self._pace.after_step()
                mean.add(reported, count)
                self._smooth.add(reported)
        self.history.micro_batch = self._pieces.size
        move_on(self._train)
        return mean


epochs = Run


class _Smooth:
    """fastai's debiased running mean: every batch counts alike, and an epoch does not reset it."""

    def __init__(self) -> None:
        self._sum: Count = 0.0
        self._steps = 0

    def add(self, loss: Count) -> None:
        self._sum = 0.98 * self._sum + 0.02 * loss
        self._steps += 1

    def value(self) -> float:
        return float(self._sum) / (1 - 0.98**self._steps)


class _Display:
    """What a run shows: a bar and a table in a terminal, the plain table in a pipe, or nothing."""

    def __init__(self, progress: bool | None, epochs: int) -> None:
        self._has_table = progress is not False
        is_terminal = sys.stdout is not None and sys.stdout.isatty()  # None in a windowed program
        self._has_bar = is_terminal if progress is None else progress
        self._epochs = epochs

    @contextlib.contextmanager
    def bar(self, source: Iterable[Any], name: str, epoch: int) -> Iterator[Iterable[Any]]:
        """Hand out the checked batches of one pass, behind a bar that is gone afterwards."""
        batches = pairs(source, f"{name} in epoch {epoch}" if epoch else name)
        if not self._has_bar:
            yield batches
            return
        from tqdm import tqdm

        description = f"epoch {epoch + 1}/{self._epochs} {name}"
        total = num_batches(source)
        with tqdm(batches, description, total, leave=False, file=sys.stdout) as bar:
            yield bar

    def show(self, record: Record) -> None:
        """Add a line to the table."""
        if self._has_table:
            if record.epoch == 0:
                print(header(record), flush=True)
            print(row(record), flush=True)


def _target_device(model: nn.Module, device: Device) -> Device:
    if device is not None:
        return select_device(device)
    return select_device() if device_of(model).type == "cpu" else None  # None: it stays there


def _check_source(batches: Any, name: str) -> None:
    """Check what can be seen of a source of batches without starting it."""
    if isinstance(batches, Iterator):
        raise TypeError(
            f"{name} must be something that can be iterated again, got {type(batches).__name__}, "
            "which runs dry after one epoch. Pass a list, a DataLoader or a tc.Batches."
        )
    if isinstance(batches, Tensor) or not hasattr(batches, "__iter__") | hasattr(
        batches, "__getitem__"
    ):
        raise TypeError(not_batches(batches, name))
    if num_batches(batches) == 0:
        raise ValueError(no_batch(batches, name))


def _check_metrics(metrics: Metrics, *, has_valid: bool) -> None:
    names = named_metrics(metrics)
    taken = [name for name in names if name in _RESERVED]
    if taken:
        raise ValueError(
            f"metrics must not be named like another column ({', '.join(_RESERVED)}), "
            f"got {taken[0]!r}. Name it with a dict: metrics={{'my_{taken[0]}': metric}}."
        )
    if names and not has_valid:
        raise ValueError(
            f"metrics must have a valid to be measured on, got {', '.join(names)} and valid=None."
        )
