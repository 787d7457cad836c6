"""Argument checks that more than one file of this room needs."""

import operator
from collections.abc import Iterable
from typing import SupportsIndex


def check_whole_number(name: str, value: SupportsIndex, *, at_least: int | None = None) -> int:
    """Return ``value`` as an int; numpy's whole numbers count as whole, bools and 2.0 do not."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be a whole number, got {value!r}.")
    number = operator.index(value)
    if at_least is not None and number < at_least:
        raise ValueError(f"{name} must be at least {at_least}, got {number}.")
    return number


def check_digits(classes: Iterable[SupportsIndex]) -> tuple[int, ...]:
    """Return ``classes`` as a tuple of distinct digits, in the order given."""
    if isinstance(classes, (str, bytes)) or not isinstance(classes, Iterable):
        raise TypeError(
            f"classes must be a sequence of digits, got {classes!r}. Write classes=(3, 5, 8)."
        )
    digits = tuple(check_whole_number("each of classes", digit) for digit in classes)
    if not digits:
        raise ValueError("classes must name at least one digit, got none.")
    for digit in digits:
        if not 0 <= digit <= 9:
            raise ValueError(f"classes must be digits in 0..9, got {digit} in {digits}.")
    if len(set(digits)) < len(digits):
        raise ValueError(f"classes must be distinct digits, got {digits}.")
    return digits
