"""History: the table people know, and exports that lose no digit."""

import copy
import csv
import json
import math
import os
import pickle
import re

import numpy as np
import pandas
import pytest
import torch

from torchcls import History, Record

LOSS = 0.1 + 0.2  # 0.30000000000000004: not itself again when a digit is lost


@pytest.fixture
def history():
    return History(
        [
            Record(epoch=0, train_loss=LOSS, valid_loss=1 / 3, accuracy=0.5, time=1.234567),
            Record(epoch=1, train_loss=1e-17, valid_loss=12.5, accuracy=1.0, time=61.5),
            Record(epoch=2, train_loss=math.pi, valid_loss=2 / 3, accuracy=0.0, time=0.004),
        ]
    )


# --- records --------------------------------------------------------------------------------


def test_a_record_gives_its_values_as_keys_and_as_attributes():
    record = Record(epoch=3, train_loss=LOSS)
    assert (record["epoch"], record.epoch) == (3, 3)
    assert record["train_loss"] == record.train_loss == LOSS
    assert list(record) == ["epoch", "train_loss"]


def test_a_record_names_what_it_has_when_asked_for_something_else():
    record = Record(epoch=3, train_loss=LOSS)
    with pytest.raises(AttributeError, match=r"'valid_loss'.*epoch, train_loss"):
        _ = record.valid_loss
    with pytest.raises(KeyError, match="valid_loss"):
        _ = record["valid_loss"]
    assert not hasattr(record, "valid_loss")


@pytest.mark.parametrize(
    "again", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))]
)
def test_records_and_histories_can_be_copied_and_pickled(again, history):
    assert again(history[0]) == history[0]
    assert type(again(history[0])) is Record
    assert list(again(history)) == list(history)


# --- a sequence of records ------------------------------------------------------------------


def test_it_is_a_sequence_of_records(history):
    assert len(history) == 3
    assert [record.epoch for record in history] == [0, 1, 2]
    assert history[-1].train_loss == math.pi
    assert history[0] in history
    with pytest.raises(IndexError):
        _ = history[3]


def test_a_slice_is_a_history(history):
    assert isinstance(history[1:], History)
    assert [record.epoch for record in history[1:]] == [1, 2]
    assert [record.epoch for record in history[::-1]] == [2, 1, 0]
    assert len(history[5:]) == 0


def test_append_adds_a_record_and_leaves_the_list_it_was_built_from_alone(history):
    records = list(history)
    other = History(records)
    other.append(Record(epoch=3))
    assert (len(other), len(records), len(history)) == (4, 3, 3)


# --- the table ------------------------------------------------------------------------------

TABLE = """\
epoch  train_loss  valid_loss  accuracy    time
    0    0.300000    0.333333  0.500000   1.23s
    1    0.000000   12.500000  1.000000  61.50s
    2    3.141593    0.666667  0.000000   0.00s"""


def test_it_prints_as_the_table_people_know(history):
    assert str(history) == TABLE
    assert repr(history) == f"History of 3 epochs\n{TABLE}"


def test_the_columns_of_the_table_are_right_aligned(history):
    history.append(Record(epoch=12345, train_loss=-1.5, valid_loss=math.nan, accuracy=1, time=9.0))
    assert {len(line) for line in str(history).splitlines()} == {len(TABLE.splitlines()[0])}
    assert str(history).splitlines()[-1].split() == ["12345", "-1.500000", "nan", "1", "9.00s"]


def test_an_empty_history_says_so(tmp_path):
    history = History()
    assert str(history) == "no epochs yet"
    assert repr(history) == "History of 0 epochs"
    assert (len(history), list(history), bool(history)) == (0, [], False)
    history.to_json(tmp_path / "empty.json")
    assert json.loads((tmp_path / "empty.json").read_text()) == []
    history.to_csv(tmp_path / "empty.csv")
    assert (tmp_path / "empty.csv").read_text().strip() == ""
    assert history.to_pandas().empty


