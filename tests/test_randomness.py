"""States of random generators: seen, kept in a file, and put back."""

import random

import numpy as np
import pytest
import torch

from torchcls.checkpoint import load_checkpoint, save_checkpoint
from torchcls.randomness import (
    accelerator_state,
    generator_state,
    global_state,
    set_accelerator_state,
    set_generator_state,
    set_global_state,
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


def test_the_systems_generator_has_no_state():
    system = random.SystemRandom()
    assert generator_state(system) is None
    set_generator_state(system, None)


def test_a_state_of_another_kind_is_passed_over():
    generator = random.Random(1)
    state = generator.getstate()
    set_generator_state(generator, torch.zeros(3))
    assert generator.getstate() == state
