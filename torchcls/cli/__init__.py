"""The command ``torchcls``."""

from torchcls.cli.main import console, main

__all__ = ["console", "main"]
