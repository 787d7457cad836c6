"""torchcls.evaluation: exact over a split, nothing is changed, predictions and their file."""

import csv
from functools import partial

import pytest
import torch
import torch.nn.functional as F
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
    ],
)
def test_metrics_that_are_none_say_so(model, metrics, error, words):
    with pytest.raises(error, match=words):
        tc.evaluate(model, BATCHES, metrics=metrics)


def test_a_function_on_the_whole_split_must_get_tensors():
    with pytest.raises(TypeError, match=r"'<lambda>' must get tensors.*update, compute"):
        tc.evaluate(nn.Identity(), [((X, X), Y)], metrics=[lambda outputs, targets: 0])


# ------------------------------------------------------------------ nothing is changed


def look(what, model):
    loader = DataLoader(TensorDataset(X, Y), batch_size=16, shuffle=True)
    if what == "evaluate":
        tc.evaluate(model, loader, loss_fn=tc.cross_entropy, metrics=[tc.accuracy])
    else:
        tc.predict(model, loader)


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


# ------------------------------------------------------------------ predictions


def test_a_tensor_is_inputs_and_pairs_bring_targets_in_order(model):
    from_tensor = tc.predict(model, X, batch_size=16)
    from_pairs = tc.predict(model, BATCHES)
    assert torch.equal(from_tensor.outputs, from_pairs.outputs)
    assert from_tensor.targets is None
    assert torch.equal(from_pairs.targets, Y)
    assert torch.equal(tc.predict(nn.Identity(), X, batch_size=5).outputs, X)


def test_the_loss_names_probabilities_and_decisions():
    predictions = tc.predict(nn.Identity(), tensor([[0.0, 9.0], [0.0, float("nan")]]))
    for name in ("probabilities", "predicted"):
        with pytest.raises(ValueError, match=rf"\.{name} needs the loss.*loss_fn="):
            getattr(predictions, name)
    predictions = tc.predict(nn.Identity(), predictions.outputs, loss_fn=F.cross_entropy)
    assert torch.equal(predictions.probabilities[0], tensor([0.0, 9.0]).softmax(0))
    assert predictions.predicted.tolist() == [1, -1]


def test_a_csv_file_gives_the_same_float32_back(tmp_path, model):
    predictions = tc.predict(model, BATCHES, loss_fn=tc.cross_entropy)
    predictions.to_csv(tmp_path / "p.csv", classes=["a", "b", "c"])
    with open(tmp_path / "p.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for name, values in (
        ("output", predictions.outputs),
        ("probability", predictions.probabilities),
    ):
        read = tensor([[float(row[f"{name}_{i}"]) for i in range(3)] for row in rows])
        assert torch.equal(read, values)
    assert [row["predicted"] for row in rows] == ["abc"[i] for i in predictions.predicted]
    assert [row["target"] for row in rows] == ["abc"[i] for i in Y]


def test_a_csv_file_of_inputs_alone_has_no_target(tmp_path):
    predictions = tc.predict(nn.Linear(4, 3), X, loss_fn=nn.CrossEntropyLoss())
    predictions.to_csv(tmp_path / "predictions.csv", classes=["cat", "dog", "eel"])
    with open(tmp_path / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [name for name in rows[0] if not name[-1].isdigit()] == ["predicted"]
    names = [("cat", "dog", "eel")[i] for i in predictions.predicted]
    assert [row["predicted"] for row in rows] == names


@pytest.mark.parametrize("k", [1, 2])
def test_a_csv_file_of_real_numbers_has_no_probabilities(tmp_path, k):
    batches = [(X[:20], X[:20, :k]), (X[20:], X[20:, :k])]
    predictions = tc.predict(nn.Linear(4, k), batches, loss_fn=nn.MSELoss())
    predictions.to_csv(tmp_path / "predictions.csv")
    with open(tmp_path / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    columns = {"output": predictions.outputs, "predicted": predictions.outputs, "target": X[:, :k]}
    numbered = [name if k == 1 else f"{name}_{i}" for name in columns for i in range(k)]
    assert list(rows[0]) == numbered
    read = tensor([[float(row[name]) for name in numbered] for row in rows])
    assert torch.equal(read, torch.cat(list(columns.values()), 1))


def test_names_of_classes_go_with_one_class_for_each_sample(tmp_path):
    predictions = tc.predict(nn.Linear(4, 3), X, loss_fn=nn.BCEWithLogitsLoss())
    with pytest.raises(ValueError, match=r"got predicted of shape \(37, 3\). Leave classes out"):
        predictions.to_csv(tmp_path / "predictions.csv", classes=["cat", "dog", "eel"])
    assert not (tmp_path / "predictions.csv").exists()


def test_a_metric_object_is_taken_to_the_device_of_the_model():
    class Follows(Counter):
        def to(self, device):
            self.device = device

    metric = Follows()
    found = tc.evaluate(nn.Linear(4, 3), BATCHES, metrics={"n": metric})
    assert found.metrics == {"n": 37}
    assert metric.device == torch.device("cpu")


def test_a_csv_file_takes_at_most_two_dimensions(tmp_path):
    predictions = tc.predict(nn.Identity(), torch.zeros(2, 3, 4), loss_fn=tc.cross_entropy)
    with pytest.raises(ValueError, match=r"CSV file, got \(2, 3, 4\)"):
        predictions.to_csv(tmp_path / "p.csv")


@pytest.mark.parametrize(
    ("data", "keywords", "error", "words"),
    [
        (X, {"batch_size": 0}, ValueError, "batch_size must be at least 1, got 0"),
        (X[:0], {}, ValueError, r"at least one sample, got shape \(0, 4\)"),
        ([], {}, ValueError, "data must give at least one batch"),
        ([((X, X), Y)], {}, TypeError, "outputs must be one tensor, got tuple"),
        ([(X, {"ids": Y})], {}, TypeError, "targets must be one tensor to be kept, got dict"),
    ],
)
def test_what_cannot_be_predicted_says_so(data, keywords, error, words):
    with pytest.raises(error, match=words):
        tc.predict(nn.Identity(), data, **keywords)
