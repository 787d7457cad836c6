"""Whole runs: where the loops are put together with what may stand around them."""

import os
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any, Literal

from torch import nn
from torch.optim import Optimizer

from torchcls.averaging import averaging_of
from torchcls.batches import check_source, check_whole_number, device_of, num_batches, set_epoch
from torchcls.data.nearby import Nearby
from torchcls.device import Device, place, select_device
from torchcls.display import Display
from torchcls.evaluation import (
    Evaluation,
    Metrics,
    Scores,
    better,
    is_object,
    measure,
    named_metrics,
)
from torchcls.group import Group
from torchcls.history import History
from torchcls.optim import (
    check_lr,
    check_optimizer,
    default_optimizer,
    doubts_about,
    schedule_of,
)
from torchcls.precision import check_precision, precision_of
from torchcls.preflight.findings import Check, check_choice
from torchcls.preflight.run import Preflight
from torchcls.processes.group import processes
from torchcls.processes.shares import check_not_shared
from torchcls.run import Rest, Run, Source
from torchcls.speed.loaders import taken_at_once
from torchcls.speed.pieces import AutoPieces
from torchcls.state import is_sharded
from torchcls.step import (
    ForwardOf,
    Loss,
    Pieces,
    Step,
    check_can_train,
    check_micro_batch,
    forward_of,
)
from torchcls.survival.best import best_by
from torchcls.survival.keep import Survival, check_keeping
from torchcls.survival.source import Replayed

MicroBatch = int | Literal["auto"] | None
Folder = str | os.PathLike[str]

_RESERVED = ("epoch", "train_loss", "smooth_loss", "valid_loss", "time")


