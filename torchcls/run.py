"""A run as a stream of rests: the one training loop of the package.

After every whole step, and after every epoch, a run stands still: weights, optimizer, schedule,
sums and history agree with each other, and ``state_dict()`` is true. Whatever is not training
(saving, showing, stopping, logging) stands around that stream, and the stream knows none of it.
"""

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from torchcls.averaging import Count, Mean
from torchcls.batches import mapped, pairs, to_device
from torchcls.evaluation import Evaluation, Look, Scores
from torchcls.group import FirstLeftError
from torchcls.history import History, Record
from torchcls.state import load_modules, modules_state
from torchcls.step import Step, Taken, check_can_train


class Rest(NamedTuple):
    """Where a run stands still.

    Attributes:
        epoch: The epoch, counted from 0.
        step: How many whole steps of it are taken.
        loss: The loss of the last one, taken before it: a 0-d tensor where the model is. Nobody has
            waited for it; ``float(at.loss)`` does. NaN where another process took that step.
        record: None inside an epoch; its record once it is over and validated.
    """

    epoch: int
    step: int
    loss: Tensor
    record: Record | None = None


Around = Callable[[Callable[[], Iterator[Rest]]], Iterator[Rest]]
"""What stands around the stream: takes what gives the rests, and hands them on."""


class Schedule:
    """What moves learning rate and momentum: nothing at all, in this one."""

    def during_epoch(self, epoch: int, steps: int) -> AbstractContextManager[None]:
        """A context around the steps of one epoch, of which some were taken already."""
        return nullcontext()

    def before_step(self) -> None:
        """Called before every step."""

    def after_step(self) -> None:
        """Called after every step."""

    def after_epoch(self, record: Record) -> None:
        """Called after every epoch with its record."""

    def state_dict(self) -> dict[str, Any]:
        """What moves from step to step, beside the optimizer."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state; the optimizer has its own back already."""


