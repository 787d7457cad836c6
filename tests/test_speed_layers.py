"""torchcls.layers: what is trusted to treat samples alone, and the faster way through it."""

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from torchcls.speed.layers import layers_of, through


def lenet(**conv):
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, **conv),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Sequential(nn.Conv2d(4, 6, 3), nn.ReLU(inplace=True), nn.MaxPool2d(2, padding=1)),
        nn.Flatten(),
        nn.Linear(6 * 4 * 4, 3),
    )


# --- what is trusted ---------------------------------------------------------------------------


def with_hook(register, *, on=nn.Linear):
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    part = next(module for module in model.modules() if type(module) is on)
    register(part)
    return model


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def replaced_forward(module):
    module.forward = lambda x: x - x.mean(0)


TRUSTED = {
    "a layer": nn.Linear(2, 3),
    "a stack": lenet(),
    "nested": nn.Sequential(nn.Sequential(), nn.Sequential(nn.Sequential(nn.Linear(2, 3)))),
    "dropout that is off": nn.Sequential(nn.Dropout(0.0), nn.Dropout(0.5).eval()),
    "frozen batch statistics": nn.BatchNorm2d(3).eval(),
    "softmax over classes": nn.Softmax(dim=1),
    "embedding": nn.Embedding(5, 2),
}
NOT_TRUSTED = {
    "batch statistics": nn.BatchNorm2d(3),
    "batch statistics in evaluation, too": nn.BatchNorm1d(3, track_running_stats=False).eval(),
    "dropout": nn.Dropout(0.5),
    "softmax over samples": nn.Softmax(dim=0),
    "softmax over who knows": nn.Softmax(),
    "softmax over samples, from behind": nn.Softmax(dim=-2),
    "writing into the data": nn.Sequential(nn.Flatten(), nn.ReLU(inplace=True), nn.Linear(4, 2)),
    "a sparse weight": with_hook(
        lambda m: setattr(m, "weight", nn.Parameter(m.weight.detach().to_sparse()))
    ),
    "flattened samples": nn.Flatten(0),
    "indices": nn.MaxPool2d(2, return_indices=True),
    "counted words": nn.Embedding(5, 2, scale_grad_by_freq=True),
    "renormed words": nn.Embedding(5, 2, max_norm=1.0),
    "sparse words": nn.Embedding(5, 2, sparse=True),
    "a subclass": nn.Sequential(Doubled(2, 3)),
    "a module of one's own": nn.Sequential(type("Own", (nn.Module,), {})()),
    "a subclass of Sequential": type("Net", (nn.Sequential,), {})(nn.Linear(2, 3)),
    "a forward of its own": with_hook(replaced_forward),
    "forward hook": with_hook(lambda m: m.register_forward_hook(lambda *a: None)),
    "forward pre-hook": with_hook(lambda m: m.register_forward_pre_hook(lambda *a: None)),
    "backward hook": with_hook(lambda m: m.register_full_backward_hook(lambda *a: None)),
    "backward pre-hook": with_hook(lambda m: m.register_full_backward_pre_hook(lambda *a: None)),
    "hook on the stack": with_hook(
        lambda m: m.register_forward_hook(lambda *a: None), on=nn.Sequential
    ),
    "gradient hook": with_hook(lambda m: m.weight.register_hook(lambda g: g.clamp(-1, 1))),
    "gradient hook after": with_hook(
        lambda m: m.weight.register_post_accumulate_grad_hook(lambda p: None)
    ),
    "parametrised": with_hook(nn.utils.parametrizations.weight_norm),
    "compiled": with_hook(lambda m: m.compile(backend="eager")),
}


@pytest.mark.parametrize("name", TRUSTED)
def test_it_trusts(name):
    assert layers_of(TRUSTED[name]) is not None


@pytest.mark.parametrize("name", NOT_TRUSTED)
def test_it_does_not_trust(name):
    assert layers_of(NOT_TRUSTED[name]) is None


