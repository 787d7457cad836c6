"""torchcls.batches: nested batches are walked through, counted and cut."""

import re
from collections import defaultdict
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import tensor
from torch.nn.utils.rnn import pack_sequence
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import torchcls as tc
from torchcls.batches import (
    check_source,
    mapped,
    num_samples,
    pairs,
    samples_of,
    split,
    to_device,
)


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


def words(n):
    return [f"word {i}" for i in range(n)]


@pytest.mark.parametrize(
    "part",
    [
        words(5),
        tuple(words(5)),
        np.arange(10).reshape(5, 2),
        [torch.zeros(i + 1) for i in range(5)],  # of different lengths
        tuple(torch.zeros(i + 1) for i in range(5)),
        [torch.zeros(3, i + 1) for i in range(5)],  # three channels each
        [torch.zeros(3)] * 5,
        [{"boxes": torch.zeros(i, 4)} for i in range(5)],
        tuple({"boxes": torch.zeros(2, 4)} for _ in range(5)),
        [np.zeros(i) for i in range(5)],
        [[1, 2], [3], [], [4], [5]],
        list(range(5)),
        [object() for _ in range(5)],
    ],
    ids=lambda part: f"{type(part).__name__} of {type(part[0]).__name__}",
)
@pytest.mark.parametrize("n", [5, 2])
def test_what_has_one_entry_for_each_sample_is_cut_with_them(part, n):
    part, ids = part[:n], torch.arange(n)
    x = torch.zeros(n, 4)
    for inputs, get in [
        (part, lambda inputs: inputs),
        ((x, part), lambda inputs: inputs[1]),
        ({"x": x, "more": {"part": part}}, lambda inputs: inputs["more"]["part"]),
    ]:
        pieces = split((inputs, ids), 2)
        assert [piece[1].tolist() for piece in pieces] == [
            ids[i : i + 2].tolist() for i in (0, 2, 4)
        ][: len(pieces)]
        found = [entry for piece in pieces for entry in get(piece[0])]
        assert len(found) == n
        assert all(a is b or np.array_equal(a, b) for a, b in zip(found, part, strict=True))
        assert all(type(get(piece[0])) is type(part) for piece in pieces)


@pytest.mark.parametrize("targets", [[{"boxes": torch.zeros(2, 4)}] * 3, tuple(words(3))])
def test_a_batch_without_one_tensor_is_cut(targets):
    images = [torch.zeros(1, 4, 5 + i) for i in range(3)]
    pieces = split((images, targets), 2)
    assert [(len(inputs), len(cut)) for inputs, cut in pieces] == [(2, 2), (1, 1)]


def test_what_may_be_samples_or_parts_is_not_guessed():
    images = [torch.zeros(3, 4, 5 + i) for i in range(3)]
    targets = [{"boxes": torch.zeros(2, 4)}] * 3
    with pytest.raises(ValueError, match=r"inputs must have one entry .* which may be either"):
        split((images, targets), 2)
    assert [len(inputs) for inputs, _ in split((images, targets), 3)] == [3]  # not cut


@pytest.mark.parametrize("n", [1, 2, 5])
def test_a_list_of_parts_is_cut_part_by_part(n):
    for parts in ([torch.zeros(n, 3), torch.ones(n)], (words(n), torch.ones(n))):
        (first, _), *_ = split((parts, (torch.zeros(n), torch.arange(n))), 1)
        assert [len(part) for part in first] == [1, 1]


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (((torch.zeros(5, 2), words(3)), torch.zeros(5)), r"inputs[1] .* got list of 3"),
        (
            ({"x": torch.zeros(5), "g": Graph(torch.zeros(5))}, torch.zeros(5)),
            r"inputs['g'] .* got Graph",
        ),
        ((torch.zeros(5), (torch.zeros(5), torch.zeros(4))), r"targets[1] .* got Tensor of 4"),
        ((np.zeros((4, 2)), torch.zeros(5)), r"inputs .* got ndarray of 4"),
        ((torch.zeros(5), [1, 2]), r"targets .* of 5 samples .* got list of 2"),
        (
            (pack_sequence([torch.zeros(i, 1) for i in (3, 2, 1)]), torch.zeros(3)),
            r"inputs .* got PackedSequence",
        ),
    ],
    ids=["list", "object", "targets", "array", "numbers", "packed"],
)
def test_what_cannot_be_cut_is_named(batch, message):
    pattern = re.escape(message).replace(r"\ \.\*\ ", " .* ")
    with pytest.raises(ValueError, match=f"^{pattern}"):
        split(batch, 2)


def test_a_batch_without_one_number_of_samples_is_not_cut():
    with pytest.raises(ValueError, match=r"agree in their number. Leave it whole"):
        split(({"x": torch.zeros(5, 2), "names": words(6)}, None), 2)


