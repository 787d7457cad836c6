"""torchcls.looking.report: a page with everything on it, which harms and asks nobody."""

import base64
import html
import io
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import pytest
import torch
from PIL import Image
from torch import nn, tensor

import torchcls as tc
from torchcls.looking import calibration, class_report, report
from torchcls.preflight.findings import Finding

CE, BCE = nn.CrossEntropyLoss(), nn.BCEWithLogitsLoss()
NAMES = ["<script>alert(1)</script>", "猫", '"dog" & $co$']
HISTORY = tc.History(
    [
        tc.Record(
            epoch=i, train_loss=1 / (i + 1), valid_loss=0.5, accuracy=0.9, cm=[[1, 2], [3, 4]]
        )
        for i in range(3)
    ]
)
HISTORY.findings = [Finding("one-class", "warning", "All targets are <b>0</b>.")]
OUTPUTS = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
TARGETS = torch.where(torch.arange(60) % 3 == 0, torch.arange(60) % 2, OUTPUTS.argmax(1))
PREDICTIONS = tc.Predictions(OUTPUTS, TARGETS, CE)
IMAGES = torch.rand(60, 3, 300, 200, generator=torch.Generator().manual_seed(1))


class Page(HTMLParser):
    """What stands on a page: tags, the text of each section, and tables as lists of rows."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.tables, self.sections, self.open = [], [], {}, []
        self.source = path.read_text("utf-8")
        self.feed(self.source)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag == "h2":
            self.sections[None] = ""

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag == "h2":
            self.sections[self.sections.pop(None)] = ""

    def handle_data(self, data):
        if self.sections and "section" in self.open:
            last = list(self.sections)[-1]
            self.sections[last] += data
        if {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += data

    def of(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    returned = report(
        path,
        PREDICTIONS,
        title="Three <kinds>",
        history=HISTORY,
        classes=NAMES,
        images=IMAGES,
        about={"network": "<b>Linear</b>", "epochs": 3},
        findings=["the data are <i>drawn</i>"],
    )
    assert returned == path
    return Page(path)


@pytest.fixture
def plain(monkeypatch):
    """Without matplotlib, which is faster."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)


# ------------------------------------------------------------------ what stands on it


def test_every_part_has_its_section(full):
    assert list(full.sections) == [
        *("What was run", "Result", "Classes", "Most confused", "Confusion matrix"),
        *("Largest losses", "Calibration", "History", "Findings"),
    ]
    assert [name for name, _ in full.tags if name in ("h1", "h2")] == ["h1"] + 9 * ["h2"]
    drawn = [image for image in full.of("img") if image["src"].startswith("data:image/svg")]
    assert [image["alt"].split()[0] for image in drawn] == [
        *("Confusion", "Reliability", "loss", "metrics"),
    ]


def test_the_numbers_are_those_of_the_functions(full):
    scores, error = class_report(PREDICTIONS), calibration(PREDICTIONS).error
    low, high = scores.interval
    result = full.sections["Result"]
    for text in (
        f"{scores.accuracy:.4f}",
        f"{low:.4f} to {high:.4f}",
        f"{CE(OUTPUTS, TARGETS):.4f}",
    ):
        assert text in result
    assert f"error is {error:.4f}:" in full.sections["Calibration"]
    about, classes, confused, history = full.tables
    assert about == [["what", "which"], ["network", "<b>Linear</b>"], ["epochs", "3"]]
    assert classes[1][0] == "macro mean"
    assert [row[0] for row in classes[3:]] == NAMES
    right, n = int(scores.matrix[1, 1]), int(scores.support[1])
    low, high = tc.looking.wilson_interval(right, n)
    assert classes[4][3:5] == [f"{right / n:.4f}", f"{low:.4f} to {high:.4f}"]
    times = [int(row[2]) for row in confused[1:]]
    assert sum(times) == 60 - int(scores.matrix.trace())
    assert history[0] == ["epoch", "train_loss", "valid_loss", "accuracy", "cm"]
    assert history[3] == ["2", "0.333333", "0.500000", "0.900000", "2 x 2"]
    assert full.sections["Findings"].strip().splitlines() == [
        "warning: All targets are <b>0</b>. [one-class]",
        "note: the data are <i>drawn</i>",
    ]


