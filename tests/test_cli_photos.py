"""The command line on photographs: a network of torchvision, and what is done with its run."""

import argparse
import csv
import io
import json
import os
import re
import shlex
import shutil
import signal
import urllib.error

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import models

import torchcls as tc
from torchcls.cli import main
from torchcls.cli.task import task_of
from torchcls.looking import wilson_interval

NET = ("--net", "squeezenet1_1", "--size", "32", "--workers", "0", "--batch-size", "4")
NAMES = ("cat", "dog", "\u732b")


def photos(folder, names=NAMES, n=4, seed=0):
    """For each class n photographs of its brightness, in two sizes, every third one grey."""
    generator = np.random.default_rng(seed)
    for number, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for i in range(n):
            size = (40 + 8 * (i % 2), 48 - 8 * (i % 2), 3)
            pixels = generator.integers(70 * (number % 3), 70 * (number % 3) + 60, size, np.uint8)
            image = Image.fromarray(pixels).convert("L" if i % 3 == 0 else "RGB")
            image.save(folder / name / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with photographs in train, valid and one, and a run of two epochs on them."""
    place = tmp_path_factory.mktemp("photographs")
    photos(place / "photos" / "Train", n=5)
    photos(place / "photos" / "VAL", n=2, seed=1)
    photos(place / "one", n=5, seed=2)
    before = os.getcwd()
    os.chdir(place)
    try:
        arguments = ["--data", "photos", "--epochs", "2", "--lr", "2e-4", "--out", "run"]
        assert main(["train", *NET, *arguments]) == 0
    finally:
        os.chdir(before)
    return place


@pytest.fixture
def here(place, tmp_path, monkeypatch):
    """A folder of this test's own with the photographs and the run."""
    for name in ("photos", "one"):
        (tmp_path / name).symlink_to(place / name)
    shutil.copytree(place / "run", tmp_path / "run", ignore=shutil.ignore_patterns(".lock"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torchcls.cli.train._draw", lambda *_: None)  # pictures take their time
    return tmp_path


def refused(capsys, *arguments):
    """Run, expect exit status 2 and no traceback, and return the last line of standard error."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as left:
        main(list(arguments))
    assert left.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def place_of(here, name):
    """Where the photographs are that a link of this test's folder leads to."""
    return (here / name).resolve()


def ids_of_the_run(here):
    """What the weights of the run say of its validation images, by hand."""
    model = models.squeezenet1_1(num_classes=3)
    model.load_state_dict(torch.load(here / "run" / "weights.pt", weights_only=True))
    images = tc.image_folder(
        here / "photos" / "VAL", transform=tc.photo_transforms(32, train=False)
    )
    with torch.no_grad():
        p = model.eval()(torch.stack([image for image, _ in images])).softmax(1)
    return images, p


# --- training -------------------------------------------------------------------------------


def test_a_run_folder_holds_what_the_run_was_and_reached(here):
    out = here / "run"
    told = json.loads((out / "arguments.json").read_text("utf-8"))
    assert told["names"] == list(NAMES)
    assert told["input_shape"] == [3, 32, 32]
    assert (told["net"], told["lr"], told["augment"]) == ("squeezenet1_1", 2e-4, "usual")
    assert os.path.isabs(told["data"])
    images, p = ids_of_the_run(here)
    with open(out / "predictions.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == [
        os.path.join("photos", *path.parts[-3:]) for path in images.paths
    ]
    assert [row["predicted"] for row in rows] == [NAMES[i] for i in p.argmax(1)]
    assert [row["target"] for row in rows] == [NAMES[i] for i in images.targets]
    found = torch.tensor([[float(row[f"probability_{i}"]) for i in range(3)] for row in rows])
    torch.testing.assert_close(found, p)
    best = torch.load(out / "best-weights.pt", weights_only=True)
    history = json.loads((out / "history.json").read_text())
    is_last_best = history[1]["valid_loss"] < history[0]["valid_loss"]
    last = torch.load(out / "weights.pt", weights_only=True)
    assert all(torch.equal(best[name], last[name]) for name in last) == is_last_best
    for name in ("curves.png", "confusion.png", "worst.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")


def task(data, **options):
    """What a command would work on."""
    usual = {"head": "multiclass", "classes": None, "seed": 0, "net": "squeezenet1_1", "size": 32}
    usual |= {"augment": "usual", "valid_share": None, "workers": 0, "batch_size": 4}
    usual |= {"weights": None, "pretrained": None}
    return task_of(argparse.Namespace(data=str(data), **usual | options))


def test_one_folder_is_split_by_class_with_the_seed(here):
    first, again, other = (task("one", seed=seed, valid_share=0.4) for seed in (3, 3, 4))
    assert first.valid.targets.tolist() == [0, 0, 1, 1, 2, 2]
    assert first.train.targets.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert first.valid.paths == again.valid.paths != other.valid.paths
    assert sorted(first.train.paths + first.valid.paths) == sorted(tc.image_folder("one").paths)
    assert [len(task("one", valid_share=share).valid) for share in (0.01, None, 0.99)] == [3, 3, 12]


def test_a_run_on_a_part_of_a_folder_is_evaluated_on_the_other_part(here, capsys):
    assert main(["train", *NET, "--data", "one", "--epochs", "1", "--out", "new"]) == 0
    history = json.loads((here / "new" / "history.json").read_text())
    low, high = wilson_interval(round(3 * history[0]["accuracy"]), 3)
    said = capsys.readouterr().out
    assert "12 training and 3 validation images" in said
    assert f"({low:.4f} to {high:.4f} with 95 % confidence), valid_loss" in said
    assert main(["evaluate", "new", "--data", "one"]) == 0
    said = capsys.readouterr().out
    assert "one classes cat, dog, \u732b: 3 images" in said
    assert f"accuracy {history[0]['accuracy']:.6f}, with" in said


@pytest.mark.parametrize("head", ["binary", "onehot"])
def test_other_heads_and_some_of_the_classes(here, capsys, head):
    arguments = ["--data", "one", "--head", head, "--classes", "dog,cat", "--epochs", "1"]
    assert main(["train", *NET, *arguments, "--out", "new"]) == 0
    capsys.readouterr()
    assert main(["predict", "new", "one/dog/1.png", "--top", "2", "--format", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["class"] for row in rows} == {"cat", "dog"}
    assert sum(row["probability"] for row in rows) == pytest.approx(1)
    assert main(["evaluate", "new", "--data", "photos/VAL"]) == 0  # folders of others left alone
    assert "photos/VAL classes dog, cat: 4 images" in capsys.readouterr().out


def test_hundreds_of_classes_are_told_in_a_line(tmp_path):
    photos(tmp_path / "many", [f"class {i:03}" for i in range(120)], n=2)
    found = task(tmp_path / "many")
    names = ", ".join(f"class {i:03}" for i in range(10))
    assert str(found).endswith(f"{names} and 110 more: 120 training and 120 validation images")
    assert found.model()[0](torch.zeros(1, 3, 32, 32)).shape == (1, 120)


def test_a_last_batch_of_a_single_image_is_left_out(here):
    arguments = ["--net", "shufflenet_v2_x0_5", *NET[2:-1], "7", "--data", "photos"]
    # Batch normalization would be given 1 x 1 values of it, and raise.
    with pytest.warns(UserWarning, match="Of the 15 training images one is left out in each"):
        assert main(["train", *arguments, "--epochs", "1", "--out", "new"]) == 0


def test_what_is_measured_later_are_the_images_of_the_run(here, capsys):
    """Whatever has become of the folder: it is not split again, and names keep their ids."""
    arguments = ["--data", "cut", "--epochs", "1", "--out", "cut-run"]
    shutil.copytree(place_of(here, "one"), here / "cut")
    assert main(["train", *NET, *arguments]) == 0
    told = json.loads((here / "cut-run" / "arguments.json").read_text("utf-8"))
    held = [path for path, _ in told["valid"]]
    assert len(held) == 3
    for i in range(2):
        shutil.copy(here / "cut" / "cat" / "0.png", here / "cut" / "cat" / f"new{i}.png")
    (here / "cut" / "aardvark").mkdir()
    capsys.readouterr()
    assert main(["evaluate", "cut-run"]) == 0
    by_itself = capsys.readouterr().out
    assert "classes cat, dog, 猫: 3 images" in by_itself
    (here / "link").symlink_to(here / "cut")
    assert main(["evaluate", "cut-run", "--data", "link"]) == 0
    assert capsys.readouterr().out == by_itself
    os.remove(held[0])
    said = refused(capsys, "evaluate", "cut-run")
    assert f"must be where they were, got none at {held[0]}. Name others by --data." in said


def test_a_run_does_not_write_among_the_images(here, capsys, monkeypatch):
    shutil.copytree(place_of(here, "one"), here / "cut")
    said = refused(capsys, "train", *NET, "--data", "cut", "--out", "cut/run")
    assert "--out must lie outside of the images of --data" in said
    monkeypatch.chdir(here / "cut")
    assert "--out must lie outside" in refused(capsys, "train", *NET, "--data", ".")
    assert not (here / "cut" / "torchcls-out").exists()


def test_photographs_that_are_there_twice_are_found_by_check(here, capsys):
    shutil.copytree(place_of(here, "one"), here / "cut")
    shutil.copy(here / "cut" / "cat" / "0.png", here / "cut" / "dog" / "copy.png")
    main(["check", *NET, "--data", "cut"])
    printed = capsys.readouterr().out
    assert "Photographs are there twice: " in printed
    assert all(os.path.join(*name) in printed for name in (("cat", "0.png"), ("dog", "copy.png")))


def test_a_run_goes_on_with_its_own_images_alone(here, capsys):
    shutil.copytree(place_of(here, "one"), here / "cut")
    arguments = ["train", *NET, "--data", "cut", "--out", "cut-run", "--epochs"]
    assert main([*arguments, "1"]) == 0
    shutil.copy(here / "cut" / "cat" / "0.png", here / "cut" / "cat" / "new.png")
    said = refused(capsys, *arguments, "2", "--resume")
    assert "--data must hold the images that the run was begun with" in said
    os.remove(here / "cut" / "cat" / "new.png")
    assert main([*arguments, "2", "--resume"]) == 0


def test_the_worst_photographs_are_named_by_their_files(here):
    assert main(["report", "run"]) == 0
    page = (here / "run" / "report.html").read_text("utf-8")
    assert page.count(os.path.join("VAL", "cat")) == 2
    assert ": 6 to validate on" in page


def test_no_picture_ends_a_run(here, monkeypatch):
    def broken(*_):
        raise TypeError("Invalid shape")

    monkeypatch.setattr("torchcls.cli.train._draw", broken)
    with pytest.warns(UserWarning, match="could not be drawn: Invalid shape"):
        assert main(["train", *NET, "--data", "photos", "--epochs", "1", "--out", "new"]) == 0
    assert (here / "new" / "predictions.csv").exists()


def test_a_network_that_gives_nan_predicts_nothing(here, capsys):
    weights = torch.load(here / "run" / "weights.pt", weights_only=True)
    torch.save({name: tensor * float("nan") for name, tensor in weights.items()}, "nan.pt")
    os.replace("nan.pt", here / "run" / "weights.pt")
    assert main(["predict", "run", "one/dog/0.png", "--format", "json"]) == 1
    printed = capsys.readouterr()
    assert json.loads(printed.out) == []
    assert "0.png has no class: the network gives NaN" in printed.err


def test_json_is_json_whatever_the_terminal_can_show(here, capsys, monkeypatch):
    monkeypatch.setattr("torchcls.cli.use.encodable", lambda text: text.replace("猫", "\\x"))
    assert main(["predict", "run", "one/猫/0.png", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["file"] == "one/猫/0.png"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--net", "resnt18"], "torchvision, got resnt18. There are resnet18, "),
        (["--net", "fasterrcnn_resnet50_fpn"], "got fasterrcnn_resnet50_fpn, which is for another"),
        (["--net", "vit_b_16", "--size", "33"], "--size must be one that vit_b_16 takes"),
        (["--net", "alexnet", "--size", "8"], "--size must be one that alexnet takes"),
        (["--net", "resnet18", "--valid-share", "0.3"], "--valid-share must be left out where"),
        (["--net", "resnet18", "--valid-share", "1"], "must be a number between 0 and 1, got 1"),
        (["--net", "resnet18", "--classes", "cat,emu"], "--classes must name folders in photos"),
        (["--net", "resnet18", "--data", "drawn"], "--data must be a folder of photographs for"),
        (["--size", "64"], "--size must stand beside --net, got none. Add --net resnet18."),
        (["--weights", "w.pt"], "--weights must stand beside --net, got none."),
        ([], "Or add --net resnet18 --size 224, which takes all as they are."),
    ],
)
def test_what_does_not_go_together_is_one_sentence(here, capsys, arguments, words):
    there = sorted(here.iterdir())
    said = refused(capsys, "train", "--data", "photos", *arguments)
    assert words in said
    assert sorted(here.iterdir()) == there


def test_a_class_of_one_image_cannot_be_split(tmp_path, capsys):
    photos(tmp_path / "few", ["cat", "dog"], n=2)
    (tmp_path / "few" / "cat" / "0.png").unlink()
    said = refused(capsys, "train", *NET, "--data", str(tmp_path / "few"))
    assert "--valid-share must leave an image of each class" in said
    assert "got the class cat with 1." in said


def test_a_broken_image_is_named_though_another_process_read_it(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    photos(tmp_path / "few", ["cat", "dog"], n=2)
    for path in (tmp_path / "few" / "cat").iterdir():
        path.write_text("<html>")
    arguments = ["--net", "squeezenet1_1", "--size", "32", "--workers", "1", "--data", "few"]
    said = refused(capsys, "train", *arguments)
    assert re.match(r"torchcls: error: few.cat.\d.png must be an image, got a file that st", said)
    with pytest.raises(SystemExit):
        main(["check", *arguments])
    assert capsys.readouterr().err.count("must be an image") == 2  # all of them


def test_check_and_find_lr_take_the_same_options(here, capsys):
    assert main(["check", *NET, "--data", "photos"]) == 0
    assert "photos classes cat, dog, \u732b: 15 training and 6" in capsys.readouterr().out
    assert main(["find-lr", *NET, "--data", "photos"]) in (0, 1)
    said = capsys.readouterr()
    assert "suggested: --lr " in said.out or "the loss must fall" in said.err


# --- weights to begin with ------------------------------------------------------------------


def begun_with(here, weights):
    """The weights of a run that has hardly moved from those it began with."""
    arguments = ["--data", "one", "--epochs", "1", "--lr", "1e-6", "--out", "new"]
    assert main(["train", *NET, *weights, *arguments]) == 0
    return torch.load(here / "new" / "weights.pt", weights_only=True)


def assert_near(found, weights):
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, weights[name], rtol=0, atol=1e-5)


HEAD = ["classifier.1.bias", "classifier.1.weight"]


@pytest.mark.parametrize("wrapped", [lambda w: w, lambda w: {"model": w, "classes": None}])
def test_weights_of_other_classes_are_loaded_but_for_the_head(here, capsys, wrapped):
    torch.manual_seed(7)
    weights = models.squeezenet1_1(num_classes=5).state_dict()
    torch.save(wrapped(weights), "w.pt")
    found = begun_with(here, ["--weights", "w.pt"])
    assert f"left out of --weights w.pt: {', '.join(HEAD)}\n" in capsys.readouterr().out
    assert_near({name: w for name, w in found.items() if name not in HEAD}, weights)
    assert found[HEAD[0]].shape == (3,)


def test_weights_of_as_many_classes_are_loaded_whole(here, capsys):
    found = begun_with(here, ["--weights", "run/weights.pt"])
    weights = torch.load(here / "run" / "weights.pt", weights_only=True)
    assert_near(found, weights)
    assert "left out" not in capsys.readouterr().out


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("harm",)


def test_weights_that_do_not_fit_are_refused(here, capsys):
    def said(weights):
        torch.save(weights, "w.pt")
        return refused(capsys, "train", *NET, "--data", "one", "--weights", "w.pt")

    fitting = models.squeezenet1_1(num_classes=3).state_dict()
    assert "must hold the weights of squeezenet1_1, got " in said(models.alexnet().state_dict())
    part = {name: tensor for name, tensor in fitting.items() if name != "features.0.bias"}
    assert "got features.0.bias missing where it has of shape (64,)" in said(part)
    assert "got more of shape (1,) where it has missing (1 " in said(
        fitting | {"more": torch.ones(1)}
    )
    assert "with something else" in said([1, 2])
    assert "cannot read as weights alone" in said(Harmful())
    assert not (here / "harm").exists()
    (here / "w.pt").write_text("no weights")
    assert "cannot read" in refused(capsys, "train", *NET, "--data", "one", "--weights", "w.pt")
    assert "nowhere.pt: No such file" in refused(
        capsys, "train", *NET, "--data", "one", "--weights", "nowhere.pt"
    )


def test_pretrained_takes_the_weights_of_torchvision(here, capsys, monkeypatch):
    torch.manual_seed(7)
    weights = models.squeezenet1_1().state_dict()
    url = models.SqueezeNet1_1_Weights.DEFAULT.url
    (here / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(weights, here / "hub" / "checkpoints" / url.rpartition("/")[2])
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(here / "hub"))
    found = begun_with(here, ["--pretrained"])
    assert f"left out of --pretrained: {', '.join(HEAD)}\n" in capsys.readouterr().out
    assert_near({name: w for name, w in found.items() if name not in HEAD}, weights)


def test_pretrained_without_a_network_says_what_to_do(here, capsys, monkeypatch):
    def urlopen(*_, **__):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(here / "hub"))
    monkeypatch.setattr(torch.hub, "urlopen", urlopen)
    said = refused(capsys, "train", *NET, "--data", "one", "--pretrained")
    assert "--pretrained must download https://download.pytorch.org/models/squeezenet1_1" in said
    assert said.endswith("Where there is no network, use --weights FILE.")


# --- going on -------------------------------------------------------------------------------


def test_a_run_that_is_stopped_and_resumed_ends_with_the_same_bits(here, capsys, monkeypatch):
    arguments = ["train", *NET, "--data", "photos", "--epochs", "2", "--lr", "2e-4"]
    stop, calls = models.SqueezeNet.forward, []

    def forward(self, *given):
        calls.append(self.training)
        if sum(calls) == 3 and self.training:
            os.kill(os.getpid(), signal.SIGINT)
        return stop(self, *given)

    with monkeypatch.context() as patched:
        patched.setattr(models.SqueezeNet, "forward", forward)
        assert main([*arguments, "--out", "new"]) == 130
    again = re.search("^go on with: torchcls (.*)$", capsys.readouterr().out, re.MULTILINE)[1]
    assert main(shlex.split(again)) == 0
    for name in ("weights.pt", "best-weights.pt", "predictions.csv"):
        assert (here / "new" / name).read_bytes() == (here / "run" / name).read_bytes()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--size", "40"], "--size must be 32 as in the run that is resumed, got 40."),
        (["--augment", "none"], "--augment must be usual as in"),
        (["--classes", "cat,dog"], "--classes must be left out as in the"),
        (["--data", "one"], "--data must be "),
    ],
)
def test_other_options_are_no_way_to_go_on(place, here, capsys, arguments, words):
    given = [
        "--data",
        str(place / "photos"),
        "--epochs",
        "3",
        "--lr",
        "2e-4",
        "--out",
        "run",
        "--resume",
    ]
    assert words in refused(capsys, "train", *NET, *given, "--resume", *arguments)


# --- what a run is good for -----------------------------------------------------------------


def test_predict_prints_files_classes_and_probabilities(here, capsys):
    images, p = ids_of_the_run(here)
    assert main(["predict", "run", "photos/VAL", "--top", "2", "--format", "csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["file"] for row in rows[::2]] == [
        os.path.join("photos", *path.parts[-3:]) for path in images.paths
    ]
    best, ids = p.topk(2)
    assert [row["class"] for row in rows] == [NAMES[i] for i in ids.flatten()]
    found = torch.tensor([float(row["probability"]) for row in rows])
    torch.testing.assert_close(found, best.flatten())
    assert main(["predict", "run", "photos/VAL/cat/0.png"]) == 0
    header, line = capsys.readouterr().out.splitlines()
    assert header.split() == ["file", "class", "probability"]
    assert line.split() == ["photos/VAL/cat/0.png", NAMES[ids[0, 0]], f"{best[0, 0]:.4f}"]


def test_predict_passes_over_what_is_no_image_and_ends_with_1(here, capsys):
    (here / "no.png").write_text("<html>")
    (here / "empty").mkdir()
    files = ["no.png", "photos/VAL/cat/0.png", "nowhere.png", "empty", "photos/VAL/dog/0.png"]
    assert main(["predict", "run", *files, "--format", "json"]) == 1
    said = capsys.readouterr()
    assert [row["file"] for row in json.loads(said.out)] == [files[1], files[4]]
    first, second, third = said.err.splitlines()
    assert first.startswith("torchcls: error: no.png must be an image, got a file that starts")
    assert second == "torchcls: error: nowhere.png: No such file or directory"
    assert third.startswith("torchcls: error: empty must hold at least one image, got none.")
    assert main(["predict", "run", "no.png", "--format", "json"]) == 1
    assert json.loads(capsys.readouterr().out) == []


def test_best_is_another_epoch(here, capsys):
    worst = {
        name: torch.zeros_like(w)
        for name, w in models.squeezenet1_1(num_classes=3).state_dict().items()
    }
    torch.save(worst, here / "run" / "best-weights.pt")
    assert main(["predict", "run", "one/cat/0.png", "--best", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["probability"] == pytest.approx(1 / 3)


def test_evaluate_measures_on_what_the_run_was_validated_on_or_another_folder(here, capsys):
    images, p = ids_of_the_run(here)
    accuracy = (p.argmax(1) == images.targets).double().mean()
    for more in ([], ["--data", "photos"], ["--data", "photos/VAL"]):
        assert main(["evaluate", "run", *more]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].endswith(f"classes {', '.join(NAMES)}: 6 images")
        assert lines[-1].startswith(f"accuracy {accuracy:.6f}, with 95 % confidence in ")
    photos(here / "part", ["dog"], n=1)  # not all classes have images
    assert main(["evaluate", "run", "--data", "part"]) == 0
    assert "part classes cat, dog, \u732b: 1 images" in capsys.readouterr().out
    photos(here / "other", ["cat", "emu"], n=1)
    law = f"--data must have the classes of the run, {', '.join(NAMES)}, got emu in other."
    assert refused(capsys, "evaluate", "run", "--data", "other") == f"torchcls: error: {law}"


def test_report_writes_a_page_once(here, capsys):
    assert main(["report", "run"]) == 0
    assert capsys.readouterr().out == f"wrote {os.path.join('run', 'report.html')}\n"
    page = (here / "run" / "report.html").read_text("utf-8")
    assert "squeezenet1_1 on " in page
    assert "\u732b" in page
    assert "report.html. Choose another name." in refused(capsys, "report", "run")


def test_report_shows_what_the_checks_had_to_say(here):
    file = here / "run" / "arguments.json"
    told = json.loads(file.read_text("utf-8"))
    finding = ["learning-rate", "note", "The rate is low."]
    file.write_text(json.dumps(told | {"findings": [finding]}), encoding="utf-8")
    assert main(["report", "run", "--out", "page.html"]) == 0
    assert "note: The rate is low. [learning-rate]" in (here / "page.html").read_text("utf-8")


@pytest.mark.parametrize("name", ["pt", "pt2", "onnx"])
def test_export_writes_the_network_with_what_is_needed_to_use_it(here, capsys, name):
    if name == "onnx":
        pytest.importorskip("onnxruntime")
    assert main(["export", "run", "--format", name]) == 0
    assert "n x 3 x 32 x 32 in" in capsys.readouterr().out
    file = here / "run" / f"model.{name}"
    images, p = ids_of_the_run(here)
    inputs = torch.stack([image for image, _ in images])
    if name == "pt":
        kept = torch.load(file, weights_only=True)
        last = torch.load(here / "run" / "weights.pt", weights_only=True)
        assert all(torch.equal(kept["model"][key], last[key]) for key in last)
        classes, scaling = kept["classes"], kept["scaling"]
    else:
        facts = {"classes": "", "scaling": ""}
        if name == "pt2":
            found = torch.export.load(file, extra_files=facts).module()(inputs)
        else:
            import onnxruntime

            session = onnxruntime.InferenceSession(file)
            facts = session.get_modelmeta().custom_metadata_map
            found = torch.from_numpy(session.run(None, {"inputs": inputs.numpy()})[0])
        torch.testing.assert_close(found, p, rtol=1e-4, atol=1e-4)
        classes, scaling = json.loads(facts["classes"]), json.loads(facts["scaling"])
    assert classes == list(NAMES)
    assert scaling == {
        "from": [0, 255],
        "to": [0, 1],
        "shorter_side": 37,
        "middle": 32,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
    }


def test_what_cannot_be_exported_is_failed_and_written_nowhere(here, capsys, monkeypatch):
    def export(*_, **__):
        raise ValueError("the model must be one that torch can turn into a program.")

    monkeypatch.setattr(tc, "export", export)
    assert main(["export", "run", "--format", "pt2"]) == 1
    assert capsys.readouterr().err.startswith("torchcls: error: the model must be one that torch")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["predict", "nowhere", "x.png"], "RUN must be the folder of a run of torchcls train"),
        (["predict", "run", "x.png", "--top", "4"], "--top must be at most the 3 classes of the"),
        (["export", "run", "--format", "pt2", "--out", "m.pt"], "--out must end in .pt2, got m.pt"),
        (["export", "run", "--out", "m.zip"], "--out must end in .onnx or .pt2 or .pt, got m.zip"),
        (["export", "run", "--out", "run"], "--out must be a new file in a folder that is there"),
        (["export", "run", "--out", "no/m.pt"], "--out must be a new file in a folder that is"),
        (["evaluate", "run", "--data", "nowhere"], "folder of images for each class, got nowhere."),
        (["evaluate", "run", "--device", "warp"], "device must be one that is there (cpu"),
    ],
)
def test_what_cannot_be_done_with_a_run_is_one_sentence(here, capsys, arguments, words):
    assert words in refused(capsys, *arguments)


def test_a_run_folder_that_is_not_whole_is_refused(here, capsys):
    (here / "run" / "weights.pt").write_text("no weights")
    assert "weights.pt must hold the weights that" in refused(capsys, "predict", "run", "x.png")
    (here / "run" / "weights.pt").unlink()
    assert "RUN must have a weights.pt, which a run" in refused(capsys, "predict", "run", "x.png")
    for text in ("{}", "[]", "{"):
        (here / "run" / "arguments.json").write_text(text)
        said = refused(capsys, "predict", "run", "x.png")
        assert "arguments.json must be as torchcls train wrote it, got" in said


def test_a_run_of_the_lecture_is_used_in_the_same_way(tmp_path, capsys, monkeypatch):
    drawn = tc.drawn_digits
    monkeypatch.setattr(tc, "drawn_digits", lambda n, **rest: drawn(n // 20, **rest))
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--classes", "3,5", "--epochs", "1", "--out", "run"]) == 0
    (tmp_path / "3").mkdir()
    pixels = (drawn(1, classes=(3, 5), seed=5)[0][0, 0] * 255).byte().numpy()
    Image.fromarray(pixels).save(tmp_path / "3" / "a.png")
    Image.new("L", (8, 8)).save(tmp_path / "3" / "b.png")
    capsys.readouterr()
    assert main(["predict", "run", "3"]) == 1
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == 2
    assert "b.png must be an image of shape (1, 28, 28), got (1, 8, 8)." in said.err
    assert main(["evaluate", "run"]) == 0
    assert "drawn digits 3, 5: 50 images" in capsys.readouterr().out
    (tmp_path / "3" / "b.png").unlink()
    photos(tmp_path / "new", [], n=0)
    shutil.copytree(tmp_path / "3", tmp_path / "new" / "3")
    assert main(["evaluate", "run", "--data", "new"]) == 0
    assert "new classes 3, 5: 1 images" in capsys.readouterr().out
    for arguments in (["report", "run"], ["export", "run", "--format", "pt2"]):
        assert main(arguments) == 0