def test_numbers_and_strings_go_with_every_piece():
    inputs = {"x": torch.zeros(3, 2), "scale": 2.0, "task": "a", "mask": None, "t": tensor(7)}
    for piece, _ in split((inputs, torch.zeros(3)), 2):
        assert {key: piece[key] for key in ("scale", "task", "mask", "t")} == {
            "scale": 2.0,
            "task": "a",
            "mask": None,
            "t": tensor(7),
        }


# --- sources ----------------------------------------------------------------------------------

FEATURES, LABELS = torch.rand(6, 4), torch.arange(6) % 3
GOOD = [(FEATURES, LABELS)]


class Stream(IterableDataset):
    def __iter__(self):
        return zip(FEATURES, LABELS, strict=True)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ((FEATURES, LABELS), r"one Tensor of shape \(6, 4\).*tc\.Batches\(inputs, targets"),
        ([FEATURES.numpy(), LABELS.numpy()], r"one ndarray of shape \(6, 4\).*tc\.Batches"),
        (FEATURES.numpy(), r"got ndarray.*tc\.Batches"),
        ({"x": FEATURES, "y": LABELS}, r"got dict.*tc\.Batches"),
        ([*GOOD, FEATURES], r"one Tensor of shape \(6, 4\)"),
        ([(x, np.int64(1)) for x in FEATURES], "samples of a list.*shuffle=True"),
        (TensorDataset(FEATURES, torch.rand(6, 3)), "samples of a TensorDataset"),
        (Stream(), r"samples of a Stream. Wrap it: .*batch_size=64\)"),
        (DataLoader(Stream(), batch_size=None), "samples of a DataLoader. Give it a batch_size"),
        (DataLoader(TensorDataset(FEATURES, LABELS), batch_size=None), "Give it a batch_size"),
        (DataLoader(TensorDataset(FEATURES), 2), "got 1 part.*tc\\.Batches"),
    ],
)
def test_what_holds_no_batches_is_refused_and_the_advice_makes_some(source, words):
    with pytest.raises(TypeError, match=f"train must .*{words}"):
        _ = check_source(source, "train"), next(pairs(source, "train"))


@pytest.mark.parametrize("source", [(FEATURES, LABELS), FEATURES, [*GOOD, FEATURES]])
def test_a_validation_source_in_memory_is_refused_before_an_epoch_is_trained(source):
    model = torch.nn.Linear(4, 3)
    before = model.weight.detach().clone()
    with pytest.raises(TypeError, match="valid must"):
        tc.fit(model, GOOD, source, loss_fn=torch.nn.CrossEntropyLoss(), epochs=1, progress=False)
    assert torch.equal(model.weight, before)


@pytest.mark.parametrize(
    "source",
    [
        GOOD,
        tuple(GOOD),
        DataLoader(GOOD, batch_size=None),
        TensorDataset(FEATURES.reshape(2, 3, 4), LABELS.reshape(2, 3)),
        [("inputs of any kind", LABELS)],
    ],
)
def test_batches_of_any_kind_are_taken(source):
    check_source(source, "train")
    assert len(next(pairs(source, "train"))) == 2


@pytest.mark.parametrize(
    ("inputs", "targets", "n"),
    [
        (FEATURES, LABELS[:4], 4),  # targets say it first
        (FEATURES, None, 6),
        (FEATURES, ["a", "b", "a", "c", "b", "a"], 6),
        (FEATURES, torch.tensor(3), 6),
        (torch.rand(4, 10, 6), (LABELS, torch.tensor([1, 2, 1, 2])), 4),  # concatenated, lengths
        (FEATURES, {"node": LABELS, "graph": LABELS[:2]}, 6),
        ("anything", None, 1),
    ],
)
def test_samples_are_counted_by_targets_else_by_inputs(inputs, targets, n):
    assert samples_of((inputs, targets)) == n


def test_targets_of_no_form_are_averaged_over_the_inputs():
    batches = [(torch.full((n, 1), float(n)), None) for n in (1, 3)]
    model = torch.nn.Linear(1, 1)
    loss_fn = lambda outputs, targets: outputs.square().mean()  # noqa: E731
    expected = loss_fn(model(torch.tensor([[1.0], [3], [3], [3]])), None).item()
    assert tc.evaluate(model, batches, loss_fn=loss_fn).loss == pytest.approx(expected, rel=1e-6)
    options = {"lr": 1e-9, "ignore": ["nothing-moves"], "progress": False}
    history = tc.fit(model, batches, loss_fn=loss_fn, epochs=1, **options)
    assert history[0].train_loss == pytest.approx(expected, rel=1e-6)
