"""A page of HTML that says what was run, what it reached and where it errs."""

import base64
import io
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from torchcls.evaluation import measure
from torchcls.history import History, html_table, replacing
from torchcls.looking import classes as numbers
from torchcls.looking import curves, pictures
from torchcls.prediction import Predictions
from torchcls.version import __version__

_WORST = 12  # whole rows of 2, 3, 4 and 6


def report(
    path: str | os.PathLike[str],
    predictions: Predictions,
    *,
    title: str = "Classification report",
    history: Iterable[Any] | None = None,
    classes: Sequence[object] | None = None,
    images: Any = None,
    about: Mapping[str, object] | None = None,
    findings: Iterable[object] = (),
) -> Path:
    """Write one page of HTML, pictures and all, that a browser shows without a network.

    The page says for each part what it lacks: without matplotlib the pictures that are drawn, for
    other heads than a softmax or a single sigmoid everything about classes.

    Args:
        path: The file to write; ``~`` is the home folder. A file that is there is replaced whole or
            left as it was.
        predictions: What ``predict`` gave, with targets and the loss.
        title: The heading.
        history: The records of the run, as ``fit`` returns them. Its findings are shown, too.
        classes: A name for each class, as for ``class_report``.
        images: The image of each sample, as ``plot_worst`` takes them.
        about: What was run on what, word by word: the network, the data, the arguments.
        findings: More of them, of ``tc.check``, say, or sentences of your own.

    Returns:
        The path.

    Raises:
        OSError: If the file cannot be written.
        ValueError: If there is not a name for each class, or not an image for each sample.

    Examples:
        >>> import tempfile
        >>> predictions = Predictions(torch.eye(3), torch.tensor([0, 1, 1]), nn.CrossEntropyLoss())
        >>> page = report(Path(tempfile.mkdtemp()) / "report.html", predictions)
        >>> "0.6667" in page.read_text("utf-8")
        True
    """
    all_findings = [*getattr(history, "findings", ()), *findings]
    lines = [f"{getattr(one, 'severity', 'note')}: {one}" for one in all_findings]
    parts = {
        "What was run": _table((about or {}).items(), "what", "which", kind="words"),
        **_scores(predictions, classes, images),
        "History": _history(History(list(history or ()))),
        "Findings": "".join(map(_note, dict.fromkeys(lines))),
    }
    sections = "\n".join(
        f"<section>\n<h2>{name}</h2>\n{text or _note('None given.')}\n</section>"
        for name, text in parts.items()
    )
    with replacing(path) as new:
        new.write_text(
            f"{_HEAD}<title>{escape(title)}</title>\n<main>\n<h1>{escape(title)}</h1>\n{sections}\n"
            f"<footer>torchcls {__version__}</footer>\n</main>\n</html>\n",
            encoding="utf-8",
        )
    return Path(os.path.expanduser(path))


# ------------------------------------------------------------------ the parts


def _scores(predictions: Predictions, classes: Any, images: Any) -> dict[str, str]:
    """What follows from the predictions, by heading."""
    try:
        true = numbers.judged(predictions).true
    except ValueError as reason:  # no targets, no loss, NaN, or another head
        return {"Result": _result(predictions, None) + _note(f"No scores of classes: {reason}")}
    scores = numbers.class_report(predictions, classes)
    names = scores.classes
    confused = numbers.most_confused(predictions, names)
    error = numbers.calibration(predictions).error
    return {
        "Result": _result(predictions, scores),
        "Classes": _classes(scores),
        "Most confused": _table(confused, "true class", "taken for", "times", kind="words")
        or _note("No class was taken for another one."),
        "Confusion matrix": _picture(
            partial(pictures.plot_confusion, scores.matrix, names),
            f"Confusion matrix of {len(names)} classes: accuracy {scores.accuracy:.4f}",
            is_wide=len(names) > 10,
        ),
        "Largest losses": _worst(predictions, names, images)
        if true.ndim == 1
        else _note("Samples have several targets each, so none is shown."),
        "Calibration": _note(
            f"The expected calibration error is {error:.4f}: the mean distance of how often "
            "predictions are right from how sure they are. Below the diagonal they are too sure."
        )
        + _picture(partial(pictures.plot_calibration, predictions), "Reliability diagram"),
    }


