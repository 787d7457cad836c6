"""torchcls.prediction: inputs alone in every form they come in, predictions and their file."""

import csv

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from torch import nn, tensor
from torch.utils.data import DataLoader, Subset, TensorDataset

import torchcls as tc

X = torch.randn(37, 4, generator=torch.Generator().manual_seed(2))
Y = torch.arange(37) % 3
BATCHES = list(zip(X.split(16), Y.split(16), strict=True))  # 16, 16, 5
CE = nn.CrossEntropyLoss()


@pytest.fixture
def model(generator):
    model = nn.Linear(4, 3)
    with torch.no_grad():
        model.weight.copy_(torch.randn(3, 4, generator=generator))
    return model


class Keyed(nn.Module):
    """A model that takes a dict."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, inputs):
        return self.model(inputs["x"])


# ------------------------------------------------------------------ inputs alone


INPUTS_ALONE = {
    "tensor": X,
    "array": X.numpy(),
    "read-only array": np.frombuffer(X.numpy().tobytes(), np.float32).reshape(37, 4),
    "array backwards": X.flip(0).numpy()[::-1],
    "loader of tensors": DataLoader(X, 8),
    "loader of a TensorDataset": DataLoader(TensorDataset(X), 8),
    "loader of arrays": DataLoader(X.numpy(), 8, collate_fn=np.stack),
    "list": list(X.split(16)),
    "tuple": X.split(16),
    "list of one": [X],
    "tuples of one": [(part,) for part in X.split(16)],
    "pairs without targets": [(part, None) for part in X.split(16)],
    "generator": (inputs for inputs, _ in BATCHES),
    "iterator over two": iter([X[:20], X[20:]]),
}


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")  # torch, of a loader
@pytest.mark.parametrize("form", INPUTS_ALONE)
def test_inputs_alone_come_in_many_forms(model, form):
    predictions = tc.predict(model, INPUTS_ALONE[form], batch_size=16)
    assert torch.allclose(predictions.outputs, F.linear(X, model.weight, model.bias).detach())
    assert predictions.targets is None


@pytest.mark.parametrize(
    "data",
    [
        {"x": X, "scale": tensor(2.0)},
        {"x": X.numpy()},
        DataLoader([{"x": row} for row in X], 16),
        [({"x": part}, None) for part in X.split(16)],
    ],
)
def test_a_dict_is_inputs(model, data):
    predictions = tc.predict(Keyed(model), data, batch_size=16)
    assert torch.equal(predictions.outputs, tc.predict(model, X, batch_size=16).outputs)


@pytest.mark.parametrize("data", [[X, Y], (X, Y), [X[:20], X[20:]], (X.numpy(), Y.numpy())])
def test_two_in_a_list_may_be_a_pair_or_two_batches(model, data):
    with pytest.raises(TypeError, match=r"of two, .*\[\(inputs, targets\)\].*iter\(data\)"):
        tc.predict(model, data)


def test_inputs_beside_names_are_told_how_to_go_alone(model):
    loader = DataLoader([(row, f"{i}.png") for i, row in enumerate(X)], 8)
    with pytest.raises(TypeError, match=r"got list.*predict\(model, \(inputs for inputs, _ in d"):
        tc.predict(model, ((inputs, list(names)) for inputs, names in loader))
    data = loader
    outputs = tc.predict(model, (inputs for inputs, _ in data)).outputs
    assert torch.equal(outputs, tc.predict(model, X, batch_size=8).outputs)


# ------------------------------------------------------------------ rows are samples


def pooled(channels, classes):
    """Takes one image without an axis of samples, too."""

    class Pool(nn.Module):
        def forward(self, x):
            return x.mean((-2, -1))

    return nn.Sequential(nn.Conv2d(channels, 5, 3), Pool(), nn.Linear(5, classes))


@pytest.mark.parametrize(
    ("model", "data"),
    [
        (nn.Linear(8, 3), torch.ones(8)),
        (nn.Linear(3, 3), torch.ones(3)),  # 3 outputs for 3 rows, but no rows of samples
        (nn.Linear(300, 3), torch.ones(300)),  # more than go through at a time
        (nn.Linear(8, 3), [torch.ones(8), torch.ones(8), torch.ones(8)]),
        (nn.Sequential(nn.Flatten(), nn.Linear(784, 2)), torch.ones(28, 28)),
        (nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2), nn.Flatten()), torch.ones(3, 4, 4)),
        (pooled(3, 7), torch.ones(3, 9, 9)),
        (pooled(3, 3), torch.ones(3, 9, 9)),
        (Keyed(nn.Linear(8, 3)), {"x": torch.ones(8)}),
    ],
)
def test_one_sample_without_an_axis_of_samples_is_named(model, data):
    with pytest.raises(ValueError, match=r"got one sample of shape .*data\[None\]"):
        tc.predict(model, data, loss_fn=CE)


@pytest.mark.parametrize(
    ("model", "data", "shape"),
    [
        (nn.Embedding(9, 2), torch.arange(9), (9, 2)),
        (nn.Sigmoid(), torch.arange(9.0), (9,)),  # one output for each sample
        (nn.Sequential(nn.Linear(4, 1), nn.Flatten(-2)), X, (37,)),
        (nn.Sequential(nn.Linear(4, 1), nn.Flatten(0)), X[:1], (1,)),
        (nn.Flatten(0, 1), 3 * [torch.ones(2, 5, 3)], (30, 3)),  # tokens in a row
    ],
)
def test_rows_that_are_samples_are_left_alone(model, data, shape):
    assert tc.predict(model, data, batch_size=4).outputs.shape == shape


def test_a_tensor_that_is_cut_must_give_a_row_for_each_sample():
    with pytest.raises(ValueError, match=r"row for each sample, got shape \(10, 3\) for 2 of them"):
        tc.predict(nn.Flatten(0, 1), torch.ones(2, 5, 3))


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


def test_a_csv_file_goes_home_and_replaces_another_whole(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    predictions = tc.predict(nn.Identity(), torch.eye(2), loss_fn=CE)
    predictions.to_csv("~/p.csv")
    before = (tmp_path / "p.csv").read_text()
    with pytest.raises(ValueError, match="classes must name 2 classes, got 1 names"):
        predictions.to_csv("~/p.csv", classes=["one"])
    assert (tmp_path / "p.csv").read_text() == before
    assert [file.name for file in tmp_path.iterdir()] == ["p.csv"]


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


# ------------------------------------------------------------------ the most probable


def test_the_top_classes_come_with_their_probabilities_ties_lowest_first():
    outputs = tensor([[0.0, 2.0, 1.0], [1.0, 1.0, 1.0], [torch.nan, 0.0, 1.0]])
    p, classes = tc.Predictions(outputs, None, CE).top(2)
    assert classes.tolist() == [[1, 2], [0, 1], [-1, -1]]
    expected = outputs.softmax(1)[[[0], [1], [2]], [[1, 2], [0, 1], [0, 1]]]
    torch.testing.assert_close(p, expected, equal_nan=True)
    p, classes = tc.Predictions(outputs[:1].log_softmax(1), None, F.nll_loss).top(3)
    assert classes.tolist() == [[1, 2, 0]]
    torch.testing.assert_close(p, outputs[:1].softmax(1).sort(descending=True).values)


@pytest.mark.parametrize(
    ("loss_fn", "k", "message"),
    [
        (
            nn.BCEWithLogitsLoss(),
            1,
            r"cross_entropy or nll_loss, got BCEWithLogitsLoss\. Use \.prob",
        ),
        (F.mse_loss, 1, "cross_entropy or nll_loss, got mse_loss"),
        (lambda outputs, targets: outputs.sum(), 1, "whose activation is known"),
        (None, 1, r"\.top needs the loss"),
        (CE, 0, "k must be at least 1"),
        (CE, 4, "k must be at most the 3 classes, got 4"),
    ],
)
def test_there_is_no_top_without_classes(loss_fn, k, message):
    with pytest.raises(ValueError, match=message):
        tc.Predictions(torch.zeros(2, 3), None, loss_fn).top(k)


# ------------------------------------------------------------------ names of the classes


class Named(TensorDataset):
    """Has names for its targets, as an ImageFolder has."""

    classes = ("<cat>", "猫", 7)


NAMED = Named(X, Y)
NAMES = ("<cat>", "猫", "7")


def renumbered():
    dataset = Named(X, Y)
    dataset.target_transform = lambda target: 2 - target
    return dataset


@pytest.mark.parametrize(
    ("data", "outputs", "names"),
    [
        (DataLoader(NAMED, 8), 3, NAMES),
        (DataLoader(Subset(Subset(NAMED, range(20)), range(9)), 8), 3, NAMES),
        (DataLoader(NAMED, 8), 4, None),  # of other outputs
        (DataLoader(NAMED, 8), 1, None),
        (DataLoader(renumbered(), 8), 3, None),
        (DataLoader(TensorDataset(X, Y), 8), 3, None),
        (X, 3, None),
        (BATCHES, 3, None),
    ],
)
def test_names_are_those_of_the_data_where_they_fit_the_outputs(data, outputs, names):
    assert tc.predict(nn.Linear(4, outputs), data).classes == names


def test_two_names_fit_a_single_sigmoid():
    data = Named(X, Y.clamp(max=1).float())
    data.classes = ["no", "yes"]
    model = nn.Sequential(nn.Linear(4, 1), nn.Flatten(0))
    assert tc.predict(model, DataLoader(data, 8)).classes == ("no", "yes")


def test_an_image_folder_of_torchvision_and_ours_name_the_classes(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (4, 4)).save(tmp_path / name / "1.png")
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 2))
    theirs = torchvision.datasets.ImageFolder(str(tmp_path), torchvision.transforms.ToTensor())
    for data in (theirs, tc.image_folder(tmp_path)):
        assert tc.predict(model, DataLoader(data, 2)).classes == ("cat", "dog")


def rows_of(predictions, tmp_path):
    predictions.to_csv(tmp_path / "p.csv")
    with open(tmp_path / "p.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_csv_file_has_the_names_of_the_predictions(tmp_path):
    loss_fn = nn.CrossEntropyLoss(ignore_index=255)
    predictions = tc.Predictions(torch.eye(3), tensor([0, 255, 2]), loss_fn, NAMED.classes)
    rows = rows_of(predictions, tmp_path)
    assert [row["predicted"] for row in rows] == list(NAMES)
    assert [row["target"] for row in rows] == ["<cat>", "255", "7"]  # what is ignored has no name


@pytest.mark.parametrize(
    ("outputs", "targets", "loss_fn", "columns"),
    [
        (torch.eye(3), torch.eye(3), CE, {"predicted": "<cat>", "target_0": "1"}),
        (torch.eye(3), torch.eye(3), nn.BCEWithLogitsLoss(), {"predicted_0": "1", "target_0": "1"}),
        (torch.zeros(3, 1), torch.ones(3, 1), nn.MSELoss(), {"predicted": "0", "target": "1"}),
    ],
)
def test_what_is_no_class_has_no_name_in_a_csv_file(outputs, targets, loss_fn, columns, tmp_path):
    row = rows_of(tc.Predictions(outputs, targets, loss_fn, NAMED.classes), tmp_path)[0]
    assert {name: row[name] for name in columns} == columns
