"""What the benchmark's measurements say: ratios with their spread, tables, and the claims.

A ratio is taken within a round, where both sides met the same machine; what is shown and judged is
the median of the rounds. ``runs`` holds, for each row, one measurement per round.
"""

import math
from collections.abc import Callable, Iterable
from statistics import median
from typing import Any, NamedTuple

from lecture import LOSS_BAND as LECTURE_BAND
from lecture import lecture_table

Measurement = dict[str, Any]
Runs = dict[str, list[Measurement]]

FASTER = 3.5  # the lecture's epoch: times faster than the plain loop and than every library
LOSS_BAND = 2e-5  # between any contestant's validation loss and the plain loop's
ACCURACY_BAND = 1e-6  # one image more or less is at least 1e-4; float32 rounds by less than this
PEAK_SHARE = 0.8  # of the plain loop's peak memory
IMPORT_SECONDS = 0.05  # over import torch
MEMORY_SHARE = 1.1  # of the stored data plus a batch, at the largest n
CHECK_SECONDS = 1.0  # tc.check on an ordinary network
CHECK_TIMES = 5  # of one forward and backward, where that is no mere overhead
CHECKPOINT_SHARE = 0.02  # of a run, at the default interval
STEP_SHARE = 1.05  # of a step over processes, beside DistributedDataParallel by hand
GROWTH = 1.5  # cost of a sample at the largest n over that at a hundredth of it; linear is 1
BASELINE, OURS = "plain loop", "torchcls"
MEGA = 1e6


class Claim(NamedTuple):
    """A sentence with its figures, and whether it holds."""

    holds: bool
    sentence: str


class Spread(NamedTuple):
    """The median of the rounds with the lowest and the highest."""

    middle: float
    low: float
    high: float

    def text(self, form: str = ".2f") -> str:
        """Show as ``middle (low-high)``."""
        return f"{self.middle:{form}} ({self.low:{form}}\N{EN DASH}{self.high:{form}})"


def spread(values: Iterable[float]) -> Spread:
    found = list(values)
    return Spread(median(found), min(found), max(found))


def seconds(measurement: Measurement) -> float:
    """Of one epoch: the median of the run, which a slow first epoch does not move."""
    return median(measurement["seconds"])


def peak(measurement: Measurement) -> float:
    return measurement["peak"]


def working(measurement: Measurement) -> float:
    return measurement["working"]


def ratios(runs: Runs, row: str, other: str, value: Callable[[Measurement], float]) -> Spread:
    """What a row's value is of the other row's, round by round; NaN of nothing."""
    pairs = [(value(one), value(two)) for one, two in zip(runs[row], runs[other], strict=True)]
    return spread(one / two if two else math.nan for one, two in pairs)


def baseline_of(row: str) -> str:
    """The plain loop on the same network: "VGG, torchcls" stands beside "VGG, plain loop"."""
    net, comma, _ = row.partition(", ")
    return f"{net}, {BASELINE}" if comma and net not in (BASELINE, OURS) else BASELINE


def fused_baseline_of(row: str) -> str:
    """The plain loop with the optimizer that torchcls builds: the same roundings, one by one."""
    return f"{baseline_of(row)}, fused"


# --- claims ---------------------------------------------------------------------------------------


def same_work(runs: Runs, beside: Callable[[str], str] = baseline_of) -> Claim:
    """Everyone has the plain loop's loss and accuracy in every round: the same work was done."""
    gaps = {"loss": 0.0, "accuracy": 0.0}
    for row, found in runs.items():
        for one, two in zip(found, runs[beside(row)], strict=True):
            for name in gaps:
                gap = abs(one[name] - two[name])
                gaps[name] = max(gaps[name], gap) if gap == gap else gap  # a NaN is no equal
    holds = gaps["loss"] <= LOSS_BAND and gaps["accuracy"] <= ACCURACY_BAND
    sentence = ", ".join(f"{name} {gap:.1e}" for name, gap in gaps.items())
    bands = f"{LOSS_BAND:.0e} and {ACCURACY_BAND:.0e}"
    return Claim(holds, f"largest differences to the plain loop: {sentence} (bands {bands})")


def same_network_work(runs: Runs) -> Claim:
    """The same, beside the plain loop with the fused optimizer.

    The two optimizers round differently by 1e-7, and training with BatchNorm blows that up until
    losses differ visibly: the unfused loop is another sample of the same work, and no reference.
    """
    fused = {row: found for row, found in runs.items() if row != baseline_of(row)}
    return same_work(fused, beside=fused_baseline_of)


