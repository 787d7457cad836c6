"""torchcls.structure: nested batches are walked through, counted and cut."""

from typing import NamedTuple

import pytest
import torch
from torch import tensor

from torchcls.structure import mapped, num_samples, split


class Pair(NamedTuple):
    first: object
    second: object


def test_mapped_keeps_tuples_named_tuples_lists_and_dicts():
    nested = {"a": (1, [2]), "b": Pair(3, 4)}
    assert mapped(lambda leaf: -leaf, nested) == {"a": (-1, [-2]), "b": Pair(-3, -4)}
    assert isinstance(mapped(lambda leaf: leaf, nested)["b"], Pair)


def test_split_cuts_every_tensor_and_keeps_the_rest():
    pieces = split(({"x": torch.arange(5), "scale": 2.0}, tensor(7)), 2)
    assert [piece[0]["x"].tolist() for piece in pieces] == [[0, 1], [2, 3], [4]]
    assert all(piece[0]["scale"] == 2.0 and piece[1] == 7 for piece in pieces)


def test_pieces_are_views():
    x = torch.zeros(4)
    split(x, 2)[1][0] = 1
    assert x.tolist() == [0, 0, 1, 0]


def test_no_sample_gives_no_piece():
    assert split(torch.zeros(0, 3), 2) == []


def test_a_list_of_dicts_holds_one_dict_for_each_sample():
    boxes = [{"boxes": torch.zeros(n, 4)} for n in (1, 3, 2)]
    assert num_samples((torch.zeros(3, 5), boxes)) == 3
    assert [len(piece) for piece in split(boxes, 2)] == [2, 1]


@pytest.mark.parametrize(
    ("structure", "words"),
    [((torch.zeros(2), torch.zeros(3)), r"lengths \[2, 3\]"), ("names", "none in str")],
)
def test_lengths_must_agree(structure, words):
    with pytest.raises(ValueError, match=rf"agree in the length.*{words}"):
        num_samples(structure)
