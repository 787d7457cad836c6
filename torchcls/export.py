"""A trained model as a file for others: weights, ``torch.export`` or ONNX, tried out at once."""

import copy
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from torchcls import heads
from torchcls.evaluation import evaluating, kept_tensor
from torchcls.history import replacing
from torchcls.state import written
from torchcls.step import Loss
from torchcls.survival import load_checkpoint, save_checkpoint

_Forward = Callable[[Tensor], Tensor]


def export(
    model: nn.Module,
    example: Tensor,
    path: str | os.PathLike[str],
    *,
    loss_fn: Loss | None = None,
    classes: Sequence[object] | None = None,
    scaling: object = None,
) -> None:
    """Write a model to a file for others to run, and see that the file gives the same outputs.

    The file is read again and run on the example, on one row of it and on twice its rows. It takes
    the place of one that is there only where the outputs agree to 1e-4. The model may be on any
    device and in any mode; it is as before afterwards, and so is torch's random state.

    Args:
        model: Any module that takes one tensor and gives one tensor.
        example: Inputs, shape (n, ...) with n at least 1.
        path: The file; its ending says the format. ``.pt`` is the weights, for code that has the
            model's class, as ``save_checkpoint`` writes them, the state_dict under "model".
            ``.pt2`` is a program of ``torch.export`` and ``.onnx`` one for other runtimes: in
            evaluation mode, on the CPU, from ``inputs`` of any number of rows to ``outputs``.
        loss_fn: The loss the model was trained with: a program ends in its activation and gives
            probabilities. None leaves the outputs as the model gives them.
        classes: Names of the classes, in order: strings or numbers. Of a single output, two.
        scaling: How inputs were made of what people have, for readers of the file: any plain value,
            such as ``{"mean": [0.5], "std": [0.25]}``.

    Beside the model, the file keeps ``classes``, ``scaling``, ``input_shape`` (of one sample),
    ``input_dtype`` and whether outputs are ``probabilities``: entries of their own in a ``.pt``,
    JSON in the extra files of a ``.pt2`` and in the metadata of an ``.onnx``.

    Raises:
        TypeError: If example or outputs are no tensor, or ``classes`` or ``scaling`` not plain.
        ValueError: If the path has another ending, there is no row, ``classes`` are not as many as
            the outputs, the loss names no activation or stands beside a ``.pt``, torch cannot turn
            the model into a program, or the program gives other outputs.
        ImportError: If onnxruntime or onnxscript is missing for an ``.onnx``.
        OSError: If the file cannot be written.

    Examples:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "model.pt2")
        >>> example, model = torch.randn(8, 4), nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5))
        >>> export(model, example, path, loss_fn=nn.CrossEntropyLoss(), classes=["a", "b", "c"])
        >>> facts = {"classes": ""}
        >>> again = torch.export.load(path, extra_files=facts).module()
        >>> again(torch.randn(2, 4)).shape, json.loads(facts["classes"])
        (torch.Size([2, 3]), ['a', 'b', 'c'])
    """
    path = Path(path).expanduser()
    if path.suffix not in _FORMATS:
        raise ValueError(f"path must end in .pt, .pt2 or .onnx, got {path}.")
    if not path.parent.is_dir():  # before the minutes that some models take
        raise FileNotFoundError(f"path must be in a folder that is there, got {path}.")
    if path.suffix == ".pt" and loss_fn is not None:
        raise ValueError("loss_fn must be left out for a .pt: weights end in no activation.")
    if not isinstance(example, Tensor):
        remedy = "For a model of several inputs, call torch.export.export itself."
        raise TypeError(f"example must be one tensor, got {type(example).__name__}. {remedy}")
    if example.ndim == 0 or len(example) == 0:
        raise ValueError(f"example must have a row at least, got shape {tuple(example.shape)}.")

    whole = _Outputs(copy.deepcopy(written(model)).cpu(), loss_fn)  # tracing may leave its marks
    example = example.detach().cpu()
    twice = torch.cat([example, example])  # of a single row, torch would make a constant
    with evaluating(whole):
        law, remedy = "the model's outputs must be one tensor", "Wrap it to return the one to keep."
        shape = kept_tensor(whole.model(example), law, remedy).shape
        n = max([2, *shape[1:2]])
        if classes is not None and len(classes) != n:
            got = f"got {len(classes)} for outputs of shape {tuple(shape)}"
            raise ValueError(f"classes must be {n} names, {got}.")
        facts = {
            "classes": classes,
            "scaling": scaling,
            "input_shape": list(example.shape[1:]),
            "input_dtype": str(example.dtype).removeprefix("torch."),
            "probabilities": loss_fn is not None,
        }
        with replacing(path) as beside:
            again = _FORMATS[path.suffix](whole, twice, beside, _texts(facts))
            for inputs in (example, example[:1], twice):
                _check_same(again(inputs), whole(inputs), path)


