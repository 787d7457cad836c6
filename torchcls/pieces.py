"""How a batch is cut: into pieces of a given size, or where it pays and is safe by itself.

On a CPU a large batch is slow because its activations do not fit into the cache: every layer reads
and writes all of them in main memory. ``micro_batch="auto"`` cuts it into pieces whose activations
stay in the cache. The step is the same to rounding, since the pieces are weighted exactly.
"""

from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from torchcls.arguments import check_whole_number
from torchcls.averaging import Averaging
from torchcls.device import device_of
from torchcls.layers import Forward, layers_of, parameter_bytes, through
from torchcls.structure import num_samples, split

MicroBatch = int | Literal["auto"] | None
Pair = tuple[Any, Any]


class Pieces:
    """Cuts every batch into pieces of ``size`` samples; None leaves it whole.

    Attributes:
        size: Samples in a piece, or None.
    """

    def __init__(self, model: nn.Module, size: int | None = None) -> None:
        self._model = model
        self.size = size

    def renew(self) -> None:
        """Look at the model again, at the start of a pass: modes, hooks and layers may change."""

    def cut(self, batch: Pair) -> tuple[Forward, list[Pair]]:
        """Give what to call on the inputs of each piece, and the pieces: (inputs, targets)."""
        if self.size is None:
            return self._model, [batch]
        inputs, targets = num_samples(batch[0]), num_samples(batch[1])
        if inputs != targets:
            raise ValueError(
                "a batch must have as many inputs as targets to be cut by micro_batch, "
                f"got {inputs} inputs and {targets} targets."
            )
        return self._model, split(batch, self.size)

    def outputs(self, inputs: Any) -> Any:
        """The outputs of a whole batch, without gradients: the pieces' outputs put together."""
        return self._model(inputs)


class AutoPieces(Pieces):
    """Cuts where the model's layers allow it and the cache gains by it; decided at the first batch.

    What it needs, all of it: a CPU; a ``Sequential`` of layers that treat every sample by itself
    (``layers``), with no hook of anyone's; inputs and outputs that are one float tensor each; a
    loss that torchcls knows; a batch whose activations are larger than the cache. The size
    follows from the bytes that one sample keeps for the backward pass and from the size of the
    cache, never from timing, so that two runs on one machine cut alike.

    A batch of one piece goes through the model itself, so it has the bits of the plain loop.

    Args:
        model: Any module.
        averaging: How the loss averages; None where there is no loss to be cut.
    """

    def __init__(self, model: nn.Module, averaging: Averaging | None) -> None:
        super().__init__(model)
        self._averaging = averaging
        self._forward: Forward | None = None
        self._is_decided = False

    def renew(self) -> None:
        """Trust the layers as they stand now, or none."""
        layers = None if self._is_decided and self.size is None else layers_of(self._model)
        self._forward = None if layers is None else through(layers)

    def cut(self, batch: Pair) -> tuple[Forward, list[Pair]]:
        """Cut a batch that is larger than a piece, or leave it whole, with the model itself."""
        if self._is_decided and self.size is None:
            return self._model, [batch]
        inputs, targets = batch
        if (
            self._forward is None
            or not self._may_cut_loss(targets)
            or not self._is_larger_than_a_piece(inputs)
            or not isinstance(targets, Tensor)  # whole, the loss says what is wrong with it
            or targets.shape[:1] != inputs.shape[:1]
        ):
            return self._model, [batch]
        return self._forward, split(batch, self.size or 0)

    def outputs(self, inputs: Any) -> Any:
        """The outputs of a whole batch, without gradients."""
        if self._forward is None or not self._is_larger_than_a_piece(inputs):
            return self._model(inputs)
        return torch.cat([self._forward(piece) for piece in split(inputs, self.size or 0)])

    def _may_cut_loss(self, targets: Any) -> bool:
        averaging = self._averaging
        return (
            averaging is not None and averaging.name is not None and averaging.may_be_cut(targets)
        )

    def _is_larger_than_a_piece(self, inputs: Any) -> bool:
        if not _is_plain(inputs):
            return False
        if not self._is_decided:
            self._decide(inputs)
        return self.size is not None and len(inputs) > self.size

    def _decide(self, inputs: Tensor) -> None:
        self._is_decided = True
        forward = self._forward
        if forward is None or device_of(self._model).type != "cpu" or len(inputs) < _PROBED:
            return
        sample_bytes = _bytes_per_sample(self._model, forward, inputs[:_PROBED])
        if sample_bytes is not None:
            weights = parameter_bytes(self._model)
            self.size = piece_size(len(inputs), sample_bytes, weights, cache_bytes())


