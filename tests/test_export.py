"""Models as files: what a reader of each format gets, and what stays as it was."""

import copy
import json
import re
import sys

import pytest
import torch
from torch import nn

import torchcls as tc
from torchcls import heads

CE, BCE = nn.CrossEntropyLoss(), nn.BCEWithLogitsLoss()
SCALING = {"mean": [0.5], "std": [0.25]}


@pytest.fixture(params=[".pt2", ".onnx"])
def path(request, tmp_path):
    if request.param == ".onnx":
        for needed in ("onnxruntime", "onnxscript"):
            pytest.importorskip(needed, reason=f"needs {needed}")
        if torch.__version__.startswith("2.6."):
            pytest.skip("torch 2.6 does not go with the onnxscript of today")
    return tmp_path / f"model{request.param}"


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 3)
    )


def cnn():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 1)
    )


def read(path):
    """What a program without torchcls makes of a file: a function of inputs, and the facts."""
    names = ("classes", "scaling", "input_shape", "input_dtype", "probabilities")
    if path.suffix == ".pt2":
        facts = dict.fromkeys(names, "")
        call = torch.export.load(path, extra_files=facts).module()
    else:
        import onnxruntime

        session = onnxruntime.InferenceSession(path)
        facts = session.get_modelmeta().custom_metadata_map

        def call(inputs):
            (outputs,) = session.run(["outputs"], {"inputs": inputs.numpy()})
            return torch.from_numpy(outputs)

    return call, {name: json.loads(facts[name]) for name in names}