def _result(predictions: Predictions, scores: numbers.ClassReport | None) -> str:
    outputs, targets, loss_fn = predictions.outputs, predictions.targets, predictions.loss_fn
    n = len(outputs) if scores is None else int(scores.support.sum())
    cells = []
    if scores is not None:
        low, high = scores.interval
        interval = f"95 % confidence: {low:.4f} to {high:.4f}"
        cells.append(("accuracy", f"{scores.accuracy:.4f}", interval))
    if targets is not None and loss_fn is not None:
        # A copy, since a loss with weights goes to where it is taken.
        loss_fn, batches = deepcopy(loss_fn), [(outputs, targets)]
        found = measure(nn.Identity(), batches, loss_fn, (), torch.device("cpu"))
        name = getattr(loss_fn, "__name__", type(loss_fn).__name__)
        cells.append(("loss", f"{found.loss:.4f}", name))
    rest = "" if n == len(outputs) else f"targets that count, in {len(outputs)}"
    cells.append(("samples", str(n), rest))
    divs = [
        f"<div><dt>{name}</dt><dd><strong>{value}</strong></dd><dd>{escape(note)}</dd></div>"
        for name, value, note in cells
    ]
    return f"<dl>{''.join(divs)}</dl>\n"


def _classes(scores: numbers.ClassReport) -> str:
    def near(right: int, n: int) -> str:
        return "{:.4f} to {:.4f}".format(*numbers.wilson_interval(right, n)) if n else ""

    matrix, of_class = scores.matrix, scores.support.tolist()
    means = {"macro mean": scores.macro, "weighted mean": scores.weighted}
    rows: list[tuple[object, ...]] = [
        (name, f"{p:.4f}", "", f"{r:.4f}", "", f"{f1:.4f}", sum(of_class))
        for name, (p, r, f1) in means.items()
    ]
    of_each = zip(scores.classes, scores.precision, scores.recall, scores.f1, strict=True)
    counts = zip(matrix.diagonal().tolist(), matrix.sum(0).tolist(), of_class, strict=True)
    for (name, p, r, f1), (right, said, n) in zip(of_each, counts, strict=True):
        around = near(right, said), near(right, n)
        rows.append((name, f"{p:.4f}", around[0], f"{r:.4f}", around[1], f"{f1:.4f}", n))
    heads = "class", "precision", "95 % interval", "recall", "95 % interval", "F1", "samples"
    return _table(rows, *heads)


def _worst(predictions: Predictions, names: Sequence[str], images: Any) -> str:
    figures = ""
    for i, true, verdict, p, loss in pictures.worst_samples(predictions, images, _WORST, names):
        image = "" if images is None else f'<img src="{_png(images[i])}" alt="Sample {i}">'
        text = f"<b>{escape(true)}</b><br>{escape(verdict)}<br>p = {p:.3f}<br>loss {loss:.2f}<br>"
        text += escape(pictures.file_of(images, i)) or f"sample {i}"
        figures += f"<figure>{image}<figcaption>{text}</figcaption></figure>\n"
    note = _note("No images were given. The first sample is number 0." if images is None else "")
    return f'{note}<div class="samples">\n{figures}</div>'


def _history(records: History) -> str:
    if not records:
        return ""
    drawn = "".join(
        _picture(partial(pictures.plot_history, records, columns=columns), f"{title} by epoch")
        for title, columns in curves.panels(records).items()
    )
    return f'<div class="row">{drawn}</div>\n{_scroll(records._repr_html_(), "History")}'


# ------------------------------------------------------------------ pieces of HTML


def _note(text: str) -> str:
    return f"<p>{escape(text)}</p>\n"


