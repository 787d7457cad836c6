"""The folder in which a run survives: the last state, one before it, and the best weights."""

import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from torchcls.checkpoint import DamagedError, load_checkpoint, save_checkpoint
from torchcls.version import __version__
from torchcls.warn import warn

_FORMAT = 1  # of what a run keeps, to be raised where a later one cannot be read as this one


class Keeper:
    """Writes the state of a run to a folder, and finds it there again.

    ``last.pt`` is the newest state. ``epoch.pt`` is an older one between two epochs: the start of
    the epoch that ``last.pt`` stands in, or the epoch before. ``best.pt`` has the best weights.

    Args:
        folder: Where; it is made where it is not there.
        every: Seconds from one state inside an epoch to the next.
    """

    def __init__(self, folder: Path, every: float) -> None:
        self.folder = folder = folder.absolute()  # also where the process changes its own
        self._last, self._earlier = folder / "last.pt", folder / "epoch.pt"
        self._every = every
        self._due = math.inf
        self._last_is_between = False  # whether last.pt stands between two epochs

    def open(
        self, *, resume: bool, check: Callable[[dict[str, Any], Path], None]
    ) -> dict[str, Any] | None:
        """Read the newest state that is whole; None where there is none yet.

        A state before the first step, of a run that never came further, is passed over where it
        stands in the way: nothing is lost with it.

        Args:
            resume: Whether to go on with a run; else there must be none.
            check: Raises a ValueError where a state does not fit this run.

        Raises:
            OSError: If the folder cannot be written.
            ValueError: If it holds a run and ``resume`` is False, a file that cannot be read, or a
                state that does not fit.
        """
        found, state = self._there(), None
        if found:
            try:
                path, state = self._read(found)
                if not resume:
                    raise ValueError(
                        f"checkpoint must be a folder without a run, got {self.folder} with "
                        f"{path.name}. Pass resume=True to go on with it, or another folder to "
                        "start anew."
                    )
                check(state, path)
            except ValueError:
                if state is None or not _is_unstarted(state):
                    raise
                state, self._last_is_between = None, False
        elif (self.folder / "best.pt").exists():
            raise ValueError(
                f"checkpoint must be a folder without a run, got {self.folder} with a best.pt, "
                "which would be replaced. Choose another folder."
            )
        _prove_writable(self.folder)
        for name in ("last", "best"):  # what killed processes have left
            for left in self.folder.glob(f".{name}.pt.*.tmp"):
                left.unlink(missing_ok=True)
        self._wait()
        return state

    def newest(self) -> dict[str, Any]:
        """Read the newest state that is whole.

        Raises:
            OSError, ValueError: If there is none.
        """
        return self._read(self._there() or [self._last])[1]

    def _there(self) -> list[Path]:
        return [path for path in (self._last, self._earlier) if path.exists()]

    def _read(self, found: list[Path]) -> tuple[Path, dict[str, Any]]:
        path = found[0]
        try:
            state = load_checkpoint(path)
        except DamagedError as damage:
            if len(found) == 1:
                raise
            path = found[1]
            try:
                state = load_checkpoint(path)
            except ValueError as second:
                raise ValueError(f"{damage} So is the earlier one: {second}") from None
            warn(f"{damage} The run goes on from {path.name}, which is whole.")
        _check_kind(state, path)
        self._last_is_between = path == self._last and state["at_hand"] is None
        return path, state

    def start_of(self, epoch: int) -> dict[str, Any]:
        """Read the state at the start of an epoch that the last one stands in.

        Raises:
            ValueError: If it is not there, or not whole.
        """
        for path in self._there():
            state = load_checkpoint(path)
            if state.get("at_hand", self) is None and len(state["history"]["records"]) == epoch:
                return state
        raise ValueError(
            f"{self._earlier} must be the state at the start of epoch {epoch} (counted from 0), "
            "got none. Start a new run in another folder, from these weights: "
            f'model.load_state_dict(torch.load("{self._last}", weights_only=True)["model"]).'
        )

    def is_due(self) -> bool:
        """Whether it is time for another state."""
        return time.monotonic() >= self._due

    def save(self, state: Mapping[str, Any], *, must: bool = False) -> bool:
        """Make a state the last one. What stands in the way costs a warning; returns if it is kept.

        Args:
            state: Tensors and plain values, with ``at_hand`` None between two epochs.
            must: Whether to raise instead: before training, when nothing is lost.
        """

        def write() -> None:
            if self._last_is_between:
                _link(self._last, self._earlier)
            self._last_is_between = False  # whatever comes between
            save_checkpoint(self._last, torchcls=__version__, format=_FORMAT, **state)
            self._last_is_between = state["at_hand"] is None

        return self._try(write, must)

    def save_best(self, **state: Any) -> bool:
        """Make these the best weights."""
        return self._try(lambda: save_checkpoint(self.folder / "best.pt", **state), False)

    def _try(self, write: Callable[[], None], must: bool) -> bool:
        try:
            write()
        except (OSError, TypeError, MemoryError) as error:
            if must:
                raise
            warn(f"The checkpoint could not be written, and the run goes on: {error}")
            return False
        finally:
            self._wait()
        return True

    def _wait(self) -> None:
        self._due = time.monotonic() + self._every

    def prove_space(self) -> None:
        """Check that a second state fits beside the first one, which was written just now.

        Raises:
            OSError: If it does not.
        """
        size, free = self._last.stat().st_size, shutil.disk_usage(self.folder).free
        if free < size:
            raise OSError(
                f"checkpoint must be on a disk with room for two states of {size:,} bytes, since "
                f"the old one stays until the new one is whole, got {free:,} bytes free in "
                f"{self.folder}. Make room, or choose another folder."
            )


def _check_kind(state: Mapping[str, Any], path: Path) -> None:
    if not {"torchcls", "format", "at_hand"} <= state.keys():
        raise ValueError(
            f"{path} must be the state of a run, got a checkpoint with {', '.join(state)}. "
            "Choose another folder for the run."
        )
    if state["torchcls"] != __version__ or state["format"] != _FORMAT:
        raise ValueError(
            f"{path} must be of torchcls {__version__} to be resumed bit for bit, got one of "
            f"torchcls {state['torchcls']}. Install that version, or start a new run from its "
            f'weights: model.load_state_dict(torch.load("{path}", weights_only=True)["model"]).'
        )


def _is_unstarted(state: Mapping[str, Any]) -> bool:
    return not state["history"]["records"] and state["at_hand"] is None


def _prove_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"0" * 4096)
    except OSError as error:
        raise OSError(
            error.errno,
            f"checkpoint must be a folder that can be written, got {folder}: "
            f"{error.strerror or error}. Choose another one.",
        ) from error


def _link(source: Path, target: Path) -> None:
    """Give a file another name: at once and without writing it again where links are known."""
    temporary = target.with_name(f".{target.name}.link.tmp")
    with suppress(FileNotFoundError):
        temporary.unlink()  # a killed process may have left it
    try:
        os.link(source, temporary)
    except FileNotFoundError:  # somebody removed it: there is nothing to keep
        return
    except OSError:
        shutil.copyfile(source, temporary)
    os.replace(temporary, target)
