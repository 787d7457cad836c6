"""One function at a time inside other people's training code: frameworks, copied files, mypy.

The frameworks are those of the ``bench`` extra; each test is skipped where its own is missing.
"""

import copy
import doctest
import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import torchcls as tc

LOSS_FN = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0]))


def data(n=25, seed=0):
    """Not a multiple of the batch size 10: a mean of means shows."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(n, 4, generator=generator)
    return TensorDataset(inputs, (inputs @ torch.randn(4, 3, generator=generator)).argmax(dim=1))


TRAIN, VALID = DataLoader(data(), batch_size=10), DataLoader(data(seed=1), batch_size=10)


def network():
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1)


def state_of(model):
    modes = [module.training for module in model.modules()]
    return modes, copy.deepcopy(model.state_dict()), torch.get_rng_state()


def evaluated(model):
    """What ``tc.evaluate`` says, which has to be what one pass over the whole split says."""
    before = state_of(model)
    found = tc.evaluate(model, VALID, loss_fn=LOSS_FN, metrics=[tc.accuracy])
    torch.testing.assert_close(state_of(model), before, rtol=0, atol=0)
    inputs, targets = VALID.dataset.tensors
    mode = model.training
    with torch.no_grad():
        outputs = model.eval()(inputs)
    model.train(mode)
    assert found.n == len(targets)
    assert found.loss == pytest.approx(LOSS_FN(outputs, targets).item(), rel=1e-6)
    right = (outputs.argmax(dim=1) == targets).sum().item()
    assert found.metrics == {"accuracy": right / len(targets)}
    return found


def checked(model, optimizer=None):
    """``tc.check`` finds nothing in a sound model, the mistake in another, and changes neither."""
    before = state_of(model)
    batch = TRAIN.dataset.tensors
    assert tc.check(model, batch, LOSS_FN, [tc.accuracy], optimizer) == []
    twice = nn.Sequential(model, nn.Softmax(dim=1))
    assert "activated-twice" in [one.code for one in tc.check(twice, batch, LOSS_FN)]
    torch.testing.assert_close(state_of(model), before, rtol=0, atol=0)


# --- frameworks -----------------------------------------------------------------------------------


def framework(test):
    """What a framework warns of is its own affair; what is said of this file is an error."""
    quiet = pytest.mark.filterwarnings("ignore", f"error:::{__name__}")
    return pytest.mark.system(quiet(test))


@framework
def test_inside_a_module_of_lightning():
    lightning = pytest.importorskip("lightning")

    class Classifier(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net, self.found = network(), []

        def forward(self, inputs):
            return self.net(inputs)

        def configure_optimizers(self):
            return sgd(self)

        def on_train_start(self):
            checked(self, self.optimizers().optimizer)

        def training_step(self, batch, _):
            inputs, targets = batch
            return tc.cross_entropy(self(inputs), targets, weight=LOSS_FN.weight)

        def validation_step(self, batch, _):
            inputs, targets = batch
            self.log("accuracy", tc.accuracy(self(inputs), targets), batch_size=len(targets))

        def on_validation_epoch_end(self):  # under torch.inference_mode
            self.found.append(evaluated(self))

    classifier = Classifier()
    trainer = lightning.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(classifier, TRAIN, VALID)
    assert len(classifier.found) == 2
    logged = trainer.callback_metrics["accuracy"].item()
    assert logged == pytest.approx(classifier.found[-1].metrics["accuracy"])


@framework
def test_inside_the_handlers_of_ignite():
    pytest.importorskip("ignite")
    from ignite.engine import Events, create_supervised_evaluator, create_supervised_trainer
    from ignite.metrics import Accuracy, EpochMetric, Loss

    model = network()
    optimizer = sgd(model)
    trainer = create_supervised_trainer(model, optimizer, LOSS_FN)
    ours = EpochMetric(tc.accuracy, check_compute_fn=False)  # of all outputs and targets at once
    metrics = {"theirs": Accuracy(), "ours": ours, "loss": Loss(tc.cross_entropy)}
    evaluator = create_supervised_evaluator(model, metrics)
    trainer.add_event_handler(Events.STARTED, lambda: checked(model, optimizer))
    rows = []

    @trainer.on(Events.EPOCH_COMPLETED)
    def validate():
        evaluator.run(VALID)
        rows.append((evaluator.state.metrics, evaluated(model)))

    trainer.run(TRAIN, max_epochs=2)
    assert len(rows) == 2
    for theirs, found in rows:
        assert theirs["theirs"] == pytest.approx(found.metrics["accuracy"])
        assert float(theirs["ours"]) == pytest.approx(found.metrics["accuracy"])
    loss = tc.evaluate(model, VALID, loss_fn=tc.cross_entropy).loss
    assert rows[-1][0]["loss"] == pytest.approx(loss)


@framework
def test_on_what_accelerate_has_prepared():
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True)
    model = network()
    model, optimizer, train, valid = accelerator.prepare(model, sgd(model), TRAIN, VALID)
    checked(model, optimizer.optimizer)
    for inputs, targets in train:
        optimizer.zero_grad()
        loss = tc.cross_entropy(model(inputs), targets, weight=LOSS_FN.weight)
        accelerator.backward(loss)
        optimizer.step()
    found = tc.evaluate(model, valid, loss_fn=LOSS_FN, metrics=[tc.accuracy])
    assert found == evaluated(accelerator.unwrap_model(model))


@framework
def test_as_a_score_and_on_the_module_of_skorch():
    skorch = pytest.importorskip("skorch")
    from skorch.callbacks import EpochScoring
    from skorch.helper import predefined_split

    def accuracy(net, dataset, targets):
        return tc.accuracy(net.forward(dataset), torch.as_tensor(targets)).item()

    net = skorch.NeuralNetClassifier(
        network(),
        criterion=nn.CrossEntropyLoss,
        criterion__weight=LOSS_FN.weight,
        max_epochs=2,
        batch_size=10,
        train_split=predefined_split(VALID.dataset),
        callbacks=[EpochScoring(accuracy, name="ours", lower_is_better=False)],
        verbose=0,
    )
    net.fit(TRAIN.dataset, y=None)
    checked(net.module_, net.optimizer_)
    found = evaluated(net.module_)
    assert net.history[-1, "ours"] == pytest.approx(found.metrics["accuracy"])
    assert net.history[-1, "valid_acc"] == pytest.approx(found.metrics["accuracy"])


@framework
def test_as_loss_and_metric_of_a_learner_of_fastai():
    pytest.importorskip("fastai")
    from fastai.callback import progress  # gives a Learner no_bar
    from fastai.data.core import DataLoaders
    from fastai.learner import Learner

    dls = DataLoaders(TRAIN, VALID, device=torch.device("cpu"))
    learner = Learner(dls, network(), loss_func=tc.cross_entropy, metrics=tc.accuracy)
    assert progress
    with learner.no_bar(), learner.no_logging():
        checked(learner.model)
        learner.fit(2)
    _, loss, accuracy = learner.recorder.values[-1]
    found = evaluated(learner.model)
    assert accuracy == pytest.approx(found.metrics["accuracy"])
    assert loss == pytest.approx(tc.evaluate(learner.model, VALID, loss_fn=tc.cross_entropy).loss)


@framework
def test_as_loss_and_on_the_model_of_keras(monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    keras = pytest.importorskip("keras")

    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.layers.Input((4,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(3)]
    )

    def loss(targets, outputs):
        return tc.cross_entropy(outputs, targets.long(), reduction="none")

    def accuracy(targets, outputs):
        return tc.accuracy(outputs, targets.long()) * torch.ones(len(targets))

    model.compile(optimizer="sgd", loss=loss, metrics=[accuracy])
    checked(model)
    model.fit(TRAIN, epochs=2, verbose=0)
    theirs = model.evaluate(VALID, verbose=0, return_dict=True)
    found = evaluated(model)
    assert theirs["accuracy"] == pytest.approx(found.metrics["accuracy"])
    ours = tc.evaluate(model, VALID, loss_fn=tc.cross_entropy).loss
    assert theirs["loss"] == pytest.approx(ours, rel=1e-5)


# --- files that are copied out --------------------------------------------------------------------


@pytest.mark.parametrize("name", ["functional", "metrics"])
def test_a_copied_file_works_where_there_is_no_torchcls(name, tmp_path, monkeypatch):
    for module in [name for name in sys.modules if name.split(".")[0] == "torchcls"]:
        monkeypatch.setitem(sys.modules, module, None)  # an import of it fails
    source = Path(tc.__file__).with_name(f"{name}.py").read_text("utf-8")
    path = tmp_path / "theirs.py"
    path.write_text(source.replace(f"torchcls.{name}", "theirs"), "utf-8")
    spec = importlib.util.spec_from_file_location("theirs", path)
    theirs = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "theirs", theirs)
    spec.loader.exec_module(theirs)
    flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    result = doctest.testmod(theirs, optionflags=flags)
    assert result.attempted >= 20
    assert result.failed == 0


# --- types ----------------------------------------------------------------------------------------

SCRIPT = """
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import torchcls as tc


