"""What photographs go through before a network sees them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# Of ImageNet, which the weights of torchvision's networks expect.
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def photo_transforms(size: int, *, train: bool) -> Callable[[Any], Tensor]:
    """Photographs of any size as tensors of one, by the presets of torchvision.

    In training a random part of 8 to 100 % of the area, of a shape between 3:4 and 4:3, is scaled
    to ``size`` and flipped in one of two cases; otherwise the shorter side is scaled to 8/7 of
    ``size`` (256 for 224) and the middle cut out. Then each channel is normalised as ImageNet's.

    Args:
        size: Height and width of the result; 224 for most networks.
        train: Whether to draw the part at random, from torch's generator.

    Returns:
        A ``torchvision.transforms.v2.Compose``, which takes images of Pillow's in RGB, as
        ``image_folder`` hands them out, or uint8 tensors (..., 3, H, W), and gives a float32
        tensor (..., 3, size, size).

    Raises:
        TypeError: If ``size`` is no int.
        ValueError: If it is below 1.

    Example:
        >>> from PIL import Image
        >>> photo = Image.new("RGB", (640, 480), "white")
        >>> photo_transforms(224, train=False)(photo).shape
        torch.Size([3, 224, 224])
    """
    from torchvision.transforms import v2

    if isinstance(size, bool) or not isinstance(size, int):
        raise TypeError(f"size must be an int, the side of a square, got {size!r}.")
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}.")
    if train:
        parts = [v2.RandomResizedCrop(size), v2.RandomHorizontalFlip()]
    else:
        parts = [v2.Resize(round(size * 256 / 224)), v2.CenterCrop(size)]
    scaled = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(_MEAN, _STD)]
    transform: Callable[[Any], Tensor] = v2.Compose([*parts, *scaled, v2.ToPureTensor()])
    return transform
