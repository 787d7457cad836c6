"""The arguments of a run and where it runs, in plain values, to be compared when it is resumed."""

import copy
import functools
import platform
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from torchcls.batches import num_batches, parts_of
from torchcls.evaluation import named_metrics
from torchcls.heads import recognise
from torchcls.state import written
from torchcls.survival.source import checksum

_MOVING = {"params", "param_groups", "initial_lr", "base_lrs", "training", "last_epoch", "best"}
_MOVING |= {"num_bad_epochs", "cooldown_counter"}
_PLACES = (0.0, 0.1, 0.25, 0.5, 0.9)  # where a schedule by progress is asked


def described(choices: Any, *, groups: int | None = None) -> dict[str, Any]:
    """The arguments of a run by name: what makes it the run it is.

    Args:
        choices: Has the arguments of ``fit`` as attributes, the optimizer made.
        groups: How many groups of the optimizer count: the run may have got more of them later.
    """
    given, optimizer = choices.schedule, choices.optimizer
    schedule = getattr(given, "scheduler", given)  # behind tc.each_step and tc.on
    of_train = named_metrics(choices.train_metrics)
    metrics = named_metrics(choices.metrics) | {f"train_{k}": m for k, m in of_train.items()}
    of_groups = [_plain_ones(group) for group in optimizer.param_groups[:groups]]
    of_each = {name: [group.get(name) for group in of_groups] for name in of_groups[0]}
    inside = _inside(written(choices.model))
    found = {f"{path} of the model": kind for path, kind in inside.items()} | {
        "train": _source(choices.train),
        "valid": None if choices.valid is None else _source(choices.valid),
        "loss_fn": _name(choices.loss_fn),
        "metrics": ", ".join(metrics),
        "optimizer": type(optimizer).__name__,
        "groups of the optimizer": len(of_groups),
        "schedule": None if schedule is None else _name(schedule),
        "forward": None if choices.forward is None else _name(choices.forward),
    }
    options = {
        "the loss": _options_of(choices.loss_fn),
        **{f"the metric {name}": _options_of(metric) for name, metric in metrics.items()},
        "the optimizer": _plain_ones(vars(optimizer))
        | {name: v[0] if v.count(v[0]) == len(v) else str(v) for name, v in of_each.items()},
    }
    options["the pace of the schedule"] = {} if given is schedule else _plain_ones(vars(given))
    if isinstance(schedule, LRScheduler):
        parts = [schedule, *getattr(schedule, "_schedulers", ())]
        options |= {f"schedule {i}": _plain_ones(vars(part)) for i, part in enumerate(parts)}
    elif schedule is not None:  # it depends on the number of epochs; any other may be given more
        found["epochs"] = choices.epochs
        options["schedule"] = {f"value at {p}": plain(schedule(p)) for p in _PLACES}
    for name in ("clip_norm", "precision", "micro_batch", "best"):
        found[name] = getattr(choices, name)
    return found | {f"{key} of {of}": v for of, each in options.items() for key, v in each.items()}


