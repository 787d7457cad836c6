"""Pictures with matplotlib, which the extra ``torchcls[plots]`` installs.

Each function draws into ``ax``, or into a figure of its own, and returns the axes; it opens no
window. ``ax.figure.savefig("picture.png")`` writes a file; ``ax.figure`` shows it in a notebook.
"""

import contextlib
import math
import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from torchcls.find_lr import LRCurve
from torchcls.looking.classes import calibration, judged, names_of, worst
from torchcls.prediction import Predictions

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LOSSES = ("train_loss", "valid_loss")


def plot_history(
    history: Iterable[Any], ax: "Axes | None" = None, *, columns: Sequence[str] = LOSSES
) -> "Axes":
    """Draw columns of a history epoch by epoch: the losses, or those asked for.

    A column of a metric whose scale is another one belongs into axes of its own.

    Raises:
        ValueError: If there is no epoch, or no epoch has any of the columns.
    """
    from matplotlib.ticker import MaxNLocator

    records = list(history)
    if not records:
        raise ValueError("history must hold at least one epoch to draw, got none.")
    shown = [name for name in columns if any(name in record for record in records)]
    if not shown:
        law = f"columns must be some of the history's, {', '.join(records[0])}"
        raise ValueError(f"{law}, got {', '.join(columns)}.")
    ax = _axes(ax)
    for name in shown:
        values = [record.get(name, math.nan) for record in records]
        ax.plot([record["epoch"] for record in records], values, "o-", markersize=3, label=name)
    ax.set_xlabel("epoch")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.grid(alpha=0.3)
    ax.legend()
    return ax


def plot_lr(curve: LRCurve, ax: "Axes | None" = None) -> "Axes":
    """Draw the curve of ``find_lr`` and its suggestion, where it has one."""
    ax = _axes(ax)
    ax.plot(curve.lrs, curve.losses)
    with contextlib.suppress(ValueError):  # the loss falls nowhere
        lr = curve.suggestion
        ax.plot(lr, curve.losses[curve.lrs.index(lr)], "o", label=f"suggestion {lr:.2g}")
        ax.legend()
    ax.set_xscale("log")
    ax.set_xlabel("learning rate")
    ax.set_ylabel("loss")
    ax.grid(alpha=0.3)
    return ax


def plot_confusion(
    found: Predictions | Tensor,
    classes: Sequence[object] | None = None,
    ax: "Axes | None" = None,
) -> "Axes":
    """Draw a confusion matrix: rows are true classes, columns predicted ones.

    The colour is the fraction of the row, so that small classes are seen as well; the numbers are
    counts, written where there is room for them.

    Args:
        found: Predictions, as ``class_report`` takes them, or a matrix as ``confusion_matrix`` and
            ``ClassReport`` have it, shape (C, C).
        classes: A name for each class, as for ``class_report``. Long ones are cut.
        ax: Where to draw; None is a figure that grows with the number of classes.

    Raises:
        ValueError: For the reasons of ``class_report``, or if a matrix is not square.
    """
    matrix = judged(found).matrix if isinstance(found, Predictions) else found
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"the matrix must have shape (C, C), got {tuple(matrix.shape)}.")
    n = len(matrix)
    names = [_cut(name, 24) for name in names_of(classes, found, n)]
    longest = max(map(len, names))
    side = min(max(3.0, 0.45 * n) + 0.6 + 0.07 * longest, 15.0)
    ax = _axes(ax, (side, side))
    counts = matrix.double().cpu()
    share = (counts / counts.sum(1, keepdim=True).clamp(min=1)).numpy()
    ax.imshow(share, cmap="Blues", vmin=0, vmax=1)

    # Points for a class, when names have taken their part.
    room = 0.8 * 72 * ax.get_window_extent().width / ax.figure.dpi / n
    size = min(max(0.8 * room, 5.5), 10)
    ticks = range(0, n, math.ceil(1.15 * size / room))  # every name, or every second, third, ...
    is_long = 0.6 * size * longest > room * ticks.step
    labels = [names[i] for i in ticks]
    ax.set_xticks(ticks, labels, fontsize=size, rotation=90 if is_long else 0)
    ax.set_yticks(ticks, labels, fontsize=size)
    ax.set_xlabel("predicted")
    ax.set_ylabel("true")
    digits = len(str(int(counts.max())))
    size = min(10.0, room / (0.7 * max(digits, 2)))
    if size >= 4:
        for row, column in counts.nonzero().tolist():
            colour = "white" if share[row, column] > 0.5 else "black"
            text = f"{counts[row, column]:.0f}"
            ax.text(column, row, text, ha="center", va="center", color=colour, fontsize=size)
    return ax