def epoch_claims(runs: Runs) -> list[Claim]:
    claims = [same_work(runs)]
    for row in runs:
        if row.startswith(OURS):
            continue
        faster = ratios(runs, row, OURS, seconds)
        sentence = f"an epoch is {faster.text()} times faster than with {row} (at least {FASTER})"
        claims.append(Claim(faster.middle >= FASTER, sentence))
    fed = ratios(runs, f"{OURS}, DataLoader", BASELINE, seconds)
    claims.append(never_slower(fed, "an epoch fed by a DataLoader"))
    share = ratios(runs, OURS, BASELINE, peak)
    sentence = f"peak memory is {share.text()} of the plain loop's (at most {PEAK_SHARE})"
    return [*claims, Claim(share.middle <= PEAK_SHARE, sentence), lecture_claim(runs)]


def lecture_claim(runs: Runs) -> Claim:
    """The plain loop, beside which all others stand, has the lecture's own loss."""
    columns, table = lecture_table("three_digits")
    last = runs[BASELINE][0]
    epochs = len(last["seconds"])
    lecture = table[epochs - 1][columns.index("valid_loss")]
    gap = abs(last["loss"] - lecture)
    sentence = f"valid loss {last['loss']:.6f} after {epochs} epochs, {lecture:.6f} in the lecture"
    return Claim(gap <= LECTURE_BAND, f"{sentence} (band {LECTURE_BAND:.0e})")


def never_slower(ratio: Spread, what: str) -> Claim:
    return Claim(
        ratio.middle <= 1, f"{what} takes {ratio.text()} of the plain loop's time (at most 1)"
    )


def network_claims(runs: Runs) -> list[Claim]:
    claims = [same_network_work(runs)]
    for row in runs:
        if row.endswith(OURS):
            claims.append(never_slower(ratios(runs, row, baseline_of(row), seconds), row))
    return claims


def step_claims(runs: Runs) -> list[Claim]:
    return [same_work(runs), never_slower(ratios(runs, OURS, BASELINE, seconds), "a step")]


def import_claims(runs: Runs) -> list[Claim]:
    cost = spread(map(seconds, runs[OURS]))
    sentence = f"import torchcls takes {cost.text('.3f')} s over import torch"
    return [Claim(cost.middle <= IMPORT_SECONDS, f"{sentence} (at most {IMPORT_SECONDS})")]


