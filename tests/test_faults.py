"""What people ran into elsewhere, one input of each kind: the right value, or the clear word.

The siblings of each kind are tested in the files of the rooms.
"""

import copy
import functools
import gc
import json
import math
import os
import subprocess
import sys
import unicodedata
import warnings
import weakref

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import IS_OLD_TORCH
from torch import nn
from torch.optim import SGD, lr_scheduler
from torch.utils.data import (
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    Subset,
    TensorDataset,
)

import torchcls as tc

CE = nn.CrossEntropyLoss()
CENTRES = torch.tensor([[0.0, 2.0, 0, 0], [2.0, -1.0, 0, 0], [-2.0, -1.0, 0, 0]])


def data(n=60, *, seed=0):
    y = torch.arange(n) % 3
    noise = torch.randn(n, 4, generator=torch.Generator().manual_seed(seed))
    return CENTRES[y] + 0.4 * noise, y


def cut(x, y, size=20):
    return list(zip(x.split(size), y.split(size), strict=True))


def mlp(columns=3, *more, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, columns), *more)


def fit(model, train, valid=None, **options):
    defaults = {"loss_fn": CE, "epochs": 2, "device": "cpu", "progress": False}
    return tc.fit(model, train, valid, **{**defaults, **options})


def said(*args, **options):
    """What a run says aloud: what it raises, and its warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            fit(*args, **options)
        except (TypeError, ValueError, RuntimeError) as failure:
            return f"{type(failure).__name__}: {failure}"
    return " ".join(str(warning.message) for warning in caught)


def counted_steps(model):
    """An optimizer, and a list that grows with its steps."""
    steps = []
    optimizer = SGD(model.parameters(), lr=0.1)
    optimizer.register_step_post_hook(lambda *_: steps.append(1))
    return optimizer, steps


# --- what a batch is --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "source",
    [
        TensorDataset(*data()),
        [(row, int(y)) for row, y in zip(*data(), strict=True)],
        data(),
        data()[0],
        tuple(part.numpy() for part in data()),
    ],
    ids=["dataset", "samples", "pair of tensors", "tensor", "pair of arrays"],
)
def test_what_is_no_source_of_batches_is_named(source):
    model = mlp()
    optimizer, steps = counted_steps(model)
    assert "train must" in said(model, source, optimizer=optimizer)
    assert not steps


def test_samplers_are_told_the_epoch():
    dataset = TensorDataset(*data())
    sampler = DistributedSampler(dataset, num_replicas=1, rank=0)
    orders = []

    class Watching(nn.Linear):
        def forward(self, x):
            orders.append(x[:, 0].tolist())
            return super().forward(x)

    fit(Watching(4, 3), DataLoader(dataset, batch_size=60, sampler=sampler))
    assert orders[0] != orders[-1]
    assert sorted(orders[0]) == sorted(orders[-1])


class Stream(IterableDataset):
    """One that each worker gives from its start to its end."""

    def __len__(self):
        return 60

    def __iter__(self):
        return zip(*data(), strict=True)


def test_workers_that_each_give_the_whole_stream_are_said():
    asked = []

    def schedule(progress):
        asked.append(progress)
        return 1.0

    words = said(mlp(), DataLoader(Stream(), 20, num_workers=2), schedule=schedule, epochs=1)
    assert "Every worker goes through the whole IterableDataset" in words
    assert len(asked) == 6
    assert all(0 <= progress < 1 for progress in asked)


def test_micro_batch_cuts_lists_with_the_batch():
    class Text(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = mlp()

        def forward(self, inputs):
            numbers, words = inputs
            assert len(words) == len(numbers)
            return self.body(numbers) * torch.tensor([[float(len(word))] for word in words])

    x, y = data()
    batch = (x, ["a" * (1 + i // 6) for i in range(60)]), y
    model = Text()
    whole, pieces = (tc.backward(model, batch, CE, micro_batch=m).item() for m in (None, 20))
    assert pieces == pytest.approx(whole)


def test_batch_norm_beside_micro_batch_is_said():
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    words = said(model, cut(*data()), micro_batch=4)
    assert "BatchNorm" in words
    assert "micro_batch" in words


def test_the_advice_for_three_parts_keeps_the_label():
    x, y = data()
    dataset = TensorDataset(x, torch.full((60,), 7), y)
    words = said(mlp(), DataLoader(dataset, batch_size=20))
    scope = {}
    lines = words[words.index("    def ") :].splitlines()
    source = "\n".join(line[4:] for line in lines if line.startswith("    "))
    exec("from torch.utils.data import default_collate\n" + source, scope)
    _, targets = scope["as_pair"]([dataset[i] for i in range(4)])
    assert torch.equal(targets, y[:4])


# --- losses -----------------------------------------------------------------------------------


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = mlp(), mlp(seed=1)

    def forward(self, x):
        return self.a(x), self.b(x)


def both(outputs, targets):
    return F.cross_entropy(outputs[0], targets), F.cross_entropy(outputs[1], targets)


def with_accuracy(outputs, targets):
    return F.cross_entropy(outputs, targets), (outputs.argmax(1) == targets).float().mean()


def test_two_losses_are_no_fraction():
    batches = cut(*data())
    assert "return a + b" in said(TwoHeads(), batches, loss_fn=both)
    with pytest.raises(ValueError, match=r"return a \+ b"):
        tc.evaluate(TwoHeads(), batches, loss_fn=both)
    with pytest.raises(ValueError, match=r"return a \+ b"):
        tc.backward(TwoHeads(), batches[0], both)
    assert [f.code for f in tc.check(TwoHeads(), batches[0], both)] == ["loss-fails"]


def test_a_loss_and_an_accuracy_are_no_fraction():
    assert "the score is a metric. [loss-fails]" in said(mlp(), cut(*data()), loss_fn=with_accuracy)
    assert "loss-fails" in [f.code for f in tc.check(mlp(), data(), with_accuracy)]


class Flat(nn.CrossEntropyLoss):
    """A subclass that reshapes, and leaves the rest to its base."""

    def forward(self, outputs, targets):
        return super().forward(outputs, targets.reshape(-1))


def test_wrapped_losses_keep_their_exact_average_or_say_that_they_have_none():
    x, y = data(30)
    y = torch.where(torch.arange(30) % 7 == 0, -100, y)
    weight = torch.tensor([1.0, 5.0, 20.0])
    model = mlp()
    expected = F.cross_entropy(model(x), y, weight=weight).item()
    compiled = F.cross_entropy if IS_OLD_TORCH else torch.compile(F.cross_entropy, backend="eager")
    for loss_fn in (
        nn.CrossEntropyLoss(weight),
        torch.compile(nn.CrossEntropyLoss(weight), backend="eager"),
        functools.partial(compiled, weight=weight),
        type("Named", (nn.CrossEntropyLoss,), {})(weight),
    ):
        assert tc.evaluate(model, cut(x, y), loss_fn=loss_fn).loss == pytest.approx(expected)
    assert "averaged-by-samples" in said(model, cut(x, y), loss_fn=Flat(weight))


@pytest.mark.parametrize(
    "loss_fn",
    [nn.L1Loss(), nn.SmoothL1Loss(), nn.HuberLoss(), nn.PoissonNLLLoss(), nn.SoftMarginLoss()],
    ids=lambda loss_fn: type(loss_fn).__name__,
)
def test_elementwise_losses_on_uneven_batches(loss_fn):
    x, y = data(50)
    targets = F.one_hot(y, 3).float() * 2 - 1
    model = mlp()
    expected = loss_fn(model(x), targets).item()
    found = tc.evaluate(model, cut(x, targets), loss_fn=loss_fn).loss
    assert found == pytest.approx(expected, rel=1e-6)


def test_a_class_weight_of_0_beside_label_smoothing():
    x, y = data(50)
    loss_fn = nn.CrossEntropyLoss(torch.tensor([0.0, 1.0, 2.0]), label_smoothing=0.1)
    model = mlp()
    found = tc.evaluate(model, cut(x, y), loss_fn=loss_fn).loss
    assert found == pytest.approx(loss_fn(model(x), y).item(), rel=1e-6)


@pytest.mark.parametrize("bad", [math.nan, -math.inf])
def test_ignored_rows_have_no_gradient_whatever_they_hold(bad):
    logits = torch.tensor([[0.0, 1, 2], [bad] * 3, [1, 0, 0]], requires_grad=True)
    loss = tc.cross_entropy(logits, torch.tensor([0, -100, 1]))
    loss.backward()
    kept = logits.detach()[[0, 2]].requires_grad_()
    expected = F.cross_entropy(kept, torch.tensor([0, 1]))
    expected.backward()
    assert loss.item() == pytest.approx(expected.item())
    assert torch.equal(logits.grad[1], torch.zeros(3))
    torch.testing.assert_close(logits.grad[[0, 2]], kept.grad)


def test_a_masked_class_adds_nothing_where_its_target_is_0():
    logits = torch.tensor([[0.0, 1.0, -math.inf]], requires_grad=True)
    loss = tc.cross_entropy(logits, torch.tensor([[0.0, 1.0, 0.0]]))
    loss.backward()
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-1)))
    assert logits.grad.isfinite().all()


def test_losses_under_transforms():
    x, y = torch.randn(6, 4), torch.arange(6) % 4
    per_sample = torch.func.vmap(torch.func.grad(lambda i, j: tc.cross_entropy(i[None], j[None])))
    theirs = torch.func.vmap(torch.func.grad(lambda i, j: F.cross_entropy(i[None], j[None])))
    torch.testing.assert_close(per_sample(x, y), theirs(x, y))
    compiled = torch.compile(tc.nll_loss, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x.log_softmax(1), y), F.cross_entropy(x, y))


def test_targets_of_any_form_beside_a_loss_that_counts_by_itself():
    texts = [["a", "bb", "ccc"], ["dddd"]]

    def loss_fn(outputs, targets):
        lengths = torch.tensor([float(len(text)) for text in targets])
        return (outputs[:, 0] - lengths).square().sum(), len(targets)

    batches = [(torch.ones(len(part), 4), part) for part in texts]
    model = nn.Linear(4, 1)
    expected = sum(loss_fn(model(x), t)[0].item() for x, t in batches) / 4
    assert tc.evaluate(model, batches, loss_fn=loss_fn).loss == pytest.approx(expected)
    assert math.isfinite(fit(model, batches, loss_fn=loss_fn)[-1].train_loss)


# --- schedules and precision ------------------------------------------------------------------


def test_a_plateau_that_looks_for_the_largest_is_not_fed_a_loss():
    model = mlp()
    optimizer = SGD(model.parameters(), lr=0.5)
    schedule = lr_scheduler.ReduceLROnPlateau(optimizer, mode="max", patience=1)
    options = {"optimizer": optimizer, "metrics": [tc.accuracy], "epochs": 6}
    words = said(mlp(), cut(*data()), [data(seed=1)], schedule=schedule, **options)
    assert "max" in words
    history = fit(
        model,
        cut(*data()),
        [data(seed=1)],
        schedule=tc.on("accuracy", schedule),
        **options,
    )
    assert schedule.best == max(record.accuracy for record in history)


def test_a_warm_up_that_counts_steps_is_stepped_or_said():
    def parts():
        model = mlp()
        optimizer = SGD(model.parameters(), lr=0.5)
        warm_up = lr_scheduler.LambdaLR(optimizer, lambda i: min(i / 5, 1.0))
        return model, optimizer, warm_up

    model, optimizer, warm_up = parts()
    words = said(model, cut(*data(200)), optimizer=optimizer, schedule=warm_up)
    assert "learning rate is 0" in words
    assert "tc.each_step" in words
    model, optimizer, warm_up = parts()
    assert not said(model, cut(*data(200)), optimizer=optimizer, schedule=tc.each_step(warm_up))
    assert warm_up.last_epoch == 20


def test_a_fused_sgd_with_momentum_survives_an_overflow():
    x, y = data()
    losses = []
    for fused in (False, True):
        model = mlp()
        optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9, fused=fused)
        history = fit(model, cut(20 * x, y), optimizer=optimizer, precision="float16")
        losses.append([record.train_loss for record in history])
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)


# --- metrics, validation and prediction -------------------------------------------------------


class Refusing:
    """A metric object made for another number of classes."""

    def reset(self):
        pass

    def update(self, outputs, targets):
        raise ValueError("expected 2 columns")

    def compute(self):
        return 0.0


class ByName(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = mlp()

    def forward(self, x):
        return {"logits": self.body(x)}


@pytest.mark.parametrize(
    ("model", "valid", "options"),
    [
        (mlp(), [data(seed=1)], {"metrics": {"m": Refusing()}}),
        (mlp(), [(*data(seed=1), 1)], {}),
        (
            ByName(),
            [data(seed=1)],
            {
                "loss_fn": lambda o, t: F.cross_entropy(o["logits"], t),
                "metrics": [tc.accuracy],
            },
        ),
        (mlp(), [data(seed=1)], {"metrics": {1: tc.accuracy}}),
        (mlp(), [data(seed=1)], {"metrics": {"acc": lambda o, t: tc.accuracy(o[:, :2], t)}}),
    ],
    ids=["object", "three parts", "outputs by name", "keys", "columns"],
)
def test_what_would_fail_in_validation_fails_before_the_first_epoch(model, valid, options):
    optimizer, steps = counted_steps(model)
    assert "Error" in said(model, cut(*data()), valid, optimizer=optimizer, **options)
    assert not steps


def test_a_metric_of_ones_own_takes_outputs_of_any_structure():
    def loss_fn(outputs, targets):
        return F.cross_entropy(outputs["logits"], targets)

    def hits(outputs, targets):
        return tc.accuracy(outputs["logits"], targets)

    valid = cut(*data(50, seed=1))
    model = ByName()
    found = tc.evaluate(model, valid, metrics=[hits], loss_fn=loss_fn).metrics["hits"]
    expected = tc.evaluate(model.body, valid, metrics=[tc.accuracy]).metrics["accuracy"]
    assert found == pytest.approx(expected)
    history = fit(model, cut(*data()), valid, loss_fn=loss_fn, metrics=[hits], train_metrics=[hits])
    assert 0 <= history[-1]["train_hits"] <= 1


def test_validation_of_another_form_names_both_forms():
    x, y = data(seed=1)
    words = said(mlp(), cut(*data()), [(x[:, :3], y)])
    assert "Validation has inputs of (60, 3) float32" in words
    assert "training has (20, 4) float32" in words


def test_metrics_meet_what_evaluation_gives():
    class Deep(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = mlp(), mlp(seed=1)

        def forward(self, x):
            return torch.stack([self.a(x), self.b(x)]) if self.training else self.b(x)

    def loss_fn(outputs, targets):
        heads = [outputs] if outputs.ndim == 2 else outputs
        return sum(F.cross_entropy(head, targets) for head in heads)

    words = said(Deep(), cut(*data()), [data(seed=1)], loss_fn=loss_fn, metrics=[tc.accuracy])
    assert "metric" not in words


def test_a_confusion_matrix_is_a_shape_in_the_table_and_holds_no_outputs():
    alive = []

    class Watched(nn.Linear):
        def forward(self, x):
            outputs = super().forward(x)
            alive.append(weakref.ref(outputs))
            return outputs

    class Counting(list):
        most = 0

        def __iter__(self):
            for batch in super().__iter__():
                self.most = max(self.most, sum(ref() is not None for ref in alive))
                yield batch

    batches = Counting(cut(*data()))
    found = tc.evaluate(Watched(4, 3), batches, metrics=[tc.confusion_matrix])
    assert torch.as_tensor(found.metrics["confusion_matrix"]).sum() == 60
    assert batches.most <= 1
    history = fit(mlp(), batches, [data(seed=1)], metrics=[tc.confusion_matrix])
    assert "3 x 3" in str(history)


def test_what_nothing_counts_in_is_null_in_json(tmp_path):
    nothing = [(data()[0], torch.full((60,), -100))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        history = fit(mlp(), cut(*data()), nothing, metrics=[tc.accuracy])
    history.to_json(tmp_path / "history.json")

    def refuse(word):
        raise ValueError(word)

    records = json.loads((tmp_path / "history.json").read_text(), parse_constant=refuse)
    assert records[0]["accuracy"] is None


def test_prediction_on_inputs_alone():
    x, _ = data()
    model = mlp()
    expected = tc.predict(model, x).outputs
    for source in (DataLoader(x, 8), DataLoader(TensorDataset(x), 8), x.numpy(), list(x.split(9))):
        torch.testing.assert_close(tc.predict(model, source).outputs, expected)
    with pytest.raises(ValueError, match=r"data\[None\]"):
        tc.predict(model, x[0])
    with pytest.raises(TypeError, match="single samples of a TensorDataset"):
        tc.predict(model, TensorDataset(x))


# --- what can be told with certainty ----------------------------------------------------------


class Hidden(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers, self.head = [nn.Linear(4, 16)], nn.Linear(16, 3)

    def forward(self, x):
        return self.head(F.relu(self.layers[0](x)))


class Rebuilt(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(4, 16)

    def forward(self, x):
        return nn.Linear(16, 3)(F.relu(self.body(x)))


class Drawing(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(F.dropout(x, 0.5))


class NeverEval(nn.Sequential):
    def train(self, mode=True):
        return super().train(True)


class Own(Dataset):
    def __len__(self):
        return 60

    def __getitem__(self, i):
        return data()[0][i], data()[1][i]


OWN = Own()
ROWS = F.one_hot(data()[1], 3).float()
CERTAIN = {
    "softmax, then cross-entropy in a lambda": lambda: (
        mlp(3, nn.Softmax(1)),
        {"loss_fn": lambda o, t: F.cross_entropy(o, t)},
    ),
    "sigmoid, then with_logits in a lambda": lambda: (
        mlp(3, nn.Sigmoid()),
        {"loss_fn": lambda o, t: F.binary_cross_entropy_with_logits(o, F.one_hot(t, 3).float())},
    ),
    "raw scores into nll_loss in a lambda": lambda: (
        mlp(),
        {"loss_fn": lambda o, t: F.nll_loss(o, t)},
    ),
    "swapped arguments": lambda: (
        mlp(),
        {
            "train": cut(data()[0], ROWS),
            "valid": None,
            "loss_fn": lambda o, t: F.cross_entropy(t, o.softmax(1)),
        },
    ),
    "layers in a Python list": lambda: (Hidden(), {}),
    "a head made in forward": lambda: (Rebuilt(), {}),
    "F.dropout draws in evaluation": lambda: (Drawing(), {}),
    "train() never becomes eval": lambda: (
        NeverEval(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.Linear(16, 3)),
        {},
    ),
    "ReLU as the last layer": lambda: (mlp(3, nn.ReLU()), {}),
    "overlapping subsets": lambda: (
        mlp(),
        {
            "train": DataLoader(Subset(OWN, range(40)), 20),
            "valid": DataLoader(Subset(OWN, range(30, 60)), 20),
        },
    ),
    "two values of ignore_index": lambda: (
        mlp(),
        {"loss_fn": nn.CrossEntropyLoss(ignore_index=0), "metrics": [tc.accuracy]},
    ),
    "nothing moves": lambda: (model := mlp(), {"optimizer": SGD(model.parameters(), lr=1e-12)}),
    "lr below 0": lambda: (
        model := mlp(),
        {"optimizer": SGD(model.parameters(), lr=0.1), "schedule": lambda progress: -1.0},
    ),
    "argmax over multi-label rows": lambda: (
        mlp(),
        {
            "train": cut(data()[0], (data()[0][:, :3] > 0).float()),
            "valid": [(data(seed=1)[0], (data(seed=1)[0][:, :3] > 0).float())],
            "loss_fn": nn.BCEWithLogitsLoss(),
            "metrics": [tc.accuracy],
        },
    ),
}


WORDS = {
    "softmax, then cross-entropy in a lambda": "activated-twice",
    "sigmoid, then with_logits in a lambda": "activated-twice",
    "raw scores into nll_loss in a lambda": "not-log-probabilities",
    "swapped arguments": "swapped-arguments",
    "layers in a Python list": "unheld-parameters",
    "a head made in forward": "unheld-parameters",
    "F.dropout draws in evaluation": "trains-in-evaluation",
    "train() never becomes eval": "trains-in-evaluation",
    "ReLU as the last layer": "bounded-outputs",
    "overlapping subsets": "valid-overlaps",
    "two values of ignore_index": "metric-ignore-index",
    "nothing moves": "nothing-moves",
    "lr below 0": "scale of the lr of at least 0",
    "argmax over multi-label rows": "metric-of-another-row",
}


@pytest.mark.parametrize("name", CERTAIN)
def test_what_is_certainly_wrong_is_said(name):
    model, options = CERTAIN[name]()
    options = {"train": cut(*data()), "valid": [data(seed=1)], **options}
    assert WORDS[name] in said(model, options.pop("train"), options.pop("valid"), **options)


def test_layers_before_a_head_of_zeros_are_moved_by_no_first_step():
    model = mlp()
    nn.init.zeros_(model[2].weight)
    optimizer = SGD(model.parameters(), lr=0.1)  # no weight decay, which would move them
    assert not said(model, [data()], epochs=1, optimizer=optimizer)


def test_a_data_set_with_random_numbers_of_its_own_is_not_read_early():
    class Drawn(Dataset):
        def __init__(self):
            self.random = np.random.default_rng(0)

        def __len__(self):
            return 60

        def __getitem__(self, i):
            return torch.from_numpy(self.random.normal(size=4)).float(), i % 3

    losses = []
    for check in ("error", "off"):
        drawn = Drawn()
        train, valid = Subset(drawn, range(40)), Subset(drawn, range(40, 60))
        history = fit(mlp(), DataLoader(train, 20), DataLoader(valid, 20), check=check)
        losses.append([(record.train_loss, record.valid_loss) for record in history])
    assert losses[0] == losses[1]


def test_what_a_metric_warns_of_one_batch_is_not_passed_on():
    def needs_every_class(outputs, targets):
        if len(targets.unique()) < 3:
            warnings.warn("one class only", UserWarning, stacklevel=2)
            raise ValueError("one class only")
        return 1.0

    x, y = data(seed=1)
    valid = cut(x[y.argsort()], y.sort().values)
    assert not said(mlp(), cut(*data()), valid, metrics=[needs_every_class])


def test_a_scheduler_of_ones_own_may_have_attributes_of_any_kind():
    class Own(lr_scheduler.LRScheduler):
        def __init__(self, optimizer):
            self.total_steps = self.milestones = None
            super().__init__(optimizer)

        def get_lr(self):
            return [group["lr"] for group in self.optimizer.param_groups]

    model = mlp()
    optimizer = SGD(model.parameters(), lr=0.1)
    assert not said(model, cut(*data()), optimizer=optimizer, schedule=Own(optimizer))


def test_layers_that_were_unfrozen_and_not_given_to_the_optimizer_are_said():
    model = mlp()
    model[0].requires_grad_(False)
    optimizer = SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    assert not said(model, cut(*data()), optimizer=optimizer)
    model.requires_grad_(True)
    assert "optimizer-part" in said(model, cut(*data()), optimizer=optimizer)


def test_the_preflight_leaves_the_generators_of_numpy_alone():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = mlp()

        def forward(self, x):
            return self.body(x) + float(np.random.rand())

    states = []
    for check in ("error", "off"):
        np.random.seed(0)
        fit(Noisy(), cut(*data()), [data(seed=1)], metrics=[tc.accuracy], check=check)
        states.append(np.random.get_state()[1:3])
    assert np.array_equal(states[0][0], states[1][0])
    assert states[0][1] == states[1][1]


def test_runs_leave_no_tensors_behind():
    def resident():
        gc.collect()
        return sum(issubclass(type(found), torch.Tensor) for found in gc.get_objects())

    batches = [data(600)]
    model = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 3))
    before = None
    for i in range(50):
        tc.train_one_epoch(model, batches, CE, SGD(model.parameters(), lr=0.1))
        tc.evaluate(model, batches, loss_fn=CE)
        tc.check(model, batches[0], CE)
        before = resident() if i == 4 else before
    assert resident() <= before


# --- files, names and terminals ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("Cat", "cat"),
        (unicodedata.normalize("NFC", "café"), unicodedata.normalize("NFD", "café")),
        ("cat", "cat "),
    ],
)
def test_class_folders_that_look_alike_are_said(tmp_path, ours, theirs):
    for split, name in (("train", ours), ("valid", theirs)):
        for folder in (name, "dog"):
            (tmp_path / split / folder).mkdir(parents=True)
            (tmp_path / split / folder / "0.pgm").write_bytes(b"P5 2 2 255 " + bytes(4))
    with pytest.raises(ValueError, match=f"must not differ only in.*{theirs.strip()}"):
        tc.image_folder(tmp_path / "train")


def test_the_keys_of_a_compiled_model_are_those_of_the_plain_one(tmp_path):
    options = {"checkpoint": tmp_path, "metrics": [tc.accuracy]}
    compiled = torch.compile(mlp(), backend="eager")
    fit(compiled, cut(*data()), [data(seed=1)], epochs=1, **options)
    model = mlp()
    model.load_state_dict(torch.load(tmp_path / "best.pt", weights_only=True)["model"])
    history = fit(mlp(), cut(*data()), [data(seed=1)], resume=True, **options)
    assert len(history) == 2


def test_what_the_optimizer_alone_holds_is_kept(tmp_path):
    class Prompted(nn.Module):
        def __init__(self, prompt):
            super().__init__()
            self.body, self.prompt = mlp(), [prompt]

        def forward(self, x):
            return self.body(x + self.prompt[0])

    def parts():
        prompt = torch.zeros(4, requires_grad=True)
        model = Prompted(prompt)
        return model, SGD([*model.parameters(), prompt], lr=0.1), prompt

    model, optimizer, prompt = parts()
    fit(model, cut(*data()), optimizer=optimizer, epochs=2)
    for epochs in (1, 2):
        kept, optimizer, again = parts()
        fit(
            kept,
            cut(*data()),
            optimizer=optimizer,
            epochs=epochs,
            checkpoint=tmp_path,
            resume=epochs == 2,
        )
    assert torch.equal(again, prompt)


@pytest.mark.system
def test_printing_ends_no_run():
    code = (
        "import torch, torchcls as tc; from torch import nn; "
        "batch = torch.randn(9, 4), torch.arange(9) % 3; "
        "tc.fit(nn.Linear(4, 3), [batch], [batch], loss_fn=nn.CrossEntropyLoss(), epochs=1,"
        " metrics={'g\\u00fcte': tc.accuracy}, device='cpu', ignore=['valid-is-train'])"
    )
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    found = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120
    )
    assert found.returncode == 0, found.stderr
    assert found.stderr == ""


def test_what_a_model_has_cached_is_no_other_model(tmp_path):
    class Caching(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.table = mlp(), None

        def forward(self, x):
            self.table = torch.arange(8.0)
            return self.body(x)

    model = Caching()
    for epochs in (1, 2):  # in one process, as in a notebook
        history = fit(model, cut(*data()), epochs=epochs, checkpoint=tmp_path, resume=True)
    assert len(history) == 2


def test_another_model_is_named_when_a_run_is_taken_up(tmp_path):
    fit(mlp(), cut(*data()), epochs=1, checkpoint=tmp_path)
    changed = copy.deepcopy(mlp())
    changed[1] = nn.GELU()  # no parameter tells them apart
    words = said(changed, cut(*data()), epochs=2, checkpoint=tmp_path, resume=True)
    assert "1 of the model must be 'ReLU()'" in words
