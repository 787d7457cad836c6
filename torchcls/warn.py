"""Warnings that point at the line of the user's own that led to them."""

import contextlib
import os
import sys
import warnings
from pathlib import Path

_PACKAGE = os.path.join(os.path.dirname(__file__), "")  # not a folder that begins like it


def warn(message: str) -> None:
    """Warn with the user's frame as the place: behind this package, contextlib and tqdm."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and _is_passed_over(frame.f_code.co_filename):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, UserWarning, stacklevel=level)


def _is_passed_over(filename: str) -> bool:
    is_tqdm = "tqdm" in Path(filename).parts
    return filename.startswith(_PACKAGE) or filename == contextlib.__file__ or is_tqdm
