"""Starting the process group that a launcher has asked for."""

import os
from typing import Any

import torch
import torch.distributed as dist

_NAMES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_OTHERS = ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")  # how plain srun and mpirun count


def start() -> bool:
    """Start torch's process group where a launcher asks for one; whether there is more than one.

    A group that somebody has started is used as it is.

    Raises:
        RuntimeError: If a launcher has started several processes and not said how they meet.
    """
    if not dist.is_available():
        return False
    if dist.is_initialized():
        return dist.get_world_size() > 1
    size = os.environ.get("WORLD_SIZE", "1")
    if not size.isdecimal() or int(size) < 2:
        _check_launcher()
        return False
    missing = [name for name in _NAMES if name not in os.environ]
    if missing:
        raise RuntimeError(
            f"WORLD_SIZE={size} must come with {', '.join(_NAMES)}, got no {', '.join(missing)}. "
            "Start the script with torchrun, which sets all four; to train a model of its own in "
            "each process, take WORLD_SIZE out of its environment."
        )
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT")
    if restarts is None or os.environ.get("LOCAL_WORLD_SIZE") != size:
        # On several hosts the count differs from host to host.
        dist.init_process_group(backend)
        return True
    # torchrun keeps one store over its restarts, and gloo would read the addresses of the dead.
    distributed: Any = dist
    store, rank, number = next(iter(distributed.rendezvous("env://")))
    store = distributed.PrefixStore(f"attempt{restarts}", store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=number)
    return True


def _check_launcher() -> None:
    """Refuse several processes that know nothing of each other, each to train the same model."""
    for name in _OTHERS:
        size = os.environ.get(name, "1")
        if "RANK" not in os.environ and size.isdecimal() and int(size) > 1:
            raise RuntimeError(
                f"RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT must be set, got {name}={size} and "
                "no RANK: each process would train the same model by itself. Start the script "
                f"with torchrun on each host, or take {name} out of the environment."
            )
