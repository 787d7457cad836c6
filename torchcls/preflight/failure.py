"""Why a step failed: what a forward pass raised, or what was not finite first."""

import math
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from torchcls.preflight.findings import Finding, error
from torchcls.preflight.graph import ran_exp
from torchcls.preflight.reading import bounds, dtype_of, leaves_of


def explain_forward(failure: Exception, model: nn.Module, inputs: Any) -> Finding | None:
    """Explain what a model raised by the layer of torch in which it happened; None if unclear."""
    stars = "**inputs" if isinstance(inputs, Mapping) else "*inputs"
    one_by_one = f"pass forward=lambda model, inputs: model({stars})"
    if str(failure).startswith(f"{model.forward.__qualname__}() missing"):
        return error("batch-form", f"{failure}. Inputs are one argument: {one_by_one}.")
    layer, given = _where(failure.__traceback__)
    if layer is None:
        return None
    name = next((name for name, module in model.named_modules() if module is layer), "")
    which = f"The layer {type(layer).__name__}" + (f" {name!r}" if name else "")
    if isinstance(given, (Mapping, str, list, tuple)):
        seen = f"{which} was given a {type(given).__name__} where it needs a tensor."
        fix = "Make the inputs of a batch what the model takes"
        is_whole = isinstance(inputs, (Mapping, tuple)) and type(given) is type(inputs)
        fix += f", or {one_by_one}." if is_whole else "."
        return error("batch-form", f"{seen} {fix}")
    if not isinstance(given, Tensor):
        return None
    if isinstance(layer, (nn.Embedding, nn.EmbeddingBag)):
        return _embedding(layer, which, given)
    return _dtype(layer, which, given) or _size(layer, which, given)


def _where(traceback: TracebackType | None) -> tuple[nn.Module | None, Any]:
    """The innermost layer of torch that was running, and what it was given."""
    found: tuple[nn.Module | None, Any] = (None, None)
    while traceback is not None:
        local = traceback.tb_frame.f_locals
        module = local.get("self")
        if (
            traceback.tb_frame.f_code.co_name == "forward"
            and isinstance(module, nn.Module)
            and type(module).__module__.startswith("torch.nn.")
            and not isinstance(module, (nn.Sequential, nn.ModuleList))
        ):
            found = module, local.get("input", local.get("x"))
        traceback = traceback.tb_next
    return found


def _embedding(layer: nn.Embedding | nn.EmbeddingBag, which: str, given: Tensor) -> Finding | None:
    if given.dtype not in (torch.int64, torch.int32):
        seen = f"{which} looks up ids, but was given {dtype_of(given)}."
        return error("input-dtype", f"{seen} Use inputs.long().")
    low, high = bounds(given) or (0, 0)
    if low >= 0 and high < layer.num_embeddings:
        return None
    bad = low if low < 0 else high
    more = f", or use nn.Embedding({high + 1}, {layer.embedding_dim})" if low >= 0 else ""
    seen = f"{which} has {layer.num_embeddings} rows, but was given the id {bad}."
    return error("input-shape", f"{seen} Number the ids from 0{more}.")


def _dtype(layer: nn.Module, which: str, given: Tensor) -> Finding | None:
    weight = getattr(layer, "weight", None)
    if not isinstance(weight, Tensor) or given.dtype == weight.dtype:
        return None
    cast = "float()" if weight.dtype == torch.float32 else f"to({weight.dtype})"
    scale = " / 255" if given.dtype == torch.uint8 else ""
    seen = f"{which} has {dtype_of(weight)} weights, but was given {dtype_of(given)}."
    return error("input-dtype", f"{seen} Use inputs.{cast}{scale}.")