def share_of_zeros(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.argmax(dim=1) == 0).float().mean()


images, targets = tc.drawn_digits(200)
train = tc.Batches(images, targets, batch_size=50, shuffle=True)
valid = DataLoader(TensorDataset(*tc.drawn_digits(100, seed=1)), batch_size=50)
model = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
loss_fn = nn.CrossEntropyLoss()
optimizer = tc.default_optimizer(model, lr=1e-3)
history = tc.fit(
    model,
    train,
    valid,
    loss_fn=loss_fn,
    epochs=2,
    metrics=[tc.accuracy, share_of_zeros],
    optimizer=optimizer,
    schedule=tc.one_cycle(),
    progress=False,
)
best: float = min(record["valid_loss"] for record in history)
run = tc.epochs(model, train, valid, loss_fn=tc.cross_entropy, epochs=1, metrics={"a": tc.accuracy})
for at in run.steps():
    number: int = at.epoch
run.stop()
for batch in train:
    optimizer.zero_grad()
    loss: Tensor = tc.backward(model, batch, loss_fn, micro_batch=20)
    optimizer.step()
mean: float = tc.train_one_epoch(model, train, loss_fn, optimizer)
found = tc.evaluate(model, valid, loss_fn=loss_fn, metrics=[tc.accuracy])
share: float = found.metrics["accuracy"]
answers = tc.predict(model, images, loss_fn=loss_fn)
probabilities = answers.probabilities
for finding in tc.check(model, (images, targets), loss_fn, [tc.accuracy], optimizer):
    print(finding.code, finding.severity, finding.message)
rows: Tensor = tc.one_hot(targets, 10)
table: Tensor = tc.confusion_matrix(model(images), targets)
"""


@pytest.mark.system
def test_a_script_passes_mypy_strictly(tmp_path, monkeypatch):
    api = pytest.importorskip("mypy.api")
    script = tmp_path / "script.py"
    script.write_text(SCRIPT, "utf-8")
    options = ["--strict", "--config-file=", f"--cache-dir={tmp_path / 'cache'}"]
    monkeypatch.setenv("MYPYPATH", str(Path(tc.__file__).parents[1]))
    monkeypatch.chdir(tmp_path)
    words, errors, status = api.run([*options, str(script)])
    assert status == 0, words + errors
    script.write_text(SCRIPT + "tc.accuracy(model, 1)\n", "utf-8")  # and types are there at all
    words, _, status = api.run([*options, str(script)])
    assert (status, words.count("[arg-type]")) == (1, 2), words
