"""A whole run: epochs of training and validation, with a history. The loop stays the user's."""

import contextlib
import itertools
import os
import time
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer
from torch.utils.data import TensorDataset

from torchcls.arguments import check_whole_number
from torchcls.averaging import Count, Mean, averaging_of, wide
from torchcls.checks.findings import Check, check_choice
from torchcls.checks.preflight import Preflight
from torchcls.data.nearby import Nearby
from torchcls.device import device_of, select_device, to_device
from torchcls.display import Display
from torchcls.evaluation import Evaluation, measure
from torchcls.held import set_source_state, source_state, why_not_replayed
from torchcls.history import History, Record
from torchcls.keeper import Keeper
from torchcls.loops import (
    Device,
    check_no_sample,
    loss_on,
    move_on,
    no_batch,
    not_batches,
    num_batches,
    place,
    set_epoch,
)
from torchcls.modes import training
from torchcls.optim import check_lr, check_optimizer, default_optimizer, pace_of
from torchcls.pieces import MicroBatch, check_micro_batch, pieces_for
from torchcls.precision import check_precision, precision_of
from torchcls.randomness import (
    accelerator_state,
    global_state,
    set_accelerator_state,
    set_global_state,
)
from torchcls.replay import CannotReplayError, Passed
from torchcls.resume import (
    Best,
    Forward,
    check_modules,
    check_told,
    circumstances,
    differences,
    load_modules,
    load_optimizer,
    modules_state,
    plain,
    told,
)
from torchcls.scorers import Metrics, named_metrics
from torchcls.step import Loss, Step
from torchcls.warn import warn

