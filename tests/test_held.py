"""What a source of batches holds that moves, found wherever people keep it."""

import functools
import random
import types

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import torchcls as tc
from torchcls.checkpoint import load_checkpoint, save_checkpoint
from torchcls.held import set_source_state, source_state, why_not_replayed


def through_a_file(path, state):
    save_checkpoint(path / "state.pt", state=state)
    return load_checkpoint(path / "state.pt")["state"]


class Everything:
    """A source with a generator of every kind, in every place where people keep them."""

    def __init__(self):
        self.torch = torch.Generator().manual_seed(1)
        self.held = {"python": random.Random(2), "list": [np.random.default_rng(3)]}
        self.old = functools.partial(self.use, np.random.RandomState(4))
        own = random.Random(5)
        self.closure = lambda: own.random()
        self.method = Inner().draw
        self.batches = tc.Batches(
            torch.zeros(4, 1), torch.zeros(4), batch_size=2, transform=Inner().draw
        )
        self.me = self  # a circle
        self.many = list(range(1000))

    def use(self, generator):
        return generator.randint(1000)

    def drawn(self):
        return [
            int(torch.randint(1000, (), generator=self.torch)),
            self.held["python"].random(),
            int(self.held["list"][0].integers(1000)),
            int(self.old()),
            self.closure(),
            self.method(),
            self.batches.transform(),
        ]


class Inner:
    def __init__(self):
        self.generator = random.Random(6)

    def draw(self):
        return self.generator.random()


def test_every_generator_of_a_source_is_found_and_put_back(tmp_path):
    source = Everything()
    source.drawn()
    source.batches.epoch = 3
    state = through_a_file(tmp_path, source_state(source))
    first = source.drawn()
    assert source.drawn() != first
    fresh = Everything()
    assert set_source_state(fresh, state) == []
    assert fresh.batches.epoch == 3
    assert fresh.drawn() == first


def test_numbers_that_differ_are_named_and_left_alone():
    class Reader:
        def __init__(self, position):
            self.position, self.name, self.is_open = position, "x", True

    reader = Reader(3)
    assert set_source_state(reader, source_state(Reader(7))) == [
        "position is 3, in the checkpoint 7"
    ]
    assert reader.position == 3
    reader.position = np.int64(7)
    assert set_source_state(reader, source_state(Reader(7))) == []
    reader.position = float("nan")
    assert set_source_state(reader, source_state(reader)) == []


@pytest.mark.parametrize(
    "content",
    [
        lambda n: np.arange(n, n + 5000),
        lambda n: torch.arange(n, n + 5000),
        lambda n: list(range(n, n + 5000)),
        lambda n: [n, "and", "words"],
    ],
)
def test_content_that_differs_is_named(content):
    def source(n):
        return types.SimpleNamespace(order=content(n))

    assert set_source_state(source(1), source_state(source(1))) == []
    assert set_source_state(source(1), source_state(source(2))) == [
        "order has another content than in the checkpoint"
    ]


def test_an_iterator_goes_on_and_cannot_be_put_back():
    source = types.SimpleNamespace(stream=iter([1, 2]))
    (found,) = set_source_state(source, source_state(source))
    assert found.startswith("stream is an iterator, which")


OF_THE_MODULE = random.Random(8)


class Reaching:
    """Draws from generators that lie around it."""

    OF_THE_CLASS = random.Random(9)

    def draw(self, own=random.Random(10)):  # noqa: B008
        return self.OF_THE_CLASS.random() + own.random() + OF_THE_MODULE.random()


def test_generators_of_module_class_and_defaults_are_found_too():
    state = source_state(Reaching())
    first = Reaching().draw()
    assert Reaching().draw() != first
    set_source_state(Reaching(), state)
    assert Reaching().draw() == first


def test_a_generator_behind_many_others_is_found():
    datasets = [types.SimpleNamespace(x=i) for i in range(300)]
    datasets[200].generator = random.Random(3)
    state = source_state(datasets)
    first = datasets[200].generator.random()
    set_source_state(datasets, state)
    assert datasets[200].generator.random() == first


def test_a_source_of_a_million_parts_is_looked_at_in_part():
    counters = [types.SimpleNamespace(x=i) for i in range(100)]
    many = [[counters[:] for _ in range(100)] for _ in range(30)]
    assert len(source_state(many)) <= 10_000
    assert len(source_state([torch.zeros(2) for _ in range(500)])) == 4


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: types.SimpleNamespace(loader=x)])
def test_persistent_workers_are_named_wherever_they_are(wrap):
    dataset = TensorDataset(torch.zeros(4))
    loader = DataLoader(dataset, num_workers=1, persistent_workers=True)
    assert "persistent_workers=False" in why_not_replayed(wrap(loader))
    assert why_not_replayed(wrap(DataLoader(dataset, num_workers=1))) is None
    assert why_not_replayed(tc.Batches(torch.zeros(4), torch.zeros(4), batch_size=2)) is None


@pytest.mark.parametrize(
    "source", [None, [], iter([]), 3, print, lambda: None, random.SystemRandom()]
)
def test_a_source_without_a_state_has_none(source):
    assert set_source_state(source, source_state(source)) == []


def test_a_closure_that_is_not_filled_yet_is_passed_over():
    def outer():
        def inner():
            return later

        state = source_state(inner)
        later = 1
        return state, inner()

    state, value = outer()
    assert (list(state), value) == ([], 1)
