"""The script for a machine with a GPU: its loops, its report, and a smoke of all its parts."""

import json
import sys

import pytest
import torch
from torch import nn

import torchcls as tc


@pytest.fixture
def gpu(load):
    return load("gpu")


@pytest.fixture
def parts(load):
    return load("gpu_parts")


class Laps:
    def start(self):
        self.laps = 0

    def lap(self):
        self.laps += 1


def task(load, device="cpu"):
    torch.manual_seed(0)
    images, targets = (part.to(device) for part in tc.drawn_digits(100, classes=(0, 1, 2)))
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(784), nn.Linear(784, 3)).to(device)
    splits = (images[:70], targets[:70]), (images[70:], targets[70:])
    return load("benchmark_loops").Task(model, *splits, 32, 20, 3, ready=True)


def reached(found):
    return pytest.approx(found, rel=1e-5)  # sums on the device are float32, Python's float64


# --- loops ----------------------------------------------------------------------------------------


def test_every_loop_by_hand_does_the_work_of_torchcls(load, parts):
    ours = parts.ours(task(load), Laps())
    clock = Laps()
    assert parts.quiet_loop(task(load), clock) == reached(ours)
    assert clock.laps == 3
    assert parts.ours_from_the_host(task(load), Laps()) == reached(ours)
    assert parts.ROWS["plain loop"](task(load), Laps()) == reached(ours)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_a_captured_loop_does_it_too_with_a_smaller_last_batch(load, parts):
    plain = parts.quiet_loop(task(load, "cuda"), Laps())
    assert parts.quiet_loop(task(load, "cuda"), Laps(), as_graph=True) == pytest.approx(plain, 1e-4)


@pytest.mark.system
def test_the_recipe_is_the_same_through_both_loops(parts):
    build, rows = parts.airbench_part({"smoke": True})
    losses = [parts.measured(build, contestant)["loss"] for contestant in rows.values()]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)  # BatchNorm blows roundings up
    assert len(rows) == 2


@pytest.mark.parametrize(("progress", "scale"), [(0, 0.2), (0.115, 0.6), (0.23, 1), (1, 0.07)])
def test_the_learning_rate_goes_up_and_down_in_straight_lines(parts, progress, scale):
    assert parts.triangle(progress) == pytest.approx(scale)


def test_biases_of_batchnorm_learn_faster_and_what_is_fixed_is_left_out(parts):
    model = parts.airbench()
    norms, others = parts.nesterov(model).param_groups
    assert len(norms["params"]) == 6
    assert norms["lr"] == 64 * others["lr"]
    # One bias beside the fixed filters, six convolutions, and the linear layer.
    assert len(others["params"]) == 8
    assert all(p.requires_grad for group in (norms, others) for p in group["params"])


def test_numbers_read_from_tensors_are_counted(parts):
    profiler = parts.started_profiler()
    for _ in range(3):
        torch.ones(1).item()
    assert parts.counted(profiler)[parts.ITEM] == 3


# --- the report -----------------------------------------------------------------------------------

ROW = {"waits": 2, "items": 3, "peak": 5e6, "steps": 10, "loss": 0.5, "accuracy": 0.25}


def test_a_table_has_what_was_measured_and_says_what_was_not(gpu):
    rows = {
        "plain loop": {**ROW, "seconds": [0.2, 0.1, 0.3]},
        "torchcls": {**ROW, "seconds": [0.1], "waits": None},
        "fastai": {"left out": "is not installed"},
        "graph": {"error": "RuntimeError: no", "trace": "..."},
    }
    text = gpu.table_of("lecture", {"rows": rows})
    assert "| plain loop | 200 (100–300) | 1.00 | 2 | 3 | 5 | 0.500000 | 0.2500 |" in text  # noqa: RUF001
    assert "| torchcls | 100 (100–100) | 0.50 | ? | 3 |" in text  # noqa: RUF001
    assert "- fastai: left out: is not installed" in text
    assert "- graph: error: RuntimeError: no" in text
    assert "| plain loop | 2e+04 " in gpu.table_of("step", {"rows": rows})


def test_what_was_measured_before_a_part_broke_is_kept(gpu, monkeypatch):
    def dies(command, seconds):
        rows = json.loads(command[-1])["rows"]
        with open(rows, "w") as file:
            print(json.dumps({"row": "torchcls", **ROW}), file=file)
            print('{"row": "fast', end="", file=file)
        return -11, ["before", "Segmentation fault"]

    monkeypatch.setattr(gpu, "in_a_process", dies)
    found = gpu.run_part("step", gpu.parse_options(["--smoke"]), 60)
    assert found["rows"] == {"torchcls": ROW}
    assert found["error"] == "exit status -11: Segmentation fault"


def test_a_row_that_fails_says_why_and_keeps_the_traceback(load, parts):
    def fails(task, clock):
        raise MemoryError("too large\nby far")

    found = parts.measured(lambda: task(load), fails)
    assert found["error"] == "MemoryError: too large"
    assert "in fails" in found["trace"]


def test_it_ends_when_the_time_is_over(gpu, tmp_path, capsys):
    assert gpu.main(["--smoke", "--minutes", "0", "--out", str(tmp_path / "new")]) == 0
    assert capsys.readouterr().out.count("left out: no time left") == len(gpu.PARTS)
    found = json.loads((tmp_path / "new" / "gpu.json").read_text())
    assert list(found["parts"]) == list(gpu.PARTS)


def test_an_error_in_one_part_fails_it_and_the_others_run(gpu, monkeypatch, capsys):
    def run(part, options, seconds):
        return {"rows": {}, **({"error": "no time left"} if part == "step" else {})}

    monkeypatch.setattr(gpu, "run_part", run)
    assert gpu.main(["--smoke", "--parts", "lecture", "step", "resnet"]) == 1
    assert "## resnet" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_it_asks_for_a_gpu(gpu, capsys):
    with pytest.raises(SystemExit):
        gpu.main([])
    assert "--smoke runs without" in capsys.readouterr().err


def test_a_process_that_hangs_is_ended(gpu):
    status, lines = gpu.in_a_process([sys.executable, "-c", "import time; time.sleep(60)"], 0.5)
    assert (status, lines) == (None, [])


# --- smoke ----------------------------------------------------------------------------------------


@pytest.mark.long
def test_it_runs_in_smoke_mode(gpu, tmp_path, capsys):
    assert gpu.main(["--smoke", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert printed.count("| torchcls | ") == 4
    assert (tmp_path / "gpu.md").read_text() == printed
