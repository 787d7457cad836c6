"""Averages over uneven batches: torchcls exact, and what its peers make of the same data.

    python scripts/exact_averages.py

Expected: torchcls within 1e-6 of the exact numbers (measured: 8e-8 and 4e-8), nobody else
in every column:

                        loss of      step of     the same,      the same,
                        16 + 16 + 5  32 + 32 + 6 class weights  4 batches to a step
    in float64          2.21380
    torchcls            2.21380      exact       exact          exact
    plain loop          2.20471      22 %        15 %           36 %
    fastai              2.20471      exact       2.1 %          no step
    Lightning           2.20471      22 %        15 %           36 %
    Ignite              2.20471      22 %        15 %           no step
    skorch              2.20471
    Poutyne             2.20471      exact       2.1 %          exact
    Accelerate                       22 %        15 %           36 %
    pytorch-accelerated 2.20471      22 %        15 %           36 %
    Keras                            22 %                       no step

The loss is class-weighted cross-entropy over a validation pass. The steps are SGD's on 70 samples,
in percent the norm of the error over that of the right change of the weights. The last column is
an epoch that ends before its last group is full. Blank is what a library does not offer, or means
something else by. Measured with torch 2.15, fastai 2.8.12, Lightning 2.6.6, Ignite 0.5.5,
skorch 1.4.0, Poutyne 1.19.0, Accelerate 1.15.0, pytorch-accelerated 0.1.61 and Keras 3.15.1 (its
torch backend) on a CPU: 50 seconds on one core, 3 with --smoke.

Peers are measured where they are installed, each in a process of its own and in the way its users
write it (``exact_averages_peers.py``); only torchcls is judged. Data and weights are
drawn from seeds of their own (37, 70 and 0); other data give other figures for the rest.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path

import torch
from lecture import verdict
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import torchcls as tc

EXACT = 1e-6  # relative: a few roundings of float32
WEIGHT = torch.tensor([0.5, 1.0, 4.0])  # of the classes; the third is rare
VALID, TRAIN = 37, 70  # samples: validated as 16 + 16 + 5, trained on as 32 + 32 + 6
LR = 1.0  # so large that rounding in the weights is small beside the step

PEERS = {  # name: what is imported, what is installed
    "fastai": ("fastai", "fastai"),
    "Lightning": ("lightning", "lightning"),
    "Ignite": ("ignite", "pytorch-ignite"),
    "skorch": ("skorch", "skorch"),
    "Poutyne": ("poutyne", "poutyne"),
    "Accelerate": ("accelerate", "accelerate"),
    "pytorch-accelerated": ("pytorch_accelerated", "pytorch-accelerated"),
    "Keras": ("keras", "keras"),
}

Loader = DataLoader[tuple[Tensor, ...]]


@dataclass(frozen=True)
class Step:
    """A step on 70 samples, gathered over ``accumulate`` batches of 32 where there are so many."""

    title: str
    accumulate: int = 3
    weight: Tensor | None = None


STEPS = {
    "full": Step("step of 32 + 32 + 6"),
    "weighted": Step("the same, class weights", weight=WEIGHT),
    "partial": Step("the same, 4 batches to a step", accumulate=4),
}


@dataclass
class Result:
    """What someone reports as validation loss, and the relative error of each step taken.

    None, and no entry, for what a library does not offer.
    """

    valid_loss: float | None = None
    step_errors: dict[str, float] = field(default_factory=dict)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--smoke", action="store_true", help="torchcls and the plain loop alone")
    smoke = parser.parse_args(argv).smoke
    ours = {
        "torchcls, its small loops": measure(valid_loss_of_evaluate, step_of_train_one_epoch),
        "torchcls.fit": measure(valid_loss_of_fit, step_of_fit),
    }
    rows: dict[str, Result | str] = {
        **ours,
        "plain loop": measure(valid_loss_of_plain_loop, step_of_plain_loop),
    }
    for name, (module, distribution) in {} if smoke else PEERS.items():
        if importlib.util.find_spec(module) is None:
            rows[name] = "not installed"
        else:
            rows[f"{name} {version(distribution)}"] = measure_peer(name)
    print(table(rows))
    status = 0
    for name, result in ours.items():
        error = abs(result.valid_loss / exact_loss() - 1)
        status |= verdict(error <= EXACT, f"{name}: validation loss off by {error:.0e}")
        errors = result.step_errors.values()
        exact = all(error <= EXACT for error in errors)  # a NaN is not
        status |= verdict(exact, f"{name}: steps off by {', '.join(f'{e:.0e}' for e in errors)}")
    return status


# --- data and model -------------------------------------------------------------------------------


def samples(n: int) -> tuple[Tensor, Tensor]:
    """Two features and one of three classes, (N, 2) and (N,): 60, 30 and 10 % of them."""
    generator = torch.Generator().manual_seed(n)
    shares = torch.tensor([0.6, 0.3, 0.1])
    targets = torch.multinomial(shares, n, replacement=True, generator=generator)
    return torch.randn(n, 2, generator=generator) + targets[:, None], targets


def loader(n: int, batch_size: int) -> Loader:
    return DataLoader(TensorDataset(*samples(n)), batch_size=batch_size)


def network() -> nn.Linear:
    """The same weights each time."""
    model, generator = nn.Linear(2, 3), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def weights(model: nn.Module) -> Tensor:
    """All parameters as one vector, float64."""
    return torch.cat([p.detach().double().flatten() for p in model.parameters()])


def sgd(model: nn.Module, lr: float = LR) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=lr)


# --- what is right --------------------------------------------------------------------------------


def exact_loss() -> float:
    """The class-weighted cross-entropy of all validation samples at once, in float64."""
    inputs, targets = samples(VALID)
    model = network().double()
    return nn.functional.cross_entropy(model(inputs.double()), targets, WEIGHT.double()).item()


def exact_change(step: Step) -> Tensor:
    """How one step on all 70 samples at once changes the weights, in float64."""
    inputs, targets = samples(TRAIN)
    model = network().double()
    weight = None if step.weight is None else step.weight.double()
    nn.functional.cross_entropy(model(inputs.double()), targets, weight).backward()
    before = weights(model)
    sgd(model).step()
    return weights(model) - before


def measure(
    validate: Callable[[nn.Module, Loader, nn.Module], float] | None,
    train: Callable[[nn.Module, Loader, nn.Module, int], bool | None] | None,
) -> Result:
    """Let someone validate, and take each of the steps; ``train`` returns False where it cannot."""
    result = Result()
    if validate is not None:
        result.valid_loss = validate(network(), loader(VALID, 16), nn.CrossEntropyLoss(WEIGHT))
    for name, step in {} if train is None else STEPS.items():
        model = network()
        before, right = weights(model), exact_change(step)
        loss_fn = nn.CrossEntropyLoss(step.weight)
        if train(model, loader(TRAIN, 32), loss_fn, step.accumulate) is not False:
            wrong = weights(model) - before - right
            result.step_errors[name] = (wrong.norm() / right.norm()).item()
    return result


# --- torchcls and the plain loop ------------------------------------------------------------------


def valid_loss_of_evaluate(model: nn.Module, batches: Loader, loss_fn: nn.Module) -> float:
    return tc.evaluate(model, batches, loss_fn=loss_fn).loss


def valid_loss_of_fit(model: nn.Module, batches: Loader, loss_fn: nn.Module) -> float:
    still = sgd(model, lr=0.0)
    history = tc.fit(
        model,
        batches,
        batches,
        loss_fn=loss_fn,
        epochs=1,
        optimizer=still,
        device="cpu",
        ignore=["valid-is-train"],  # on purpose: the plain loop's number is known
        progress=False,
    )
    return history[-1].valid_loss


def step_of_train_one_epoch(
    model: nn.Module, batches: Loader, loss_fn: nn.Module, accumulate: int
) -> None:
    """No accumulation: a batch of 70, 32 samples at a time."""
    batch = DataLoader(batches.dataset, batch_size=32 * accumulate)
    tc.train_one_epoch(model, batch, loss_fn, sgd(model), micro_batch=32)


def step_of_fit(model: nn.Module, batches: Loader, loss_fn: nn.Module, accumulate: int) -> None:
    batch = DataLoader(batches.dataset, batch_size=32 * accumulate)
    tc.fit(
        model,
        batch,
        loss_fn=loss_fn,
        epochs=1,
        optimizer=sgd(model),
        device="cpu",
        micro_batch=32,
        progress=False,
    )


def valid_loss_of_plain_loop(model: nn.Module, batches: Loader, loss_fn: nn.Module) -> float:
    total, n = 0.0, 0
    with torch.no_grad():
        for inputs, targets in batches:
            total += loss_fn(model(inputs), targets).item() * len(targets)
            n += len(targets)
    return total / n


def step_of_plain_loop(
    model: nn.Module, batches: Loader, loss_fn: nn.Module, accumulate: int
) -> None:
    optimizer = sgd(model)
    for number, (inputs, targets) in enumerate(batches, start=1):
        loss = loss_fn(model(inputs), targets) / accumulate
        loss.backward()
        if number % accumulate == 0 or number == len(batches):
            optimizer.step()
            optimizer.zero_grad()


# --- peers ----------------------------------------------------------------------------------------


def measure_peer(name: str) -> Result | str:
    """Its result from a process of its own, or why there is none."""
    script = Path(__file__).with_name("exact_averages_peers.py")
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}  # everyone works on the CPU
    done = subprocess.run(
        [sys.executable, str(script), name], capture_output=True, text=True, env=environment
    )
    if done.returncode != 0:
        return f"did not run: {(done.stderr.strip().splitlines() or ['?'])[-1]}"
    return Result(**json.loads(done.stdout.splitlines()[-1]))  # above it, what the library prints


def as_json(result: Result) -> str:
    return json.dumps(asdict(result))


# --- the table ------------------------------------------------------------------------------------


def table(rows: dict[str, Result | str]) -> str:
    """The rows as Markdown."""
    titles = ["", "validation loss of 16 + 16 + 5", *(step.title for step in STEPS.values())]
    lines = [
        titles,
        ["---"] * len(titles),
        ["in float64", f"{exact_loss():.5f}", "exact", "exact", "exact"],
    ]
    for name, result in rows.items():
        if isinstance(result, str):
            lines.append([name, result] + [""] * len(STEPS))
            continue
        loss = result.valid_loss
        found = "n/a" if loss is None else f"{loss:.5f} ({off(abs(loss / exact_loss() - 1))})"
        errors = [result.step_errors.get(key) for key in STEPS]
        lines.append([name, found, *("n/a" if error is None else off(error) for error in errors)])
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def off(error: float) -> str:
    """A relative error in words: exact, in percent, or a step that was never taken."""
    if error <= EXACT:
        return "exact"
    return "no step" if error == 1 else f"off by {100 * error:.2g} %"


if __name__ == "__main__":
    sys.exit(main())
