"""The preflight: what a look at model, data and the first training step finds to be wrong."""

from torchcls.preflight.check import check
from torchcls.preflight.findings import ContractError, Finding

__all__ = ["ContractError", "Finding", "check"]