def fit(
    model: nn.Module,
    train: Iterable[Any],
    valid: Iterable[Any] | None = None,
    *,
    loss_fn: Loss,
    epochs: int = 10,
    metrics: Metrics = (),
    train_metrics: Metrics = (),
    optimizer: Optimizer | None = None,
    lr: float | None = None,
    schedule: Any = None,
    clip_norm: float | None = None,
    forward: ForwardOf = None,
    device: Device = None,
    precision: str = "float32",
    micro_batch: MicroBatch = "auto",
    check: Check = "error",
    ignore: Collection[str] = (),
    checkpoint: Folder | None = None,
    resume: bool = False,
    save_every: float = 60,
    best: str = "valid_loss",
    progress: bool | None = None,
) -> History:
    """Train a model for some epochs, validate after each, and return the history.

    Args:
        model: Any module.
        train: Anything that can be iterated again and yields pairs (inputs, targets): a DataLoader,
            a ``Batches``, a list.
        valid: The same for validation, or None.
        loss_fn: Called as ``loss_fn(outputs, targets)``. Averages are exact for the losses of torch
            and torchcls; another one is taken as a mean over samples, or returns
            (numerator, denominator).
        epochs: How often to go through ``train``.
        metrics: What to measure on ``valid``, as ``evaluate`` takes it.
        train_metrics: The same on the outputs of the training steps, each from before its step and
            in training mode, with no second pass; columns of their own, such as ``train_accuracy``.
        optimizer: Any optimizer over the model's parameters. None builds ``default_optimizer``.
        lr: Learning rate of the default optimizer, 1e-3 if None; not beside ``optimizer``.
        schedule: ``tc.one_cycle()``, any function from progress in [0, 1) to a scale of each
            group's own lr (or to scale and momentum), or a scheduler of torch, which is stepped
            once per epoch; ``OneCycleLR`` and ``CyclicLR`` per step, ``ReduceLROnPlateau`` on
            valid_loss. ``tc.each_step(scheduler)`` and ``tc.on("accuracy", scheduler)`` say
            otherwise: one steps per step, the other a plateau on that column.
        clip_norm: The largest global norm of the gradients of a step, above 0; longer ones are
            scaled down to it. Those of the whole batch, as they are: whatever the pieces, and after
            the loss scale of float16 is taken out. None clips nothing.
        forward: What to call in place of ``model(inputs)``, as ``forward(model, inputs)``: a model
            of several arguments takes ``forward=lambda model, inputs: model(*inputs)``.
        device: Where to work. None keeps a model that is on an accelerator, and else takes it to
            ``select_device()``. The model stays there afterwards.
        precision: "float32"; "bfloat16" or "float16" run the model under ``torch.autocast``, with
            float32 weights, and hand float32 outputs to loss and metrics. "float16" scales the loss
            and skips a step whose gradients overflow.
        micro_batch: Samples that go through at a time. The step is that of the whole batch to
            rounding; see ``backward``. None leaves batches whole. "auto" cuts on the CPU, where a
            batch's activations are larger than the cache and the model is a ``Sequential`` of
            torch's own layers that treat every sample by itself, with a loss that torchcls knows;
            everywhere else, and in another precision than float32, it leaves batches whole.
            ``history.micro_batch`` says what it chose.
        check: What to do about what the preflight finds in model, loss, targets, metrics, optimizer
            and data; see ``check``. It reads the first training step before the optimizer does, and
            the loss and gradients of every step on the CPU. In that first step it validates on one
            batch, with copies of the metrics, and puts all back: what would fail after an epoch is
            said then. (Of lists, ``Batches`` and DataLoaders without workers; others may be started
            once only.) "error" raises ``ContractError`` where something is certainly wrong and
            warns once of what almost certainly is; "warn" warns of both; "off" does not look.
            ``history.findings`` keeps all of it, notes included.
        ignore: Codes of findings to leave out, such as ``["valid-is-train"]``.
        checkpoint: A folder for the state of the run: ``last.pt``, ``best.pt``, and ``epoch.pt``,
            an earlier one to fall back to. None keeps nothing. Each is a file of
            ``save_checkpoint``; ``torch.load(path, weights_only=True)["model"]`` are the weights.
        resume: Whether to go on with the run in ``checkpoint`` where there is one, from its last
            saved step and to the same bits (docs/runs-that-survive.md). The arguments must be those
            it was begun with. A run that ended, also by ``stop``, is not trained further.
        save_every: Seconds between two states inside an epoch. Another one is written at the end of
            every epoch, before its record is handed out.
        best: The column of the history that says which epoch's weights are the best: a loss, one of
            torchcls's metrics by name, or "min:" or "max:" and the name of another one.
        progress: None shows a bar in a terminal and plain lines in a pipe; True and False force it
            on and off.

    Returns:
        A ``History``: one record for each epoch. Where the run ends early, by Ctrl-C or an error,
        what was raised has it: ``except KeyboardInterrupt as stopped: history = stopped.history``.

    Raises:
        TypeError, ValueError: Before anything runs where an argument does not fit; at the batch
            where a batch does not.
        OSError: Before anything runs where ``checkpoint`` cannot be written. Later that costs a
            warning, and the run goes on.
        ContractError: A ValueError: before the weights have moved where the preflight finds a
            mistake; at the first batch whose loss or gradients are not finite, with the weights of
            the step before it.

    Examples:
        >>> import torch
        >>> from torchcls import Batches, accuracy, drawn_digits
        >>> train = Batches(*drawn_digits(200, classes=(0, 1)), batch_size=32, shuffle=True)
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(784, 2))
        >>> valid = Batches(*drawn_digits(100, classes=(0, 1), seed=1), batch_size=100)
        >>> history = fit(model, train, valid, loss_fn=nn.CrossEntropyLoss(), epochs=2,
        ...               metrics=[accuracy], progress=False)
        >>> list(history[-1])
        ['epoch', 'train_loss', 'smooth_loss', 'valid_loss', 'accuracy', 'time']
    """
    run = _assembled(SimpleNamespace(**locals()))
    try:
        for _ in run.steps():
            pass
        if run.is_broken:  # and no error of this process's own
            raise RuntimeError("the first process was interrupted or has failed, and so all end.")
    except BaseException as stopped:  # Ctrl-C in a notebook must not cost the epochs before it
        vars(stopped)["history"] = run.history
        raise
    return run.history


