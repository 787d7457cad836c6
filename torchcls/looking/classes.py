"""How well each class is told from the others, as numbers, from one pass of ``predict``.

A head of one sigmoid counts as two classes: 0, and 1 where the probability is above 0.5. Targets
that the loss ignores are left out. Where the numbers of a class are 0 / 0, they are 0.
"""

import inspect
import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple

import torch
from torch import Tensor

from torchcls import functional, heads, metrics
from torchcls.batches import check_whole_number
from torchcls.prediction import Predictions


class Scores(NamedTuple):
    """A mean over classes of each score."""

    precision: float
    recall: float
    f1: float


@dataclass(frozen=True, eq=False, repr=False)
class ClassReport:
    """Scores of each class, all from the confusion matrix; prints as a table.

    0 / 0 is 0, as with ``zero_division=0`` in scikit-learn: so is the precision of a class that was
    never predicted, and the recall of one without samples. Such a class counts in the macro means.

    Attributes:
        matrix: Rows: true class, columns: predicted; int64, shape (C, C).
        classes: Their names.
    """

    matrix: Tensor
    classes: tuple[str, ...]

    @property
    def precision(self) -> Tensor:
        """Of what was predicted as a class, the fraction that is of it; float64, shape (C,)."""
        return _over(self.matrix.diagonal(), self.matrix.sum(0))

    @property
    def recall(self) -> Tensor:
        """Of what is of a class, the fraction that was predicted as it; float64, shape (C,)."""
        return _over(self.matrix.diagonal(), self.support)

    @property
    def f1(self) -> Tensor:
        """The harmonic mean of precision and recall; float64, shape (C,)."""
        return _over(2 * self.matrix.diagonal(), self.matrix.sum(0) + self.support)

    @property
    def support(self) -> Tensor:
        """How many samples each class has; int64, shape (C,)."""
        return self.matrix.sum(1)

    @property
    def accuracy(self) -> float:
        """The fraction predicted right."""
        return int(self.matrix.trace()) / int(self.matrix.sum())

    @property
    def interval(self) -> tuple[float, float]:
        """The Wilson interval of the accuracy, at 95 %."""
        return wilson_interval(int(self.matrix.trace()), int(self.matrix.sum()))

    @property
    def macro(self) -> Scores:
        """The mean over classes: each counts the same."""
        return self._mean(torch.ones_like(self.support))

    @property
    def weighted(self) -> Scores:
        """The mean over classes: each counts by its samples."""
        return self._mean(self.support)

    def _mean(self, weights: Tensor) -> Scores:
        scores = torch.stack([self.precision, self.recall, self.f1])  # (3, C)
        return Scores(*((scores * weights).sum(1) / weights.sum()).tolist())

    def __repr__(self) -> str:
        total = int(self.support.sum())
        scores = zip(self.precision, self.recall, self.f1, strict=True)
        rows = [
            *zip(self.classes, scores, self.support.tolist(), strict=True),
            ("macro mean", self.macro, total),
            ("weighted mean", self.weighted, total),
        ]
        width = max(columns_of(name) for name, _, _ in rows)
        lines = [f"{'':{width}}  precision    recall        f1  {'support':>7}"]
        for name, (precision, recall, f1), n in rows:
            blank = " " * (width - columns_of(name))
            lines.append(f"{blank}{name}  {precision:9.6f}  {recall:.6f}  {f1:.6f}  {n:7}")
        low, high = self.interval
        last = f"accuracy {self.accuracy:.6f}, with 95 % confidence in {low:.6f} to {high:.6f}"
        return "\n".join([*lines, last])


def class_report(predictions: Predictions, classes: Sequence[object] | None = None) -> ClassReport:
    """Precision, recall, F1 and support of each class, and their macro and weighted means.

    Args:
        predictions: Of a softmax head or a single sigmoid, with targets and the loss.
        classes: A name for each class; None takes those of the predictions, or numbers them.

    Raises:
        ValueError: If the predictions lack targets or the loss, are of another head or hold NaN; if
            no target counts; or if ``classes`` are too few or too many.

    Examples:
        >>> outputs = torch.eye(3)[[0, 0, 1, 1, 1, 2]]  # what is predicted, as logits
        >>> targets = torch.tensor([0, 1, 1, 1, 1, 0])
        >>> predictions = Predictions(outputs, targets, functional.cross_entropy)
        >>> class_report(predictions, ["cat", "dog", "eel"])
                       precision    recall        f1  support
                  cat   0.500000  0.500000  0.500000        2
                  dog   1.000000  0.750000  0.857143        4
                  eel   0.000000  0.000000  0.000000        0
           macro mean   0.500000  0.416667  0.452381        6
        weighted mean   0.833333  0.666667  0.738095        6
        accuracy 0.666667, with 95 % confidence in 0.299993 to 0.903229
    """
    matrix = judged(predictions).matrix
    return ClassReport(matrix, names_of(classes, predictions, len(matrix)))


