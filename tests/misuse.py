"""The ways in which classification training goes wrong, and the look-alikes that do not: one table.

Each case is a run: a model, data, a loss. ``says`` is the code of what torchcls has to say about it
and its severity; None means that it has to be silent. What torch, fastai and Lightning do with the
same case was recorded with torch 2.x, fastai 2.8 and Lightning 2.x.
"""

import resource
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import torchcls as tc

# ------------------------------------------------------------------ data and models


def blobs(k: int, n: int = 120, seed: int = 0, spread: float = 0.4) -> tuple[Tensor, Tensor]:
    """Points in the plane in k groups, shuffled."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % k
    angle = 2 * torch.pi * y / k
    centres = 3 * torch.stack([angle.cos(), angle.sin()], 1)
    x = centres + spread * torch.randn(n, 2, generator=generator)
    order = torch.randperm(n, generator=generator)
    return x[order], y[order]


X, Y = blobs(3)
ONE_HOT = F.one_hot(Y).float()
X2, Y2 = blobs(2)
Y2F = Y2.float()[:, None]
IMAGES = torch.randint(0, 60, (120, 1, 8, 8), generator=torch.Generator().manual_seed(0))
IMAGES_Y = torch.arange(120) % 3
IMAGES = (IMAGES + 90 * IMAGES_Y[:, None, None, None]).to(torch.uint8)
IMAGES_F = IMAGES.float() / 255


def mk(k: int, *layers: nn.Module, d: int = 2) -> nn.Sequential:
    """A linear model with seed 0 and some layers behind it."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(d, k), *layers)


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return make()


def cnn() -> nn.Module:
    return seeded(
        lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    )


