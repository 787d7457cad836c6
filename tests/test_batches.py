"""torchcls.batches: nested batches are walked through, counted and cut."""

from collections import defaultdict
from typing import NamedTuple

import pytest
import torch
from torch import tensor

from torchcls.batches import mapped, num_samples, split, to_device


class Pair(NamedTuple):
    first: object
    second: object


class Outputs(dict):
    """A dict that gives its items as attributes, too, as Hugging Face's outputs do."""

    def __init__(self, **items):
        super().__init__()
        self.note = "mine"
        for key, value in items.items():
            self[key] = value

    def __setitem__(self, key, value):
        super().__setitem__(key, value)
        setattr(self, key, value)


class Frozen(dict):
    def __setitem__(self, key, value):
        raise TypeError("frozen")


def test_mapped_keeps_tuples_named_tuples_lists_and_dicts():
    nested = {"a": (1, [2]), "b": Pair(3, 4)}
    assert mapped(lambda leaf: -leaf, nested) == {"a": (-1, [-2]), "b": Pair(-3, -4)}
    assert isinstance(mapped(lambda leaf: leaf, nested)["b"], Pair)


@pytest.mark.parametrize(
    "structure",
    [
        {"a": tensor(1)},
        [tensor(1), "name"],
        (tensor(1), [2.5]),
        Pair(tensor(1), None),
        Outputs(logits=tensor(1), hidden=(tensor(2),)),
        torch.Size([2, 3]),
        torch.zeros(2, 3).max(dim=0),
        tensor(1),
        (),
        {},
    ],
)
def test_where_no_leaf_changes_the_very_same_structure_is_returned(structure):
    assert mapped(lambda leaf: leaf, structure) is structure


def test_parts_without_a_change_stay_the_same():
    kept = [tensor(1)]
    number, same = mapped(lambda leaf: 7 if leaf == 3 else leaf, (3, kept))
    assert number == 7
    assert same is kept


def test_a_dict_of_ones_own_class_keeps_its_class_and_its_attributes():
    outputs = Outputs(logits=1, hidden=(2, 3), name="x")
    found = mapped(lambda leaf: leaf if leaf == "x" else -leaf, outputs)
    assert type(found) is Outputs
    assert found == {"logits": -1, "hidden": (-2, -3), "name": "x"}
    assert (found.logits, found.hidden, found.note) == (-1, (-2, -3), "mine")
    assert outputs == {"logits": 1, "hidden": (2, 3), "name": "x"}  # the first one is left alone
    assert outputs.logits == 1
    lists = mapped(lambda leaf: -leaf, defaultdict(list, a=1))
    assert lists == {"a": -1}
    assert lists["new"] == []


def test_to_count_samples_nothing_is_made_anew():
    assert num_samples(Frozen(x=torch.zeros(5, 2))) == 5


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


class Graph:
    """An object that moves itself, as graphs and tokenized texts do."""

    def __init__(self, x):
        self.x = x

    def to(self, device):
        return Graph(self.x.to(device))


def test_objects_that_move_themselves_follow():
    (inputs, other), targets = to_device(
        ((Graph(torch.zeros(3)), "name"), torch.zeros(3)), torch.device("meta")
    )
    assert inputs.x.device.type == targets.device.type == "meta"
    assert other == "name"
