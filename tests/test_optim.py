"""The default optimizer is fastai's, and so is the one-cycle policy."""

import math
import re
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

import torchcls as tc
from torchcls.optim import check_optimizer

# --- which parameters decay -----------------------------------------------------------------


class Named(nn.Module):
    """Parameters whose names only look like a bias, and one that is called so."""

    def __init__(self):
        super().__init__()
        for name in ("bias", "bias_", "biases", "my_bias", "Bias", "scale"):
            self.register_parameter(name, nn.Parameter(torch.ones(2)))


def every_kind():
    return nn.ModuleDict(
        {
            "linear": nn.Linear(4, 4),
            "conv": nn.Conv2d(1, 2, 3),
            "batch1": nn.BatchNorm1d(4),
            "batch2": nn.BatchNorm2d(4),
            "batch3": nn.BatchNorm3d(4),
            "instance1": nn.InstanceNorm1d(4, affine=True),
            "instance2": nn.InstanceNorm2d(4, affine=True),
            "instance3": nn.InstanceNorm3d(4, affine=True),
            "layer": nn.LayerNorm(4),
            "group": nn.GroupNorm(2, 4),
            "rms": nn.RMSNorm(4),
            "prelu": nn.PReLU(),
            "embedding": nn.Embedding(3, 4),
            "lstm": nn.LSTM(4, 4),
            "attention": nn.MultiheadAttention(4, 2),
            "named": Named(),
        }
    )


DECAYS = {
    "linear.weight",
    "conv.weight",
    "group.weight",
    "rms.weight",
    "prelu.weight",
    "embedding.weight",
    "lstm.weight_ih_l0",
    "lstm.weight_hh_l0",
    "lstm.bias_ih_l0",
    "lstm.bias_hh_l0",
    "attention.in_proj_weight",
    "attention.in_proj_bias",
    "attention.out_proj.weight",
    "named.bias_",
    "named.biases",
    "named.my_bias",
    "named.Bias",
    "named.scale",
}
DECAYS_NOT = {
    "linear.bias",
    "conv.bias",
    "group.bias",
    "attention.out_proj.bias",
    "named.bias",
} | {
    f"{norm}.{name}"
    for norm in ("batch1", "batch2", "batch3", "instance1", "instance2", "instance3", "layer")
    for name in ("weight", "bias")
}


def names_by_decay(model, optimizer):
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {
        group["weight_decay"]: [names[parameter] for parameter in group["params"]]
        for group in optimizer.param_groups
    }


def test_it_decays_what_fastai_decays():
    model = every_kind()
    found = names_by_decay(model, tc.default_optimizer(model))
    assert set(found[0.01]) == DECAYS
    assert set(found[0.0]) == DECAYS_NOT
    assert len(found[0.01]) + len(found[0.0]) == len(list(model.parameters()))


def test_a_subclass_of_a_norm_does_not_decay_either():
    class MyNorm(nn.BatchNorm1d):
        pass

    model = MyNorm(4)
    assert names_by_decay(model, tc.default_optimizer(model)) == {0.0: ["weight", "bias"]}


@pytest.mark.parametrize(
    ("model", "decays"),
    [(nn.Linear(2, 2, bias=False), [0.01]), (nn.LayerNorm(2), [0.0]), (nn.Linear(2, 2), [0.01, 0])],
)
def test_there_is_no_empty_group(model, decays):
    groups = tc.default_optimizer(model).param_groups
    assert [group["weight_decay"] for group in groups] == decays


def test_a_shared_parameter_and_a_shared_module_are_there_once():
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    second.weight = first.weight
    model = nn.Sequential(first, second, first)
    groups = tc.default_optimizer(model).param_groups
    assert [len(group["params"]) for group in groups] == [1, 2]


def test_the_parameters_of_the_root_are_there():
    assert len(tc.default_optimizer(Named()).param_groups[0]["params"]) == 5


def test_a_frozen_parameter_is_there_and_stays_as_it_is():
    model = nn.Linear(2, 2)
    model.weight.requires_grad_(False)
    before = model.weight.clone()
    optimizer = tc.default_optimizer(model, lr=0.1)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 2
    assert torch.equal(model.weight, before)


# --- what it does ---------------------------------------------------------------------------


def test_it_is_adamw_with_fastais_numbers():
    optimizer = tc.default_optimizer(nn.Linear(2, 2))
    assert type(optimizer) is torch.optim.AdamW
    for group in optimizer.param_groups:
        assert (group["lr"], group["betas"], group["eps"]) == (1e-3, (0.9, 0.99), 1e-5)
        assert (group["amsgrad"], group["maximize"]) == (False, False)
    assert [g["lr"] for g in tc.default_optimizer(nn.Linear(2, 2), 0.5).param_groups] == [0.5, 0.5]


