"""States of random generators: seen, kept in a file, and put back."""

import functools
import random

import numpy as np
import pytest
import torch

import torchcls as tc
from torchcls.checkpoint import load_checkpoint, save_checkpoint
from torchcls.randomness import (
    accelerator_state,
    global_state,
    set_accelerator_state,
    set_global_state,
    set_source_state,
    source_state,
)


def through_a_file(path, state):
    save_checkpoint(path / "state.pt", state=state)
    return load_checkpoint(path / "state.pt")["state"]


def drawn():
    return [
        *torch.randn(3).tolist(),
        *np.random.randn(3).tolist(),  # an odd number: numpy keeps the fourth for later
        *[random.gauss(0, 1) for _ in range(3)],
    ]


@pytest.fixture(autouse=True)
def put_back():
    before = global_state()
    yield
    set_global_state(before)


def test_what_is_drawn_after_a_state_is_drawn_again(tmp_path):
    drawn()
    state = global_state()
    first = drawn()
    assert global_state() != state
    set_global_state(through_a_file(tmp_path, state))
    assert global_state() == state
    assert drawn() == first


def test_asking_moves_nothing():
    assert global_state() == global_state()


def test_another_generator_in_numpys_place_is_kept_as_well(tmp_path):
    before = np.random.get_bit_generator()
    np.random.set_bit_generator(np.random.PCG64(3))
    try:
        state = global_state()
        first = np.random.rand(3).tolist()
        set_global_state(through_a_file(tmp_path, state))
        assert np.random.rand(3).tolist() == first
    finally:
        np.random.set_bit_generator(before)


def test_a_cpu_has_no_accelerators_state():
    cpu = torch.device("cpu")
    assert accelerator_state(cpu) is None
    set_accelerator_state(None, cpu)
    set_accelerator_state(torch.zeros(16, dtype=torch.uint8), cpu)  # of another machine


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
            self.position, self.name, self.is_open = position, "x", position > 0

    reader = Reader(3)
    assert set_source_state(reader, source_state(Reader(7))) == [
        "position is 3, in the checkpoint 7"
    ]
    assert reader.position == 3


@pytest.mark.parametrize("source", [None, [], iter([]), 3, print, lambda: None])
def test_a_source_without_a_state_has_none(source):
    assert set_source_state(source, source_state(source)) == []


def test_a_closure_that_is_not_filled_yet_is_passed_over():
    def outer():
        def inner():
            return later

        state = source_state(inner)
        later = 1
        return state, inner()

    assert outer() == ({}, 1)
