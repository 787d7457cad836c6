"""The benchmark's arithmetic and verdicts, and a smoke of all its tables."""

import json
import math
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
LIBRARIES = ["fastai", "Lightning", "Ignite", "skorch", "Accelerate", "Poutyne", "Keras"]


@pytest.fixture
def benchmark(load):
    return load("benchmark")


@pytest.fixture
def report(load):
    return load("benchmark_report")


LOSS = 0.591838  # the lecture's after three epochs


def measured(seconds, **changed):
    """What a child reports, as far as the verdicts read it."""
    found = {"seconds": [seconds] * 3, "peak": 1000.0, "working": 100.0, "steps": 10}
    return {**found, "loss": LOSS, "accuracy": 0.75, **changed}


def epoch_runs(**changed):
    """Three rounds in which torchcls is four times faster and takes 0.7 of the memory."""
    rows = {
        "plain loop": measured(4.0),
        "torchcls": measured(1.0, peak=700.0),
        "torchcls, DataLoader": measured(2.0),
        "fastai": measured(5.0),
    }
    rows = {row: {**found, **changed.get(row, {})} for row, found in rows.items()}
    return {row: [found] * 3 for row, found in rows.items()}


def network_runs(seconds, **changed):
    """Two networks, the second one much faster; ``changed`` is what torchcls got on the first."""
    return {
        "VGG, plain loop": [measured(1.0, loss=0.51, accuracy=0.76)],  # its optimizer rounds apart
        "VGG, plain loop, fused": [measured(1.0)],
        "VGG, torchcls": [measured(seconds, **changed)],
        "MLP, plain loop": [measured(9.0, loss=0.2)],
        "MLP, plain loop, fused": [measured(9.0, loss=0.2)],
        "MLP, torchcls": [measured(1.0, loss=0.2)],
    }


def failed(claims):
    return [claim.sentence for claim in claims if not claim.holds]


# --- ratios ---------------------------------------------------------------------------------------


def test_ratios_are_taken_within_a_round(report):
    slow_machine = [1.0, 10.0, 2.0]
    runs = {
        "plain loop": [measured(4 * factor) for factor in slow_machine],
        "torchcls": [measured(factor) for factor in slow_machine],
    }
    assert report.ratios(runs, "plain loop", "torchcls", report.seconds) == (4.0, 4.0, 4.0)


def test_a_spread_is_the_median_with_the_lowest_and_the_highest(report):
    spread = report.spread([3.0, 1.0, 2.5])
    assert spread == (2.5, 1.0, 3.0)
    assert spread.text() == "2.50 (1.00\N{EN DASH}3.00)"


def test_the_time_of_an_epoch_leaves_a_slow_first_one_aside(report):
    assert report.seconds({"seconds": [9.0, 1.0, 1.2]}) == 1.2


@pytest.mark.parametrize(
    ("row", "baseline"),
    [
        ("fastai", "plain loop"),
        ("plain loop, fused", "plain loop"),
        ("torchcls, DataLoader", "plain loop"),
        ("VGG, torchcls", "VGG, plain loop"),
        ("VGG, plain loop", "VGG, plain loop"),
        ("VGG, plain loop, fused", "VGG, plain loop"),
    ],
)
def test_a_row_stands_beside_the_plain_loop_on_its_own_network(report, row, baseline):
    assert report.baseline_of(row) == baseline


def test_a_table_is_markdown(report):
    runs = epoch_runs()
    head, line, *rows = report.markdown(report.task_rows("epoch", runs)).splitlines()
    assert head.count("|") == line.count("|")
    assert len(rows) == len(runs)
    assert rows[0].startswith("| plain loop | 4 (4\N{EN DASH}4) | 1.00 ")
    assert "| 0.591838 | 0.750000 |" in rows[3]
    steps = report.markdown(report.task_rows("step", runs)).splitlines()
    assert steps[2].startswith("| plain loop | 400000 ")  # 4 s over 10 steps


# --- verdicts -------------------------------------------------------------------------------------


def test_a_run_that_shows_every_claim_passes(report):
    claims = report.epoch_claims(epoch_runs())
    assert not failed(claims)
    assert len(claims) == 6  # same work, two contestants, the DataLoader, memory, the lecture


@pytest.mark.parametrize(
    ("row", "change", "words"),
    [
        (
            "fastai",
            {"seconds": [3.4] * 3},
            "3.40 (3.40\N{EN DASH}3.40) times faster than with fastai",
        ),
        ("plain loop", {"seconds": [3.4] * 3}, "times faster than with plain loop"),
        ("torchcls, DataLoader", {"seconds": [4.1] * 3}, "an epoch fed by a DataLoader"),
        ("torchcls", {"peak": 810.0}, "peak memory is 0.81"),
        ("torchcls", {"peak": math.nan}, "peak memory is nan"),
        ("torchcls", {"loss": LOSS + 3e-5}, "loss 3.0e-05"),
        ("fastai", {"loss": LOSS - 3e-5}, "loss 3.0e-05"),
        ("fastai", {"loss": math.nan}, "loss nan"),
        ("fastai", {"accuracy": 0.75 + 1e-4}, "accuracy 1.0e-04"),
        ("torchcls", {"accuracy": math.nan}, "accuracy nan"),
    ],
)
def test_a_claim_that_is_missed_fails_alone(report, row, change, words):
    (sentence,) = failed(report.epoch_claims(epoch_runs(**{row: change})))
    assert words in sentence


