"""Batches of tensors, kept on an accelerator while a run goes over them."""

import copy
from typing import Any

import torch
from torch import Tensor

from torchcls.data.batches import Batches


class Nearby:
    """Keeps the tensors of a ``Batches`` on CUDA, where they fit into half of what is free there.

    They are moved once, and again where somebody changed them: put another tensor in their place,
    or wrote into them through torch. With a transform they stay where they are: what it draws and
    looks up may lie there too.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        # From (source, name) to the tensor, its version, and its copy.
        self._kept: dict[tuple[int, str], tuple[Tensor, int, Tensor]] = {}

    def copy(self, source: Any) -> Any:
        """The same batches of tensors on the device; anything else as it is."""
        if self._device.type != "cuda" or type(source) is not Batches or source.transform:
            return source
        tensors = {"inputs": source.inputs, "targets": source.targets}
        if any(tensor.is_inference() for tensor in tensors.values()):  # these have no version
            return source
        missing = [name for name in tensors if not self._is_kept(source, name)]
        for name in missing:
            self._kept.pop((id(source), name), None)  # room for what takes its place
        size = sum(tensors[name].nbytes for name in missing if not tensors[name].is_cuda)
        if size > torch.cuda.mem_get_info(self._device)[0] // 2:
            return source
        for name in missing:
            tensor = tensors[name]
            kept = tensor, tensor._version, tensor.to(self._device)
            self._kept[id(source), name] = kept
        near = copy.copy(source)
        near.inputs, near.targets = (self._kept[id(source), name][2] for name in tensors)
        return near

    def _is_kept(self, source: Batches, name: str) -> bool:
        tensor = getattr(source, name)
        kept = self._kept.get((id(source), name))
        return kept is not None and kept[0] is tensor and kept[1] == tensor._version