def test_what_is_no_number_is_columns_or_a_shape(history):
    """In lines that stand below their names."""
    record = Record(
        epoch=0,
        cm=[[0] * 1000 for _ in range(1000)],
        rates=[0.5, 0.25, math.nan],
        seen={1, 2},
        f1={"macro": 0.5, "micro": math.nan, "of": {"cat": 1}},
        many=dict.fromkeys(range(9), 0.5),
        none=[],
        time=1.0,
    )
    lines = str(History([record, record])).splitlines()
    names = "epoch cm rates seen f1.macro f1.micro f1.of.cat many none time"
    assert lines[0].split() == names.split()
    shown = re.split(r"  +", lines[1].strip())
    assert shown[1:4] == ["1000 x 1000", "3 values", "2 values"]
    assert shown[4:] == ["0.500000", "nan", "1", "9 values", "0 values", "1.00s"]
    assert len({len(line) for line in lines}) == 1
    assert len(lines) == 3


def test_names_of_columns_are_said_again_where_they_change():
    """A metric may give one key for each class that was seen."""
    records = [Record(epoch=i, seen=dict.fromkeys(keys, 0.5)) for i, keys in enumerate(("ab", "c"))]
    assert [line.split()[1] for line in str(History(records)).splitlines()] == [
        "seen.a",
        "0.500000",
        "seen.c",
        "0.500000",
    ]


def test_a_notebook_shows_a_table_with_names_escaped_and_gaps_empty():
    records = [
        Record(epoch=0, train_loss=0.5, cm=[[1, 2], [3, 4]], f1={"<i>猫": 0.25}, time=1.0),
        Record(epoch=1, train_loss=math.nan, late=0.75),
    ]
    shown = History(records)._repr_html_()
    heads = re.findall(r'<th scope="col">(.*?)</th>', shown)
    assert heads == ["epoch", "train_loss", "cm", "f1.&lt;i&gt;猫", "time", "late"]
    assert re.findall(r'<th scope="row">(.*?)</th>', shown) == ["0", "1"]
    first, second = re.findall(r"<tr>.*</tr>", shown)[1:]
    assert re.findall("<td>(.*?)</td>", first) == ["0.500000", "2 x 2", "0.250000", "1.00s", ""]
    assert re.findall("<td>(.*?)</td>", second) == ["nan", "", "", "", "0.750000"]
    assert History()._repr_html_() == "History of 0 epochs"


# --- exports --------------------------------------------------------------------------------