def epochs(
    model: nn.Module,
    train: Iterable[Any],
    valid: Iterable[Any] | None = None,
    *,
    loss_fn: Loss,
    epochs: int = 10,
    metrics: Metrics = (),
    train_metrics: Metrics = (),
    optimizer: Optimizer | None = None,
    lr: float | None = None,
    schedule: Any = None,
    clip_norm: float | None = None,
    forward: ForwardOf = None,
    device: Device = None,
    precision: str = "float32",
    micro_batch: MicroBatch = "auto",
    check: Check = "error",
    ignore: Collection[str] = (),
    checkpoint: Folder | None = None,
    resume: bool = False,
    save_every: float = 60,
    best: str = "valid_loss",
    progress: bool | None = None,
) -> Run:
    """Set up what ``fit`` does, and leave the loop to you: its epochs, or its steps.

    Takes the arguments of ``fit``, and checks them here and not at the first epoch.

    Returns:
        A ``Run``: ``for record in run`` goes from epoch to epoch, ``for at in run.steps()`` from
        step to step; ``break`` needs no clean-up, and iterating again goes on from there.

    Examples:
        >>> import torch
        >>> batches = [(torch.randn(8, 2), torch.randint(3, (8,)))]
        >>> run = epochs(nn.Linear(2, 3), batches, loss_fn=nn.CrossEntropyLoss(),
        ...              epochs=100, progress=False)
        >>> for record in run:
        ...     if record.epoch == 1:
        ...         break
        >>> len(run.history)
        2
    """
    return _assembled(SimpleNamespace(**locals()))


def _assembled(chosen: Any) -> Run:
    """Check the arguments of a run, and put it together from them, alike in all processes."""
    check_can_train()
    group = processes()
    with group.together():
        run, survival, display = _put_together(chosen, group)
    where = None if survival is None else survival.keep(run)
    if where is not None:
        display.say(f"going on in {chosen.checkpoint}: {where}")
    return run


