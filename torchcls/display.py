"""What a run shows: a bar and a table in a terminal, the plain table in a pipe, or nothing."""

import contextlib
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from torchcls.history import Record, header, row
from torchcls.loops import num_batches, pairs


class Display:
    """The bar and the table of a run.

    Args:
        progress: None shows a bar in a terminal and the table anywhere; True and False force both
            on and off.
        epochs: Epochs of the run.
    """

    def __init__(self, progress: bool | None, epochs: int) -> None:
        self._has_table = progress is not False
        is_terminal = sys.stdout is not None and sys.stdout.isatty()  # None in a windowed program
        self._has_bar = is_terminal if progress is None else progress
        self._epochs = epochs
        self._has_header = False

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

    def say(self, line: str) -> None:
        """Print a line above the table."""
        if self._has_table:
            print(line, flush=True)

    def show(self, record: Record) -> None:
        """Add a line to the table."""
        if not self._has_header:
            self.say(header(record))
            self._has_header = True
        self.say(row(record))