def test_csv_keeps_every_digit(history, tmp_path):
    history.to_csv(tmp_path / "history.csv")
    with open(tmp_path / "history.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == list(history[0])
    assert [{key: float(value) for key, value in row.items()} for row in rows] == list(history)


def test_json_keeps_every_digit_and_the_types(history, tmp_path):
    history[0]["matrix"] = [[1, 2], [3, 4]]
    history.to_json(str(tmp_path / "history.json"))
    text = (tmp_path / "history.json").read_text(encoding="utf-8")
    found = json.loads(text)
    assert text.endswith("]\n")
    assert found == list(history)
    assert type(found[0]["epoch"]) is int


def test_json_has_null_where_a_number_is_none(tmp_path):
    record = Record(epoch=0, train_loss=math.nan, valid_loss=-math.inf, rates=[0.5, math.nan])
    History([record]).to_json(tmp_path / "history.json")

    def no_json(word):
        raise AssertionError(f"{word} is no JSON")

    found = json.loads((tmp_path / "history.json").read_text(), parse_constant=no_json)
    assert found == [{"epoch": 0, "train_loss": None, "valid_loss": None, "rates": [0.5, None]}]
    assert math.isnan(record.train_loss)


def test_exports_hold_the_numbers_of_what_a_metric_gave(tmp_path):
    rates = {"cat": 0.1, "dog": float("nan")}
    first = Record(epoch=0, rates=rates, matrix=[[1, 2], [3, 4]], per_class=(0.5, math.inf))
    second = Record(epoch=1, rates={"eel": 1.0}, matrix=torch.ones(1, 2), per_class=np.zeros(1))
    history = History([first, second])
    history.to_json(tmp_path / "history.json")
    assert json.loads((tmp_path / "history.json").read_text()) == [
        {
            "epoch": 0,
            "rates": {"cat": 0.1, "dog": None},
            "matrix": [[1, 2], [3, 4]],
            "per_class": [0.5, None],
        },
        {"epoch": 1, "rates": {"eel": 1.0}, "matrix": [[1.0, 1.0]], "per_class": [0.0]},
    ]
    history.to_csv(tmp_path / "history.csv")
    with open(tmp_path / "history.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["rates.cat"] for row in rows] == ["0.1", ""]
    assert [row["rates.dog"] for row in rows] == ["nan", ""]
    assert [row["rates.eel"] for row in rows] == ["", "1.0"]
    assert [json.loads(row["matrix"]) for row in rows] == [[[1, 2], [3, 4]], [[1, 1]]]
    assert [json.loads(row["per_class"]) for row in rows] == [[0.5, None], [0.0]]
    frame = history.to_pandas()
    assert list(frame.columns) == list(rows[0])
    assert frame["rates.cat"].tolist()[0] == 0.1
    assert frame["matrix"].tolist() == [[[1, 2], [3, 4]], [[1.0, 1.0]]]
    assert frame["rates.eel"].isna().tolist() == [True, False]


def test_keys_that_are_numbers_are_text_in_json(tmp_path):
    history = History([Record(epoch=0, per_class={np.int64(3): np.float32(0.5), 4: True})])
    history.to_json(tmp_path / "history.json")
    found = json.loads((tmp_path / "history.json").read_text())
    assert found == [{"epoch": 0, "per_class": {"3": 0.5, "4": True}}]


def test_exports_go_home(history, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    history.to_csv("~/history.csv")
    history.to_json("~/history.json")
    assert {file.name for file in tmp_path.iterdir()} == {"history.csv", "history.json"}


@pytest.mark.parametrize("export", [History.to_csv, History.to_json])
def test_an_export_that_fails_leaves_the_file_as_it_was(history, tmp_path, export, monkeypatch):
    path = tmp_path / "history"
    export(history, path)
    before = path.read_bytes()
    history.append(Record(epoch=3, train_loss=0.5, other=object()))  # no column, and no JSON
    with pytest.raises((ValueError, TypeError)):
        export(history, path)

    def full_disk(*_):
        raise OSError("no space left")

    monkeypatch.setattr("os.replace", full_disk)
    with pytest.raises(OSError, match="no space left"):
        export(history[:1], path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["history"]


def test_an_export_follows_a_link_and_writes_into_a_device(history, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "file")
    history.to_csv(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_text().startswith("epoch,")
    history.to_csv(os.devnull)
    assert not os.path.isfile(os.devnull)


def test_exports_overwrite_what_was_there(history, tmp_path):
    for name, export in (("csv", History.to_csv), ("json", History.to_json)):
        export(history, tmp_path / name)
        export(history[:1], tmp_path / name)
        once = (tmp_path / name).read_bytes()
        export(history[:1], tmp_path / "fresh")
        assert once == (tmp_path / "fresh").read_bytes()


def test_pandas_gets_a_row_for_each_epoch(history):
    frame = history.to_pandas()
    assert isinstance(frame, pandas.DataFrame)
    assert list(frame.columns) == list(history[0])
    assert frame["train_loss"].tolist() == [record.train_loss for record in history]
    assert frame["epoch"].tolist() == [0, 1, 2]


def test_a_metric_that_is_a_set_is_a_list_in_json(tmp_path):
    history = History([Record(epoch=0, seen={2, 1}, time=1.0)])
    history.to_json(tmp_path / "history.json")
    found = json.loads((tmp_path / "history.json").read_text())
    assert found == [{"epoch": 0, "seen": [1, 2], "time": 1.0}]
