"""What all test files share: a seeded generator, and a check that a test leaves torch as it was."""

import importlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

# Threads cost more than they gain on tensors this small, here and in the processes of the tests.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"


@pytest.hookimpl(tryfirst=True)  # pytest-xdist reads its options in the same hook
def pytest_cmdline_main(config: pytest.Config) -> None:
    """The whole suite runs in several processes, a part that was asked for in this one."""
    is_whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS
    is_worker = "PYTEST_XDIST_WORKER" in os.environ  # which has the same arguments
    # Coverage has to know of the processes before this: it takes -n from the command line alone.
    is_measured = bool(getattr(config.option, "cov_source", None))
    is_open = getattr(config.option, "numprocesses", 0) is None
    if is_whole and is_open and not is_worker and not is_measured:
        config.option.numprocesses, config.option.maxprocesses = "auto", 4
        config.option.dist = "worksteal"


@pytest.fixture(autouse=True, scope="session")
def _no_wait_for_the_disk() -> Iterator[None]:
    """No test in this process cuts the power, and tests of checkpoints would mostly wait."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture
def generator() -> torch.Generator:
    """A source of random numbers that is the same for every test."""
    return torch.Generator().manual_seed(0)


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Import a script as python does: with its folder on the path."""
    monkeypatch.syspath_prepend(Path(__file__).resolve().parents[1] / "scripts")
    return importlib.import_module


@pytest.fixture(autouse=True)
def _leaves_torch_as_found() -> Iterator[None]:
    """A test that changes what the next one finds is an error, and is put right for the next."""
    found = _settings()
    yield
    left = _settings()
    torch.set_default_dtype(found["default dtype"])
    torch.set_grad_enabled(found["grad mode"])
    torch.use_deterministic_algorithms(
        found["deterministic algorithms"], warn_only=found["deterministic warnings only"]
    )
    torch.backends.cudnn.deterministic = found["cudnn.deterministic"]
    torch.backends.cudnn.benchmark = found["cudnn.benchmark"]
    assert left == found, "the test changed settings of torch and did not put them back"


def _settings() -> dict[str, object]:
    return {
        "default dtype": torch.get_default_dtype(),
        "grad mode": torch.is_grad_enabled(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "deterministic warnings only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "cudnn.deterministic": torch.backends.cudnn.deterministic,
        "cudnn.benchmark": torch.backends.cudnn.benchmark,
    }