def most_confused(
    predictions: Predictions, classes: Sequence[object] | None = None, *, k: int = 10
) -> list[tuple[str, str, int]]:
    """Up to ``k`` triples (true class, predicted class, how often), the most frequent first.

    Arguments and errors are those of ``class_report``. Ties are in the order of the classes.
    """
    check_whole_number("k", k, at_least=1)
    matrix = judged(predictions).matrix.fill_diagonal_(0)
    names, size = names_of(classes, predictions, len(matrix)), len(matrix)
    counts, cells = matrix.flatten().sort(descending=True, stable=True)
    pairs = zip(counts[:k].tolist(), cells[:k].tolist(), strict=True)
    return [(names[cell // size], names[cell % size], count) for count, cell in pairs if count]


def worst(predictions: Predictions, *, k: int = 9) -> tuple[Tensor, Tensor]:
    """Indices and losses of the ``k`` samples with the largest loss, the largest first.

    The loss is that of the training with its options, class weights among them. Of a sample with
    several outputs it is their mean, and 0 for one that is ignored. NaN is the largest.

    Returns:
        Two tensors of shape (min(k, n),): int64, and the dtype of the outputs.

    Raises:
        ValueError: If the predictions lack targets, or a loss that torchcls knows.

    Examples:
        >>> outputs, targets = torch.tensor([[0.0], [2.0], [-3.0]]), torch.tensor([[0.0], [3], [0]])
        >>> worst(Predictions(outputs, targets, functional.mse_loss), k=2)
        (tensor([2, 1]), tensor([9., 1.]))
    """
    check_whole_number("k", k, at_least=1)
    outputs, targets = predictions.outputs, _targets(predictions)
    known = _known(predictions)
    if known is None:
        raise ValueError(
            "predictions must know the loss of a sample (cross_entropy, nll_loss, the two BCE "
            f"losses, mse_loss), got {predictions.loss_fn!r}. Call predict with it."
        )
    loss = getattr(functional, known.name)
    options = {
        name: value.to(outputs.device) if isinstance(value, Tensor) else value
        for name, value in known.options.items()
        if name in inspect.signature(loss).parameters
    }
    losses: Tensor = loss(outputs, targets, **{**options, "reduction": "none"})
    values, indices = losses.reshape(len(outputs), -1).mean(1).sort(descending=True, stable=True)
    return indices[:k], values[:k]


def wilson_interval(correct: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """The score interval of Wilson (1927) for a fraction of which ``correct`` of ``n`` were seen.

    Unlike mean ± 1.96 standard errors it stays in [0, 1], and says something at 0 and n of n.

    Examples:
        >>> low, high = wilson_interval(95, 100)
        >>> round(low, 4), round(high, 4)
        (0.8882, 0.9785)
    """
    n, correct = check_whole_number("n", n, at_least=1), check_whole_number("correct", correct)
    if not 0 <= correct <= n:
        raise ValueError(f"correct must be in [0, n] with n={n}, got {correct}.")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be in (0, 1), got {confidence!r}. Write 0.95 for 95 %.")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    middle = (correct + z * z / 2) / (n + z * z)
    half = z / (n + z * z) * math.sqrt(correct * (n - correct) / n + z * z / 4)
    # At the ends the interval reaches 0 and 1, where rounding would miss them.
    return (0.0 if correct == 0 else middle - half), (1.0 if correct == n else middle + half)


@dataclass(frozen=True)
class Calibration:
    """Whether what is predicted with a confidence p is right in a fraction p of the cases.

    Attributes:
        error: The expected calibration error: the mean distance of ``accuracy`` from ``confidence``
            over the bins, each weighted by its samples; in [0, 1].
        confidence: The mean confidence in each bin, float64, shape (bins,); NaN in an empty one.
        accuracy: The fraction right in each bin, likewise.
        count: The samples in each bin, int64.
    """

    error: float
    confidence: Tensor
    accuracy: Tensor
    count: Tensor


def calibration(predictions: Predictions, *, bins: int = 15) -> Calibration:
    """Compare confidence, the probability of the predicted class, with accuracy in equal bins.

    A bin holds its lower edge and not its upper one; the last holds 1 too. Arguments and errors are
    those of ``class_report``. See Guo et al., https://arxiv.org/abs/1706.04599.

    Examples:
        >>> p = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.4, 0.6], [0.3, 0.7]])
        >>> targets = torch.tensor([0, 0, 1, 0])
        >>> found = calibration(Predictions(p.log(), targets, functional.nll_loss))
        >>> round(found.error, 4)  # (|1 - 0.9| + |1 - 0.8| + |1 - 0.6| + |0 - 0.7|) / 4
        0.35
    """
    check_whole_number("bins", bins, at_least=1)
    found = judged(predictions)
    confidence = found.confidence[found.counted]
    right = (found.predicted == found.true)[found.counted].double()
    edges = torch.linspace(0, 1, bins + 1, dtype=confidence.dtype)
    where = torch.bucketize(confidence, edges[1:-1], right=True)  # in [0, bins - 1]
    count = where.bincount(minlength=bins)
    sure, hits = (where.bincount(part, minlength=bins) for part in (confidence.double(), right))
    error = float((sure - hits).abs().sum()) / len(confidence)
    return Calibration(error, sure / count, hits / count, count)


# ------------------------------------------------------------------ what was said of each sample


class Judged(NamedTuple):
    """Class ids and confidence of every target, shape (n, ...), and what they add up to."""

    predicted: Tensor
    true: Tensor
    counted: Tensor
    confidence: Tensor  # the probability of the predicted class
    matrix: Tensor  # (C, C)


def judged(predictions: Predictions) -> Judged:
    """Read predictions of a softmax head or a single sigmoid; checks shapes and values."""
    probabilities, targets = predictions.probabilities, _targets(predictions)
    known = _known(predictions)
    row = heads.row_of(known.name, predictions.outputs) if known else None
    scores, ignored = predictions.outputs, -100
    if row is heads.BINARY:
        if targets.shape != scores.shape:
            ours, theirs = tuple(targets.shape), tuple(scores.shape)
            raise ValueError(f"targets must have the shape of outputs {theirs}, got {ours}.")
        p, t = probabilities.flatten(), targets.flatten().to(probabilities.dtype)
        scores = probabilities = torch.stack([1 - p, p], dim=1)
        targets = torch.stack([1 - t, t], dim=1)
    elif row is not heads.MULTICLASS:
        raise ValueError(
            "predictions must be of one class for each sample, from a softmax or a single sigmoid, "
            f"got {known} on outputs {tuple(predictions.outputs.shape)}. Look at one label at a "
            "time: Predictions(outputs[:, [i]], targets[:, [i]], loss_fn)."
        )
    elif known and not targets.is_floating_point():
        ignored = known.options["ignore_index"]
    matrix = metrics.confusion_matrix(scores, targets, ignore_index=ignored)
    if not matrix.any():
        raise ValueError("predictions must have at least one target that counts, got none.")
    true = targets.argmax(1) if targets.is_floating_point() else targets.long()
    return Judged(scores.argmax(1), true, true != ignored, probabilities.amax(1), matrix)


def names_of(classes: Sequence[object] | None, found: object, n: int) -> tuple[str, ...]:
    """A name for each of ``n`` classes: those given, else those of the predictions."""
    classes = getattr(found, "classes", None) if classes is None else classes
    if classes is None:
        return tuple(map(str, range(n)))
    if len(classes) != n:
        raise ValueError(f"classes must name {n} classes, got {len(classes)} names.")
    return tuple(map(str, classes))


def columns_of(text: str) -> int:
    """How wide text stands in a terminal: Chinese and its kind take two columns a letter."""
    wide = sum(unicodedata.east_asian_width(letter) in "WF" for letter in text)
    return len(text) + wide - sum(unicodedata.combining(letter) > 0 for letter in text)


def _known(predictions: Predictions) -> heads.KnownLoss | None:
    return None if predictions.loss_fn is None else heads.recognise(predictions.loss_fn)


def _targets(predictions: Predictions) -> Tensor:
    if predictions.targets is None:
        remedy = "Call predict with batches of (inputs, targets)."
        raise ValueError(f"predictions must have targets, got none. {remedy}")
    return predictions.targets


def _over(numerator: Tensor, denominator: Tensor) -> Tensor:
    return numerator.double() / denominator.clamp(min=1)  # nothing over nothing is 0
