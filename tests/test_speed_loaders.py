"""torchcls.speed.loaders: the batches of a plain DataLoader, bit for bit, without its detour."""

import itertools

import numpy as np
import pandas
import pytest
import torch
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    RandomSampler,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
    default_collate,
    random_split,
)

import torchcls as tc
from torchcls.speed.loaders import taken_at_once

IMAGES = torch.arange(50 * 4, dtype=torch.uint8).reshape(50, 2, 2)
TARGETS = torch.arange(50) * 10
DATA = TensorDataset(IMAGES, TARGETS)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


class Backwards:
    """A sampler of the user's own, which counts from behind."""

    def __iter__(self):
        return iter(range(-1, -51, -1))

    def __len__(self):
        return 50


class Picks:
    """A sampler, or a batch sampler, of the user's own that yields what it is given."""

    def __init__(self, make):
        self._make = make

    def __iter__(self):
        return iter(self._make())

    def __len__(self):
        return len(self._make())


class Endless:
    """Indices without an end: asked for by number, and never to be walked through."""

    def __getitem__(self, index):
        return index % 50

    def __len__(self):
        return 6


NUMPY_KINDS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
INDICES = {
    **{f"numpy {kind}": np.array([3, 1, 41], dtype=kind) for kind in NUMPY_KINDS},
    **{f"numpy {kind}s": list(np.array([3, 1, 41], dtype=kind)) for kind in NUMPY_KINDS},
    "big-endian": np.array([3, 1, 41], dtype=">i4"),
    "int64 tensor": torch.tensor([3, 1, 41]),
    "int16 tensor": torch.tensor([3, 1, 41], dtype=torch.int16),
    "uint8 tensor, a mask to torch": torch.tensor([3, 1, 41], dtype=torch.uint8),
    "0-d tensors": list(torch.tensor([3, 1, 41])),
    "a tuple": (3, 1, -2),
    "a range": range(40, 10, -7),
    "a relabelled Series": pandas.Series([3, 1, 41], index=[2, 0, 1]),
    "endless": Endless(),
}
INNER = Subset(DATA, np.arange(49, -1, -1, dtype=np.uint8))
LOADERS = {
    **{
        f"a subset of {name}": lambda indices=indices: DataLoader(Subset(DATA, indices), 2)
        for name, indices in INDICES.items()
    },
    **{
        f"a subset of a subset of {name}": lambda indices=indices: DataLoader(
            Subset(Subset(DATA, indices), np.array([2, 0], dtype=np.uint8)), 2, shuffle=True
        )
        for name, indices in INDICES.items()
    },
    **{
        f"{name} into a subset": lambda indices=indices: DataLoader(Subset(INNER, indices), 2)
        for name, indices in INDICES.items()
    },
    **{
        f"a sampler of {kind}": lambda kind=kind: DataLoader(
            INNER, 2, sampler=Picks(lambda: np.array([3, 1, 41], dtype=kind))
        )
        for kind in NUMPY_KINDS
    },
    **{
        f"batches as {make.__name__} of a {type(data).__name__}": lambda data=data, make=make: (
            DataLoader(data, batch_sampler=Picks(lambda: [make([3, 1]), make([41])]))
        )
        for data, make in itertools.product(
            (DATA, INNER), (set, tuple, iter, dict.fromkeys, np.array, torch.tensor, pandas.Series)
        )
    },
    "booleans": lambda: DataLoader(DATA, batch_sampler=Picks(lambda: [[True, True]])),
    "in order": lambda: DataLoader(DATA, batch_size=16),
    "the last left out": lambda: DataLoader(DATA, batch_size=16, drop_last=True),
    "shuffled": lambda: DataLoader(DATA, batch_size=16, shuffle=True),
    "its own generator": lambda: DataLoader(DATA, 16, shuffle=True, generator=seeded()),
    "weighted": lambda: DataLoader(
        DATA, 16, sampler=WeightedRandomSampler(torch.arange(50.0), 40, generator=seeded())
    ),
    "batch sampler": lambda: DataLoader(
        DATA, batch_sampler=BatchSampler(RandomSampler(DATA), 7, drop_last=False)
    ),
    "from behind": lambda: DataLoader(DATA, 16, sampler=Backwards()),
    "a subset": lambda: DataLoader(Subset(DATA, [3, 1, 41, -2]), batch_size=3),
    "a subset of a subset": lambda: DataLoader(
        Subset(random_split(DATA, [30, 20], generator=seeded())[0], range(5, 25)), 8, shuffle=True
    ),
    "one tensor": lambda: DataLoader(TensorDataset(IMAGES), batch_size=16),
    "three tensors": lambda: DataLoader(TensorDataset(IMAGES, TARGETS, IMAGES.float()), 16),
    "named default": lambda: DataLoader(DATA, 16, collate_fn=default_collate),
}


