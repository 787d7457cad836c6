"""What a run is good for: ``torchcls predict``, ``evaluate`` and ``export``."""

import argparse
import csv
import io
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import torchcls as tc
from torchcls.cli.saved import Saved, saved
from torchcls.cli.task import ids_of, told
from torchcls.data.folder import list_images
from torchcls.data.photos import MEAN, STD, shorter_side
from torchcls.display import encodable
from torchcls.looking import class_report

_BATCH = 32


def predict(options: argparse.Namespace) -> int:
    """Print the most probable classes of images; returns 1 where one of them cannot be read."""
    run = saved(options.folder)
    if options.top > len(run.classes):
        law = f"--top must be at most the {len(run.classes)} classes of the run"
        raise ValueError(f"{law}, got {options.top}.")
    model, device = run.model(best=options.best), tc.select_device(options.device)
    rows: list[dict[str, Any]] = []
    failed: list[Exception] = []
    for paths, images in _batches(run, options.files, failed):
        p = tc.predict(model, images, loss_fn=run.head.loss_fn, device=device).probabilities
        if p.shape[1] == 1:  # of a single sigmoid
            p = torch.cat([1 - p, p], dim=1)
        found, ids = p.sort(dim=1, descending=True, stable=True)
        rows += [
            {"file": str(path), "class": run.classes[class_id], "probability": probability}
            for path, *best in zip(paths, ids.tolist(), found.tolist(), strict=True)
            for class_id, probability in list(zip(*best, strict=True))[: options.top]
        ]
    print(encodable(_FORMATS[options.format](rows)), end="", flush=True)
    return 1 if failed else 0


def _batches(
    run: Saved, files: list[str], failed: list[Exception]
) -> Iterator[tuple[list[Path], Tensor]]:
    """Read images a few at a time; what cannot be read is told at once and passed over."""
    paths: list[Path] = []
    images: list[Tensor] = []
    for path in _paths(files, failed):
        try:
            images.append(run.image(path))
            paths.append(path)
        except (OSError, ValueError) as fault:
            _tell(fault, failed)
        if len(images) == _BATCH:
            yield paths, torch.stack(images)
            paths, images = [], []
    if images:
        yield paths, torch.stack(images)


def _paths(files: list[str], failed: list[Exception]) -> Iterator[Path]:
    """The files, and all images below those that are folders."""
    for file in map(Path, files):
        try:
            yield from list_images(file)[0] if file.is_dir() else [file]
        except (OSError, ValueError) as fault:
            _tell(fault, failed)


def _tell(fault: Exception, failed: list[Exception]) -> None:
    print(f"torchcls: error: {told(fault)}", file=sys.stderr, flush=True)
    failed.append(fault)


def _table(rows: list[dict[str, Any]]) -> str:
    cells = [("file", "class", "probability")]
    cells += [(row["file"], row["class"], f"{row['probability']:.4f}") for row in rows]
    file, name, _ = (max(map(len, column)) for column in zip(*cells, strict=True))
    return "".join(f"{one:<{file}}  {two:<{name}}  {three:>11}\n" for one, two, three in cells)


def _csv(rows: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, ["file", "class", "probability"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(row | {"probability": f"{row['probability']:.9g}"} for row in rows)
    return text.getvalue()


def _json(rows: list[dict[str, Any]]) -> str:
    return json.dumps(rows, indent=1, ensure_ascii=False) + "\n"


_FORMATS = {"table": _table, "csv": _csv, "json": _json}


def evaluate(options: argparse.Namespace) -> int:
    """Print precision, recall and F1 of each class, and the accuracy with its interval."""
    run = saved(options.folder)
    task, device = run.task(options.data), tc.select_device(options.device)
    model = run.model(best=options.best)
    batches = task.batches(task.valid)
    predictions = tc.predict(model, batches, loss_fn=run.head.loss_fn, device=device)
    report = class_report(predictions, run.classes)
    print(encodable(f"{task.name}: {len(ids_of(task.valid))} images\n{report}"), flush=True)
    return 0


def export(options: argparse.Namespace) -> int:
    """Write the network to a file for others; returns 1 where torch cannot."""
    run = saved(options.folder)
    file = run.path / f"model.{options.format or 'onnx'}"
    file = Path(os.path.expanduser(options.out)) if options.out else file
    if options.format and file.suffix != f".{options.format}":
        law = f"--out must end in .{options.format} for --format {options.format}"
        raise ValueError(f"{law}, got {file}.")
    if os.path.lexists(file):
        raise FileExistsError(f"--out must be a new file, got {file}. Choose another name.")
    scaling: dict[str, Any] = {"from": [0, 255], "to": [0, 1]}
    if run.options.net is not None:
        size = run.options.size
        scaling |= {"shorter_side": shorter_side(size), "middle": size, "mean": MEAN, "std": STD}
    model = run.model(best=options.best)
    generator = torch.Generator().manual_seed(0)
    example = torch.rand(2, *run.shape, generator=generator)
    loss_fn = None if file.suffix == ".pt" else run.head.loss_fn
    if file.suffix not in (".onnx", ".pt2", ".pt") or not file.parent.is_dir():
        law = "--out must end in .onnx, .pt2 or .pt, in a folder that is there"
        raise ValueError(f"{law}, got {file}.")
    try:
        tc.export(model, example, file, loss_fn=loss_fn, classes=list(run.classes), scaling=scaling)
    except (ValueError, ImportError) as error:
        print(f"torchcls: error: {error}", file=sys.stderr, flush=True)
        return 1
    gives = "scores" if loss_fn is None else "probabilities"
    shape = " x ".join(map(str, run.shape))
    print(encodable(f"wrote {file}: n x {shape} in, {gives} of {', '.join(run.classes)} out"))
    return 0
