"""The command line: what it prints, what it writes, and how it refuses."""

import csv
import io
import json
import os
import re
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from PIL import Image

import torchcls as tc
from torchcls.cli import main
from torchcls.looking import wilson_interval
from torchcls.survival import load_checkpoint


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty current folder, and few drawn digits to wait for."""
    drawn = tc.drawn_digits
    monkeypatch.setattr(tc, "drawn_digits", lambda n, **rest: drawn(n // 20, **rest))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read_csv(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def write_idx(folder, *, images=3, labels=3, truncate=0, magic=2051):
    """A tiny MNIST in IDX files, damaged as asked."""
    folder.mkdir(exist_ok=True)
    for split in ("train", "t10k"):
        pixels = struct.pack(">4I", magic, images, 28, 28) + bytes(images * 784)
        (folder / f"{split}-images-idx3-ubyte").write_bytes(pixels[: len(pixels) - truncate])
        ids = bytes(i % 2 for i in range(labels))
        (folder / f"{split}-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 2049, labels) + ids)
    return folder


# What it does


def test_train_without_arguments_prints_the_table_and_writes_the_run(here, capsys):
    assert main(["train", "--epochs", "2"]) == 0
    first, header, *rows, reached, last = capsys.readouterr().out.splitlines()
    assert first == (
        "drawn digits 0, 1, 2, 3, 4, 5, 6, 7, 8, 9: 300 training and 50 validation images, "
        "multiclass head, on cpu"
    )
    names = "epoch train_loss smooth_loss valid_loss accuracy error_rate time"
    assert header.split() == names.split()
    assert [row.split()[0] for row in rows] == ["0", "1"]
    out = here / "torchcls-out"
    records = json.loads((out / "history.json").read_text())
    low, high = wilson_interval(round(50 * records[1]["accuracy"]), 50)
    accuracy = f"{records[1]['accuracy']:.4f} ({low:.4f} to {high:.4f} with 95 % confidence)"
    assert reached.startswith(f"reached accuracy {accuracy}, valid_loss ")
    names = {path.name for path in out.iterdir() if path.name[0] != "."}
    assert set(re.findall(r"[\w-]+\.\w+", last)) == names - {"last.pt", "epoch.pt", "best.pt"}
    assert last.endswith(f" to torchcls-out{os.sep}")
    for record, line in zip(records, read_csv(out / "history.csv"), strict=True):
        assert {key: float(value) for key, value in line.items()} == record
    weights = torch.load(out / "weights.pt", weights_only=True)
    assert [tuple(w.shape) for w in weights.values()] == [(16, 1, 5, 5), (16,), (10, 2304), (10,)]
    best = torch.load(out / "best-weights.pt", weights_only=True)
    assert best.keys() == weights.keys()
    for name in ("curves.png", "confusion.png", "worst.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")


def test_the_predictions_are_what_the_saved_weights_say(here):
    assert main(["train", "--epochs", "1", "--classes", "3,5,8", "--out", "run"]) == 0
    lines = read_csv(here / "run" / "predictions.csv")
    images, ids = tc.drawn_digits(1000, classes=(3, 5, 8), seed=1)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(1, 16, 5),
        torch.nn.ReLU(),
        torch.nn.MaxPool2d(2),
        torch.nn.Flatten(),
        torch.nn.Linear(2304, 3),
    )
    model.load_state_dict(torch.load(here / "run" / "weights.pt", weights_only=True))
    with torch.no_grad():
        logits = model(images)
    written = torch.tensor([[float(line[f"output_{i}"]) for i in range(3)] for line in lines])
    torch.testing.assert_close(written, logits)
    probabilities = torch.tensor(
        [[float(line[f"probability_{i}"]) for i in range(3)] for line in lines]
    )
    torch.testing.assert_close(probabilities, logits.softmax(1))
    digits = torch.tensor([3, 5, 8])
    assert [int(line["predicted"]) for line in lines] == digits[logits.argmax(1)].tolist()
    assert [int(line["target"]) for line in lines] == digits[ids].tolist()


@pytest.mark.parametrize(
    ("head", "classes", "columns"),
    [
        ("onehot", "0,1,2", ["accuracy", "multilabel_accuracy"]),
        ("binary", "3,5", ["threshold_accuracy"]),
    ],
)
def test_every_head_trains_and_writes_the_digits_as_targets(here, head, classes, columns):
    arguments = ["train", "--head", head, "--classes", classes, "--epochs", "2", "--out", "run"]
    assert main(arguments) == 0
    history = read_csv(here / "run" / "history.csv")
    assert list(history[0])[4:-1] == columns
    assert float(history[1]["train_loss"]) < float(history[0]["train_loss"])
    lines = read_csv(here / "run" / "predictions.csv")
    for column in ("predicted", "target"):
        assert {line[column] for line in lines} <= set(classes.split(","))


def test_the_same_seed_gives_the_same_run(here):
    for out in ("a", "b"):
        main(["train", "--epochs", "1", "--seed", "7", "--out", out])
    main(["train", "--epochs", "1", "--seed", "8", "--out", "c"])
    a, b, c = ((here / out / "predictions.csv").read_text() for out in "abc")
    assert a == b != c


def test_the_default_folder_is_one_that_no_run_has_taken(here):
    for _ in range(2):
        main(["train", "--epochs", "1", "--classes", "0,1"])
    assert (here / "torchcls-out" / "history.csv").exists()
    assert (here / "torchcls-out-2" / "history.csv").exists()


def test_files_are_replaced_whole_or_left_as_they_were(here, monkeypatch):
    arguments = ["train", "--epochs", "1", "--classes", "0,1", "--out", "run"]
    assert main(arguments) == 0
    names = ["arguments.json", "history.csv", "predictions.csv", "best-weights.pt", "worst.png"]
    replace, there = os.replace, sorted((here / "run").iterdir())
    for name in names:
        (here / "run" / name).write_text("what was there")

        def full_disk(beside, target, name=name):
            if os.path.basename(target) == name:
                raise OSError("no space left")
            replace(beside, target)

        monkeypatch.setattr(os, "replace", full_disk)
        with pytest.raises(SystemExit):
            main([*arguments, "--resume"])
        assert (here / "run" / name).read_text() == "what was there"
        assert sorted((here / "run").iterdir()) == there  # nothing half written beside them


def test_without_matplotlib_everything_but_the_picture_is_written(here, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main(["train", "--epochs", "1", "--classes", "0,1", "--out", "run"]) == 0
    assert "curves.png" not in capsys.readouterr().out
    assert not (here / "run" / "curves.png").exists()
    assert (here / "run" / "weights.pt").exists()


def interrupted(monkeypatch, at, interrupt):
    """Interrupt at one of the calls of a layer."""
    forward, calls = torch.nn.Linear.forward, []

    def broken(self, *rest):
        calls.append(1)
        if len(calls) == at:
            interrupt()
        return forward(self, *rest)

    monkeypatch.setattr(torch.nn.Linear, "forward", broken)


def ctrl_c():
    os.kill(os.getpid(), signal.SIGINT)


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


def without_times(path):
    return [{**row, "time": None} for row in read_csv(path)]


@pytest.mark.parametrize(
    ("interrupt", "status", "name", "at", "epochs"),
    [
        (ctrl_c, 130, "Ctrl-C", 1, 0),
        (terminate, 143, "SIGTERM", 4, 0),
        (ctrl_c, 130, "Ctrl-C", 12, 1),
    ],
)
def test_an_interrupt_writes_what_was_reached_and_says_how_to_go_on(
    here, capsys, monkeypatch, interrupt, status, name, at, epochs
):
    arguments = ["train", "--epochs", "3", "--classes", "0,1"]
    assert main([*arguments, "--out", "whole run"]) == 0
    handler = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        interrupted(patch, at, interrupt)
        capsys.readouterr()
        assert main([*arguments, "--out", "a run"]) == status
    assert signal.getsignal(signal.SIGTERM) is handler
    printed = capsys.readouterr().out
    at = load_checkpoint(here / "a run" / "last.pt")["at"]
    assert (at["epoch"], at["step"]) > (0, 0)  # the step in which it came is whole, and kept
    assert at["step"] == 0 or f"epochs and {at['step']} steps" in printed
    assert f"stopped by {name} after {epochs} of 3 epochs" in printed
    if epochs:
        assert len(read_csv(here / "a run" / "history.csv")) == 1
    again = re.search("^go on with: torchcls (.*)$", printed, re.MULTILINE)[1]
    assert again == "train --epochs 3 --classes 0,1 --out 'a run' --resume"
    assert main(shlex.split(again)) == 0
    assert "going on in a run: " in capsys.readouterr().out
    whole, found = here / "whole run", here / "a run"
    assert without_times(found / "history.csv") == without_times(whole / "history.csv")
    for file in ("weights.pt", "predictions.csv"):
        assert (found / file).read_bytes() == (whole / file).read_bytes()


def test_a_second_signal_does_not_wait_for_the_end_of_the_step(here, capsys, monkeypatch):
    interrupted(monkeypatch, 4, lambda: (ctrl_c(), ctrl_c()))
    assert main(["train", "--epochs", "3", "--classes", "0,1", "--out", "run"]) == 130
    assert "stopped by Ctrl-C after 0 of 3 epochs" in capsys.readouterr().out
    assert load_checkpoint(here / "run" / "last.pt")["at"]["step"] == 0


def test_the_folder_it_chose_itself_stands_in_the_command_that_goes_on(here, capsys, monkeypatch):
    interrupted(monkeypatch, 12, ctrl_c)
    assert main(["train", "--epochs", "3"]) == 130
    assert "torchcls train --epochs 3 --out torchcls-out --resume" in capsys.readouterr().out


def test_in_a_thread_it_sets_no_handler(here):
    statuses = []
    thread = threading.Thread(
        target=lambda: statuses.append(main(["train", "--epochs", "1", "--classes", "0,1"]))
    )
    thread.start()
    thread.join()
    assert statuses == [0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["--resume"],
            "--out must name the folder of the run that --resume goes on with, got none",
        ),
        (["--out", "nowhere", "--resume"], "got nowhere without a last.pt"),
        (["--out", "run", "--epochs", "1"], "or go on with that run by --resume"),
        (["--out", "run", "--resume", "--lr", "0.5"], "--lr must be 0.001 as in the run that is"),
        (["--out", "run", "--resume", "--batch-size", "7"], "--batch-size must be 128 as in the"),
        (["--out", "run", "--resume", "--classes", "0,1"], "--classes must be left out as in the"),
        (["--out", "run", "--resume", "--classes", "0,1"], "run that is resumed, got 0,1. Give"),
    ],
)
def test_a_run_that_cannot_be_gone_on_with_is_refused_in_one_line(here, capsys, arguments, words):
    main(["train", "--epochs", "1", "--out", "run"])
    capsys.readouterr()
    said = refusal(capsys, *arguments)
    assert words in said
    assert "load" not in said  # no advice in Python


# Real files


def test_it_reads_idx_files_from_a_folder(here, capsys):
    folder = write_idx(here / "digits", images=40, labels=40)
    arguments = ["train", "--data", str(folder), "--classes", "0,1", "--epochs", "1"]
    with pytest.warns(UserWarning, match="one-input"):  # they are all black
        assert main(arguments) == 0
    assert "40 training and 40 validation images" in capsys.readouterr().out


@pytest.mark.skipif(not os.environ.get("TORCHCLS_MNIST"), reason="TORCHCLS_MNIST names no folder")
def test_it_learns_real_digits(here):
    data = os.environ["TORCHCLS_MNIST"]
    arguments = ["train", "--data", data, "--classes", "0,1", "--epochs", "1", "--out", "run"]
    assert main(arguments) == 0
    assert float(read_csv(here / "run" / "history.csv")[0]["accuracy"]) > 0.99


# How it refuses


def refusal(capsys, *arguments):
    """Run, expect exit status 2, and return what standard error says: one line, no traceback."""
    with pytest.raises(SystemExit) as exit_:
        main(["train", "--epochs", "1", *arguments])
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["--data", "nowhere"],
            "--data must be drawn, mnist or a folder, got nowhere, which is not",
        ),
        (["--classes", "0,12"], "--classes must be digits like 0,1,2, got 0,12."),
        (["--classes", "1,1"], "distinct"),
        (["--classes", "1"], "--classes must name at least two classes, got 1"),
        (["--classes", "a,b"], "--classes must be digits like 0,1,2, got a,b."),
        (["--head", "binary", "--classes", "1,2,3"], "must name two classes for --head binary"),
        (["--device", "warp"], "device must be one that is there (cpu"),
        (["--batch-size", "0"], "--batch-size: must be a whole number of at least 1, got 0"),
        (["--epochs", "1.5"], "--epochs: must be a whole number of at least 1, got 1.5"),
        (["--lr", "-1"], "--lr: must be a number above 0, got -1"),
        (["--lr", "nan"], "--lr: must be a number above 0, got nan"),
        (["--lr", "fast"], "--lr: must be a number above 0, got fast"),
        (["--lr", "inf"], "--lr: must be a number above 0, got inf"),
        (["--lr", "0"], "--lr: must be a number above 0, got 0"),
        (["--seed", "-1"], "--seed: must be a whole number from 0 to 2^63 - 1, got -1"),
        (["--seed", str(2**63)], "--seed: must be a whole number from 0 to 2^63 - 1, got 92"),
        (["--seed", "x"], "--seed: must be a whole number from 0 to 2^63 - 1, got x"),
        (["--batch-size", "many"], "--batch-size: must be a whole number of at least 1, got many"),
    ],
)
def test_bad_arguments_are_one_line_and_exit_status_2(here, capsys, arguments, words):
    assert words in refusal(capsys, *arguments)
    assert not list(here.iterdir())  # and nothing was written


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ({"truncate": 100}, "train-images-idx3-ubyte"),
        ({"magic": 1234}, "train-images-idx3-ubyte"),
        ({"magic": 2049}, "train-images-idx3-ubyte"),
        ({"labels": 2}, "2"),
    ],
)
def test_damaged_files_are_named_in_one_line(here, capsys, damage, words):
    folder = write_idx(here / "digits", **damage)
    assert words in refusal(capsys, "--data", str(folder))


def test_an_earlier_run_is_never_overwritten(here, capsys):
    main(["train", "--epochs", "1", "--classes", "0,1", "--out", "run"])
    before = (here / "run" / "history.csv").read_bytes()
    capsys.readouterr()
    assert "Choose another folder" in refusal(capsys, "--out", "run")
    assert (here / "run" / "history.csv").read_bytes() == before


def test_a_folder_that_cannot_be_made_is_found_before_training(here, capsys):
    (here / "file").write_text("in the way")
    assert "file" in refusal(capsys, "--out", "file/run")


def test_as_a_process_it_has_an_exit_status_and_no_traceback(tmp_path):
    command = [sys.executable, "-m", "torchcls", "train", "--data", "nowhere"]
    refused = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert refused.returncode == 2
    assert refused.stdout == ""
    assert refused.stderr.count("\n") == 1
    assert "nowhere" in refused.stderr


def test_it_has_a_version(capsys):
    with pytest.raises(SystemExit) as left:
        main(["--version"])
    assert left.value.code == 0
    assert capsys.readouterr().out == f"torchcls {tc.__version__}\n"


def test_its_help_names_every_default_once(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    printed = capsys.readouterr().out
    assert "(default: 10)" in printed
    assert "(default: None)" not in printed


def test_a_reader_that_leaves_the_pipe_is_no_bad_input_and_ends_no_training(here, monkeypatch):
    def left(*_, **__):
        raise BrokenPipeError

    monkeypatch.setattr("builtins.print", left)
    assert main(["train", "--epochs", "1", "--classes", "0,1", "--out", "run"]) == 0
    assert len(read_csv(here / "run" / "history.csv")) == 1
    with pytest.raises(BrokenPipeError):  # what a check prints is all there is of it
        main(["check", "--classes", "0,1"])


# torchcls check


def photos(folder, **splits):
    """A folder of images: of each split its classes, four images each."""
    generator = np.random.default_rng(0)
    for split, classes in splits.items():
        for name in classes:
            (folder / split / name).mkdir(parents=True)
            for i in range(4):
                pixels = generator.integers(0, 256, (16, 20, 3), np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{i}.png")
    return folder


def test_check_reads_the_images_and_finds_nothing_wrong(tmp_path, capsys):
    folder = photos(tmp_path, train=("cat", "dog", "eel"), val=("cat", "eel"))
    assert main(["check", "--data", str(folder)]) == 0
    first, last = capsys.readouterr().out.splitlines()
    assert first == (
        f"{folder} classes cat, dog, eel: 12 training and 8 validation images, multiclass head"
    )
    assert last == "nothing found to be wrong"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["train", "val"]  # nothing written


def test_check_says_that_validation_is_the_training_set(tmp_path, capsys):
    folder = photos(tmp_path, train=("cat", "dog"))
    shutil.copytree(folder / "train", folder / "test")
    assert main(["check", "--data", str(folder), "--head", "binary"]) == 0
    _, finding, last = capsys.readouterr().out.splitlines()
    assert finding.startswith("warning: Training and validation hold the same samples (8 of 8")
    assert last == "findings: 1, errors: 0"


def test_check_exits_with_1_where_it_finds_an_error(here, capsys, monkeypatch):
    found = [tc.Finding("all-frozen", "error", "No parameter of the model needs a gradient.")]
    monkeypatch.setattr(tc, "check", lambda *given: found)
    assert main(["check"]) == 1
    assert capsys.readouterr().out.splitlines()[1:] == [
        "error: No parameter of the model needs a gradient. [all-frozen]",
        "findings: 1, errors: 1",
    ]


def test_check_names_every_image_that_cannot_be_read(tmp_path, capsys):
    folder = photos(tmp_path, train=("cat", "dog"), test=("cat", "dog"))
    (folder / "train" / "cat" / "1.png").write_text("<html>")
    Image.new("RGB", (8, 8)).save(folder / "train" / "dog" / "2.png")
    with pytest.raises(SystemExit) as left:
        main(["check", "--data", str(folder)])
    assert left.value.code == 2
    first, second, last = capsys.readouterr().err.splitlines()
    assert last == "Or add --net resnet18 --size 224, which takes all as they are."
    assert f"cat{os.sep}1.png must be an image" in first
    law = "must have the size of most images, 20 x 16 pixels, got 8 x 8. Resize all images alike."
    assert f"dog{os.sep}2.png {law}" in second


def test_train_takes_images_in_folders(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    photos(tmp_path / "photos", train=("cat", "dog"), valid=("cat", "dog"))
    assert main(["train", "--data", "photos", "--epochs", "1", "--out", "run"]) == 0
    lines = read_csv(tmp_path / "run" / "predictions.csv")
    assert {line["target"] for line in lines} == {"cat", "dog"}
    assert "photos classes cat, dog: 8 training and 8 validation images" in capsys.readouterr().out


def digits(folder, splits, names, *, size=(28, 28), mode="L"):
    """A folder of images for each digit of each split, three images each."""
    for split in splits:
        for name in names:
            (folder / split / name).mkdir(parents=True)
            for i in range(3):
                Image.new(mode, size, 80 * i).save(folder / split / name / f"{i}.png")
    return folder


@pytest.mark.parametrize("splits", [("training", "testing"), ("train", "test")])
@pytest.mark.parametrize("below", ["", "mnist_png"])
@pytest.mark.parametrize("arguments", [[], ["--classes", "3,5"], ["--head", "binary"]])
def test_the_png_layout_of_mnist_is_read_as_digits(tmp_path, capsys, splits, below, arguments):
    digits(tmp_path / below, splits, "0123456789")
    main(["check", "--data", str(tmp_path), *arguments])
    names = (
        "0, 1, 2, 3, 4, 5, 6, 7, 8, 9"
        if not arguments
        else "3, 5"
        if "3,5" in arguments
        else "0, 1"
    )
    assert f"{tmp_path} digits {names}: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("splits", "names", "form"),
    [
        (("train", "valid"), "01", {}),
        (("train", "test"), "01", {}),  # not all ten digits
        (("train", "test"), "0123456789", {"size": (32, 32)}),
        (("train", "test"), "0123456789", {"mode": "RGB"}),
        (("train", "val"), "0123456789", {}),
        (("Train", "Valid"), ("cat", "dog"), {}),
        (("train", "test"), [*"0123456789", "a"], {}),
    ],
)
def test_class_folders_with_the_names_of_digits_are_class_folders(
    tmp_path, capsys, splits, names, form
):
    digits(tmp_path, splits, names, **form)
    main(["check", "--data", str(tmp_path)])
    assert f"{tmp_path} classes {', '.join(names)}: " in capsys.readouterr().out


def test_images_too_small_for_the_network_are_refused(tmp_path, capsys):
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            Image.new("L", (5, 9)).save(tmp_path / split / name / "0.png")
    with pytest.raises(SystemExit):
        main(["check", "--data", str(tmp_path)])
    assert "at least 6 x 6 pixels for this network, got 5 x 9" in capsys.readouterr().err


# What a shell says and shows


def test_nobodys_file_is_written_over(here, capsys):
    (here / "run").mkdir()
    for name in ("weights.pt", "best-weights.pt", "history.csv", "arguments.json", "worst.png"):
        path = here / "run" / name
        path.write_text("mine")
        said = refusal(capsys, "--classes", "0,1", "--out", "run")
        assert said.endswith(
            f"--out must not hold what would be written over, got run with {name}. "
            "Choose another folder."
        )
        assert path.read_text() == "mine"
        path.unlink()
        path.symlink_to(here / "nowhere")  # written through, it would be somebody's, too
        assert f"got run with {name}" in refusal(capsys, "--out", "run")
        path.unlink()
    assert not list((here / "run").iterdir())


def test_on_resuming_a_folder_in_the_place_of_a_result_is_found_before_training(here, capsys):
    main(["train", "--epochs", "1", "--classes", "0,1", "--out", "run"])
    (here / "run" / "predictions.csv").unlink()
    (here / "run" / "predictions.csv").mkdir()
    capsys.readouterr()
    said = refusal(capsys, "--classes", "0,1", "--out", "run", "--resume")
    assert said.endswith("predictions.csv must be a file, got something else. Move it away.")


@pytest.mark.parametrize(
    ("out", "words"),
    [
        ("file", "--out must be a folder, got the file file."),
        ("file/run", "--out must be a folder that can be written, got "),
    ],
)
def test_out_must_be_a_folder(here, capsys, out, words):
    (here / "file").write_text("in the way")
    assert words in refusal(capsys, "--classes", "0,1", "--out", out)


def test_a_tilde_in_out_and_data_is_the_home(here, monkeypatch):
    monkeypatch.setenv("HOME", str(here / "home"))
    photos(here / "home" / "photos", train=("cat", "dog"), valid=("cat", "dog"))
    assert main(["train", "--data", "~/photos", "--epochs", "1", "--out", "~/runs/1"]) == 0
    assert (here / "home" / "runs" / "1" / "weights.pt").exists()
    assert [path.name for path in here.iterdir()] == ["home"]


def test_a_class_whose_name_is_no_utf_8_is_written_with_escapes(here):
    name = os.fsdecode(b"caf\xe9")
    photos(here / "photos", train=("cat", name), valid=("cat", name))
    assert main(["train", "--data", "photos", "--epochs", "1", "--out", "run"]) == 0
    assert {line["target"] for line in read_csv(here / "run" / "predictions.csv")} == {
        "cat",
        "caf\\udce9",
    }


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
@pytest.mark.parametrize("arguments", [["train", "--epochs", "1", "--out", "run"], ["check"]])
def test_a_name_that_the_terminal_cannot_show_is_escaped(here, monkeypatch, encoding, arguments):
    photos(here / "photos", train=("cat", "\u732b"), valid=("cat", "\u732b"))
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    assert main([*arguments, "--data", "photos"]) == 0
    name = "\u732b" if encoding == "utf-8" else "\\u732b"
    assert f"classes cat, {name}:" in stream.buffer.getvalue().decode(encoding)


def test_classes_chooses_among_the_folders(here, capsys):
    photos(here / "photos", train=("cat", "dog", "eel"), valid=("cat", "dog", "eel"))
    arguments = ["check", "--data", "photos"]
    assert main([*arguments, "--classes", "eel,cat", "--head", "binary"]) == 0
    assert capsys.readouterr().out.startswith("photos classes eel, cat: 8 training and 8")
    with pytest.raises(SystemExit):
        main([*arguments, "--classes", "cat,emu"])
    law = f"--classes must name folders in photos{os.sep}train, got emu. There are cat, dog, eel."
    assert capsys.readouterr().err == f"torchcls: error: {law}\n"


@pytest.mark.parametrize(
    ("splits", "seen"),
    [
        ({"train": ("cat", "dog")}, "got {} with train."),
        ({".": ("cat", "dog")}, "got {} with cat, dog."),
        ({".": ()}, "got {} with nothing in it."),
        ({"in/train": ("cat",), "in/test": ("cat",)}, "got {} with in. Name {}/in if you mean"),
    ],
)
def test_a_folder_of_another_form_is_answered_by_what_it_should_hold(
    tmp_path, capsys, splits, seen
):
    photos(tmp_path / "data", **splits)
    (tmp_path / "data").mkdir(exist_ok=True)
    with pytest.raises(SystemExit):
        main(["check", "--data", str(tmp_path / "data")])
    said = capsys.readouterr().err
    assert "--data must be a folder with MNIST (four IDX files, or PNG folders), or with" in said
    assert seen.replace("{}", str(tmp_path / "data")) in said


def test_one_grey_image_that_comes_first_does_not_accuse_the_others(tmp_path, capsys):
    folder = photos(tmp_path, train=("cat", "dog"), valid=("cat", "dog"))
    Image.new("L", (20, 16)).save(folder / "train" / "cat" / "0.png")
    with pytest.raises(SystemExit):
        main(["check", "--data", str(folder)])
    assert capsys.readouterr().err == (
        f"torchcls: error: {folder / 'train' / 'cat' / '0.png'} must have 3 channels (8-bit RGB) "
        "like most images, got 1 channel (8-bit grey). Store all images as RGB.\n"
        "Or add --net resnet18 --size 224, which takes all as they are.\n"
    )


def test_validation_images_of_another_size_are_named(tmp_path, capsys):
    folder = photos(tmp_path, train=("cat", "dog"), valid=("cat",))
    Image.new("RGB", (20, 17)).save(folder / "valid" / "cat" / "3.png")
    with pytest.raises(SystemExit):
        main(["check", "--data", str(folder)])
    said = capsys.readouterr().err
    assert f"cat{os.sep}3.png must have the size of most images, 20 x 16 pixels, got 20 x" in said


def test_check_says_what_is_passed_over(tmp_path, capsys):
    folder = photos(tmp_path, train=("cat", "dog"), valid=("cat", "dog"))
    (folder / "train" / "cat" / "9.heic").write_bytes(b"\0\0\0\x18ftypheic")
    assert main(["check", "--data", str(folder)]) == 0
    _, warning, last = capsys.readouterr().out.splitlines()
    assert warning.startswith("warning: 1 images or links to folders in ")
    assert last == "findings: 1, errors: 0"


def test_an_image_that_may_not_be_read_is_named_with_the_others(tmp_path, capsys, monkeypatch):
    folder = photos(tmp_path, train=("cat", "dog"), valid=("cat", "dog"))
    (folder / "train" / "cat" / "1.png").unlink()
    (folder / "train" / "cat" / "1.png").symlink_to("nowhere")
    with pytest.raises(SystemExit):
        main(["check", "--data", str(folder)])
    path = folder / "train" / "cat" / "1.png"
    assert capsys.readouterr().err == f"torchcls: error: {path}: No such file or directory\n"


@pytest.mark.parametrize("command", ["train", "check"])
@pytest.mark.parametrize("head", ["multiclass", "onehot", "binary"])
def test_it_finds_no_fault_with_the_metrics_that_it_chose(here, capsys, command, head):
    more = ["--epochs", "1"] if command == "train" else []
    assert main([command, "--classes", "0,1", "--head", head, *more]) == 0
    said = capsys.readouterr()
    assert "metric" not in said.out.replace("metric-", "metric") + said.err
    assert "note" not in said.out


def test_notes_of_a_run_are_printed_and_not_python(here, capsys):
    folder = photos(here / "photos", train=("cat", "dog"), valid=("cat", "dog"))
    shutil.copy(folder / "train" / "cat" / "0.png", folder / "valid" / "cat" / "0.png")
    assert main(["train", "--data", "photos", "--epochs", "1", "--out", "run"]) == 0
    said = capsys.readouterr().out
    assert "note: 1 of 8 validation samples stand among the training samples, too. [valid-" in said
    assert "history.findings" not in said


@pytest.mark.system
def test_as_a_process_its_warnings_are_lines_without_python(tmp_path):
    folder = photos(tmp_path / "photos", train=("cat", "dog"))
    shutil.copytree(folder / "train", folder / "valid")
    command = [sys.executable, "-m", "torchcls", "train", "--data", "photos", "--epochs", "1"]
    process = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True)
    assert process.stderr.startswith("torchcls: warning: Training and validation hold the same")
    assert process.stderr.count("\n") == 1
