"""What a run was told, what it is made of, and how a later process takes it up again."""

import copy
import functools
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from torchcls.checkpoint import check_architecture
from torchcls.checksum import checksum
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
        "options of loss_fn": _loss_options(loss_fn),
        "metrics": ", ".join(named_metrics(metrics)),
        "optimizer": type(optimizer).__name__,
        "options of the optimizer": [_options(group) for group in optimizer.param_groups],
        "schedule": None if schedule is None else _name(schedule),
        "options of schedule": _schedule_options(schedule),
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
        groups, earlier = (x if isinstance(x, list) else [x] for x in (value, before))
        if len(groups) == len(earlier) and isinstance(groups[0], dict):
            of = name.removeprefix("options ")
            for one, other in zip(groups, earlier, strict=True):
                for key in sorted(one.keys() | other.keys()):
                    _check_same(f"{key} {of}", other.get(key), one.get(key), path)
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
            f"shuffle={source.shuffle}, seed={source.seed}, drop_last={source.drop_last}), "
            f"checksum {checksum((source.inputs, source.targets)):08x}"
        )
    return f"{type(source).__name__} of {num_batches(source)} batches"


def _name(function: Any) -> str:
    known = recognise(function)
    if known is not None:
        return known.name
    return str(getattr(function, "__name__", type(function).__name__))


def _loss_options(loss_fn: Loss) -> dict[str, Any]:
    known = recognise(loss_fn)
    found = {} if known is None else known.options
    return {
        name: value.tolist() if isinstance(value, Tensor) else value
        for name, value in found.items()
    }


def _schedule_options(schedule: Any) -> dict[str, Any]:
    if not isinstance(schedule, LRScheduler):
        return {}
    moving = ("last_epoch", "num_bad_epochs", "best", "cooldown_counter")
    return {
        name: value
        for name, value in plain(vars(schedule)).items()
        if name[0] != "_" and name not in moving and isinstance(value, _PLAIN)
    }


def _options(group: Mapping[str, Any]) -> dict[str, Any]:
    found = {
        name: value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
        for name, value in group.items()
        if name != "params"
    }
    return {name: value for name, value in plain(found).items() if isinstance(value, _PLAIN)}


_PLAIN = (bool, int, float, str, tuple, type(None))


def plain(value: Any) -> Any:
    """numpy's numbers as Python's and its arrays as lists, wherever they stand."""
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    if type(value) in (list, tuple):
        return type(value)(map(plain, value))
    if isinstance(value, dict):
        copied = copy.copy(value)
        for name, held in value.items():
            copied[name] = plain(held)
        return copied
    return value


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
        "loss": loss_fn.state_dict() if isinstance(loss_fn, nn.Module) else None,
        "buffers": [_left_out(module) for module in (model, loss_fn)],
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
    with torch.no_grad():
        for module, buffers in zip((model, loss_fn), state["buffers"], strict=True):
            own = _left_out(module)
            for name, value in buffers.items():
                if name in own and own[name].shape == value.shape:
                    own[name].copy_(value)


def _left_out(module: Any) -> dict[str, Tensor]:
    if not isinstance(module, nn.Module):
        return {}
    kept = module.state_dict().keys()
    return {name: buffer for name, buffer in module.named_buffers() if name not in kept}


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


class Forward:
    """What a model's forward moves before its step is whole: undone where the step breaks.

    Buffers are remembered at the end of every step. Parameters are not, which would cost what the
    optimizer costs; that a forward has moved one shows in its version.
    """

    def __init__(self, *modules: Any) -> None:
        found = [module for module in modules if isinstance(module, nn.Module)]
        self._tables = [
            part._buffers for module in found for part in module.modules() if part._buffers
        ]
        self._parameters = [p for module in found for p in module.parameters()]
        self._kept: dict[tuple[int, str], tuple[Tensor, int, Tensor]] = {}
        self._versions = 0
        self.keep()

    def keep(self) -> None:
        """The step is whole."""
        for number, table in enumerate(self._tables):
            for name, buffer in table.items():
                if buffer is None or is_lazy(buffer):
                    continue
                kept = self._kept.get((number, name))
                # BatchNorm moves its statistics without a new version; what is large and moves
                # does so by operations that have one.
                is_known = kept is not None and kept[0] is buffer and kept[1] == buffer._version
                if not is_known or buffer.nbytes <= _SMALL_BUFFER:
                    self._kept[number, name] = buffer, buffer._version, buffer.detach().clone()
        self._versions = sum(parameter._version for parameter in self._parameters)

    def put_back(self) -> bool:
        """The step has broken: put the buffers back; whether no parameter has moved."""
        with torch.no_grad():
            for (number, name), (buffer, _, value) in self._kept.items():
                self._tables[number][name] = buffer  # forward may have put another one there
                if not torch.equal(buffer, value):  # some cannot be written, and never move
                    buffer.copy_(value)
        return self._versions == sum(parameter._version for parameter in self._parameters)


_SMALL_BUFFER = 2**20


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
