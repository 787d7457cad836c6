"""What a run is good for: ``torchcls predict``, ``evaluate``, ``report`` and ``export``."""

import argparse
import csv
import io
import itertools
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import torchcls as tc
from torchcls import looking
from torchcls.cli.saved import Saved, saved
from torchcls.cli.task import Task, ids_of, images_in, in_utf8, some, told
from torchcls.data.folder import list_images
from torchcls.display import encodable
from torchcls.looking import class_report
from torchcls.looking.classes import columns_of


def predict(options: argparse.Namespace) -> int:
    """Print the most probable classes of images; returns 1 where one of them cannot be read."""
    run = saved(options.folder)
    if options.top > len(run.classes):
        law = f"--top must be at most the {len(run.classes)} classes of the run"
        raise ValueError(f"{law}, got {options.top}.")
    model, device = run.model(best=options.best), tc.select_device(options.device)
    rows: list[dict[str, Any]] = []
    failed: list[str] = []
    for paths, images in _batches(run, options.files, failed):
        p = tc.predict(model, images, loss_fn=run.head.loss_fn, device=device).probabilities
        if p.shape[1] == 1:  # of a single sigmoid
            p = torch.cat([1 - p, p], dim=1)
        found, ids = p.sort(dim=1, descending=True, stable=True)
        for path, *best in zip(paths, ids.tolist(), found.tolist(), strict=True):
            if best[1][0] != best[1][0]:
                _tell(ValueError(f"{path} has no class: the network gives NaN"), failed)
                continue
            rows += [
                {"file": str(path), "class": run.classes[class_id], "probability": probability}
                for class_id, probability in list(zip(*best, strict=True))[: options.top]
            ]
    print(encodable(_FORMATS[options.format](rows)), end="", flush=True)
    return 1 if failed else 0


def _batches(
    run: Saved, files: list[str], failed: list[str]
) -> Iterator[tuple[list[Path], Tensor]]:
    """Read images a few at a time; what cannot be read is told at once and passed over."""
    read = _images(run, files, failed)
    while few := list(itertools.islice(read, 32)):
        paths, images = zip(*few, strict=True)
        yield list(paths), torch.stack(images)


def _images(run: Saved, files: list[str], failed: list[str]) -> Iterator[tuple[Path, Tensor]]:
    for file in map(Path, files):
        try:
            paths = list_images(file)[0] if file.is_dir() else [file]
        except (OSError, ValueError) as fault:
            paths = []
            _tell(fault, failed)
        for path in paths:
            try:
                yield path, run.image(path)
            except (OSError, ValueError) as fault:
                _tell(fault, failed)


def _tell(error: Exception, failed: list[str]) -> None:
    failed.append(f"torchcls: error: {told(error)}")
    print(failed[-1], file=sys.stderr, flush=True)


def _table(rows: list[dict[str, Any]]) -> str:
    cells = [("file", "class", "probability")]
    cells += [(row["file"], row["class"], f"{row['probability']:.4f}") for row in rows]
    file, name, _ = (max(map(columns_of, column)) for column in zip(*cells, strict=True))
    return "".join(
        f"{one}{' ' * (file - columns_of(one))}  {two}{' ' * (name - columns_of(two))}  {p:>11}\n"
        for one, two, p in cells
    )


def _csv(rows: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, ["file", "class", "probability"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(row | {"probability": f"{row['probability']:.9g}"} for row in rows)
    return text.getvalue()


def _json(rows: list[dict[str, Any]]) -> str:
    text = json.dumps(rows, indent=1, ensure_ascii=False)
    return (text if encodable(text) == text else json.dumps(rows, indent=1)) + "\n"


_FORMATS = {"table": _table, "csv": _csv, "json": _json}


def evaluate(options: argparse.Namespace) -> int:
    """Print precision, recall and F1 of each class, and the accuracy with its interval."""
    task, predictions = _predictions(saved(options.folder), options, options.data)
    scores = class_report(predictions, task.classes)
    print(encodable(f"{task.name}: {len(ids_of(task.valid))} images\n{scores}"), flush=True)
    return 0


def _predictions(
    run: Saved, options: argparse.Namespace, data: str | None
) -> tuple[Task, tc.Predictions]:
    """What a run says of images to validate on."""
    task, model = run.task(data), run.model(best=options.best)
    device, batches = tc.select_device(options.device), task.batches(task.valid)
    return task, tc.predict(model, batches, loss_fn=run.head.loss_fn, device=device)


def report(options: argparse.Namespace) -> int:
    """Write a page about what a run was and reached."""
    run = saved(options.folder)
    file = _new_file(options.out, run.path / "report.html")
    task, predictions = _predictions(run, options, None)
    about = {"images": f"{task.name}: {len(ids_of(task.valid))} to validate on"}
    about["weights"] = "of the best epoch" if options.best else "of the last one"
    given = {name: value for name, value in vars(run.options).items() if value is not None}
    about |= {name: in_utf8(value) for name, value in given.items()}
    history = json.loads((run.path / "history.json").read_text("utf-8"))
    looking.report(
        file,
        predictions,
        title=f"{run.options.net or 'The network of the lecture'} on {in_utf8(task.options.data)}",
        history=map(tc.Record, history),
        classes=task.classes,
        images=images_in(task.valid),
        about=about,
        findings=run.findings,
    )
    print(encodable(f"wrote {file}"), flush=True)
    return 0


def export(options: argparse.Namespace) -> int:
    """Write the network to a file for others; returns 1 where torch cannot."""
    run = saved(options.folder)
    file = _new_file(options.out, run.path / f"model.{options.format or 'onnx'}")
    ends = [f".{options.format}"] if options.format else [".onnx", ".pt2", ".pt"]
    if file.suffix not in ends:
        raise ValueError(f"--out must end in {' or '.join(ends)}, got {file}.")
    scaling: dict[str, Any] = {"from": [0, 2**run.bits - 1], "to": [0, 1]}
    if run.options.net is not None:
        steps: Any = tc.photo_transforms(run.options.size, train=False)
        side, middle, *_, scaled, _ = steps.transforms
        scaling |= {"shorter_side": side.size[0], "middle": middle.size[0]}
        scaling |= {"mean": scaled.mean, "std": scaled.std}
    example = torch.rand(2, *run.shape, generator=torch.Generator().manual_seed(0))
    model, loss_fn = run.model(best=options.best), run.head.loss_fn
    about: dict[str, Any] = {"classes": list(run.classes), "scaling": scaling}
    try:
        tc.export(model, example, file, loss_fn=None if file.suffix == ".pt" else loss_fn, **about)
    except (ValueError, ImportError) as error:
        _tell(error, [])
        return 1
    gives = "scores" if file.suffix == ".pt" else "probabilities"
    shape, of = " x ".join(map(str, run.shape)), run.classes
    of = of[1:] if run.options.head == "binary" else of  # of the second class alone
    print(encodable(f"wrote {file}: n x {shape} in, {gives} of {some(of)} out"))
    return 0


def _new_file(wanted: str | None, usual: Path) -> Path:
    file = Path(os.path.expanduser(wanted)) if wanted else usual
    if os.path.lexists(file) or not file.parent.is_dir():
        law = "--out must be a new file in a folder that is there"
        raise FileExistsError(f"{law}, got {file}. Choose another name.")
    return file
