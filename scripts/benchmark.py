"""torchcls beside a plain loop and seven libraries: time, memory, and the same numbers from all.

    pip install -e '.[bench]'
    python scripts/benchmark.py --data FOLDER --out FOLDER

Eight tables, or those that are named: ``epoch`` (the lecture's three-digit run), ``networks``
(others, where cutting is not always allowed), ``step`` (the overhead of one), ``scaling`` (1,000 to
1,000,000 samples), ``preflight`` (what checking costs), ``checkpoint`` (what keeping a run costs),
``processes`` (a step over two, and on paper over more) and ``imports``. Each measurement has a
process of its own; the contestants take turns, ``--repeats`` times; ratios are taken within a round
and given as the median of the rounds with the lowest and the highest. The time of an epoch,
training and validation, is the median of its run. Peak memory is the whole process's; beside it
stands what came on top of libraries and data. In ``step``, on one thread, the batches are cut
beforehand: a list of them for the loops, torchcls, Ignite and Poutyne, and for the others, which
insist, a DataLoader that hands them out as they are.
Libraries that are not installed are named and skipped. It works on the CPU.

What is claimed, and checked with the exit status, is in ``benchmark_report.py``.
Measured with torch 2.15 on a CPU with 2 cores, 5 rounds: an epoch 5.6 times faster than the plain
loop (3.7 to 5.8) and 4.4 to 5.6 times faster than each library, in 0.75 of the memory, losses equal
to 1.8e-7; a step 0.95 of the plain loop's; all in about 27 minutes. docs/results.md has the tables.
The images are MNIST's (LeCun, Cortes and Burges; CC BY-SA 3.0).
"""

import argparse
import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from benchmark_child import SEED, measure
from benchmark_networks import NETWORKS
from benchmark_peers import PEERS
from benchmark_pictures import draw_bars, draw_scaling
from benchmark_report import (
    Claim,
    Runs,
    checkpoint_claims,
    checkpoint_rows,
    epoch_claims,
    import_claims,
    import_rows,
    markdown,
    network_claims,
    paper_rows,
    preflight_claims,
    preflight_rows,
    process_claims,
    process_rows,
    same_loss,
    same_network_work,
    same_work,
    scaling_claims,
    scaling_rows,
    seconds,
    step_claims,
    task_rows,
)
from lecture import load_digits, verdict

TABLES = ("epoch", "networks", "step", "scaling", "preflight", "checkpoint", "processes", "imports")
SIZES = (1_000, 10_000, 100_000, 1_000_000)
LECTURE_EPOCHS = 10  # so many rows has the lecture's table, which the first run is held against
CHILD = Path(__file__).with_name("benchmark_child.py")
CHILD_SECONDS = 900  # a child that hangs ends, and is reported

Spec = dict[str, Any]  # row, table, contestant, variant, threads, epochs, data, smoke


def parse_options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tables", nargs="*", metavar="TABLE", help=f"of {', '.join(TABLES)}")
    parser.add_argument(
        "--data",
        default=os.environ.get("TORCHCLS_MNIST"),
        help="the folder of MNIST's files (default: $TORCHCLS_MNIST, then torchcls' cache)",
    )
    parser.add_argument("--out", type=Path, help="a folder for every run's values and pictures")
    parser.add_argument("--repeats", type=int, default=5, help="rounds (default: 5)")
    parser.add_argument("--epochs", type=int, default=3, help="epochs of a run (default: 3)")
    parser.add_argument(
        "--smoke", action="store_true", help="torchcls and the plain loop on a few drawn digits"
    )
    options = parser.parse_args(argv)
    unknown = set(options.tables) - set(TABLES)
    if unknown:
        parser.error(f"TABLE must be of {', '.join(TABLES)}, got {', '.join(sorted(unknown))}.")
    if options.repeats < 1 or options.epochs not in range(1, LECTURE_EPOCHS + 1):
        parser.error(f"--repeats must be at least 1, --epochs in [1, {LECTURE_EPOCHS}].")
    options.tables = options.tables or list(TABLES)
    if options.smoke:
        options.repeats, options.epochs = 1, 2
    if options.data is not None:
        options.data = str(Path(options.data).resolve())  # the children work elsewhere
    return options


