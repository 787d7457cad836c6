"""Runs that survive: the states of a run go to a folder, and come back from there."""

import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from torchcls.group import Group
from torchcls.run import Rest, Run
from torchcls.state import is_sharded, whole, written
from torchcls.survival.arguments import at_rest, check_same, circumstances, described, plain
from torchcls.survival.best import best_by, is_best
from torchcls.survival.folder import Folder
from torchcls.survival.source import CannotReplayError, Replayed
from torchcls.warn import warn


class Survival:
    """Keeps a run in a folder, as a generator around the stream of its rests.

    A state is written before the first step, after every epoch, every ``save_every`` seconds, and
    where the loop over the rests is left. An error or an interrupt inside a step ends the stream:
    the run goes back to its last state.

    Args:
        choices: Has the arguments of ``fit`` as attributes, the optimizer made. Nothing is changed
            yet, but the folder is locked, and what is in it is checked.
        group: The processes that share the run. The first one has the folder, reads and writes.
    """

    _run: Run
    _source: Replayed

    def __init__(self, choices: Any, group: Group) -> None:
        self._group, self._path = group, Path(choices.checkpoint).expanduser()
        self._folder = Folder(self._path, choices.save_every) if group.is_first else None
        self._best = best_by(choices.best, choices.metrics, has_valid=choices.valid is not None)
        self._choices, self._told = choices, described(choices)
        self._saved: tuple[int, int, bool] | None = None  # where the run stood then
        self._state: dict[str, Any] | None = None
        if self._folder is not None:
            self._state = self._folder.open(resume=choices.resume, check=self._check)

    def _check(self, state: dict[str, Any], path: Path) -> None:
        told, choices = state["told"], self._choices
        now = described(choices, groups=told.get("groups of the optimizer"))
        now |= at_rest(choices.model, choices.optimizer)
        check_same(told, now, moved=state["beside"].get("numbers", {}), path=path)
        self._told = told

    def keep(self, run: Run) -> str | None:
        """Take a run in, which goes to the state in the folder; says where it stands then."""
        assert isinstance(run.source, Replayed)
        self._run, self._source = run, run.source
        self._is_sharded = self._group.size > 1 and is_sharded(run.model)
        state, self._state = self._group.from_first(self._state), None
        if state is None:
            return None
        try:
            run.load_state_dict(state)
        except (LookupError, TypeError, AttributeError, RuntimeError) as error:
            words = f"{self._path} must hold the whole state of such a run"
            raise ValueError(f"{words}, got {type(error).__name__}: {error}.") from error
        self._compare(state["circumstances"])
        self._saved = epoch, step, is_stopped = run.position
        if step == 0:
            self._keep_best()  # an interrupt may have come before it
        done = f"{epoch} epochs" + (f" and {step} batches" if step else "")
        return f"{done} are done{', ended by stop()' if is_stopped else ''}"

    def kept(self, rests: Callable[[], Iterator[Rest]]) -> Iterator[Rest]:
        """Hand on the rests, each with its state on disk where it is time for one."""
        while True:
            if self._run.is_broken:
                self._go_back()
            if self._saved is None and not _is_lazy(self._run.model):
                with self._group.together():
                    self._save(must=True)  # before the first step, or it is found that none can be
            try:
                for at in rests():
                    if at.record is not None:
                        self._source.try_again(at.epoch)
                        self._keep_best()
                    is_due = self._folder is not None and self._folder.is_due()
                    if self._is_sharded:  # all have to be there to gather its parts
                        is_due = self._group.from_first(is_due)
                    if at.record is not None or is_due or self._saved is None:
                        self._save()
                    yield at
                self._save_where_it_stands()
                return
            except CannotReplayError as failure:
                why = str(failure)  # outside of the except: its traceback keeps the loader
            except GeneratorExit:
                self._save_where_it_stands()
                raise
            except BaseException:
                if self._saved is not None and not self._run.is_broken:  # in validation, say
                    self._save_alone()
                if self._saved is not None:
                    self._go_back()
                raise
            self._begin_again(why)

    def _compare(self, before: dict[str, Any]) -> None:
        """See whether a run that is taken up can come to the same bits here."""
        now, (epoch, step, _) = self._circumstances(), self._run.position
        changed = [f"{k} was {before.get(k)}, is {v}" for k, v in now.items() if before.get(k) != v]
        if _is_compiled(self._run.model):
            changed.append("a compiled model may get other kernels in another process")
        if changed:
            text = ", ".join(changed)
            if self._group.is_first:
                warn(f"The run goes on to rounding, not to the same bits: {text}.")
        elif step == 0 and not self._source.begins_alike(epoch - 1):  # inside, it is passed over
            raise ValueError(
                "train must give the batches of the run that is resumed, got another first batch: "
                "other data, another order or another transform. Give it as it was, or start a new "
                "run in another folder."
            )

    def _save(self, *, must: bool = False) -> None:
        run, choices = self._run, self._choices
        told = self._told | at_rest(choices.model, choices.optimizer)
        state = {**whole(run.state_dict()), "told": told, "circumstances": self._circumstances()}
        if self._folder is not None:
            self._folder.save(plain(state), must=must)
        self._saved = run.position  # also where it failed, which costs a warning and not one a step

    def _circumstances(self) -> dict[str, Any]:
        return circumstances(self._run.device, self._group.size)

    def _save_where_it_stands(self) -> None:
        if not self._run.is_broken and self._run.position != self._saved:
            self._save_alone()

    def _save_alone(self) -> None:
        """Save where the others may be elsewhere, so that nobody can gather what they have."""
        if not self._is_sharded:
            self._save()

    def _keep_best(self) -> None:
        history = self._run.history
        if self._best is not None and is_best(history, *self._best):
            model = whole(written(self._run.model).state_dict())
            if self._folder is not None:
                self._folder.save_best(model=model, record=plain(dict(history[-1])))

    def _go_back(self) -> None:
        """Leave a step that was broken off: to the last state.

        One process alone cannot: several are to be started again.
        """
        if self._folder is None or self._group.size > 1:
            return
        try:
            self._run.load_state_dict(self._folder.newest())
        except Exception as error:  # the error that broke the step is the one to be raised
            warn(f"The step at hand was broken off half way, and there is no way back: {error}")

    def _begin_again(self, why: str) -> None:
        """Go to the start of an epoch that cannot be taken up inside."""
        epoch, step, _ = self._run.position
        state = None if self._folder is None else self._folder.start_of(epoch)
        self._run.load_state_dict(self._group.from_first(state))
        warn(
            f"The run goes on from the start of epoch {epoch} (counted from 0) and not from its "
            f"batch {step}, since train cannot be replayed: {why}."
        )


