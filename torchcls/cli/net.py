"""The network of a command: the lecture's, or one of torchvision's by name, and its weights."""

import difflib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
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
        ValueError: If torchvision has no classification network of that name, or the images are
            too small for this one.
    """
    if net is None:
        return _of_the_lecture(shape, outputs)
    check_name(net)
    try:
        model = _torchvision(net, shape, num_classes=outputs)
        with evaluating(model), torch.no_grad():
            model(torch.zeros(1, *shape))
    except Exception as error:  # torch and torchvision raise all kinds
        reason = str(error).partition("\n")[0]
        law = f"--size must be one that {net} takes, as all take 224, got {shape[-1]}"
        raise ValueError(f"{law} ({reason.strip('.!')}).") from error
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
    channels, *sides = shape
    height, width = ((side - 4) // 2 for side in sides)  # behind convolution and pooling
    if min(height, width) < 1:
        seen = f"{sides[1]} x {sides[0]}"
        law = "images must have at least 6 x 6 pixels for this network"
        raise ValueError(f"{law}, got {seen}.")
    return nn.Sequential(
        nn.Conv2d(channels, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * height * width, outputs),
    )


def _torchvision(net: str, shape: Sequence[int], **options: Any) -> nn.Module:
    from torchvision import models

    options |= _OPTIONS.get(net, {})
    if net.startswith("vit_"):
        options["image_size"] = shape[-1]
    model: nn.Module = models.get_model(net, **options)
    return model


# ------------------------------------------------------------------ weights to begin with


def load_weights(model: nn.Module, net: str, shape: Sequence[int], path: Path) -> str:
    """Load a state dict into a network but for a head of other classes; says what is left out.

    Args:
        model: As ``network`` gives it.
        net: Its name.
        shape: Of its images.
        path: A file of ``torch.save``: a state dict, or a dict that has one under "model" as those
            of ``tc.export``, or under "state_dict".

    Raises:
        OSError: If the file cannot be read.
        ValueError: If it holds something else, or weights of another network.
    """
    remedy = "Write one by torch.save(model.state_dict(), path)."
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # on what is no such file, torch raises all kinds
        raise ValueError(
            f"--weights must be a file with a state dict, got {path}, which torch cannot read as "
            f"weights alone ({type(error).__name__}). {remedy}"
        ) from error
    for key in ("model", "state_dict"):
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not (isinstance(found, dict) and found and _are_tensors(found)):
        law = "--weights must be a file with a state dict"
        raise ValueError(f"{law}, got {path} with something else. {remedy}")
    return _load(model, net, shape, found, f"--weights {path}")


def load_pretrained(model: nn.Module, net: str, shape: Sequence[int]) -> str:
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
    return _load(model, net, shape, theirs.state_dict(), "--pretrained")


def _load(
    model: nn.Module, net: str, shape: Sequence[int], found: Mapping[str, Tensor], option: str
) -> str:
    own = model.state_dict()
    with torch.device("meta"):  # the head is what grows with the number of classes
        two, three = (_torchvision(net, shape, num_classes=n).state_dict() for n in (2, 3))
    head = {name for name in own if two[name].shape != three[name].shape}
    fits = {name for name in own if name in found and found[name].shape == own[name].shape}
    misfits = [name for name in own if name not in fits | head]
    strange = [name for name in found if name not in own]
    is_aux = net in _OPTIONS  # heads that are there in training only
    strange = [name for name in strange if not (is_aux and name.lower().startswith("aux"))]
    if misfits or strange:
        name = (misfits + strange)[0]
        seen, wanted = (_shape(tensors.get(name)) for tensors in (found, own))
        raise ValueError(
            f"{option} must hold the weights of {net}, got {name} {seen} where it has {wanted} "
            f"({len(misfits + strange)} tensors do not fit). Give the --net and --size of them."
        )
    model.load_state_dict({name: found[name] for name in fits}, strict=False)
    left = sorted((head - fits) | (found.keys() - own.keys()))
    return f"left out of {option}: {', '.join(left)}" if left else ""


def _are_tensors(found: Mapping[Any, Any]) -> bool:
    return all(isinstance(k, str) and isinstance(v, Tensor) for k, v in found.items())


def _shape(tensor: Tensor | None) -> str:
    return "missing" if tensor is None else f"of shape {tuple(tensor.shape)}"
