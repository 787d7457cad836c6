"""The group of several processes: how they share batches, meet at every step, and fail together.

All that a step says to the others is one small vector (``_Vector``): whether this process has
failed, which batch it has, what its part of the batch counts. Every process sends it in the same
place of the same step, so whoever fails before that place sends its failure there, and all raise.
"""

import random
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from torchcls.averaging import Count
from torchcls.group import FirstLeftError, Group
from torchcls.processes import sharded
from torchcls.processes.shares import Shares, check_not_shared
from torchcls.processes.start import start
from torchcls.state import is_sharded, modules_of


def processes() -> Group:
    """The processes that a launcher such as ``torchrun`` has started, or this one alone.

    ``fit`` and ``epochs`` ask by themselves; the small loops share their batches where they are
    given a ``group``. Starts torch's process group where nobody has. To be called in all processes.

    Returns:
        A group with ``rank``, ``size`` and ``is_first``, which is True in the one process that
        should print and write.

    Raises:
        RuntimeError: If a launcher has started several processes and not said how they meet.

    Examples:
        >>> group = processes()  # this very process, where no launcher has started any
        >>> group.rank, group.size, group.is_first
        (0, 1, True)
    """
    return Processes() if start() else Group()


class _Vector(NamedTuple):
    """What every process tells at a meeting; all are added up."""

    failed: float = 0
    steps: float = 0  # 1 where it has a batch to step on
    left: float = 0  # where it has left the loop; the first counts more than all others together
    stops: float = 0
    mark: float = 0  # of the batch
    square: float = 0  # of the mark
    untold: float = 0  # 1 where the numerator is still to come
    counted: float = 0
    numerator: float = 0


