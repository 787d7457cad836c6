"""The data: what the loaders and the tensors behind them show before the first step."""

import copy
import itertools
import warnings

import pytest
import torch
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
)

import torchcls as tc
from torchcls.preflight import sources

X = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
IDS = torch.arange(40) % 4


def codes(train, valid=None):
    return [finding.code for finding in sources.findings_of(train, valid)]


def tensors(rows=slice(None), size=8, **keywords):
    return tc.Batches(X[rows].clone(), IDS[rows].clone(), batch_size=size, **keywords)


def loader(rows=slice(None), **keywords):
    return DataLoader(TensorDataset(X[rows].clone(), IDS[rows].clone()), 8, **keywords)


SAME = ["valid-is-train"]


@pytest.mark.parametrize("make", [tensors, loader])
def test_validation_on_the_training_samples_is_found_by_what_they_hold(make):
    train = make(slice(0, 30))
    assert codes(train, make(slice(0, 30))) == SAME
    assert codes(train, make(slice(10, 30))) == SAME
    assert codes(train, make(slice(30, 40))) == []
    assert codes(train, make(slice(28, 40))) == ["valid-overlaps"]
    assert codes(train, train) == SAME


def test_the_same_inputs_with_other_targets_are_other_samples():
    valid = tc.Batches(X[:30].clone(), IDS[:30] + 1, batch_size=8)
    assert codes(tensors(slice(0, 30)), valid) == []


@pytest.mark.parametrize(
    "inputs",
    [X.double(), X[:, :5], X.to_sparse(), torch.complex(X, X), X[:, :0]],
    ids=["float64", "other columns", "sparse", "complex", "no columns"],
)
def test_what_cannot_be_compared_is_not(inputs):
    train, other = (DataLoader(TensorDataset(x, IDS), 8) for x in (X, inputs))
    assert codes(train, other) == []
    assert codes(other, DataLoader(TensorDataset(inputs.clone(), IDS), 8)) == (
        [] if inputs.dtype != torch.float64 and inputs.shape != (40, 5) else SAME
    )


@pytest.mark.parametrize(
    "indices",
    [[slice(0, 4), slice(4, 8)], ["first", "second"], IDS > 0],
    ids=["slices", "names", "a mask"],
)
def test_subsets_by_what_is_no_row_number_are_left_alone(indices):
    subset = DataLoader(Subset(TensorDataset(X, IDS), indices), 1)
    assert codes(subset, loader()) == codes(subset, copy.copy(subset)) == []
    assert sources.some_rows(subset) is None


def test_some_rows_are_those_of_a_subset():
    subset = DataLoader(Subset(TensorDataset(X, IDS), [7, 3, 30]), 2, shuffle=True)
    inputs, targets = sources.some_rows(subset)
    assert torch.equal(inputs, X[[7, 3, 30]])
    assert targets.tolist() == [3, 3, 2]
    assert sources.targets_of(subset).tolist() == [3, 3, 2]


def test_subsets_are_compared_by_their_rows():
    dataset = TensorDataset(X, IDS)
    first, second = Subset(dataset, range(30)), Subset(dataset, range(30, 40))
    assert codes(DataLoader(first, 8), DataLoader(second, 8)) == []
    assert codes(DataLoader(first, 8), DataLoader(Subset(dataset, range(5, 25)), 8)) == SAME


def test_lists_of_the_same_batches_and_one_dataset_in_two_loaders_are_found():
    batches = list(zip(X.split(8), IDS.split(8), strict=True))
    assert codes(batches, list(batches)) == SAME
    assert codes(batches[:3], batches[3:]) == []
    pairs = [(torch.randn(2), 1) for _ in range(20)]
    assert codes(DataLoader(pairs, 4, shuffle=True), DataLoader(pairs, 4)) == SAME


def test_one_batch_for_both_is_left_alone():
    one = tensors(size=40, shuffle=True)
    assert codes(one, one) == []


def test_a_stream_for_both_is_left_alone():
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            yield from ((torch.randn(2), 0) for _ in range(20))

        def __len__(self):
            return 20

    stream = DataLoader(Stream(), 4)
    assert codes(stream, stream) == []


def test_sorted_targets_are_noted_unless_shuffled():
    order = IDS.argsort(stable=True)
    x, ids = X[order], IDS[order]
    assert codes(tc.Batches(x, ids, batch_size=8)) == ["sorted-targets"]
    assert codes(tc.Batches(x, ids.flip(0), batch_size=8)) == ["sorted-targets"]
    assert codes(tc.Batches(x, ids, batch_size=8, shuffle=True)) == []
    assert codes(DataLoader(TensorDataset(x, ids), 8)) == ["sorted-targets"]
    assert codes(DataLoader(TensorDataset(x, ids), 8, shuffle=True)) == []
    assert codes(tensors()) == []
    assert codes(tc.Batches(x, ids * 0, batch_size=8)) == ["one-class"]


