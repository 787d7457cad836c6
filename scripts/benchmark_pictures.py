"""A picture of each table of the benchmark; needs matplotlib."""

from pathlib import Path

from benchmark_report import (
    BASELINE,
    MEGA,
    OURS,
    Runs,
    Spread,
    baseline_of,
    ratios,
    samples,
    seconds,
    spread,
    steps_of,
    working,
)

TITLES = {
    "epoch": "The lecture's run: seconds per epoch (shorter is better)",
    "networks": "An epoch's time in terms of the plain loop's (shorter is better)",
    "step": "Overhead of a training step, microseconds (shorter is better)",
    "imports": "Import, seconds over import torch (shorter is better)",
}
BRACKETS = {
    "epoch": "in brackets: in terms of the plain loop's; ",
    "networks": "in brackets: seconds per epoch; ",
    "step": "in brackets: in terms of the plain loop's; ",
    "imports": "",
}
OUR_COLOR, BASELINE_COLOR, PEER_COLOR = "#c1440e", "#4d4d4d", "#a9b8c6"


def draw_bars(table: str, runs: Runs, path: Path) -> None:
    """One bar for each row: the median, the spread of the rounds, and the figure as text."""
    from matplotlib.figure import Figure

    rows = list(runs) if table == "networks" else sorted(runs, key=lambda row: middle(runs, row))
    found = [length(table, runs, row) for row in rows]
    figure = Figure(figsize=(8, 0.9 + 0.42 * len(rows)), layout="constrained")
    axes = figure.subplots()
    axes.barh(
        rows,
        [each.middle for each in found],
        xerr=whiskers(found),
        color=[color(row) for row in rows],
        error_kw={"capsize": 3, "elinewidth": 1},
    )
    for place, (row, each) in enumerate(zip(rows, found, strict=True)):
        axes.text(each.high, place, label(table, runs, row, each), va="center", fontsize=9)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.25 * max(each.high for each in found))
    axes.set_title(TITLES[table], fontsize=11)
    axes.set_xlabel(BRACKETS[table] + rounds_text(runs))
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def length(table: str, runs: Runs, row: str) -> Spread:
    """What the bar of a row shows, in the unit of the title."""
    if table == "networks":  # their seconds lie too far apart for one axis
        return ratios(runs, row, baseline_of(row), seconds)
    scale = steps_of(runs) if table == "step" else 1.0
    return spread(scale * seconds(one) for one in runs[row])


def label(table: str, runs: Runs, row: str, bar: Spread) -> str:
    if table == "imports":
        return f"  {bar.middle:.2g}"
    if table == "networks":
        return f"  {bar.middle:.2f}  ({middle(runs, row):.3g} s)"
    ratio = ratios(runs, row, baseline_of(row), seconds).middle
    return f"  {bar.middle:{'.0f' if table == 'step' else '.3g'}}  ({ratio:.2f})"


def middle(runs: Runs, row: str) -> float:
    return spread(map(seconds, runs[row])).middle


def whiskers(found: list[Spread]) -> list[list[float]]:
    """Distances from the medians down and up, as matplotlib takes them."""
    below = [each.middle - each.low for each in found]
    return [below, [each.high - each.middle for each in found]]


def color(row: str) -> str:
    if OURS in row:
        return OUR_COLOR
    return BASELINE_COLOR if BASELINE in row else PEER_COLOR


def rounds_text(runs: Runs) -> str:
    rounds = len(next(iter(runs.values())))
    return f"median of {rounds} rounds, whiskers: lowest and highest"


def draw_scaling(runs: Runs, path: Path) -> None:
    """Time and memory against the number of samples, both scales logarithmic."""
    from matplotlib.figure import Figure

    sizes = [samples(row) for row in runs]
    figure = Figure(figsize=(9, 4), layout="constrained")
    time_axes, memory_axes = figure.subplots(1, 2)
    times = [spread(map(seconds, found)) for found in runs.values()]
    medians = [each.middle for each in times]
    time_axes.errorbar(
        sizes, medians, whiskers(times), color=OUR_COLOR, marker="o", capsize=3, label="measured"
    )
    guide = [medians[-1] * size / sizes[-1] for size in sizes]
    time_axes.plot(sizes, guide, "--", color=BASELINE_COLOR, label="linear in n")
    for size, each in zip(sizes, medians, strict=True):
        time_axes.annotate(f"{each:.3g} s", (size, each), (7, -9), textcoords="offset points")
    time_axes.set_title("Seconds per epoch", fontsize=11)

    memory = [spread(working(one) / MEGA for one in found) for found in runs.values()]
    stored = [(found[0]["stored"] + found[0]["batch"]) / MEGA for found in runs.values()]
    memory_axes.errorbar(
        sizes,
        [each.middle for each in memory],
        whiskers(memory),
        color=OUR_COLOR,
        marker="o",
        capsize=3,
        label="peak above the libraries",
    )
    memory_axes.plot(sizes, stored, "--", color=BASELINE_COLOR, label="stored data plus a batch")
    memory_axes.set_title("Memory, MB", fontsize=11)
    for axes in (time_axes, memory_axes):
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlim(sizes[0] / 2, sizes[-1] * 6)  # room for the last figure
        axes.set_xlabel("samples of 28 by 28 uint8")
        axes.grid(alpha=0.3)
        axes.legend()
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
