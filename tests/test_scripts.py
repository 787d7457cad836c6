"""Every script runs in smoke mode, and fails when its numbers are not the lecture's."""

import argparse
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import torchcls as tc

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
BY_HAND = ["cross_entropy_by_hand", "heads_table", "softmax_by_hand"]
TRAINED = [
    "argmax_misuse",
    "int_targets",
    "onehot_targets",
    "own_metrics",
    "softmax_against_sigmoid",
    "three_digits",
    "two_digits_onehot",
]
EXPERIMENTS = [
    "int_targets",
    "onehot_targets",
    "sigmoid_argmax_misuse",
    "sigmoid_custom_metrics",
    "three_digits",
    "two_digits_onehot",
]


@pytest.fixture
def lecture(load):
    return load("lecture")


def options(**changed):
    return argparse.Namespace(**{"data": None, "out": None, "smoke": False, **changed})


def lecture_as_history(lecture, experiment):
    """The History of a run that hits the lecture's table to the last digit."""
    columns, rows = lecture.lecture_table(experiment)
    names = ["smooth_loss" if column == "train_loss" else column for column in columns]
    return tc.History([tc.Record(zip(names, row, strict=True)) for row in rows])


# --- smoke ----------------------------------------------------------------------------------------


def test_no_script_is_forgotten_here():
    ours = {path.stem for path in SCRIPTS.glob("*.py")}
    kinds = ("benchmark", "exact_averages", "gpu", "kill", "processes")
    elsewhere = {name for name in ours if name.startswith(kinds)}
    assert ours == {*BY_HAND, *TRAINED, *elsewhere, "lecture", "mnist", "photos"}