def _table(rows: Iterable[Iterable[object]], *heads: str, kind: str = "") -> str:
    """A table, or nothing where there are no rows."""
    texts = [list(map(str, row)) for row in rows]
    return _scroll(html_table(heads, texts), f"Table of {heads[0]}", kind) if texts else ""


def _scroll(content: str, name: str, kind: str = "") -> str:
    # What is wider than the page has a scroll bar of its own, and the focus for the arrow keys.
    begin = f'<div class="scroll {kind}" role="region" aria-label="{name}" tabindex="0">'
    return f"{begin}{content}</div>\n"


def _picture(draw: Callable[[], Any], alt: str, *, is_wide: bool = False) -> str:
    try:
        from matplotlib import rc_context
    except ImportError:
        return _note("A picture is left out: pip install 'torchcls[plots]' brings matplotlib.")
    file = io.BytesIO()
    # Letters stay letters, for which the browser has fonts in every script; matplotlib, which has
    # them not, would warn. With a salt the same numbers give the same file.
    options = rc_context({"svg.fonttype": "none", "svg.hashsalt": "torchcls"})
    with options, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")
        draw().figure.savefig(file, format="svg", dpi=150, metadata={"Date": None})
    image = f'<img class="drawn" src="{_inline("svg+xml", file)}" alt="{alt}">'
    return _scroll(image, alt, "wide") if is_wide else image


def _png(image: Any) -> str:
    from PIL import Image

    array = (np.nan_to_num(pictures.pixels(image)) * 255).round().astype(np.uint8)
    picture = Image.fromarray(array[..., 0] if array.shape[2:] == (1,) else array)
    picture.thumbnail((240, 240))
    picture.save(file := io.BytesIO(), "PNG")
    return _inline("png", file)


def _inline(kind: str, file: io.BytesIO) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


# Nothing on the page may reach the network or run a script, whatever a name holds.
_HEAD = """<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<style>
:root { color-scheme: light dark; --text: #1c1e21; --quiet: #5f6570; --line: #dcdfe4;
  --page: #fff; --card: #f5f6f8 }
@media (prefers-color-scheme: dark) {
  :root { --text: #e4e6ea; --quiet: #9aa1ac; --line: #363b43; --page: #15171a; --card: #1f2227 }
}
body { margin: 0; background: var(--page); color: var(--text); overflow-wrap: break-word;
  font: 16px/1.5 system-ui, sans-serif; font-variant-numeric: tabular-nums }
main { max-width: 64rem; margin: auto; padding: 1.5rem 1rem 3rem }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 }
h2 { font-size: 1.15rem; margin: 2.5rem 0 .75rem }
p { max-width: 44rem; margin: 0 0 1rem }
p, dt, dd, figcaption, footer, thead th { color: var(--quiet) }
dt, dd, table, figcaption, footer { font-size: .875rem; margin: 0 }
dl, .row, .samples { display: grid; gap: .75rem; margin: 0 0 1rem;
  grid-template-columns: repeat(auto-fit, minmax(min(var(--least, 20rem), 100%), 1fr)) }
dl { --least: 13rem } .samples { --least: 9rem }
dl > div, figure { margin: 0; background: var(--card); border-radius: .5rem; overflow: hidden }
dl > div, figcaption { padding: .75rem 1rem }
dd strong { font-size: 1.75rem; line-height: 1.4 }
strong, b { color: var(--text) }
.scroll { overflow: auto; max-height: 80vh } table { border-collapse: collapse }
th, td { padding: .35rem .75rem; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--line) }
thead th { position: sticky; top: 0; background: var(--page) }
tbody th, .words td { white-space: pre-wrap; min-width: 6rem }
tbody th { max-width: 16rem }
th:first-child, .words th, .words td { text-align: left }
.drawn { max-width: 100%; background: #fff; border-radius: .5rem } .wide .drawn { max-width: none }
figure img { display: block; width: 100%; aspect-ratio: 1; object-fit: contain; background: #888 }
@media print { .scroll { max-height: none } }
</style>
"""
