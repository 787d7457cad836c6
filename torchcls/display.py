"""What a run shows: a bar and a table in a terminal, the plain table in a pipe, or nothing."""

import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from torchcls.batches import num_batches
from torchcls.history import Record, header, row
from torchcls.run import Rest


class Output:
    """Standard output as a run writes to it: no failure of it ends the run.

    What it cannot encode is escaped. From the first error on (a pipe whose reader has left, a full
    disk, a closed stream) nothing more is written.
    """

    def __init__(self) -> None:
        self._is_lost = False

    def write(self, text: str) -> None:
        """Write text at once, or nothing."""
        if self._is_lost:
            return
        try:
            print(encodable(text), end="", flush=True)
        except Exception:  # a stream that somebody put in the place of stdout may raise anything
            self._is_lost = True

    def say(self, line: str) -> None:
        """Write a line."""
        self.write(f"{line}\n")

    def flush(self) -> None:
        """Nothing is left to be flushed."""

    def isatty(self) -> bool:
        """Whether this is a terminal; streams in place of stdout need not know."""
        try:
            return bool(sys.stdout.isatty())
        except Exception:  # None in a windowed program, closed, or without such a method
            return False

    @property
    def encoding(self) -> str:
        """Says to tqdm which blocks a bar may be made of."""
        return getattr(sys.stdout, "encoding", None) or "utf-8"


def encodable(text: str) -> str:
    """The text with escapes in place of what standard output cannot encode."""
    encoding = Output().encoding
    return text.encode(encoding, "backslashreplace").decode(encoding)


class Display:
    """The bar and the table of a run, around the stream of its rests.

    Args:
        progress: None shows a bar in a terminal and the table anywhere; True and False force both
            on and off.
        epochs: Epochs of the run.
        steps: Batches of an epoch; None where nobody knows.
        findings: The findings of the run, a list that grows with it.
    """

    def __init__(
        self,
        progress: bool | None,
        epochs: int,
        steps: int | None,
        findings: Sequence[Any] = (),
    ) -> None:
        self._output = Output()
        self._has_table = progress is not False
        self._has_bar = self._output.isatty() if progress is None else progress
        self._epochs, self._steps, self._findings = epochs, steps, findings
        self._bar: Any = None
        self._header: str | None = None

    def shown(self, rests: Callable[[], Iterator[Rest]]) -> Iterator[Rest]:
        """Hand on the rests: a bar moves with the steps of an epoch, its record is a line."""
        at = None
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
        notes = sum(finding.severity == "note" for finding in self._findings)
        if notes and at is not None:
            self.say(f"{notes} note{'s' if notes > 1 else ''}: history.findings")

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

        # tqdm asks for the width of sys.stdout alone, and shows nothing where it is not known.
        width = shutil.get_terminal_size().columns - 1
        self._bar = tqdm(desc=description, total=total, leave=False, ncols=width, file=self._output)

    def _move(self, steps: int) -> None:
        self._bar.update(steps)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        self._bar = None

    def say(self, line: str) -> None:
        """Print a line above the table."""
        if self._has_table:
            self._output.say(line)

    def show(self, record: Record) -> None:
        """Add a line to the table."""
        if header(record) != self._header:  # the first time, or a metric gives other keys
            self._header = header(record)
            self.say(self._header)
        self.say(row(record))
