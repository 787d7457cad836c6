"""A warning points at the line of the user's own."""

from pathlib import Path

import pytest
import torch
from torch import nn

import torchcls as tc

PACKAGE = Path(tc.__file__).parent


def test_the_place_of_a_warning_is_the_call_and_no_line_of_the_package():
    x, y = torch.randn(8, 2), torch.randint(2, (8,))
    with pytest.warns(UserWarning, match="valid-is-train") as said:
        tc.fit(
            nn.Linear(2, 2),
            tc.Batches(x, y, batch_size=4),
            tc.Batches(x, y, batch_size=4),
            loss_fn=nn.CrossEntropyLoss(),
            progress=False,
        )
    assert [warning.filename for warning in said] == [__file__]


def functions_in(path, source):
    """What a file of this name and content defines."""
    defined = {}
    exec(compile(source, str(path), "exec"), defined)
    return defined


@pytest.mark.parametrize("name", ["in_a_context", "in_a_bar"])
def test_it_passes_over_the_frames_of_contextlib_and_tqdm(name):
    ours = functions_in(
        PACKAGE / "made_up.py",
        """
import contextlib, os, tqdm
from torchcls.warn import warn

@contextlib.contextmanager
def at_its_end():
    yield
    warn("it is odd")

def in_a_context():
    with at_its_end():
        pass

def batches():
    yield 1
    warn("it is odd")

def in_a_bar():
    with open(os.devnull, "w") as nowhere:
        list(tqdm.tqdm(batches(), file=nowhere))
""",
    )
    users = functions_in("users_own.py", "def call(function):\n    function()\n")
    with pytest.warns(UserWarning, match="it is odd") as said:
        users["call"](ours[name])
    assert [(warning.filename, warning.lineno) for warning in said] == [("users_own.py", 2)]


def test_a_package_of_a_similar_name_beside_it_is_the_users_own():
    beside = PACKAGE.parent / "torchcls_extras" / "own.py"
    own = functions_in(beside, "from torchcls.warn import warn\n\ndef f():\n    warn('odd')\n")
    with pytest.warns(UserWarning, match="odd") as said:
        own["f"]()
    assert [(warning.filename, warning.lineno) for warning in said] == [(str(beside), 4)]
