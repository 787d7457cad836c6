"""Batches: every sample once per epoch, in an order that (seed, epoch) alone decide."""

import itertools
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import torchcls as tc
from torchcls.data import Batches

few = settings(max_examples=50, deadline=None)
sizes = st.integers(1, 40)
batch_sizes = st.integers(1, 45)
seeds = st.integers(0, 2**70)


def numbered(n):
    """Samples that carry their own number, with targets that tell whom they belong to."""
    return torch.arange(n).view(n, 1), torch.arange(n) + 1000


def order_of(batches):
    return torch.cat([inputs[:, 0] for inputs, _ in batches]).tolist()


# --- known values ---------------------------------------------------------------------------


def test_it_cuts_in_order_with_a_smaller_last_batch():
    cut = [(x[:, 0].tolist(), y.tolist()) for x, y in Batches(*numbered(5), batch_size=2)]
    assert cut == [([0, 1], [1000, 1001]), ([2, 3], [1002, 1003]), ([4], [1004])]


def test_it_leaves_the_smaller_last_batch_out_when_asked():
    batches = Batches(*numbered(5), batch_size=2, drop_last=True)
    assert [x[:, 0].tolist() for x, _ in batches] == [[0, 1], [2, 3]]
    shuffled = Batches(*numbered(5), batch_size=2, drop_last=True, shuffle=True)
    assert [len(x) for x, _ in shuffled] == [2, 2]


@pytest.mark.parametrize(
    ("n", "batch_size", "kept", "whole"), [(4, 2, 2, 2), (5, 2, 3, 2), (1, 1, 1, 1), (3, 3, 1, 1)]
)
def test_its_length_is_the_number_of_batches(n, batch_size, kept, whole):
    assert len(Batches(*numbered(n), batch_size=batch_size)) == kept
    assert len(Batches(*numbered(n), batch_size=batch_size, drop_last=True)) == whole


def test_its_order_is_randperm_of_a_generator_seeded_from_seed_and_epoch():
    batches = Batches(*numbered(50), batch_size=7, shuffle=True, seed=3)
    batches.epoch = 2
    mixed = int(np.random.SeedSequence([3, 2]).generate_state(1)[0])
    expected = torch.randperm(50, generator=torch.Generator().manual_seed(mixed))
    assert order_of(batches) == expected.tolist()


def test_it_applies_the_transform_to_each_cut_batch():
    images = torch.tensor([[0], [51], [255]], dtype=torch.uint8)
    seen = []

    def scale(inputs, targets):
        seen.append((inputs.dtype, len(inputs)))
        return inputs / 255, targets + 1

    batches = Batches(images, torch.tensor([5, 6, 7]), batch_size=2, transform=scale)
    cut = [(x.tolist(), y.tolist()) for x, y in batches]
    assert cut == [([[0.0], [pytest.approx(0.2)]], [6, 7]), ([[1.0]], [8])]
    assert seen == [(torch.uint8, 2), (torch.uint8, 1)]


def test_a_transform_may_return_a_list_and_things_that_are_no_tensors():
    batches = Batches(*numbered(2), batch_size=2, transform=lambda x, y: [{"x": x}, None])
    ((inputs, targets),) = batches
    assert list(inputs) == ["x"]
    assert targets is None


def test_its_repr_shows_shapes_and_settings():
    def scale(inputs, targets):
        return inputs, targets

    batches = Batches(
        torch.zeros(3, 1, dtype=torch.uint8), torch.arange(3), batch_size=2, transform=scale
    )
    assert repr(batches) == (
        "Batches(inputs=(3, 1) uint8, targets=(3,) int64, batch_size=2, shuffle=False, seed=0, "
        "drop_last=False, transform=scale, epoch=0)"
    )


# --- properties -----------------------------------------------------------------------------


@few
@given(n=sizes, batch_size=batch_sizes, shuffle=st.booleans(), seed=seeds, epoch=seeds)
def test_it_yields_each_sample_exactly_once_with_its_target(n, batch_size, shuffle, seed, epoch):
    batches = Batches(*numbered(n), batch_size=batch_size, shuffle=shuffle, seed=seed)
    batches.epoch = epoch
    pairs = list(batches)
    assert len(pairs) == len(batches)
    assert sorted(order_of(pairs)) == list(range(n))
    assert all(torch.equal(x[:, 0] + 1000, y) for x, y in pairs)
    assert all(len(y) == batch_size for _, y in pairs[:-1])