class HandSoftmax(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.exp() / x.exp().sum(1, keepdim=True)


class Attention(nn.Module):
    """A softmax inside."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.query = nn.Linear(1, 8), nn.Linear(8, 8)
        self.softmax, self.head = nn.Softmax(dim=-1), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x[..., None])
        attended = self.softmax(self.query(h) @ h.transpose(1, 2)) @ h
        return self.head((attended + h).flatten(1))


class Gate(nn.Module):
    """A sigmoid inside, registered last."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.up = nn.Linear(8, 1), nn.Linear(2, 8)
        self.gate = nn.Sequential(nn.Linear(2, 8), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.up(x) * self.gate(x))


class Scale(nn.Module):
    """Scales pixels itself."""

    def forward(self, x: Tensor) -> Tensor:
        return x.float() / 255


class FromDict(nn.Module):
    """Takes a dict of inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mk(3)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.net(batch["x"])


# ------------------------------------------------------------------ the table


@dataclass
class Run:
    """What ``fit`` is given."""

    model: nn.Module
    loss_fn: Any
    train: Any
    valid: Any = None
    metrics: Any = ()
    optimizer: Any = None


@dataclass
class Case:
    """One row.

    Attributes:
        code: The name of the case.
        title: What is done.
        torch, fastai, lightning: What these do: SILENT-WRONG, UNCLEAR-ERROR, WARNS, OK, ...
            - where nobody tried.
        make: Builds the run.
        says: (code of the finding, severity), or None: silence.
        words: What the message has to name.
        in_batch: Whether ``check`` sees it in the first batch, too.
        raises: Another error than a ContractError, where an argument is of the wrong kind.
    """

    code: str
    title: str
    torch: str
    fastai: str
    lightning: str
    make: Callable[[], Run]
    says: tuple[str, str] | None = None
    words: tuple[str, ...] = ()
    in_batch: bool = True
    raises: type[Exception] | None = None


WRONG, UNCLEAR, CLEAR, WARNS, OK = "SILENT-WRONG", "UNCLEAR-ERROR", "CLEAR-ERROR", "WARNS", "OK"


def loader(x: Any, y: Any, size: int = 40, **keywords: Any) -> DataLoader:
    generator = torch.Generator().manual_seed(0)
    keywords = {"shuffle": True, "generator": generator, **keywords}
    return DataLoader(TensorDataset(x, y), size, **keywords)


def run(model: nn.Module, loss_fn: Any, x: Any, y: Any, **keywords: Any) -> Run:
    return Run(model, loss_fn, loader(x, y), **keywords)


CE, BCE, BCEL, NLL = nn.CrossEntropyLoss, nn.BCELoss, nn.BCEWithLogitsLoss, nn.NLLLoss


def nll_of_log(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.nll_loss((outputs + 1e-9).log(), targets)


def with_nan() -> Run:
    x = X.clone()
    x[7, 0] = float("nan")
    return Run(mk(3), CE(), tc.Batches(x, Y, batch_size=40))


def ignored_first() -> Run:
    y = Y.clone()
    y[:40] = -100
    return Run(mk(3), CE(), tc.Batches(X, y, batch_size=40))


def void_part() -> Run:
    y = Y.clone()
    y[::5] = 255
    return run(mk(3), CE(ignore_index=255), X, y)


def new_head() -> Run:
    model = mk(2, nn.Linear(2, 5))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model[0].requires_grad_(False)
    model[1] = nn.Linear(2, 3)
    return run(model, CE(), X, Y, optimizer=optimizer)


def frozen_body() -> Run:
    model = mk(16, nn.Tanh(), nn.Linear(16, 3))
    model[0].requires_grad_(False)
    return run(model, CE(), X, Y, optimizer=torch.optim.SGD(model[2].parameters(), 0.1))


def made_on_meta() -> Run:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(2, 3))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        model.to_empty(device="cpu")
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.1)
    return run(model, CE(), X, Y, optimizer=optimizer)


def moved_to_float64() -> Run:
    model = mk(3)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    return run(model.to(torch.float64), CE(), X.double(), Y, optimizer=optimizer)


def same_loader() -> Run:
    x = torch.eye(30)
    y = torch.randint(0, 3, (30,), generator=torch.Generator().manual_seed(1))
    batches = loader(x, y, 10)
    return Run(mk(3, d=30), CE(), batches, batches)


def one_batch_on_purpose() -> Run:
    batches = DataLoader(TensorDataset(X[:16], Y[:16]), 16)
    return Run(mk(3), CE(), batches, batches)


def argmax_accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.argmax(dim=-1) == targets.view(-1)).float().mean()


def half_accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    return ((outputs > 0.5) == targets.bool()).float().mean()


def loose_accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    return ((outputs > 0.5) == targets).float().mean()


def binary(metric: Any, *layers: nn.Module, loss: Any = None, flat: bool = False) -> Run:
    y = Y2.float() if flat else Y2F
    loss = loss or BCEL()
    if flat:  # a loss of one's own that reshapes, and a metric that does not
        inner = loss

        def loss(outputs: Tensor, targets: Tensor) -> Tensor:
            return inner(outputs.squeeze(1), targets)

    train = loader(X2[:80], y[:80])
    return Run(mk(1, *layers), loss, train, loader(X2[80:], y[80:]), metrics=[metric])


def strings() -> Run:
    names = ["cat", "dog", "eel"]
    samples = [(x, names[int(i)]) for x, i in zip(X, Y, strict=True)]
    return Run(mk(3), CE(), DataLoader(samples, 40))


def lost_label() -> Run:
    return Run(mk(3), CE(), DataLoader(list(zip(X, Y[1:], strict=False)), 40))


def mixup() -> Run:
    generator = torch.Generator().manual_seed(0)
    share = torch.rand(120, 1, generator=generator)
    other = torch.randperm(120, generator=generator)
    mixed = share * X + (1 - share) * X[other]
    rows = share * ONE_HOT + (1 - share) * ONE_HOT[other]
    return Run(mk(3), CE(), loader(mixed, rows), loader(X[:50], Y[:50]), metrics=[tc.accuracy])


def multi_hot() -> Run:
    directions = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    return run(mk(4), BCEL(), X, (X @ directions > 0).float())


def sorted_classes() -> Run:
    x, y = blobs(3, n=600, spread=1.5)
    order = y.argsort(stable=True)
    return Run(mk(3), CE(), DataLoader(TensorDataset(x[order], y[order]), 10))


def token_ids() -> Run:
    ids = torch.randint(0, 50, (120, 5), generator=torch.Generator().manual_seed(0))
    ids[:, 0] = Y
    model = seeded(lambda: nn.Sequential(nn.Embedding(50, 8), nn.Flatten(), nn.Linear(40, 3)))
    return run(model, CE(), ids, Y)


def segmentation() -> Run:
    targets = (IMAGES_F[:, 0] > 0.3).long() + (IMAGES_F[:, 0] > 0.6).long()
    model = seeded(lambda: nn.Conv2d(1, 3, 1))
    return run(
        model, CE(), IMAGES_F, targets, valid=[(IMAGES_F[:9], targets[:9])], metrics=[tc.accuracy]
    )


def dicts() -> Run:
    samples = [{"x": a, "y": b} for a, b in zip(X, Y, strict=True)]
    return Run(mk(3), CE(), DataLoader(samples, 40))


def triples() -> Run:
    return Run(mk(3), CE(), DataLoader(TensorDataset(X, Y, torch.arange(120)), 40))


def dict_inputs() -> Run:
    batches = [({"x": x}, y) for x, y in zip(X.split(40), Y.split(40), strict=True)]
    return Run(FromDict(), CE(), batches)


def batch_norm() -> nn.Module:
    return seeded(lambda: nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)))


CASES = [
    # --- head, activation and loss
    Case(
        "H01",
        "Softmax layer, then CrossEntropyLoss",
        WRONG,
        WRONG,
        WRONG,
        lambda: run(mk(3, nn.Softmax(dim=1)), CE(), X, Y),
        ("activated-twice", "error"),
        ("softmax", "0.551", "3 classes", "Remove"),
    ),
    Case(
        "H01",
        "the same softmax made by hand",
        WRONG,
        "-",
        "-",
        lambda: run(mk(3, HandSoftmax()), CE(), X, Y),
        ("activated-twice", "error"),
        ("0.551",),
    ),
    Case(
        "H02",
        "LogSoftmax, then CrossEntropyLoss",
        OK,
        OK,
        OK,
        lambda: run(mk(3, nn.LogSoftmax(dim=1)), CE(), X, Y),
        ("redundant-log-softmax", "note"),
        ("harmless",),
    ),
    Case(
        "H03",
        "Sigmoid layer, then BCEWithLogitsLoss",
        WRONG,
        WRONG,
        WRONG,
        lambda: run(mk(1, nn.Sigmoid()), BCEL(), X2, Y2F),
        ("activated-twice", "error"),
        ("sigmoid", "Remove"),
    ),
    Case(
        "H04",
        "raw scores into BCELoss",
        UNCLEAR,
        UNCLEAR,
        UNCLEAR,
        lambda: run(mk(1), BCE(), X2, Y2F),
        ("not-probabilities", "error"),
        ("raw scores", "BCEWithLogitsLoss", "Sigmoid"),
    ),
    Case(
        "H05",
        "raw scores into NLLLoss",
        WRONG,
        WRONG,
        WRONG,
        lambda: run(mk(3), NLL(), X, Y),
        ("not-log-probabilities", "error"),
        ("raw scores", "CrossEntropyLoss", "LogSoftmax"),
    ),
    Case(
        "H06a",
        "one output, CrossEntropyLoss, float targets (n,1)",
        WRONG,
        WRONG,
        WRONG,
        lambda: run(mk(1), CE(), X2, Y2F),
        ("one-output", "error"),
        ("always 0", "BCEWithLogitsLoss"),
    ),
    Case(
        "H06b",
        "one output, CrossEntropyLoss, class ids",
        UNCLEAR,
        UNCLEAR,
        UNCLEAR,
        lambda: run(mk(1), CE(), X2, Y2),
        ("one-output", "error"),
        ("BCEWithLogitsLoss", ".float().reshape(-1, 1)"),
    ),
    Case(
        "H07",
        "class ids 1..k",
        UNCLEAR,
        UNCLEAR,
        UNCLEAR,
        lambda: run(mk(3), CE(), X, Y + 1),
        ("target-range", "error"),
        ("from 1 to 3", "0 to 2", "targets - 1"),
    ),
    Case(
        "H09",
        "softmax over the batch (dim=0)",
        WRONG,
        WRONG,
        WRONG,
        lambda: run(mk(3, nn.Softmax(dim=0)), nll_of_log, X, Y),
        ("wrong-axis", "error"),
        ("dim=0", "samples of the batch", "dim=1"),
    ),
    Case(
        "H10",
        "softmax by hand, huge scores",
        WRONG,
        WRONG,
        WRONG,
        lambda: run(mk(3, HandSoftmax()), lambda o, t: F.nll_loss(o.log(), t), X * 1e4, Y),
        ("non-finite-loss", "error"),
        ("outputs", "NaN", "exponential", "log_softmax"),
    ),
    # --- metrics
    Case(
        "M01",
        "argmax accuracy on a sigmoid head: 0.463357 for ever",
        WRONG,
        WRONG,
        "-",
        lambda: binary(argmax_accuracy),
        ("metric-ignores-outputs", "error"),
        ("argmax over 1 column", "class 0", "threshold"),
    ),
    Case(
        "M01",
        "the same with torchcls.accuracy",
        "-",
        "-",
        "-",
        lambda: binary(tc.accuracy),
        ("metric-refuses", "error"),
        ("threshold_accuracy",),
    ),
    Case(
        "M02",
        "outputs (n,1) against targets (n,): n x n comparisons",
        WRONG,
        OK,
        "-",
        lambda: binary(loose_accuracy, nn.Sigmoid(), loss=BCE(), flat=True),
        ("metric-broadcasts", "error"),
        ("(40, 1)", "(40,)", "40 x 40", "reshape"),
    ),
    Case(
        "M04",
        "threshold 0.5 on raw scores, by hand",
        WRONG,
        WRONG,
        "-",
        lambda: binary(half_accuracy),
        ("metric-threshold", "warning"),
        ("raw scores", "0.62"),
    ),
    Case(
        "M04",
        "the same with torchcls.threshold_accuracy",
        "-",
        "-",
        "-",
        lambda: binary(tc.threshold_accuracy),
        ("metric-threshold", "error"),
        ("raw scores", "from_logits=True"),
    ),
    Case(
        "M05",
        "mean of batch means with a smaller last batch",
        WRONG,
        OK,
        OK,
        lambda: Run(
            mk(3),
            CE(),
            tc.Batches(X, Y, batch_size=48),
            tc.Batches(*blobs(3, n=100, seed=1), batch_size=48),
            metrics=[tc.accuracy],
        ),
    ),
    # --- targets
    Case(
        "T01",
        "BCEWithLogitsLoss: outputs (n,1), targets (n,)",
        CLEAR,
        OK,
        CLEAR,
        lambda: run(mk(1), BCEL(), X2, Y2.float()),
        ("target-shape", "error"),
        ("(40,)", "(40, 1)", "reshape(-1, 1)"),
    ),
    Case(
        "T02",
        "class ids as floats",
        CLEAR,
        CLEAR,
        CLEAR,
        lambda: run(mk(3), CE(), X, Y.float()),
        ("target-dtype", "error"),
        ("float32", "0.0, 1.0, 2.0", "targets.long()"),
    ),
    Case(
        "T03",
        "class ids of shape (n,1)",
        CLEAR,
        OK,
        CLEAR,
        lambda: run(mk(3), CE(), X, Y[:, None]),
        ("target-shape", "error"),
        ("(40, 1)", "targets.squeeze(1)"),
    ),
    Case(
        "T04a",
        "BCE losses: int64 targets",
        UNCLEAR,
        OK,
        UNCLEAR,
        lambda: run(mk(1), BCEL(), X2, Y2[:, None]),
        ("target-dtype", "error"),
        ("int64", "targets.float()"),
    ),
    Case(
        "T04a",
        "the same with BCELoss",
        UNCLEAR,
        "-",
        "-",
        lambda: run(mk(1, nn.Sigmoid()), BCE(), X2, Y2[:, None]),
        ("target-dtype", "error"),
        ("int64", "targets.float()"),
    ),
    Case(
        "T04b",
        "int32 class ids",
        CLEAR,
        OK,
        CLEAR,
        lambda: run(mk(3), CE(), X, Y.int()),
        ("target-dtype", "error"),
        ("int32", "targets.long()"),
    ),
    Case(
        "T04b",
        "bool class ids",
        CLEAR,
        CLEAR,
        "-",
        lambda: run(mk(2), CE(), X2, Y2.bool()),
        ("target-dtype", "error"),
        ("bool", "targets.long()"),
    ),
    Case("T04b", "uint8 class ids", OK, "-", "-", lambda: run(mk(3), CE(), X, Y.byte())),
    Case(
        "T05",
        "one-hot targets as int64",
        CLEAR,
        UNCLEAR,
        CLEAR,
        lambda: run(mk(3), CE(), X, F.one_hot(Y)),
        ("target-dtype", "error"),
        ("one-hot", "targets.float()", "targets.argmax(1)"),
    ),
    Case(
        "T08",
        "string labels",
        UNCLEAR,
        UNCLEAR,
        UNCLEAR,
        strings,
        ("target-form", "error"),
        ("'cat'", "names.index"),
    ),
    Case(
        "T10",
        "one label lost: zip shifts all",
        WRONG,
        WRONG,
        WRONG,
        lost_label,
        ("shifted-targets", "warning"),
        ("row i + 1", "header"),
        in_batch=False,
    ),
    Case("T11", "a batch in which every target is ignored", WRONG, WRONG, WRONG, ignored_first),
    # --- data, loaders
    Case(
        "D01",
        "NaN in the inputs",
        WRONG,
        WRONG,
        WRONG,
        with_nan,
        ("non-finite-loss", "error"),
        ("inputs", "NaN", "1 value", "sample 7", "batch 0 of epoch 0"),
    ),
    Case(
        "D03",
        "pixels 0..255 as floats, not scaled",
        WRONG,
        WRONG,
        WRONG,
        lambda: run(cnn(), CE(), IMAGES.float(), IMAGES_Y),
        ("unscaled-inputs", "warning"),
        ("239", "255"),
    ),
    Case(
        "D04",
        "images without the channel axis",
        UNCLEAR,
        UNCLEAR,
        UNCLEAR,
        lambda: run(cnn(), CE(), IMAGES_F[:, 0], IMAGES_Y),
        ("input-shape", "error"),
        ("Conv2d", "(40, 8, 8)", "unsqueeze(1)", "(40, 1, 8, 8)"),
    ),
    Case(
        "D04",
        "the same with a batch of 1, read as one image",
        WRONG,
        "-",
        "-",
        lambda: Run(seeded(lambda: nn.Conv2d(1, 3, 8)), CE(), [(IMAGES_F[:1, 0], IMAGES_Y[:1])]),
        ("output-shape", "error"),
        ("unsqueeze(1)",),
    ),
    Case(
        "D05a",
        "a loader with no batch",
        WRONG,
        WRONG,
        WARNS,
        lambda: Run(mk(3), CE(), loader(X[:20], Y[:20], drop_last=True)),
        ("", "error"),
        ("20 samples", "batch_size=40", "drop_last=True"),
        in_batch=False,
        raises=ValueError,
    ),
    Case(
        "D05b",
        "an empty batch",
        WRONG,
        WRONG,
        WRONG,
        lambda: Run(mk(3), CE(), [(X, Y), (X[:0], Y[:0])]),
    ),
    Case(
        "D06",
        "last batch of 1 sample, BatchNorm",
        UNCLEAR,
        UNCLEAR,
        UNCLEAR,
        lambda: run(batch_norm(), CE(), X[:41], Y[:41]),
        ("last-batch", "error"),
        ("1 sample", "41 samples", "batch size 40", "drop_last=True"),
        in_batch=False,
    ),
    Case(
        "D07",
        "sorted by class, not shuffled",
        WRONG,
        WRONG,
        WRONG,
        sorted_classes,
        ("sorted-targets", "note"),
        ("shuffle=True",),
        in_batch=False,
    ),
    Case(
        "D08",
        "batches that are dicts",
        UNCLEAR,
        UNCLEAR,
        UNCLEAR,
        dicts,
        ("batch-form", "error"),
        ("'x', 'y'", "b['x'], b['y']"),
        raises=TypeError,
    ),
    Case(
        "D08",
        "batches of three parts",
        UNCLEAR,
        UNCLEAR,
        UNCLEAR,
        triples,
        ("batch-form", "error"),
        ("3 parts", "[:2]"),
        raises=TypeError,
    ),
    Case(
        "D10",
        "validation loader is the training loader",
        WRONG,
        WRONG,
        WRONG,
        same_loader,
        ("valid-is-train", "warning"),
        ("Split",),
        in_batch=False,
    ),
    # --- loop, optimizer, model
    Case(
        "L01",
        "training begun in eval mode",
        WRONG,
        OK,
        WARNS,
        lambda: Run(batch_norm().eval(), CE(), tc.Batches(X * 50, Y, batch_size=40)),
    ),
    Case(
        "L02",
        "validating in train mode",
        WRONG,
        OK,
        OK,
        lambda: Run(
            mk(64, nn.ReLU(), nn.Dropout(0.9), nn.Linear(64, 3)).train(),
            CE(),
            loader(X[:80], Y[:80]),
            loader(X[80:], Y[80:]),
            metrics=[tc.accuracy],
        ),
    ),
    Case(
        "L03",
        "all parameters frozen",
        UNCLEAR,
        UNCLEAR,
        UNCLEAR,
        lambda: run(mk(3).requires_grad_(False), CE(), X, Y),
        ("all-frozen", "error"),
        ("2 of 2", "model[0].requires_grad_(True)"),
    ),
    Case(
        "L04",
        "head replaced after the optimizer was made",
        WRONG,
        WRONG,
        WRONG,
        new_head,
        ("optimizer-misses", "error"),
        ("1.weight, 1.bias", "after the last change"),
    ),
    Case("L05", "optimizer made before model.to(float64)", OK, "-", "-", moved_to_float64),
    Case(
        "L05",
        "optimizer made on meta, then to_empty()",
        WRONG,
        "-",
        "-",
        made_on_meta,
        ("optimizer-of-another-model", "error"),
        ("holds none of them",),
    ),
    Case(
        "L06",
        "zero_grad forgotten",
        WRONG,
        "-",
        WRONG,
        lambda: run(mk(3), CE(), *blobs(3, spread=1.5)),
    ),
    Case(
        "L08",
        "label_smoothing=10 for 10 %",
        CLEAR,
        CLEAR,
        CLEAR,
        lambda: run(mk(3), CE(label_smoothing=10), X, Y),
        ("label-smoothing", "error"),
        ("[0, 1]", "0.1 for 10 %"),
    ),
    # --- look-alikes: silence
    Case("F01", "soft labels (mixup), class ids in validation", OK, "FALSE-ERROR", "-", mixup),
    Case(
        "F02",
        "label smoothing by the loss",
        OK,
        "-",
        "-",
        lambda: run(mk(3), CE(label_smoothing=0.1), X, Y),
    ),
    Case(
        "F02",
        "label smoothing by hand",
        OK,
        "-",
        "-",
        lambda: run(mk(3), CE(), X, ONE_HOT * 0.9 + 0.1 / 3),
    ),
    Case("F03", "multi-label rows with BCEWithLogitsLoss", OK, "-", "-", multi_hot),
    Case("F04", "two outputs and CrossEntropyLoss", OK, "-", "-", lambda: run(mk(2), CE(), X2, Y2)),
    Case(
        "F05",
        "one output and BCEWithLogitsLoss, (n,1)",
        OK,
        "-",
        "-",
        lambda: run(mk(1), BCEL(), X2, Y2F),
    ),
    Case(
        "F05",
        "one output and BCEWithLogitsLoss, (n,)",
        OK,
        "-",
        "-",
        lambda: run(mk(1, nn.Flatten(0)), BCEL(), X2, Y2.float()),
    ),
    Case("F07", "segmentation", OK, "-", "-", segmentation),
    Case("F08", "ignore_index=255 on part of the batch", OK, WRONG, "-", void_part),
    Case("F10", "batches of one sample", OK, "-", "-", lambda: Run(mk(3), CE(), loader(X, Y, 1))),
    Case(
        "F11", "softmax inside attention", OK, "-", "-", lambda: run(seeded(Attention), CE(), X, Y)
    ),
    Case(
        "F12",
        "sigmoid as a gate, registered last",
        OK,
        "-",
        "-",
        lambda: run(seeded(Gate), BCEL(), X2, Y2F),
    ),
    Case(
        "F13",
        "LogSoftmax with NLLLoss",
        OK,
        "-",
        "-",
        lambda: run(mk(3, nn.LogSoftmax(dim=1)), NLL(), X, Y),
    ),
    Case("F15", "frozen body, only the head in the optimizer", OK, "-", "-", frozen_body),
    Case("F17", "1000 outputs, 3 classes", OK, "-", "-", lambda: run(mk(1000), CE(), X, Y)),
    Case("F21", "token ids into an Embedding", OK, "-", "-", token_ids),
    Case(
        "F21",
        "uint8 images into a net that scales them",
        OK,
        "-",
        "-",
        lambda: run(nn.Sequential(Scale(), cnn()), CE(), IMAGES, IMAGES_Y),
    ),
    Case("F22", "overfitting one batch on purpose", OK, "-", "-", one_batch_on_purpose),
    Case("F24", "a model that takes a dict", OK, "-", "-", dict_inputs),
]


# ------------------------------------------------------------------ files


@dataclass
class FileCase:
    """One row about files: ``act`` gets an empty folder and has to raise.

    Attributes:
        code, title, torch, fastai, lightning: As in ``Case``.
        act: What is done.
        words: What the message has to name; None where it is right and must not raise.
    """

    code: str
    title: str
    torch: str
    fastai: str
    lightning: str
    act: Callable[[Path], Any]
    words: tuple[str, ...] | None


def images(root: Path, *, classes: tuple[str, ...] = ("cat", "dog")) -> Path:
    """A small folder of grey images, three of each class."""
    for i, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for j in range(3):
            pixels = np.random.default_rng(3 * i + j).integers(0, 256, (16, 16), np.uint8)
            Image.fromarray(pixels).save(root / name / f"{j}.png")
    return root


def read_all(root: Path, **keywords: Any) -> list[Any]:
    return list(tc.image_folder(root, **keywords))


def cut_off_png(folder: Path) -> None:
    file = images(folder) / "cat" / "2.png"
    file.write_bytes(file.read_bytes()[:150])
    read_all(folder)


def html_png(folder: Path) -> None:
    (images(folder) / "cat" / "2.png").write_text("<html>404 not found</html>")
    read_all(folder)


def rgba_among_grey(folder: Path) -> None:
    transparent = np.full((16, 16, 4), [200, 0, 0, 0], np.uint8)
    Image.fromarray(transparent).save(images(folder) / "cat" / "2.png")
    read_all(folder)


def empty_class(folder: Path) -> None:
    (images(folder) / "eel").mkdir()
    tc.image_folder(folder)


def hidden_files(folder: Path) -> None:
    images(folder)
    (folder / ".ipynb_checkpoints").mkdir()
    (folder / "cat" / "._2.png").write_bytes(b"droppings of a file system")
    assert len(read_all(folder)) == 6
    assert tc.image_folder(folder).classes == ("cat", "dog")


def missing_class(folder: Path) -> None:
    train = images(folder / "train", classes=("cat", "dog", "eel"))
    valid = images(folder / "valid", classes=("cat", "eel"))
    assert tc.image_folder(train).classes == tc.image_folder(valid).classes
    assert sorted(set(tc.image_folder(valid).targets.tolist())) == [0, 2]


def cut_off_idx(folder: Path) -> None:
    for split in ("train", "t10k"):
        labels = struct.pack(">2I", 2049, 10) + bytes(10)
        (folder / f"{split}-labels-idx1-ubyte").write_bytes(labels)
        pixels = struct.pack(">4I", 2051, 10, 28, 28) + bytes(5 * 28 * 28)
        (folder / f"{split}-images-idx3-ubyte").write_bytes(pixels)
    tc.mnist(folder)


def cut_off_checkpoint(folder: Path) -> None:
    file = folder / "model.pt"
    tc.save_checkpoint(file, model=mk(3).state_dict())
    file.write_bytes(file.read_bytes()[:700])
    tc.load_checkpoint(file)


def empty_checkpoint(folder: Path) -> None:
    (folder / "model.pt").write_bytes(b"")
    tc.load_checkpoint(folder / "model.pt")


def other_architecture(folder: Path) -> None:
    def fit(model: nn.Module) -> None:
        train = [(torch.randn(9, 2), torch.arange(9) % 3)]
        keywords: dict[str, Any] = {"checkpoint": folder, "resume": True, "progress": False}
        tc.fit(model, train, loss_fn=nn.CrossEntropyLoss(), epochs=1, **keywords)

    fit(mk(5))
    fit(mk(3))


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return open, (str(self.path), "w")


def code_in_checkpoint(folder: Path) -> None:
    torch.save({"a": Bomb(folder / "pwned")}, folder / "model.pt")
    try:
        tc.load_checkpoint(folder / "model.pt")
    finally:
        assert not (folder / "pwned").exists()


def no_such_folder(folder: Path) -> None:
    tc.save_checkpoint(folder / "missing" / "model.pt", model=mk(3).state_dict())


def full_disk(folder: Path) -> None:
    file = folder / "model.pt"
    tc.save_checkpoint(file, epoch=1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))
    try:
        tc.save_checkpoint(file, weights=torch.zeros(1 << 20))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert tc.load_checkpoint(file) == {"epoch": 1}
        assert list(folder.iterdir()) == [file]


def interrupt(folder: Path) -> None:
    calls = 0

    def loss_fn(outputs: Tensor, targets: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 7:
            raise KeyboardInterrupt
        return F.cross_entropy(outputs, targets)

    model, before = mk(3), mk(3).state_dict()
    run = tc.epochs(model, loader(X, Y), loss_fn=loss_fn, epochs=20, progress=False)
    try:
        for _ in run:
            pass
    except KeyboardInterrupt:
        assert [record.epoch for record in run.history] == [0, 1]
        assert not torch.equal(model[0].weight, before["0.weight"])
        return
    raise AssertionError("the interrupt was swallowed")


FILE_CASES = [
    FileCase(
        "D11a",
        "a PNG cut off in the middle",
        UNCLEAR,
        UNCLEAR,
        "-",
        cut_off_png,
        ("2.png", "cut-off", "Replace or delete"),
    ),
    FileCase(
        "D11b",
        "a .png that is no image",
        CLEAR,
        CLEAR,
        "-",
        html_png,
        ("2.png", "<html>", "Replace or delete"),
    ),
    FileCase(
        "D12",
        "an RGBA PNG among grey images",
        UNCLEAR,
        OK,
        "-",
        rgba_among_grey,
        ("2.png", "4 channels", "1 channel", "Store all images as RGBA"),
    ),
    FileCase(
        "D13",
        "an empty class folder",
        CLEAR,
        WRONG,
        "-",
        empty_class,
        ("eel", "at least one image", "delete the folder"),
    ),
    FileCase("D13", "a class that one split lacks", "-", "-", "-", missing_class, None),
    FileCase("D13", "hidden files and folders", "-", "-", "-", hidden_files, None),
    FileCase(
        "D15",
        "an IDX file cut off",
        WRONG,
        "-",
        "-",
        cut_off_idx,
        ("train-images-idx3-ubyte", "3936", "7856"),
    ),
    FileCase(
        "C01",
        "a checkpoint cut off",
        CLEAR,
        CLEAR,
        CLEAR,
        cut_off_checkpoint,
        ("model.pt", "700", "earlier"),
    ),
    FileCase(
        "C01", "an empty checkpoint", UNCLEAR, "-", "-", empty_checkpoint, ("model.pt", "earlier")
    ),
    FileCase(
        "C02",
        "a checkpoint of another architecture",
        CLEAR,
        CLEAR,
        CLEAR,
        other_architecture,
        ("last.pt", "0 of the model", "out_features=5", "out_features=3"),
    ),
    FileCase(
        "C03",
        "a checkpoint that carries code",
        CLEAR,
        CLEAR,
        CLEAR,
        code_in_checkpoint,
        ("model.pt", "could run code", "state_dict"),
    ),
    FileCase(
        "C04",
        "a folder that cannot be written",
        CLEAR,
        CLEAR,
        WRONG,
        no_such_folder,
        ("missing", "folder"),
    ),
    FileCase(
        "C05",
        "the disk is full while a checkpoint is replaced",
        UNCLEAR,
        UNCLEAR,
        CLEAR,
        full_disk,
        ("model.pt", "earlier checkpoint is untouched"),
    ),
    FileCase("C06", "Ctrl-C in the middle of an epoch", OK, OK, WARNS, interrupt, None),
]


# --------------------------------------------------------------- the table in docs/results.md

WORDS = {
    WRONG: "silently wrong",
    UNCLEAR: "unclear error",
    CLEAR: "clear error",
    WARNS: "warns",
    OK: "fine",
    "FALSE-ERROR": "false error",
    "-": "-",
}
SAYS = {"error": "stops", "warning": "warns", "note": "notes"}


def table() -> str:
    """Every case with what torch, fastai, Lightning and torchcls say, as rows of Markdown."""
    rows = ["| | | torch | fastai | Lightning | torchcls |", "|---|---|---|---|---|---|"]
    for case in (*CASES, *FILE_CASES):
        if isinstance(case, FileCase):
            ours = "fine" if case.words is None else "stops, names the file"
        elif case.says is None:
            ours = "fine"
        else:
            code = f": `{case.says[0]}`" if case.says[0] else ""
            ours = SAYS[case.says[1]] + code
        peers = " | ".join(WORDS[said] for said in (case.torch, case.fastai, case.lightning))
        rows.append(f"| {case.code} | {case.title} | {peers} | {ours} |")
    return "\n".join(rows)
