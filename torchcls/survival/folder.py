"""The folder in which a run survives: the last state, one before it, and the best weights."""

import os
import platform
import secrets
import shutil
import tempfile
import time
import weakref
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from torchcls.history import replacing
from torchcls.survival.files import DamagedError, load_checkpoint, save_checkpoint
from torchcls.version import __version__
from torchcls.warn import warn

_FORMAT = 3  # of what a run keeps, to be raised where a later one cannot be read as this one
_PARTS = ("model", "optimizer", "beside", "source", "at", "history", "told", "circumstances")


class Folder:
    """Writes the state of a run to a folder, and finds it there again.

    ``last.pt`` is the newest state. ``epoch.pt`` is an older one between two epochs: the start of
    the epoch that ``last.pt`` stands in, or the epoch before. ``best.pt`` has the best weights. All
    carry the random id of their run, and a state of another run is never taken for this one's: the
    run of a folder is that of ``last.pt``, or of the note in ``.lock`` where that cannot be read.

    ``.lock`` keeps other processes out: from ``open`` to the end of this object or of the process,
    however that ends. Forked children do not hold it. A run that this very process has left, as a
    cell of a notebook that was interrupted, does not stand in the way of the next.
    Where there are no such locks (Windows, some file systems) nothing is kept out.

    Args:
        path: Where; it is made where it is not there.
        every: Seconds from one state inside an epoch to the next.
    """

    def __init__(self, path: Path, every: float) -> None:
        self.path = path = path.absolute()  # also where the process changes its own
        self._last, self._earlier = path / "last.pt", path / "epoch.pt"
        self._best, self._note = path / "best.pt", path / ".lock"
        self._every, self._due = every, time.monotonic() + every
        self._run, self._last_is_between = "", False  # its id; if last.pt is between two epochs
        self._me = f"process {os.getpid()} on {platform.node()}"
        self.close: Callable[[], object] = lambda: None  # lets another run have the folder

    def open(
        self, *, resume: bool, check: Callable[[dict[str, Any], Path], None]
    ) -> dict[str, Any] | None:
        """Lock the folder and read the newest whole state; None where there is none yet.

        A state before the first step is passed over where it stands in the way: nothing is lost.

        Args:
            resume: Whether to go on with a run; else there must be none.
            check: Raises a ValueError where a state does not fit this run.

        Raises:
            OSError: If the folder cannot be written.
            ValueError: If another run holds it, or what is there does not fit or cannot be read.
        """
        with ExitStack() as refused:
            refused.callback(lambda: self.close())
            self._take()
            state = None
            try:
                if self._there():
                    path, state = self._read()
                    if not resume:
                        raise ValueError(
                            f"checkpoint must be a folder without a run, got {self.path} with "
                            f"{path.name}. Pass resume=True to go on with it, or another folder."
                        )
                    check(state, path)
            except ValueError:
                if state is None or state["history"]["records"] or state["at"]["step"]:
                    raise
                state, self._last_is_between = None, False
            self._run = secrets.token_hex(8) if state is None else state["run"]
            with suppress(DamagedError):  # nothing is lost with it: the next best one replaces it
                if self._best.exists() and load_checkpoint(self._best).get("run") != self._run:
                    raise ValueError(
                        f"checkpoint must be a folder without another run, got {self.path} with a "
                        "best.pt, which would be replaced. Choose another folder."
                    )
            self._note.write_text(f"{self._me}\n{self._run}", "utf-8")
            for left in self.path.glob(".*-*.pt"):
                left.unlink(missing_ok=True)  # a killed process left it
            refused.pop_all()
        return state

    def _take(self) -> None:
        """Prove that the folder can be written, lock it, and learn whose it is by the note."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path) as file:
                file.write(b"0" * 4096)
            descriptor = os.open(self._note, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            words = "checkpoint must be a folder that can be written"
            raise OSError(
                error.errno, f"{words}, got {self.path}: {error.strerror or error}."
            ) from error
        self.close = weakref.finalize(self, os.close, descriptor)
        is_free, self._descriptor = _lock(descriptor), descriptor
        holder, _, self._run = self._note.read_text("utf-8", "replace").partition("\n")
        if not is_free and holder != self._me:
            raise ValueError(
                f"checkpoint must be a folder that no other process holds, got {self.path}, held "
                f"by {holder or 'another process'}. Let that run end, or choose another folder."
            )
        if hasattr(os, "register_at_fork"):  # a child that outlives its parent must not hold it
            os.register_at_fork(after_in_child=self.close)
        self._note.write_text(f"{self._me}\n{self._run}", "utf-8")

    def newest(self) -> dict[str, Any]:
        """Read the newest state that is whole; an OSError or ValueError where there is none."""
        return self._read()[1]

    def _there(self) -> list[Path]:
        return [path for path in (self._last, self._earlier) if path.exists()]

    def _read(self) -> tuple[Path, dict[str, Any]]:
        damages: list[str] = []
        for path in self._there() or [self._last]:
            try:
                state = _state_in(path)
            except DamagedError as error:
                damages.append(str(error))
                continue
            if path == self._earlier and self._run not in ("", state["run"]):
                raise ValueError(
                    f"{path} must be of the run that this folder is of, got another run's. "
                    f"{' '.join(damages)} Name it last.pt to go on with it."
                )
            if damages:
                warn(f"{damages[0]} The run goes on from {path.name}, which is whole.")
            self._last_is_between = path == self._last and state["at"]["step"] == 0
            return path, state
        raise DamagedError(" So is the earlier one: ".join(damages))

    def start_of(self, epoch: int) -> dict[str, Any]:
        """Read the state at the start of an epoch; a ValueError where there is no whole one."""
        for path in self._there():
            with suppress(ValueError):
                state = _state_in(path)
                at = state["at"]
                if (state["run"], at["epoch"], at["step"]) == (self._run, epoch, 0):
                    return state
        raise ValueError(
            f"{self._earlier} must be the state at the start of epoch {epoch} (counted from 0), "
            f'got none. Start a new run in another folder, from the "model" of {self._last}.'
        )

    def is_due(self) -> bool:
        """Whether it is time for another state."""
        return time.monotonic() >= self._due

    def save(self, state: Mapping[str, Any], *, must: bool = False) -> bool:
        """Make a state the last one; returns if it is kept.

        Where it cannot be written, or ``must`` and no second one fits beside it, that is a warning,
        and with ``must`` an error.
        """
        return self._write(self._last, state, must)

    def save_best(self, **state: Any) -> bool:
        """Make these the best weights."""
        return self._write(self._best, state, must=False)

    def _write(self, path: Path, state: Mapping[str, Any], must: bool) -> bool:
        whose = {"torchcls": __version__, "format": _FORMAT, "run": self._run}
        try:
            _lock(self._descriptor)  # an earlier run of this process may have held it until now
            if path == self._last:
                if self._last_is_between and path.exists():
                    with replacing(self._earlier) as name:
                        _link(path, name)
                self._last_is_between = False  # whatever comes between
            save_checkpoint(path, **{**state, **whose})
            if path == self._last:
                self._last_is_between = state["at"]["step"] == 0
            size, free = path.stat().st_size, shutil.disk_usage(self.path).free
            if must and free < size:
                raise OSError(
                    f"checkpoint must be on a disk with room for two states of {size:,} bytes, got "
                    f"{free:,} bytes free in {self.path}. Make room, or choose another folder."
                )
        except (OSError, TypeError, MemoryError) as error:
            if must:
                raise
            warn(f"The checkpoint could not be written, and the run goes on: {error}")
            return False
        finally:
            self._due = time.monotonic() + self._every
        return True


def _state_in(path: Path) -> dict[str, Any]:
    state = load_checkpoint(path)
    if state.get("format", _FORMAT) != _FORMAT:
        raise ValueError(
            f"{path} must have format {_FORMAT}, which torchcls {__version__} resumes, got format "
            f"{state['format']} of torchcls {state.get('torchcls')}. Install that version."
        )
    is_one = (
        state.keys() >= {"torchcls", "format", "run"}
        and all(isinstance(state.get(name), dict) for name in _PARTS)
        and state["at"].keys() >= {"epoch", "step"}
        and "records" in state["history"]
    )
    if not is_one:
        names = ", ".join(map(str, state))
        raise ValueError(f"{path} must be the state of a run, got a checkpoint with {names}.")
    return state


def _lock(descriptor: int) -> bool:
    """Whether nobody else holds the file; where there are no locks, nobody does."""
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError):  # Windows, or a file system without locks
        pass
    return True


def _link(source: Path, target: Path) -> None:
    """Give a file another name: at once and without writing it again where links are known."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