@pytest.mark.parametrize("loss", [LOSS + 2e-4, math.nan])
def test_all_alike_but_not_the_lectures_fails(report, loss):
    runs = {row: [measured(1.0, loss=loss)] for row in epoch_runs()}
    assert not report.lecture_claim(runs).holds
    assert report.lecture_claim(epoch_runs()).holds


def test_one_unequal_round_is_enough(report):
    runs = epoch_runs()
    for place in range(3):
        other = {**runs, "fastai": list(runs["fastai"])}
        other["fastai"][place] = measured(5.0, loss=0.6)
        assert not report.same_work(other).holds
    runs["fastai"] = [measured(5.0, loss=math.nan), *runs["fastai"][1:]]
    assert not report.same_work(runs).holds, "a NaN is not forgotten by later rounds"


@pytest.mark.parametrize(("ours", "holds"), [(1.0, True), (0.9, True), (1.01, False)])
def test_no_network_and_no_step_may_be_slower(report, ours, holds):
    assert (not failed(report.network_claims(network_runs(ours)))) == holds
    steps = {"plain loop": [measured(1.0)], "torchcls": [measured(ours)]}
    assert (not failed(report.step_claims(steps))) == holds


def test_a_network_is_held_against_the_loop_with_the_same_optimizer(report):
    for change in ({"loss": 0.51}, {"accuracy": 0.76}, {"loss": math.nan}):
        (sentence,) = failed(report.network_claims(network_runs(1.0, **change)))
        assert "largest differences" in sentence


@pytest.mark.parametrize(("ours", "holds"), [(0.05, True), (0.06, False)])
def test_the_import_has_its_bound(report, ours, holds):
    runs = {"torchcls": [measured(ours)] * 2, "fastai": [measured(4.0)] * 2}
    assert (not failed(report.import_claims(runs))) == holds


def process_runs(**changed):
    """Two rounds over processes, the second one slower than the first."""
    found = {"seconds": [0.01], "train_one_epoch": 1.0, "fit": 1.0, "around": 0.02}
    found |= {"meeting": 4e-4, "gap": 0.0, **changed}
    return {"MLP": [found, {**found, "seconds": [0.02], "meeting": 6e-4}]}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"train_one_epoch": 1.06}, "a step of train_one_epoch takes 1.06"),
        ({"fit": 1.06}, "a step of fit takes 1.06"),
        ({"fit": math.nan}, "a step of fit takes nan"),
        ({"gap": 3e-5}, "difference of losses to the loop by hand: 3.0e-05"),
        ({"gap": math.nan}, "difference of losses to the loop by hand: nan"),
    ],
)
def test_a_step_over_processes_is_held_against_the_loop_by_hand(report, change, words):
    assert not failed(report.process_claims(process_runs()))
    (sentence,) = failed(report.process_claims(process_runs(**change)))
    assert words in sentence


def test_a_table_of_processes_has_the_median_of_the_rounds(report):
    _, row = report.process_rows(process_runs())
    assert row[1] == "15.00 (10.00\N{EN DASH}20.00)"
    assert row[-1] == "0.50 (0.40\N{EN DASH}0.60)"


def test_many_processes_are_worked_out_from_the_measured_meeting(report):
    assert report.ring(8, 25.6e6) == pytest.approx(14.336e-3 + 14 * 15e-6)  # 7/4 of 102.4 MB
    assert report.ring(1024, 1.0e6) == pytest.approx(0.639375e-3 + 2046 * 15e-6)
    assert report.ring(2, 1.0e6) == pytest.approx(0.32e-3 + 2 * 15e-6)
    _, eight, _, most = report.paper_rows(process_runs())  # one meeting of two takes 0.5 ms
    assert eight[:4] == ["8", "3.5", "1.5", "0.8"]  # 7 and 3 of it; 0.56 + 0.21 ms
    assert eight[4] == "0.03"  # 8 * (0.77 + 3.5) ms
    assert most[:3] == ["1,024", "511.5", "5.0"]


@pytest.mark.parametrize(
    ("change", "holds"),
    [
        ({}, True),
        ({"seconds": [1.4]}, True),
        ({"seconds": [1.6]}, False),
        ({"working": 1.2e9}, False),
    ],
)
def test_growth_is_linear_in_time_and_memory(report, change, holds):
    stored = {"stored": 1e9 - 5, "batch": 5}
    runs = {
        "10,000": [measured(0.01, **stored)],
        "1,000,000": [{**measured(1.0, working=1.05e9, **stored), **change}],
    }
    assert (not failed(report.scaling_claims(runs))) == holds
    assert len(report.scaling_rows(runs)) == 3


# --- options, turns and libraries -----------------------------------------------------------------


