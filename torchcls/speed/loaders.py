"""A plain DataLoader over tensors, without its detour over single samples."""

from typing import Any

import numpy as np
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
    subsets, dataset = [], batches.dataset
    while type(dataset) is Subset:
        rows = _row_numbers(dataset.indices)
        if rows is None:
            return batches
        subsets.append(rows)
        dataset = dataset.dataset
    if type(dataset) is not TensorDataset or not all(map(_has_rows, dataset.tensors)):
        return batches
    return DataLoader(
        _Rows(batches.dataset, subsets, dataset.tensors),
        batch_sampler=batches.batch_sampler,
        collate_fn=_as_it_is,
        generator=batches.generator,
        pin_memory=batches.pin_memory,
    )


def _has_rows(tensor: Tensor) -> bool:
    return type(tensor) is Tensor and tensor.layout == torch.strided and not tensor.requires_grad


def _row_numbers(indices: Any) -> Tensor | None:
    """Indices as int64 on the CPU; None where only the DataLoader knows what they mean.

    So for iterators, which are not used up here, for what finds its items by label, as a Series
    does, and for booleans and uint8 tensors, which torch takes as masks.
    """
    kind = type(indices)
    if kind is Tensor:
        is_plain = indices.ndim == 1 and indices.dtype in (torch.int64, torch.int32)
        return indices.to("cpu", torch.int64) if is_plain else None
    if kind in (list, tuple):
        kinds = set(map(type, indices))
        if not all(issubclass(kind, (int, np.integer)) and kind is not bool for kind in kinds):
            return None
    elif kind not in (range, np.ndarray):
        return None
    numbers = np.asarray(indices)
    if numbers.ndim != 1 or numbers.dtype.kind not in "iu":  # no indices at all are float64
        return None
    return torch.from_numpy(numbers.astype(np.int64))


class _Rows(Dataset[Any]):
    """Rows of tensors, as many at once as are asked for."""

    def __init__(self, dataset: Any, subsets: list[Tensor], tensors: tuple[Tensor, ...]) -> None:
        self._dataset = dataset
        self._subsets = subsets  # rows of what the next one chooses, the last of the tensors
        self._tensors = tensors

    def __getitems__(self, indices: Any) -> Any:
        picked = _row_numbers(indices)
        if picked is None:  # as the DataLoader itself would do
            if type(self._dataset) is Subset:
                return default_collate(self._dataset.__getitems__(indices))
            return default_collate([self._dataset[i] for i in indices])
        for rows in self._subsets:
            picked = rows[picked]
        picked = torch.where(picked < 0, picked + len(self._tensors[0]), picked)  # -1: the last
        return [
            tensor.index_select(0, picked.to(tensor.device, non_blocking=True))
            for tensor in self._tensors
        ]


def _as_it_is(batch: Any) -> Any:
    return batch