def at_rest(model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """What a loop of the user's own may change meanwhile, to be compared with the last state."""
    frozen = [name for name, p in written(model).named_parameters() if not p.requires_grad]
    sizes = [len(group["params"]) for group in optimizer.param_groups]
    return {"sizes of the optimizer's groups": sizes, "frozen parameters": ", ".join(frozen)}


def check_same(
    kept: Mapping[str, Any], now: Mapping[str, Any], *, moved: Mapping[str, Any], path: Path
) -> None:
    """Refuse to resume the run at a path with other arguments.

    Args:
        kept: What the run was told.
        now: What it is told now.
        moved: Numbers where the run stands: those that it moves itself are put back, not compared.
        path: Its state, which the message names.

    Raises:
        ValueError: If one differs; the message names it, with both values.
    """
    for name in {**now, **kept}:
        before, given = kept.get(name), now.get(name)
        if repr(before) == repr(given) or moved.get(name, before) != before:
            continue
        raise ValueError(
            f"{name} must be {before!r} as in the run that is resumed, got {given!r}. Give it as "
            "it was, or start a new run in another folder from the weights of this one: "
            f'model.load_state_dict(torch.load("{path}", weights_only=True)["model"]).'
        )


def _source(source: Any) -> str:
    names = ("batch_size", "shuffle", "seed", "drop_last", "num_workers", "transform")
    options = {name: _plain_one(getattr(source, name, None)) for name in names}
    kinds = [type(part).__name__ for part in parts_of(source)[1:] if part is not None]
    shown = [*(f"{k}={v}" for k, v in options.items() if v is not None), *kinds]
    text = f"{type(source).__name__}({', '.join(shown)})" if shown else type(source).__name__
    inputs, targets = (getattr(source, name, None) for name in ("inputs", "targets"))
    if isinstance(inputs, Tensor) and isinstance(targets, Tensor):
        some = [tensor[:: 1 + len(tensor) // 1000] for tensor in (inputs, targets)]
        return f"{len(inputs)} samples in {text}, checksum {checksum(some):08x}"
    return f"{text} of {num_batches(source)} batches"


def _name(function: Any) -> str:
    known = recognise(function)
    if known is not None:
        return known.name
    function = function.func if isinstance(function, functools.partial) else function
    return str(getattr(function, "__name__", type(function).__name__))


def _options_of(function: Any) -> dict[str, Any]:
    """The options of a loss or a metric: a known loss's, keywords, what is in a module."""
    known = recognise(function)
    if known is not None:
        return _plain_ones(known.options)
    if isinstance(function, functools.partial):
        bound = {f"argument {i}": value for i, value in enumerate(function.args)}
        return _options_of(function.func) | _plain_ones({**bound, **function.keywords})
    module = getattr(function, "__self__", function)
    return _inside(module) if isinstance(module, nn.Module) else {}


def _inside(module: nn.Module) -> dict[str, Any]:
    """The kinds, plain attributes and parameters of a module and of all in it, by their paths."""
    found: dict[str, Any] = {}
    moving = (Tensor, list, dict)  # caches, and what a metric adds up
    for path, part in module.named_modules():
        found[path or "kind"] = f"{type(part).__name__}({_without_addresses(part.extra_repr())})"
        told = {name: v for name, v in vars(part).items() if not isinstance(v, moving)}
        found |= {f"{path}.{name}".strip("."): v for name, v in _plain_ones(told).items()}
    shapes = {k: None if is_lazy(p) else tuple(p.shape) for k, p in module.named_parameters()}
    return found | shapes


def _plain_ones(found: Mapping[str, Any]) -> dict[str, Any]:
    kept = {k: _plain_one(v) for k, v in found.items() if k[0] != "_" and k not in _MOVING}
    return {k: v for k, v in kept.items() if v is not None}


def _plain_one(value: Any) -> Any:
    """A value that a file can hold and that says as much; None for objects that say nothing."""
    if isinstance(value, Tensor):
        return value.tolist() if value.numel() <= 1000 else f"a tensor {tuple(value.shape)}"
    if isinstance(value, (bool, int, float, str)):
        return plain(value)
    if isinstance(value, (tuple, list, Counter)):
        return _without_addresses(repr(plain(value)))
    return _name(value) if callable(value) else None


def _without_addresses(text: str) -> str:
    return re.sub(r" at 0x[0-9a-fA-F]+", "", text)


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


def circumstances(device: torch.device, processes: int) -> dict[str, Any]:
    """What the last bits of a run depend on beside its arguments."""
    is_cast = torch.is_autocast_enabled(device.type)
    return {
        "torch": str(torch.__version__),
        "threads": torch.get_num_threads(),
        "processes": processes,
        "device": device.type,
        "processor": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        "autocast": str(torch.get_autocast_dtype(device.type)) if is_cast else "off",
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "mkldnn": torch.backends.mkldnn.enabled,
    }
