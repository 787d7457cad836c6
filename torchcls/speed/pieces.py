"""How a batch is cut where nobody says it: where it pays and is safe.

On a CPU a large batch is slow because its activations do not fit into the cache: every layer reads
and writes all of them in main memory. ``micro_batch="auto"`` cuts it into pieces whose activations
stay in the cache. The step is the same to rounding, since the pieces are weighted exactly.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from torchcls.averaging import Averaging
from torchcls.batches import Pair, device_of, split
from torchcls.speed.layers import layers_of, parameter_bytes, through
from torchcls.step import Forward, ForwardOf, Pieces


class AutoPieces(Pieces):
    """Cuts where the model's layers allow it and the cache gains by it.

    What it needs, all of it: a CPU; a ``Sequential`` of layers that treat every sample by itself
    (``layers``), with no hook of anyone's; inputs and outputs that are one tensor each; a loss that
    torchcls knows; a batch whose activations are larger than the cache. The size follows from the
    bytes that one sample keeps for the backward pass, found on three samples of the first large
    batch, and from the size of the cache, never from timing, so that two runs on one machine cut
    alike.

    A batch of one piece goes through the model itself, so it has the bits of the plain loop.

    Attributes:
        size: Samples in a piece; None as long as no batch was cut.
    """

    def __init__(self, model: nn.Module, *, forward: ForwardOf = None) -> None:
        super().__init__(model, forward=forward)
        self._averaging: Averaging | None = None
        self._forward: Forward | None = None
        self._sample: _Sample | None = None
        self._seen: list[tuple[type[nn.Module], list[bool]]] = []
        self._is_probed = False
        self._whole_up_to = 0.0  # samples of a batch that is not cut
        self._found_size = 0
        self._plan: tuple[int, float] | None = None  # of the run that is resumed

    def state_dict(self) -> dict[str, Any]:
        """How batches are cut from here on: found once, and kept on another machine as well."""
        plan = (self._found_size, self._whole_up_to) if self._is_probed else self._plan
        return {"size": self.size, "plan": plan}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Cut as before."""
        self.size, self._plan = state["size"], state["plan"]
        self._seen = []  # so that the next pass looks at the layers anew, and then takes the plan

    def renew(self, averaging: Averaging | None = None) -> None:
        """Trust the layers as they stand now, or none."""
        self._averaging = averaging
        may_be_cut = self.is_plain and device_of(self._model).type == "cpu"
        layers = layers_of(self._model) if may_be_cut else None
        self._forward = through(layers) if layers else None
        found = [(type(layer), _trained(layer)) for layer in layers or ()]
        if found != self._seen:  # other layers, or unfrozen ones, keep other bytes
            self._seen, self._is_probed = found, False
            self._whole_up_to = float(_least_samples())

    def cut(self, batch: Pair) -> tuple[Forward, list[Pair]]:
        """Cut a batch that is larger than the cache, or leave it whole, with the model itself."""
        if self._forward is None or not self._is_large(batch[0]) or not self._may_cut(batch):
            return self._call, [batch]
        self.size = self._found_size
        return self._forward, split(batch, self.size)

    def outputs(self, inputs: Any) -> Any:
        """The outputs of a whole batch, without gradients: those of its pieces put together."""
        if self._forward is None or not self._is_large(inputs):
            return self._call(inputs)
        self.size = self._found_size
        # In the layout that the model itself gives: metrics and losses may ask for a view.
        return torch.cat([self._forward(piece) for piece in split(inputs, self.size)]).contiguous()

    def _is_large(self, inputs: Any) -> bool:
        if not isinstance(inputs, Tensor) or not inputs.ndim or len(inputs) <= self._whole_up_to:
            return False
        if inputs.device.type != "cpu" or inputs.requires_grad:
            return False
        if not self._is_probed:
            self._probe(inputs)
        return len(inputs) > self._whole_up_to

    def _may_cut(self, batch: tuple[Tensor, Any]) -> bool:
        averaging, (inputs, targets) = self._averaging, batch
        if averaging is None or averaging.name is None or self._sample is None:
            return False
        if not isinstance(targets, Tensor) or targets.shape[:1] != inputs.shape[:1]:
            return False  # whole, the loss says what is wrong with it
        if averaging.is_elementwise and targets.shape[1:] != self._sample.shape:
            return False  # torch broadcasts them, samples with samples
        return averaging.may_be_cut(targets)

    def _probe(self, inputs: Tensor) -> None:
        """Find, once, what a sample keeps, and from it which batches are cut into what."""
        assert self._forward is not None
        self._is_probed, self._whole_up_to = True, float("inf")
        self._sample = _sample_of(self._model, self._forward, inputs[:3])
        plan, self._plan = self._plan, None
        if plan is not None:
            self._found_size, self._whole_up_to = plan
        elif self._sample is not None:
            cache = cache_bytes()
            size = piece_size(self._sample.bytes, parameter_bytes(self._model), cache)
            if size is not None:
                self._found_size, self._whole_up_to = size, cache / self._sample.bytes


