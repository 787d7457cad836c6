"""The preflight: what a look at one training step, the model and the data finds to be wrong."""

from torchcls.checks.check import check
from torchcls.checks.findings import ContractError, Finding

__all__ = ["ContractError", "Finding", "check"]
