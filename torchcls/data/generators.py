"""Random numbers that depend on named whole numbers only."""

import numpy as np
import torch


def seeded_generator(*numbers: int) -> torch.Generator:
    """A generator of its own for each tuple of whole numbers >= 0, however large or alike."""
    mixed = np.random.SeedSequence(numbers).generate_state(1)  # torch's generator uses 32 bits
    return torch.Generator().manual_seed(int(mixed[0]))
