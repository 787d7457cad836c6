"""torchcls on one GPU, in one command and a few minutes: tests, time, waits, memory.

    PYTHONPATH=. python scripts/gpu.py --out FOLDER

Five parts, or those in ``--parts``: ``tests`` (those marked ``gpu``), ``lecture`` (an epoch of its
three-digit run), ``step`` (of Linear(20, 3)), ``airbench`` (airbench94's network and schedule, for
ten epochs) and ``resnet`` (ResNet-18 for 32 x 32, channels last, bfloat16, compiled). In each stand
the plain loop, one that waits once per split, the same captured as a CUDA graph, torchcls, and
fastai where it is installed. Each part has a process of its own, and what is measured is kept when
it fails; ``--minutes`` ends the one at hand. Waits are what torch's profiler sees of the driver in
one epoch, training and validation; items are numbers read from tensors. Without MNIST the lecture's
digits are drawn; the images of the last two parts always are. Without CUDA only ``--smoke`` runs.

The exit status is 1 where a test or a row failed. **Nothing has been measured with it yet.**
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from benchmark import cpu_model, version_of
from benchmark_report import MEGA, markdown, spread

PARTS = ("tests", "lecture", "step", "airbench", "resnet")
CHILD = Path(__file__).with_name("gpu_parts.py")
ROOT = CHILD.parents[1]
TESTS_SECONDS = 150  # so that something is left for the others
TAIL = 60  # lines of what a process printed that are kept


def parse_options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--out", type=Path, help="a folder for gpu.json and gpu.md")
    parser.add_argument("--minutes", type=float, default=8, help="for all of it (default: 8)")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes; also without CUDA")
    options = parser.parse_args(argv)
    if not options.smoke and not torch.cuda.is_available():
        parser.error("a CUDA device must be there, got none. --smoke runs without.")
    return options


# --- processes ------------------------------------------------------------------------------------


def in_a_process(command: list[str], seconds: float) -> tuple[int | None, list[str]]:
    """The exit status, None where the time was over, and the last lines that it printed."""
    with tempfile.TemporaryFile("w+", errors="replace") as log:  # a pipe may outlive its process
        try:
            done = subprocess.run(
                command, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT, timeout=seconds
            )
            status = done.returncode
        except subprocess.TimeoutExpired:
            status = None
        log.seek(0)
        return status, log.read().splitlines()[-TAIL:]


def run_tests(seconds: float) -> dict[str, Any]:
    """What pytest says of the tests that need a GPU."""
    if not torch.cuda.is_available():
        return {"left out": "needs CUDA"}
    if version_of("pytest") is None:
        return {"left out": "pytest is not installed"}
    files = [str(path) for path in ROOT.glob("tests/test_*.py") if "mark.gpu" in path.read_text()]
    options = ["-q", "-m", "gpu", "--tb=short", "--continue-on-collection-errors"]
    status, lines = in_a_process([sys.executable, "-m", "pytest", *options, *files], seconds)
    if status == 0:
        return {"summary": lines[-1:]}
    return {"error": lines[-1] if status and lines else "no time left", "log": lines}


def run_part(part: str, options: argparse.Namespace, seconds: float) -> dict[str, Any]:
    """The rows that were measured, and what ended the part too early."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "rows")
        file.touch()
        spec = {"part": part, "smoke": options.smoke, "rows": str(file)}
        status, lines = in_a_process([sys.executable, str(CHILD), json.dumps(spec)], seconds)
        found = [json.loads(line) for line in file.read_text().splitlines() if line.endswith("}")]
    result: dict[str, Any] = {"rows": {row.pop("row"): row for row in found}}
    if status != 0:
        why = f"exit status {status}: {(lines or [''])[-1]}" if status else "no time left"
        result |= {"error": why, "log": lines}
    return result


# --- the report -----------------------------------------------------------------------------------


def table_of(part: str, result: dict[str, Any]) -> str:
    """What was measured as a table, and one line for whatever was not."""
    unit = "µs per step" if part == "step" else "ms per epoch"
    head = ["", unit, "of the first row's", "waits", "items", "peak MB", "valid loss", "accuracy"]
    lines, rest, first = [head], [], None
    for name, row in {**result.get("rows", {}), "all of it": result}.items():
        rest += [f"- {name}: {kind}: {row[kind]}" for kind in ("left out", "error") if kind in row]
        if "seconds" not in row:
            continue
        per = 1e6 / row["steps"] if part == "step" else 1e3
        found = spread(per * one for one in row["seconds"])
        first = first or found.middle
        lines.append(
            [
                name,
                found.text(".4g"),
                f"{found.middle / first:.2f}",
                "?" if row["waits"] is None else str(row["waits"]),
                str(row["items"]),
                "?" if row["peak"] is None else f"{row['peak'] / MEGA:.0f}",
                f"{row['loss']:.6f}",
                f"{row['accuracy']:.4f}",
            ]
        )
    table = [markdown(lines)] if lines[1:] else []
    return "\n\n".join([*table, *(["\n".join(rest)] if rest else []), *result.get("summary", [])])


def circumstances() -> dict[str, Any]:
    """The machine and the versions: what the figures hold for."""
    names = ("torch", "torchvision", "triton", "torchcls", "fastai")
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "no CUDA",
        "cpu": f"{cpu_model()}, {os.cpu_count()} cores",
        "CUDA": torch.version.cuda,
        "cuDNN": torch.backends.cudnn.version(),
        "Python": platform.python_version(),
        **{name: version_of(name) for name in names},
    }


def main(argv: Sequence[str] | None = None) -> int:
    options = parse_options(argv)
    ends = time.monotonic() + 60 * options.minutes
    setting = {**circumstances(), "smoke": options.smoke}
    results: dict[str, dict[str, Any]] = {}
    text = [", ".join(f"{name} {value}" for name, value in setting.items())]
    print(text[0], flush=True)
    for part in options.parts:
        left = ends - time.monotonic()
        if left <= 0:
            results[part] = {"left out": "no time left"}
        elif part == "tests":
            results[part] = run_tests(min(left, TESTS_SECONDS))
        else:
            results[part] = run_part(part, options, left)
        text.append(f"\n## {part}\n\n{table_of(part, results[part])}")
        print(text[-1], flush=True)
        if options.out is not None:  # after every part: whoever ends this keeps what was found
            options.out.mkdir(parents=True, exist_ok=True)
            report = json.dumps({**setting, "parts": results}, indent=1)
            (options.out / "gpu.json").write_text(report + "\n")
            (options.out / "gpu.md").write_text("\n".join(text) + "\n")
    found = [row for one in results.values() for row in (one, *one.get("rows", {}).values())]
    return int(any("error" in one for one in found))


if __name__ == "__main__":
    sys.exit(main())
