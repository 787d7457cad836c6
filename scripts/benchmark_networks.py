"""Networks that people use on small images, for (N, 1, 28, 28) and ten classes."""

from collections.abc import Callable

from torch import Tensor, nn


def vgg() -> nn.Sequential:
    """Two convolutions and a pooling, twice; BatchNorm after every convolution."""
    return nn.Sequential(
        *convolution(1, 32),
        *convolution(32, 32),
        nn.MaxPool2d(2),  # (N, 32, 14, 14)
        *convolution(32, 64),
        *convolution(64, 64),
        nn.MaxPool2d(2),  # (N, 64, 7, 7)
        nn.Flatten(),
        nn.Linear(64 * 7 * 7, 10),
    )


def convolution(channels_in: int, channels: int, stride: int = 1) -> list[nn.Module]:
    """Convolve 3 by 3, then BatchNorm and ReLU."""
    return [
        nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
    ]


class Block(nn.Module):
    """Two convolutions with a way around them."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        first = convolution(channels_in, channels, stride)
        second = convolution(channels, channels)[:-1]  # its ReLU comes after the sum
        self.through = nn.Sequential(*first, *second)
        self.around = nn.Identity()
        if stride > 1 or channels_in != channels:
            self.around = nn.Conv2d(channels_in, channels, 1, stride, bias=False)

    def forward(self, inputs: Tensor) -> Tensor:
        """Add what went through to what went around."""
        return (self.through(inputs) + self.around(inputs)).relu()


class ResNet(nn.Module):
    """A stem, three blocks, the mean of each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(*convolution(1, 16))
        self.blocks = nn.Sequential(Block(16, 16, 1), Block(16, 32, 2), Block(32, 64, 2))
        self.head = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Logits, (N, 10)."""
        return self.head(self.blocks(self.stem(images)).mean(dim=(2, 3)))


def mlp() -> nn.Sequential:
    """Three linear layers on the pixels."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(784, 512),
        nn.ReLU(),
        nn.Linear(512, 256),
        nn.ReLU(),
        nn.Linear(256, 10),
    )


NETWORKS: dict[str, Callable[[], nn.Module]] = {"VGG": vgg, "ResNet": ResNet, "MLP": mlp}
