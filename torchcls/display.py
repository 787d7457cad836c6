"""What a run shows: a bar and a table in a terminal, the plain table in a pipe, or nothing."""

import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torchcls.batches import num_batches
from torchcls.history import Record, header, row
from torchcls.run import Rest


class Display:
    """The bar and the table of a run, around the stream of its rests.

    Args:
        progress: None shows a bar in a terminal and the table anywhere; True and False force both
            on and off.
        epochs: Epochs of the run.
        steps: Batches of an epoch; None where nobody knows.
    """

    def __init__(self, progress: bool | None, epochs: int, steps: int | None) -> None:
        self._has_table = progress is not False
        is_terminal = sys.stdout is not None and sys.stdout.isatty()  # None in a windowed program
        self._has_bar = is_terminal if progress is None else progress
        self._epochs, self._steps = epochs, steps
        self._bar: Any = None
        self._header: str | None = None

    def shown(self, rests: Callable[[], Iterator[Rest]]) -> Iterator[Rest]:
        """Hand on the rests: a bar moves with the steps of an epoch, its record is a line."""
        try:
            for at in rests():
                if at.record is not None:
                    self._close()
                    self.show(at.record)
                elif self._has_bar:
                    done = 1
                    if self._bar is None:
                        self._open(f"epoch {at.epoch + 1}/{self._epochs} train", self._steps)
                        done = at.step
                    self._move(done)
                yield at
        finally:
            self._close()

    def validating(self, batches: Iterable[Any], epoch: int) -> Iterable[Any]:
        """Hand on the validation batches, behind a bar of their own."""
        if not self._has_bar:
            return batches
        self._close()
        return self._moving(batches, f"epoch {epoch + 1}/{self._epochs} valid")

    def _moving(self, batches: Iterable[Any], description: str) -> Iterator[Any]:
        self._open(description, num_batches(batches))
        try:
            for batch in batches:
                yield batch
                self._move(1)
        finally:
            self._close()

    def _open(self, description: str, total: int | None) -> None:
        from tqdm import tqdm

        self._bar = tqdm(desc=description, total=total, leave=False, file=sys.stdout)

    def _move(self, steps: int) -> None:
        self._bar.update(steps)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        self._bar = None

    def say(self, line: str) -> None:
        """Print a line above the table."""
        if self._has_table:
            print(line, flush=True)

    def show(self, record: Record) -> None:
        """Add a line to the table."""
        if header(record) != self._header:  # the first time, or a metric gives other keys
            self._header = header(record)
            self.say(self._header)
        self.say(row(record))
