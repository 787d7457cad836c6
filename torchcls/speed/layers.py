"""Which of torch's modules treat every sample by itself, and a faster way through them.

Only modules whose type is listed here are trusted: a subclass, a hook or a ``forward`` of the
user's own may do anything with a batch, and nobody can see it from outside.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from torchcls.heads import is_hooked
from torchcls.step import Forward


def _always(module: Any) -> bool:
    return True


def _is_off(dropout: Any) -> bool:
    return not dropout.training or dropout.p == 0


def _uses_running_statistics(norm: Any) -> bool:
    return not norm.training and norm.running_mean is not None


def _gives_values_only(pool: Any) -> bool:
    return not pool.return_indices


def _keeps_first_axis(flatten: Any) -> bool:
    return bool(flatten.start_dim >= 1)


def _has_other_axis(softmax: Any) -> bool:
    return softmax.dim is not None and (softmax.dim >= 1 or softmax.dim == -1)


def _is_a_plain_table(embedding: Any) -> bool:
    return not (embedding.sparse or embedding.scale_grad_by_freq or embedding.max_norm is not None)


# From a type to the question whether a module of it treats every sample by itself, as it stands.
_LAYERS: dict[type[nn.Module], Callable[[Any], bool]] = {
    **dict.fromkeys(
        (
            nn.AdaptiveAvgPool1d,
            nn.AdaptiveAvgPool2d,
            nn.AvgPool1d,
            nn.AvgPool2d,
            nn.CELU,
            nn.Conv1d,
            nn.Conv2d,
            nn.Conv3d,
            nn.ConvTranspose1d,
            nn.ConvTranspose2d,
            nn.ELU,
            nn.GELU,
            nn.GroupNorm,
            nn.Hardsigmoid,
            nn.Hardswish,
            nn.Hardtanh,
            nn.Identity,
            nn.LayerNorm,
            nn.LeakyReLU,
            nn.Linear,
            nn.LogSigmoid,
            nn.Mish,
            nn.PReLU,
            nn.ReLU,
            nn.ReLU6,
            nn.SELU,
            nn.Sigmoid,
            nn.SiLU,
            nn.Softplus,
            nn.Softsign,
            nn.Tanh,
            nn.Upsample,
            nn.ZeroPad2d,
        ),
        _always,
    ),
    **dict.fromkeys((nn.Dropout, nn.Dropout1d, nn.Dropout2d), _is_off),
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d), _uses_running_statistics),
    **dict.fromkeys((nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d), _gives_values_only),
    **dict.fromkeys((nn.MaxPool1d, nn.MaxPool2d), _gives_values_only),
    **dict.fromkeys((nn.Softmax, nn.LogSoftmax), _has_other_axis),
    nn.Flatten: _keeps_first_axis,
    nn.Embedding: _is_a_plain_table,
}


def layers_of(model: nn.Module) -> list[nn.Module] | None:
    """The layers of a model in their order, if nothing but them has a say in what it computes.

    Args:
        model: One of the listed layers, or a ``Sequential`` of such, nested as you like.

    Returns:
        The layers; None where any module is not known to treat every sample by itself in the mode
        it is in, where anyone hooked into it, or where it is compiled.

    Examples:
        >>> layers_of(nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.ReLU())))
        [Linear(in_features=2, out_features=3, bias=True), ReLU()]
        >>> layers_of(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))) is None  # mixes samples
        True
    """
    layers = [module for module in model.modules() if type(module) is not nn.Sequential]
    if (
        any(map(is_hooked, model.modules()))
        or any(map(_is_special, model.parameters()))
        or not all(map(_treats_samples_alone, layers))
    ):
        return None
    layers = list(_in_order(model))
    # A layer that works in place may write into the user's data; into a copy it would not.
    writer = next((layer for layer in layers if type(layer) not in _PASSING), None)
    return None if getattr(writer, "inplace", False) else layers


def _treats_samples_alone(layer: nn.Module) -> bool:
    is_alone = _LAYERS.get(type(layer))
    return is_alone is not None and is_alone(layer)


def _in_order(model: nn.Module) -> Iterator[nn.Module]:
    if type(model) is not nn.Sequential:
        yield model
    else:
        for module in model:  # a module that stands there twice comes twice
            yield from _in_order(module)


# What they give may be what they got.
_PASSING = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Flatten, nn.Identity)


_GRADIENT_HOOKS = ("_backward_hooks", "_post_accumulate_grad_hooks")


def _is_special(parameter: nn.Parameter) -> bool:
    """Whether a parameter is more than numbers: of a class of its own, sparse, or hooked."""
    return (
        type(parameter) is not nn.Parameter
        or parameter.layout != torch.strided
        or any(getattr(parameter, name, None) for name in _GRADIENT_HOOKS)
    )


def parameter_bytes(model: nn.Module) -> int:
    """Bytes of all parameters."""
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


# Layers that take longer over images with the channels last.
_SLOWER_SO = (nn.GroupNorm, nn.LayerNorm, nn.LogSoftmax, nn.Softmax)


def through(layers: Iterable[nn.Module]) -> Forward:
    """A faster way through layers in order, for images on a CPU; the numbers are the same.

    Convolutions get images with the channels last, the order in which torch pools fastest. Weights
    stay as they are, and no code of the user's ever sees the images so (``layers_of``). A ReLU in
    front of max pooling goes behind it, to the same bits forward and backward, since the largest of
    what is left of some numbers is what is left of the largest; it has fewer to look at there.
    """
    layers = list(layers)
    for i in range(len(layers) - 1):
        if type(layers[i]) is nn.ReLU and type(layers[i + 1]) is nn.MaxPool2d:
            layers[i], layers[i + 1] = layers[i + 1], layers[i]
    types = [type(layer) for layer in layers]
    before = types[: types.index(nn.Flatten)] if nn.Flatten in types else types
    has_images = nn.Conv2d in before and not any(kind in before for kind in _SLOWER_SO)

    def forward(inputs: Tensor) -> Tensor:
        outputs = _channels_last(inputs) if has_images and inputs.ndim == 4 else inputs
        for layer in layers:
            if has_images and type(layer) is nn.Flatten and outputs.ndim == 4:
                _keep_channels_last(outputs)
            outputs = layer(outputs)
        return outputs

    return forward


def _channels_last(images: Tensor) -> Tensor:
    """The same images (N, C, H, W), laid out as (N, H, W, C) in memory."""
    n, channels, height, width = images.shape
    # A single channel is in both orders at once: only other strides tell torch which is meant.
    if channels == 1:
        return images.reshape(n, height, width, 1).permute(0, 3, 1, 2)
    return images.contiguous(memory_format=torch.channels_last)


def _keep_channels_last(images: Tensor) -> None:
    """Let the gradient come back as the images went: pooling else copies all it has, twice."""
    if images.requires_grad:
        images.register_hook(
            lambda gradient: gradient.contiguous(memory_format=torch.channels_last)
        )