def scaling_claims(runs: Runs) -> list[Claim]:
    sizes = {samples(row): row for row in runs}
    largest = max(sizes)
    large, small = sizes[largest], sizes[largest // 100]
    growth = ratios(runs, large, small, seconds)
    growth = Spread(*(value / 100 for value in growth))
    share = spread(map(memory_share, runs[large]))
    return [
        Claim(
            growth.middle <= GROWTH,
            f"a sample of {large} costs {growth.text()} times one of {small} (at most {GROWTH})",
        ),
        Claim(
            share.middle <= MEMORY_SHARE,
            f"{large} samples take {share.text('.3f')} times the stored data plus a batch "
            f"(at most {MEMORY_SHARE})",
        ),
    ]


def preflight_claims(runs: Runs) -> list[Claim]:
    longest = max(runs, key=lambda row: spread(one["check"] for one in runs[row]).middle)
    check = spread(one["check"] for one in runs[longest])
    claims = [
        Claim(
            check.middle <= CHECK_SECONDS,
            f"tc.check of {longest} takes {check.text('.3f')} s (at most {CHECK_SECONDS})",
        )
    ]
    for row in runs:
        if row == "step":  # a forward and backward of nothing
            continue
        times = spread(one["check"] / one["forward and backward"] for one in runs[row])
        sentence = f"tc.check of {row} takes {times.text()} times a forward and backward"
        claims.append(Claim(times.middle <= CHECK_TIMES, f"{sentence} (at most {CHECK_TIMES})"))
    return claims


def checkpoint_claims(runs: Runs) -> list[Claim]:
    claims = []
    for row in runs:
        if row == "step":  # an epoch of nothing
            continue
        share = spread(one["added"] / seconds(one) for one in runs[row])
        sentence = f"checkpoints of {row} cost {share.text('.3f')} of the run"
        claims.append(
            Claim(share.middle <= CHECKPOINT_SHARE, f"{sentence} (at most {CHECKPOINT_SHARE})")
        )
    return claims


def same_loss(runs: Runs) -> Claim:
    """Both ways of training over processes have the losses of the loop by hand, in every epoch."""
    gaps = [one["gap"] for found in runs.values() for one in found]
    sentence = f"largest difference of losses to the loop by hand: {max(gaps):.1e}"
    return Claim(all(gap <= LOSS_BAND for gap in gaps), f"{sentence} (band {LOSS_BAND:.0e})")


def process_claims(runs: Runs) -> list[Claim]:
    claims = [same_loss(runs)]
    for row, found in runs.items():
        for name in ("train_one_epoch", "fit"):
            share = spread(one[name] for one in found)
            sentence = f"{row}: a step of {name} takes {share.text()} of one by hand"
            claims.append(Claim(share.middle <= STEP_SHARE, f"{sentence} (at most {STEP_SHARE})"))
    return claims


def samples(row: str) -> int:
    return int(row.replace(",", ""))


def memory_share(measurement: Measurement) -> float:
    """Memory above what the libraries take, in terms of the stored data plus one float batch."""
    return measurement["working"] / (measurement["stored"] + measurement["batch"])


# --- many processes, on paper ---------------------------------------------------------------------

MANY = (8, 64, 1024)
PARAMETERS = {"1M": 1.0e6, "25.6M": 25.6e6}  # the second is a ResNet-50
BANDWIDTH, LATENCY = 12.5e9, 15e-6  # of a network of 100 Gbit/s: bytes in a second, and seconds


def ring(size: int, parameters: float) -> float:
    """Seconds in which a ring adds up the float32 gradients of P parameters.

        2(W-1)/W * 4P/bandwidth + 2(W-1) * latency

    Each of W processes sends W-1 parts of 4P/W bytes to be added and as many to be known; each of
    these 2(W-1) rounds waits for the network once.
    """
    return 2 * (size - 1) / size * 4 * parameters / BANDWIDTH + 2 * (size - 1) * LATENCY


def meeting(size: int, measured: float) -> float:
    """Seconds of the meeting of a step over gloo, whose ring has 2(W-1) rounds for any vector.

    Two processes have two rounds, and what they measured is all put down to these: the work of
    Python, which does not grow with W, is in it, so that this is an upper estimate.
    """
    return (size - 1) * measured


def paper_rows(runs: Runs) -> list[list[str]]:
    """What a step would have to send and to wait for over many processes.

    The batch is fixed, so W processes compute for c/W where one computes for c seconds. Half of
    their time is lost where c/W = ring + meeting; below that c more processes hardly help.
    """
    measured = median(one["meeting"] for found in runs.values() for one in found)
    head = ["processes", "meeting, ring of gloo, ms", "the same as a tree, ms"]
    for name in PARAMETERS:
        head += [f"gradients of {name}, ms", "half is lost below, s"]
    rows = []
    for size in MANY:
        said = meeting(size, measured)
        row = [f"{size:,}", f"{1e3 * said:.1f}", f"{1e3 * math.log2(size) * measured:.1f}"]
        for parameters in PARAMETERS.values():
            sent = ring(size, parameters)
            row += [f"{1e3 * sent:.1f}", f"{size * (sent + said):,.2f}"]
        rows.append(row)
    return [head, *rows]


# --- tables ---------------------------------------------------------------------------------------

Column = tuple[str, Callable[[str], str]]  # header, and the cell of a row


def task_rows(table: str, runs: Runs) -> list[list[str]]:
    """Time beside the plain loop's, the proof of the same work, and memory."""
    unit, per, form = ("µs per step", steps_of(runs), ".0f") if table == "step" else ("s", 1, ".3g")
    columns: list[Column] = [
        (unit, lambda row: spread(per * seconds(one) for one in runs[row]).text(form)),
        ("of the plain loop's", lambda row: ratios(runs, row, baseline_of(row), seconds).text()),
        ("valid loss", lambda row: f"{runs[row][-1]['loss']:.6f}"),
        ("accuracy", lambda row: f"{runs[row][-1]['accuracy']:.6f}"),
    ]
    if table == "epoch":
        faster = ("torchcls is faster by", lambda row: ratios(runs, row, OURS, seconds).text())
        columns.insert(2, faster)
    if table != "step":
        columns += [
            ("peak MB", lambda row: mega(runs[row], peak)),
            ("of its", lambda row: ratios(runs, row, baseline_of(row), peak).text()),
            ("MB above the data", lambda row: mega(runs[row], working)),
            ("of its", lambda row: ratios(runs, row, baseline_of(row), working).text()),
        ]
    return cells("", runs, columns)


def steps_of(runs: Runs) -> float:
    """What turns the seconds of an epoch into microseconds of a step."""
    return 1e6 / runs[BASELINE][0]["steps"]


def mega(found: list[Measurement], value: Callable[[Measurement], float]) -> str:
    return f"{median(map(value, found)) / MEGA:.0f}"


def scaling_rows(runs: Runs) -> list[list[str]]:
    """Time, time per sample, and memory beside what is stored."""

    def each(row: str) -> Spread:
        return spread(1e6 * seconds(one) / samples(row) for one in runs[row])

    columns: list[Column] = [
        ("s per epoch", lambda row: spread(map(seconds, runs[row])).text(".3g")),
        ("µs per sample", lambda row: each(row).text(".3g")),
        ("stored MB", lambda row: mega(runs[row], lambda one: one["stored"])),
        ("peak above the libraries, MB", lambda row: mega(runs[row], working)),
        (
            "of the stored data plus a batch",
            lambda row: spread(map(memory_share, runs[row])).text(".3f"),
        ),
    ]
    return cells("samples", runs, columns)


def preflight_rows(runs: Runs) -> list[list[str]]:
    """What checking adds to a run, and what it takes by itself."""

    def each(row: str, name: str, unit: float, form: str) -> str:
        return spread(unit * one[name] for one in runs[row]).text(form)

    columns: list[Column] = [
        (
            "ms at the start",
            lambda row: spread(1e3 * seconds(one) for one in runs[row]).text(".1f"),
        ),
        ("µs in a step", lambda row: each(row, "step", 1e6, ".1f")),
        ("tc.check, ms", lambda row: each(row, "check", 1e3, ".1f")),
        (
            "of a forward and backward",
            lambda row: spread(
                one["check"] / one["forward and backward"] for one in runs[row]
            ).text(),
        ),
    ]
    return cells("", runs, columns)


def checkpoint_rows(runs: Runs) -> list[list[str]]:
    """What keeping a run adds to it."""
    columns: list[Column] = [
        ("s of an epoch", lambda row: spread(map(seconds, runs[row])).text(".3g")),
        ("added, ms", lambda row: spread(1e3 * one["added"] for one in runs[row]).text(".1f")),
        (
            "of the epoch",
            lambda row: spread(one["added"] / seconds(one) for one in runs[row]).text(".3f"),
        ),
        ("state, MB", lambda row: spread(one["bytes"] / 1e6 for one in runs[row]).text(".2f")),
    ]
    return cells("", runs, columns)


def process_rows(runs: Runs) -> list[list[str]]:
    """A step over processes beside the same by hand, and what comes once an epoch."""

    def each(row: str, name: str, unit: float, form: str) -> str:
        return spread(unit * one[name] for one in runs[row]).text(form)

    columns: list[Column] = [
        ("by hand, ms", lambda row: spread(1e3 * seconds(one) for one in runs[row]).text()),
        ("train_one_epoch, of it", lambda row: each(row, "train_one_epoch", 1, ".2f")),
        ("fit, of it", lambda row: each(row, "fit", 1, ".2f")),
        ("fit, around the steps of an epoch, ms", lambda row: each(row, "around", 1e3, ".1f")),
        ("one meeting, ms", lambda row: each(row, "meeting", 1e3, ".2f")),
    ]
    return cells("", runs, columns)


def import_rows(runs: Runs) -> list[list[str]]:
    """Seconds over ``import torch``."""
    columns: list[Column] = [
        ("s over import torch", lambda row: spread(map(seconds, runs[row])).text(".3f")),
        ("import torch", lambda row: spread(one["torch"] for one in runs[row]).text(".2f")),
    ]
    return cells("", runs, columns)


def cells(corner: str, runs: Runs, columns: list[Column]) -> list[list[str]]:
    head = [corner, *(header for header, _ in columns)]
    return [head, *([row, *(cell(row) for _, cell in columns)] for row in runs)]


def markdown(rows: list[list[str]]) -> str:
    """Rows as a table of docs/results.md, the first one as its head."""
    head, *body = rows
    lines = [head, ["---"] * len(head), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