class Source:
    """The training batches of a run, handed out from any step of any epoch on.

    Args:
        name: What errors call it.
        batches: What the user gave. Where it has ``state_dict`` and ``load_state_dict``, as
            ``Batches`` has, it says by itself where it stands; else batches are passed over.
        opened: From the number of an epoch to what gives its batches; None takes ``batches``.
    """

    def __init__(
        self, name: str, batches: Any, opened: Callable[[int], Iterable[Any]] | None = None
    ) -> None:
        self._name, self._batches = name, batches
        self._opened = opened or (lambda epoch: batches)
        # Random states in workers are in no state_dict.
        self._is_stateful = not getattr(batches, "num_workers", 0) and all(
            hasattr(batches, name) for name in ("state_dict", "load_state_dict")
        )
        self._kept: dict[str, Any] | None = None  # a state, until an epoch has begun from it

    def rest_of(self, epoch: int, step: int) -> Iterator[Any]:
        """The batches of an epoch but for the first ``step``, each checked to be a pair."""
        kept, self._kept = self._kept, None
        if kept is not None and self._is_stateful:
            self._batches.load_state_dict(kept["batches"])
            return self._started(epoch, may_be_empty=step > 0)
        return islice(self._started(epoch), step, None)

    def _started(self, epoch: int, *, may_be_empty: bool = False) -> Iterator[Any]:
        name = f"{self._name} in epoch {epoch}" if epoch else self._name
        return pairs(self._opened(epoch), name, may_be_empty=may_be_empty)

    def state_dict(self) -> dict[str, Any]:
        """Where the source stands, at a rest, as far as it says so."""
        if self._kept is not None:
            return self._kept
        return {"batches": self._batches.state_dict() if self._is_stateful else None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Stand where another source stood, from the next call of ``rest_of`` on."""
        self._kept = state


class Run:
    """A run as an iterator over its epochs, or over its steps: the loop is yours.

    ``for record in run`` trains an epoch, validates and hands out its record, again and again;
    ``for at in run.steps()`` stops after every whole step, too. Leave either loop where you like,
    go on with either, raise inside: the run stays where it stood. ``tc.epochs`` makes one.

    Attributes:
        history: What was reached so far; complete also after an interrupt.
        optimizer: The optimizer, the user's own or the default one.
        model: The model: in training mode in a loop over the steps of an epoch, as it was found
            between two epochs and wherever that loop is left.
        group: The processes that share the run: ``run.group.is_first`` is True in one of them.
        is_broken: Whether an error has left a step half done. The epoch at hand then begins again
            with the weights as they are, unless a state is loaded.

    Examples:
        >>> import torchcls as tc
        >>> batches = [(torch.randn(8, 2), torch.randint(3, (8,)))]
        >>> run = tc.epochs(nn.Linear(2, 3), batches, loss_fn=nn.CrossEntropyLoss(),
        ...                 epochs=100, progress=False)
        >>> for record in run:
        ...     if record.epoch == 1:
        ...         run.stop()
        >>> len(run.history)
        2
    """

    def __init__(
        self,
        model: nn.Module,
        source: Source,
        step: Step,
        optimizer: Optimizer,
        device: torch.device,
        *,
        epochs: int = 1,
        schedule: Schedule | None = None,
        validate: Callable[[int], Evaluation] | None = None,
        look: Look | None = None,
        scores: Scores | None = None,
    ) -> None:
        self._scores = scores
        self.model, self.optimizer, self.history = model, optimizer, History()
        self.source, self.step, self.device, self.group = source, step, device, step.group
        self.is_broken = False
        self._epochs, self._validate, self._look = epochs, validate, look
        self._schedule = schedule or Schedule()
        self._at = _At()
        self._is_stopped = False
        self._stream: Generator[Rest, None, None] | None = None
        self._batches: Iterator[Any] | None = None  # what is left of the epoch at hand
        self.around: Around = lambda rests: rests()

    def steps(self) -> Iterator[Rest]:
        """Go through the rests: one after every whole step, and one after every epoch.

        Yields:
            ``at.epoch``, ``at.step``, ``at.loss`` and ``at.record``, which is None but after an
            epoch. Evaluating in between is fine: the model goes on in training mode.

        Examples:
            >>> import torchcls as tc
            >>> batches = [(torch.randn(8, 2), torch.randint(3, (8,))) for _ in range(2)]
            >>> run = tc.epochs(nn.Linear(2, 3), batches, loss_fn=nn.CrossEntropyLoss(),
            ...                 epochs=2, progress=False)
            >>> [(at.epoch, at.step, at.record is not None) for at in run.steps()]
            [(0, 1, False), (0, 2, False), (0, 2, True), (1, 1, False), (1, 2, False), (1, 2, True)]
        """
        yield from self.around(self._rests)

    def __iter__(self) -> Iterator[Record]:
        for at in self.steps():
            if at.record is not None:
                yield at.record

    def __next__(self) -> Record:
        for record in self:
            return record
        raise StopIteration

    def stop(self) -> None:
        """End the run after the epoch at hand; it stays ended when it is resumed."""
        self._is_stopped = True

    @property
    def position(self) -> tuple[int, int, bool]:
        """(epoch, whole steps of it, whether the run is to stop): where the run stands."""
        return self._at.epoch, self._at.step, self._is_stopped

    def _rests(self) -> Iterator[Rest]:
        """The stream from where the run stands; whoever leaves it can come back."""
        check_can_train()
        if self.is_broken:
            if self.group.size > 1:
                raise RuntimeError(
                    "run must not go on after an error, an interrupt or a break in one of its "
                    f"{self.group.size} processes, which no longer stand at one step. Start the "
                    "processes again, with checkpoint=... and resume=True."
                )
            self._at, self.is_broken = self._at.begun_again(), False
            self.step.load_state_dict(self.step.state_dict())  # of a scale, what the step began
        while True:
            self._stream = self._stream or self._train()
            try:
                if torch.is_grad_enabled():
                    at = next(self._stream, None)
                else:
                    with torch.enable_grad():
                        at = next(self._stream, None)
            except FirstLeftError:  # where the others stand
                self._stream, self._batches, self.is_broken = None, None, True
                return
            except BaseException:
                self._stream, self._batches = None, None
                self.is_broken = not self._at.is_trained
                raise
            if at is None:
                self._stream = None
                self.group.leave()
                return
            try:
                yield at
            except GeneratorExit:
                self._close()
                self.is_broken |= not self.group.leave()  # the others have begun another step
                raise

    def _close(self) -> None:
        """Let go of the model and the optimizer: modes and learning rates as they were found."""
        if self._stream is not None:
            self._stream.close()
        self._stream = None

    def _train(self) -> Generator[Rest, None, None]:
        """The one training loop: yields at every rest."""
        while self._at.epoch < self._epochs:
            if self._at.step == 0 and self.group.stops(self._is_stopped):
                self._is_stopped = True
                return
            at, started = self._at, time.perf_counter()
            if not at.is_trained:
                yield from self._train_epoch(at)
                started = time.perf_counter()
                if self._look is not None:
                    self._look.after_epoch(at.epoch, at.mean)
                at.is_trained, self._batches = True, None
            self.history.micro_batch = self.step.pieces.size
            train_metrics = {} if self._scores is None else self._scores.values()
            found = None if self._validate is None else self._validate(at.epoch)
            record = at.record(train_metrics, found)
            self._schedule.after_epoch(record)
            record["time"] = at.seconds + time.perf_counter() - started
            record = self.group.from_first(record)
            if len(self.history) == at.epoch:  # an interrupt may have come behind it
                self.history.append(record)
            self._at = at.next_epoch()
            yield Rest(at.epoch, at.step, at.loss, record)

    def _train_epoch(self, at: "_At") -> Generator[Rest, None, None]:
        """The steps of one epoch, or what is left of them."""
        step, optimizer, schedule, look = self.step, self.optimizer, self._schedule, self._look
        scores, group = self._scores, self.group
        batch: Any = None
        started = time.perf_counter()
        try:
            with (
                group.failing(),
                training(self.model) as keep_modes,
                schedule.during_epoch(at.epoch, at.step),
            ):
                step.renew()
                if scores is not None and at.step == 0:
                    scores.reset()
                if self._batches is None:
                    self._batches = self.source.rest_of(at.epoch, at.step)
                is_plain = step.pieces.is_plain
                group.prepare(self.model, step.loss_fn, optimizer, is_plain=is_plain)
                for batch in self._batches:
                    batch = to_device(batch, self.device)
                    schedule.before_step()
                    taken = step.gradients(batch, optimizer)
                    hold = None if look is None else look(taken, at.epoch, at.step)
                    step.update(optimizer, hold)
                    schedule.after_step()
                    at.add(taken)
                    if scores is not None:
                        for outputs, targets in taken.parts:
                            scores.add(outputs, targets)
                    # The graph is free before the next one is made, and what the source raises
                    # next is no fault of this batch.
                    del taken
                    batch = None
                    at.seconds += time.perf_counter() - started
                    yield Rest(at.epoch, at.step, at.loss)
                    started = time.perf_counter()
                    keep_modes()
                group.end_epoch()
        except Exception as failure:
            if look is not None:
                look.explain(failure, batch)
            raise

    def state_dict(self) -> dict[str, Any]:
        """All that moves in training, at a rest: tensors, the live ones and no copies, and numbers.

        ``"model"`` has the keys of the module that the user wrote. ``"beside"`` is what training
        moves and no ``state_dict`` has: of the model, of the loss, and of the optimizer alone.
        """
        return {
            **modules_state(self.model, self.step.loss_fn, self.optimizer),
            "schedule": self._schedule.state_dict(),
            "step": self.step.state_dict(),
            "at": {**self._at.state_dict(), "stopped": self._is_stopped},
            "history": self.history.state_dict(),
            "look": self._look.state_dict() if self._look is not None else {},
            "scores": self._scores.state_dict() if self._scores is not None else {},
            "source": self.source.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a state of such a run; what comes next comes from there."""
        self._close()
        self._batches = None
        load_modules(self.model, self.step.loss_fn, self.optimizer, state)
        self._schedule.load_state_dict(state["schedule"])
        self.step.load_state_dict(state["step"])
        self._at, self._is_stopped = _At.at_state(state["at"]), state["at"]["stopped"]
        self.history.load_state_dict(state["history"])
        if self._look is not None:
            self._look.load_state_dict(state["look"])
        if self._scores is not None:
            self._scores.load_state_dict(state["scores"])
        self.source.load_state_dict(state["source"])
        self.is_broken = False


# ------------------------------------------------------------------ where a run stands


class _At:
    """The position of a run, and what has been added up on the way there."""

    def __init__(self, epoch: int = 0, smooth: tuple[Count, int] = (0.0, 0)) -> None:
        self.epoch, self.step, self.seconds = epoch, 0, 0.0
        self.mean = Mean()
        self.loss = torch.tensor(float("nan"), device="cpu")  # of a step in another process
        self.is_trained = False  # whether only validation is left
        self._smooth, self._steps = smooth  # fastai's running mean, which no epoch resets
        self._begun = smooth

    def add(self, taken: Taken) -> None:
        """Count a whole step."""
        self.step += 1
        self.loss = taken.loss
        self.mean.add_sum(taken.numerator, taken.count)
        self._smooth = 0.98 * self._smooth + 0.02 * taken.mean
        self._steps += 1

    def record(self, train_metrics: Mapping[str, Any], found: Evaluation | None) -> Record:
        """The record of the epoch. On an accelerator this waits for its steps."""
        smooth = float(self._smooth) / (1 - 0.98**self._steps)
        record = Record(epoch=self.epoch, train_loss=self.mean.value(), smooth_loss=smooth)
        measured = {f"train_{name}": value for name, value in train_metrics.items()}
        if found is not None:
            measured |= {"valid_loss": found.loss, **found.metrics}
        for name, value in measured.items():  # a matrix, say, as nested lists
            record[name] = mapped(_as_plain, value)
        return record

    def next_epoch(self) -> "_At":
        """The start of the next epoch."""
        return _At(self.epoch + 1, (self._smooth, self._steps))

    def begun_again(self) -> "_At":
        """The start of this epoch."""
        return _At(self.epoch, self._begun)

    def state_dict(self) -> dict[str, Any]:
        """Plain values. Waits for an accelerator."""
        return {
            "epoch": self.epoch,
            "step": self.step,
            "is_trained": self.is_trained,
            "seconds": self.seconds,
            "mean": self.mean.state_dict(),
            "smooth": (float(self._smooth), self._steps),
        }

    @staticmethod
    def at_state(state: dict[str, Any]) -> "_At":
        """Where another run stood."""
        at = _At(state["epoch"], tuple(state["smooth"]))
        at.step, at.seconds, at.is_trained = state["step"], state["seconds"], state["is_trained"]
        at.mean.load_state_dict(state["mean"])
        return at


def _as_plain(value: Any) -> Any:
    """Arrays as lists, and their numbers as Python's."""
    return value.tolist() if hasattr(value, "tolist") else value


@contextmanager
def training(model: nn.Module) -> Iterator[Callable[[], None]]:
    """Put a model into training mode for as long as the context lasts.

    A model whose root is in training mode already keeps the modes of its submodules: what was
    frozen with ``model.body.eval()`` stays frozen. Every module gets its own mode back.

    Yields:
        A function that puts the modes of the training back, where somebody has left the model in
        evaluation mode meanwhile.
    """
    found = [(module, module.training) for module in model.modules()]
    if not model.training:
        model.train()
    during = [(module, module.training) for module in model.modules()]

    def keep() -> None:
        if not model.training:
            _set_modes(during)

    try:
        yield keep
    finally:
        _set_modes(found)


def _set_modes(modes: list[tuple[nn.Module, bool]]) -> None:
    for module, mode in modes:
        module.training = mode
