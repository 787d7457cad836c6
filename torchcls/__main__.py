"""``python -m torchcls`` is the command ``torchcls``."""

from torchcls.cli import console

console()
