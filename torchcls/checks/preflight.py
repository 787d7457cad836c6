"""The preflight of a run: a look before the first step, at it, and at what passes by later."""

import math
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from torchcls.averaging import Count, Mean
from torchcls.checks import contract, finite, graph, scores, sources, training
from torchcls.checks.check import check as check_batch
from torchcls.checks.check import eager, is_compiled
from torchcls.checks.findings import Check, ContractError, Finding, act_on, error
from torchcls.checks.untouched import untouched
from torchcls.losses import recognise
from torchcls.scorers import Metrics, named_metrics
from torchcls.step import Loss, Seen, Step
from torchcls.structure import split

_KEPT = "The weights are those after the last good step."


class Preflight:
    """Looks at a run as it goes: raises for what is wrong, warns of doubts, keeps notes.

    Args:
        model: The model.
        loss_fn: Its loss.
        metrics: What is measured on ``valid``.
        optimizer: The optimizer.
        train: The training batches.
        valid: The validation batches, or None.
        check: "error" raises ``ContractError`` for errors and warns of doubts, "warn" warns of
            both, "off" looks at nothing.
        ignore: Codes of findings that are left out.
        has_schedule: Whether something sets the learning rate.
        scales_loss: Whether steps whose gradients overflow are skipped anyway.

    Attributes:
        findings: What was found so far and not ignored.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: Loss,
        metrics: Metrics,
        optimizer: Optimizer,
        train: Any,
        valid: Any,
        *,
        check: Check,
        ignore: Collection[str],
        has_schedule: bool,
        scales_loss: bool,
    ) -> None:
        self._model, self._loss_fn, self._metrics = model, loss_fn, metrics
        self._optimizer, self._train, self._valid = optimizer, train, valid
        self._check, self._ignore = check, frozenset(ignore)
        self._looks_at_gradients = not scales_loss
        self.findings: list[Finding] = []
        self._said_before: set[str] = set()  # codes, in the run that is resumed
        self._epoch, self._batch = 0, -1
        self._has_seen_step, self._has_seen_valid = False, valid is None
        self._first_inputs: Any = None  # some of the first batch, until validation was seen
        self._held: list[Tensor] = []  # what the optimizer holds
        self._order = _Order()
        self._on_device = finite.OnDevice(None)
        if check != "off":
            static = training.findings_of(model, loss_fn, optimizer, has_schedule=has_schedule)
            self._settle([*static, *contract.options_of(loss_fn)])
            self._settle(sources.findings_of(train, valid))

    def _settle(self, findings: Iterable[Finding]) -> None:
        new = [
            finding
            for finding in findings
            if finding not in self.findings and finding.code not in self._said_before
        ]
        self.findings += act_on(new, self._check, self._ignore)

    # -------------------------------------------------------------- training

    @contextmanager
    def of_epoch(
        self, epoch: int, batches: Iterable[Any], first: int = 0
    ) -> Iterator[Iterable[Any]]:
        """Hand on the batches of a training epoch, and explain what a step on one raises.

        Args:
            epoch: Its number.
            batches: Its batches.
            first: The number of the first one: others have gone before in a run that is resumed.
        """
        self._epoch, self._batch = epoch, first - 1
        self._held = [p for group in self._optimizer.param_groups for p in group["params"]]
        with self._explaining(batches) as seen, finite.OnDevice(self._held_back()) as on_device:
            self._on_device = on_device
            yield seen

    def _held_back(self) -> Optimizer | None:
        return self._optimizer if self._check == "error" and self._looks_at_gradients else None

    def before_step(self, batch: tuple[Any, Any], step: Step, loss: Count) -> None:
        """Look at a step between its backward pass and the optimizer's step.

        Args:
            batch: The batch.
            step: The step that was taken on it.
            loss: Its loss: a number on the CPU; elsewhere a tensor, at which nobody looks here.
        """
        self._batch += 1
        if self._check == "off":
            return
        if self._epoch == 0 or not self._has_seen_step:
            seen = step.seen
            if not self._has_seen_step and not _is_empty(seen):
                self._has_seen_step = True
                self._first_step(batch, seen, loss)
            self._passing_by(batch[1], seen.outputs)
        if isinstance(loss, Tensor):
            self._on_device.add(loss)
        elif not math.isfinite(loss):
            self._loss_is_not_finite(batch, step.seen, loss)
        elif self._looks_at_gradients:
            for parameter in self._held:  # every step comes here: no call that can be spared
                gradient = parameter.grad
                if gradient is not None and not math.isfinite(abs(gradient.sum().item())):
                    self._gradient_may_not_be_finite()
                    break

    def _first_step(self, batch: tuple[Any, Any], seen: Seen, loss: Count) -> None:
        outputs, model, loss_fn = seen.outputs, self._model, self._loss_fn
        found = contract.findings_of(self._readable(seen), loss_fn)
        found += scores.loss_findings(loss_fn, outputs, seen.targets)
        used = {id(p) for p in (*model.parameters(), *self._held) if p.grad is not None}
        found += training.gradient_findings(used, model, self._optimizer)
        if contract.name_of(loss_fn) is None:
            found += training.held_findings(model, self._optimizer, used)
        found += self._scores(seen)
        for source in (self._train, self._valid):
            targets = sources.targets_of(source)
            if targets is not None:
                found += sources.target_range(targets, outputs, loss_fn)
        if isinstance(outputs, Tensor):
            found += _last_batch(self._train, seen)
        if isinstance(loss, (int, float)):
            found += sources.unscaled_pixels(seen.inputs, outputs, loss, loss_fn)
        valid = sources.some_rows(self._valid)
        if valid is not None and sources.some_rows(self._train) is not None:
            self._has_seen_valid = True
            found += sources.scale_findings(seen.inputs, valid[0])
        elif not self._has_seen_valid and isinstance(seen.inputs, Tensor):
            is_cut = seen.inputs.ndim > 0 and seen.inputs.layout == torch.strided
            self._first_inputs = seen.inputs[:64].clone() if is_cut else None
        self._settle(found)

    def _readable(self, seen: Seen) -> Seen:
        """The same step with a graph that can be read: of a compiled model a few samples, eager."""
        if not is_compiled(self._model):
            return seen
        try:
            inputs, targets = (split(part, 8)[0] for part in (seen.inputs, seen.targets))
            with untouched(self._model), torch.enable_grad(), eager(self._model):
                return Seen(inputs, targets, self._model(inputs))
        except Exception:  # a model that takes no part of a batch
            return seen

    def _scores(self, seen: Seen) -> list[Finding]:
        """Try the metrics on targets of the form that validation has."""
        outputs, targets = seen.outputs, seen.targets
        if not isinstance(outputs, Tensor) or not isinstance(targets, Tensor) or not outputs.ndim:
            return []
        valid = sources.some_rows(self._valid)
        if valid is not None:
            if not isinstance(seen.inputs, Tensor) or valid[0].shape[1:] != seen.inputs.shape[1:]:
                return []  # and so may the outputs be
            targets = valid[1].to(outputs.device)
            n = min(len(outputs), len(targets))
            outputs, targets = outputs[:n], targets[:n]
        elif targets.is_floating_point() and outputs.ndim > 1 and outputs.shape[1] > 1:
            known = recognise(self._loss_fn)
            if known is None or known.name == "cross_entropy":
                return []  # soft rows, as mixup makes them: validation may have class ids
        elif outputs.ndim > 1 and outputs.shape[1] > 1:
            targets = torch.zeros_like(targets)  # values, such as an ignore_index, may differ there
        named = named_metrics(self._metrics)
        return scores.findings_of(named, outputs, targets, self._loss_fn, is_asked=False)

    def _passing_by(self, targets: Any, outputs: Any) -> None:
        if not isinstance(targets, Tensor) or targets.device.type != "cpu":
            return
        if targets.is_floating_point() and sources.targets_of(self._train) is None:
            found = list(sources.target_range(targets, outputs, self._loss_fn))
            if found:
                self._settle(found)

    def after_step(self, targets: Any) -> None:
        """Look at the targets of a step that is whole."""
        if self._epoch > 0 or self._check == "off" or not self._order.may_be_sorted:
            return
        is_read = isinstance(targets, Tensor) and targets.device.type == "cpu"
        if is_read and not targets.is_floating_point():
            self._order.add(targets)

    def state_dict(self) -> dict[str, Any]:
        """What was found, and what the first epoch has shown so far."""
        findings = [(found.code, found.severity, found.message) for found in self.findings]
        return {"findings": findings, "order": vars(self._order)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.findings[:] = [Finding(*found) for found in state["findings"]]
        self._said_before = {finding.code for finding in self.findings}
        vars(self._order).update(state["order"])

    def _loss_is_not_finite(self, batch: tuple[Any, Any], seen: Seen, loss: float) -> None:
        outputs = self._outputs(batch, seen)
        self._settle(
            [
                finite.why_not_finite(
                    "non-finite-loss", self._where(), loss, *batch, outputs, self._model, _KEPT
                )
            ]
        )

    def _gradient_may_not_be_finite(self) -> None:
        if finite.is_finite([p.grad for p in self._held]):
            return  # its sum alone overflowed
        bad = [
            name
            for name, p in self._model.named_parameters()
            if p.grad is not None and not finite.is_finite([p.grad])
        ]
        self._settle([finite.why_gradient(self._where(), bad, _KEPT)])

    def _where(self) -> str:
        return f"batch {self._batch} of epoch {self._epoch} (both counted from 0)"

    def _outputs(self, batch: tuple[Any, Any], seen: Seen) -> Any:
        """The outputs of the whole batch: of one that was cut, only the first piece was kept."""
        if seen.inputs is batch[0]:
            return seen.outputs
        with untouched(self._model):
            return self._model(batch[0])

    def end_epoch(self, mean: Mean) -> None:
        """Look at an epoch as a whole: on an accelerator the first number that anybody sees.

        Args:
            mean: The mean loss.
        """
        if self._check == "off":
            return
        if self._epoch == 0 and self._order.is_sorted:
            self._settle([sources.sorted_note()])
        if mean.counted() == 0:
            self._settle(
                [
                    error(
                        "all-ignored",
                        f"No target of epoch {self._epoch} (counted from 0) counts: each is "
                        "ignore_index, or has class weight 0. Look at how the labels were read.",
                    )
                ]
            )
        bad = self._on_device.first_bad()
        if bad is not None:
            kept = _KEPT if self._on_device.holds_back else "The optimizer has gone on stepping."
            self._settle(
                [
                    error(
                        "non-finite-loss",
                        f"The loss is not finite in batch {bad} of epoch {self._epoch} (both "
                        "counted from 0). On the CPU the run would stop there and say what went "
                        f"first. {kept}",
                    )
                ]
            )

    # -------------------------------------------------------------- validation

    @contextmanager
    def of_valid(self, batches: Iterable[Any]) -> Iterator[Iterable[Any]]:
        """Hand on the validation batches, compare the first with training, explain what raises."""
        with self._explaining(batches) as seen:
            yield map(self._compared, seen)

    def _compared(self, batch: Any) -> Any:
        if not self._has_seen_valid and self._check != "off":
            self._has_seen_valid = True
            self._settle(sources.scale_findings(self._first_inputs, batch[0]))
            self._first_inputs = None
        return batch

    def at_valid(self, number: int, loss: float, batch: tuple[Any, Any], outputs: Any) -> None:
        """Look at the loss of a validation batch."""
        if math.isfinite(loss) or self._check == "off":
            return
        if any(finding.code == "non-finite-valid-loss" for finding in self.findings):
            return
        where = f"validation batch {number} of epoch {self._epoch} (both counted from 0)"
        self._settle(
            [
                finite.why_not_finite(
                    "non-finite-valid-loss",
                    where,
                    loss,
                    *batch,
                    outputs,
                    self._model,
                    "The weights are those after this epoch.",
                )
            ]
        )

    # -------------------------------------------------------------- failure

    @contextmanager
    def _explaining(self, batches: Iterable[Any]) -> Iterator[Iterable[Any]]:
        """Say why a step on a batch failed, where that can be told."""
        last = None

        def remembered() -> Iterator[Any]:
            nonlocal last
            for last in batches:
                yield last
                last = None  # what the source raises next is no fault of this one

        try:
            yield remembered()
        except ContractError:
            raise
        except Exception as failure:
            is_seen = last is not None and self._check != "off"
            if is_seen and not isinstance(failure, torch.OutOfMemoryError):
                self._explain(failure, last)
            raise

    def _explain(self, failure: Exception, batch: Any) -> None:
        try:
            found = check_batch(self._model, batch, self._loss_fn)
        except Exception:  # what stands in the way of looking is the failure itself
            return
        unexplained = ("forward-fails", "loss-fails")
        errors = [f for f in found if f.severity == "error" and f.code not in unexplained]
        try:
            self._settle(errors)
        except ContractError as explained:
            raise explained from failure


def _is_empty(seen: Seen) -> bool:
    """Whether a batch held no sample: nothing can be seen at it."""
    outputs = seen.outputs
    return outputs is None or (isinstance(outputs, Tensor) and outputs.numel() == 0)


class _Order:
    """Whether class ids come sorted over a whole epoch."""

    def __init__(self) -> None:
        self.may_be_sorted = True
        self._first: int | None = None
        self._last: int | None = None

    @property
    def is_sorted(self) -> bool:
        return self.may_be_sorted and self._first != self._last

    def add(self, ids: Tensor) -> None:
        if ids.ndim != 1 or not len(ids):
            self.may_be_sorted = False
            return
        if self._last is None:
            self._first = self._last = int(ids[0])
        rising = bool((ids[1:] >= ids[:-1]).all()) and int(ids[0]) >= self._last
        self.may_be_sorted = rising
        self._last = int(ids[-1])


def _last_batch(train: Any, seen: Seen) -> Iterator[Finding]:
    last = sources.last_batch_of_one(train)
    n = len(seen.targets) if isinstance(seen.targets, Tensor) and seen.targets.ndim else 0
    if last is not None and n == last[1] and graph.normalises_single_values(seen.outputs, n):
        n, size = last
        yield error(
            "last-batch",
            f"The last batch has 1 sample ({n} samples, batch size {size}), and BatchNorm cannot "
            "train on it. Use drop_last=True, or another batch size.",
        )