def _put_together(chosen: Any, group: Group) -> tuple[Run, Survival | None, Display]:
    _check(chosen)
    for source in (chosen.train, chosen.valid) if group.size > 1 else ():
        check_not_shared(source)
    if group.size > 1 and chosen.train_metrics and chosen.checkpoint is not None:
        raise ValueError(
            f"train_metrics must be empty where {group.size} processes have a checkpoint, since "
            "the first, which writes it, has only its own share. Measure them on valid."
        )
    model, train, valid, loss_fn = chosen.model, chosen.train, chosen.valid, chosen.loss_fn
    device = chosen.device
    if device is not None:
        device = select_device(device)
    elif device_of(model).type == "cpu":  # one that is on an accelerator stays there
        device = select_device()
    if chosen.optimizer is None:
        chosen.optimizer = default_optimizer(model, 1e-3 if chosen.lr is None else chosen.lr)
    optimizer, steps = chosen.optimizer, num_batches(train)
    length = {"epochs": chosen.epochs, "steps": steps}
    schedule = schedule_of(chosen.schedule, optimizer, **length, columns=_columns(chosen))
    look = Preflight(
        model,
        loss_fn,
        chosen.metrics,
        optimizer,
        train,
        valid,
        check=chosen.check,
        ignore=chosen.ignore,
        has_schedule=chosen.schedule is not None,
        scales_loss=chosen.precision == "float16",
        doubts=doubts_about(schedule, **length),
        forward=chosen.forward,
        train_metrics=chosen.train_metrics,
        group=group,
    )
    survival = None if chosen.checkpoint is None else Survival(chosen, group)
    # Everything is checked: from here on something changes.
    device = place(model, device, optimizer=optimizer)
    precision, nearby = precision_of(chosen.precision, device), Nearby(device)
    # What "auto" knows of layers and sizes, it knows of float32. Validation has a mode and a batch
    # of its own: a size that was asked for is for training.
    is_auto = chosen.micro_batch == "auto" and chosen.precision == "float32"
    is_auto = is_auto and not is_sharded(model)
    size = None if chosen.micro_batch == "auto" else chosen.micro_batch
    forward = chosen.forward
    pieces: Pieces = AutoPieces(model, forward=forward)
    of_valid: Pieces = AutoPieces(model, forward=forward)
    if not is_auto:
        pieces, of_valid = Pieces(model, size, forward=forward), Pieces(model, forward=forward)

    progress = chosen.progress if group.is_first else False
    display = Display(progress, chosen.epochs, steps, look.findings)

    def fast(source: Any) -> Any:
        return taken_at_once(nearby.copy(source))

    def opened(epoch: int) -> Any:
        set_epoch(train, epoch)
        return group.shares(train, fast)

    measured = partial(measure, model, device=device, pieces=of_valid, precision=precision)
    look.measure = None if is_sharded(model) else measured  # whose forward needs all processes

    def validate(epoch: int) -> Evaluation:
        batches = display.validating(group.shares(valid, fast), epoch)
        name = f"valid in epoch {epoch}" if epoch else "valid"
        return measured(batches, loss_fn, chosen.metrics, look=look, name=name, group=group)

    source = Source("train", train, opened)
    if survival is not None:
        source = Replayed("train", train, opened, valid, device, group)
    run = Run(
        model,
        source,
        Step(
            model,
            loss_fn,
            device=device,
            pieces=pieces,
            precision=precision,
            clip_norm=chosen.clip_norm,
            keeps_outputs=bool(chosen.train_metrics),
            group=group,
            watch=look.watch,
        ),
        optimizer,
        device,
        epochs=chosen.epochs,
        schedule=schedule,
        validate=None if valid is None else validate,
        look=look,
        scores=Scores(chosen.train_metrics, device, group) if chosen.train_metrics else None,
    )
    run.history.findings = look.findings  # the same list: more may follow
    run.around = display.shown
    if survival is not None:

        def around(rests: Callable[[], Iterator[Rest]]) -> Iterator[Rest]:
            return display.shown(lambda: survival.kept(rests))

        run.around = around
    return run, survival, display


def _check(chosen: Any) -> None:
    """Check everything that can be checked before anything is made."""
    model, optimizer, lr, clip_norm = chosen.model, chosen.optimizer, chosen.lr, chosen.clip_norm
    has_valid = chosen.valid is not None
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an instance of nn.Module, got {model!r}.")
    check_whole_number("epochs", chosen.epochs, at_least=1)
    check_micro_batch(chosen.micro_batch, may_be_auto=True)
    check_precision(chosen.precision)
    check_choice(chosen.check, chosen.ignore)
    check_source(chosen.train, "train")
    if has_valid:
        check_source(chosen.valid, "valid")
    _check_metrics(chosen.metrics, chosen.train_metrics, has_valid=has_valid)
    check_keeping(chosen.checkpoint, chosen.resume, chosen.save_every)
    objects = [name for name, m in named_metrics(chosen.train_metrics).items() if is_object(m)]
    if objects and chosen.checkpoint is not None:
        raise ValueError(
            f"train_metrics must be functions where there is a checkpoint, got {objects[0]}, an "
            "object: what it was fed inside an epoch cannot be kept. Measure it on valid."
        )
    best_by(chosen.best, chosen.metrics, has_valid=has_valid)
    if optimizer is not None and lr is not None:
        raise ValueError(
            f"lr must not stand beside optimizer, which has its own, got lr={lr!r}. "
            "Set the lr where the optimizer is built."
        )
    if optimizer is not None:
        check_optimizer(optimizer)
    if lr is not None:
        check_lr(lr)
    if clip_norm is not None:
        is_number = isinstance(clip_norm, (int, float)) and not isinstance(clip_norm, bool)
        if not is_number or not 0 < clip_norm < float("inf"):
            raise ValueError(f"clip_norm must be a number above 0 or None, got {clip_norm!r}.")
    averaging_of(chosen.loss_fn)
    forward_of(model, chosen.forward)