def test_it_does_not_trust_anything_under_a_global_hook():
    model = nn.Linear(2, 3)
    handle = nn.modules.module.register_module_forward_hook(lambda *a: None)
    try:
        assert layers_of(model) is None
    finally:
        handle.remove()
    assert layers_of(model) == [model]


@pytest.mark.parametrize("name", ["dropout that is off", "a stack"])
def test_what_it_trusts_moves_no_random_state(name):
    before = torch.get_rng_state()
    TRUSTED[name](torch.ones(2, 1, 18, 18))
    assert torch.equal(torch.get_rng_state(), before)


# --- the faster way ----------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_gives_the_outputs_and_gradients_of_the_model(channels, dtype):
    torch.manual_seed(0)
    model = lenet()
    model[0] = nn.Conv2d(channels, 4, 3)
    model.to(dtype)
    faster = copy.deepcopy(model)
    images = torch.randn(5, channels, 20, 20, dtype=dtype)
    outputs, expected = through(layers_of(faster))(images), model(images)
    assert_close(outputs, expected)
    outputs.square().mean().backward()
    expected.square().mean().backward()
    for ours, theirs in zip(faster.parameters(), model.parameters(), strict=True):
        assert_close(ours.grad, theirs.grad)
        assert ours.stride() == theirs.stride()  # the user's weights stay as they were


def test_relu_behind_pooling_gives_the_same_bits_ties_zeros_and_nan_included(generator):
    stack = nn.Sequential(nn.ReLU(), nn.MaxPool2d(2))
    values = torch.randint(-2, 3, (4, 3, 8, 8), generator=generator).float()  # full of ties
    values[0, 0, 0, 0] = float("nan")
    values[0, 1] = -float("inf")
    one, other = (values.clone().requires_grad_() for _ in range(2))
    expected, outputs = stack(one), through(layers_of(stack))(other)
    assert torch.equal(outputs.nan_to_num(7), expected.nan_to_num(7))
    weights = torch.randn(expected.shape, generator=generator)
    (expected.nan_to_num() * weights).sum().backward()
    (outputs.nan_to_num() * weights).sum().backward()
    assert torch.equal(other.grad, one.grad)


@pytest.mark.parametrize("norm", [nn.GroupNorm(2, 4), nn.LogSoftmax(dim=1)])
def test_it_leaves_images_as_they_are_where_a_layer_takes_longer_otherwise(norm):
    seen = []
    norm.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    through([nn.Conv2d(1, 4, 3), norm, nn.Flatten(), nn.Linear(4, 2)])(torch.randn(2, 1, 3, 3))
    assert seen[0].is_contiguous()
    last = nn.Sequential(nn.Linear(1296, 4), nn.LogSoftmax(dim=1))  # after Flatten it may stand
    pool = nn.MaxPool2d(2)
    pool.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    through([nn.Conv2d(1, 4, 3), pool, nn.Flatten(), *last])(torch.randn(2, 1, 38, 38))
    assert seen[1].is_contiguous(memory_format=torch.channels_last)


def test_it_pools_images_with_the_channels_last_and_gets_the_gradient_so():
    seen = {}
    pool, flatten = nn.MaxPool2d(2), nn.Flatten()
    forward = through([nn.Conv2d(1, 4, 3), nn.ReLU(), pool, flatten, nn.Linear(324, 2)])
    pool.register_forward_pre_hook(lambda module, inputs: seen.update(pooled=inputs[0]))
    flatten.register_forward_pre_hook(lambda module, inputs: seen.update(flattened=inputs[0]))
    outputs = forward(torch.randn(2, 1, 20, 20))
    seen["flattened"].register_hook(lambda gradient: seen.update(gradient=gradient))
    outputs.sum().backward()
    assert set(seen) == {"pooled", "flattened", "gradient"}
    for name, images in seen.items():
        assert images.is_contiguous(memory_format=torch.channels_last), name
