"""The network of a command: the lecture's, or one of torchvision's by name, and its weights."""

import difflib
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from torchcls.evaluation import evaluating

# These have outputs of their own in training, with which no loss goes. Their weights are of images
# scaled to [-1, 1], to which they change those of ImageNet's scale.
_ALONE = {"aux_logits": False, "init_weights": True, "transform_input": True}
_OPTIONS: Mapping[str, dict[str, Any]] = {"googlenet": _ALONE, "inception_v3": _ALONE}


def network(net: str | None, shape: Sequence[int], outputs: int) -> nn.Module:
    """A network for images of a shape (C, H, W), with random weights; None is the lecture's.

    Raises:
        ValueError: If the images are too small for it, or of a size that it does not take.
    """
    if net is None:
        return _of_the_lecture(shape, outputs)
    try:
        model = _torchvision(net, shape, outputs)
        with evaluating(model), torch.no_grad():
            model(torch.zeros(1, *shape))
    except Exception as error:  # torch and torchvision raise all kinds
        reason = str(error).partition("\n")[0].strip(".!")
        law = f"--size must be one that {net} takes, as all take 224, got {shape[-1]}"
        raise ValueError(f"{law} ({reason}).") from error
    return model


def check_name(net: str) -> None:
    """Refuse what is no classification network of torchvision."""
    from torchvision import models

    names = models.list_models(module=models)
    if net in names:
        return
    close = difflib.get_close_matches(net, names, n=4, cutoff=0.5) or ["resnet18"]
    seen = f"{net}, which is for another task" if net in models.list_models() else net
    raise ValueError(
        f"--net must be a classification network of torchvision, got {seen}. "
        f"There are {', '.join(close)} and {len(names) - len(close)} more."
    )


def _of_the_lecture(shape: Sequence[int], outputs: int) -> nn.Module:
    channels, height, width = shape
    h, w = (height - 4) // 2, (width - 4) // 2  # behind convolution and pooling
    if min(h, w) < 1:
        law = "images must have at least 6 x 6 pixels for this network"
        raise ValueError(f"{law}, got {width} x {height}.")
    before = nn.Conv2d(channels, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()
    return nn.Sequential(*before, nn.Linear(16 * h * w, outputs))


def _torchvision(net: str, shape: Sequence[int], outputs: int) -> nn.Module:
    from torchvision import models

    options = _OPTIONS.get(net, {})
    if net.startswith("vit_"):
        options = {"image_size": shape[-1]}
    model: nn.Module = models.get_model(net, num_classes=outputs, **options)
    return model


# ------------------------------------------------------------------ weights to begin with


def load_weights(model: nn.Module, net: str, shape: Sequence[int], outputs: int, path: str) -> str:
    """Load a state dict into a network but for a head of other classes; says what is left out.

    The arguments before ``path`` are the network and those that ``network`` made it of. The file is
    one of ``torch.save``: a state dict, or a dict that has one under "model", as those of
    ``tc.export``, or under "state_dict".

    Raises:
        ValueError: If the file cannot be read, or holds something else, or weights of another
            network.
    """
    seen = "something else"
    try:
        found = torch.load(os.path.expanduser(path), map_location="cpu", weights_only=True)
    except OSError as error:
        raise ValueError(f"--weights must be a file, got {path}: {error.strerror}.") from error
    except Exception as error:  # on what is no such file, torch raises all kinds
        found, seen = None, f"what torch cannot read as weights alone ({type(error).__name__})"
    for key in ("model", "state_dict"):
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not (isinstance(found, dict) and all(isinstance(v, Tensor) for v in found.values())):
        raise ValueError(
            f"--weights must be a file with a state dict, got {path} with {seen}. "
            "Write one by torch.save(model.state_dict(), path)."
        )
    return _load(model, net, shape, outputs, found, f"--weights {path}")


def load_pretrained(model: nn.Module, net: str, shape: Sequence[int], outputs: int) -> str:
    """The same with torchvision's own weights, which are downloaded unless they are there."""
    from torchvision import models

    weights = models.get_model_weights(net).DEFAULT
    try:
        theirs = models.get_model(net, weights=weights, progress=sys.stderr.isatty())
    except OSError as error:  # urllib's are such
        raise OSError(
            f"--pretrained must download {weights.url}, which failed ({error}). "
            "Where there is no network, use --weights FILE."
        ) from error
    return _load(model, net, shape, outputs, theirs.state_dict(), "--pretrained")


def _load(
    model: nn.Module,
    net: str,
    shape: Sequence[int],
    outputs: int,
    found: Mapping[str, Tensor],
    option: str,
) -> str:
    own = model.state_dict()
    other = _torchvision(net, shape, outputs + 1).state_dict()
    head = {name for name in own if own[name].shape != other[name].shape}
    fits = {name for name in own if name in found and found[name].shape == own[name].shape}
    wrong = [name for name in own if name not in fits | head]
    # Those two have heads for training alone.
    spare = [name for name in found if net in _OPTIONS and name.lower().startswith("aux")]
    wrong += [name for name in found if name not in own and name not in spare]
    if wrong:
        seen, wanted = (
            f"of shape {tuple(tensors[wrong[0]].shape)}" if wrong[0] in tensors else "missing"
            for tensors in (found, own)
        )
        raise ValueError(
            f"{option} must hold the weights of {net}, got {wrong[0]} {seen} where it has {wanted} "
            f"({len(wrong)} tensors do not fit). Give the --net and --size of them."
        )
    own.update({name: found[name] for name in fits})  # which keeps the versions of its layers
    model.load_state_dict(own)
    left = sorted({*(head - fits), *spare})
    whole = f"taken from {option}: all, with its head for {outputs} outputs"
    return f"left out of {option}: {', '.join(left)}" if left else whole
