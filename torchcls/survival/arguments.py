"""The arguments of a run and where it runs, in plain values, to be compared when it is resumed."""

import copy
import functools
import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from torchcls.batches import num_batches
from torchcls.evaluation import named_metrics
from torchcls.heads import recognise
from torchcls.state import written
from torchcls.survival.source import checksum

_PLAIN = (bool, int, float, str, tuple, list, type(None))
_MOVING = ("params", "initial_lr", "training", "last_epoch", "num_bad_epochs", "best")
_PLACES = (0.0, 0.1, 0.25, 0.5, 0.9)  # where a schedule by progress is asked


def described(choices: Any) -> dict[str, Any]:
    """The arguments of a run by name: what makes it the run it is.

    Args:
        choices: Has the arguments of ``fit`` as attributes, the optimizer made.
    """
    given, optimizer = choices.schedule, choices.optimizer
    schedule = getattr(given, "scheduler", given)  # behind tc.each_step and tc.on
    metrics = named_metrics(choices.metrics)
    groups = [_plain_ones(group) for group in optimizer.param_groups]
    of_groups = {name: [group.get(name) for group in groups] for name in groups[0]}
    found = {
        "model": re.sub(r" at 0x[0-9a-fA-F]+", "", repr(written(choices.model))),
        "train": _source(choices.train),
        "valid": None if choices.valid is None else _source(choices.valid),
        "loss_fn": _name(choices.loss_fn),
        "metrics": ", ".join(metrics),
        "optimizer": type(optimizer).__name__,
        "schedule": None if schedule is None else _name(schedule),
    }
    options = {
        "loss_fn": _options_of(choices.loss_fn),
        **{f"the metric {name}": _options_of(metric) for name, metric in metrics.items()},
        "the optimizer": {k: v[0] if v.count(v[0]) == len(v) else v for k, v in of_groups.items()},
    }
    if schedule is not given:
        pace = {"kind": type(given).__name__.strip("_"), **vars(given)}
        options["the pace of the schedule"] = _plain_ones(pace)
    if isinstance(schedule, LRScheduler):
        options["schedule"] = _plain_ones(vars(schedule))
    elif schedule is not None:  # it depends on the number of epochs; any other may be given more
        found["epochs"] = choices.epochs
        options["schedule"] = {f"value at {p}": plain(schedule(p)) for p in _PLACES}
    for name in ("clip_norm", "precision", "micro_batch", "best"):
        found[name] = getattr(choices, name)
    return found | {f"{key} of {of}": v for of, each in options.items() for key, v in each.items()}


def check_same(kept: Mapping[str, Any], now: Mapping[str, Any], path: Path) -> None:
    """Refuse to resume the run at a path with other arguments.

    Raises:
        ValueError: If one differs; the message names it, with both values.
    """
    for name in {**now, **kept}:
        before, given = kept.get(name), now.get(name)
        if before == given or repr(before) == repr(given):
            continue
        if name == "model":  # the lines that differ, not the whole of it
            lines, others = str(before).splitlines(), str(given).splitlines()
            before = "\n".join(line for line in lines if line not in others)
            given = "\n".join(line for line in others if line not in lines)
        raise ValueError(
            f"{name} must be {before!r} as in the run that is resumed, got {given!r}. Give it as "
            "it was, or start a new run in another folder from the weights of this one: "
            f'model.load_state_dict(torch.load("{path}", weights_only=True)["model"]).'
        )


def _source(source: Any) -> str:
    names = ("batch_size", "shuffle", "seed", "drop_last", "num_workers")
    options = {name: getattr(source, name, None) for name in names}
    options["sampler"] = type(getattr(source, "sampler", None)).__name__
    shown = ", ".join(f"{k}={v}" for k, v in options.items() if v not in (None, "NoneType"))
    text = f"{type(source).__name__}({shown})" if shown else type(source).__name__
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
    """The options of a loss or a metric: a known loss's, keywords, a module's plain attributes."""
    known = recognise(function)
    if known is not None:
        return _plain_ones(known.options)
    if isinstance(function, functools.partial):
        bound = {f"argument {i}": value for i, value in enumerate(function.args)}
        return _options_of(function.func) | _plain_ones({**bound, **function.keywords})
    return _plain_ones(vars(function)) if isinstance(function, nn.Module) else {}


def _plain_ones(found: Mapping[str, Any]) -> dict[str, Any]:
    values = {k: v.tolist() if isinstance(v, Tensor) else plain(v) for k, v in found.items()}
    kept = {k: v for k, v in values.items() if k[0] != "_" and k not in _MOVING}
    return {k: v for k, v in kept.items() if isinstance(v, _PLAIN)}


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


def circumstances(device: torch.device) -> dict[str, Any]:
    """What the last bits of a run depend on beside its arguments."""
    return {
        "torch": str(torch.__version__),
        "threads": torch.get_num_threads(),
        "device": device.type,
        "processor": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
    }
