"""torchcls.device: an explicit choice wins, then the accelerator, then the CPU."""

import pytest
import torch
from torch import nn, tensor
from torch.nn.utils.rnn import pack_sequence

import torchcls as tc
from torchcls.batches import device_of, to_device

CPU = torch.device("cpu")


@pytest.fixture
def two_gpus(monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda *_: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    return monkeypatch


def test_an_explicit_choice_wins(two_gpus):
    two_gpus.setenv("LOCAL_RANK", "1")
    assert tc.select_device("cpu") == CPU
    assert tc.select_device(torch.device("cuda", 0)) == torch.device("cuda:0")


def test_the_accelerator_is_preferred(two_gpus):
    assert tc.select_device() == torch.device("cuda")


def test_local_rank_chooses_among_accelerators(two_gpus):
    two_gpus.setenv("LOCAL_RANK", "1")
    assert tc.select_device() == torch.device("cuda:1")
    two_gpus.setenv("LOCAL_RANK", "2")
    with pytest.raises(ValueError, match=r"\(cpu, cuda:0, cuda:1\), got 'cuda:2'"):
        tc.select_device()


def test_without_an_accelerator_it_is_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert tc.select_device() == CPU


@pytest.mark.parametrize("name", ["gpu", "cuda", "cpu:1", "cuda:-1", "meta"])
def test_what_is_not_there_lists_what_is(name, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    with pytest.raises(ValueError, match=rf"one that is there \(cpu\), got '{name}'"):
        tc.select_device(name)


def test_the_device_of_a_model_is_that_of_its_tensors():
    assert device_of(nn.Linear(2, 2, device="meta")).type == "meta"
    assert device_of(nn.BatchNorm1d(2, affine=False, device="meta")).type == "meta"
    assert device_of(nn.ReLU()) == CPU


def test_a_batch_that_is_there_is_not_copied():
    batch = {"x": torch.zeros(2), "names": ["a"]}
    assert to_device(batch, CPU) is batch
    assert batch["names"] == ["a"]


def test_a_dict_of_ones_own_class_arrives_as_one():
    class Box(dict):
        pass

    seen = []

    class Model(nn.Linear):
        def forward(self, inputs):
            seen.append(inputs)
            return super().forward(inputs["x"])

    box = Box(x=torch.zeros(4, 2))
    tc.evaluate(Model(2, 3), [(box, tensor([0, 1, 2, 0]))], metrics=[tc.accuracy])
    assert all(type(inputs) is Box for inputs in seen)
    assert type(to_device(box, torch.device("meta"))) is Box


def test_a_packed_sequence_moves_itself():
    packed = pack_sequence([torch.zeros(2, 3), torch.zeros(4, 3)], enforce_sorted=False)
    assert to_device((packed, 1), CPU)[0] is packed
    moved, targets = to_device((packed, tensor([0, 1])), torch.device("meta"))
    assert type(moved) is type(packed)
    for part in (moved.data, moved.sorted_indices, moved.unsorted_indices, targets):
        assert part.device.type == "meta"
    assert moved.batch_sizes is packed.batch_sizes  # torch wants these on the CPU


@pytest.mark.gpu
@pytest.mark.skipif(not torch.accelerator.is_available(), reason="needs an accelerator")
def test_an_optimizer_built_before_the_move_still_works():
    model, batch = nn.Linear(2, 3), (torch.randn(4, 2), tensor([0, 1, 2, 0]))
    optimizer = torch.optim.AdamW(model.parameters())
    tc.train_one_epoch(model, [batch], tc.cross_entropy, optimizer)
    before = model.weight.detach().clone()
    tc.train_one_epoch(model, [batch], tc.cross_entropy, optimizer, device=tc.select_device())
    assert model.weight.device.type == tc.select_device().type
    assert not torch.equal(model.weight.detach().cpu(), before)