def test_it_is_fused_where_it_can_be():
    assert tc.default_optimizer(nn.Linear(2, 2)).defaults["fused"] is True
    assert tc.default_optimizer(nn.Linear(2, 2, dtype=torch.complex64)).defaults["fused"] is False


def hand_written_adamw(values, gradient_of, decays, *, steps, lr):
    """AdamW from its formulas: decay first, then the step of Adam with corrected moments."""
    values = [value.clone() for value in values]
    first = [torch.zeros_like(value) for value in values]
    second = [torch.zeros_like(value) for value in values]
    for t in range(1, steps + 1):
        gradients = gradient_of(values, t)
        for i, gradient in enumerate(gradients):
            first[i] = 0.9 * first[i] + (1 - 0.9) * gradient
            second[i] = 0.99 * second[i] + (1 - 0.99) * gradient**2
            m, v = first[i] / (1 - 0.9**t), second[i] / (1 - 0.99**t)
            decayed = values[i] * (1 - lr * 0.01) if decays[i] else values[i]
            values[i] = decayed - lr * m / (v.sqrt() + 1e-5)
    return values


def test_it_equals_a_hand_written_adamw_over_15_steps(generator):
    x = torch.randn(15, 8, 3, generator=generator, dtype=torch.float64)
    y = torch.randn(15, 8, 2, generator=generator, dtype=torch.float64)
    model = nn.Linear(3, 2, dtype=torch.float64)
    start = [model.weight.detach().clone(), model.bias.detach().clone()]

    def gradient_of(values, t):  # of the mean square of xWᵀ + b - y
        weight, bias = values
        error = 2 * (x[t - 1] @ weight.T + bias - y[t - 1]) / y[0].numel()
        return error.T @ x[t - 1], error.sum(0)

    optimizer = tc.default_optimizer(model, lr=0.05)
    for inputs, targets in zip(x, y, strict=True):
        optimizer.zero_grad()
        nn.functional.mse_loss(model(inputs), targets).backward()
        optimizer.step()
    weight, bias = hand_written_adamw(start, gradient_of, [True, False], steps=15, lr=0.05)
    torch.testing.assert_close(model.weight.detach(), weight)
    torch.testing.assert_close(model.bias.detach(), bias)


# --- one cycle ------------------------------------------------------------------------------


def fastai_one_cycle(i, total):
    """Scale and momentum of batch i: fastai's combined_cos over 0.25 with div 25 and 1e5."""

    def cos(start, end, pos):
        return start + (1 + math.cos(math.pi * (1 - pos))) * (end - start) / 2

    pos = i / total
    if pos < 0.25:
        return cos(1 / 25, 1, pos * 4), cos(0.95, 0.85, pos * 4)
    return cos(1, 1 / 1e5, (pos - 0.25) / 0.75), cos(0.85, 0.95, (pos - 0.25) / 0.75)


def test_one_cycle_has_the_figures_of_fastai():
    schedule = tc.one_cycle()
    lrs, momentums = zip(
        *((1e-2 * scale, m) for scale, m in (schedule(i / 300) for i in range(300))), strict=True
    )
    assert f"{lrs[0]:.2e}" == "4.00e-04"
    assert f"{lrs[-1]:.2e}" == "5.87e-07"
    assert lrs.index(max(lrs)) == 75
    assert lrs[75] == 1e-2
    assert (momentums[0], momentums[75]) == (0.95, 0.85)
    assert momentums.index(min(momentums)) == 75
    assert f"{momentums[-1]:.4f}" == "0.9500"
    assert all(a < b for a, b in pairwise(lrs[:76]))
    assert all(a > b for a, b in pairwise(lrs[75:]))


@pytest.mark.parametrize("total", [1, 2, 3, 7, 300])
def test_one_cycle_is_fastais_formula(total):
    schedule = tc.one_cycle()
    for i in range(total):
        torch.testing.assert_close(schedule(i / total), fastai_one_cycle(i, total))


# --- warm-up and cosine ----------------------------------------------------------------------


def test_warm_up_and_cosine_by_hand():
    schedule = tc.warm_up_cosine(0.25)
    half = 0.5 + 0.5 * math.sqrt(0.5)  # a quarter of the way down
    for progress, scale in ((0, 0.01), (0.125, 0.505), (0.25, 1), (0.4375, half), (0.625, 0.5)):
        assert schedule(progress) == pytest.approx(scale, abs=1e-12)
    assert 0 < schedule(0.999) < 1e-5
    assert tc.warm_up_cosine()(0.1) == 1
    assert tc.warm_up_cosine(0)(0) == 1


