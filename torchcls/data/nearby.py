"""Batches of tensors, kept on an accelerator while a run goes over them."""

import copy
from typing import Any

import torch
from torch import Tensor

from torchcls.data.batches import Batches


class Nearby:
    """Keeps the tensors of a ``Batches`` on CUDA, where they fit into half of what is free there.

    They are moved once, and again where somebody changed them. With a transform they stay where
    they are: what it draws and looks up may lie there too.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._kept: dict[int, tuple[Tensor, int, Tensor]] = {}  # origin, its version, moved

    def copy(self, source: Any) -> Any:
        """The same batches of tensors on the device; anything else as it is."""
        if self._device.type != "cuda" or not isinstance(source, Batches) or source.transform:
            return source
        tensors = (source.inputs, source.targets)
        size = sum(tensor.nbytes for tensor in tensors if not self._is_kept(tensor))
        if size > torch.cuda.mem_get_info(self._device)[0] // 2:
            return source
        near = copy.copy(source)
        near.inputs, near.targets = map(self._moved, tensors)
        return near

    def _is_kept(self, tensor: Tensor) -> bool:
        origin, version, _ = self._kept.get(id(tensor), (None, 0, tensor))
        return tensor.device == self._device or (origin is tensor and version == tensor._version)

    def _moved(self, tensor: Tensor) -> Tensor:
        if not self._is_kept(tensor):
            self._kept[id(tensor)] = tensor, tensor._version, tensor.to(self._device)
        return self._kept[id(tensor)][2] if id(tensor) in self._kept else tensor
