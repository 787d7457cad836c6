"""Drawn digits: what is asked for, the same again, and worth learning."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import cross_entropy

from torchcls.data import drawn_digits
from torchcls.data.drawn import _ink

# --- known values ---------------------------------------------------------------------------


def test_the_ink_falls_from_1_to_0_within_one_pixel_past_the_pen():
    # A level stroke from (5, 10) to (20, 10), half a pen 1.5 wide. Beside its middle, rows 0, 1, 2
    # and 3 away have ink 1, 1, 2.5 - 2 and 0; past its right end so have the columns.
    image = _ink(
        torch.tensor([[[5.0, 10.0]]]), torch.tensor([[[20.0, 10.0]]]), torch.tensor([1.5])
    )[0]
    assert image[10:14, 12].tolist() == [1, 1, 0.5, 0]
    assert image[10, 20:24].tolist() == [1, 1, 0.5, 0]
    assert image[7:11, 5].tolist() == [0, 0.5, 1, 1]
    assert image[12, 21].item() == pytest.approx(2.5 - 5**0.5)  # (1, 2) past the end


def test_strokes_that_cross_take_the_nearest_one():
    starts = torch.tensor([[[0.0, 10.0], [14.0, 0.0]]])
    ends = torch.tensor([[[27.0, 10.0], [14.0, 27.0]]])
    image = _ink(starts, ends, torch.tensor([0.5]))[0]
    expected = torch.zeros(28, 28)
    expected[9:12], expected[:, 13:16] = 0.5, 0.5
    expected[10], expected[:, 14] = 1, 1
    torch.testing.assert_close(image, expected)


# --- properties -----------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(
    n=st.integers(1, 45),
    classes=st.lists(st.integers(0, 9), min_size=1, max_size=10, unique=True),
    seed=st.integers(0, 2**70),
)
def test_it_is_balanced_in_range_and_repeatable(n, classes, seed):
    images, targets = drawn_digits(n, classes=classes, seed=seed)
    assert images.shape == (n, 1, 28, 28)
    assert (images.dtype, targets.dtype, targets.shape) == (torch.float32, torch.int64, (n,))
    assert images.min() >= 0  # false for NaN, too
    assert images.max() <= 1
    assert (images.amax(dim=(1, 2, 3)) > 0.9).all()  # ink on every image
    counts = targets.bincount(minlength=len(classes))
    assert counts.max() - counts.min() <= 1
    assert len(counts) == len(classes)
    again, same_targets = drawn_digits(n, classes=classes, seed=seed)
    assert torch.equal(images, again)
    assert torch.equal(targets, same_targets)


def test_another_seed_draws_other_images():
    assert not torch.equal(drawn_digits(10)[0], drawn_digits(10, seed=1)[0])


def test_no_two_images_are_the_same():
    images, _ = drawn_digits(300, classes=(8,))  # more than one chunk of the same strokes
    assert len(images.unique(dim=0)) == 300


def test_the_targets_come_in_random_order():
    _, targets = drawn_digits(1000)
    assert not torch.equal(targets, targets.sort().values)
    repeats = (targets[1:] == targets[:-1]).sum()
    assert 60 <= repeats <= 140  # about 100 of 999 by chance, spread 10; none if they took turns


def test_targets_are_positions_in_classes():
    forward, _ = _mean_images(classes=(0, 1))
    backward, _ = _mean_images(classes=(1, 0))
    # The middle of a 1 is ink and the middle of a 0 is not.
    assert forward[0, 13:15, 13:15].mean() < 0.2 < 0.5 < forward[1, 13:15, 13:15].mean()
    assert backward[1, 13:15, 13:15].mean() < 0.2 < 0.5 < backward[0, 13:15, 13:15].mean()


def _mean_images(classes):
    images, targets = drawn_digits(400, classes=classes)
    return torch.stack([images[targets == i, 0].mean(0) for i in range(len(classes))]), targets


def test_every_image_has_noise_under_and_around_its_ink():
    images, _ = drawn_digits(200)
    # Half of the noise is above 0: 392 of 784 pixels, spread 14. Ink alone covers far fewer.
    assert ((images > 0).sum(dim=(1, 2, 3)) > 350).all()


def test_it_leaves_the_global_random_state_alone():
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()
    drawn_digits(20)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state[1])


def test_digits_stay_on_the_image():
    images, _ = drawn_digits(2000)
    frame = torch.cat([images[..., 0, :], images[..., -1, :], images[..., 0], images[..., -1]], 2)
    # The frame is 112 of 784 pixels: an even spread of the ink would put 0.14 of it there.
    assert frame.sum() / images.sum() < 0.03


def test_it_is_easy_for_a_network_and_hard_for_a_linear_model():
    # Fewer images than behind the figures in the docstring, so the bounds are looser. Guessing
    # scores 0.1.
    images, targets = drawn_digits(2500)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    network = nn.Sequential(
        nn.Conv2d(1, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(2304, 10)
    )
    scores = [_learn(model, images, targets) for model in (linear, network)]
    assert 0.6 < scores[0] < 0.9
    assert scores[1] > 0.9
    assert scores[1] > scores[0] + 0.08


def _learn(model, images, targets):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for module in model.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(4):
        for rows in torch.arange(2000).split(64):
            optimizer.zero_grad()
            cross_entropy(model(images[rows]), targets[rows]).backward()
            optimizer.step()
    with torch.no_grad():
        right = model(images[2000:]).argmax(dim=1) == targets[2000:]
    return right.float().mean().item()


# --- errors ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "words", "arguments"),
    [
        (TypeError, "n must be a whole number, got 2.0", {"n": 2.0}),
        (TypeError, "n must be a whole number, got True", {"n": True}),
        (ValueError, "n must be at least 1, got 0", {"n": 0}),
        (TypeError, "seed must be a whole number, got '0'", {"seed": "0"}),
        (ValueError, "seed must be at least 0, got -1", {"seed": -1}),
        (TypeError, "classes must be a sequence of digits, got 3", {"classes": 3}),
        (TypeError, "classes must be a sequence of digits, got '358'", {"classes": "358"}),
        (TypeError, "each of classes must be a whole number, got '3'", {"classes": ["3"]}),
        (ValueError, "classes must name at least one digit, got none", {"classes": ()}),
        (ValueError, "digits in 0..9, got 10 in (3, 10)", {"classes": (3, 10)}),
        (ValueError, "digits in 0..9, got -1 in (-1,)", {"classes": (-1,)}),
        (ValueError, "classes must be distinct digits, got (3, 5, 3)", {"classes": (3, 5, 3)}),
    ],
)
def test_it_refuses(error, words, arguments):
    with pytest.raises(error, match=re.escape(words)):
        drawn_digits(**{"n": 4, **arguments})
