"""The lecture's six experiments on real MNIST: the rows of every table against fastai's."""

import functools
import json
import os
from pathlib import Path

import pytest
import torch
from torch import nn

import torchcls as tc
from torchcls.speed import pieces

GOLDEN = json.loads((Path(__file__).parent / "golden" / "fastai_lecture.json").read_text())
MNIST = os.environ.get("TORCHCLS_MNIST")
pytestmark = pytest.mark.skipif(not MNIST, reason="TORCHCLS_MNIST names no folder with MNIST")


@pytest.fixture(scope="module", autouse=True)
def _the_same_cache_everywhere():
    """Batches are cut alike on every machine; one test takes them whole."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(pieces, "cache_bytes", lambda: 32 * 2**20)
        yield


@functools.cache
def digits(classes):
    return tc.mnist(MNIST, classes=classes)


def network(outputs, *last):
    torch.manual_seed(0)
    body = nn.Conv2d(1, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()
    return nn.Sequential(*body, nn.Linear(2304, outputs), *last)


def class_ids(targets):
    return targets


def onehot(targets):
    return tc.one_hot(targets).float()


def column(targets):
    return targets.float().reshape(-1, 1)


def fastai_accuracy(outputs, targets):
    """The lecture's misuse, as fastai has it: argmax over the last axis, then flatten both."""
    return (outputs.argmax(-1).reshape(-1) == targets.reshape(-1)).float().mean()


def fastai_error_rate(outputs, targets):
    return 1 - fastai_accuracy(outputs, targets)


def threshold_error(outputs, targets):
    return 1 - tc.threshold_accuracy(outputs, targets)


TWO = {"classes": (0, 1), "batch_size": 1266}
SIGMOID = {  # two experiments, one training: they differ in the metrics that are shown
    **TWO,
    "model": lambda: network(1, nn.Sigmoid()),
    "form": column,
    "loss": nn.BCELoss(),
    "metrics": {
        "acc": tc.threshold_accuracy,
        "err": threshold_error,
        "accuracy": fastai_accuracy,
        "error_rate": fastai_error_rate,
    },
}
EXPERIMENTS = {
    "three_digits": {
        "classes": (0, 1, 2),
        "batch_size": 1862,
        "model": lambda: network(3),
        "metrics": {},
    },
    "two_digits_onehot": {
        "classes": (0, 1),
        "batch_size": 1862,
        "model": lambda: network(2),
        "form": onehot,
        "metrics": {},
    },
    "sigmoid_custom_metrics": SIGMOID,
    "sigmoid_argmax_misuse": SIGMOID,
    "int_targets": {
        **TWO,
        "model": lambda: network(2),
        "metrics": [tc.accuracy, tc.error_rate],
    },
    "onehot_targets": {
        **TWO,
        "model": lambda: network(2),
        "form": onehot,
        "metrics": {"accuracy_multi": tc.multilabel_accuracy},
    },
}


@functools.cache
def run_once(name, epochs):
    return run(name, epochs)


def run(name, epochs, micro_batch="auto", ignore=("metric-ignores-outputs",)):
    recipe = EXPERIMENTS[name]
    form = recipe.get("form", class_ids)
    (train_x, train_y), (test_x, test_y) = digits(recipe["classes"])
    return tc.fit(
        recipe["model"](),
        tc.Batches(train_x, form(train_y), batch_size=recipe["batch_size"]),
        tc.Batches(test_x, form(test_y), batch_size=512),
        loss_fn=recipe.get("loss", nn.CrossEntropyLoss()),
        epochs=epochs,
        metrics=recipe["metrics"],
        micro_batch=micro_batch,
        ignore=ignore,
        device="cpu",
        progress=False,
    )


def assert_rows_agree(history, name):
    columns = GOLDEN["experiments"][name]["columns"]
    for record, row in zip(history, GOLDEN["experiments"][name]["rows"], strict=False):
        for column_name, expected in zip(columns, row, strict=True):
            # fastai's train_loss column is the running mean.
            ours = record["smooth_loss" if column_name == "train_loss" else column_name]
            band = 1e-4 if column_name.endswith("loss") else 1e-6
            assert ours == pytest.approx(expected, rel=0, abs=band), (name, record.epoch)


@pytest.mark.parametrize("name", EXPERIMENTS)
@pytest.mark.parametrize("epochs", [1, pytest.param(10, marks=pytest.mark.system)])
def test_the_rows_of_the_experiment_equal_fastais(name, epochs):
    same_training = {"sigmoid_argmax_misuse": "sigmoid_custom_metrics"}
    history = run_once(same_training.get(name, name), epochs)
    assert len(history) == epochs
    assert history.micro_batch is not None
    assert_rows_agree(history, name)


@pytest.mark.system
def test_whole_batches_give_the_first_row_of_fastai_too():
    assert_rows_agree(run("int_targets", epochs=1, micro_batch=None), "int_targets")


def test_the_golden_file_and_the_experiments_name_each_other():
    assert set(EXPERIMENTS) == set(GOLDEN["experiments"])
    assert {len(table["rows"]) for table in GOLDEN["experiments"].values()} == {10}
    assert GOLDEN["versions"]["fastai"] == "2.8.12"


def test_the_preflight_stops_the_lectures_misuse_before_the_first_step():
    with pytest.raises(tc.ContractError, match="share of zeros among the targets") as stopped:
        run("sigmoid_argmax_misuse", epochs=1, ignore=())
    assert {finding.code for finding in stopped.value.findings} == {"metric-ignores-outputs"}


def test_accuracy_refuses_the_lectures_misuse_and_names_the_way_out():
    _, (test_x, test_y) = digits((0, 1))
    outputs = tc.predict(network(1, nn.Sigmoid()), test_x).outputs
    assert fastai_accuracy(outputs, column(test_y)).item() == pytest.approx(0.463357, abs=5e-7)
    with pytest.raises(ValueError, match="threshold_accuracy"):
        tc.accuracy(outputs, column(test_y))


def test_the_lectures_numbers_of_images():
    for classes, counts in (((0, 1, 2), (18_623, 3_147)), ((0, 1), (12_665, 2_115))):
        assert tuple(len(targets) for _, targets in digits(classes)) == counts
