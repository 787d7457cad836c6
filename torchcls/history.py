"""What a run reached, epoch by epoch."""

import csv
import json
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, overload

if TYPE_CHECKING:
    import pandas


class Record(dict[str, Any]):
    """One epoch: ``epoch, train_loss, smooth_loss, valid_loss, <metrics…>, time``.

    Every value is there as a key and as an attribute.

    Example:
        >>> record = Record(epoch=0, train_loss=0.5, time=1.25)
        >>> record.train_loss, record["time"]
        (0.5, 1.25)
    """

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"no {name!r} in this record: it has {', '.join(self)}") from None


class History(Sequence[Record]):
    """The records of a run; prints as the table people know.

    ``train_loss`` is the exact mean over the epoch's targets, ``smooth_loss`` the debiased running
    mean over its batches that fastai shows as train_loss, ``valid_loss`` and the metrics are exact
    over the validation set, and ``time`` is the seconds that training and validation took. Losses
    are in the unit of the loss (nats for cross-entropy), rates are fractions.

    Attributes:
        micro_batch: Samples in a piece of the training batches, as asked for or as "auto" chose;
            None where they went whole.
        findings: What the preflight had to say, notes included.

    Example:
        >>> history = History([Record(epoch=0, train_loss=0.5, valid_loss=0.25, time=1.25)])
        >>> print(history)
        epoch  train_loss  valid_loss   time
            0    0.500000    0.250000  1.25s
        >>> [record.valid_loss for record in history], history[-1].epoch
        ([0.25], 0)
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
        found = self._records[index]
        if isinstance(found, Record):
            return found
        part = History(found, micro_batch=self.micro_batch)
        part.findings = self.findings
        return part

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[Record]:
        return iter(self._records)

    def __repr__(self) -> str:
        return f"History of {len(self)} epochs\n{self}" if self._records else "History of 0 epochs"

    def __str__(self) -> str:
        if not self._records:
            return "no epochs yet"
        return "\n".join([header(self._records[0]), *map(row, self._records)])

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write the records as CSV, floats in full precision, with a line of column names."""
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(self._records[0]) if self else [])
            writer.writeheader()
            writer.writerows(self._records)

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Write the records as a JSON list of objects, floats in full precision."""
        with open(path, "w", encoding="utf-8") as file:
            json.dump(self._records, file, indent=1)
            file.write("\n")

    def to_pandas(self) -> "pandas.DataFrame":
        """Convert to a frame with one row for each epoch; needs pandas."""
        import pandas

        return pandas.DataFrame(self._records)


def header(record: Record) -> str:
    """The line of column names above a table of such records."""
    return "  ".join(name.rjust(_width(name)) for name in record)


def row(record: Record) -> str:
    """One record as a line of a table: six decimals for losses and metrics, seconds for time."""
    return "  ".join(_cell(name, value).rjust(_width(name)) for name, value in record.items())


def _width(name: str) -> int:
    return max(len(name), {"epoch": 5, "time": 6}.get(name, 8))


def _cell(name: str, value: Any) -> str:
    if name == "time":
        return f"{value:.2f}s"
    return f"{value:.6f}" if isinstance(value, float) else str(value)