# --- who runs what --------------------------------------------------------------------------------


def specs_of(table: str, options: argparse.Namespace) -> list[Spec]:
    """One specification for each row of a table, in the order of the turns."""
    common = {
        "table": table,
        "epochs": options.epochs,
        "data": options.data,
        "smoke": options.smoke,
        "threads": 1 if table == "step" else None,
    }
    return [{**common, **row} for row in rows_of(table, options)]


def rows_of(table: str, options: argparse.Namespace) -> list[Spec]:
    """What differs from row to row."""
    if table == "networks":
        names = ("plain loop", "plain loop, fused", "torchcls")
        pairs = [(net, name) for net in NETWORKS for name in names]
        return [
            {"row": f"{net}, {name}", "contestant": name, "variant": net} for net, name in pairs
        ]
    if table == "scaling":
        sizes = SIZES[:1] if options.smoke else SIZES
        return [{"row": f"{n:,}", "contestant": "torchcls", "variant": n} for n in sizes]
    if table in ("preflight", "checkpoint"):
        networks = ["MLP"] if options.smoke else NETWORKS
        return [{"row": name, "variant": name} for name in ("step", "lecture", *networks)]
    if table == "processes":
        networks = ["1M"] if options.smoke else ["1M", "9M"]
        return [{"row": f"MLP, {name} parameters", "variant": name} for name in networks]
    peers = peers_at_hand(options)
    if table == "imports":
        modules = {"torchcls": "torchcls", **{name: PEERS[name][1] for name in peers}}
        return [{"row": name, "variant": module} for name, module in modules.items()]
    ours = ["torchcls, DataLoader"] if table == "epoch" else ["plain loop, fused"]
    names = ["plain loop", "torchcls", *ours, *peers]
    return [{"row": name, "contestant": name, "variant": None} for name in names]


def peers_at_hand(options: argparse.Namespace) -> list[str]:
    """The libraries that are installed; none for a smoke."""
    return [] if options.smoke else [name for name in PEERS if is_installed(name)]


def is_installed(name: str) -> bool:
    return importlib.util.find_spec(PEERS[name][1].split(".")[0]) is not None


# --- rounds ---------------------------------------------------------------------------------------


def take_turns(
    specs: list[Spec], repeats: int, measured: Callable[[Spec], dict[str, Any]]
) -> tuple[Runs, dict[str, str]]:
    """Measure every row once a round; what was measured, and which library failed and why."""
    runs: Runs = {spec["row"]: [] for spec in specs}
    failures: dict[str, str] = {}
    for turn in range(repeats):
        for spec in specs:
            row = spec["row"]
            if row in failures:
                continue
            try:
                runs[row].append(measured(spec))
            except RuntimeError as error:
                if row not in PEERS:  # without these there is nothing to stand beside
                    raise
                failures[row] = str(error)
                continue
            print(f"round {turn + 1}/{repeats}  {row}: {seconds(runs[row][-1]):.4g} s", flush=True)
    return {row: found for row, found in runs.items() if row not in failures}, failures


