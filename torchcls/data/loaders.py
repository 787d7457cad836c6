"""A plain DataLoader over tensors, without its detour over single samples."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset, default_collate


def taken_at_once(batches: Any) -> Any:
    """Give a loader that yields the same batches and takes each from its tensors in one go.

    A DataLoader picks samples one by one and stacks them. Where its dataset holds whole tensors
    (``TensorDataset``, also behind ``Subset``), the samplers, the generators and the order of
    everything random stay as they are, and a batch is one ``index_select`` for each tensor.

    Args:
        batches: Any source of batches. Anything but a DataLoader over tensors with the default
            collation and no workers is returned as it is.
    """
    if type(batches) is not DataLoader:
        return batches
    if (
        batches.num_workers > 0
        or batches.batch_sampler is None
        or batches.collate_fn is not default_collate
        or batches.pin_memory_device  # deprecated, and nobody can say what it will mean
    ):
        return batches
    rows, dataset = None, batches.dataset
    while type(dataset) is Subset:
        inner = torch.as_tensor(dataset.indices)
        rows = inner if rows is None else inner[rows]
        dataset = dataset.dataset
    if type(dataset) is not TensorDataset or not all(map(_has_rows, dataset.tensors)):
        return batches
    return DataLoader(
        _Rows(dataset.tensors, rows),
        batch_sampler=batches.batch_sampler,
        collate_fn=_as_it_is,
        generator=batches.generator,
        pin_memory=batches.pin_memory,
    )


def _has_rows(tensor: Tensor) -> bool:
    return type(tensor) is Tensor and tensor.layout == torch.strided and not tensor.requires_grad


class _Rows(Dataset[Any]):
    """Rows of tensors, as many at once as are asked for."""

    def __init__(self, tensors: tuple[Tensor, ...], rows: Tensor | None) -> None:
        self._tensors = tensors
        self._rows = rows

    def __getitems__(self, indices: list[int]) -> list[Tensor]:
        picked = torch.as_tensor(indices)
        if self._rows is not None:
            picked = self._rows[picked]
        picked = torch.where(picked < 0, picked + len(self._tensors[0]), picked)  # -1: the last
        return [tensor.index_select(0, picked.to(tensor.device)) for tensor in self._tensors]


def _as_it_is(batch: Any) -> Any:
    return batch