@pytest.mark.system
def test_a_run_that_is_killed_at_random_moments_ends_with_the_bits_of_one_that_is_not(load):
    sources = load("kill_and_resume").SOURCES
    # In a process of its own: it forks, and this one has threads.
    command = [sys.executable, str(SCRIPTS / "kill_and_resume.py"), "--smoke"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(": 1 of 1 runs equal to the bit, killed ") == len(sources)


def test_a_run_that_differs_fails(load, monkeypatch, capsys):
    script = load("kill_and_resume")
    answers = iter(["a", "b"] * len(script.SOURCES))

    def child(work, answer, patience):
        answer.write_text(next(answers))
        return True

    monkeypatch.setattr(script, "in_child", child)
    assert script.main(["--smoke"]) == 1
    differing = capsys.readouterr().out.count(": 0 of 1 runs equal to the bit, killed 0 times")
    assert differing == len(script.SOURCES)


@pytest.mark.parametrize("name", BY_HAND + TRAINED)
def test_it_runs_in_smoke_mode(load, capsys, name):
    script = load(name)
    assert capsys.readouterr().out == "", "nothing happens at import"
    assert f"python scripts/{name}.py" in script.__doc__
    assert script.main(["--smoke"]) == 0
    printed = capsys.readouterr().out
    assert "ok: " in printed
    assert "FAILED" not in printed


@pytest.mark.system
def test_photographs_of_any_size_are_told_apart(load, capsys):
    with torch.random.fork_rng([]):
        assert load("photos").main(["--smoke"]) == 0
    printed = capsys.readouterr().out
    for name in ("accuracy", "dots", "plain", "stripes"):
        assert name in printed


def test_all_ten_digits_are_learned(load, capsys):
    with torch.random.fork_rng([]):
        assert load("mnist").main(["--smoke"]) == 0
    assert "accuracy" in capsys.readouterr().out


@pytest.mark.system
def test_it_runs_from_a_shell():
    command = [sys.executable, str(SCRIPTS / "softmax_by_hand.py")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=SCRIPTS.parent, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "ok: the formula gives the first row" in done.stdout


@pytest.mark.parametrize(
    ("name", "files"),
    [
        (
            "two_digits_onehot",
            {
                "two_digits_onehot.csv",
                "difference_of_the_logits.png",
                "probability_against_y.png",
            },
        ),
        (
            "softmax_against_sigmoid",
            {"int_targets.csv", "sigmoid_custom_metrics.csv", "softmax_and_sigmoid.png"},
        ),
    ],
)
def test_it_leaves_its_tables_and_pictures_in_out(load, tmp_path, name, files):
    pytest.importorskip("matplotlib")
    folder = tmp_path / "new" / "folder"
    assert load(name).main(["--smoke", "--out", str(folder)]) == 0
    assert {path.name for path in folder.iterdir()} == files
    assert all(path.stat().st_size > 100 for path in folder.iterdir())


def test_a_smoke_run_whose_loss_does_not_fall_fails(lecture, capsys):
    history = tc.History([tc.Record(epoch=i, train_loss=0.5) for i in range(2)])
    assert lecture.report(history, "three_digits", options(smoke=True)) == 1
    assert "FAILED: training loss 0.5000 -> 0.5000" in capsys.readouterr().out


# --- the bands ------------------------------------------------------------------------------------


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_the_lectures_own_table_is_inside(lecture, capsys, experiment):
    history = lecture_as_history(lecture, experiment)
    assert lecture.report(history, experiment, options()) == 0
    assert "ok: largest difference" in capsys.readouterr().out


@pytest.mark.parametrize("experiment", EXPERIMENTS)
@pytest.mark.parametrize("epoch", [0, 9])
def test_every_column_is_judged_by_its_band(lecture, monkeypatch, experiment, epoch):
    history = lecture_as_history(lecture, experiment)
    columns, _ = lecture.lecture_table(experiment)
    for column, name in enumerate(columns):
        band = lecture.LOSS_BAND if name.endswith("loss") else lecture.METRIC_BAND
        for step, status in ((0.9 * band, 0), (1.1 * band, 1), (math.nan, 1)):
            columns, rows = lecture.lecture_table(experiment)
            rows[epoch][column] += step
            with monkeypatch.context() as patched:
                patched.setattr(lecture, "lecture_table", lambda _, table=(columns, rows): table)
                assert lecture.report(history, experiment, options()) == status, (name, step)


@pytest.mark.parametrize("name", TRAINED)
def test_a_run_on_other_data_fails(load, monkeypatch, capsys, name):
    script = load(name)

    def other_digits(options, classes):
        return (tc.drawn_digits(60, classes=classes), tc.drawn_digits(30, classes=classes, seed=1))

    monkeypatch.setattr(script, "load_digits", other_digits)
    assert script.main([]) == 1
    assert "FAILED: largest difference" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "figures"),
    [
        ("softmax_by_hand", [0.1065, 0.1066, 0.7870]),
        ("cross_entropy_by_hand", 0.5833),
        ("heads_table", {"normal": ("sigmoid", "MSE", "mse_loss")}),
    ],
)
def test_another_figure_of_the_lecture_fails(load, monkeypatch, capsys, name, figures):
    script = load(name)
    monkeypatch.setattr(script, "LECTURE", figures)
    assert script.main([]) == 1
    assert "FAILED: " in capsys.readouterr().out


def test_the_misuse_fails_when_accuracy_takes_one_column(load, monkeypatch, capsys):
    script = load("argmax_misuse")
    monkeypatch.setattr(tc, "accuracy", script.accuracy)
    assert script.main(["--smoke"]) == 1
    assert "FAILED: tc.accuracy took one sigmoid column" in capsys.readouterr().out


# --- data -----------------------------------------------------------------------------------------


def test_missing_data_is_one_line_that_says_how_to_get_it(load, tmp_path):
    with pytest.raises(SystemExit) as stopped:
        load("three_digits").main(["--data", str(tmp_path / "nowhere")])
    message = stopped.value.code
    assert "\n" not in message
    for word in ("nowhere", "--data", "TORCHCLS_MNIST", "download=True", "--smoke"):
        assert word in message


def test_the_data_folder_comes_from_the_environment(lecture, monkeypatch):
    monkeypatch.setenv("TORCHCLS_MNIST", "somewhere")
    assert lecture.parse_options("", []).data == "somewhere"
    assert lecture.parse_options("", ["--data", "here"]).data == "here"
    monkeypatch.delenv("TORCHCLS_MNIST")
    assert lecture.parse_options("", []).data is None