class _Outputs(nn.Module):
    """A model that ends in the activation of its loss."""

    def __init__(self, model: nn.Module, loss_fn: Loss | None) -> None:
        super().__init__()
        self.model = model
        self._last = None if loss_fn is None else partial(heads.probabilities, loss_fn=loss_fn)

    def forward(self, inputs: Tensor) -> Any:  # what programs call their input
        outputs = self.model(inputs)
        return outputs if self._last is None else self._last(outputs)


def _texts(facts: dict[str, Any]) -> dict[str, str]:
    try:
        return {name: json.dumps(fact, allow_nan=False) for name, fact in facts.items()}
    except (TypeError, ValueError) as error:
        law = "classes and scaling must be plain values that JSON has"
        raise TypeError(f"{law}, got: {error}. Of a tensor, pass .tolist().") from None


# ------------------------------------------------------------------ formats: write, and read again


def _weights(model: _Outputs, example: Tensor, path: Path, facts: dict[str, str]) -> _Forward:
    plain = {name: json.loads(fact) for name, fact in facts.items()}
    save_checkpoint(path, model=model.model.state_dict(), **plain)
    again = copy.deepcopy(model)
    again.model.load_state_dict(load_checkpoint(path)["model"])
    return again


def _program(model: _Outputs, example: Tensor, path: Path, facts: dict[str, str]) -> _Forward:
    with _explained():
        program = _traced(model, example)
    torch.export.save(program, path, extra_files=facts)
    return torch.export.load(path).module()


def _onnx(model: _Outputs, example: Tensor, path: Path, facts: dict[str, str]) -> _Forward:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 (torch.onnx needs it)
    except ImportError as error:
        remedy = "Run pip install onnxruntime onnxscript"
        raise ImportError(f"an .onnx needs what is not installed: {error}. {remedy}.") from error
    names: dict[str, Any] = {
        "input_names": ["inputs"],
        "output_names": ["outputs"],
        "dynamic_shapes": ({0: "batch"},),
    }
    with _explained():
        traced = _traced(model, example)
        program = torch.onnx.export(traced, dynamo=True, verbose=False, **names)
    assert program is not None  # given no file
    program.model.metadata_props.update(facts)
    path.write_bytes(program.model_proto.SerializeToString())
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda inputs: torch.from_numpy(session.run(None, {"inputs": inputs.numpy()})[0])


def _traced(model: _Outputs, example: Tensor) -> torch.export.ExportedProgram:
    rows = torch.export.Dim("batch")
    return torch.export.export(model, (example,), dynamic_shapes=({0: rows},), strict=False)


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # torch raises all kinds
        raise ValueError(
            "the model must be one that torch can turn into a program for any number of rows. Keep "
            "branches on values and fixed batch sizes out of its forward (x.flatten(1) in place of "
            f"x.view(32, -1)), or write its weights as a .pt. Got {type(error).__name__}: {error}"
        ) from error


def _check_same(got: Tensor, outputs: Tensor, path: Path) -> None:
    try:
        torch.testing.assert_close(got, outputs, rtol=1e-4, atol=1e-4, equal_nan=True)
    except AssertionError as error:
        raise ValueError(
            f"{path.name} must give the model's outputs, and was not written. Keep random numbers, "
            f"and all that changes from call to call, out of forward. Got: {error}"
        ) from None


_FORMATS = {".pt": _weights, ".pt2": _program, ".onnx": _onnx}
