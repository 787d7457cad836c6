"""Runs a function of a test file in several processes, as a launcher would start them."""

import contextlib
import importlib
import os
import signal
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

    The processes are forks of one that has imported torch, which takes longer than most tests.

    Returns:
        A list with one result for each process; an error is a RuntimeError with its words.
    """
    with tempfile.TemporaryDirectory() as folder:
        torch.save(arguments, f"{folder}/arguments.pt")
        shared = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1"}
        shared |= {"MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
        shared |= {"PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE)]), **(env or {})}
        shared |= {"IS_MEASURED": "yes"} if is_measured() else {}
        started = subprocess.Popen(
            [sys.executable, "-W", "ignore", __file__, function, folder],
            env={**os.environ, **shared},
            start_new_session=True,
        )
        try:
            started.wait(timeout)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(started.pid, signal.SIGKILL)
            started.wait()
        results = []
        for rank in range(size):
            path = Path(folder, f"{rank}.pt")
            said = Path(folder, f"{rank}.txt")
            told = said.read_text("utf-8") if said.exists() else ""
            assert path.exists(), f"process {rank} gave nothing:\n{told}"
            results.append(torch.load(path, weights_only=False))
        return results


def is_measured():
    """Whether this process runs under coverage."""
    coverage = sys.modules.get("coverage")
    return coverage is not None and coverage.Coverage.current() is not None


@contextlib.contextmanager
def measuring():
    """Measure coverage where the tests do, but without the imports, which would take longer."""
    if "IS_MEASURED" not in os.environ:
        yield
        return
    import coverage

    root = HERE.parent
    found = coverage.Coverage(f"{root}/.coverage", True, config_file=f"{root}/pyproject.toml")
    with found.collect():
        yield
    found.save()


def main():
    torch.set_num_threads(1)
    torch.set_num_interop_threads(1)
    torch.optim.SGD([torch.zeros(1)], lr=1)  # imports what every fork would import
    name, folder = sys.argv[1:]
    module, _, function = name.partition(":")
    call = getattr(importlib.import_module(module), function)
    ranks, children = range(int(os.environ["WORLD_SIZE"])), []
    for rank in ranks:
        child = os.fork()
        if child == 0:
            return answer(call, folder, rank)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)


def answer(call, folder, rank):
    """Write what the function gives in the process of this rank, and what it says meanwhile."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    with open(f"{folder}/{rank}.txt", "wb") as said:
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
    arguments = torch.load(f"{folder}/arguments.pt", weights_only=False)
    try:
        with measuring():
            result = call(*arguments)
    except BaseException as error:
        import traceback

        traceback.print_exc()
        result = RuntimeError(f"{type(error).__name__}: {error}")
    torch.save(result, f"{folder}/{rank}.pt")


if __name__ == "__main__":
    main()