class By(nn.Module):
    """A model that is one function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, inputs):
        return self.function(inputs)


# --- what the files give ------------------------------------------------------------------------


def test_a_program_gives_the_probabilities_of_any_number_of_rows_and_keeps_the_facts(path):
    model, classes = mlp(), ["cat", "\u732b", "3"]
    tc.export(model, torch.randn(1, 6), path, loss_fn=CE, classes=classes, scaling=SCALING)
    call, facts = read(path)
    inputs = torch.randn(7, 6)
    expected = heads.probabilities(model.eval()(inputs), CE)
    torch.testing.assert_close(call(inputs), expected, rtol=1e-4, atol=1e-4)
    assert facts == {
        "classes": classes,
        "scaling": SCALING,
        "input_shape": [6],
        "input_dtype": "float32",
        "probabilities": True,
    }


def test_a_network_of_images_with_a_sigmoid_as_its_head(path):
    model = cnn()
    tc.export(model, torch.randn(4, 1, 8, 8), path, loss_fn=BCE, classes=("no", "yes"))
    call, facts = read(path)
    inputs = torch.randn(1, 1, 8, 8)
    expected = model.eval()(inputs).sigmoid()
    torch.testing.assert_close(call(inputs), expected, rtol=1e-4, atol=1e-4)
    assert facts["input_shape"] == [1, 8, 8]


def test_without_a_loss_outputs_are_those_of_the_model_and_inputs_may_be_ids(tmp_path):
    path = tmp_path / "model.pt2"
    path.write_bytes(b"earlier")  # replaced
    model = nn.Sequential(nn.EmbeddingBag(10, 4, mode="sum"), nn.Linear(4, 3))
    tc.export(model, torch.randint(10, (4, 5)), path)
    call, facts = read(path)
    inputs = torch.randint(10, (3, 5))
    torch.testing.assert_close(call(inputs), model.eval()(inputs), rtol=1e-4, atol=1e-4)
    assert (facts["input_dtype"], facts["probabilities"]) == ("int64", False)


def test_a_weights_file_is_a_checkpoint_with_the_state_dict_of_the_written_model(tmp_path):
    model = mlp()
    path = tmp_path / "model.pt"
    compiled = torch.compile(model, backend="eager")
    tc.export(compiled, torch.randn(4, 6), path, classes=["a", "b", "c"], scaling=SCALING)
    kept = torch.load(path, weights_only=True)
    again = mlp()
    nn.init.zeros_(again[0].weight)
    again.load_state_dict(kept.pop("model"))
    torch.testing.assert_close(again.state_dict(), model.state_dict(), rtol=0, atol=0)
    assert kept == {
        "classes": ["a", "b", "c"],
        "scaling": SCALING,
        "input_shape": [6],
        "input_dtype": "float32",
        "probabilities": False,
    }


# --- what stays as it was -----------------------------------------------------------------------


@pytest.mark.parametrize("path", [".pt", ".pt2", ".onnx"], indirect=True)
def test_modes_gradients_weights_and_random_state_are_as_they_were(path):
    model = mlp().train()
    model[1].eval()
    model(torch.randn(4, 6)).sum().backward()
    found = [module.training for module in model.modules()]
    kept, gradients = (
        copy.deepcopy(model.state_dict()),
        [p.grad.clone() for p in model.parameters()],
    )
    held, state = list(model.parameters()), torch.get_rng_state()
    tc.export(model, torch.zeros(4, 6), path)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == found
    torch.testing.assert_close(model.state_dict(), kept, rtol=0, atol=0)
    assert all(a is b for a, b in zip(model.parameters(), held, strict=True))
    torch.testing.assert_close([p.grad for p in model.parameters()], gradients, rtol=0, atol=0)
    assert list(path.parent.iterdir()) == [path]


def noisy(inputs):
    return inputs + torch.rand_like(inputs)


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (noisy, "must give the model's outputs, and was not written. Keep random numbers"),
        (lambda x: x.view(8, -1)[: len(x)], "a program for any number of rows"),
        (lambda x: x if x.sum() > 0 else -x, "a program for any number of rows"),
    ],
    ids=["random", "fixed batch", "branch"],
)
def test_a_model_that_cannot_be_exported_is_refused_and_the_file_stays(function, said, tmp_path):
    path = tmp_path / "model.pt2"
    path.write_bytes(b"earlier")
    with pytest.raises(ValueError, match=re.escape(said)):
        tc.export(By(function), torch.ones(4, 6), path)
    assert path.read_bytes() == b"earlier"
    assert list(tmp_path.iterdir()) == [path]


# --- errors -------------------------------------------------------------------------------------

X = torch.ones(4, 6)


@pytest.mark.parametrize(
    ("example", "name", "options", "kind", "said"),
    [
        (X, "model.pth", {}, ValueError, "path must end in .pt, .pt2 or .onnx, got"),
        (X, "no/model.pt2", {}, FileNotFoundError, "path must be in a folder that is there, got"),
        (X, "model.pt", {"loss_fn": CE}, ValueError, "loss_fn must be left out for a .pt"),
        ((X, X), "model.pt2", {}, TypeError, "example must be one tensor, got tuple. For a model"),
        ({"x": X}, "model.pt2", {}, TypeError, "example must be one tensor, got dict. For a model"),
        (X[:0], "model.pt2", {}, ValueError, "must have a row at least, got shape (0, 6)."),
        (X[0, 0], "model.pt2", {}, ValueError, "must have a row at least, got shape ()."),
        (
            X,
            "model.pt2",
            {"classes": ["a", "b"]},
            ValueError,
            "classes must be 3 names, got 2 for outputs of shape (4, 3).",
        ),
        (X, "model.pt2", {"scaling": X}, TypeError, "classes and scaling must be plain values"),
        (X, "model.pt2", {"scaling": float("nan")}, TypeError, "must be plain values"),
        (X, "model.pt2", {"loss_fn": nn.MSELoss()}, ValueError, "a classification loss, got mse"),
        (X, "model.pt2", {"loss_fn": nn.L1Loss()}, ValueError, "one whose activation is known"),
    ],
)
def test_what_is_wrong_is_said_by_name(example, name, options, kind, said, tmp_path):
    with pytest.raises(kind, match=re.escape(said)):
        tc.export(mlp(), example, tmp_path / name, **options)
    assert list(tmp_path.iterdir()) == []


def test_outputs_that_are_no_tensor_are_refused(tmp_path):
    with pytest.raises(TypeError, match="outputs must be one tensor, got tuple"):
        tc.export(By(lambda x: (x, x)), X, tmp_path / "model.pt2")


@pytest.mark.parametrize("missing", ["onnxruntime", "onnxscript"])
def test_onnx_without_its_packages_says_what_to_install(missing, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match="Run pip install onnxruntime onnxscript"):
        tc.export(mlp(), X, tmp_path / "model.onnx")
