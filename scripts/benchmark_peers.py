"""The benchmark's task as the users of each library write it.

Each is imported inside its own contestant: it is optional, and must not weigh on the others.
Whoever prints, logs or saves by default is told not to.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from benchmark_loops import (
    BETAS,
    DECAY,
    EPS,
    LR,
    Clock,
    Result,
    Split,
    Task,
    adamw,
    plain_loop,
    plain_loop_fused,
    plain_validation,
    torchcls,
    torchcls_dataloader,
)
from torch import Tensor


def fastai(task: Task, clock: Clock) -> Result:
    from fastai.vision.all import Callback, DataLoaders, Learner, accuracy

    class Lap(Callback):
        order = 99  # after the Recorder

        def after_epoch(self) -> None:
            clock.lap()

    dls = DataLoaders(*task.loaders(), device=task.device)
    learner = Learner(dls, task.model, task.loss_fn, metrics=accuracy, cbs=Lap())
    with learner.no_bar(), learner.no_logging():
        clock.start()
        learner.fit(task.epochs)
    _, loss, share = learner.recorder.values[-1]
    return loss, share


def lightning(task: Task, clock: Clock) -> Result:
    import lightning as library

    class Classifier(library.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = task.model

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return adamw(self.net)

        def training_step(self, batch: Split, _: int) -> Tensor:
            inputs, targets = batch
            loss = task.loss_fn(self.net(inputs), targets)
            self.log("train_loss", loss, on_step=False, on_epoch=True, batch_size=len(targets))
            return loss

        def validation_step(self, batch: Split, _: int) -> None:
            inputs, targets = batch
            outputs = self.net(inputs)
            self.log("valid_loss", task.loss_fn(outputs, targets), batch_size=len(targets))
            share = (outputs.argmax(dim=1) == targets).float().mean()
            self.log("accuracy", share, batch_size=len(targets))

        def on_train_epoch_end(self) -> None:  # comes after the validation
            clock.lap()

    trainer = library.Trainer(
        max_epochs=task.epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    classifier = Classifier()
    train, valid = task.loaders()  # a list of batches would be a list of loaders to it
    clock.start()
    trainer.fit(classifier, train, valid)
    found = trainer.callback_metrics
    return found["valid_loss"].item(), found["accuracy"].item()


def ignite(task: Task, clock: Clock) -> Result:
    from ignite.engine import Events, create_supervised_evaluator, create_supervised_trainer
    from ignite.metrics import Accuracy, Average, Loss

    train, valid = task.batches()
    trainer = create_supervised_trainer(task.model, adamw(task.model), task.loss_fn)
    Average().attach(trainer, "train_loss")
    measures = {"valid_loss": Loss(task.loss_fn), "accuracy": Accuracy()}
    evaluator = create_supervised_evaluator(task.model, metrics=measures)
    history = []

    @trainer.on(Events.EPOCH_COMPLETED)
    def validate() -> None:
        evaluator.run(valid)
        history.append({**trainer.state.metrics, **evaluator.state.metrics})
        clock.lap()

    clock.start()
    trainer.run(train, max_epochs=task.epochs)
    return history[-1]["valid_loss"], history[-1]["accuracy"]


def skorch(task: Task, clock: Clock) -> Result:
    from skorch import NeuralNetClassifier
    from skorch.callbacks import Callback
    from skorch.dataset import Dataset
    from skorch.helper import predefined_split

    class Lap(Callback):
        def on_epoch_end(self, net: Any, **_: Any) -> None:
            clock.lap()

    options: dict[str, Any] = {
        "batch_size": task.batch_size,
        "iterator_valid__batch_size": task.valid_batch_size,
    }
    if task.ready:  # it builds its DataLoaders itself: here they hand out what was cut
        train, valid = task.loaders()
        options = {
            "iterator_train": lambda dataset, **_: train,
            "iterator_valid": lambda dataset, **_: valid,
        }
    net = NeuralNetClassifier(
        task.model,
        criterion=task.loss_fn,
        optimizer=torch.optim.AdamW,
        optimizer__betas=BETAS,
        optimizer__eps=EPS,
        optimizer__weight_decay=DECAY,
        optimizer__param_groups=[("*bias", {"weight_decay": 0.0})],
        lr=LR,
        max_epochs=task.epochs,
        train_split=predefined_split(Dataset(*task.valid)),
        callbacks=[("lap", Lap())],
        verbose=0,
        device="cpu",
        **options,
    )
    clock.start()
    net.fit(*task.train)
    return net.history[-1, "valid_loss"], net.history[-1, "valid_acc"]


def accelerate(task: Task, clock: Clock) -> Result:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    model, optimizer, train, valid = accelerator.prepare(
        task.model, adamw(task.model), *task.loaders()
    )
    history = []
    clock.start()
    for _ in range(task.epochs):
        model.train()
        total, seen = 0.0, 0
        for inputs, targets in train:
            optimizer.zero_grad()
            loss = task.loss_fn(model(inputs), targets)
            accelerator.backward(loss)
            optimizer.step()
            total, seen = total + loss.item() * len(targets), seen + len(targets)
        history.append((total / seen, *plain_validation(task, valid)))
        clock.lap()
    return history[-1][1:]


def poutyne(task: Task, clock: Clock) -> Result:
    from poutyne import Callback, Model

    class Lap(Callback):
        def on_epoch_end(self, epoch_number: int, logs: dict[str, float]) -> None:
            clock.lap()

    model = Model(
        task.model, adamw(task.model), task.loss_fn, batch_metrics=["accuracy"], device="cpu"
    )
    train, valid = task.batches()
    clock.start()
    history = model.fit_generator(
        train, valid, epochs=task.epochs, verbose=False, callbacks=[Lap()]
    )
    return history[-1]["val_loss"], history[-1]["val_acc"] / 100  # its accuracy is in percent


def keras(task: Task, clock: Clock) -> Result:
    import keras as library  # KERAS_BACKEND=torch is set for every child

    class Lap(library.callbacks.Callback):
        steps = 0

        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
            # Keras does not correct epsilon for the bias of the start as torch and the paper's
            # main formula do; with an epsilon of this size another network would come out.
            self.steps += 1
            optimizer.epsilon = EPS * math.sqrt(1 - BETAS[1] ** self.steps)

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            clock.lap()

    shape = tuple(task.train[0].shape[1:])
    model = library.Sequential(
        [library.Input(shape), library.layers.TorchModuleWrapper(task.model)]
    )
    optimizer = library.optimizers.AdamW(
        learning_rate=LR, beta_1=BETAS[0], beta_2=BETAS[1], epsilon=EPS, weight_decay=DECAY
    )
    biases = [variable for variable in model.trainable_variables if len(variable.shape) <= 1]
    optimizer.exclude_from_weight_decay(var_list=biases)
    model.compile(
        optimizer,
        loss=library.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    train, valid = task.loaders()
    clock.start()
    history = model.fit(
        train, validation_data=valid, epochs=task.epochs, verbose=0, callbacks=[Lap()]
    ).history
    return history["val_loss"][-1], history["val_accuracy"][-1]


CONTESTANTS: dict[str, Callable[[Task, Clock], Result]] = {
    "plain loop": plain_loop,
    "plain loop, fused": plain_loop_fused,
    "torchcls": torchcls,
    "torchcls, DataLoader": torchcls_dataloader,
    "fastai": fastai,
    "Lightning": lightning,
    "Ignite": ignite,
    "skorch": skorch,
    "Accelerate": accelerate,
    "Poutyne": poutyne,
    "Keras": keras,
}

# What to install and what to import for each: the import that people write before training.
PEERS: dict[str, tuple[str, str]] = {
    "fastai": ("fastai", "fastai.vision.all"),
    "Lightning": ("lightning", "lightning"),
    "Ignite": ("pytorch-ignite", "ignite.engine"),
    "skorch": ("skorch", "skorch"),
    "Accelerate": ("accelerate", "accelerate"),
    "Poutyne": ("poutyne", "poutyne"),
    "Keras": ("keras", "keras"),
}