@pytest.mark.filterwarnings("ignore:The epoch parameter")  # torch's own, in earlier versions
@pytest.mark.parametrize(("steps", "warm_up"), [(10, 3), (40, 4), (7, 0), (5, 4)])
def test_warm_up_and_cosine_are_torchs_in_sequence(steps, warm_up):
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.5)
    cosine = lr_scheduler.CosineAnnealingLR(optimizer, steps - warm_up)
    if warm_up:
        rise = lr_scheduler.LinearLR(optimizer, 0.01, total_iters=warm_up)
        cosine = lr_scheduler.SequentialLR(optimizer, [rise, cosine], [warm_up])
    schedule = tc.warm_up_cosine(warm_up / steps)
    for step in range(steps):
        lr = optimizer.param_groups[0]["lr"]
        torch.testing.assert_close(0.5 * schedule(step / steps), lr, rtol=1e-9, atol=1e-12)
        optimizer.step()
        cosine.step()


@pytest.mark.parametrize(
    ("warm_up", "error", "words"),
    [
        (1, ValueError, "warm_up must be a share of the run in [0, 1), got 1."),
        (-0.1, ValueError, "warm_up must be a share of the run in [0, 1), got -0.1."),
        (math.nan, ValueError, "warm_up must be a share of the run in [0, 1), got nan."),
        (True, TypeError, "warm_up must be a number, got True."),
        ("0.1", TypeError, "warm_up must be a number, got '0.1'."),
    ],
)
def test_the_warm_up_is_a_share_of_the_run(warm_up, error, words):
    with pytest.raises(error, match=f"^{re.escape(words)}"):
        tc.warm_up_cosine(warm_up)


# --- errors ---------------------------------------------------------------------------------


@pytest.mark.parametrize("lr", [0, 0.0, -1e-3, math.nan, math.inf, -math.inf])
def test_an_lr_that_is_not_above_0_is_refused(lr):
    with pytest.raises(ValueError, match="lr must be above 0 and finite, got"):
        tc.default_optimizer(nn.Linear(2, 2), lr)


@pytest.mark.parametrize("lr", [True, "0.1", None, [0.1], torch.tensor(0.1)])
def test_an_lr_that_is_no_number_is_refused(lr):
    with pytest.raises(TypeError, match="lr must be a number, got"):
        tc.default_optimizer(nn.Linear(2, 2), lr)


@pytest.mark.parametrize("lr", [1, 1e-300, 5.0])
def test_an_lr_on_the_right_side_of_the_limit_is_taken(lr):
    assert tc.default_optimizer(nn.Linear(2, 2), lr).param_groups[0]["lr"] == lr


def test_a_model_without_parameters_is_refused():
    with pytest.raises(ValueError, match="must have parameters to train, got none"):
        tc.default_optimizer(nn.ReLU())


def test_an_optimizer_class_is_refused():
    with pytest.raises(TypeError, match=re.escape("torch.optim.SGD(model.parameters(), lr=0.1)")):
        check_optimizer(torch.optim.SGD)
    with pytest.raises(TypeError, match="optimizer must be an instance"):
        check_optimizer("adam")


def test_an_optimizer_that_needs_a_closure_is_refused():
    parameters = [nn.Parameter(torch.ones(1))]
    with pytest.raises(TypeError, match=r"step without a closure, got LBFGS.*tc\.backward"):
        check_optimizer(torch.optim.LBFGS(parameters))
    for kind in (torch.optim.SGD, torch.optim.Adam, torch.optim.RMSprop, torch.optim.Rprop):
        check_optimizer(kind(parameters, lr=0.1))


def test_a_parameter_that_is_a_view_leaves_the_rest_of_its_tensor_alone():
    """A layer for grey images, made of the first channel of one for colours."""
    colours = nn.Conv2d(3, 4, 3)
    before = colours.weight.detach().clone()
    grey = nn.Conv2d(1, 4, 3)
    grey.weight = nn.Parameter(colours.weight.detach()[:, :1])
    dense = nn.Conv2d(1, 4, 3)
    dense.weight = nn.Parameter(grey.weight.detach().clone())
    dense.bias = nn.Parameter(grey.bias.detach().clone())
    images = torch.randn(2, 1, 5, 5)
    for model in (grey, dense):
        optimizer = tc.default_optimizer(model)
        model(images).square().mean().backward()
        optimizer.step()
    torch.testing.assert_close(grey.weight, dense.weight)
    assert torch.equal(colours.weight[:, 1:], before[:, 1:])
    assert tc.default_optimizer(dense).defaults["fused"]


def test_a_lazy_parameter_is_dense_once_it_has_a_shape():
    model = nn.Sequential(nn.LazyLinear(3))
    history = tc.fit(
        model,
        [(torch.randn(4, 2), torch.tensor([0, 1, 2, 0]))],
        loss_fn=nn.CrossEntropyLoss(),
        epochs=1,
        progress=False,
        device="cpu",
    )
    assert history[0].train_loss > 0
