"""What a run reached, epoch by epoch."""

import contextlib
import csv
import json
import math
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
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
    what the preflight had to say.

    What a metric gives is kept as numbers, lists and dicts of them. A dict has a column
    ``metric.key`` for each of its keys, in a table only where there are at most eight; of a list or
    matrix a table shows the shape. An export replaces a file whole or leaves it as it was.

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
        lines: list[str] = []
        names = None
        for record in self:
            if header(record) != names:
                names = header(record)
                lines.append(names)
            lines.append(row(record))
        return "\n".join(lines) or "no epochs yet"

    def _repr_html_(self) -> str:
        """The table as a notebook shows it; what an epoch lacks is an empty cell."""
        if not self:
            return repr(self)
        rows = [{name: text for name, text, _ in _cells(record)} for record in self]
        names = list(dict.fromkeys(name for row in rows for name in row))
        return html_table(names, [[row.get(name, "") for name in names] for row in rows])

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write the records as CSV with a line of column names.

        Floats are in full precision; a list or matrix is JSON in its cell.
        """
        rows = [
            {name: _cell(value) for name, value in _columns(record)} for record in self._records
        ]
        names = dict.fromkeys(name for row in rows for name in row)  # some may come late
        with replacing(path) as new, open(new, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(names))
            writer.writeheader()
            writer.writerows(rows)

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Write the records as a JSON list, floats in full precision, null for NaN and infinity."""
        text = json.dumps(_as_json(self._records), indent=1, allow_nan=False)
        with replacing(path) as new:
            new.write_text(text + "\n", encoding="utf-8")

    def to_pandas(self) -> "pandas.DataFrame":
        """Convert to a frame with one row for each epoch, columns as in CSV; needs pandas."""
        import pandas

        return pandas.DataFrame([dict(_columns(record)) for record in self._records])


def _as_json(value: Any) -> Any:
    """What JSON has a word for: numbers, text, and lists and dicts of them."""
    if value is None or isinstance(value, (str, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _as_json(part) for key, part in value.items()}
    if isinstance(value, (set, frozenset)):
        return [_as_json(part) for part in sorted(value, key=repr)]
    if isinstance(value, (list, tuple)):
        return [_as_json(part) for part in value]
    if hasattr(value, "tolist"):  # a record made by hand may hold tensors and arrays
        return _as_json(value.tolist())
    raise TypeError(f"a record must hold numbers, text, lists and dicts of them, got {value!r}.")


def _columns(record: Mapping[str, Any], most: float = math.inf) -> Iterator[tuple[str, Any]]:
    """Name and value of each column: a dict of up to ``most`` keys has one for each of them."""
    for name, value in record.items():
        if isinstance(value, dict) and len(value) <= most:
            yield from _columns({f"{name}.{key}": part for key, part in value.items()}, most)
        else:
            yield name, value.tolist() if hasattr(value, "tolist") else value


def _cell(value: Any) -> Any:
    """A number or text as it is, anything else as JSON."""
    is_plain = value is None or isinstance(value, (str, int, float))
    return value if is_plain else json.dumps(_as_json(value), allow_nan=False)


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


# ------------------------------------------------------------------ the table

_MOST_COLUMNS = 8  # of a dict: a line has to fit a terminal


def header(record: Record) -> str:
    """The line of column names above a table of such records."""
    return "  ".join(name.rjust(width) for name, _, width in _cells(record))


def row(record: Record) -> str:
    """One record as a line of a table: six decimals for losses and metrics, seconds for time.

    Of what is no number it shows the shape.
    """
    return "  ".join(text.rjust(width) for _, text, width in _cells(record))


def _cells(record: Record) -> Iterator[tuple[str, str, int]]:
    """Name, text and width of each column."""
    for name, value in _columns(record, _MOST_COLUMNS):
        text, width = str(value), max(len(name), {"epoch": 5, "time": 6}.get(name, 8))
        if name == "time":
            text = f"{value:.2f}s"
        elif isinstance(value, float):
            text = f"{value:.6f}"
        elif isinstance(value, (dict, set, frozenset, list, tuple)):
            text = _shape(value)
            width = max(width, len(text))
        yield name, text, width


def html_table(names: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    """Text as a table of HTML; the first cell is the name of its row."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in names)
    lines = (
        f'<tr><th scope="row">{escape(first)}</th>'
        + "".join(f"<td>{escape(text)}</td>" for text in others)
        + "</tr>"
        for first, *others in rows
    )
    body = "\n".join(lines)
    return f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>"


def _shape(value: Any) -> str:
    """The shape of nested lists ("40 x 40"), the length of anything else ("3 values")."""
    shape = [len(value)]
    while isinstance(value, (list, tuple)) and value and isinstance(value[0], (list, tuple)):
        value = value[0]
        shape.append(len(value))
    return " x ".join(map(str, shape)) if len(shape) > 1 else f"{shape[0]} values"
