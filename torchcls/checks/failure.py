"""Why a forward pass or a loss raised: said in terms of what the user wrote."""

from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from torchcls.checks.findings import Finding, error
from torchcls.structure import mapped

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def explain_forward(failure: Exception, model: nn.Module, inputs: Any) -> Finding | None:
    """Explain what a model raised by the layer of torch in which it happened; None if unclear."""
    layer, given = _where(failure.__traceback__)
    if layer is None:
        return None
    names = {id(module): name for name, module in model.named_modules()}
    name = names.get(id(layer), "")
    kind = type(layer).__name__
    which = f"{kind} {name!r}" if name else kind
    if not isinstance(given, Tensor):
        if isinstance(given, (dict, str, list, tuple)):
            return error(
                "batch-form",
                f"The layer {which} was given a {type(given).__name__} where it needs a tensor: "
                "the model does not take the inputs as the batches hold them. Make the pair "
                "(inputs, targets) of a batch what the model takes.",
            )
        return None
    return (
        _embedding(layer, which, given)
        or _dtype(layer, which, given)
        or _size(layer, which, given, inputs)
    )


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


def _embedding(layer: nn.Module, which: str, given: Tensor) -> Finding | None:
    if not isinstance(layer, nn.Embedding):
        return None
    if given.dtype not in (torch.int64, torch.int32):
        return error(
            "input-dtype",
            f"The layer {which} looks up ids, but was given {_kind(given)}. Use inputs.long().",
        )
    if given.device.type != "cpu" or given.layout != torch.strided or not given.numel():
        return None
    low, high = (int(bound) for bound in given.aminmax())
    if low >= 0 and high < layer.num_embeddings:
        return None
    fix = f"Use nn.Embedding({high + 1}, {layer.embedding_dim}), or number the ids from 0."
    return error(
        "input-shape",
        f"The layer {which} has {layer.num_embeddings} rows, but was given the id "
        f"{low if low < 0 else high}. {'Number the ids from 0.' if low < 0 else fix}",
    )


def _dtype(layer: nn.Module, which: str, given: Tensor) -> Finding | None:
    weight = getattr(layer, "weight", None)
    if not isinstance(weight, Tensor) or given.dtype == weight.dtype:
        return None
    if isinstance(layer, (nn.Embedding, nn.EmbeddingBag)):
        return None
    cast = {torch.float32: "float()", torch.float64: "double()"}.get(
        weight.dtype, f"to({weight.dtype})"
    )
    scale = " / 255" if given.dtype == torch.uint8 else ""
    return error(
        "input-dtype",
        f"The layer {which} has {_kind(weight)} weights, but was given {_kind(given)}. "
        f"Use inputs.{cast}{scale}.",
    )


def _size(layer: nn.Module, which: str, given: Tensor, inputs: Any) -> Finding | None:
    shape = tuple(given.shape)
    if isinstance(layer, _CONVOLUTIONS):
        return _convolution(layer, which, shape)
    if isinstance(layer, nn.Linear) and shape and shape[-1] != layer.in_features:
        flat = given.numel() // len(given) if given.ndim > 1 and len(given) else 0
        if flat == layer.in_features:
            fix = "Put nn.Flatten() before it."
        else:
            features = (
                flat if flat and isinstance(inputs, Tensor) and given.ndim == 2 else shape[-1]
            )
            fix = f"Use nn.Linear({features}, {layer.out_features})."
        return error(
            "input-shape",
            f"The layer {which} takes {layer.in_features} features in the last axis, but was given "
            f"{shape}. {fix}",
        )
    norms = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    is_single = len(shape) > 1 and given.numel() == shape[1]
    if isinstance(layer, norms) and layer.training and is_single:
        return error(
            "last-batch",
            f"The layer {which} cannot train on a batch of 1 sample, since it takes the mean over "
            "the batch. Use drop_last=True, or another batch size.",
        )
    return None


def _convolution(layer: Any, which: str, shape: tuple[int, ...]) -> Finding | None:
    axes = len(layer.kernel_size)
    letters = ("n", str(layer.in_channels), *"dhw"[-axes:])
    wanted = f"({', '.join(letters)})"
    if len(shape) == axes + 1 and layer.in_channels == 1 and shape[0] != 1:
        with_axis = (shape[0], 1, *shape[1:])
        fix = f"Add the channel axis with inputs.unsqueeze(1), giving {with_axis}."
    elif len(shape) == axes + 2 and shape[-1] == layer.in_channels:
        fix = "The channels come last: use inputs.movedim(-1, 1)."
    elif len(shape) == axes + 2 and shape[1] != layer.in_channels:
        name = type(layer).__name__
        fix = f"Use {name}({shape[1]}, {layer.out_channels}, ...), or other inputs."
    elif len(shape) == 2:
        fix = "Give the images their shape back: inputs.reshape(n, channels, height, width)."
    elif len(shape) == axes + 2:
        fix = f"Its kernel {layer.kernel_size} must fit into what it is given."
    else:
        fix = ""
    return error(
        "input-shape",
        f"The layer {which} takes inputs {wanted}, but was given {shape}. {fix}".strip(),
    )


def _kind(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def describe(structure: Any) -> str:
    """The shapes and dtypes in a structure, in a few words."""
    parts: list[str] = []

    def look(leaf: Any) -> Any:
        is_tensor = isinstance(leaf, Tensor)
        parts.append(f"{tuple(leaf.shape)} {_kind(leaf)}" if is_tensor else type(leaf).__name__)
        return leaf

    mapped(look, structure)
    more = f" and {len(parts) - 4} more" if len(parts) > 4 else ""
    return ", ".join(parts[:4]) + more