class Processes(Group):
    """The processes of torch's default group. A gloo group of its own carries what is said."""

    def __init__(self) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.is_first = self.rank == 0
        self._gloo: Any = dist.new_group(backend="gloo")
        self._engine: DistributedDataParallel | None = None
        self.model: nn.Module | None = None
        self.marks: dict[int, tuple[Any, int]] = {}  # datasets and their marks, by id
        self.seen = 0  # the marks of the batches since then, as one
        self._trained: list[nn.Parameter] = []
        self._buffers: dict[torch.dtype, list[Tensor]] = {}
        self._may_tell = True  # whether the others will meet before they need anything else
        self._has_told = False

    # -------------------------------------------------------------- shares

    def rows(self, n: int) -> tuple[int, int]:
        """Where this process's rows of n begin and end."""
        return self.rank * n // self.size, (self.rank + 1) * n // self.size

    def shares(self, batches: Any, opened: Callable[[Any], Any] = lambda source: source) -> Any:
        """This process's share of every batch of a source; see ``Shares``."""
        check_not_shared(batches)
        return Shares(batches, self, opened)

    def meet_over_stream(self, rows: int) -> int:
        """How many samples the processes have in their next batches together."""
        return int(self._meet(_Vector(counted=rows)).counted)

    def of_anyone(self, value: Any) -> Any:
        """The value of the first process in which there is one."""
        found = self.from_all(value)
        return next((value for value in found if value is not None), None)

    # -------------------------------------------------------------- the step

    def prepare(
        self, model: nn.Module, loss_fn: Any, optimizer: Optimizer, *, is_plain: bool
    ) -> None:
        """Make the engine that reduces gradients, and let each process draw numbers of its own."""
        self._meet(_Vector())  # nobody has failed on the way here, and all need each other now
        modules = modules_of(model, loss_fn)
        modules = {name: m for name, m in modules.items() if any(True for _ in m.parameters())}
        named = {id(p): p for m in modules.values() for p in m.parameters() if p.requires_grad}
        _check_shared(model, optimizer, named)
        trained = list(named.values())
        self.is_sharded = is_sharded(model)
        if self.is_sharded:
            sharded.check(model, loss_fn)
        elif trained and [id(p) for p in trained] != [id(p) for p in self._trained]:
            uses_all = is_plain and "loss" not in modules and _uses_all(model)
            self._engine = _engine(trained, uses_all=uses_all)
        self.model, self._trained = model, trained
        self._buffers = {}
        for buffer in model.buffers():
            self._buffers.setdefault(buffer.dtype, []).append(buffer)
        self._part_ways()

    def _part_ways(self) -> None:
        """Let the other processes draw other numbers than the first, for dropout, say."""
        state = self.from_first(torch.get_rng_state())
        if not self.is_first:
            seed = zlib.crc32(state.numpy().tobytes(), self.rank)
            torch.manual_seed(seed)
            np.random.seed(seed)
            random.seed(seed)

    def evened(self, pieces: list[Any], size: int | None) -> tuple[list[Any], int]:
        """The pieces and how many of them count; under FSDP each process has as many."""
        real = len(pieces) if self.part.rows else 0
        if self.is_sharded:
            self._tell_batch(_Vector())
            self._may_tell = False  # the forward needs the others
            if size is not None:
                most = -(-self.part.whole // self.size)
                pieces = pieces + pieces[-1:] * (-(-most // size) - len(pieces))
        return pieces, real

    def total(self, count: Count, numerator: Count | None) -> tuple[Count, Count | None]:
        """Count and numerator of the whole batch; None where a process has not told its own."""
        told = _Vector(
            counted=float(count), untold=numerator is None, numerator=float(numerator or 0)
        )
        summed = self._meet(told) if self.is_sharded else self._tell_batch(told)
        self._may_tell = False
        return summed.counted, None if summed.untold else summed.numerator

    def _tell_batch(self, told: _Vector) -> _Vector:
        mark = self.part.mark
        return self._meet(told._replace(steps=1, mark=mark, square=mark * mark))

    def reduced(self, loss: Tensor, *, is_last: bool) -> Tensor:
        """The loss times the number of processes, by which torch divides all gradients."""
        if self.is_sharded:
            assert self.model is not None
            sharded.synchronise(self.model, is_last=is_last)
        elif is_last and self._engine is not None:
            loss = self._engine(loss)
        return loss * self.size

    def stepped(self) -> None:
        """The backward pass is over: whatever fails from here on can be told at the next step."""
        self._may_tell = True
        self._same_buffers()

    def end_epoch(self) -> None:
        """Make sure that the batches have ended in all processes."""
        self._meet(_Vector())

    def _same_buffers(self) -> None:
        """Give all the buffers of the first: their own samples have moved running statistics."""
        for buffers in self._buffers.values():
            flat = torch.cat([buffer.reshape(-1) for buffer in buffers])
            dist.broadcast(flat, 0)
            for buffer, value in zip(
                buffers, flat.split([b.numel() for b in buffers]), strict=True
            ):
                buffer.copy_(value.view_as(buffer))

    # -------------------------------------------------------------- what all hear

    def sum(self, *numbers: Count) -> tuple[float, ...]:
        """Each number added up over the processes, in float64."""
        vector = torch.tensor([float(n) for n in numbers], dtype=torch.float64, device="cpu")
        try:
            dist.all_reduce(vector, group=self._gloo)
        except RuntimeError as error:
            raise RuntimeError(
                "another process has ended without a word, and so all end: it was killed, ran out "
                f"of memory, or failed in its backward pass, and says so itself ({error})"
            ) from error
        return tuple(vector.tolist())

    def stops(self, is_stopped: bool) -> bool:
        """Whether the first process says that the run ends here."""
        return bool(self._meet(_Vector(stops=self.is_first and is_stopped)).stops)

    def leave(self) -> bool:
        """Tell that the loop over the run is left, and hear whether all have left it."""
        told = _Vector(left=self.size if self.is_first else 1)
        return self._meet(told).left == 2 * self.size - 1

    def from_first(self, value: Any) -> Any:
        """What the first process has for a value; of anything that can be pickled."""
        box = [value if self.is_first else None]
        dist.broadcast_object_list(box, src=0, group=self._gloo)
        return box[0]

    def gathered(self, parts: list[Any]) -> list[Any] | None:
        """The parts of all processes, batch by batch; None but in the first process."""
        found: list[Any] | None = [None] * self.size if self.is_first else None
        dist.gather_object(parts, found, dst=0, group=self._gloo)
        if found is None:
            return None
        return [part for batch in zip(*found, strict=True) for part in batch]

    def from_all(self, value: Any) -> list[Any]:
        """What each process has for a value."""
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value, group=self._gloo)
        return found

    # -------------------------------------------------------------- failing together

    @contextmanager
    def failing(self) -> Iterator[None]:
        """A context whose errors reach all processes at the next time they meet."""
        self._has_told = False
        try:
            yield
        except (GeneratorExit, FirstLeftError):
            raise
        except BaseException as error:
            if self._may_tell and not self._has_told:
                self._meet(_Vector(failed=1), error)
            raise

    @contextmanager
    def together(self) -> Iterator[None]:
        """A context at whose end all processes meet, and raise if one of them has failed."""
        self._may_tell, self.seen = True, 0
        with self.failing():
            yield
            self._meet(_Vector(mark=self.seen, square=self.seen**2))

    def _meet(self, told: _Vector, error: BaseException | None = None) -> _Vector:
        """Add up what the processes tell; where one has failed, or has left, all end here."""
        may_tell, self._may_tell = self._may_tell, False  # not where an interrupt comes in between
        summed = _Vector(*self.sum(*told))
        self._may_tell = may_tell
        if summed.failed:
            self._has_told = True
            words = None if error is None else f"{type(error).__name__}: {error}"
            found = self.from_all(words)
            if error is None:
                said = "; ".join(f"process {r} with {w}" for r, w in enumerate(found) if w)
                raise RuntimeError(f"another process has failed, and so all end: {said}")
        elif summed.left and summed.left != 2 * self.size - 1:
            self._has_told = True
            if summed.left < self.size:
                raise RuntimeError(
                    "the loop over a run must be left by the first process or by all, got "
                    f"{summed.left:.0f} of {self.size} processes that have left it without the "
                    "first. Decide by what all know, such as at.loss or the record."
                )
            if not told.left:
                raise FirstLeftError
        elif summed.steps not in (0, self.size) or summed.mark**2 != self.size * summed.square:
            self._has_told = True  # by the sums themselves
            raise ValueError(
                "batches must be the same in every process, which takes its share of each, got "
                "others in some. Hand out the whole data everywhere: no DistributedSampler, no "
                "split by rank, and one seed for what shuffles."
            )
        return summed


def _check_shared(model: nn.Module, optimizer: Optimizer, named: dict[int, nn.Parameter]) -> None:
    if isinstance(model, DistributedDataParallel):
        raise ValueError(
            "model must be the module itself, got it in DistributedDataParallel, which would "
            "reduce its gradients a second time. Pass model.module."
        )
    if any(map(is_lazy, model.parameters())):
        raise ValueError(
            "model must know the shapes of its parameters before it is shared by processes, got "
            "lazy ones. Run it on one sample first."
        )
    held = [p for group in optimizer.param_groups for p in group["params"]]
    strays = [p for p in held if p.requires_grad and id(p) not in named]
    if strays:
        raise ValueError(
            "optimizer must hold parameters of model and loss_fn only where there are several "
            f"processes, got {len(strays)} that are neither's: each process would train its own. "
            "Make them parameters of the model."
        )


def _uses_all(model: nn.Module) -> bool:
    """Whether every step uses every parameter: a Sequential of torch's layers, without hooks."""
    parts = list(model.modules())
    return isinstance(model, nn.Sequential) and all(
        (type(part) is nn.Sequential or not any(True for _ in part.children()))
        and type(part).__module__.startswith("torch.nn.modules.")
        and not (part._forward_hooks or part._forward_pre_hooks)
        for part in parts
    )


def _engine(trained: list[nn.Parameter], *, uses_all: bool) -> DistributedDataParallel:
    """What reduces gradients while the backward pass goes on.

    It is called on the loss: model and loss function run outside of it, as they always do. But for
    where a step ``uses_all``, any of the parameters may be unused; finding out costs a sum more.
    """
    shim = _Shim(trained)
    if not uses_all:  # it warns where it has found none: one that is never used
        shim.trained.append(nn.Parameter(torch.zeros((), device=trained[0].device)))
    return DistributedDataParallel(shim, find_unused_parameters=not uses_all)


class _Shim(nn.Module):
    """All that is trained, and no buffer; what goes through is the loss."""

    def __init__(self, trained: list[nn.Parameter]) -> None:
        super().__init__()
        self.trained = nn.ParameterList(trained)

    def forward(self, loss: Tensor) -> Tensor:
        """Let DistributedDataParallel see what goes backward."""
        return loss
