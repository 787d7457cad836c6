"""A run whose processes are killed ends with the numbers of the run that was left alone.

    python scripts/kill_processes.py --times 10 --processes 2
    python scripts/kill_processes.py --times 2 --hosts

Trains a small network in float64 (shuffled ``Batches``, momentum, a one-cycle schedule, a folder
for checkpoints) under ``torchrun --max-restarts 3``: once in peace, once in a single process, and
then again and again, each time with one of its processes killed by SIGKILL at a random step.
torchrun starts all of them again, they go on from the folder, and every process must end with the
weights, the momentum and the history of the run in peace, to 1e-12. With ``--hosts`` there are two
of torchrun with ``--processes`` processes each, in two network namespaces, which takes root and
``ip``. Exits with 1 where a run differs.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import torchcls as tc

EPOCHS, SAMPLES, BATCH = 6, 1001, 32  # the last batch of an epoch has 9
STEPS = -(-SAMPLES // BATCH)
SAVE_EVERY = 0.05  # seconds: a run lasts one or two
LIMIT = 1e-12
PATIENCE = 300  # seconds for one run

# ------------------------------------------------------------------ the run, in each process


def train(folder: Path) -> None:
    """Train, or go on training, and tell of every step and of what came of it."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(SAMPLES + 99, 20, generator=generator, dtype=torch.float64)
    targets = inputs[:, :5].argmax(1)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 5)).double()
    run = tc.epochs(
        model,
        tc.Batches(inputs[:SAMPLES], targets[:SAMPLES], batch_size=BATCH, shuffle=True),
        tc.Batches(inputs[SAMPLES:], targets[SAMPLES:], batch_size=50),
        loss_fn=nn.CrossEntropyLoss(),
        epochs=EPOCHS,
        metrics=[tc.accuracy],
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        schedule=tc.one_cycle(),
        device="cpu",
        checkpoint=folder / "run",
        resume=True,
        save_every=SAVE_EVERY,
        progress=False,
    )
    with open(folder / f"steps-{run.group.rank}", "a") as told:

        def tell(epoch: int, step: int) -> None:
            print(time.time(), os.getpid(), epoch * STEPS + step, file=told, flush=True)

        tell(*run.position[:2])
        for at in run.steps():
            tell(at.epoch, at.step)
    momentum = [entry["momentum_buffer"] for entry in run.optimizer.state_dict()["state"].values()]
    rows = [[float(record[name]) for name in record if name != "time"] for record in run.history]
    tensors = [*model.state_dict().values(), *momentum, torch.tensor(rows, dtype=torch.float64)]
    tc.save_checkpoint(folder / f"end-{run.group.rank}.pt", tensors=tensors)


class Told(NamedTuple):
    """A step, as a process told of it."""

    seconds: float
    pid: int
    step: int


def steps(folder: Path, rank: int) -> list[Told]:
    """What a process has told so far, and the one that took its place."""
    path = folder / f"steps-{rank}"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    whole = [line.split() for line in lines if line.endswith("\n")]
    return [Told(float(seconds), int(pid), int(step)) for seconds, pid, step in whole]


def ends(folder: Path, processes: int) -> list[list[Tensor]]:
    """What came of a run in each process."""
    return [tc.load_checkpoint(folder / f"end-{r}.pt")["tensors"] for r in range(processes)]


def difference(found: Sequence[Sequence[Tensor]], expected: Sequence[Tensor]) -> float:
    """The largest one, over all processes."""
    pairs = [pair for end in found for pair in zip(end, expected, strict=True)]
    return max((here - there).abs().max().item() for here, there in pairs)


# ------------------------------------------------------------------ the launchers


class Host(NamedTuple):
    """How to start a launcher: alone on this machine, or on one of two hosts."""

    before: list[str]
    options: list[str]
    environment: dict[str, str]


HERE = Host([], ["--standalone"], {})


