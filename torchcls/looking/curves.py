"""Pictures of a run; needs matplotlib, which the extra ``torchcls[plots]`` installs."""

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torchcls.looking.pictures import LOSSES, plot_history

_NEITHER = ("smooth_loss", "time")


def curves(history: Iterable[Any], path: str | os.PathLike[str]) -> None:
    """Draw losses on the left and metrics on the right, epoch by epoch, into a picture.

    Metrics that are not one number for each epoch are left out.

    Args:
        history: The records of a run, as ``fit`` returns them.
        path: The file to write; its ending says the format (``.png``, ``.svg``, ``.pdf``).

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If there is no epoch to draw.
    """
    from matplotlib.figure import Figure

    records = list(history)
    if not records:
        raise ValueError("history must hold at least one epoch to draw, got none.")
    shown = panels(records)
    figure = Figure(figsize=(5 * len(shown), 3.6), layout="constrained")
    grid = figure.subplots(1, len(shown), squeeze=False)[0]
    for ax, (title, columns) in zip(grid, shown.items(), strict=True):
        plot_history(records, ax, columns=columns).set_title(title)
    figure.savefig(path, dpi=120)


def panels(records: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """The columns to draw together, by the title above them."""
    names = [name for name, value in records[0].items() if isinstance(value, float)]
    losses = [name for name in names if name in LOSSES]
    metrics = [name for name in names if name not in (*LOSSES, *_NEITHER)]
    return {title: found for title, found in (("loss", losses), ("metrics", metrics)) if found}
