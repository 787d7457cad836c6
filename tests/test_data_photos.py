"""What photographs go through is what torchvision's presets do."""

import re

import pytest
import torch
from PIL import Image
from torchvision.transforms._presets import ImageClassification

import torchcls as tc


@pytest.fixture
def photo():
    """Noise in large blotches, 300 x 200."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (20, 30, 3), dtype=torch.uint8, generator=generator)
    return Image.fromarray(pixels.numpy()).resize((300, 200))


@pytest.mark.parametrize("size", [32, 64, 224])
def test_validation_is_the_preset_of_torchvisions_weights(photo, size):
    preset = ImageClassification(crop_size=size, resize_size=round(size * 8 / 7))
    seen = tc.photo_transforms(size, train=False)(photo)
    assert type(seen) is torch.Tensor
    torch.testing.assert_close(seen, preset(photo))


def test_training_draws_parts_and_flips_from_torchs_generator(photo):
    transform = tc.photo_transforms(32, train=True)
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        first, second = transform(photo), transform(photo)
        torch.manual_seed(0)
        again = transform(photo)
    assert type(first) is torch.Tensor
    assert (first.shape, first.dtype) == ((3, 32, 32), torch.float32)
    assert torch.equal(first, again)
    assert not torch.equal(first, second)


def test_training_flips_one_of_two(photo):
    halves = Image.new("RGB", (64, 64))
    halves.paste("white", (32, 0, 64, 64))
    transform = tc.photo_transforms(64, train=True)
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        seen = [transform(halves) for _ in range(64)]
    sides = [float(s[0, :, -1].mean() - s[0, :, 0].mean()) for s in seen]
    assert 16 < sum(side > 0 for side in sides) < 48
    assert 16 < sum(side < 0 for side in sides) < 48


@pytest.mark.parametrize("train", [True, False])
def test_channels_are_normalised_as_imagenets(train):
    seen = tc.photo_transforms(8, train=train)(Image.new("RGB", (20, 30), (255, 0, 51)))
    expected = torch.tensor([(1 - 0.485) / 0.229, -0.456 / 0.224, (0.2 - 0.406) / 0.225])
    torch.testing.assert_close(seen, expected[:, None, None].expand(3, 8, 8))


@pytest.mark.parametrize(
    ("size", "error", "words"),
    [
        (0, ValueError, "size must be at least 1, got 0."),
        (True, TypeError, "size must be an int, the side of a square, got True."),
        ((224, 224), TypeError, "size must be an int, the side of a square, got (224, 224)."),
    ],
)
def test_the_size_is_the_side_of_a_square(size, error, words):
    with pytest.raises(error, match=f"^{re.escape(words)}"):
        tc.photo_transforms(size, train=False)
