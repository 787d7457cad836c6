"""What test files share: comparisons with torch, blocks of pages, a small disk."""

import ctypes
import re
import threading
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

# What some tests hold against torch, or need of it, torch 2.6 itself cannot do: compile one of its
# own functions, export a module without parameters, keep a SWALR, step on halves with MSELoss.
IS_OLD_TORCH = tuple(map(int, torch.__version__.split(".")[:2])) < (2, 9)
recent_torch = pytest.mark.skipif(IS_OLD_TORCH, reason="torch before 2.9 cannot do this itself")

# Of a page: a block of Python, and the block of text right behind it, which is what it prints.
BLOCK = re.compile(r"```python\n(.*?)```(?:\s*```text\n(.*?)```)?", flags=re.DOTALL)


def can_run(code: str) -> bool:
    """Whether the libraries that a block shows torchcls beside are installed."""
    beside = ("webdataset", "datasets")
    return all(find_spec(name) for name in beside if f"import {name}\n" in code)


def assert_same_as_torch(
    ours: Callable[..., Tensor],
    theirs: Callable[..., Tensor],
    *args: Any,
    **kwargs: Any,
) -> None:
    """Both give the same value, dtype, shape, gradients and second gradients.

    Gradients are taken in every tensor among the arguments that requires one, of a weighted sum of
    the results whose weights all differ, so that no element can stand in for another. Tolerances
    are those of torch.testing.assert_close for the dtype; NaN equals NaN.
    """
    results = [_value_and_gradients(function, args, kwargs) for function in (ours, theirs)]
    for (what, got), (_, expected) in zip(*results, strict=True):
        torch.testing.assert_close(
            got, expected, equal_nan=True, msg=lambda text, what=what: f"{what}: {text}"
        )


def assert_both_raise(
    ours: Callable[..., Any], theirs: Callable[..., Any], *args: Any, **kwargs: Any
) -> None:
    """Torch refuses the arguments, and so do we, with an error that says whose mistake it is."""
    assert _error(theirs, args, kwargs) is not None, "torch accepts these arguments"
    error = _error(ours, args, kwargs)
    assert error is not None, "torch refuses these arguments, we accept them"
    assert isinstance(error, (TypeError, ValueError, IndexError)), (
        f"{type(error).__name__}: {error}"
    )


def _error(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Exception | None:
    try:
        function(*args, **kwargs)
    except Exception as error:
        return error
    return None


def _value_and_gradients(
    function: Callable[..., Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> list[tuple[str, Tensor]]:
    """Name and tensor of the value, then of each gradient, then of each second gradient."""
    args = tuple(_copy(value) for value in args)
    kwargs = {name: _copy(value) for name, value in kwargs.items()}
    named = [(f"argument {i}", value) for i, value in enumerate(args)] + list(kwargs.items())
    wanted = [
        (name, value) for name, value in named if isinstance(value, Tensor) and value.requires_grad
    ]
    value = function(*args, **kwargs)
    results = [("value", value.detach())]
    if not wanted:
        return results
    inputs = [tensor for _, tensor in wanted]
    gradients = _gradients([value], inputs)
    results += [
        (f"gradient in {name}", gradient.detach())
        for (name, _), gradient in zip(wanted, gradients, strict=True)
    ]
    seconds = _gradients(gradients, inputs)
    results += [
        (f"second gradient in {name}", second.detach())
        for (name, _), second in zip(wanted, seconds, strict=True)
    ]
    return results


def _copy(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return value.detach().clone().requires_grad_(value.requires_grad)


def _gradients(outputs: list[Tensor], inputs: list[Tensor]) -> list[Tensor]:
    """Gradients of a weighted sum of all outputs; zeros where an input plays no part."""
    attached = [output for output in outputs if output.requires_grad]
    if not attached:
        return [torch.zeros_like(value) for value in inputs]
    weights = [
        torch.linspace(0.5, 1.5, output.numel(), dtype=torch.float64)
        .reshape(output.shape)
        .to(output)
        for output in attached
    ]
    return list(
        torch.autograd.grad(
            attached,
            inputs,
            weights,
            create_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
    )


def in_a_thread_that_sees_a_small_disk(
    folder: Path, run: Callable[[], None], size: str = "64k"
) -> None:
    """Run it where ``folder`` is a disk of that size, for that thread only: nothing to unmount."""
    libc = ctypes.CDLL(None, use_errno=True)
    outcome: list[Any] = []

    def call() -> None:
        new_mounts, private_and_below = 0x00020000, 0x00044000  # CLONE_NEWNS; MS_PRIVATE | MS_REC
        disk = str(folder).encode()
        mounted = (
            libc.unshare(new_mounts) == 0
            and libc.mount(None, b"/", None, ctypes.c_ulong(private_and_below), None) == 0
            and libc.mount(b"tmpfs", disk, b"tmpfs", ctypes.c_ulong(0), f"size={size}".encode())
            == 0
        )
        try:
            outcome.append(run() if mounted else "no disk")
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    if outcome == ["no disk"]:
        pytest.skip("may not mount a small file system here")
    if outcome != [None]:
        raise outcome[0]