def plot_worst(
    images: Any, predictions: Predictions, *, k: int = 9, classes: Sequence[object] | None = None
) -> "list[Axes]":
    """Draw the ``k`` images with the largest loss, with what they are and were taken for.

    Args:
        images: What holds the image of each sample, in the order of the predictions: a tensor or
            array, a list, or a dataset of pairs (image, target). An image is grey or RGB, (H, W),
            (C, H, W) or (H, W, C), or one of PIL's. One with values outside of [0, 1] that are no
            bytes, as after normalizing, is stretched to its own range.
        predictions: As ``class_report`` takes them, one class for each sample.
        k: How many.
        classes: A name for each class, as for ``class_report``. Long ones are cut.

    Returns:
        The axes, the largest loss first; ``axes[0].figure`` is the whole picture.

    Raises:
        ValueError: For the reasons of ``class_report``, or if there is not one image, or not one
            class, for each sample.
    """
    from matplotlib.figure import Figure

    shown = worst_samples(predictions, images, k, classes)
    wide = math.ceil(math.sqrt(len(shown)))
    high = math.ceil(len(shown) / wide)
    figure = Figure(figsize=(2.3 * wide, 2.7 * high), layout="constrained")
    grid = figure.subplots(high, wide, squeeze=False).flatten()
    for axes in grid:
        axes.set_axis_off()
    for axes, (i, true, verdict, p, loss) in zip(grid, shown, strict=False):
        axes.imshow(pixels(images[i]), cmap="gray", vmin=0, vmax=1)
        lines = [_cut(true, 20), _cut(verdict, 30), f"p = {p:.3f}, loss {loss:.2f}"]
        lines += [_cut(os.path.basename(file), 30)] if (file := file_of(images, i)) else []
        axes.set_title("\n".join(lines), fontsize=8)
    return list(grid[: len(shown)])


def worst_samples(
    predictions: Predictions, images: Any, k: int, classes: Sequence[object] | None
) -> list[tuple[int, str, str, float, float]]:
    """Of each of the ``k``: index, class, what it was taken for, how surely, and the loss.

    ``images`` may be None.
    """
    found, (indices, losses) = judged(predictions), worst(predictions, k=k)
    names = names_of(classes, predictions, len(found.matrix))
    shape = tuple(found.true.shape)
    if images is not None and shape != (len(images),):
        raise ValueError(f"images must be one for each sample, got {len(images)} for {shape}.")
    samples = []
    for i, loss in zip(indices.tolist(), losses.tolist(), strict=True):
        true = names[found.true[i]] if found.counted[i] else "ignored"
        is_right = bool(found.true[i] == found.predicted[i])
        verdict = "right, but not sure" if is_right else f"taken for {names[found.predicted[i]]}"
        samples.append((i, true, verdict, float(found.confidence[i]), loss))
    return samples


def file_of(images: Any, i: int) -> str:
    """The file of an image where ``images`` are an image folder, or a ``Subset`` of one."""
    while hasattr(images, "indices") and hasattr(images, "dataset"):
        images, i = images.dataset, images.indices[i]
    return str(images.paths[i]) if hasattr(images, "paths") else ""


def plot_calibration(predictions: Predictions, ax: "Axes | None" = None) -> "Axes":
    """Draw the reliability diagram: how often predictions were right, by how sure they were.

    On the diagonal, a confidence of 0.8 is right in 8 of 10 cases; below it the model is too sure.
    The more samples a bin has, the darker its bar. Errors are those of ``class_report``.
    """
    found = calibration(predictions)
    bins = len(found.count)
    ax = _axes(ax, (4.2, 4.2))
    ax.plot([0, 1], [0, 1], "--", color="gray", linewidth=1)
    shades = (0.2 + 0.8 * found.count / found.count.max()).clamp(max=1)
    for i in found.count.nonzero().flatten().tolist():
        ax.bar(
            i / bins,
            float(found.accuracy[i]),
            1 / bins,
            align="edge",
            color="tab:blue",
            alpha=float(shades[i]),
            edgecolor="white",
        )
    ax.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="accuracy", aspect="equal")
    ax.set_title(f"expected calibration error {found.error:.4f}", fontsize=10)
    return ax


def _axes(ax: "Axes | None", size: tuple[float, float] = (5, 3.6)) -> "Axes":
    # A figure of its own: pyplot would pick a global backend and keep the figure alive.
    from matplotlib.figure import Figure

    return Figure(figsize=size, layout="constrained").subplots() if ax is None else ax


def _cut(name: str, most: int) -> str:
    # A dollar would begin a formula.
    return (name if len(name) <= most else name[: most - 1] + "…").replace("$", r"\$")


def pixels(image: Any) -> Any:
    """An image as matplotlib takes it: (H, W) or (H, W, C), from 0 to 1."""
    if isinstance(image, (tuple, list)):  # of a dataset
        image = image[0]
    array = np.asarray(image.cpu() if isinstance(image, Tensor) else image)
    if array.ndim == 3 and array.shape[0] <= 4:
        array = np.moveaxis(array, 0, -1)
    array = array[..., :-1] if array.shape[2:] in ((2,), (4,)) else array  # without alpha
    if array.dtype == np.uint8:
        return array / 255
    low, high = min(array.min(), 0), max(array.max(), 1)
    return array if (low, high) == (0, 1) else (array - array.min()) / (np.ptp(array) or 1)
