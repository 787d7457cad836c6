"""Many processes, one run: the same script under ``torchrun``, and the same numbers."""

from torchcls.processes.group import processes
from torchcls.processes.streams import Streams

__all__ = ["Streams", "processes"]
