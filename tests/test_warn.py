"""A warning points at the line of the user's own."""

import pytest
import torch
from torch import nn

import torchcls as tc


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
