"""Checks of plain arguments that several rooms need."""

import operator
from typing import SupportsIndex


def check_whole_number(name: str, value: SupportsIndex, *, at_least: int | None = None) -> int:
    """Return ``value`` as an int; numpy's whole numbers count as whole, bools and 2.0 do not."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be a whole number, got {value!r}.")
    number = operator.index(value)
    if at_least is not None and number < at_least:
        raise ValueError(f"{name} must be at least {at_least}, got {number}.")
    return number
