"""On an accelerator: the same numbers, nothing that waits inside an epoch, half precision."""

import copy
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence
from torch.utils.data import DataLoader, TensorDataset

import torchcls as tc
from torchcls.batches import to_device
from torchcls.data.nearby import Nearby

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]
CUDA = torch.device("cuda")


@pytest.fixture(autouse=True)
def _ieee_float32():
    """Convolutions in float32 as the CPU computes them; torch's default on CUDA is TF32."""
    flags = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)  # by default it is off
    matmul = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    with flags:
        yield
    torch.backends.cuda.matmul.allow_tf32 = matmul


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(1352, 3)
    )


def digits(n=300):
    return tc.drawn_digits(n, classes=(0, 1, 2))


def fit(model, train, **keywords):
    keywords = {"loss_fn": nn.CrossEntropyLoss(), "epochs": 2, "metrics": [tc.accuracy]} | keywords
    return tc.fit(model, train, train, progress=False, **keywords)


@pytest.mark.parametrize("micro_batch", ["auto", None, 24])
def test_it_takes_the_steps_of_the_cpu(micro_batch):
    loss_fn = nn.CrossEntropyLoss(torch.tensor([1.0, 2.0, 3.0]), label_smoothing=0.1)
    batches = tc.Batches(*digits(), batch_size=64, shuffle=True)
    here, there = network(), network()
    on_cpu = fit(here, batches, loss_fn=copy.deepcopy(loss_fn), device="cpu")
    batches.epoch = 0
    on_cuda = fit(there, batches, loss_fn=loss_fn, device="cuda", micro_batch=micro_batch)
    assert on_cuda.micro_batch == (24 if micro_batch == 24 else None)
    for ours, theirs in zip(on_cuda, on_cpu, strict=True):
        # Adam's first steps are signs of gradients: where one is nearly 0 devices may differ.
        assert ours.valid_loss == pytest.approx(theirs.valid_loss, rel=1e-3)
        assert ours.accuracy == pytest.approx(theirs.accuracy, abs=0.01)


class Watched:
    """Batches during which torch raises at anything that waits for the device."""

    def __init__(self, batches):
        self._batches = batches

    def __len__(self):
        return len(self._batches)

    def __iter__(self):
        before = torch.cuda.get_sync_debug_mode()
        try:
            for i, batch in enumerate(self._batches):
                if i == 1:  # the first step makes the optimizer's state and picks algorithms
                    torch.cuda.set_sync_debug_mode("error")
                yield batch
        finally:
            torch.cuda.set_sync_debug_mode(before)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("micro_batch", [None, 24])
def test_nothing_waits_inside_an_epoch(precision, micro_batch):
    batches = Watched(tc.Batches(*digits(), batch_size=64))
    loss_fn = nn.CrossEntropyLoss(torch.tensor([1.0, 2.0, 3.0]))
    history = fit(network(), batches, loss_fn=loss_fn, precision=precision, micro_batch=micro_batch)
    assert history[-1].train_loss < history[0].train_loss


@pytest.mark.parametrize("micro_batch", [None, 24])
def test_a_plain_number_beside_the_numerator_does_not_wait(micro_batch):
    def per_sample(outputs, targets):
        return nn.functional.cross_entropy(outputs, targets, reduction="sum"), len(targets)

    batches = Watched(tc.Batches(*digits(), batch_size=64))
    history = fit(network(), batches, loss_fn=per_sample, micro_batch=micro_batch)
    assert history[-1].train_loss < history[0].train_loss


def test_the_watcher_raises_at_a_wait():
    """So the test above can fail."""

    def waiting(outputs, targets):
        return nn.functional.cross_entropy(outputs, targets) * (outputs.sum().item() ** 0)

    with pytest.raises(RuntimeError, match="synchronizing"):
        fit(network(), Watched(tc.Batches(*digits(), batch_size=64)), loss_fn=waiting)


def test_a_batch_goes_through_pinned_memory():
    moved = to_device({"x": torch.arange(5), "name": "a"}, CUDA)
    assert moved["x"].device.type == "cuda"
    assert moved["x"].tolist() == [0, 1, 2, 3, 4]


