"""Which epoch of a run is the best one."""

import functools
from collections.abc import Sequence
from typing import Any

from torchcls import metrics as ours
from torchcls.evaluation import Metrics, named_metrics
from torchcls.history import Record

_LOSSES = ("valid_loss", "train_loss", "smooth_loss")
_HIGHER = (ours.accuracy, ours.threshold_accuracy, ours.multilabel_accuracy, ours.top_k_accuracy)


def best_by(best: str, metrics: Metrics, *, has_valid: bool) -> tuple[str, int] | None:
    """The column that says which epoch is the best, and 1 where more of it is better, else -1.

    Args:
        best: A loss, the name of one of torchcls's metrics, or "min:" or "max:" and the name of
            another one.
        metrics: The metrics of the run.
        has_valid: Whether there is a valid_loss; without it no epoch is the best by default: None.

    Raises:
        ValueError: If there is no such column, or nothing says whether less of it is better.
    """
    if best == "valid_loss" and not has_valid:
        return None
    named = named_metrics(metrics)
    way, _, column = best.rpartition(":")
    columns = [*_LOSSES[0 if has_valid else 1 :], *named]
    if column not in columns or way not in ("", "min", "max"):
        raise ValueError(
            f"best must be a column of the history ({', '.join(columns)}), got {best!r}. "
            'Where less of it is better, write "min:NAME", else "max:NAME".'
        )
    metric: Any = named.get(column)
    while isinstance(metric, functools.partial):
        metric = metric.func
    is_higher = any(metric is function for function in _HIGHER)
    if not (way or is_higher or column in _LOSSES or metric is ours.error_rate):
        raise ValueError(
            f"best must say whether less or more of {column} is better, got {best!r}. "
            f'Write best="min:{column}" or best="max:{column}".'
        )
    return column, 1 if way == "max" or (is_higher and not way) else -1


def is_best(records: Sequence[Record], column: str, sign: int) -> bool:
    """Whether the last record is better than all before it: a tie is not, and NaN never is."""
    values = [record[column] for record in records]
    if not values or not all(isinstance(value, (int, float)) for value in values):
        return False
    *before, last = [sign * value for value in values]
    return last == last and all(last > value for value in before if value == value)