def _columns(chosen: Any) -> dict[str, str | None]:
    """The numbers of a record, and whether "min" or "max" is better where that is known."""
    losses = ["train_loss", "smooth_loss", *(["valid_loss"] if chosen.valid is not None else [])]
    of_train = named_metrics(chosen.train_metrics).items()
    metrics = named_metrics(chosen.metrics) | {f"train_{name}": m for name, m in of_train}
    return {**dict.fromkeys(losses, "min"), **{name: better(m) for name, m in metrics.items()}}


def _check_metrics(metrics: Metrics, train_metrics: Metrics, *, has_valid: bool) -> None:
    names, of_train = named_metrics(metrics), named_metrics(train_metrics)
    columns = (*_RESERVED, *(f"train_{name}" for name in of_train))
    if "loss" in of_train:
        raise ValueError("train_metrics must not be named 'loss': train_loss is another column.")
    taken = [name for name in names if name in columns]
    if taken:
        raise ValueError(
            f"metrics must not be named like another column ({', '.join(columns)}), "
            f"got {taken[0]!r}. Name it with a dict: metrics={{'my_{taken[0]}': metric}}."
        )
    if names and not has_valid:
        raise ValueError(
            f"metrics must have a valid to be measured on, got {', '.join(names)} and valid=None."
        )


def evaluate(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    loss_fn: Loss | None = None,
    metrics: Metrics = (),
    device: Device = None,
    forward: ForwardOf = None,
    group: Group | None = None,
) -> Evaluation:
    """Measure a model on every batch: exact over the whole split, however it is cut.

    The model is evaluated in evaluation mode and without gradients. Modes, gradients, grad mode and
    torch's random state are as before afterwards, also when the model raises. On a CPU a large
    batch goes through a ``Sequential`` of torch's own layers in pieces that fit into the cache,
    which changes its outputs by rounding at most.

    Args:
        model: Any module.
        batches: Any iterable of pairs (inputs, targets).
        loss_fn: Called as ``loss_fn(outputs, targets)``, or None for no loss.
        metrics: A list (named by ``__name__``) or a dict of names. The metrics of torchcls, plain
            or as ``functools.partial``, are counted batch by batch and divided once. An object with
            ``update``, ``compute`` and ``reset`` is reset, fed and asked. Any other function is
            called once with the outputs and targets of the whole split.
        device: Where to work; the model is taken there. None stays where the model is.
        forward: Called as ``forward(model, inputs)`` in place of ``model(inputs)``.
        group: The processes that share every batch, as ``tc.processes()`` gives them; all get the
            numbers of the whole split. None evaluates in this one alone.

    Returns:
        An ``Evaluation`` with ``.loss``, ``.metrics`` and ``.n``.

    Raises:
        TypeError, ValueError: If ``batches`` is empty or holds something else than pairs, if two
            metrics share a name, or for the reasons that the loss and the metrics have.

    Examples:
        >>> import torch
        >>> from torchcls.metrics import accuracy
        >>> model = nn.Identity()
        >>> batches = [(torch.eye(2), torch.tensor([0, 1])), (torch.eye(2)[:1], torch.tensor([1]))]
        >>> evaluate(model, batches, metrics=[accuracy])  # 2 of 3, not the mean of 2/2 and 0/1
        Evaluation(loss=None, metrics={'accuracy': 0.6666666666666666}, n=3)
    """
    named_metrics(metrics)  # what is wrong with these shall show before anything is moved
    if loss_fn is not None:
        averaging_of(loss_fn)
    pieces = Pieces(model, forward=forward)
    if not is_sharded(model):
        pieces = AutoPieces(model, forward=forward)
    device, group = place(model, device), group or Group()
    shares = group.shares(batches, taken_at_once)
    return measure(model, shares, loss_fn, metrics, device, pieces=pieces, group=group)