def test_an_expanded_tensor_is_moved_without_pinning():
    moved = to_device(torch.arange(3).expand(4, 3), CUDA)
    assert moved.tolist() == [[0, 1, 2]] * 4


def test_batches_are_kept_on_the_device_and_their_epoch_moves_on():
    batches = tc.Batches(*digits(), batch_size=64, shuffle=True)
    copied = Nearby(CUDA).copy(batches)
    assert copied.inputs.is_cuda
    assert torch.equal(
        torch.cat([targets for _, targets in copied]).cpu(),
        torch.cat([targets for _, targets in batches]),
    )
    fit(network(), batches)
    assert batches.epoch == 2
    assert not batches.inputs.is_cuda
    scaled = tc.Batches(*digits(), batch_size=64, transform=lambda x, y: (x / 2, y))
    assert Nearby(CUDA).copy(scaled) is scaled


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_learns_and_its_averages_are_exact(precision):
    frozen = {"epochs": 1, "lr": 1e-12, "precision": precision}
    loader = DataLoader(TensorDataset(*digits()), batch_size=64, pin_memory=True)
    whole = fit(network(), loader, micro_batch=None, **frozen)
    cut = fit(network(), loader, micro_batch=24, **frozen)
    # Other batch sizes may choose other kernels: a rounding of bfloat16 in an output.
    assert cut[0].train_loss == pytest.approx(whole[0].train_loss, rel=1e-3)
    learnt = fit(network(), loader, precision=precision, epochs=3)
    assert learnt[-1].valid_loss < whole[0].valid_loss


def test_a_compiled_model_trains():
    model = network()
    model.compile()
    history = fit(model, tc.Batches(*digits(), batch_size=64))
    assert history[-1].train_loss < history[0].train_loss


def test_weights_inside_a_partial_follow_the_model():
    loss_fn = partial(tc.cross_entropy, weight=torch.tensor([1.0, 2.0, 3.0]))
    batches = tc.Batches(*digits(), batch_size=64)
    model = network().to(CUDA)
    found = tc.evaluate(model, batches, loss_fn=loss_fn)
    on_cpu = tc.evaluate(network(), batches, loss_fn=loss_fn)
    # Two devices add float32 up in different orders; assert_close wants 1e-7 of Python's floats.
    assert found.loss == pytest.approx(on_cpu.loss, rel=1e-5)


def test_a_packed_sequence_moves_itself():
    packed = pack_sequence([torch.zeros(2, 3), torch.zeros(4, 3)], enforce_sorted=False)
    moved = to_device(packed, CUDA)
    assert moved.data.is_cuda
    assert not moved.batch_sizes.is_cuda
    nn.GRU(3, 2, device=CUDA)(moved)


@pytest.mark.parametrize("precision", ["float32", "float16"])
@pytest.mark.parametrize("at", [3, 8])
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(tmp_path, precision, at):
    class Stop:
        left = None

        def __call__(self, outputs, targets):
            if self.left is not None:
                self.left -= 1
                if self.left == 0:
                    raise KeyboardInterrupt
            return nn.functional.cross_entropy(outputs, targets)

    def begin(left=None, **keywords):
        model = network().append(nn.Dropout(0.5))  # draws on the accelerator
        loss_fn = Stop()
        loss_fn.left = left
        batches = tc.Batches(*digits(), batch_size=64, shuffle=True)
        keywords = {"loss_fn": loss_fn, "epochs": 2, "schedule": tc.one_cycle()} | keywords
        run = tc.epochs(
            model, batches, device="cuda", precision=precision, progress=False, **keywords
        )
        return run, model

    deterministic = torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)
    with deterministic:
        whole, expected = begin()
        list(whole)
        stopped, _ = begin(at, checkpoint=tmp_path)
        with pytest.raises(KeyboardInterrupt):
            list(stopped)
        torch.rand(3, device="cuda")
        again, model = begin(checkpoint=tmp_path, resume=True)
        list(again)
    assert [r.train_loss for r in again.history] == [r.train_loss for r in whole.history]
    for name, value in model.state_dict().items():
        assert torch.equal(value, expected.state_dict()[name]), name
