"""Which digits a data set is to hold."""

from collections.abc import Iterable
from typing import SupportsIndex

from torchcls.batches import check_whole_number


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
