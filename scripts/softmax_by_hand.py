"""Softmax by hand on five rows: the right axis, the wrong one, none at all, and the formula.

    python scripts/softmax_by_hand.py

Expected: 0.1065 0.1065 0.7870 for the first row, as in the lecture; rows that sum to 1 with dim=1,
columns that do with dim=0, a TypeError without dim. The other four rows are restored (see
cross_entropy_by_hand.py). Measured with torch 2.15: 2 seconds.
"""

import sys
import warnings
from collections.abc import Sequence

import torch
from lecture import parse_options, verdict

import torchcls as tc

LOGITS = torch.tensor(
    [
        [-2.0, -2.0, 0.0],
        [3.14, 3.14, 3.14],
        [0.0, 0.0, 2.0],
        [2.0, 2.0, 4.0],
        [0.0, 0.0, 0.0],
    ]
)
LECTURE = [0.1065, 0.1065, 0.7870]  # of the first row, to four digits


def main(argv: Sequence[str] | None = None) -> int:
    parse_options(__doc__, argv)
    right = tc.softmax(LOGITS, dim=1)
    print(f"1. dim=1, one image per row, so rows sum to 1:\n{right}")
    status = judge("its first row is the lecture's", right[0], torch.tensor(LECTURE), atol=5e-5)
    status |= judge("torch says the same", right, torch.softmax(LOGITS, dim=1))

    wrong = tc.softmax(LOGITS, dim=0)
    print(f"\n2. dim=0, the wrong axis: columns sum to 1, rows to {wrong.sum(dim=1)}")
    status |= judge("columns, not rows", wrong.sum(dim=0), torch.ones(3))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "Implicit dimension choice for softmax is deprecated"
        guessed = torch.nn.Softmax()(LOGITS)
    print("\n3. no axis: torch guesses, with a warning; here it has to be said")
    status |= judge("torch's guess for a matrix is dim=1", guessed, right)
    try:
        tc.softmax(LOGITS)
    except TypeError as refusal:
        status |= verdict("dim" in str(refusal), f"refused: {refusal}")
    else:
        status |= verdict(False, "softmax without dim went through")

    powers = torch.exp(LOGITS[0])
    print(f"\n4. the formula: exp(u) = {powers}, divided by their sum {powers.sum():.4f}")
    return status | judge("the formula gives the first row", powers / powers.sum(), right[0])


def judge(claim: str, ours: torch.Tensor, theirs: torch.Tensor, atol: float = 1e-6) -> int:
    """Whether two tensors agree to within ``atol``, as an exit status."""
    return verdict((ours - theirs).abs().max().item() <= atol, claim)


if __name__ == "__main__":
    sys.exit(main())