def pieces_for(
    model: nn.Module, micro_batch: MicroBatch, averaging: Averaging | None = None
) -> Pieces:
    """Choose how the batches of a run are cut."""
    return AutoPieces(model, averaging) if micro_batch == "auto" else Pieces(model, micro_batch)


def check_micro_batch(micro_batch: Any, *, may_be_auto: bool = False) -> None:
    """Check that ``micro_batch`` is None, a whole number of at least 1, or "auto" where it may be.

    Raises:
        TypeError: If it is none of these.
        ValueError: If it is below 1.
    """
    if micro_batch is None or (micro_batch == "auto" and may_be_auto):
        return
    if isinstance(micro_batch, str):
        other = "'auto', " if may_be_auto else ""
        fix = " 'auto' is for tc.fit and tc.epochs." if micro_batch == "auto" else ""
        raise TypeError(
            f"micro_batch must be {other}None or a whole number, got {micro_batch!r}.{fix}"
        )
    check_whole_number("micro_batch", micro_batch, at_least=1)


def piece_size(n: int, sample_bytes: float, weight_bytes: int, cache: int) -> int | None:
    """Choose the samples in a piece; None where a batch is better left whole.

    A piece takes a quarter of the cache, since the layers' gradients and temporaries need room as
    well; rounded down to a power of two, but at least four samples for every thread. Cutting pays
    where the whole batch is larger than the cache, a piece is not, and a piece is larger than
    the weights, which every piece reads and adds gradients to.

    Args:
        n: Samples in the batch.
        sample_bytes: Bytes that one sample keeps for the backward pass.
        weight_bytes: Bytes of the model's parameters.
        cache: Bytes of the last-level cache.

    Example:
        >>> piece_size(1862, 77_000, 28_000, 32 * 2**20)  # 143 MB; 64 samples are 5 MB
        64
        >>> piece_size(128, 77_000, 28_000, 32 * 2**20) is None  # 10 MB: nothing to gain
        True
    """
    if n * sample_bytes <= cache:
        return None
    fitting = max(1, int(cache / 4 / sample_bytes))
    size = max(1 << (fitting.bit_length() - 1), 4 * torch.get_num_threads())
    return size if size < n and weight_bytes <= size * sample_bytes <= cache else None


def cache_bytes(folder: Path = Path("/sys/devices/system/cpu/cpu0/cache")) -> int:
    """Bytes of the last-level cache as the operating system reports it, else 32 MiB."""
    found = {}
    for index in folder.glob("index*"):
        try:
            level, size = ((index / name).read_text().strip() for name in ("level", "size"))
            found[int(level)] = int(size.removesuffix("K")) * 1024
        except (OSError, ValueError):  # a container may hide them
            continue
    return found[max(found)] if found and max(found) > 1 else 32 * 2**20


_PROBED = 3  # samples: a piece of two and a piece of one


def _is_plain(inputs: Any) -> bool:
    return (
        isinstance(inputs, Tensor)
        and inputs.device.type == "cpu"
        and inputs.ndim > 0
        and not inputs.requires_grad
    )


def _bytes_per_sample(model: nn.Module, forward: Forward, inputs: Tensor) -> float | None:
    """Bytes that one sample keeps; None where two pieces do not give what the whole gives.

    The layers are known to treat every sample by itself; what shows only here is an input whose
    first axis is not that of the samples (one vector for a ``Linear``, one image for a
    convolution).
    """
    kept: dict[int, int] = {}
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}

    def keep(saved: Tensor) -> Tensor:
        storage = saved.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return saved

    def copy(piece: Tensor) -> Tensor:  # the first layer may work in place
        return piece.clone()

    try:
        with torch.no_grad():
            whole, last = model(copy(inputs)), forward(copy(inputs[2:]))
        with (
            torch.enable_grad(),
            torch.autograd.graph.saved_tensors_hooks(keep, lambda saved: saved),
        ):
            first = forward(copy(inputs[:2]))
    except (RuntimeError, ValueError, IndexError):  # the whole batch shall say what is wrong
        return None
    if whole.dtype not in (torch.float32, torch.float64) or len(whole) != len(inputs):
        return None
    parts = torch.cat([first.detach(), last])
    # Far wider than rounding, far narrower than what mixing samples does.
    is_same = parts.shape == whole.shape and torch.allclose(
        parts, whole, rtol=1e-3, atol=1e-5, equal_nan=True
    )
    return sum(kept.values()) / 2 if is_same else None
