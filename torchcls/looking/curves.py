"""Pictures of a run; needs matplotlib, which the extra ``torchcls[plots]`` installs."""

import os
from collections.abc import Iterable
from typing import Any

_NOT_CURVES = ("epoch", "smooth_loss", "time")


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
    from matplotlib.ticker import MaxNLocator

    records = list(history)
    if not records:
        raise ValueError("history must hold at least one epoch to draw, got none.")
    names = [
        name
        for name, value in records[0].items()
        if name not in _NOT_CURVES and isinstance(value, float)
    ]
    losses = [name for name in names if name in ("train_loss", "valid_loss")]
    panels = {"loss": losses, "metrics": [name for name in names if name not in losses]}
    panels = {title: shown for title, shown in panels.items() if shown}

    # A figure of its own: pyplot would pick a global backend and keep the figure alive.
    figure = Figure(figsize=(5 * len(panels), 3.6), layout="constrained")
    for axes, (title, shown) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
    ):
        for name in shown:
            axes.plot(
                [record["epoch"] for record in records],
                [record[name] for record in records],
                marker="o",
                markersize=3,
                label=name,
            )
        axes.set_xlabel("epoch")
        axes.set_title(title)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=120)