def test_all_tables_are_the_default(benchmark):
    assert benchmark.parse_options([]).tables == list(benchmark.TABLES)
    options = benchmark.parse_options(["step", "imports", "--repeats", "2", "--data", "here"])
    assert (options.tables, options.repeats) == (["step", "imports"], 2)
    assert Path(options.data).is_absolute(), "the children work in other folders"


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["steps"], "got steps"),
        (["--repeats", "0"], "at least 1"),
        (["--epochs", "11"], "in [1, 10]"),
    ],
)
def test_wrong_options_are_named(benchmark, capsys, argv, words):
    with pytest.raises(SystemExit):
        benchmark.parse_options(argv)
    assert words in capsys.readouterr().err


def test_every_library_has_its_row_where_it_is_installed(benchmark, load, monkeypatch):
    peers = load("benchmark_peers")
    assert list(benchmark.PEERS) == LIBRARIES
    assert set(LIBRARIES) < set(peers.CONTESTANTS)
    monkeypatch.setattr(benchmark, "is_installed", lambda name: name != "Keras")
    options = benchmark.parse_options(["epoch"])
    for table in ("epoch", "step"):
        rows = [spec["contestant"] for spec in benchmark.specs_of(table, options)]
        assert set(rows) <= set(peers.CONTESTANTS)
        assert set(LIBRARIES) - set(rows) == {"Keras"}
    threads = {
        table: benchmark.specs_of(table, options)[0]["threads"] for table in ("epoch", "step")
    }
    assert threads == {"epoch": None, "step": 1}


def test_what_is_not_installed_is_named(benchmark, monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "is_installed", lambda name: False)
    monkeypatch.setattr(benchmark, "run_table", lambda *_: 0)
    assert benchmark.main(["step"]) == 0
    printed = capsys.readouterr().out
    for name in LIBRARIES:
        assert f"skipped: {name} is not installed" in printed


def test_contestants_take_turns_and_a_library_that_breaks_is_reported(benchmark, capsys):
    specs = [{"row": "plain loop"}, {"row": "fastai"}, {"row": "Keras"}]
    turns = []

    def take(spec):
        turns.append(spec["row"])
        if spec["row"] == "fastai" and len(turns) > 3:
            raise RuntimeError("no such callback")
        return measured(1.0)

    runs, failures = benchmark.take_turns(specs, 3, take)
    assert turns == ["plain loop", "fastai", "Keras"] * 2 + ["plain loop", "Keras"]
    assert failures == {"fastai": "no such callback"}
    assert {row: len(found) for row, found in runs.items()} == {"plain loop": 3, "Keras": 3}
    capsys.readouterr()


def test_a_library_that_breaks_fails_the_table(benchmark, monkeypatch, capsys):
    runs = {"plain loop": [measured(1.0)], "torchcls": [measured(0.5)]}
    monkeypatch.setattr(benchmark, "take_turns", lambda *_: (runs, {"fastai": "no such callback"}))
    options = benchmark.parse_options(["step"])
    assert benchmark.run_table("step", options, {}) == 1
    assert "FAILED: fastai did not run: no such callback" in capsys.readouterr().out


def test_a_child_that_fails_says_why(benchmark):
    with pytest.raises(RuntimeError, match="KeyError: 'threads'"):
        benchmark.in_a_process({"table": "imports"})


def test_a_child_that_hangs_ends(benchmark, monkeypatch):
    monkeypatch.setattr(benchmark, "CHILD_SECONDS", 0.01)
    with pytest.raises(RuntimeError, match=r"no result after 0\.01 seconds"):
        benchmark.in_a_process({"table": "imports"})


# --- smoke ----------------------------------------------------------------------------------------


@pytest.mark.long
def test_it_runs_in_smoke_mode(benchmark, load, tmp_path, capsys, monkeypatch):
    pytest.importorskip("matplotlib")
    assert "python scripts/benchmark.py" in benchmark.__doc__
    started = []

    def imported(spec):  # starting a process takes longer than everything else here
        started.append(spec["variant"])
        return {"torch": 1.0, "seconds": [0.01]}

    monkeypatch.setattr(benchmark, "in_a_process", imported)
    folder = tmp_path / "new" / "folder"
    assert benchmark.main(["--smoke", "--out", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert "FAILED" not in printed
    assert printed.count("ok: largest differences to the plain loop: ") == 3
    assert started == ["torchcls"]
    names = {f"{table}.{ending}" for table in benchmark.TABLES for ending in ("json", "png")}
    names -= {
        "preflight.png",
        "checkpoint.png",
        "processes.png",
    }  # three units: a table says it better
    assert {path.name for path in folder.iterdir()} == names
    saved = json.loads((folder / "epoch.json").read_text())
    assert saved["runs"]["torchcls"][0]["accuracy"] > 0.5
    assert "ok: largest difference of losses to the loop by hand: " in printed
    assert saved["versions"]["torch"]
    assert saved["seed"] == 0


@pytest.mark.system
def test_a_child_measures_in_a_process_of_its_own(benchmark):
    (spec,) = benchmark.specs_of("imports", benchmark.parse_options(["imports", "--smoke"]))
    found = benchmark.in_a_process(spec)
    assert found["torch"] > found["seconds"][0] > 0, "torch was not imported before"