@few
@given(n=sizes, batch_size=batch_sizes, other=batch_sizes, seed=seeds, epoch=st.integers(0, 99))
def test_its_order_depends_on_seed_and_epoch_only(n, batch_size, other, seed, epoch):
    one = Batches(*numbered(n), batch_size=batch_size, shuffle=True, seed=seed)
    list(one)  # an earlier pass
    torch.rand(3)  # and global draws leave no trace
    two = Batches(*numbered(n), batch_size=other, shuffle=True, seed=seed)
    one.epoch = two.epoch = epoch
    assert order_of(one) == order_of(two)


def test_each_seed_and_each_epoch_has_its_own_order():
    batches = Batches(*numbered(50), batch_size=50, shuffle=True, seed=1)
    orders = []
    for batches.seed, batches.epoch in itertools.product(range(3), range(3)):
        orders.append(tuple(order_of(batches)))
    assert len(set(orders)) == 9


def test_its_order_does_not_depend_on_the_default_device():
    batches = Batches(*numbered(20), batch_size=3, shuffle=True)
    expected = order_of(batches)
    batches.epoch = 0
    with torch.device("meta"):
        found = list(batches)
    assert order_of(found) == expected


def test_two_passes_at_once_do_not_disturb_each_other():
    batches = Batches(*numbered(20), batch_size=3, shuffle=True)
    pairs = list(zip(batches, batches, strict=True))
    assert len(pairs) == 7
    assert all(torch.equal(one[0], two[0]) for one, two in pairs)
    assert batches.epoch == 1  # and not 2: both were passes of epoch 0


@pytest.mark.parametrize("shuffle", [False, True])
def test_it_leaves_the_global_random_state_alone(shuffle):
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()
    list(Batches(*numbered(20), batch_size=3, shuffle=shuffle))
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state[1])


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float64])
def test_storage_and_batches_keep_the_dtype(dtype, shuffle):
    batches = Batches(torch.ones(5, 2, dtype=dtype), torch.arange(5), batch_size=2, shuffle=shuffle)
    assert {(x.dtype, y.dtype) for x, y in batches} == {(dtype, torch.int64)}
    assert batches.inputs.dtype == dtype


def test_batches_in_order_are_views_and_shuffled_ones_are_copies():
    inputs, targets = numbered(6)
    storages = [tensor.untyped_storage().data_ptr() for tensor in (inputs, targets)]
    for shuffle in (False, True):
        for batch in Batches(inputs, targets, batch_size=4, shuffle=shuffle):
            same = [tensor.untyped_storage().data_ptr() for tensor in batch] == storages
            assert same is not shuffle


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_transform_that_writes_in_place_does_not_reach_the_data(shuffle):
    inputs, targets = torch.ones(5, 2), torch.zeros(5)

    def spoil(inputs, targets):
        return inputs.mul_(7), targets.add_(1)

    list(Batches(inputs, targets, batch_size=2, shuffle=shuffle, transform=spoil))
    assert torch.equal(inputs, torch.ones(5, 2))
    assert torch.equal(targets, torch.zeros(5))


def test_numpy_whole_numbers_are_whole_numbers():
    batches = Batches(*numbered(5), batch_size=np.int64(2), seed=np.uint8(3))
    assert (type(batches.batch_size), type(batches.seed)) == (int, int)
    assert len(batches) == 3


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_its_order_does_not_depend_on_the_device():
    here = Batches(*numbered(50), batch_size=7, shuffle=True, seed=3)
    inputs, targets = (tensor.cuda() for tensor in numbered(50))
    there = Batches(inputs, targets, batch_size=7, shuffle=True, seed=3)
    for (x, y), (cuda_x, cuda_y) in zip(here, there, strict=True):
        assert cuda_x.is_cuda
        assert torch.equal(x, cuda_x.cpu())
        assert torch.equal(y, cuda_y.cpu())


# --- training passes ------------------------------------------------------------------------


def test_a_loop_of_ones_own_gets_another_order_in_each_pass():
    batches = Batches(*numbered(20), batch_size=3, shuffle=True)
    orders = [order_of(batches) for _ in range(3)]
    assert len(set(map(tuple, orders))) == 3
    assert batches.epoch == 3
    for batches.epoch, expected in enumerate(orders):  # set by hand, they come again
        assert order_of(batches) == expected


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_pass_without_gradients_moves_nothing(mode):
    batches = Batches(*numbered(20), batch_size=3, shuffle=True)
    with mode():
        before = order_of(batches)
    training_pass = iter(batches)
    next(training_pass), next(training_pass)
    with mode():
        assert order_of(batches) == order_of(batches) == before
    assert batches.state_dict() == {"epoch": 0, "batch": 2}
    assert len(list(training_pass)) == 5
    assert batches.epoch == 1


