"""Data: batches in memory, MNIST from files, digits that are drawn."""

from torchcls.data.batches import Batches
from torchcls.data.drawn import drawn_digits
from torchcls.data.idx import read_idx
from torchcls.data.mnist import mnist

__all__ = ["Batches", "drawn_digits", "mnist", "read_idx"]