def piece_size(sample_bytes: float, weight_bytes: int, cache: int) -> int | None:
    """Choose the samples in a piece of a batch that is larger than the cache; None for no cut.

    A piece takes a quarter of the cache, since the layers' gradients and temporaries need room as
    well; rounded down to a power of two, but at least four samples for every thread. It must be
    smaller than the cache and larger than the weights, which every piece reads and adds gradients
    to.

    Args:
        sample_bytes: Bytes that one sample keeps for the backward pass.
        weight_bytes: Bytes of the model's parameters.
        cache: Bytes of the last-level cache.

    Examples:
        >>> piece_size(77_000, 28_000, 32 * 2**20)  # 64 samples keep 5 MB
        64
    """
    fitting = max(1, int(cache / 4 / sample_bytes))
    size = max(1 << (fitting.bit_length() - 1), _least_samples())
    return size if weight_bytes <= size * sample_bytes <= cache else None


def _least_samples() -> int:
    return 4 * torch.get_num_threads()


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


def _trained(layer: nn.Module) -> list[bool]:
    return [parameter.requires_grad for parameter in layer.parameters()]


@dataclass(frozen=True)
class _Sample:
    """One sample: the bytes that it keeps for the backward pass, the shape of its output."""

    bytes: float
    shape: torch.Size


def _sample_of(model: nn.Module, forward: Forward, inputs: Tensor) -> _Sample | None:
    """Send a piece of two samples and a piece of one through; None where they must not be cut.

    The layers are known to treat every sample by itself; what shows only here is an input whose
    first axis is not that of the samples (one vector for a ``Linear``, one image for a
    convolution): then the pieces do not give what the three give together.
    """
    kept: dict[int, int] = {}
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}

    def keep(saved: Tensor) -> int:
        storage = saved.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        # Nothing goes backward here. A ReLU saves its own output: packed as itself it would hold
        # the graph that holds it, which nothing ever collects.
        return storage.data_ptr()

    keeping = torch.autograd.graph.saved_tensors_hooks(keep, lambda place: place)
    try:
        with torch.no_grad():
            whole, last = model(inputs.clone()), forward(inputs[2:].clone())
        with torch.enable_grad(), keeping:
            pair = inputs[:2].clone()
            # A frozen layer keeps what it would above one that is trained.
            first = forward(pair.requires_grad_() if pair.is_floating_point() else pair)
    except (RuntimeError, ValueError, IndexError):  # the whole batch shall say what is wrong
        return None
    if whole.dtype not in (torch.float32, torch.float64) or len(whole) != len(inputs) or not kept:
        return None
    parts = torch.cat([first.detach(), last])
    # Far wider than rounding, far narrower than what mixing samples does; a NaN shows nothing.
    if parts.shape != whole.shape or not torch.allclose(parts, whole, rtol=1e-3, atol=1e-5):
        return None
    return _Sample(sum(kept.values()) / 2, whole.shape[1:])
