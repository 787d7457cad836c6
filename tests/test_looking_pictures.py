"""torchcls.looking.pictures: what is drawn, and that nothing else is touched."""

import importlib
import sys

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import nn, tensor

import torchcls as tc
from torchcls.find_lr import LRCurve
from torchcls.looking import (
    class_report,
    plot_calibration,
    plot_confusion,
    plot_history,
    plot_lr,
    plot_worst,
)

CE = nn.CrossEntropyLoss()
HISTORY = tc.History(
    [tc.Record(epoch=i, train_loss=1 / (i + 1), valid_loss=0.5, accuracy=0.9) for i in range(3)]
)
CURVE = LRCurve([10.0**i for i in range(-5, 1)], [1.0, 0.9, 0.6, 0.3, 0.2, 2.0])
PREDICTIONS = tc.Predictions(
    tensor([[2.0, 0.0, 0.0], [0.0, 3.0, 0.0], [4.0, 0.0, 0.0], [0.0, 0.0, 1.0]]),
    tensor([0, 1, 1, 2]),
    CE,
)
IMAGES = torch.linspace(0, 1, 4).reshape(4, 1, 1, 1).expand(4, 1, 5, 6)


def texts(ax):
    return [text.get_text() for text in ax.texts]


def labels(axis):
    return [label.get_text() for label in axis.get_ticklabels()]