@pytest.mark.parametrize("form", [torch.as_tensor, lambda ids: ids.tolist()])
def test_sorted_targets_beside_files_are_noted_too(form):
    class Files(Dataset):
        targets = form(IDS.sort().values)

        def __len__(self):
            return len(self.targets)

        def __getitem__(self, i):
            raise AssertionError("nothing is read for that")

    assert codes(DataLoader(Files(), 8)) == ["sorted-targets"]
    assert codes(DataLoader(Files(), 8, shuffle=True)) == []
    assert codes(DataLoader(Subset(Files(), [0, 20]), 1)) == []


def test_pairs_that_zip_moved_against_each_other_are_doubted():
    def of(inputs, targets):
        return codes(DataLoader(list(zip(inputs, targets, strict=False)), 8))

    assert of(X, IDS) == []
    assert of(X, IDS[1:]) == ["shifted-targets"]
    assert of(X, IDS[:-1].clone()) == ["shifted-targets"]
    assert of(X[:20], IDS[:20]) == []
    assert of(X[:-1], X[1:, 0]) == []  # a series and its next value
    assert of(X[10:], IDS[10:]) == []
    assert of(X[:20], IDS[3:23]) == []  # cut out on purpose
    assert of(X[:, :3], X[:, 3:]) == []  # two parts of one table
    order = torch.randperm(39, generator=torch.Generator().manual_seed(0))
    assert of([X[i] for i in order], [IDS[i] for i in order.flip(0)]) == []  # nobody can tell


class Named(Dataset):
    def __init__(self, classes):
        self.classes = classes

    def __len__(self):
        return 4

    def __getitem__(self, i):
        return torch.zeros(2), 0


def test_class_tables_that_number_the_classes_differently_are_found():
    def tables(train, valid):
        return codes(DataLoader(Named(train), 2), DataLoader(Named(valid), 2))

    assert tables(["cat", "dog", "eel"], ["cat", "eel"]) == ["class-tables"]
    assert tables(["cat", "eel"], ["cat", "dog", "eel"]) == ["class-tables"]
    assert tables(["cat", "dog", "eel"], ["cat", "dog"]) == []


def test_samples_that_validation_drops_are_noted():
    assert codes(tensors(slice(0, 20)), tensors(slice(20, 39), drop_last=True)) == [
        "valid-drops-samples"
    ]
    assert codes(tensors(slice(0, 20)), tensors(slice(24, 40), drop_last=True)) == []


def by_eight():
    return BatchSampler(SequentialSampler(range(33)), 8, drop_last=False)


class Stream:
    """A sampler that does not know its length."""

    def __iter__(self):
        return iter(range(33))


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (lambda: tensors(slice(0, 33)), ["last-batch"]),
        (lambda: loader(slice(0, 33)), ["last-batch"]),
        (lambda: loader(slice(0, 33), drop_last=True), []),
        (lambda: tensors(slice(0, 34)), []),
        (lambda: [(X, IDS)], []),
        (lambda: loader(slice(0, 33), sampler=Stream()), []),
        (lambda: DataLoader(TensorDataset(X[:33], IDS[:33]), batch_sampler=by_eight()),
         ["last-batch"]),
    ],
)  # fmt: skip
def test_a_last_batch_of_one_sample_is_seen_where_batch_statistics_are_taken(source, expected):
    outputs = nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3))(X[:8])
    found = sources.last_batch(source(), IDS[:8], outputs)
    assert [finding.code for finding in found] == expected
    assert list(sources.last_batch(source(), IDS[:8], nn.Linear(6, 3)(X[:8]))) == []


def test_scales_that_differ_are_doubted_and_outliers_are_not():
    def scales(train, valid):
        return [finding.code for finding in sources.scale_findings(train, valid)]

    assert scales(X, X * 255) == ["scale-differs"]
    assert scales(X * 20, X) == []
    outlier = X.clone()
    outlier[0, 0] = 1e9
    assert scales(outlier, X) == []
    assert scales(X, X[:, :3]) == ["shape-differs"]
    assert scales(torch.zeros(4, 2), X[:, :2]) == []
    assert scales(torch.randint(9, (4, 2)), torch.randint(9000, (4, 2))) == []
    assert scales({"x": X}, {"x": X * 255}) == []  # nobody looks into structures
    assert scales(X.to("meta"), X * 255) == []  # or waits for an accelerator
    assert scales(torch.complex(X, X), 255 * torch.complex(X, X)) == []
    assert scales(X, X[:0]) == []


