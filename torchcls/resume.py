"""What a run was told, what it is made of, and how a later process takes it up again."""

import functools
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from torchcls.checkpoint import check_architecture
from torchcls.data.batches import Batches
from torchcls.loops import num_batches
from torchcls.losses import recognise
from torchcls.metrics import (
    accuracy,
    error_rate,
    multilabel_accuracy,
    threshold_accuracy,
    top_k_accuracy,
)
from torchcls.scorers import Metrics, named_metrics
from torchcls.step import Loss
from torchcls.warn import warn

# ------------------------------------------------------------------ what the run was told


def told(
    *,
    train: Any,
    valid: Any,
    loss_fn: Loss,
    metrics: Metrics,
    optimizer: Optimizer,
    schedule: Any,
    epochs: int,
    precision: str,
    micro_batch: Any,
) -> dict[str, Any]:
    """The arguments of a run in plain words, to be compared when it is resumed."""
    return {
        "train": _described(train),
        "valid": _described(valid),
        "loss_fn": _name(loss_fn),
        "metrics": ", ".join(named_metrics(metrics)),
        "optimizer": type(optimizer).__name__,
        "options of the optimizer": [_options(group) for group in optimizer.param_groups],
        "schedule": None if schedule is None else _name(schedule),
        # A schedule by progress depends on it; any other run may be given more.
        "epochs": None if schedule is None or isinstance(schedule, LRScheduler) else epochs,
        "precision": precision,
        "micro_batch": micro_batch,
    }


def check_told(kept: Mapping[str, Any], now: Mapping[str, Any], path: Path) -> None:
    """Refuse to resume the run at a path where it is told something else.

    Raises:
        ValueError: If an argument differs.
    """
    for name, value in now.items():
        before = kept[name]
        if isinstance(value, list) and len(value) == len(before):
            for group, earlier in zip(value, before, strict=True):
                for key in group.keys() | earlier.keys():
                    _check_same(f"{key} of the optimizer", earlier.get(key), group.get(key), path)
        else:
            _check_same(name, before, value, path)


def _check_same(name: str, before: Any, now: Any, path: Path) -> None:
    if before != now:
        raise ValueError(
            f"{name} must be {before!r} as in the run that is resumed, got {now!r}. Give it as it "
            "was, or start a new run in another folder from the weights of this one: "
            f'model.load_state_dict(torch.load("{path}", weights_only=True)["model"]).'
        )


def _described(source: Any) -> str | None:
    if source is None:
        return None
    if isinstance(source, Batches):
        return (
            f"{len(source.inputs)} samples in Batches(batch_size={source.batch_size}, "
            f"shuffle={source.shuffle}, seed={source.seed}, drop_last={source.drop_last})"
        )
    return f"{type(source).__name__} of {num_batches(source)} batches"


def _name(function: Any) -> str:
    known = recognise(function)
    if known is not None:
        return known.name
    return str(getattr(function, "__name__", type(function).__name__))


def _options(group: Mapping[str, Any]) -> dict[str, Any]:
    plain = (bool, int, float, str, tuple, type(None))
    found = {key: _number(value) for key, value in group.items() if key != "params"}
    return {key: value for key, value in found.items() if isinstance(value, plain)}


def _number(value: Any) -> Any:
    return value.item() if isinstance(value, Tensor) and value.numel() == 1 else value


# ------------------------------------------------------------------ where it runs


def circumstances(device: torch.device) -> dict[str, Any]:
    """What the last bits of a run depend on beside its arguments."""
    return {
        "torch": str(torch.__version__),
        "threads": torch.get_num_threads(),
        "device": device.type,
        "processor": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
    }