def test_evaluating_and_predicting_move_nothing():
    x = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    batches = Batches(x, torch.arange(20) % 3, batch_size=3, shuffle=True)
    model = torch.nn.Linear(4, 3)
    with torch.no_grad():
        before = torch.cat([inputs for inputs, _ in batches])
    tc.evaluate(model, batches, loss_fn=tc.cross_entropy)
    with pytest.warns(UserWarning, match="data is shuffled: row i of the predictions is not"):
        tc.predict(model, batches)
    with torch.no_grad():
        after = torch.cat([inputs for inputs, _ in batches])
    assert torch.equal(before, after)
    assert batches.state_dict() == {"epoch": 0, "batch": 0}


def test_a_pass_that_is_broken_off_leaves_the_epoch_and_the_next_one_is_whole():
    batches = Batches(*numbered(20), batch_size=3, shuffle=True)
    first = [pair for pair, _ in zip(batches, range(4), strict=False)]
    assert batches.epoch == 0
    assert order_of(batches)[:12] == order_of(first)
    assert batches.epoch == 1


def test_a_look_at_the_first_batch_does_not_disturb_the_pass_at_hand():
    batches = Batches(*numbered(20), batch_size=3, shuffle=True)
    training_pass = iter(batches)
    next(training_pass), next(training_pass)
    next(iter(batches))
    next(training_pass)
    assert batches.state_dict() == {"epoch": 0, "batch": 3}
    assert len(list(training_pass)) == 4
    assert batches.epoch == 1


def test_an_epoch_set_inside_a_pass_stays():
    batches = Batches(*numbered(20), batch_size=3, shuffle=True)
    for number, _ in enumerate(batches):
        if number == 2:
            batches.epoch = 5
    assert batches.state_dict() == {"epoch": 5, "batch": 0}


@few
@given(n=sizes, batch_size=batch_sizes, shuffle=st.booleans(), epoch=seeds, data=st.data())
def test_a_pass_goes_on_where_its_state_was_taken(n, batch_size, shuffle, epoch, data):
    def begun():
        return Batches(*numbered(n), batch_size=batch_size, shuffle=shuffle, transform=seen)

    def seen(inputs, targets):
        calls.append(len(inputs))
        return inputs, targets

    calls, batches = [], begun()
    batches.epoch = epoch
    number = data.draw(st.integers(0, len(batches)))
    training_pass = iter(batches)
    for _ in range(number):
        next(training_pass)
    state = batches.state_dict()
    assert state == {"epoch": epoch, "batch": number}
    rest = [pair[1].tolist() for pair in training_pass]

    other = begun()
    other.load_state_dict(state)
    assert other.state_dict() == state
    assert len(other) == len(batches)
    calls.clear()
    assert [pair[1].tolist() for pair in other] == rest
    assert len(calls) == len(batches) - number  # nothing is transformed that was handed out
    assert other.state_dict() == {"epoch": epoch + 1, "batch": 0}
    batches.epoch = epoch + 1
    assert order_of(other) == order_of(batches)


def test_a_state_is_for_the_next_training_pass_alone():
    batches = Batches(*numbered(20), batch_size=3)
    batches.load_state_dict({"epoch": 1, "batch": 5})
    with torch.no_grad():
        assert order_of(batches) == list(range(20))
    assert batches.state_dict() == {"epoch": 1, "batch": 5}
    assert order_of(batches) == list(range(15, 20))
    assert order_of(batches) == list(range(20))
    batches.load_state_dict({"epoch": 1, "batch": 5})
    batches.epoch = 1  # forgets the position
    assert order_of(batches) == list(range(20))


def test_a_copy_on_a_device_goes_on_by_itself_from_the_same_place():
    batches = Batches(*numbered(20), batch_size=3)
    batches.load_state_dict({"epoch": 1, "batch": 5})
    same = batches.to("cpu")
    assert order_of(same) == order_of(batches) == list(range(15, 20))
    list(same)
    assert (same.epoch, batches.epoch) == (3, 2)


def test_torchdata_finds_the_protocol_it_looks_for():
    Stateful = pytest.importorskip("torchdata.stateful_dataloader.stateful").Stateful
    assert isinstance(Batches(*numbered(3), batch_size=1), Stateful)


