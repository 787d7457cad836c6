"""How the peers of ``exact_averages.py`` validate and accumulate, as their users write it.

    python scripts/exact_averages_peers.py NAME

Prints one line of JSON: what the library reports as validation loss, and how far each of its steps
is from the right one. Every library is imported where it is used, and takes a process of its own.
"""

import os
import sys
import tempfile
from typing import Any

from exact_averages import LR, Loader, as_json, measure, sgd
from torch import nn


def validate_fastai(model: nn.Module, batches: Loader, loss_fn: nn.Module) -> float:
    from fastai.learner import DataLoaders, Learner

    learner = Learner(DataLoaders(batches, batches), model, loss_func=loss_fn)
    return learner.validate()[0]


def train_fastai(model: nn.Module, batches: Loader, loss_fn: nn.Module, accumulate: int) -> None:
    from fastai.callback.training import GradientAccumulation
    from fastai.learner import DataLoaders, Learner
    from fastai.optimizer import SGD

    samples = {3: 70, 4: 128}[accumulate]  # it counts samples, not batches
    learner = Learner(
        DataLoaders(batches, batches),
        model,
        loss_func=loss_fn,
        opt_func=SGD,
        lr=LR,
        wd=0.0,
        cbs=GradientAccumulation(samples),
    )
    learner.fit(1)


def lightning(model: nn.Module, loss_fn: nn.Module, accumulate: int = 1) -> tuple[Any, Any]:
    """A Trainer and a module for it."""
    import lightning as L

    class Module(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.loss_fn = model, loss_fn

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self.loss_fn(self.model(batch[0]), batch[1])

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("valid_loss", self.loss_fn(self.model(batch[0]), batch[1]))

        def configure_optimizers(self) -> Any:
            return sgd(self.model)

    trainer = L.Trainer(
        max_epochs=1,
        accumulate_grad_batches=accumulate,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    return trainer, Module()


def validate_lightning(model: nn.Module, batches: Loader, loss_fn: nn.Module) -> float:
    trainer, module = lightning(model, loss_fn)
    return trainer.validate(module, batches, verbose=False)[0]["valid_loss"]


def train_lightning(model: nn.Module, batches: Loader, loss_fn: nn.Module, accumulate: int) -> None:
    trainer, module = lightning(model, loss_fn, accumulate)
    trainer.fit(module, batches)


def validate_ignite(model: nn.Module, batches: Loader, loss_fn: nn.Module) -> float:
    from ignite.engine import create_supervised_evaluator
    from ignite.metrics import Loss

    evaluator = create_supervised_evaluator(model, metrics={"loss": Loss(loss_fn)})
    return evaluator.run(batches).metrics["loss"]


def train_ignite(model: nn.Module, batches: Loader, loss_fn: nn.Module, accumulate: int) -> None:
    from ignite.engine import create_supervised_trainer

    trainer = create_supervised_trainer(
        model, sgd(model), loss_fn, gradient_accumulation_steps=accumulate
    )
    trainer.run(batches, max_epochs=1)


def validate_skorch(model: nn.Module, batches: Loader, loss_fn: nn.Module) -> float:
    """Its validation loss is that of training; lr=0 leaves the weights alone."""
    from skorch import NeuralNet
    from skorch.helper import predefined_split

    net = NeuralNet(
        model,
        criterion=loss_fn,
        lr=0.0,
        max_epochs=1,
        batch_size=batches.batch_size,
        train_split=predefined_split(batches.dataset),
        verbose=0,
    )
    return net.fit(batches.dataset).history[-1, "valid_loss"]


def validate_poutyne(model: nn.Module, batches: Loader, loss_fn: nn.Module) -> float:
    from poutyne import Model

    return Model(model, None, loss_fn).evaluate_generator(batches, verbose=False)


def train_poutyne(model: nn.Module, batches: Loader, loss_fn: nn.Module, accumulate: int) -> None:
    from poutyne import Model

    wrapped = Model(model, sgd(model), loss_fn)
    wrapped.fit_generator(batches, epochs=1, batches_per_step=accumulate, verbose=False)


def train_accelerate(
    model: nn.Module, batches: Loader, loss_fn: nn.Module, accumulate: int
) -> None:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulate)
    model, optimizer, batches = accelerator.prepare(model, sgd(model), batches)
    for inputs, targets in batches:
        with accelerator.accumulate(model):
            accelerator.backward(loss_fn(model(inputs), targets))
            optimizer.step()
            optimizer.zero_grad()


def validate_pytorch_accelerated(model: nn.Module, batches: Loader, loss_fn: nn.Module) -> float:
    from pytorch_accelerated import Trainer

    trainer = Trainer(model, loss_fn, None, callbacks=())
    trainer.evaluate(
        batches.dataset,
        per_device_batch_size=batches.batch_size,
        dataloader_kwargs={"num_workers": 0},
    )
    return trainer.run_history.get_latest_metric("evaluation_loss")


def train_pytorch_accelerated(
    model: nn.Module, batches: Loader, loss_fn: nn.Module, accumulate: int
) -> None:
    from pytorch_accelerated import Trainer

    Trainer(model, loss_fn, sgd(model), callbacks=()).train(
        batches.dataset,
        num_epochs=1,
        per_device_batch_size=batches.batch_size,
        gradient_accumulation_steps=accumulate,
        train_dataloader_kwargs={"shuffle": False, "num_workers": 0},
    )


def train_keras(
    model: nn.Module, batches: Loader, loss_fn: nn.Module, accumulate: int
) -> bool | None:
    """The same layer in Keras, its weights carried there and back."""
    if loss_fn.weight is not None:
        return False  # its class weights are divided by the number of samples: another loss
    os.environ["KERAS_BACKEND"] = "torch"
    import keras
    import torch

    inputs, targets = batches.dataset.tensors
    twin = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
    twin.set_weights([model.weight.detach().T.numpy(), model.bias.detach().numpy()])
    twin.compile(
        optimizer=keras.optimizers.SGD(LR, gradient_accumulation_steps=accumulate),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    twin.fit(
        inputs.numpy(), targets.numpy(), batch_size=batches.batch_size, shuffle=False, verbose=0
    )
    weight, bias = twin.get_weights()
    with torch.no_grad():
        model.weight.copy_(torch.as_tensor(weight).T)
        model.bias.copy_(torch.as_tensor(bias))
    return None


WAYS = {  # None: it has no loop of its own for that
    "fastai": (validate_fastai, train_fastai),
    "Lightning": (validate_lightning, train_lightning),
    "Ignite": (validate_ignite, train_ignite),
    "skorch": (validate_skorch, None),
    "Poutyne": (validate_poutyne, train_poutyne),
    "Accelerate": (None, train_accelerate),
    "pytorch-accelerated": (validate_pytorch_accelerated, train_pytorch_accelerated),
    "Keras": (None, train_keras),
}


if __name__ == "__main__":
    name = sys.argv[1]
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # whatever a library saves by default goes away with it
        line = as_json(measure(*WAYS[name]))
    print(f"\n{line}")
