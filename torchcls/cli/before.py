"""Before a run: ``torchcls check`` looks for mistakes, ``torchcls find-lr`` for a learning rate."""

import argparse
import sys
import warnings

import torchcls as tc
from torchcls.cli.task import CHOSEN, check_photos, settle, task_of
from torchcls.display import encodable


def check(options: argparse.Namespace) -> int:
    """Print what is wrong with the data; returns 1 where that is an error."""
    settle(options)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            task = task_of(options)
            check_photos(task)
        except (OSError, ValueError):
            print("".join(f"warning: {one.message}\n" for one in warned), end="", flush=True)
            raise
        model, left_out = task.model()
        train = task.training(model)
    lines = [f"warning: {warning.message}" for warning in warned]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # all of them are printed below
        run = tc.epochs(
            model,
            train,
            task.batches(task.valid),
            loss_fn=task.head.loss_fn,
            metrics=task.head.metrics,
            device="cpu",
            check="warn",
        )
    found = [
        *run.history.findings,  # of the data as a whole
        *tc.check(model, next(iter(train)), task.head.loss_fn, task.head.metrics, run.optimizer),
    ]
    found = [finding for finding in found if finding.code not in CHOSEN]
    lines += [f"{finding.severity}: {finding}" for finding in found]
    errors = sum(finding.severity == "error" for finding in found)
    last = f"findings: {len(lines)}, errors: {errors}" if lines else "nothing found to be wrong"
    first = [f"{task}, {options.head} head", *([left_out] if left_out else [])]
    print(encodable("\n".join([*first, *lines, last])), flush=True)
    return 1 if errors else 0


def find_lr(options: argparse.Namespace) -> int:
    """Print a learning rate to begin with; returns 1 where there is none."""
    settle(options)
    device = tc.select_device(options.device)
    task = task_of(options)
    model, left_out = task.model()
    print(encodable("\n".join([f"{task}, on {device}", *([left_out] if left_out else [])])))
    curve = tc.find_lr(model, task.training(model), loss_fn=task.head.loss_fn, device=device)
    try:
        suggestion = curve.suggestion
    except ValueError as none:
        print(f"torchcls: error: {none}", file=sys.stderr)
        return 1
    print(f"suggested: --lr {suggestion:.2g}", flush=True)
    return 0