def passes(loader):
    """Two passes from a known state: the batches, and the random state that they leave behind."""
    torch.manual_seed(3)
    batches = [batch for _ in range(2) for batch in loader]
    return batches, torch.get_rng_state()


@pytest.mark.parametrize("name", LOADERS)
def test_it_gives_the_same_batches_and_moves_the_same_random_state(name):
    expected, left = passes(LOADERS[name]())
    faster = taken_at_once(LOADERS[name]())
    found, left_here = passes(faster)
    assert len(faster) * 2 == len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert type(ours) is type(theirs)
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert one.dtype == other.dtype
            assert torch.equal(one, other)
    assert torch.equal(left_here, left)


def test_it_never_asks_the_dataset_for_a_sample(monkeypatch):
    def refuse(self, index):
        raise AssertionError("one sample at a time")

    monkeypatch.setattr(TensorDataset, "__getitem__", refuse)
    found = tc.evaluate(
        nn.Flatten(),
        DataLoader(TensorDataset(IMAGES.float(), TARGETS), batch_size=16),
        metrics={"mean": lambda outputs, targets: outputs.mean()},
    )
    assert found.n == 50


@pytest.mark.parametrize("empty", [[], (), range(0), np.array([], dtype=np.uint8)])
def test_no_samples_are_no_batch(empty):
    loader = DataLoader(Subset(Subset(DATA, [0, 1]), empty), batch_size=2)
    with pytest.raises(ValueError, match="at least one"):
        tc.evaluate(nn.Flatten(), loader, metrics=[tc.accuracy])


@pytest.mark.parametrize("indices", [[0, 50], [0, -51]])
@pytest.mark.parametrize("data", [DATA, Subset(DATA, range(50))])
def test_an_index_that_is_not_there_shows_where_it_is_asked_for(data, indices):
    batches = iter(taken_at_once(DataLoader(Subset(data, indices), batch_size=1)))
    assert torch.equal(next(batches)[1], TARGETS[:1])
    with pytest.raises(IndexError):
        next(batches)


@pytest.mark.parametrize("data", [DATA, INNER])
def test_a_default_device_is_not_where_indices_go(data):
    expected = [data[3], data[1]]
    with torch.device("meta"):  # its tensors cannot be read, and a DataLoader reads its seed
        rows = taken_at_once(DataLoader(data, batch_size=2)).dataset
        for picks in ([3, 1], np.array([3, 1]), torch.tensor([3, 1], device="cpu"), iter([3, 1])):
            images, targets = rows.__getitems__(picks)
            assert torch.equal(images, torch.stack([image for image, _ in expected]))
            assert torch.equal(targets, torch.stack([target for _, target in expected]))


def test_its_batches_are_copies():
    for images, _ in taken_at_once(LOADERS["in order"]()):
        images.zero_()
    assert IMAGES.sum() > 0


class Doubled(TensorDataset):
    def __getitem__(self, index):
        return tuple(2 * tensor for tensor in super().__getitem__(index))


class OwnLoader(DataLoader):
    pass


LEFT_ALONE = {
    "workers": DataLoader(DATA, batch_size=16, num_workers=2),
    "its own collation": DataLoader(DATA, batch_size=16, collate_fn=lambda items: items),
    "a dataset of one's own": DataLoader(Doubled(IMAGES, TARGETS), batch_size=16),
    "a list": DataLoader([(image, 1) for image in IMAGES], batch_size=16),
    "a loader of one's own": OwnLoader(DATA, batch_size=16),
    "no batches": DataLoader(DATA, batch_size=None),
    "gradients": DataLoader(TensorDataset(torch.ones(5, requires_grad=True)), batch_size=2),
    "sparse": DataLoader(TensorDataset(torch.eye(5).to_sparse()), batch_size=2),
    "a list of batches": [(IMAGES, TARGETS)],
    "Batches": tc.Batches(IMAGES, TARGETS, batch_size=2),
}


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_it_leaves_alone(name):
    assert taken_at_once(LEFT_ALONE[name]) is LEFT_ALONE[name]