# --- errors ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "words", "arguments"),
    [
        (TypeError, "batch_size must be a whole number, got 2.0", {"batch_size": 2.0}),
        (TypeError, "batch_size must be a whole number, got True", {"batch_size": True}),
        (TypeError, "batch_size must be a whole number, got '2'", {"batch_size": "2"}),
        (ValueError, "batch_size must be at least 1, got 0", {"batch_size": 0}),
        (ValueError, "batch_size must be at least 1, got -3", {"batch_size": -3}),
        (TypeError, "seed must be a whole number, got 0.5", {"seed": 0.5}),
        (TypeError, "seed must be a whole number, got None", {"seed": None}),
        (ValueError, "seed must be at least 0, got -1", {"seed": -1}),
        (TypeError, "transform must be callable or None, got 3", {"transform": 3}),
        (
            ValueError,
            "got batch_size 6 and 5 samples: no batch would be left",
            {"batch_size": 6, "drop_last": True},
        ),
    ],
)
def test_it_refuses_bad_settings(error, words, arguments):
    with pytest.raises(error, match=re.escape(words)):
        Batches(*numbered(5), **{"batch_size": 2, **arguments})


@pytest.mark.parametrize(
    ("error", "words", "inputs", "targets"),
    [
        (TypeError, "Convert it with torch.as_tensor(inputs)", [[1.0]], torch.zeros(1)),
        (
            TypeError,
            "got tuple. Of several tensors, make batches",
            (torch.zeros(1),),
            torch.ones(1),
        ),
        (TypeError, "targets must be a tensor, got ndarray", torch.zeros(1), np.zeros(1)),
        (ValueError, "inputs must have one row per sample", torch.tensor(1.0), torch.zeros(1)),
        (ValueError, "targets must have one row per sample", torch.zeros(1), torch.tensor(1)),
        (
            ValueError,
            "120 inputs but 119 targets: they no longer belong together",
            torch.zeros(120, 2),
            torch.zeros(119),
        ),
        (ValueError, "must hold at least one sample", torch.zeros(0, 2), torch.zeros(0)),
    ],
)
def test_it_refuses_bad_tensors(error, words, inputs, targets):
    with pytest.raises(error, match=re.escape(words)):
        Batches(inputs, targets, batch_size=1)


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        (torch.zeros(2, 3), "got (2, 3) float32"),  # a tensor of two rows is no pair
        ((1, 2, 3), "got a tuple of length 3"),
        (None, "got NoneType"),
    ],
)
def test_it_refuses_a_transform_that_does_not_return_a_pair(returned, words):
    batches = Batches(*numbered(2), batch_size=2, transform=lambda x, y: returned)
    with pytest.raises(TypeError, match=re.escape(f"a pair (inputs, targets), {words}")):
        list(batches)


@pytest.mark.parametrize(
    ("error", "words", "state"),
    [
        (ValueError, "batch must be at most the 3 of a pass, got 4", {"epoch": 0, "batch": 4}),
        (ValueError, "batch must be at least 0, got -1", {"epoch": 0, "batch": -1}),
        (TypeError, "epoch must be a whole number, got None", {"epoch": None, "batch": 0}),
    ],
)
def test_it_refuses_a_bad_state_and_stays_where_it_is(error, words, state):
    batches = Batches(*numbered(5), batch_size=2)
    with pytest.raises(error, match=re.escape(words)):
        batches.load_state_dict(state)
    assert batches.state_dict() == {"epoch": 0, "batch": 0}


def test_it_refuses_a_bad_epoch_where_it_is_set():
    batches = Batches(*numbered(2), batch_size=2)
    with pytest.raises(ValueError, match=re.escape("epoch must be at least 0, got -1")):
        batches.epoch = -1
    with pytest.raises(TypeError, match=re.escape("epoch must be a whole number, got 1.0")):
        batches.epoch = 1.0
    assert batches.epoch == 0


# --- on a device ----------------------------------------------------------------------------


def test_on_a_device_it_is_the_same_batches_and_leaves_the_first_where_they_are():
    batches = Batches(*numbered(9), batch_size=4, shuffle=True, seed=5, drop_last=True)
    batches.epoch = 3
    moved = batches.to("meta")
    assert moved.inputs.device.type == moved.targets.device.type == "meta"
    assert batches.inputs.device.type == "cpu"
    assert (moved.epoch, moved.seed, len(moved)) == (3, 5, 2)
    moved.epoch = 4
    assert batches.epoch == 3
    same = batches.to("cpu")
    assert order_of(same) == order_of(batches)
    assert same.inputs.data_ptr() == batches.inputs.data_ptr()
