"""Classification training in plain PyTorch: hand-written loops, losses and metrics."""

__version__ = "0.1.0"