def test_the_worst_samples_come_as_small_pictures_with_their_names(full):
    samples = [image for image in full.of("img") if image["src"].startswith("data:image/png")]
    assert len(samples) == len(full.of("figure")) == 12
    indices, losses = tc.looking.worst(PREDICTIONS, k=12)
    assert [image["alt"] for image in samples] == [f"Sample {i}" for i in indices.tolist()]
    text = full.sections["Largest losses"]
    assert f"loss {losses[0]:.2f}" in text
    assert NAMES[int(TARGETS[indices[0]])] in text
    picture = Image.open(io.BytesIO(base64.b64decode(samples[0]["src"].partition(",")[2])))
    assert picture.size == (160, 240)


def test_what_comes_from_a_user_is_text(full):
    assert full.of("html") == [{"lang": "en"}]
    assert not full.of("script") + full.of("i") + full.of("kinds")
    assert "<title>Three &lt;kinds&gt;</title>" in full.source
    assert "猫" in full.source
    (matrix,) = (image for image in full.of("img") if image["alt"].startswith("Confusion"))
    picture = base64.b64decode(matrix["src"].partition(",")[2]).decode()
    assert ">猫</text>" in picture  # letters, which no font of matplotlib's has
    assert "<script>" not in picture


def test_it_can_be_read_on_a_phone_in_the_dark_and_by_ear(full):
    names = [meta.get("name") or meta.get("http-equiv") for meta in full.of("meta")]
    assert names == [None, "viewport", "Content-Security-Policy"]
    assert "prefers-color-scheme: dark" in full.source
    assert all(image["alt"] for image in full.of("img"))
    assert {cell["scope"] for cell in full.of("th")} == {"row", "col"}
    scrolled = [box for box in full.of("div") if "scroll" in box.get("class", "")]
    assert all(box["tabindex"] == "0" and box["aria-label"] for box in scrolled)
    assert len(scrolled) == len(full.of("table"))


def test_nothing_is_fetched(full):
    assert {image["src"].partition(":")[0] for image in full.of("img")} == {"data"}
    assert not [tag for tag, attributes in full.tags if {"href", "srcset"} & set(attributes)]
    assert not re.search(r"url\(|@import", full.source)


def test_the_same_numbers_give_the_same_page(tmp_path):
    few = tc.Predictions(OUTPUTS[:5], TARGETS[:5], CE)
    pages = [report(tmp_path / name, few).read_bytes() for name in "ab"]
    assert pages[0] == pages[1]


# ------------------------------------------------------------------ what may be missing


@pytest.mark.usefixtures("plain")
def test_a_page_says_what_it_lacks(tmp_path):
    page = Page(report(tmp_path / "page", PREDICTIONS))
    for part in ("What was run", "History", "Findings"):
        assert page.sections[part].strip() == "None given."
    assert "No images were given." in page.sections["Largest losses"]
    indices = tc.looking.worst(PREDICTIONS, k=12)[0].tolist()
    shown = re.findall(r"sample (\d+)", page.sections["Largest losses"])
    assert shown == list(map(str, indices))
    assert [row[0] for row in page.tables[0][3:]] == ["0", "1", "2"]
    assert "pip install 'torchcls[plots]'" in page.sections["Confusion matrix"]
    assert not page.of("img")


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize(
    ("predictions", "reason", "loss"),
    [
        (tc.Predictions(OUTPUTS, loss_fn=CE), "must have targets, got none", None),
        (tc.Predictions(OUTPUTS, TARGETS), "needs the loss", None),
        (
            tc.Predictions(OUTPUTS, OUTPUTS + 2, nn.MSELoss()),
            "a classification loss, got mse_loss",
            "4.0000",
        ),
        (tc.Predictions(0 * OUTPUTS, 0 * OUTPUTS, BCE), "Look at one label at a time", "0.6931"),
        (tc.Predictions(OUTPUTS * torch.nan, TARGETS, CE), "NaN", "nan"),
    ],
)
def test_without_scores_of_classes_it_says_why(predictions, reason, loss, tmp_path):
    page = Page(report(tmp_path / "page", predictions, history=HISTORY, images=IMAGES))
    assert list(page.sections) == ["What was run", "Result", "History", "Findings"]
    result = page.sections["Result"]
    assert reason in result
    assert "samples60" in result
    assert ("loss" + str(loss) in result) == (loss is not None)


