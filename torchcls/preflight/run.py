"""The preflight of a run: a look before the first step, at it, and at what passes by later."""

import math
import warnings
from collections.abc import Callable, Collection, Iterable
from itertools import islice
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from torchcls import heads
from torchcls.averaging import Mean
from torchcls.batches import Pair, generators_of, num_batches, samples_of, split
from torchcls.evaluation import Metrics, named_metrics
from torchcls.group import Group
from torchcls.preflight import contract, failure, inside, scores, sources, training
from torchcls.preflight import targets as of_targets
from torchcls.preflight.check import check as check_batch
from torchcls.preflight.check import eager, is_compiled
from torchcls.preflight.failure import explain_forward
from torchcls.preflight.findings import Check, ContractError, Finding, act_on, error, warning
from torchcls.preflight.reading import describe, untouched
from torchcls.state import is_sharded
from torchcls.step import ForwardOf, Loss, Taken, forward_of, may_skip

_MOST_BATCHES = 20  # of a validation set, where one of them did not do
_KEPT = "The weights are those after the last good step."
_SAID_ONCE = {"non-finite-loss", "non-finite-gradient", "non-finite-valid-loss", "all-ignored"}


class Preflight:
    """Looks at a run as it goes: raises for what is wrong, warns of doubts, keeps notes.

    To make one is the one pass over model, optimizer and data before anything runs; to call it is
    to look at a step. It takes the arguments of ``fit``, whether something sets the learning rate,
    whether steps whose gradients overflow are skipped anyway, and doubts about the schedule.
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
        doubts: Iterable[str] = (),
        forward: ForwardOf = None,
        train_metrics: Metrics = (),
        group: Group | None = None,
    ) -> None:
        self._group = group or Group()
        self._train_metrics = train_metrics
        self._forward, self._call = forward, forward_of(model, forward)
        self._model, self._loss_fn, self._metrics = model, loss_fn, metrics
        self._optimizer, self._train, self._valid = optimizer, train, valid
        self._check, self._ignore, self._scales_loss = check, frozenset(ignore), scales_loss
        self.findings: list[Finding] = []
        self.measure: Callable[..., Any] | None = None  # what validates, given batches and metrics
        self._said_before: set[str] = set()  # codes, in the run that is resumed
        # What is looked for in every batch, until it was said.
        self._watched = set() if check == "off" else _SAID_ONCE - self._ignore
        self._epoch = self._number = -1
        self._has_seen_step, self._has_seen_valid = False, valid is None
        self._first_batch: Any = None  # of several workers, until the second was seen
        self._called: inside.Called | None = None  # what the loss calls, until that was looked at
        self._norms: dict[Tensor, Tensor] = {}  # of the parameters, as the first epoch begins
        self._first_inputs: Any = None  # some of the first batch, until validation was seen
        self._first_bad: Tensor | None = None  # the number of a batch, on an accelerator
        self._bad_before: Tensor | None = None  # the same, in the process that is resumed
        self._holds_back = self._watches_gradients = False
        if check != "off":
            self._settle(training.findings_of(model, loss_fn, optimizer, has_schedule=has_schedule))
            self._settle(warning("learning-rate", doubt) for doubt in doubts)  # of the schedule
            self._settle([*of_targets.options_of(loss_fn), *sources.findings_of(train, valid)])
            self._frozen = training.untrained(model, optimizer)
            self._has_targets = sources.targets_of(train) is not None

    def _settle(self, findings: Iterable[Finding]) -> None:
        new = [f for f in findings if f not in self.findings and f.code not in self._said_before]
        is_heard = self._group.is_first
        self.findings += act_on(new, self._check, self._ignore, is_heard=is_heard)

    def _say_once(self, code: str, message: str) -> None:
        """Raise an error, or say it and look for it no more."""
        if code in self._watched:
            self._settle([error(code, message)])
            self._watched.discard(code)

    def watch(self, loss_fn: Loss) -> Loss:
        """What is to be called in place of a loss of one's own, so that its first call is seen."""
        if self._check == "off" or self._has_seen_step or heads.named(loss_fn) is not None:
            return loss_fn

        def watched(outputs: Any, targets: Any) -> Any:
            if self._has_seen_step or self._called is not None:
                return loss_fn(outputs, targets)
            with inside.Called() as self._called:
                self._called.result = loss_fn(outputs, targets)
            return self._called.result

        return watched

    def __call__(self, taken: Taken, epoch: int, number: int) -> Tensor | None:
        """Look at a step between its backward pass and the optimizer's; both numbers count from 0.

        On an accelerator, for an optimizer that can be told so, a 0-d tensor comes back that is 1
        where it is to skip this step and all that follow, since a loss was not finite.
        """
        if self._check == "off":
            return None
        if epoch != self._epoch or number != self._number + 1:
            self._begin()
        self._epoch, self._number = epoch, number
        if epoch == 0 or not self._has_seen_step:
            self._look_closely(taken)
        loss = taken.mean
        if isinstance(loss, Tensor):
            # Nobody waits for an accelerator: the number of the first batch that is bad lies there.
            bad = torch.where(loss.isfinite(), math.inf, float(number))
            self._first_bad = bad if self._first_bad is None else bad.minimum(self._first_bad)
            return (self._first_bad <= number).float() if self._holds_back else None
        if not math.isfinite(loss):
            if "non-finite-loss" in self._watched:
                self._loss_is_not_finite(taken, loss)
        elif self._watches_gradients:
            for parameter in self._held:  # every step comes here: no call that can be spared
                gradient = parameter.grad
                if gradient is not None and not math.isfinite(abs(gradient.sum().item())):
                    self._gradient_may_not_be_finite()
                    break
        return None

    def _begin(self) -> None:
        """Begin a stretch of steps, at the start of an epoch or where a run goes on inside one."""
        self._held = training.held_by(self._optimizer)
        self._first_bad, self._bad_before = self._bad_before, None
        is_fused = all(group.get("fused") for group in self._optimizer.param_groups)
        is_told = is_fused and may_skip(self._optimizer) and not self._scales_loss
        self._holds_back = is_told and self._check == "error" and "non-finite-loss" in self._watched
        self._watches_gradients = not self._scales_loss and "non-finite-gradient" in self._watched

    def _look_closely(self, taken: Taken) -> None:
        outputs, targets = taken.outputs, taken.batch[1]
        called, self._called = self._called, None
        is_empty = outputs is None or (isinstance(outputs, Tensor) and outputs.numel() == 0)
        if not self._has_seen_step and not is_empty:
            with self._group.together():  # what one share shows is everybody's
                self._settle(self._of_first_step(taken, called))
                if self._valid is not None and self.measure is not None:
                    self._of_valid(taken, self.measure)
            self._has_seen_step = True
            if self._number == 0 and not self._scales_loss:  # which may skip first steps
                self._norms = training.norms(self._optimizer)
        if self._first_batch is not None:
            self._settle(sources.repeated_batches(self._first_batch, taken.batch))
        has_many = self._number == 0 and sources.workers(self._train) > 1
        self._first_batch = taken.batch if has_many else None
        is_said = self._has_targets or any(f.code == "target-range" for f in self.findings)
        # Class ids out of range raise by themselves.
        if not is_said and isinstance(targets, Tensor) and targets.is_floating_point():
            self._settle(of_targets.in_range(targets, outputs, heads.named(self._loss_fn)))

    def _of_first_step(self, taken: Taken, called: inside.Called | None) -> list[Finding]:
        inputs, targets, outputs = taken.inputs, taken.targets, taken.outputs
        model, loss_fn, loss = self._model, self._loss_fn, heads.named(self._loss_fn)
        found = contract.findings_of(*self._readable(inputs, targets, outputs), loss_fn)
        found += scores.loss_findings(loss_fn, outputs, targets)
        used = {id(p) for p in (*model.parameters(), *self._held) if p.grad is not None}
        found += training.gradient_findings(used, model, self._optimizer)
        found += training.held_findings(model, self._optimizer, used, self._frozen)
        given = outputs if called is None else (outputs, called.result)
        if not is_sharded(model):  # whose graph ends in whole copies of what each process has
            found += inside.unheld_findings(given, model, loss_fn, self._optimizer)
        if called is not None:
            found += inside.loss_findings(called, loss_fn, outputs, targets)
        is_shared = self._group.size > 1
        if is_shared or samples_of((inputs, targets)) < samples_of(taken.batch):
            found += training.batch_statistics(model, is_shared=is_shared)
        found += training.idle_processes(self._group)
        of_train = scores.copies_of(named_metrics(self._train_metrics))
        found += scores.findings_of(of_train, outputs, targets, loss_fn)
        for source in (self._train, self._valid):
            stored = sources.targets_of(source)
            if stored is not None:
                found += of_targets.in_range(stored, outputs, loss)
        found += sources.last_batch(self._train, targets, outputs)
        if loss is not None:
            found += sources.one_input(*taken.batch)
        if not isinstance(taken.mean, Tensor):
            found += sources.unscaled_pixels(inputs, outputs, taken.mean, loss_fn)
        valid = sources.some_rows(self._valid)
        if valid is not None and sources.some_rows(self._train) is not None:
            self._has_seen_valid = True
            found += sources.scale_findings(inputs, valid[0])
        elif not self._has_seen_valid and isinstance(inputs, Tensor):
            is_cut = inputs.ndim > 0 and inputs.layout == torch.strided
            self._first_inputs = inputs[:64].clone() if is_cut else None
        return found

    def _readable(self, inputs: Any, targets: Any, outputs: Any) -> tuple[Any, Any, Any]:
        """The same step with a graph that can be read: of a compiled model a few samples, eager."""
        if is_compiled(self._model):
            try:
                few, their_targets = (split(part, 8)[0] for part in (inputs, targets))
                with untouched(self._model), torch.enable_grad(), eager(self._model):
                    return few, their_targets, self._call(few)
            except Exception:  # a model that takes no part of a batch
                pass
        return inputs, targets, outputs

    def _of_valid(self, taken: Taken, measure: Callable[..., Any]) -> None:
        """Validate on the first batch, with copies of the metrics, and put all back.

        Where it must not be started early, they are tried on what evaluation makes of the training
        batch. Both come after its backward pass: some models can be evaluated only then.
        """
        seen: list[Pair] = []
        modes: set[str] = set()

        def see(outputs: Any, targets: Any) -> None:
            seen.append((outputs, targets))
            modes.update(inside.still_training(self._model))

        spy = SimpleNamespace(reset=seen.clear, update=see, compute=bool)
        copies = scores.copies_of(named_metrics(self._metrics))
        is_early = sources.may_start_early(self._valid)
        batches = self._valid if is_early else [(taken.inputs, taken.targets)]
        loss_fn = self._loss_fn if is_early else None

        def explain(failure: Exception, batch: Any) -> None:
            given, first = None if batch is None else batch[0], taken.inputs
            if not isinstance(given, Tensor) or not isinstance(first, Tensor):
                pass
            elif given.shape[1:] != first.shape[1:]:
                seen = f"Validation has inputs of {describe(given)}, and fails, where training has"
                self._settle(
                    [error("shape-differs", f"{seen} {describe(first)}. Make them alike.")]
                )
            self.explain(failure, batch)

        look = SimpleNamespace(explain=explain, at_valid=lambda *_: None) if is_early else None

        def raised_by(n: int | None, metrics: Any) -> Exception | None:
            generators = [(g, g.get_state()) for g in generators_of(batches)]
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # one batch may lack what the split has
                    with untouched(self._model, loss_fn), eager(self._model):
                        measure(islice(batches, n), loss_fn, metrics, look=look, name="valid")
            except ContractError:
                raise
            except torch.OutOfMemoryError:  # to put all back takes memory, too
                return None
            except Exception as raised:
                return raised
            finally:
                for generator, state in generators:
                    generator.set_state(state)
            return None

        with inside.Called() as called:
            raised = raised_by(1, {"": spy, **(copies if is_early else {})})
        found = list(inside.evaluation_findings(modes, called.drops))
        for outputs, targets in seen:
            targets = targets if is_early else self._as_valid_may_have(targets, outputs)
            found += scores.findings_of(
                copies, outputs, targets, self._loss_fn, is_asked=is_early, shown=taken.outputs
            )
        if is_early and raised and not any(finding.severity == "error" for finding in found):
            # A metric may need more than a batch, such as every class: a short split decides.
            n = num_batches(self._valid)
            is_short = n is not None and n <= _MOST_BATCHES
            raised = raised_by(_MOST_BATCHES, copies)
            if raised is not None:
                say = error if is_short else warning
                tried = "" if is_short else f" of {_MOST_BATCHES} batches"
                why = f"{type(raised).__name__}: {raised}"
                found.append(say("valid-fails", f"Validation{tried} fails before any step: {why}"))
        try:
            self._settle(found)
        except ContractError as stop:
            raise stop from raised

    def _as_valid_may_have(self, targets: Any, outputs: Any) -> Any:
        """Training targets in the form that validation may have; None where nobody can tell."""
        are_tensors = isinstance(outputs, Tensor) and isinstance(targets, Tensor)
        if not are_tensors or outputs.ndim < 2 or outputs.shape[1] == 1:
            return targets
        if not targets.is_floating_point():
            return torch.zeros_like(targets)  # values, such as an ignore_index, may differ there
        known = heads.recognise(self._loss_fn)
        is_soft = known is None or "rows" in known.kind.targets  # as mixup makes them
        return None if is_soft else targets

    def _loss_is_not_finite(self, taken: Taken, loss: float) -> None:
        outputs = taken.outputs
        if taken.inputs is not taken.batch[0]:  # only the first piece was kept
            with untouched(self._model):
                outputs = self._call(taken.batch[0])
        self._not_finite("non-finite-loss", self._where(), loss, taken.batch, outputs, _KEPT)

    def _gradient_may_not_be_finite(self) -> None:
        if not failure.is_finite([p.grad for p in self._held]):  # else its sum alone overflowed
            named = ((name, p.grad) for name, p in self._model.named_parameters())
            why = failure.which_gradient(self._where(), named)
            self._say_once("non-finite-gradient", f"{why} {_KEPT}")
            self._watches_gradients = False

    def _where(self) -> str:
        return f"batch {self._number} of epoch {self._epoch} (both counted from 0)"

    def after_epoch(self, epoch: int, mean: Mean) -> None:
        """Look at an epoch as a whole: on an accelerator the first number that anybody sees."""
        if self._check == "off":
            return
        if mean.counted() == 0:
            seen = f"No target of epoch {epoch} (counted from 0) counts: each is ignore_index, or"
            self._say_once("all-ignored", f"{seen} has class weight 0. Look at the labels.")
        norms, self._norms = self._norms, {}
        bad = math.inf if self._first_bad is None else self._first_bad.item()
        if bad < math.inf:
            where = f"batch {bad:.0f} of epoch {epoch} (both counted from 0)"
            kept = _KEPT if self._holds_back else "The optimizer has gone on stepping."
            seen = f"The loss is not finite in {where}. On the CPU the run says what went first."
            self._say_once("non-finite-loss", f"{seen} {kept}")
        else:
            self._settle(training.movement_findings(norms))
        self._settle(sources.more_batches(self._train, self._number + 1))
        self.findings[:] = self._group.from_first(self.findings)

    def at_valid(self, number: int, loss: float, batch: Pair, outputs: Any) -> None:
        """Look at a validation batch: the first beside training, of each the loss."""
        if not self._has_seen_valid and self._check != "off":
            self._has_seen_valid = True
            self._settle(sources.scale_findings(self._first_inputs, batch[0]))
            self._first_inputs = None
        if not math.isfinite(loss) and "non-finite-valid-loss" in self._watched:
            where = f"validation batch {number} of epoch {self._epoch} (both counted from 0)"
            kept = "The weights are those after this epoch."
            self._not_finite("non-finite-valid-loss", where, loss, batch, outputs, kept)

    def _not_finite(
        self, code: str, where: str, loss: float, batch: Pair, outputs: Any, kept: str
    ) -> None:
        why = failure.what_went_first(batch, outputs, self._model)
        self._say_once(code, f"The loss is {loss:g} in {where}. {why} {kept}")

    def explain(self, failure: Exception, batch: Any) -> None:
        """Raise a ``ContractError`` from what a step on a batch raised, where that can be told."""
        is_known = isinstance(failure, (ContractError, torch.OutOfMemoryError))
        if self._check == "off" or batch is None or is_known:
            return
        try:
            found = check_batch(self._model, batch, self._loss_fn, forward=self._forward)
        except Exception:  # what stands in the way of looking is the failure itself
            return
        # Of a piece, say, where the whole batch is fine.
        by_layer = explain_forward(failure, self._model, batch[0])
        found += [by_layer] if by_layer is not None and not found else []
        try:
            self._settle(f for f in found if f.severity == "error" and f.code[-6:] != "-fails")
        except ContractError as explained:
            raise explained from failure

    def state_dict(self) -> dict[str, Any]:
        """What was found; waits for an accelerator."""
        bad = None if self._first_bad is None else float(self._first_bad)
        found = [(f.code, f.severity, f.message) for f in self.findings]
        return {"findings": found, "first bad": bad}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.findings[:] = [Finding(*found) for found in state["findings"]]
        self._said_before = {finding.code for finding in self.findings}
        self._watched -= self._said_before
        if state.get("first bad") is not None:
            self._bad_before = torch.tensor(state["first bad"], device="cpu")
