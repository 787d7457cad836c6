"""A checksum that tells batches apart."""

import dataclasses
from collections import UserDict

import numpy as np
import pytest
import torch

from torchcls import checksum as room
from torchcls.checksum import checksum

BATCH = (torch.arange(12.0).reshape(3, 4), torch.tensor([0, 1, 2]))
OTHERS = [
    (BATCH[0].flip(0), BATCH[1]),
    (BATCH[0].flip(1), BATCH[1]),
    (BATCH[0].reshape(4, 3), BATCH[1]),
    (BATCH[0].double(), BATCH[1]),
    (BATCH[0], BATCH[1].flip(0)),
    (BATCH[0] + torch.tensor(1e-6), BATCH[1]),
    (BATCH[0], BATCH[1], None),
    (BATCH[0].numpy(), BATCH[1].numpy() + 1),
    {"inputs": BATCH[0], "targets": BATCH[1]},
    (BATCH[0], "abc"),
    (BATCH[0], b"abc"),
    (BATCH[0], 3),
    (BATCH[0], 3.5),
    (BATCH[0], object()),
    (BATCH[0].to("meta"), BATCH[1]),  # as on an accelerator: its shape counts, and no value
    (torch.complex(BATCH[0], BATCH[0]).conj(), BATCH[1]),
    (torch.complex(BATCH[0], BATCH[0]), BATCH[1]),
    (BATCH[0] > 3, BATCH[1]),
    (BATCH[0].bfloat16(), BATCH[1]),
    (np.array(["a", "b"]), BATCH[1]),
]


def test_the_same_batch_has_the_same_checksum_in_any_layout_and_another_has_another():
    assert checksum(BATCH) == checksum((BATCH[0].t().contiguous().t(), BATCH[1].clone()))
    assert checksum(BATCH[0].to_sparse()) == checksum(BATCH[0].to("meta"))
    assert len({checksum(other) for other in [BATCH, *OTHERS]}) == len(OTHERS) + 1


def test_it_goes_on_from_a_checksum():
    assert checksum(BATCH, checksum(BATCH)) not in (checksum(BATCH), 0)


@pytest.mark.parametrize("row", [0, 63, 127])
def test_of_a_large_batch_every_sample_is_looked_at(row):
    images = torch.rand(128, 3, 64, 64)  # 6 MB
    before = checksum(images)
    images[row] = images[row].flip(2)
    assert checksum(images) != before


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_of_a_large_batch_a_part_is_read(monkeypatch, kind):
    read = []
    real = room.zlib.crc32

    def watched(content, start=0):
        read.append(memoryview(content).nbytes)
        return real(content, start)

    monkeypatch.setattr(room.zlib, "crc32", watched)
    checksum(torch.zeros(128, 3, 64, 64, dtype=kind))
    assert room.MOST_BYTES / 2 < max(read) <= room.MOST_BYTES


@dataclasses.dataclass
class Pair:
    inputs: object
    targets: object


class Encoding(UserDict):
    """A mapping that is no dict."""


class Graph:
    def __init__(self, x):
        self.x, self.me = x, self  # a circle


@pytest.mark.parametrize(
    "made", [Encoding, lambda d: Pair(**d), lambda d: Graph(d["inputs"]), lambda d: [d, {"x": d}]]
)
def test_what_is_inside_of_objects_counts(made):
    first = made({"inputs": BATCH[0], "targets": BATCH[1]})
    same = made({"inputs": BATCH[0].clone(), "targets": BATCH[1].clone()})
    other = made({"inputs": BATCH[0] + 1, "targets": BATCH[1]})
    assert checksum(first) == checksum(same) != checksum(other)


def test_arrays_of_every_kind_are_taken():
    swapped = np.arange(5, dtype=">f4")
    read_only = np.arange(5)
    read_only.flags.writeable = False
    kinds = [swapped, read_only, np.array([object()]), np.array(3), np.longdouble([1, 2])]
    assert len({checksum(kind) for kind in kinds}) == len(kinds)
    assert checksum(swapped) != checksum(swapped[::-1])
    nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged)
    assert checksum(nested) == checksum(nested)