def test_unscaled_pixels_are_doubted_where_the_first_loss_shows_it():
    pixels = torch.randint(256, (8, 1, 6, 6), generator=torch.Generator().manual_seed(0)).float()
    outputs, loss_fn = torch.zeros(8, 3), nn.CrossEntropyLoss()

    def seen(inputs, loss, loss_fn=loss_fn):
        return [f.code for f in sources.unscaled_pixels(inputs, outputs, loss, loss_fn)]

    assert seen(pixels, 40.0) == ["unscaled-inputs"]
    assert seen(pixels, 1.1) == []  # the model scales them itself
    assert seen(pixels / 255, 40.0) == []
    assert seen(pixels.byte(), 40.0) == ["unscaled-inputs"]  # cast by the model, and not scaled
    assert seen(pixels[:, 0], 40.0) == ["unscaled-inputs"]  # without the axis of one channel
    assert seen(pixels.flatten(1), 40.0) == []  # tables,
    assert seen(pixels.flatten(2), 40.0) == []  # spectra
    assert seen(pixels[:, 0] + 0.25, 40.0) == []  # and series of one length are no pixels
    assert seen(pixels.long(), 40.0) == []  # nor are ids
    assert seen(pixels - 128, 40.0) == []
    assert seen(pixels, 40.0, lambda o, t: o.sum()) == []
    assert seen(pixels, 40.0, nn.CrossEntropyLoss(torch.ones(3))) == []
    assert seen(pixels, 40.0, nn.BCEWithLogitsLoss()) == ["unscaled-inputs"]
    assert seen(pixels, 40.0, nn.MSELoss()) == []


class Own(Dataset):
    """A dataset that nobody can look into."""

    def __len__(self):
        return 40

    def __getitem__(self, i):
        return X[i], IDS[i]


@pytest.mark.parametrize("dataset", [Own(), TensorDataset(X, IDS)], ids=["own", "tensors"])
def test_rows_of_one_dataset_in_both_splits_are_found(dataset):
    def of(train, valid):
        return codes(DataLoader(Subset(dataset, train), 8), DataLoader(Subset(dataset, valid), 8))

    assert of(range(30), range(30, 40)) == []
    assert of(range(30), range(20, 40)) == SAME  # half of them
    assert of(range(30), torch.arange(29, 40)) == ["valid-overlaps"]
    whole, part = DataLoader(dataset, 8), DataLoader(Subset(Subset(dataset, range(20)), [3]), 8)
    assert codes(whole, part) == SAME
    by_sampler = [
        DataLoader(dataset, 8, sampler=SubsetRandomSampler(range(*rows)))
        for rows in ((0, 30), (25, 40), (30, 40))
    ]
    assert codes(*by_sampler[:2]) == ["valid-overlaps"]
    assert codes(by_sampler[0], by_sampler[2]) == []
    (finding,) = sources.findings_of(*by_sampler[:2])
    assert finding.severity == "warning"
    assert "5 of 15 validation samples are training samples of one dataset" in finding.message


def test_one_input_with_many_targets_is_doubted():
    def seen(inputs, targets=IDS):
        return [finding.code for finding in sources.one_input(inputs, targets)]

    same = X[:1].expand(40, 6)
    assert seen(same) == ["one-input"]
    assert seen(same, IDS * 0) == []
    assert seen(same[:7], IDS[:7]) == []  # too few to tell
    assert seen(X) == seen({"x": same}) == seen(same.to("meta")) == []
    with pytest.warns(UserWarning, match="All 40 inputs of the first batch are equal"):
        tc.fit(nn.Linear(6, 4), [(same, IDS)], loss_fn=nn.CrossEntropyLoss(), epochs=1,
               progress=False)  # fmt: skip


class Whole(IterableDataset):
    """All samples, whoever asks."""

    def __init__(self, length=None, shares=False):
        self.length, self.shares = length, shares

    def __iter__(self):
        info = torch.utils.data.get_worker_info()
        return itertools.islice(zip(X, IDS, strict=True), info.id if self.shares else 0, None,
                                info.num_workers if self.shares else 1)  # fmt: skip


class Sized(Whole):
    def __len__(self):
        return 40


def fit_stream(stream):
    loader = DataLoader(stream, 8, num_workers=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch about the length, and ours: findings keep them
        history = tc.fit(nn.Linear(6, 4), loader, loss_fn=nn.CrossEntropyLoss(), epochs=1,
                         device="cpu", progress=False)  # fmt: skip
    return [str(finding) for finding in history.findings]


def test_workers_that_each_give_the_whole_stream_are_said():
    (same,) = fit_stream(Whole())
    assert "The first two batches are the same" in same
    assert "islice(samples, info.id, None, info.num_workers)" in same
    same, more = fit_stream(Sized())
    assert "An epoch had 10 training batches where their len() is 5" in more
    assert fit_stream(Sized(shares=True)) == []


def test_more_batches_than_len_promises_are_said_of_any_source():
    def said(given):
        return [str(finding) for finding in sources.more_batches(range(3), given)]

    assert said(3) == said(2) == []
    (words,) = said(4)
    assert "An epoch had 4 training batches where their len() is 3. Correct its __len__" in words