@contextmanager
def two_hosts() -> Iterator[list[Host]]:
    """Two network namespaces with a cable between them; gone at the end, whatever happens."""
    names = [f"torchcls-{os.getpid()}-{i}" for i in range(2)]
    addresses = ["10.77.0.1", "10.77.0.2"]
    options = ["--nnodes", "2", "--rdzv-backend", "c10d", "--rdzv-id", "two"]
    options += ["--rdzv-endpoint", f"{addresses[0]}:29400"]

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True, text=True)

    try:
        for name in names:
            ip("netns", "add", name)
        ip(*f"link add v0 netns {names[0]} type veth peer name v1 netns {names[1]}".split())
        for i, (name, address) in enumerate(zip(names, addresses, strict=True)):
            ip("-n", name, "addr", "add", f"{address}/24", "dev", f"v{i}")
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "link", "set", f"v{i}", "up")
        yield [
            Host(
                ["ip", "netns", "exec", name],
                [
                    *options,
                    *("--rdzv-conf", f"is_host={1 - i},join_timeout=60,last_call_timeout=1"),
                    *("--local-addr", address),
                ],
                # The name of this machine leads to no address in there.
                {"GLOO_SOCKET_IFNAME": f"v{i}", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"},
            )
            for i, (name, address) in enumerate(zip(names, addresses, strict=True))
        ]
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


@contextmanager
def launched(hosts: Sequence[Host], processes: int, folder: Path) -> Iterator[list[Any]]:
    """Start the launchers of a run, which end with this context at the latest."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    torchrun += ["--max-restarts", "3", "--monitor-interval", "0.1"]
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    started: list[subprocess.Popen[bytes]] = []
    with open(folder / "said", "wb") as said:
        try:
            for host in hosts:
                command = [*host.before, *torchrun, *host.options, __file__, "--train", str(folder)]
                environment = {**os.environ, "OMP_NUM_THREADS": "1", **host.environment}
                started.append(subprocess.Popen(command, env=environment, stdout=said, stderr=said))
            yield started
        finally:
            for launcher in started:
                launcher.terminate()  # it takes its processes along
            for launcher in started:
                launcher.wait()


def run(
    hosts: Sequence[Host], processes: int, folder: Path, kill: tuple[int, int, float] | None = None
) -> Told | None:
    """Do a whole run; of the process that was to be killed, its last step, with the time of death.

    Args:
        hosts: Where.
        processes: On each host.
        folder: Where they tell what they do.
        kill: A process, the step after which it is killed, and a delay in seconds.
    """
    killed, until = None, time.monotonic() + PATIENCE
    with launched(hosts, processes, folder) as launchers:
        while any(launcher.poll() is None for launcher in launchers):
            if time.monotonic() > until:
                break
            told = steps(folder, kill[0]) if kill is not None and killed is None else []
            if kill is not None and told and told[-1].step >= kill[1]:
                time.sleep(kill[2])
                with suppress(ProcessLookupError):  # it has come to its end meanwhile
                    os.kill(told[-1].pid, signal.SIGKILL)
                    killed = steps(folder, kill[0])[-1]._replace(seconds=time.time())
            time.sleep(0.001 if kill is not None and killed is None else 0.02)
        if any(launcher.poll() != 0 for launcher in launchers):
            raise RuntimeError(f"a run failed or hung:\n{(folder / 'said').read_text()}")
    return killed


# ------------------------------------------------------------------ the comparison


def main(argv: Sequence[str] | None = None) -> int:
    """Kill and compare; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--times", type=int, default=10, help="runs in which a process is killed")
    parser.add_argument("--seed", type=int, default=1, help="of who is killed and when")
    parser.add_argument("--processes", type=int, default=2, help="how many, on each host")
    parser.add_argument("--hosts", action="store_true", help="two hosts made of namespaces")
    parser.add_argument("--smoke", action="store_true", help="one kill")
    parser.add_argument("--train", type=Path, help=argparse.SUPPRESS)  # what torchrun starts
    options = parser.parse_args(argv)
    if options.train is not None:
        train(options.train)
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # and clean up on the way
    options.times = 1 if options.smoke else options.times
    if not options.hosts:
        return kill_and_compare([HERE], options)
    if shutil.which("ip") is None or os.geteuid() != 0:
        print("skipped: two hosts are made of network namespaces, which takes ip and root")
        return 0
    try:
        with two_hosts() as hosts:
            return kill_and_compare(hosts, options)
    except subprocess.CalledProcessError as error:
        print(f"skipped: there are no network namespaces here: {error.stderr.strip()}")
        return 0


def kill_and_compare(hosts: Sequence[Host], options: argparse.Namespace) -> int:
    """Print a line for every run, and the summary; returns the exit status."""
    chance, everyone = random.Random(options.seed), options.processes * len(hosts)
    name = f"{everyone} processes" + (" on 2 hosts" if len(hosts) > 1 else "")
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work, "run")
        run(hosts, options.processes, folder)
        in_peace = ends(folder, everyone)
        expected = in_peace[0]
        run([HERE], 1, folder)
        apart = difference(in_peace, ends(folder, 1)[0])
        print(f"{name}, undisturbed: {apart:.1e} from one process", flush=True)
        waits: list[float] = []
        failures = int(not apart <= LIMIT)
        while len(waits) < options.times:
            rank = chance.randrange(everyone)
            kill = rank, chance.randrange(1, EPOCHS * STEPS), chance.uniform(0, 0.005)
            killed = run(hosts, options.processes, folder, kill)
            if killed is None:
                continue
            again = [told for told in steps(folder, rank) if told.pid != killed.pid]
            waits.append(again[:2][-1].seconds - killed.seconds)  # until its first step is taken
            differs = difference(ends(folder, everyone), expected)
            failures += not differs <= LIMIT
            print(
                f"{len(waits)}: process {rank} killed after step {killed.step} of "
                f"{EPOCHS * STEPS}; {waits[-1]:.1f} s to the next step, from {again[0].step} on; "
                f"{differs:.1e} from the undisturbed run",
                flush=True,
            )
    print(
        f"{name}: {options.times} runs with a process killed, {failures} runs with other numbers; "
        f"{min(waits):.1f} to {max(waits):.1f} s from the kill to the next step"
    )
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