def in_a_process(spec: Spec) -> dict[str, Any]:
    """Measure in a fresh process that sees no accelerator and works in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        homes = {"KERAS_HOME": folder, "FASTAI_HOME": folder}  # where they write at import
        try:
            done = subprocess.run(
                [sys.executable, str(CHILD), json.dumps(spec)],
                capture_output=True,
                text=True,
                cwd=folder,
                env={**os.environ, **homes, "KERAS_BACKEND": "torch", "CUDA_VISIBLE_DEVICES": ""},
                timeout=CHILD_SECONDS,
            )
        except subprocess.TimeoutExpired as error:
            raise RuntimeError(f"no result after {CHILD_SECONDS} seconds") from error
    if done.returncode != 0:
        raise RuntimeError((done.stderr.strip().splitlines() or ["it said nothing"])[-1])
    return json.loads(done.stdout.splitlines()[-1])


# --- the report -----------------------------------------------------------------------------------


def table_of(table: str, runs: Runs) -> list[list[str]]:
    """The rows of a table as text, the header first."""
    if table == "scaling":
        return scaling_rows(runs)
    if table == "preflight":
        return preflight_rows(runs)
    if table == "checkpoint":
        return checkpoint_rows(runs)
    if table == "processes":
        return process_rows(runs)
    return import_rows(runs) if table == "imports" else task_rows(table, runs)


def claims_of(table: str, runs: Runs, smoke: bool) -> list[Claim]:
    """What the table must show; for a smoke only that everyone did the same work."""
    if smoke:
        ran = Claim(True, f"{table}: {len(runs)} rows; no claim on time or memory in smoke mode")
        work = {
            "epoch": same_work,
            "networks": same_network_work,
            "step": same_work,
            "processes": same_loss,
        }
        return [ran, work[table](runs)] if table in work else [ran]
    claims = {
        "epoch": epoch_claims,
        "networks": network_claims,
        "step": step_claims,
        "scaling": scaling_claims,
        "preflight": preflight_claims,
        "checkpoint": checkpoint_claims,
        "processes": process_claims,
        "imports": import_claims,
    }
    return claims[table](runs)


def circumstances(options: argparse.Namespace) -> dict[str, Any]:
    """The machine, the versions and the options: what the figures hold for."""
    packages = ["torch", "torchvision", "numpy", "torchcls", *(PEERS[name][0] for name in PEERS)]
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=CHILD.parent, check=False
    )
    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "versions": {package: version_of(package) for package in packages},
        "commit": commit.stdout.strip() or "unknown",
        "seed": SEED,
        "repeats": options.repeats,
        "epochs": options.epochs,
        "smoke": options.smoke,
    }


def cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"


def version_of(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def save(folder: Path, table: str, report: dict[str, Any], runs: Runs) -> None:
    """Every value as JSON, and the picture of the table where it has one."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{table}.json").write_text(json.dumps(report, indent=1) + "\n")
    if table in ("preflight", "checkpoint", "processes"):
        return  # three units: a table says it better
    if importlib.util.find_spec("matplotlib") is None:
        print(f"skipped: {table}.png, as matplotlib is not installed (pip install '.[bench]')")
    elif table == "scaling":
        draw_scaling(runs, folder / "scaling.png")
    else:
        draw_bars(table, runs, folder / f"{table}.png")


def run_table(table: str, options: argparse.Namespace, setting: dict[str, Any]) -> int:
    """Measure, print, save and judge one table; the exit status."""
    print(f"\n## {table}\n", flush=True)
    # A process takes longer to start than a smoke; only the imports need a fresh one.
    in_here = options.smoke and table != "imports"
    runs, failures = take_turns(
        specs_of(table, options), options.repeats, measure if in_here else in_a_process
    )
    print("\n" + markdown(table_of(table, runs)) + "\n")
    if table == "processes":
        print(markdown(paper_rows(runs)) + "\n")
    if options.out is not None:
        save(options.out, table, {**setting, "runs": runs, "failures": failures}, runs)
    claims = claims_of(table, runs, options.smoke)
    claims += [Claim(False, f"{row} did not run: {why}") for row, why in failures.items()]
    return max([verdict(claim.holds, claim.sentence) for claim in claims])


def main(argv: Sequence[str] | None = None) -> int:
    options = parse_options(argv)
    if not options.smoke and {"epoch", "networks", "preflight", "checkpoint"} & set(options.tables):
        load_digits(options, (0, 1, 2))  # stops here, and says how, where there are none
    setting = circumstances(options)
    versions = ", ".join(f"{name} {found}" for name, found in setting["versions"].items() if found)
    print(f"{setting['cpu']}, {setting['cores']} cores, {setting['threads']} threads; {versions}")
    for name in [] if options.smoke else PEERS:
        if not is_installed(name):
            print(f"skipped: {name} is not installed (pip install '.[bench]')")
    return max([run_table(table, options, setting) for table in options.tables])


if __name__ == "__main__":
    sys.exit(main())