@pytest.mark.usefixtures("plain")
def test_of_several_targets_for_a_sample_none_is_the_worst(tmp_path):
    rows, ids = OUTPUTS.reshape(20, 3, 3).movedim(1, 2), TARGETS.reshape(20, 3)
    page = Page(report(tmp_path / "page", tc.Predictions(rows, ids, CE)))
    assert "several targets each" in page.sections["Largest losses"]
    assert "samples60targets that count, in 20" in page.sections["Result"]


@pytest.mark.usefixtures("plain")
def test_the_loss_is_exact_and_ignored_targets_do_not_count(tmp_path):
    loss_fn = nn.CrossEntropyLoss(weight=tensor([1.0, 5.0, 0.5]), ignore_index=255)
    targets = TARGETS.where(torch.arange(60) < 50, 255)
    page = Page(report(tmp_path / "page", tc.Predictions(OUTPUTS, targets, loss_fn)))
    result = page.sections["Result"]
    assert f"loss{loss_fn(OUTPUTS, targets):.4f}" in result
    assert "samples50targets that count, in 60" in result


@pytest.mark.usefixtures("plain")
def test_hundreds_of_classes_are_a_table_in_a_box(tmp_path):
    ids = torch.arange(600) % 300
    page = Page(report(tmp_path / "page", tc.Predictions(torch.eye(300)[ids], ids, CE)))
    assert len(page.tables[0]) == 1 + 2 + 300
    assert "No class was taken for another one." in page.sections["Most confused"]


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize(
    ("wrong", "law"),
    [
        ({"classes": ["a", "b"]}, "classes must name 3 classes, got 2 names"),
        ({"images": IMAGES[:7]}, r"images must be one for each sample, got 7 for \(60,\)"),
    ],
)
def test_names_and_images_that_do_not_fit_leave_the_file_as_it_was(wrong, law, tmp_path):
    path = tmp_path / "page"
    path.write_text("old")
    with pytest.raises(ValueError, match=law):
        report(path, PREDICTIONS, **wrong)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


# ------------------------------------------------------------------ in a browser

LOOK = """<!doctype html><meta charset="utf-8"><style>:root { color-scheme: light dark }</style>
<iframe style="width: 360px; height: 800px; border: 0" srcdoc="PAGE"></iframe><script>
onload = () => {
  const { document: page, performance } = document.querySelector("iframe").contentWindow
  const fetched = performance.getEntriesByType("resource").map((entry) => entry.name)
  const found = { width: page.documentElement.scrollWidth,
    fetched: fetched.filter((name) => !name.startsWith("data:")),
    broken: [...page.images].filter((image) => !image.naturalWidth).length,
    back: getComputedStyle(page.body).backgroundColor }
  document.body.innerHTML = "<pre>FOUND" + JSON.stringify(found) + "DNUOF</pre>"
}</script>"""


def look(page, folder, *options):
    """What a browser 360 pixels wide finds, and what it complains of."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium is installed")
    (folder / "look.html").write_text(LOOK.replace("PAGE", html.escape(page)), "utf-8")
    quiet = "no-sandbox disable-gpu no-first-run disable-background-networking hide-scrollbars"
    flags = [
        f"--{flag}"
        for flag in (*quiet.split(), "disable-component-update", "disable-sync", "headless")
    ]
    done = subprocess.run(
        [
            *(chromium, *flags, f"--user-data-dir={folder / 'user'}", "--enable-logging=stderr"),
            *(*options, "--dump-dom", (folder / "look.html").as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    found = json.loads(html.unescape(re.search("FOUND(.*)DNUOF", done.stdout)[1]))
    return found, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.system
def test_a_browser_shows_it_whole_on_a_phone_without_network_or_complaint(full, tmp_path):
    found, complaints = look(full.source, tmp_path)
    assert complaints == []
    assert found == {"width": 360, "fetched": [], "broken": 0, "back": "rgb(255, 255, 255)"}
    dark, _ = look(full.source, tmp_path, "--blink-settings=preferredColorScheme=0")
    assert dark == {**found, "back": "rgb(21, 23, 26)"}


@pytest.mark.system
def test_a_browser_tells_of_a_page_that_is_wide_fetches_and_fails(tmp_path):
    bad = """<!doctype html><div style="width: 400px">wide</div><img src="http://127.0.0.1:9/x.png">
    <script>console.error("no")</script>"""
    found, complaints = look(bad, tmp_path)
    assert found["width"] > 360
    assert found["fetched"] == ["http://127.0.0.1:9/x.png"]
    assert found["broken"] == 1
    assert complaints
