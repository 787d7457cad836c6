"""Runs a function of a test file in several processes, as a launcher would start them."""

import importlib
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def in_processes(size, function, *arguments, timeout=100, env=None):
    """What a function, given as "module:name", returns in each process, or the error it raised.

    Returns:
        A list with one result for each process; an error is a RuntimeError with its words.
    """
    with tempfile.TemporaryDirectory() as folder:
        torch.save(arguments, f"{folder}/arguments.pt")
        shared = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1"}
        shared |= {"MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
        shared |= {"PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE)]), **(env or {})}
        started = [
            subprocess.Popen(
                [sys.executable, "-W", "ignore", __file__, function, folder],
                env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for rank in range(size)
        ]
        try:
            said = [process.communicate(timeout=timeout)[0] for process in started]
        finally:
            for process in started:
                process.kill()
        results = []
        for rank in range(size):
            path = Path(folder, f"{rank}.pt")
            assert path.exists(), f"process {rank} gave nothing:\n{said[rank]}"
            results.append((torch.load(path, weights_only=False), said[rank]))
        return [result for result, _ in results]


def main():
    torch.set_num_threads(1)
    torch.set_num_interop_threads(1)
    name, folder = sys.argv[1:]
    module, _, function = name.partition(":")
    arguments = torch.load(f"{folder}/arguments.pt", weights_only=False)
    try:
        result = getattr(importlib.import_module(module), function)(*arguments)
    except BaseException as error:
        import traceback

        traceback.print_exc()
        result = RuntimeError(f"{type(error).__name__}: {error}")
    torch.save(result, f"{folder}/{os.environ['RANK']}.pt")


if __name__ == "__main__":
    main()
