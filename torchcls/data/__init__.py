"""Data: batches in memory, MNIST from files, images in folders, digits that are drawn."""

from torchcls.data.batches import Batches
from torchcls.data.drawn import drawn_digits
from torchcls.data.folder import image_folder
from torchcls.data.idx import read_idx
from torchcls.data.mnist import mnist
from torchcls.data.photos import photo_transforms

__all__ = ["Batches", "drawn_digits", "image_folder", "mnist", "photo_transforms", "read_idx"]