def _is_lazy(model: nn.Module) -> bool:
    """Whether a model has no weights to keep before its first step."""
    return any(map(is_lazy, itertools.chain(model.parameters(), model.buffers())))


def _is_compiled(model: nn.Module) -> bool:
    calls = (getattr(module, "_compiled_call_impl", None) for module in model.modules())
    return written(model) is not model or any(call is not None for call in calls)


def check_keeping(checkpoint: Any, resume: bool, save_every: Any) -> None:
    """Check the arguments of ``fit`` that say where and how often a run is kept."""
    if checkpoint is None and resume:
        raise ValueError(
            "resume must not be True without checkpoint, the folder to resume from, got "
            "checkpoint=None. Pass the folder of the run."
        )
    if checkpoint is not None and not isinstance(checkpoint, (str, os.PathLike)):
        raise TypeError(f"checkpoint must be the path of a folder, got {checkpoint!r}.")
    if checkpoint is not None and Path(checkpoint).expanduser().is_file():
        raise ValueError(f"checkpoint must be a folder, got the file {checkpoint}.")
    if isinstance(save_every, bool) or not isinstance(save_every, (int, float)):
        raise TypeError(f"save_every must be a number of seconds, got {save_every!r}.")
    if not save_every > 0:
        raise ValueError(f"save_every must be above 0 seconds, got {save_every!r}.")