Folder = str | os.PathLike[str]

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
    checkpoint: Folder | None = None,
    resume: bool = False,
    save_every: float = 60,
    best: str = "valid_loss",
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
        checkpoint: A folder for the state of the run: ``last.pt``, ``best.pt``, and ``epoch.pt``,
            an earlier one to fall back to. None keeps nothing. Each is a file of
            ``save_checkpoint``; ``torch.load(path, weights_only=True)["model"]`` are the weights.
        resume: Whether to go on with the run in ``checkpoint`` where there is one, from its last
            whole step and to the same bits; the README says what is promised. The arguments must
            be those it was begun with. A run that ended, also by ``stop``, is not trained further.
        save_every: Seconds between two states inside an epoch. Another one is written at the end of
            every epoch, before its record is handed out.
        best: The column of the history that says which epoch's weights are the best: a loss, one of
            torchcls's metrics by name, or "min:" or "max:" and the name of another one.
        progress: None shows a bar in a terminal and plain lines in a pipe; True and False force it
            on and off.

    Returns:
        A ``History``: one record for each epoch.

    Raises:
        TypeError, ValueError: Before anything runs where an argument does not fit; at the batch
            where a batch does not.
        OSError: Before anything runs where ``checkpoint`` cannot be written. Later that costs a
            warning, and the run goes on.
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
        checkpoint=checkpoint,
        resume=resume,
        save_every=save_every,
        best=best,
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
        checkpoint: Folder | None = None,
        resume: bool = False,
        save_every: float = 60,
        best: str = "valid_loss",
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
        _check_keeping(checkpoint, resume, save_every)
        self._best = Best(best, metrics, has_valid=valid is not None)
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
        self._keeper = None if checkpoint is None else Keeper(Path(checkpoint), save_every)
        kept = None
        if self._keeper is not None:
            self._told = told(
                train=train,
                valid=valid,
                loss_fn=loss_fn,
                metrics=metrics,
                optimizer=self.optimizer,
                schedule=schedule,
                epochs=epochs,
                precision=precision,
                micro_batch=micro_batch,
            )
            kept = self._keeper.open(
                resume=resume, check=lambda state, path: self._check(state, path, model, loss_fn)
            )
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
        self._display = Display(progress, epochs)
        self._stopped = False
        self._at_hand: _Epoch | None = None
        self._generators: dict[str, Any] | None = None  # of a state, until its epoch begins
        self._is_begun = False  # whether there is a state to go back to
        self._is_kept = True  # whether the last epoch is on disk
        self._is_torn = False  # whether weights and sums may be half way through a step
        if kept is not None and self._keeper is not None:
            self._load(kept)
            if self._at_hand is None:
                self._keep_best(self._keeper)  # an interrupt may have come before it
            self._display.say(_where(self.history, self._at_hand, self._stopped, checkpoint))

    def _check(self, state: dict[str, Any], path: Path, model: nn.Module, loss_fn: Loss) -> None:
        check_modules(model, loss_fn, state, path)
        check_told(state["told"], self._told, path)

    def stop(self) -> None:
        """End the run after the epoch at hand; it stays ended when it is resumed."""
        self._stopped = True
        is_between_steps = self._at_hand is None or self._at_hand.is_waiting
        if self._keeper is not None and self._is_begun and is_between_steps:
            self._keeper.save(self._state())

    def __iter__(self) -> "Run":
        return self

    def __next__(self) -> Record:
        is_stopped = self._stopped and self._at_hand is None  # an epoch at hand comes to its end
        if is_stopped or len(self.history) >= self._epochs:
            raise StopIteration
        try:
            why = None
            try:
                if self._at_hand is None:
                    self._at_hand = self._begin()
                elif self._at_hand.is_waiting:
                    self._take_up(self._at_hand)
                return self._go_through(self._at_hand)
            except CannotReplayError as error:
                why = str(error)
            # Outside of the except: its traceback would keep the loader that failed.
            self._at_hand = self._begin_again(why)
            return self._go_through(self._at_hand)
        except BaseException:
            self._keep_what_is_whole()
            raise

    # ------------------------------------------------------------------ one epoch

    def _begin(self) -> "_Epoch":
        """Begin the next epoch."""
        if self._keeper is None:
            return _Epoch(self._preflight)
        if self._generators is not None:
            self._restore_generators(self._generators)
        tensors = itertools.chain(self._model.parameters(), self._model.buffers())
        if not self._is_begun and not any(map(is_lazy, tensors)):
            self._keeper.save(self._state(), must=True)
            self._keeper.prove_space()
        self._is_begun = True
        return self._watched_epoch()

    def _watched_epoch(self) -> "_Epoch":
        return _Epoch(
            self._preflight,
            Passed(self._train, self._device),
            Forward(self._model, self._loss_fn),
            self._sources(),
        )

    def _go_through(self, at_hand: "_Epoch") -> Record:
        """Train one epoch, or the rest of it, and validate."""
        epoch = len(self.history)
        if not at_hand.is_trained:
            self._train_one_epoch(at_hand, epoch)
        found = None if self._valid is None else self._validate(self._valid, epoch)
        # Asked for only now: on an accelerator this is the first moment that waits for training.
        mean, smooth = at_hand.mean.value(), self._smooth.value()
        record = Record(epoch=epoch, train_loss=mean, smooth_loss=smooth)
        if found is not None:
            record["valid_loss"] = found.loss
            for name, value in found.metrics.items():  # a matrix, say, as nested lists
                record[name] = plain(value.tolist() if isinstance(value, Tensor) else value)
        self._is_torn = True
        self._pace.after_epoch(record.get("valid_loss"))
        record["time"] = at_hand.seconds()
        self._is_kept = False
        self.history.append(record)
        self._at_hand, self._is_torn = None, False
        self._keep_epoch()
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

    def _train_one_epoch(self, at_hand: "_Epoch", epoch: int) -> None:
        """``train_one_epoch`` with a schedule, the running mean and a display around its steps."""
        # Asked again in every epoch: class weights may have changed since.
        loss_fn = loss_on(self._loss_fn, self._device)
        averaging = averaging_of(loss_fn)
        step = Step(self._model, loss_fn, averaging, self._pieces, self._precision)
        mean, preflight = at_hand.mean, self._preflight
        set_epoch(self._train, epoch)
        with (
            training(self._model),
            self._pace.during_epoch(epoch, at_hand.number),
            self._pass(self._train, "train", epoch) as batches,
            preflight.of_epoch(epoch, at_hand.rest_of(batches), at_hand.number) as seen,
        ):
            self._pieces.renew(averaging)
            for batch in seen:
                batch = to_device(batch, self._device)
                self._pace.before_step()
                loss, count = step.gradients(batch, self.optimizer)
                reported = wide(averaging.reported(loss, count))
                preflight.before_step(batch, step, reported)
                self._is_torn = True
                step.update(self.optimizer)
                self._pace.after_step()
                mean.add(reported, count)
                self._smooth.add(reported)
                at_hand.end_step(batch[1])
                self._is_torn = False
                if self._keeper is not None and self._keeper.is_due():
                    at_hand.look_between_steps()
                    self._keeper.save(self._state())
        preflight.end_epoch(mean)
        self._is_torn = True
        self.history.micro_batch = self._pieces.size
        move_on(self._train)
        at_hand.end_training(self._sources())
        self._is_torn = False

    # ------------------------------------------------------------------ what survives

    def _keep_epoch(self) -> None:
        if self._keeper is not None:
            self._keep_best(self._keeper)
            self._keeper.save(self._state())
        self._is_kept = True

    def _keep_best(self, keeper: Keeper) -> None:
        if self.history and self._best.is_last(self.history):
            record = dict(self.history[-1])
            keeper.save_best(model=self._model.state_dict(), record=record)

    def _state(self) -> dict[str, Any]:
        """All that a later process needs to go on from here."""
        at_hand = self._at_hand
        return {
            **modules_state(self._model, self._loss_fn),
            "optimizer": plain(self.optimizer.state_dict()),
            "schedule": plain(self._pace.state_dict()),
            "precision": self._precision.state_dict(),
            "pieces": [self._pieces.state_dict(), self._valid_pieces.state_dict()],
            "smooth": self._smooth.state_dict(),
            "history": self.history.state_dict(),
            "preflight": self._preflight.state_dict(),
            "stopped": self._stopped,
            "told": self._told,
            "circumstances": circumstances(self._device),
            "generators": self._where_generators_stand() if at_hand is None else None,
            "at_hand": None if at_hand is None else at_hand.state_dict(),
        }

    def _where_generators_stand(self) -> dict[str, Any]:
        # Those of a state that was loaded stand as long as no epoch has begun from it.
        return self._generators or {
            "global": global_state(),
            "accelerator": accelerator_state(self._device),
            "sources": self._sources(),
        }

    def _load(self, state: dict[str, Any]) -> None:
        """Go to a state; its generators follow when its epoch begins, since others may draw."""
        load_optimizer(self.optimizer, state["optimizer"])
        load_modules(self._model, self._loss_fn, state)
        self._pace.load_state_dict(state["schedule"])
        self._precision.load_state_dict(state["precision"])
        for pieces, kept in zip((self._pieces, self._valid_pieces), state["pieces"], strict=True):
            pieces.load_state_dict(kept)
        self._smooth.load_state_dict(to_device(state["smooth"], self._device))
        self.history.load_state_dict(state["history"])
        self._preflight.load_state_dict(state["preflight"])
        self._stopped = state["stopped"]
        self._is_begun, self._at_hand, self._generators = True, None, state["generators"]
        if state["at_hand"] is not None:
            self._at_hand = self._watched_epoch()
            self._at_hand.load_state_dict(state["at_hand"], self._device)
        changed = differences(state["circumstances"], circumstances(self._device))
        if changed:
            warn(f"The run goes on to rounding, not to the same bits: {changed}.")

    def _sources(self) -> dict[str, Any]:
        return {"train": source_state(self._train), "valid": source_state(self._valid)}

    def _restore_sources(self, states: dict[str, Any]) -> dict[str, str]:
        """Put back the generators of train and valid; why either may give other batches."""
        found = {}
        for name, source in (("train", self._train), ("valid", self._valid)):
            # Validation seldom draws, and persistent workers that draw nothing hide nothing.
            is_drawing = name == "train" and len(self.history) > 0
            why = why_not_replayed(source) if is_drawing else None
            differing = set_source_state(source, states[name])
            if differing:
                more = f" and {len(differing) - 5} more" if len(differing) > 5 else ""
                why = f"it keeps a state of its own ({', '.join(differing[:5])}{more})"
            if why:
                found[name] = why
        return found

    def _restore_generators(self, generators: dict[str, Any]) -> None:
        """Put all generators where they stood between two epochs."""
        set_global_state(generators["global"])
        set_accelerator_state(generators["accelerator"], self._device)
        found = self._restore_sources(generators["sources"])
        self._generators = None
        for name, why in found.items():
            warn(f"{name} may give other batches than in a run that was not stopped: {why}.")

    def _take_up(self, at_hand: "_Epoch") -> None:
        """Go on inside an epoch."""
        self._generators = None
        found = self._restore_sources(at_hand.sources)
        # A state of its own is no matter where a checksum will tell.
        if "train" in found and not at_hand.is_trained:
            if at_hand.number == 0 or why_not_replayed(self._train):
                raise CannotReplayError(found["train"])
            del found["train"]
        at_hand.take_up()
        for name, why in found.items():
            warn(f"{name} may give other batches than in a run that was not stopped: {why}.")

    def _begin_again(self, why: str) -> "_Epoch":
        """Begin an epoch once more that cannot be taken up inside."""
        assert self._keeper is not None
        assert self._at_hand is not None
        number, epoch = self._at_hand.number, len(self.history)
        self._load(self._keeper.start_of(epoch))
        warn(
            f"The run goes on from the start of epoch {epoch} (counted from 0) and not from its "
            f"batch {number}, since train cannot be replayed: {why}."
        )
        return self._begin()

    def _keep_what_is_whole(self) -> None:
        """After an interrupt or an error: keep all whole steps, and nothing of a broken one."""
        at_hand, was_torn, self._is_torn = self._at_hand, self._is_torn, False
        if self._keeper is None or not self._is_begun:
            self._at_hand = None
        elif at_hand is None:
            if not self._is_kept:
                self._keep_epoch()
        elif at_hand.is_waiting:
            pass  # nothing has moved since it was kept
        elif was_torn or not at_hand.put_back():
            self._go_back(self._keeper, at_hand)
        else:
            at_hand.leave()
            if at_hand.number > 0:
                self._keeper.save(self._state())

    def _go_back(self, keeper: Keeper, at_hand: "_Epoch") -> None:
        """Leave a step that was broken off half way by going back to the last state on disk."""
        before = len(self.history), at_hand.number
        try:
            self._load(keeper.newest())
        except (OSError, ValueError) as error:
            self._at_hand = None
            warn(f"The step at hand was broken off half way, and there is no way back: {error}")
            return
        after = len(self.history), self._at_hand.number if self._at_hand else 0
        warn(
            "The step at hand was broken off half way, so the run is back at its last checkpoint: "
            f"(epoch, batch) {after} in place of {before}."
        )


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

    def state_dict(self) -> dict[str, Any]:
        return {"sum": self._sum, "steps": self._steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._sum, self._steps = state["sum"], state["steps"]


class _Epoch:
    """The epoch at hand.

    Attributes:
        mean: Its loss so far.
        is_trained: Whether all its steps are taken.
        is_waiting: Whether it was left inside, and has to be taken up first.
        sources: Where the generators of the sources stood at its start, or after its training.
    """

    def __init__(
        self,
        preflight: Preflight,
        passed: Passed | None = None,
        forward: Forward | None = None,
        sources: dict[str, Any] | None = None,
    ) -> None:
        self._preflight, self._passed, self._forward = preflight, passed, forward
        self.sources = sources or {}
        self.mean = Mean()
        self.is_trained = self.is_waiting = False
        self._earlier_seconds, self._started = 0.0, time.perf_counter()

    @property
    def number(self) -> int:
        """How many batches have gone through a whole step."""
        return 0 if self._passed is None else self._passed.number

    def seconds(self) -> float:
        """How long it took so far, in this process and those before."""
        return self._earlier_seconds + time.perf_counter() - self._started

    def rest_of(self, batches: Iterable[Any]) -> Iterable[Any]:
        """What is left of the batches.

        Raises:
            CannotReplayError: If others come than have gone through before.
        """
        if self._passed is None:
            return batches
        if self.is_waiting:
            batches = self._passed.passed_over(batches)
            self.is_waiting = False
        return self._passed.watched(batches)

    def end_step(self, targets: Any) -> None:
        """A step is whole."""
        self._preflight.after_step(targets)
        if self._passed is not None and self._forward is not None:
            self._passed.end_step()
            self._forward.keep()

    def look_between_steps(self) -> None:
        """Note where the generators stand, between two steps."""
        if self._passed is not None:
            self._passed.look_between_steps()

    def end_training(self, sources: dict[str, Any]) -> None:
        """All steps are taken."""
        self.look_between_steps()
        self.sources, self.is_trained = sources, True

    def put_back(self) -> bool:
        """Undo what a broken step has moved; whether all of it could be."""
        if self._passed is None or self._forward is None:
            return True
        is_undone = self._forward.put_back()
        return self.is_trained or (is_undone and self._passed.look_inside_a_step())

    def take_up(self) -> None:
        """Go on: after the training at once, else when what has gone through before is passed."""
        self._started = time.perf_counter()
        if self.is_trained and self._passed is not None:
            self._passed.wind_up()
            self.is_waiting = False

    def leave(self) -> None:
        """Stop inside, to be taken up later."""
        self._earlier_seconds, self.is_waiting = self.seconds(), True

    def state_dict(self) -> dict[str, Any]:
        """What ``load_state_dict`` takes."""
        assert self._passed is not None
        return {
            "mean": self.mean.state_dict(),
            "passed": self._passed.state_dict(),
            "sources": self.sources,
            "is_trained": self.is_trained,
            "seconds": self._earlier_seconds if self.is_waiting else self.seconds(),
        }

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Stand where another process stood, and wait to be taken up."""
        assert self._passed is not None
        self.mean.load_state_dict(to_device(state["mean"], device))
        self._passed.load_state_dict(state["passed"])
        self.sources, self.is_trained = state["sources"], state["is_trained"]
        self._earlier_seconds, self.is_waiting = state["seconds"], True


def _target_device(model: nn.Module, device: Device) -> Device:
    if device is not None:
        return select_device(device)
    return select_device() if device_of(model).type == "cpu" else None  # None: it stays there


def _check_keeping(checkpoint: Folder | None, resume: bool, save_every: float) -> None:
    if checkpoint is None and resume:
        raise ValueError(
            "resume must not be True without checkpoint, the folder to resume from, got "
            "checkpoint=None. Pass the folder of the run."
        )
    if checkpoint is not None and not isinstance(checkpoint, (str, os.PathLike)):
        raise TypeError(f"checkpoint must be the path of a folder, got {checkpoint!r}.")
    if checkpoint is not None and Path(checkpoint).exists() and not Path(checkpoint).is_dir():
        raise ValueError(f"checkpoint must be a folder, got the file {checkpoint}.")
    if isinstance(save_every, bool) or not isinstance(save_every, (int, float)):
        raise TypeError(f"save_every must be a number of seconds, got {save_every!r}.")
    if not save_every > 0:
        raise ValueError(f"save_every must be above 0 seconds, got {save_every!r}.")


def _where(
    history: History, at_hand: "_Epoch | None", is_stopped: bool, folder: Folder | None
) -> str:
    done = f"{len(history)} epochs" + (f" and {at_hand.number} batches" if at_hand else "")
    ended = ", ended by stop()" if is_stopped else ""
    return f"going on in {folder}: {done} are done{ended}"


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
    # Validation comes after a whole epoch: what can be seen without drawing is seen now.
    if isinstance(batches, (list, tuple, TensorDataset)):
        first = batches[0]
        if isinstance(first, (tuple, list)) and len(first) == 2:
            check_no_sample(batches, (first[0], first[1]), name)


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
