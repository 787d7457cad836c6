"""The curves of a run as a picture."""

import pytest

from torchcls.history import History, Record
from torchcls.looking.curves import curves

RECORDS = [
    Record(epoch=i, train_loss=1.0 / (i + 1), valid_loss=0.5, accuracy=0.9, matrix=[[1]], time=1.0)
    for i in range(3)
]


def test_it_writes_the_format_that_the_ending_says(tmp_path):
    curves(History(RECORDS), tmp_path / "curves.png")
    curves(RECORDS, tmp_path / "curves.svg")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "curves.svg").read_text()


def test_it_draws_losses_and_metrics_and_leaves_out_what_is_no_number(monkeypatch, tmp_path):
    from matplotlib.figure import Figure

    drawn = []
    monkeypatch.setattr(
        Figure,
        "savefig",
        lambda self, path, dpi: drawn.extend(
            (axes.get_title(), [line.get_label() for line in axes.lines]) for axes in self.axes
        ),
    )
    curves(RECORDS, tmp_path / "curves.png")
    assert drawn == [("loss", ["train_loss", "valid_loss"]), ("metrics", ["accuracy"])]


def test_no_epoch_is_nothing_to_draw(tmp_path):
    with pytest.raises(ValueError, match="at least one epoch"):
        curves(History(), tmp_path / "curves.png")