def differences(kept: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What of the circumstances has changed, in words; empty where nothing has."""
    return ", ".join(
        f"{name} was {kept[name]}, is {value}" for name, value in now.items() if kept[name] != value
    )


# ------------------------------------------------------------------ what it is made of


def modules_state(model: nn.Module, loss_fn: Loss) -> dict[str, Any]:
    """Parameters and buffers of model and loss, those that a state_dict leaves out included."""
    return {
        "model": model.state_dict(),
        "buffers": _left_out(model),
        "loss": loss_fn.state_dict() if isinstance(loss_fn, nn.Module) else None,
    }


def check_modules(model: nn.Module, loss_fn: Loss, state: Mapping[str, Any], path: Path) -> None:
    """Refuse the weights of another architecture before anything is overwritten."""
    check_architecture(model, state["model"], path)
    if isinstance(loss_fn, nn.Module) and state["loss"] is not None:
        check_architecture(loss_fn, state["loss"], path)


def load_modules(model: nn.Module, loss_fn: Loss, state: Mapping[str, Any]) -> None:
    """Put parameters and buffers back."""
    model.load_state_dict(state["model"])
    if isinstance(loss_fn, nn.Module) and state["loss"] is not None:
        loss_fn.load_state_dict(state["loss"])
    own = _left_out(model)
    with torch.no_grad():
        for name, value in state["buffers"].items():
            if name in own and own[name].shape == value.shape:
                own[name].copy_(value)


def _left_out(model: nn.Module) -> dict[str, Tensor]:
    kept = model.state_dict().keys()
    return {name: buffer for name, buffer in model.named_buffers() if name not in kept}


def load_optimizer(optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    """``load_state_dict``, but every tensor keeps its dtype: torch casts it to its parameter's."""
    optimizer.load_state_dict(dict(state))
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    numbers = [i for group in state["param_groups"] for i in group["params"]]
    for number, parameter in zip(numbers, parameters, strict=True):
        held = optimizer.state.get(parameter, {})
        for name, value in state["state"].get(number, {}).items():
            is_cast = isinstance(value, Tensor) and held[name].dtype != value.dtype
            if is_cast:
                held[name] = value.to(held[name].device)


class Buffers:
    """Remembers the buffers of a model at the end of a step: its forward moves them before the end.

    Of a step that breaks in the middle nothing is left then.
    """

    def __init__(self, *modules: Any) -> None:
        self._buffers = [
            buffer
            for module in modules
            if isinstance(module, nn.Module)
            for buffer in module.buffers()
        ]
        self._kept = [buffer.detach().clone() for buffer in self._buffers]

    def keep(self) -> None:
        """The step is whole."""
        if self._buffers:
            torch._foreach_copy_(self._kept, self._buffers)

    def put_back(self) -> None:
        """The step has broken."""
        with torch.no_grad():
            for buffer, kept in zip(self._buffers, self._kept, strict=True):
                buffer.copy_(kept)


# ------------------------------------------------------------------ the best epoch

_LOSSES = ("valid_loss", "train_loss", "smooth_loss")
_RATES = {
    accuracy: max,
    threshold_accuracy: max,
    multilabel_accuracy: max,
    top_k_accuracy: max,
    error_rate: min,
}


class Best:
    """Which epoch is the best one, by a column of the history.

    Args:
        best: A loss, the name of one of torchcls's metrics, or "min:" or "max:" and the name of
            another one.
        metrics: The metrics of the run.
        has_valid: Whether there is a valid_loss.

    Raises:
        ValueError: If there is no such column, or nothing says whether less of it is better.
    """

    def __init__(self, best: str, metrics: Metrics, *, has_valid: bool) -> None:
        named = named_metrics(metrics)
        way, _, self.column = best.rpartition(":")
        columns = [*_LOSSES[0 if has_valid else 1 :], *named]
        self._better: Any = None
        if best == "valid_loss" and not has_valid:
            return  # the default; without validation no epoch is known to be better
        if self.column not in columns or way not in ("", "min", "max"):
            raise ValueError(
                f"best must be a column of the history ({', '.join(columns)}), got {best!r}. "
                'Where less of it is better, write "min:NAME", else "max:NAME".'
            )
        metric: Any = named.get(self.column)
        while isinstance(metric, functools.partial):
            metric = metric.func
        if way:
            self._better = min if way == "min" else max
        elif self.column in _LOSSES:
            self._better = min
        elif getattr(metric, "__hash__", None) and metric in _RATES:
            self._better = _RATES[metric]
        else:
            raise ValueError(
                f"best must say whether less or more of {self.column} is better, got {best!r}. "
                f'Write best="min:{self.column}" or best="max:{self.column}".'
            )

    def is_last(self, records: Any) -> bool:
        """Whether the last record is better than all before it; NaN is never, a tie is not."""
        if self._better is None:
            return False
        last = records[-1][self.column]
        if not isinstance(last, (int, float)):
            warn(f"best must be a column of numbers, got {self.column} with {last!r}: none is kept")
            self._better = None
            return False
        before = [record[self.column] for record in records[:-1]]
        before = [value for value in before if value == value]
        return last == last and last not in before and self._better([*before, last]) == last
