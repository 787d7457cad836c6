"""What a resumed run is compared by, and what beside tensors goes on in it."""

import functools

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim import SGD, lr_scheduler
from torch.utils.data import DataLoader, Dataset

import torchcls as tc

INPUTS = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
TARGETS = INPUTS[:, :3].argmax(1)


def run(folder, model=None, train=None, *, optimizer=None, schedule=None, **keywords):
    torch.manual_seed(0)
    model = nn.Linear(4, 3) if model is None else model
    optimizer = (optimizer or (lambda model: SGD(model.parameters(), lr=0.1)))(model)
    keywords = {"loss_fn": nn.CrossEntropyLoss(), "micro_batch": None, **keywords}
    return tc.epochs(
        model,
        tc.Batches(INPUTS, TARGETS, batch_size=16) if train is None else train,
        optimizer=optimizer,
        schedule=schedule and schedule(optimizer),
        epochs=3,
        checkpoint=folder,
        resume=folder is not None,
        device="cpu",
        progress=False,
        **keywords,
    )


def outcome(run):
    list(run)
    return [record.train_loss for record in run.history], list(run.model.parameters())


def assert_goes_on(folder, make):
    """That a run of ``make(folder)`` which is left after an epoch ends as the one that is not."""
    losses, parameters = outcome(make(None))
    next(make(folder))
    found, weights = outcome(make(folder))
    assert found == losses
    assert all(map(torch.equal, weights, parameters))


# --- models ---------------------------------------------------------------------------------------


class Scaled(nn.Module):
    def __init__(self, scale=1.0, function=F.relu):
        super().__init__()
        self.linear, self.scale, self.function = nn.Linear(4, 3), scale, function

    def forward(self, x):
        return self.scale * self.function(self.linear(x))


class Bare(nn.Module):
    def __init__(self, *shape):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(shape))

    def forward(self, x):
        return x[:, :3] + self.weight


def frozen():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
    model[0].requires_grad_(False)
    return model


def encoder(**keywords):
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True, **keywords)
    return nn.Sequential(nn.Unflatten(1, (1, 4)), layer, nn.Flatten(), nn.Linear(4, 3))


def tied(is_tied):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3))
    if is_tied:
        model[1].weight = model[0].weight
    return model


@pytest.mark.parametrize(
    ("one", "other", "words"),
    [
        (Scaled, lambda: Scaled(2.0), r"^scale of the model must be 1\.0 .* got 2\.0"),
        (Scaled, lambda: Scaled(1.0, F.gelu), "^function of the model must be 'relu' .*'gelu'"),
        (encoder, lambda: encoder(norm_first=True), r"^1\.norm_first of the model must be False"),
        (
            encoder,
            lambda: encoder(activation="gelu"),
            r"^1\.activation.* of the model",
        ),
        (lambda: Bare(3), lambda: Bare(1), r"^weight of the model must be \(3,\) .* got \(1,\)"),
        (
            lambda: tied(True),
            lambda: tied(False),
            r"^1\.weight of the model must be None",
        ),
        (
            lambda: nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3)),
            frozen,
            r"^frozen parameters must be '' .* got '0\.weight, 0\.bias'",
        ),
    ],
)
def test_another_model_is_named_by_what_differs(tmp_path, one, other, words):
    next(run(tmp_path, one(), check="off"))
    with pytest.raises(ValueError, match=words):
        run(tmp_path, other(), check="off")


def test_a_model_that_is_made_again_is_the_same(tmp_path):
    for make in (Scaled, encoder, frozen, lambda: tied(True)):
        next(run(tmp_path / make.__name__, make()))
        run(tmp_path / make.__name__, make())


# --- numbers --------------------------------------------------------------------------------------


class Paced(SGD):
    """Counts its steps where no state_dict has them."""

    def __init__(self, model):
        super().__init__(model.parameters(), lr=0.1)
        self.t = 0

    def step(self, closure=None):
        self.t += 1
        self.param_groups[0]["lr"] = 0.1 / self.t
        return super().step(closure)


class Warming(nn.Module):
    """Counts its calls, as a model and as a loss."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self._calls = inner, 0

    def forward(self, *arguments):
        self._calls += self.training
        return self.inner(*arguments) * (1 - 0.5**self._calls)


@pytest.mark.parametrize(
    "make",
    [
        lambda: {"optimizer": Paced},
        lambda: {"model": Warming(nn.Linear(4, 3)), "check": "off"},
        lambda: {"loss_fn": Warming(nn.CrossEntropyLoss()), "check": "off"},
    ],
)
def test_counters_go_on(tmp_path, make):
    def begun(folder):
        torch.manual_seed(0)
        return run(folder, **make())

    assert_goes_on(tmp_path, begun)


def test_a_counter_that_has_moved_is_no_other_argument(tmp_path):
    model = Warming(nn.Linear(4, 3))
    model.calls = 0
    model.register_forward_hook(lambda module, *_: setattr(module, "calls", module.calls + 1))
    next(run(tmp_path, model, check="off"))
    moved = model.calls
    model.calls = 1000
    run(tmp_path, model, check="off")  # in a notebook, say
    assert model.calls == moved


class Margin(nn.Module):
    """A loss with a buffer that its calls move."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(3))

    def forward(self, outputs, targets):
        self.mean.lerp_(outputs.detach().mean(0), 0.1)
        return F.cross_entropy(outputs - self.mean, targets)


