"""What outlives a run: files that faults cannot break, and the folder in which a run goes on."""

from torchcls.survival.files import DamagedError, load_checkpoint, save_checkpoint

__all__ = ["DamagedError", "load_checkpoint", "save_checkpoint"]