def _size(layer: nn.Module, which: str, given: Tensor) -> Finding | None:
    shape = tuple(given.shape)
    if isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        return _convolution(layer, which, shape)
    if isinstance(layer, nn.Linear) and shape and shape[-1] != layer.in_features:
        fix = f"Use nn.Linear({shape[-1]}, {layer.out_features})."
        if math.prod(shape[1:]) == layer.in_features:
            fix = "Put nn.Flatten() before it."
        wants = f"{which} takes {layer.in_features} features in the last axis"
        return error("input-shape", f"{wants}, but was given {shape}. {fix}")
    is_single = layer.training and len(shape) > 1 and given.numel() == shape[1]
    if is_single and isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)):
        seen = f"{which} cannot train on a batch of 1 sample."
        return error("last-batch", f"{seen} Use drop_last=True, or another batch size.")
    return None


def _convolution(layer: Any, which: str, shape: tuple[int, ...]) -> Finding:
    axes, channels = len(layer.kernel_size), layer.in_channels
    fix = f"Its kernel {layer.kernel_size} must fit into what it is given."
    if len(shape) == axes + 1 and channels == 1 and shape[0] != 1:
        with_axis = (shape[0], 1, *shape[1:])
        fix = f"Add the channel axis with inputs.unsqueeze(1), giving {with_axis}."
    elif len(shape) == axes + 2 and shape[-1] == channels:
        fix = "The channels come last: use inputs.movedim(-1, 1)."
    elif len(shape) == axes + 2 and shape[1] != channels:
        fix = f"Use {type(layer).__name__}({shape[1]}, {layer.out_channels}, ...), or other inputs."
    wanted = f"({', '.join(('n', str(channels), *'dhw'[-axes:]))})"
    return error("input-shape", f"{which} takes inputs {wanted}, but was given {shape}. {fix}")


def is_finite(gradients: Iterable[Tensor | None]) -> bool:
    """Whether every number is finite; each is looked at only where their sum is not. Waits."""
    for gradient in gradients:
        if gradient is not None and not math.isfinite(abs(gradient.sum().item())):
            values = gradient.coalesce().values() if gradient.is_sparse else gradient
            if not values.isfinite().all():
                return False
    return True


def what_went_first(batch: tuple[Any, Any], outputs: Any, model: nn.Module) -> str:
    """Say what was not finite first: inputs, targets, weights, outputs or the loss."""
    if seen := _bad_in(batch[0], "inputs"):
        return f"{seen} Clean or fill them: from such a batch on every weight would be NaN."
    if seen := _bad_in(batch[1], "targets"):
        return f"{seen} Clean them where the data is read."
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_floating_point() and not tensor.isfinite().all():
            seen = f"Inputs and targets are finite, but the model's {name} is not."
            return f"{seen} Batches before have ruined it: lower the learning rate."
    if seen := _bad_in(outputs, "outputs"):
        exp = ""
        if isinstance(outputs, Tensor) and ran_exp(outputs):
            exp = " An exponential overflows above 88: use log_softmax, or CrossEntropyLoss alone."
        return f"Inputs and weights are finite. {seen}{exp}"
    return "Inputs, weights and outputs are finite: the loss itself overflows or divides by 0."


def _bad_in(structure: Any, name: str) -> str:
    """The first value that is not finite, and how many there are; empty where all are."""
    for leaf in leaves_of(structure):
        if isinstance(leaf, Tensor) and leaf.is_floating_point():
            bad = ~leaf.detach().isfinite()
            if n := int(bad.sum()):
                kind = "NaN" if leaf.isnan().any() else "infinity"
                first = f", first in sample {int(bad.nonzero()[0, 0])}" if bad.ndim else ""
                return f"The {name} hold {kind} ({n} value{'s' * (n > 1)}{first})."
    return ""


def which_gradient(where: str, gradients: Iterable[tuple[str, Tensor | None]]) -> str:
    """Say which parameters have a gradient that is not finite though the loss is."""
    bad = [name for name, gradient in gradients if not is_finite([gradient])]
    first = f"the gradient of {bad[0]} is not" if bad else "a gradient is not"
    more = f" ({len(bad)} parameters in all)" if len(bad) > 1 else ""
    why = "a square root, a division or a logarithm at 0, masked only afterwards"
    return f"The loss is finite in {where}, but {first}{more}: {why}."
