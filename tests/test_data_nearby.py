"""torchcls.data.nearby: moved once, again where changed, never where it would not fit."""

import pytest
import torch

from torchcls.data import Batches
from torchcls.data.nearby import Nearby


def data(n=37):
    """24 bytes for each sample."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, 4, generator=generator), torch.arange(n)


@pytest.fixture
def as_if_on_cuda(monkeypatch):
    """Data is moved as to a CUDA device with this many bytes free, but lies on the CPU."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10_000, 20_000))
    nearby = Nearby(torch.device("cuda", 0))
    moves, real_to = [], torch.Tensor.to

    def to(self, *args, **keywords):
        if args == (torch.device("cuda", 0),):
            moves.append(self)
            return self.clone()
        return real_to(self, *args, **keywords)

    monkeypatch.setattr(torch.Tensor, "to", to)
    return nearby, moves


def test_data_is_moved_once_and_again_where_somebody_changed_it(as_if_on_cuda):
    nearby, moves = as_if_on_cuda
    batches = Batches(*data(), batch_size=16, shuffle=True, seed=4)
    for epoch in range(2):
        batches.epoch = epoch
        near = nearby.copy(batches)
        assert near is not batches
        for ours, theirs in zip(near, batches, strict=True):
            assert all(map(torch.equal, ours, theirs))
        assert batches.epoch == epoch + 1
    assert len(moves) == 2
    batches.batch_size, batches.targets = 5, batches.targets + 1
    batches.inputs[0] = 7
    for ours, theirs in zip(nearby.copy(batches), batches, strict=True):
        assert all(map(torch.equal, ours, theirs))
    assert len(moves) == 4


def test_a_pass_over_the_moved_data_is_a_pass_of_the_data(as_if_on_cuda):
    nearby, _ = as_if_on_cuda
    batches = Batches(*data(), batch_size=16, shuffle=True)
    batches.load_state_dict({"epoch": 1, "batch": 1})
    assert len(list(nearby.copy(batches))) == 2
    assert batches.state_dict() == {"epoch": 2, "batch": 0}


def test_data_stays_where_it_is_with_a_transform_or_where_it_would_not_fit(as_if_on_cuda):
    nearby, moves = as_if_on_cuda
    batches = Batches(*data(250), batch_size=16)  # 16 + 8 bytes each: above half of 10,000
    assert nearby.copy(batches) is batches
    batches = Batches(*data(), batch_size=16, transform=lambda x, y: (x, y))
    assert nearby.copy(batches) is batches
    assert nearby.copy([data()])[0]
    assert not moves
    on_cpu = Nearby(torch.device("cpu"))
    assert on_cpu.copy(batches) is batches


def test_a_copy_of_what_was_replaced_is_let_go(as_if_on_cuda):
    nearby, _ = as_if_on_cuda
    batches = Batches(*data(), batch_size=16)
    for _ in range(4):
        batches.inputs = batches.inputs.clone()
        nearby.copy(batches)
    assert len(nearby._kept) == 2


def test_tensors_without_a_version_stay_where_they_are(as_if_on_cuda):
    nearby, moves = as_if_on_cuda
    with torch.inference_mode():
        batches = Batches(torch.zeros(4, 2), torch.zeros(4), batch_size=2)
    assert nearby.copy(batches) is batches
    assert not moves