@pytest.mark.parametrize("wrapped", [lambda m: m.forward, functools.partial, lambda m: m])
def test_the_buffers_of_a_loss_behind_a_method_or_a_partial_go_on(tmp_path, wrapped):
    def make(folder):
        return run(folder, loss_fn=wrapped(Margin()), check="off")

    assert_goes_on(tmp_path, make)


# --- optimizers and schedules ---------------------------------------------------------------------


def test_groups_that_came_later_are_those_that_a_resumed_run_must_have(tmp_path):
    def make(folder, groups):
        torch.manual_seed(0)
        model = frozen()
        model[0].requires_grad_(groups == 2)

        def optimizer(model):
            optimizer = SGD(model[1].parameters(), lr=0.1, momentum=0.9)
            if groups == 2:
                optimizer.add_param_group({"params": list(model[0].parameters()), "lr": 0.01})
            return optimizer

        return run(folder, model, optimizer=optimizer)

    def unfrozen(folder):
        begun = make(folder, 1)
        next(begun)
        begun.model[0].requires_grad_(True)
        begun.optimizer.add_param_group({"params": list(begun.model[0].parameters()), "lr": 0.01})
        return begun

    losses, parameters = outcome(unfrozen(None))
    next(unfrozen(tmp_path))
    with pytest.raises(ValueError, match=r"groups must be \[2, 2\] .* got \[2\]"):
        make(tmp_path, 1)
    found, weights = outcome(make(tmp_path, 2))
    assert found == losses
    assert all(map(torch.equal, weights, parameters))


@pytest.mark.filterwarnings("ignore:The epoch parameter")  # SequentialLR steps by number
@pytest.mark.parametrize(
    ("one", "other", "words"),
    [
        (
            lambda o: lr_scheduler.MultiStepLR(o, [1]),
            lambda o: lr_scheduler.MultiStepLR(o, [2]),
            "milestones of schedule 0 must be",
        ),
        (
            lambda o: lr_scheduler.SequentialLR(
                o, [lr_scheduler.StepLR(o, 1), lr_scheduler.ExponentialLR(o, 0.5)], [1]
            ),
            lambda o: lr_scheduler.SequentialLR(
                o, [lr_scheduler.StepLR(o, 1), lr_scheduler.ExponentialLR(o, 0.9)], [1]
            ),
            r"gamma of schedule 2 must be 0\.5 .* got 0\.9",
        ),
    ],
)
def test_another_schedule_of_torch_is_named(tmp_path, one, other, words):
    next(run(tmp_path, schedule=one, check="off"))
    with pytest.raises(ValueError, match=words):
        run(tmp_path, schedule=other, check="off")


def test_a_schedule_by_a_function_is_kept(tmp_path):
    def make(folder):
        return run(folder, schedule=lambda o: lr_scheduler.LambdaLR(o, lambda e: 1 / (1 + e)))

    assert_goes_on(tmp_path, make)


# --- batches and where it runs --------------------------------------------------------------------


class Pairs(Dataset):
    def __init__(self, transform):
        self.transform = transform

    def __len__(self):
        return len(INPUTS)

    def __getitem__(self, i):
        return self.transform(INPUTS[i]), TARGETS[i]


def batches(scale):
    return tc.Batches(INPUTS, TARGETS, batch_size=16, transform=lambda x, y: (scale * x, y))


def loader(scale):
    return DataLoader(Pairs(lambda x: scale * x), batch_size=16, shuffle=True)


@pytest.mark.parametrize("make", [batches, loader])
def test_another_transform_is_noticed(tmp_path, make):
    next(run(tmp_path, train=make(1)))
    with pytest.raises(ValueError, match="train must give the batches of the run that is resumed"):
        run(tmp_path, train=make(2))
    assert_goes_on(tmp_path / "same", lambda folder: run(folder, train=make(1)))


@pytest.mark.parametrize("make", [batches, loader])
def test_another_transform_inside_an_epoch_begins_the_epoch_again(tmp_path, make):
    next(run(tmp_path, train=make(1)).steps())
    with pytest.warns(UserWarning, match="start of epoch 0 .* it handed out other batches"):
        list(run(tmp_path, train=make(2)))


def test_autocast_around_a_run_is_a_circumstance(tmp_path):
    with torch.autocast("cpu", torch.bfloat16):
        next(run(tmp_path))
    with pytest.warns(UserWarning, match=r"autocast was torch\.bfloat16, is off"):
        run(tmp_path)


# --- paths and files ------------------------------------------------------------------------------


def test_a_tilde_is_the_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "home").mkdir()
    begun = run("~/runs/1")
    list(begun)
    begun.history.to_csv("~/history.csv")
    tc.save_checkpoint("~/model.pt", epoch=3)
    assert tc.load_checkpoint("~/model.pt") == {"epoch": 3}
    assert [path.name for path in tmp_path.iterdir()] == ["home"]
    found = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*")}
    assert found > {"home/runs/1/last.pt", "home/history.csv", "home/model.pt"}


@pytest.mark.parametrize("part", ["at", "told", "beside", "source", "optimizer"])
@pytest.mark.parametrize("content", [None, {}, {"other": 3}])
def test_what_is_no_state_of_a_run_is_a_value_error(tmp_path, part, content):
    next(run(tmp_path))
    state = tc.load_checkpoint(tmp_path / "last.pt")
    tc.save_checkpoint(tmp_path / "last.pt", **{**state, part: content})
    with pytest.raises(ValueError, match="must"):
        run(tmp_path)
