"""Which epoch of a run is the best one."""

import functools
from collections.abc import Sequence
from typing import Any

from torchcls import metrics as ours
from torchcls.evaluation import Metrics, named_metrics
from torchcls.history import Record

_LOSSES = ["train_loss", "smooth_loss"]
_HIGHER = (
    ours.accuracy,
    ours.threshold_accuracy,
    ours.multilabel_accuracy,
    ours.top_k_accuracy,
)


class Best:
    """Which epoch is the best one, by a column of the history.

    Args:
        best: A loss, the name of one of torchcls's metrics, or "min:" or "max:" and the name of
            another one.
        metrics: The metrics of the run.
        has_valid: Whether there is a valid_loss; without it no epoch is the best by default.

    Raises:
        ValueError: If there is no such column, or nothing says whether less of it is better.
    """

    def __init__(self, best: str, metrics: Metrics, *, has_valid: bool) -> None:
        named = named_metrics(metrics)
        losses = ["valid_loss", *_LOSSES] if has_valid else _LOSSES
        way, _, self._column = best.rpartition(":")
        self._has_one = best != "valid_loss" or has_valid
        if not self._has_one:
            return
        columns = [*losses, *named]
        if self._column not in columns or way not in ("", "min", "max"):
            raise ValueError(
                f"best must be a column of the history ({', '.join(columns)}), got {best!r}. "
                'Where less of it is better, write "min:NAME", else "max:NAME".'
            )
        metric: Any = named.get(self._column)
        while isinstance(metric, functools.partial):
            metric = metric.func
        is_higher = any(metric is function for function in _HIGHER)
        if not (way or is_higher or self._column in losses or metric is ours.error_rate):
            raise ValueError(
                f"best must say whether less or more of {self._column} is better, got {best!r}. "
                f'Write best="min:{self._column}" or best="max:{self._column}".'
            )
        self._sign = 1 if way == "max" or (is_higher and not way) else -1

    def is_last(self, records: Sequence[Record]) -> bool:
        """Whether the last record is better than all before it: a tie is not, and NaN never is."""
        values = [record[self._column] for record in records] if self._has_one else []
        if not all(isinstance(value, (int, float)) for value in values):
            return False
        *before, last = [self._sign * value for value in values] or [float("nan")]
        return last == last and all(last > value for value in before if value == value)
