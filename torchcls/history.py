"""What a run reached, epoch by epoch."""

import contextlib
import csv
import json
import os
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

if TYPE_CHECKING:
    import pandas


class Record(dict[str, Any]):
    """One epoch: ``epoch, train_loss, smooth_loss, valid_loss, <metrics…>, time``.

    Example:
        >>> record = Record(epoch=0, train_loss=0.5, time=1.25)
        >>> record.train_loss, record["time"]  # every value is an attribute and a key
        (0.5, 1.25)
    """

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        raise AttributeError(f"no {name!r} in this record: it has {', '.join(self)}")


class History(Sequence[Record]):
    """The records of a run; prints as the table people know.

    ``train_loss`` is the exact mean over the epoch's targets, ``smooth_loss`` the debiased running
    mean over its batches that fastai shows as train_loss, ``valid_loss`` and the metrics are exact
    over the validation set, and ``time`` is the seconds that training and validation took. Losses
    are in the unit of the loss (nats for cross-entropy), rates are fractions. ``micro_batch`` is
    the samples in a piece of the training batches, None where they went whole; ``findings`` are
    what the preflight had to say. An export replaces a file whole or leaves it as it was.

    Example:
        >>> history = History([Record(epoch=0, train_loss=0.5, valid_loss=0.25, time=1.25)])
        >>> print(history)
        epoch  train_loss  valid_loss   time
            0    0.500000    0.250000  1.25s
        >>> [record.valid_loss for record in history]
        [0.25]
    """

    def __init__(self, records: Sequence[Record] = (), *, micro_batch: int | None = None) -> None:
        self._records = list(records)
        self.micro_batch = micro_batch
        self.findings: list[Any] = []

    def state_dict(self) -> dict[str, Any]:
        """The records as plain dicts."""
        return {"records": list(map(dict, self._records)), "micro_batch": self.micro_batch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the place of what is here."""
        self._records = list(map(Record, state["records"]))
        self.micro_batch = state["micro_batch"]

    def append(self, record: Record) -> None:
        """Add the record of one more epoch."""
        self._records.append(record)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> "History": ...
    def __getitem__(self, index: int | slice) -> "Record | History":
        if not isinstance(index, slice):
            return self._records[index]
        part = History(self._records[index], micro_batch=self.micro_batch)
        part.findings = self.findings
        return part

    def __len__(self) -> int:
        return len(self._records)

    def __repr__(self) -> str:
        return f"History of {len(self)} epochs\n{self}" if self else "History of 0 epochs"

    def __str__(self) -> str:
        return "\n".join([header(self[0]), *map(row, self)]) if self else "no epochs yet"

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write the records as CSV, floats in full precision, with a line of column names."""
        with replacing(path) as new, open(new, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(self._records[0]) if self else [])
            writer.writeheader()
            writer.writerows(self._records)

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Write the records as a JSON list, floats in full precision, null for NaN and infinity."""
        text = json.dumps(self._records, default=_as_json)
        records = json.loads(text, parse_constant=lambda word: None)
        with replacing(path) as new:
            new.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")

    def to_pandas(self) -> "pandas.DataFrame":
        """Convert to a frame with one row for each epoch; needs pandas."""
        import pandas

        return pandas.DataFrame(self._records)


def _as_json(value: Any) -> Any:
    """A set, which a metric may give, as a list; JSON has a word for neither it nor the rest."""
    if not isinstance(value, (set, frozenset)):
        raise TypeError(f"a record must hold numbers, text and lists of them, got {value!r}.")
    return sorted(value, key=repr)


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A name beside ``path`` to write to; the file takes its place when the block ends well."""
    target = Path(os.path.realpath(os.path.expanduser(path)))
    if target.exists() and not target.is_file():  # a pipe or a device: nothing to keep
        yield target
        return
    beside = target.with_name(f".{secrets.token_hex(4)}-{target.name}")
    try:
        yield beside
        os.replace(beside, target)
    finally:
        beside.unlink(missing_ok=True)


def header(record: Record) -> str:
    """The line of column names above a table of such records."""
    return "  ".join(name.rjust(_width(name)) for name in record)


def row(record: Record) -> str:
    """One record as a line of a table: six decimals for losses and metrics, seconds for time."""
    shown = {name: f"{v:.6f}" if isinstance(v, float) else str(v) for name, v in record.items()}
    if "time" in record:
        shown["time"] = f"{record['time']:.2f}s"
    return "  ".join(text.rjust(_width(name)) for name, text in shown.items())


def _width(name: str) -> int:
    return max(len(name), {"epoch": 5, "time": 6}.get(name, 8))