@pytest.mark.parametrize(
    "draw",
    [
        lambda ax: plot_history(HISTORY, ax),
        lambda ax: plot_lr(CURVE, ax),
        lambda ax: plot_confusion(PREDICTIONS, "abc", ax),
        lambda ax: plot_calibration(PREDICTIONS, ax),
    ],
)
def test_it_draws_into_the_axes_given_or_a_figure_of_its_own(draw, tmp_path):
    ax = Figure().subplots()
    assert draw(ax) is ax
    assert ax.has_data()
    own = draw(None)
    own.figure.savefig(tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 1000


def test_pictures_need_no_pyplot_and_their_module_no_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # to import it is an error
    assert plot_history(HISTORY).figure
    assert plot_worst(IMAGES, PREDICTIONS)[0].figure
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for name in ("classes", "pictures", "curves"):
        importlib.reload(importlib.import_module(f"torchcls.looking.{name}"))


# ------------------------------------------------------------------ curves


def test_a_history_shows_its_losses_or_the_columns_asked_for():
    ax = plot_history(HISTORY)
    assert [line.get_label() for line in ax.lines] == ["train_loss", "valid_loss"]
    assert ax.lines[0].get_xydata().tolist() == [[0, 1], [1, 0.5], [2, pytest.approx(1 / 3)]]
    (line,) = plot_history(HISTORY, columns=["accuracy"]).lines
    assert line.get_ydata().tolist() == [0.9, 0.9, 0.9]


def test_an_epoch_without_the_column_is_a_gap():
    late = [tc.Record(epoch=0, train_loss=1.0), tc.Record(epoch=1, train_loss=0.5, valid_loss=0.7)]
    np.testing.assert_array_equal(plot_history(late).lines[1].get_ydata(), [np.nan, 0.7])


def test_nothing_to_draw_is_an_error():
    with pytest.raises(ValueError, match="at least one epoch"):
        plot_history([])
    with pytest.raises(ValueError, match=r"epoch, train_loss, valid_loss, accuracy, got f1\."):
        plot_history(HISTORY, columns=["f1"])


def test_the_suggestion_is_marked_where_there_is_one():
    curve, mark = plot_lr(CURVE).lines
    assert curve.get_xydata().tolist() == [
        list(p) for p in zip(CURVE.lrs, CURVE.losses, strict=True)
    ]
    assert mark.get_xdata() == [CURVE.suggestion]
    assert mark.get_label() == f"suggestion {CURVE.suggestion:.2g}"
    assert len(plot_lr(LRCurve([0.1, 1.0], [1.0, 2.0])).lines) == 1


# ------------------------------------------------------------------ the matrix


def test_the_matrix_shows_counts_and_colours_the_fraction_of_a_row():
    ax = plot_confusion(PREDICTIONS, ["cat", "dog", "eel"])
    assert ax.images[0].get_array().tolist() == [[1, 0, 0], [0.5, 0.5, 0], [0, 0, 1]]
    assert sorted(text.get_position() for text in ax.texts) == [(0, 0), (0, 1), (1, 1), (2, 2)]
    assert set(texts(ax)) == {"1"}
    assert labels(ax.xaxis) == labels(ax.yaxis) == ["cat", "dog", "eel"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("predicted", "true")
    same = plot_confusion(class_report(PREDICTIONS).matrix)
    assert same.images[0].get_array().tolist() == ax.images[0].get_array().tolist()


def test_long_names_are_cut_turned_and_no_formula():
    ax = plot_confusion(torch.eye(2), ["$5 to $10", "an American Staffordshire terrier"])
    assert labels(ax.yaxis) == [r"\$5 to \$10", "an American Staffordshi…"]
    assert {label.get_rotation() for label in ax.get_xticklabels()} == {90}


def test_many_classes_have_every_name_or_some_of_them_in_a_picture_of_bounded_size():
    hundred = plot_confusion(torch.eye(100), [f"class {i}" for i in range(100)])
    assert len(labels(hundred.xaxis)) == 100
    thousand = plot_confusion(torch.eye(1000))
    assert 20 < len(labels(thousand.xaxis)) < 200
    assert not thousand.texts
    assert max(thousand.figure.get_size_inches()) <= 15


def test_a_matrix_is_square():
    with pytest.raises(ValueError, match=r"shape \(C, C\), got \(2, 3\)"):
        plot_confusion(torch.zeros(2, 3))


# ------------------------------------------------------------------ samples


def test_the_worst_come_first_with_what_they_are_and_were_taken_for():
    axes = plot_worst(IMAGES, PREDICTIONS, k=2, classes=["cat", "dog", "eel"])
    assert len(axes) == 2
    p = PREDICTIONS.probabilities
    assert axes[0].get_title() == f"dog\ntaken for cat\np = {p[2, 0]:.3f}, loss 4.04"
    assert axes[1].get_title().startswith("eel\nright, but not sure\np = 0.576")
    assert float(axes[0].images[0].get_array()[0, 0]) == pytest.approx(2 / 3)


@pytest.mark.parametrize("ignored", [-100, 255])
def test_an_ignored_sample_and_fewer_samples_than_asked_for(ignored):
    targets, loss_fn = tensor([0, 1, 1, ignored]), nn.CrossEntropyLoss(ignore_index=ignored)
    axes = plot_worst(IMAGES, tc.Predictions(PREDICTIONS.outputs, targets, loss_fn))
    assert len(axes) == 4
    assert axes[-1].get_title().startswith("ignored\n")


RGB = torch.rand(3, 5, 6, generator=torch.Generator().manual_seed(0))
BYTES = (RGB * 255).round().to(torch.uint8)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (RGB, RGB.movedim(0, -1)),
        (RGB.movedim(0, -1).numpy(), RGB.movedim(0, -1)),
        (BYTES, BYTES.movedim(0, -1) / 255),
        (Image.fromarray(BYTES.movedim(0, -1).numpy()), BYTES.movedim(0, -1) / 255),
        ((RGB, 7), RGB.movedim(0, -1)),
        (RGB[:1], RGB[0]),
        (RGB[0], RGB[0]),
        (RGB[0] * 6 - 3, (RGB[0] - RGB[0].min()) / (RGB[0].max() - RGB[0].min())),
        (torch.full((5, 6), 2.0), torch.zeros(5, 6)),
    ],
)
def test_images_come_in_many_forms(image, expected):
    (ax,) = plot_worst([image] * 4, PREDICTIONS, k=1)
    np.testing.assert_allclose(ax.images[0].get_array(), expected, atol=1e-6)


def test_there_is_one_image_for_each_sample():
    with pytest.raises(ValueError, match=r"images must be one for each sample, got 3 for \(4,\)"):
        plot_worst(IMAGES[:3], PREDICTIONS)


# ------------------------------------------------------------------ how sure


def test_bars_are_as_high_as_the_accuracy_of_their_bin():
    p = tensor([[0.9, 0.1], [0.9, 0.1], [0.62, 0.38]])
    ax = plot_calibration(tc.Predictions(p.log(), tensor([0, 1, 0]), nn.NLLLoss()))
    assert [bar.get_x() for bar in ax.patches] == pytest.approx([9 / 15, 13 / 15])
    assert [bar.get_height() for bar in ax.patches] == [1.0, 0.5]
    assert ax.patches[0].get_alpha() < ax.patches[1].get_alpha()
    assert ax.get_title() == "expected calibration error 0.3933"


@pytest.mark.parametrize("channels", [2, 4])
def test_an_image_with_alpha_is_drawn_without_it(channels):
    images = torch.rand(4, channels, 5, 6, generator=torch.Generator().manual_seed(0))
    (axes, *_) = plot_worst(images, PREDICTIONS, k=1)
    assert axes.images[0].get_array().shape == ((5, 6) if channels == 2 else (5, 6, 3))
