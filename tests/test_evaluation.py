"""torchcls.evaluation: exact over a split, and nothing is changed."""

import weakref
from functools import partial

import pytest
import torch
from torch import nn, tensor
from torch.utils.data import DataLoader, TensorDataset

import torchcls as tc

X = torch.randn(37, 4, generator=torch.Generator().manual_seed(2))
Y = torch.arange(37) % 3
BATCHES = list(zip(X.split(16), Y.split(16), strict=True))  # 16, 16, 5
WEIGHT = tensor([1.0, 5.0, 0.5])


@pytest.fixture
def model(generator):
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout())
    with torch.no_grad():
        model[0].weight.copy_(torch.randn(3, 4, generator=generator))
    return model


class Counter:
    """A metric object, as torchmetrics has them."""

    def __init__(self):
        self.n = 99

    def reset(self):
        self.n = 0

    def update(self, outputs, targets):
        self.n += len(targets)

    def compute(self):
        return tensor(self.n)


class Broken(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(4).eval()

    def forward(self, x):
        torch.rand(1)
        raise KeyError


# ------------------------------------------------------------------ the whole split


def test_class_weighted_loss_is_that_of_the_whole_split(model):
    loss_fn = nn.CrossEntropyLoss(weight=WEIGHT)
    found = tc.evaluate(model, BATCHES, loss_fn=loss_fn)
    model.eval()
    with torch.no_grad():
        by_size = sum(loss_fn(model(x), y).item() * len(y) for x, y in BATCHES) / 37
        whole = loss_fn(model(X), Y).item()
    assert found.loss == pytest.approx(whole, rel=1e-6)  # float32
    assert found.loss != pytest.approx(by_size, rel=1e-4)  # what a mean by batch size would give
    assert found.n == 37


def test_a_batch_where_nothing_counts_adds_nothing(model):
    ignored = (X[:5], torch.full((5,), -100))
    loss_fn = nn.CrossEntropyLoss()
    with_it = tc.evaluate(model, [*BATCHES, ignored], loss_fn=loss_fn)
    assert with_it.loss == tc.evaluate(model, BATCHES, loss_fn=loss_fn).loss


def test_metrics_may_be_functions_partials_objects_or_named(model):
    def shapes(outputs, targets):
        return tuple(outputs.shape), tuple(targets.shape)

    found = tc.evaluate(
        model, BATCHES, metrics=[tc.accuracy, partial(tc.top_k_accuracy, k=3), Counter(), shapes]
    )
    right = (tc.predict(model, X).outputs.argmax(1) == Y).sum().item()
    assert found.metrics == {
        "accuracy": right / 37,
        "top_k_accuracy": 1.0,
        "Counter": 37,
        "shapes": ((37, 3), (37,)),  # called once, with everything
    }
    assert found.loss is None
    assert tc.evaluate(model, BATCHES, metrics={"acc": tc.accuracy}).metrics == {"acc": right / 37}


@pytest.mark.parametrize(
    ("metrics", "error", "words"),
    [
        ([tc.accuracy, tc.accuracy], ValueError, "'accuracy' twice.*dict"),
        ([Counter], TypeError, "objects with update.*Counter"),
        (tc.accuracy, TypeError, r"list or a dict.*Write \[metric\]"),
        (["accuracy"], TypeError, "functions of .*got 'accuracy'"),
        ({1: tc.accuracy}, TypeError, "named by strings, got 1. Write '1'"),
    ],
)
def test_metrics_that_are_none_say_so(model, metrics, error, words):
    with pytest.raises(error, match=words):
        tc.evaluate(model, BATCHES, metrics=metrics)


def test_a_function_on_the_whole_split_must_get_tensors():
    with pytest.raises(TypeError, match=r"'<lambda>' must get tensors.*update, compute"):
        tc.evaluate(nn.Identity(), [((X, "x"), Y)], metrics=[lambda outputs, targets: 0])


def test_a_function_on_the_whole_split_gets_any_structure_of_tensors():
    def shapes(outputs, targets):
        (first, second), third = outputs["exits"], outputs["ids"]
        return [len(part) for part in (first, second, third, targets)]

    batches = [({"exits": (x, 2 * x), "ids": y}, y) for x, y in BATCHES]
    assert tc.evaluate(nn.Identity(), batches, metrics=[shapes]).metrics == {"shapes": [37] * 4}


def test_numbers_in_what_a_metric_gives_are_floats(model):
    def both(outputs, targets):
        return {"mean": targets.float().mean(), "classes": torch.bincount(targets)}

    found = tc.evaluate(model, BATCHES, metrics=[both]).metrics["both"]
    assert found["mean"] == pytest.approx(36 / 37)
    assert type(found["mean"]) is float
    assert found["classes"].tolist() == [13, 12, 12]


@pytest.mark.parametrize("as_ids", [False, True])
@pytest.mark.parametrize("keywords", [{}, {"num_classes": 3, "ignore_index": 1}])
def test_confusion_matrices_are_added_batch_by_batch(as_ids, keywords):
    """Also where a batch of predicted ids does not show the last class."""
    alive = []

    class Watched(nn.Module):
        def forward(self, x):
            outputs = x[:, :3].argmax(1) if as_ids else x[:, :3] * 1
            alive.append(weakref.ref(outputs))
            return outputs

    def watched(batches):
        for batch in batches:
            yield batch
            held.append(sum(ref() is not None for ref in alive))

    held = []
    first = (Y < 2) & (X[:, :3].argmax(1) < 2)  # their ids give a matrix of 2 x 2
    batches = [(X[part], Y[part]) for part in (first, ~first, first)]
    metric = partial(tc.confusion_matrix, **keywords) if keywords else tc.confusion_matrix
    found = tc.evaluate(Watched(), watched(batches), metrics={"matrix": metric}).metrics["matrix"]
    outputs = torch.cat([X[part] for part in (first, ~first, first)])[:, :3]
    targets = torch.cat([Y[part] for part in (first, ~first, first)])
    assert torch.equal(found, metric(outputs, targets))
    assert found.dtype == torch.int64
    assert max(held) <= 1  # what the loop itself holds


# ------------------------------------------------------------------ nothing is changed


def look(what, model):
    loader = DataLoader(TensorDataset(X, Y), batch_size=16, shuffle=True)
    if what == "evaluate":
        tc.evaluate(model, loader, loss_fn=tc.cross_entropy, metrics=[tc.accuracy])
    else:
        tc.predict(model, loader)


@pytest.mark.filterwarnings("ignore:data is shuffled")
@pytest.mark.parametrize("what", ["evaluate", "predict"])
@pytest.mark.parametrize("breaks", [False, True])
def test_looking_changes_nothing(model, what, breaks):
    model = Broken() if breaks else model
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    random = torch.get_rng_state()
    if breaks:
        with pytest.raises(KeyError):
            look(what, model)
    else:
        look(what, model)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all((parameter.grad == 1).all() for parameter in model.parameters())
    assert [module.training for module in model.modules()] == modes
    assert torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), random)


def test_a_metric_object_is_taken_to_the_device_of_the_model():
    class Follows(Counter):
        def to(self, device):
            self.device = device

    metric = Follows()
    found = tc.evaluate(nn.Linear(4, 3), BATCHES, metrics={"n": metric})
    assert found.metrics == {"n": 37}
    assert metric.device == torch.device("cpu")
