"""The first look at validation: what would fail after an epoch is said before the first step."""

import random
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, TensorDataset

import torchcls as tc

X = torch.randn(24, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(24) % 3
TRAIN = [(X[:12], Y[:12]), (X[12:], Y[12:])]
VALID = [(X[:7], Y[:7]), (X[7:], Y[7:])]
THREE = DataLoader(TensorDataset(X, Y, Y), 6)
CE = nn.CrossEntropyLoss()


class Asked:
    """A metric object of a protocol that may be another one."""

    def __init__(self, update=lambda self, outputs, targets: None, compute=lambda self: 0.5):
        self.fed, self._update, self._compute = 0, update, compute

    def reset(self):
        self.fed = 0

    def update(self, *arguments):
        self.fed += 1
        self._update(self, *arguments)

    def compute(self):
        return self._compute(self)


class Keyed(nn.Linear):
    def forward(self, x):
        return {"logits": super().forward(x)}


def keyed_loss(outputs, targets):
    return F.cross_entropy(outputs["logits"], targets)


def refuses(*_):
    raise ValueError("not made for this")


def run(model=None, valid=VALID, *, loss_fn=CE, epochs=1, **options):
    """The history, and how many steps were taken until whatever was raised."""
    model = nn.Linear(4, 3) if model is None else model
    optimizer, steps = torch.optim.SGD(model.parameters(), 0.1), []
    optimizer.register_step_post_hook(lambda *_: steps.append(1))
    try:
        return len(steps), tc.fit(
            model, TRAIN, valid, loss_fn=loss_fn, epochs=epochs, optimizer=optimizer,
            device="cpu", progress=False, **options)  # fmt: skip
    except Exception as failure:
        return len(steps), failure


# --- what fails is found before the first step ----------------------------------------------


class OneArgument(Asked):
    def update(self, output):
        pass


FAILING = {
    "an object of one argument": ({"metrics": {"m": OneArgument()}}, "metric m cannot score"),
    "an object for other classes": ({"metrics": {"m": Asked(update=refuses)}}, "metric m cannot"),
    "an object that cannot be asked": ({"metrics": {"m": Asked(compute=refuses)}}, "not made for"),
    "a function": ({"metrics": {"acc": lambda o, t: tc.accuracy(o[:, :2], t)}}, r"in \[0, 1\]"),
    "a function of one argument": ({"metrics": {"m": lambda outputs: 0.5}}, "positional argument"),
    "a metric of ours": ({"metrics": [partial(tc.top_k_accuracy, k=9)]}, "k must be in"),
    "three parts": ({"valid": THREE}, "TypeError: valid must hold pairs .* 3 parts"),
    "other features": ({"valid": [(X[:, :3], Y)]}, "Validation has inputs of"),
    "targets of another form": ({"valid": [(X, F.one_hot(Y))]}, "[tT]arget"),
    "classes that are not there": ({"valid": [(X, Y + 1)]}, "from 1 to 3"),
    "outputs that are no tensor": (
        {"model": Keyed(4, 3), "loss_fn": keyed_loss, "metrics": [tc.accuracy]},
        "outputs must be a tensor, got dict. Pass the one .*outputs..logits",
    ),
}


@pytest.mark.parametrize("case", FAILING)
def test_what_fails_in_validation_is_found_before_the_first_step(case):
    options, words = FAILING[case]
    steps, failure = run(**options)
    assert steps == 0
    with pytest.raises(tc.ContractError, match=f"(?s){words}"):
        raise failure


@pytest.mark.parametrize(
    "valid",
    [
        lambda x, y: tc.Batches(x, y, batch_size=5, shuffle=True),
        lambda x, y: DataLoader(TensorDataset(x, y), 5, shuffle=True),
        lambda x, y: DataLoader(
            TensorDataset(x, y), 5, sampler=torch.utils.data.SubsetRandomSampler(range(9))
        ),
        lambda x, y: ((x, y),),
    ],
)
def test_the_sources_of_every_day_are_looked_at(valid):
    steps, failure = run(valid=valid(X[:, :3], Y))
    assert steps == 0
    assert isinstance(failure, tc.ContractError)


def test_what_to_do_about_it_is_a_choice():
    options = {"valid": THREE}
    assert run(**options, check="off")[0] == 2
    steps, failure = run(**options, ignore=["valid-fails"])
    assert (steps, type(failure)) == (2, TypeError)
    with pytest.warns(UserWarning, match="(?s)valid must hold pairs .*valid-fails"):
        assert run(**options, check="warn")[0] == 2


# --- what does not fail is left alone -------------------------------------------------------


def test_a_metric_that_needs_every_class_is_tried_on_the_whole_split():
    def over_classes(outputs, targets):
        if len(targets.unique()) < 3:
            raise ValueError("only some of the classes are there")
        return 0.5

    _, history = run(valid=[(X[Y == 0], Y[Y == 0]), (X, Y)], metrics=[over_classes])
    assert history[-1].over_classes == 0.5


class OtherInTraining(nn.Module):
    """Deep supervision: two heads in training, one in evaluation."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x):
        if not self.training:
            return self.second(x)
        return torch.stack([self.first(x), self.second(x)])


def supervised(outputs, targets):
    return sum(CE(head, targets) for head in (outputs if outputs.ndim == 3 else [outputs]))


class Iterated:
    """Batches of one's own, which count how often they are asked for."""

    def __init__(self, batches=VALID):
        self.batches, self.passes = batches, 0

    def __iter__(self):
        self.passes += 1
        yield from self.batches


@pytest.mark.parametrize("valid", [VALID, Iterated()])
def test_metrics_are_tried_on_what_evaluation_gives(valid):
    _, history = run(OtherInTraining(), valid, loss_fn=supervised, metrics=[tc.accuracy])
    assert 0 <= history[-1].accuracy <= 1


def test_a_model_may_need_a_step_of_training_before_it_is_evaluated():
    class Prototypes(nn.Linear):
        def forward(self, x):
            outputs = super().forward(x)
            if self.training:
                self.mean = outputs.mean(0).detach()
            return outputs - self.mean

    _, history = run(Prototypes(4, 3), metrics=[tc.accuracy])
    assert len(history) == 1


def test_metrics_are_tried_where_validation_must_not_be_started():
    steps, failure = run(valid=Iterated(), metrics=[partial(tc.top_k_accuracy, k=9)])
    assert steps == 0
    with pytest.raises(tc.ContractError, match="metric-refuses"):
        raise failure


class Counting(Sampler):
    def __init__(self):
        self.passes = 0

    def __iter__(self):
        self.passes += 1
        return iter(range(24))

    def __len__(self):
        return 24


class Stream(IterableDataset):
    def __init__(self):
        self.passes = 0

    def __iter__(self):
        self.passes += 1
        return iter(zip(X, Y, strict=True))


class Rewound(Iterated):
    def __iter__(self):
        self.passes += 1
        self.left = iter(self.batches)
        return self

    def __next__(self):
        return next(self.left)

    def __len__(self):
        return len(self.batches)


@pytest.mark.parametrize("kind", [Iterated, Rewound, Stream, Counting])
def test_what_must_not_be_started_early_is_not(kind):
    passes = []
    for check in ("error", "off"):
        source = kind()
        valid = source
        if kind is Stream:
            valid = DataLoader(source, 6)
        elif kind is Counting:
            valid = DataLoader(TensorDataset(X, Y), 6, sampler=source)
        _, history = run(valid=valid, metrics=[tc.accuracy], epochs=2, check=check)
        assert len(history) == 2
        passes.append(source.passes)
    assert passes[0] == passes[1]


def test_workers_are_not_started_early():
    class Started(DataLoader):
        starts = 0

        def _get_iterator(self):
            type(self).starts += 1
            return super()._get_iterator()

    for workers, starts in ((1, 1), (0, 2)):  # with none, the look is one more
        Started.starts = 0
        _, history = run(valid=Started(TensorDataset(X, Y), 6, num_workers=workers))
        assert len(history) == 1
        assert Started.starts == starts


# --- nothing is changed ---------------------------------------------------------------------


class Noisy(Dataset):
    """Samples that draw from every generator there is."""

    def __len__(self):
        return 24

    def __getitem__(self, i):
        drawn = random.random() + np.random.rand() + torch.rand(())
        return X[i] + drawn, Y[i]


class Remembers(nn.Linear):
    """Moves a buffer in evaluation, too, and keeps what it saw."""

    def __init__(self):
        super().__init__(4, 3)
        self.register_buffer("calls", torch.zeros(()))
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        self.calls += 1
        self.last = x
        return super().forward(self.drop(x))


def test_the_look_changes_nothing():
    """A run whose steps and validation draw is the run without it, to the bit."""
    found = []
    for check in ("error", "off"):
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)
        generator = torch.Generator().manual_seed(1)
        valid = DataLoader(Noisy(), 5, shuffle=True, generator=generator)
        model, metric = Remembers(), Asked()
        model.drop.eval()  # a submodule with a mode of its own
        _, history = run(model, valid, epochs=2, check=check, metrics={"m": metric})
        records = [{**record, "time": 0} for record in history]
        states = torch.get_rng_state().tolist(), random.random(), np.random.rand()
        own = generator.get_state().tolist(), metric.fed, model.drop.training, model.training
        weights = [value.tolist() for value in model.state_dict().values()]
        found.append((records, states, own, weights))
    assert found[0] == found[1]
