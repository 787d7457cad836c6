"""Outputs, targets and loss: every mismatch with its code and the fix that is named."""

import collections
import copy
import functools
import re
import types

import pytest
import torch
import torch.nn.functional as F
from helpers import IS_OLD_TORCH
from torch import nn

import torchcls as tc
from torchcls.preflight.contract import findings_of
from torchcls.preflight.targets import class_range, options_of

N = 6
with torch.random.fork_rng():
    torch.manual_seed(0)
    LAYERS = {k: nn.Linear(4, k) for k in (1, 2, 3, 4)}
X = torch.randn(N, 4, generator=torch.Generator().manual_seed(0))
IDS = torch.tensor([0, 1, 2, 0, 1, 2])
YES = torch.tensor([0.0, 1, 0, 1, 1, 0])
ROWS = F.one_hot(IDS).float()
CE, BCEL, BCE = nn.CrossEntropyLoss(), nn.BCEWithLogitsLoss(), nn.BCELoss()


def out(k, function=None):
    outputs = LAYERS[k](X)
    return outputs if function is None else function(outputs)


def said(outputs, targets, loss_fn, inputs=X):
    return [(f.code, f.severity, f.message) for f in findings_of(inputs, targets, outputs, loss_fn)]


CASES = [
    # outputs, targets, loss, code, severity, words
    (out(3, lambda z: z.softmax(1)), IDS, CE, "activated-twice", "error", "below 0.551 for 3"),
    (out(3, torch.sigmoid), IDS, CE, "activated-twice", "error", "sigmoid"),
    (out(1, torch.sigmoid), YES[:, None], BCEL, "activated-twice", "error", "0.5 or rises above"),
    (out(3, lambda z: z.log_softmax(1)), ROWS, BCEL, "activated-twice", "error", "above 0.5"),
    (out(3, torch.sigmoid), ROWS, nn.MultiLabelSoftMarginLoss(), "activated-twice", "error",
     "MultiLabelSoftMarginLoss applies the sigmoid itself"),
    (out(3, lambda z: z.log_softmax(1)), IDS, CE, "redundant-log-softmax", "note", "harmless"),
    (out(3, torch.relu), IDS, CE, "bounded-outputs", "warning", "remove the relu"),
    (out(3, torch.tanh), IDS, CE, "bounded-outputs", "warning", "near 1"),
    (out(1, torch.relu), YES[:, None], BCEL, "bounded-outputs", "warning", "below 0.5"),
    (out(3), IDS, nn.NLLLoss(), "not-log-probabilities", "error", "LogSoftmax(dim=1)"),
    (out(3, lambda z: z.softmax(1)), IDS, nn.NLLLoss(), "not-log-probabilities", "error",
     "gives probabilities"),
    (out(3), ROWS, nn.KLDivLoss(reduction="batchmean"), "not-log-probabilities", "error",
     "KLDivLoss needs log-probabilities"),
    (out(1), YES[:, None], BCE, "not-probabilities", "error", "BCEWithLogitsLoss"),
    (out(3, lambda z: z.softmax(0)), IDS, CE, "wrong-axis", "error", "samples of the batch"),
    (out(3, lambda z: z.log_softmax(0)), IDS, nn.NLLLoss(), "wrong-axis", "error", "Use dim=1"),
    (out(1), YES[:, None], CE, "one-output", "error", "always 0 and teaches nothing"),
    (out(1), YES.long(), CE, "one-output", "error", "targets.float().reshape(-1, 1)"),
    (out(3), IDS.float(), CE, "target-dtype", "error", "targets.long()"),
    (out(3), IDS.int(), CE, "target-dtype", "error", "int32"),
    (out(3), F.one_hot(IDS), CE, "target-dtype", "error", "targets.argmax(1)"),
    (out(3), IDS[:, None], CE, "target-shape", "error", "targets.squeeze(1)"),
    (out(3), torch.zeros(N, 4), CE, "target-shape", "error", "rows of 4 need as many"),
    (out(3), ROWS * 2, CE, "row-sums", "warning", "sum to 1"),
    (out(3), ROWS * 2 - 1, CE, "row-sums", "warning", "-1"),
    (out(1), YES, BCEL, "target-shape", "error", "targets.reshape(-1, 1)"),
    (out(1, lambda z: z[:, 0]), YES[:, None], BCEL, "target-shape", "error", "targets.reshape(-1)"),
    (out(3), IDS, BCEL, "target-shape", "error", "Class ids go with CrossEntropyLoss"),
    (out(1), YES.long()[:, None], BCEL, "target-dtype", "error", "targets.float()"),
    (out(1), 2 * YES[:, None] - 1, BCEL, "target-range", "error", "(targets + 1) / 2"),
    (out(1), 255 * YES[:, None], BCEL, "target-range", "error", "targets / 255"),
    (out(1), 1 + YES[:, None], BCEL, "target-range", "error", "targets - 1"),
    (out(3), ["cat"] * N, CE, "target-form", "error", "names.index"),
    (out(3), [0, 1, 2], CE, "target-form", "error", "torch.as_tensor(targets)"),
    ((out(3), None), IDS, CE, "output-form", "error", "out[0]"),
    ({"logits": out(3)}, IDS, CE, "output-form", "error", "out['logits']"),
    (out(3), IDS[:5], CE, "target-shape", "error", "6 inputs but 5 targets"),
    (out(3, lambda z: z[:3]), IDS, CE, "output-shape", "error", "for 6 targets"),
    (out(3), IDS, nn.CrossEntropyLoss(torch.ones(4)), "loss-weight", "error", "shape (4,)"),
]  # fmt: skip


@pytest.mark.parametrize(("outputs", "targets", "loss_fn", "code", "severity", "words"), CASES)
def test_it_names_what_does_not_fit(outputs, targets, loss_fn, code, severity, words):
    found = said(outputs, targets, loss_fn)
    assert [(c, s) for c, s, _ in found] == [(code, severity)]
    assert words in found[0][2]


@pytest.mark.parametrize(
    ("outputs", "targets", "loss_fn"),
    [
        (out(3), IDS, CE),
        (out(3), IDS.byte(), CE),
        (out(3), ROWS, CE),
        (out(3), ROWS * 0, CE),  # rows that count for nothing
        (out(3), ROWS, BCEL),
        (out(1), YES[:, None], BCEL),
        (out(1, torch.sigmoid), YES[:, None], BCE),
        (out(3, lambda z: z.log_softmax(1)), IDS, nn.NLLLoss()),
        (out(3, lambda z: z.softmax(1)), ROWS, nn.MSELoss()),
        (out(3, lambda z: z.softmax(1)), IDS, lambda outputs, targets: outputs.sum()),
        (out(3), IDS[:3], lambda outputs, targets: outputs.sum()),  # pairs, say
        (out(3, lambda z: z.softmax(0)), IDS[:, None], lambda outputs, targets: outputs.sum()),
        (out(3)[0], IDS[0], CE),  # one sample alone, as torch takes it
        (out(3, F.logsigmoid), IDS, CE),  # sums of log-probabilities may be meant
        (out(3, lambda z: z.clamp(max=0)), IDS, nn.NLLLoss()),
        (out(1, lambda z: (z / 9 + 0.5).clamp(0.01, 0.99)), YES[:, None], BCE),
        (out(3, lambda z: z[:0].softmax(1)), ROWS[:0], nn.L1Loss(reduction="sum")),
        (out(3), ROWS.log() - ROWS.log(), CE),  # NaN: the loss says it
    ],
)
def test_it_has_nothing_to_say_about_what_fits(outputs, targets, loss_fn):
    assert said(outputs, targets, loss_fn) == []


@pytest.mark.parametrize(
    ("form", "called"),
    [
        (nn.CrossEntropyLoss(), "CrossEntropyLoss"),
        (F.cross_entropy, "cross_entropy"),
        (tc.cross_entropy, "cross_entropy"),
        (functools.partial(F.cross_entropy, reduction="sum"), "cross_entropy"),
    ],
)
def test_it_calls_the_loss_as_the_user_does(form, called):
    ((code, _, message),) = said(out(3, lambda z: z.softmax(1)), IDS, form)
    assert code == "activated-twice"
    assert f" {called} applies" in message


@pytest.mark.parametrize(
    ("ids", "ignore_index", "words"),
    [
        ([1, 2, 3], -100, "from 1 to 3, but 3 outputs mean class ids 0 to 2. Subtract 1"),
        ([0, -1, 2], -100, "ignore_index=-1"),
        ([0, 255, 2], -100, "ignore_index=255"),
        ([0, 1, 5], -100, "6 outputs"),
        ([-3, 7, 0], -100, "Number the classes from 0"),
        ([0, 1, 2], -100, None),
        ([0, 255, 2], 255, None),
        ([-100, -100, -100], -100, None),
        ([], -100, None),
    ],
)
def test_class_ids_must_lie_in_their_range(ids, ignore_index, words):
    found = list(class_range(torch.tensor(ids, dtype=torch.int64), 3, ignore_index))
    assert len(found) == (words is not None)
    if words:
        assert words in found[0].message


@pytest.mark.parametrize(
    ("loss_fn", "words"),
    [
        (nn.CrossEntropyLoss(label_smoothing=10), "Write 0.1 for 10 %"),
        (nn.CrossEntropyLoss(label_smoothing=-0.1), "must lie in [0, 1], got -0.1"),
        (nn.CrossEntropyLoss(torch.tensor([1.0, -1.0])), "not below 0, got -1"),
        (nn.CrossEntropyLoss(torch.tensor([1.0, float("nan")])), "finite"),
        (nn.CrossEntropyLoss(torch.zeros(2)), "0 everywhere"),
        (nn.BCEWithLogitsLoss(pos_weight=torch.tensor([-2.0])), "pos_weight"),
        (nn.CrossEntropyLoss(torch.tensor([0.0, 1.0]), label_smoothing=1.0), None),
        (nn.L1Loss(), None),
    ],
)
def test_options_of_a_loss_must_make_sense(loss_fn, words):
    found = list(options_of(loss_fn))
    assert len(found) == (words is not None)
    if words:
        assert words in found[0].message


def test_classes_in_the_last_axis_are_found_also_where_the_lengths_agree():
    features = torch.randn(5, 3, 4)
    outputs = LAYERS[3](features)  # (5, 3, 3): positions, then classes
    ((code, severity, message),) = said(outputs, torch.zeros(5, 3).long(), CE, features)
    assert (code, severity) == ("wrong-axis", "note")
    assert "outputs.movedim(-1, 1)" in message
    ((code, *_),) = said(LAYERS[4](features), torch.zeros(5, 3).long(), CE, features)
    assert code == "wrong-axis"
    assert said(outputs.movedim(-1, 1), torch.zeros(5, 3).long(), CE, features) == []


class Output:
    """What models of other libraries return."""

    def __init__(self, logits):
        self.logits = logits


def maps(k, side=2):
    return nn.Conv2d(1, k, 1)(torch.randn(N, 1, side, side))


MASK = torch.tensor([0, 255, 0, 255, 255, 0], dtype=torch.uint8)
REST = [
    (IDS, IDS, CE, "output-form", "whole numbers"),
    (Output(out(3)), IDS, CE, "output-form", "getattr(out := model(inputs), 'logits', out)"),
    (None, IDS, CE, "output-form", "gives None"),
    (out(3), {"ids": IDS}, CE, "target-form", "got (6,) int64"),
    (out(3), None, CE, "target-form", "got None"),
    (out(3), "cat", CE, "target-form", "names.index"),
    (out(3), IDS + 0.5, CE, "target-dtype", "no class ids"),
    (out(3, lambda z: z.log_softmax(1)), ROWS, nn.NLLLoss(), "target-dtype", "takes rows"),
    (out(3), torch.ones(N, 3).long(), CE, "target-dtype", "multi-hot"),
    (out(1, lambda z: z[:, 0]), YES, CE, "one-output", "classes of one sample"),
    (out(1), YES.long(), nn.NLLLoss(), "one-output", "one class alone"),
    (maps(3), IDS, CE, "target-shape", "nn.AdaptiveAvgPool2d(1)"),
    (out(2), MASK.long(), CE, "target-range", "targets // 255"),
    (out(3), IDS, nn.CrossEntropyLoss(torch.ones(3).double()), "loss-weight", "weight.float()"),
    (out(3), IDS, nn.CrossEntropyLoss(torch.ones(3).long()), "loss-weight",
     "must be float32 as the outputs are, got int64"),
    (out(1), YES[:, None], nn.BCEWithLogitsLoss(pos_weight=torch.ones(2)), "loss-weight",
     "Give one number for each output"),
    (maps(1), torch.zeros(N, 2, 2), BCEL, "target-shape", "targets.reshape(-1, 1, 2, 2)"),
    (out(3), YES[:, None], BCEL, "target-shape", "give the last layer one output"),
    (out(4), torch.zeros(N, 2, 2), BCEL, "target-shape", "targets.reshape(-1, 4)"),
    (out(4), torch.zeros(N, 3), BCEL, "target-shape", "one output for each number"),
    (out(1), MASK[:, None], BCEL, "target-dtype", "targets.float() / 255"),
    (out(1), IDS.float()[:, None], BCEL, "target-range", "Class ids go with CrossEntropyLoss"),
    (out(1), IDS[:, None] * 1.5 - 2.2, BCEL, "target-range", "Scale them"),
    (out(1, lambda z: z.softmax(1)), YES[:, None], nn.MSELoss(), "one-output", "always 1"),
    (out(1, lambda z: 2 + z * z.sigmoid()), YES[:, None], BCE, "not-probabilities", "are none"),
    (out(3, lambda z: 2 + z * z.sigmoid()), IDS, nn.NLLLoss(), "not-log-probabilities",
     "never above 0"),
    (out(1, lambda z: (9 * z).clamp(0, 1)), YES[:, None], BCE, "not-probabilities", "clamps"),
    (out(1, lambda z: (9 * z).clamp(-2, 2)), YES[:, None], BCE, "not-probabilities", "are none"),
    (out(1, torch.relu), YES[:, None], BCE, "not-probabilities", "comes out of a relu"),
    (out(3, lambda z: (9 * z).clamp(-2, 2)), IDS, nn.NLLLoss(), "not-log-probabilities",
     "never above 0"),
    (out(3), torch.zeros(N, 4), functools.partial(F.l1_loss, reduction="sum"), "target-shape",
     "l1_loss compares number with number"),
    (out(3, lambda z: z.log_softmax(1)), F.one_hot(IDS), nn.NLLLoss(), "target-dtype",
     "are int64. Use targets.argmax(1)."),
    (maps(1), IDS, CE, "target-shape", "nn.AdaptiveAvgPool2d(1)"),
    (maps(3), torch.zeros(N, 5, 5).long(), CE, "target-shape",
     "needs (6, 2, 2) as class ids, or (6, 3, 2, 2) as rows of probabilities."),
]  # fmt: skip


@pytest.mark.parametrize(("outputs", "targets", "loss_fn", "code", "words"), REST)
def test_it_names_the_fix_of_rarer_mistakes_too(outputs, targets, loss_fn, code, words):
    found = said(outputs, targets, loss_fn)
    assert [c for c, *_ in found] == [code]
    assert words in found[0][2]


# --- on an accelerator: tensors on the meta device have no values that anybody could read ------

META = torch.empty(N, 4, device="meta")
META_IDS = torch.empty(N, dtype=torch.int64, device="meta")
META_ROWS = torch.empty(N, 3, device="meta")


def far(function=lambda z: z, k=3):
    return function(nn.Linear(4, k, device="meta")(META))


@pytest.mark.parametrize(
    ("outputs", "targets", "loss_fn", "code", "words"),
    [
        (far(lambda z: z.softmax(1)), META_IDS, CE, "activated-twice", "below 0.551 for 3"),
        (far(), META_IDS.float(), CE, "target-dtype", "are float32, but CrossEntropyLoss needs "
         "class ids as int64. Use targets.long()."),
        (far(), META_ROWS.long(), CE, "target-dtype", "one-hot"),
        (far(), META_ROWS, BCE, "not-probabilities", "the model gives raw scores. Use"),
        (far(), META_ROWS.byte(), BCEL, "target-dtype", "Use targets.float()."),
        (far(), META_IDS, nn.NLLLoss(), "not-log-probabilities", "gives raw scores, so the loss"),
    ],
)  # fmt: skip
def test_on_an_accelerator_shapes_and_the_graph_say_it_and_no_value_is_read(
    outputs, targets, loss_fn, code, words
):
    ((found, _, message),) = said(outputs, targets, loss_fn, META)
    assert found == code
    assert words in message


@pytest.mark.parametrize(
    ("outputs", "targets", "loss_fn"),
    [
        (far(), META_IDS, CE),
        (far(), META_ROWS, CE),
        (far(), META_ROWS, BCEL),
        (far(lambda z: z * z.sigmoid()), META_ROWS, BCE),
        (far(lambda z: z.clamp(0, 1)), META_ROWS, BCE),
    ],
)
def test_on_an_accelerator_it_is_silent_about_values(outputs, targets, loss_fn):
    assert said(outputs, targets, loss_fn, META) == []


def test_ids_of_bytes_are_left_alone_for_samples_and_named_for_maps():
    """What torch takes: bytes for each sample, and int64 alone where there are more axes."""
    masks = torch.zeros(N, 2, 2, dtype=torch.uint8)  # as PIL reads them
    assert said(out(3), IDS.byte(), CE) == []
    F.cross_entropy(out(3), IDS.byte())
    for loss_fn in (CE, nn.NLLLoss()):
        outputs = maps(3) if loss_fn is CE else maps(3).log_softmax(1)
        ((code, severity, message),) = said(outputs, masks, loss_fn)
        assert (code, severity) == ("target-dtype", "error")
        assert "The targets are uint8" in message
        assert "Use targets.long()" in message
        with pytest.raises(RuntimeError):
            loss_fn(outputs, masks)
        loss_fn(outputs, masks.long())


TARGET_DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


LOSSES = [
    "BCELoss",
    "BCEWithLogitsLoss",
    "HuberLoss",
    "SmoothL1Loss",
    "MSELoss",
    "CrossEntropyLoss",
    "NLLLoss",
]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("loss_name", LOSSES)
def test_a_dtype_that_torch_refuses_is_an_error_and_no_other(dtype, loss_name):
    if loss_name == "MSELoss" and IS_OLD_TORCH:
        pytest.skip("torch refuses other pairs of dtypes")
    by_class = loss_name in ("CrossEntropyLoss", "NLLLoss")  # the weight's, or the targets'
    activation = {"BCELoss": torch.sigmoid, "NLLLoss": lambda z: z.log_softmax(1)}.get(loss_name)
    for other in TARGET_DTYPES:
        outputs = copy.deepcopy(LAYERS[3]).to(dtype)(X.to(dtype))
        outputs = outputs if activation is None else activation(outputs)
        weight = {"weight": torch.ones(3, dtype=other)} if by_class else {}
        loss_fn = getattr(nn, loss_name)(**weight)
        targets = IDS if by_class else ROWS.to(other)
        found = [f for f in said(outputs, targets, loss_fn) if f[1] == "error"]
        try:
            loss_fn(outputs, targets).backward()
        except RuntimeError:
            ((code, _, message),) = found
            assert code == ("loss-weight" if by_class else "target-dtype")
            for fix in re.findall(r"(?:targets|weight)\.(?:to|float)\([\w.]*\)", message):
                fixed = eval(fix, {"torch": torch, "targets": targets, **weight})
                assert fixed.dtype == dtype
        else:
            assert found == []


def test_weights_beside_rows_and_under_autocast_are_cast_by_torch():
    weighted = nn.CrossEntropyLoss(torch.ones(3, dtype=torch.float64))
    assert said(out(3), ROWS, weighted) == []
    with torch.autocast("cpu"):
        assert said(LAYERS[3](X), IDS, nn.CrossEntropyLoss(torch.ones(3))) == []


def test_arrays_where_the_model_needs_tensors_are_named():
    with pytest.raises(tc.ContractError, match=r"torch\.as_tensor\(inputs, dtype=torch\.float32\)"):
        tc.fit(LAYERS[3], [(X.numpy(), IDS)], loss_fn=CE, epochs=1, progress=False)


def test_a_list_ranked_as_a_whole_is_one_sample():
    scores = out(1)[:, 0]
    assert said(scores, torch.rand(N).softmax(0), CE) == []
    assert said(scores, YES, CE)[0][0] == "one-output"


def test_log_probabilities_that_are_weighted_are_a_note():
    advantage = torch.tensor([[1.0], [-2], [3], [-4], [5], [-6]])
    weighted = out(3, lambda z: z.log_softmax(1) * advantage)
    assert said(weighted, IDS, nn.NLLLoss())[0][:2] == ("not-log-probabilities", "note")
    assert said(out(3, lambda z: z.exp() * advantage), IDS, nn.NLLLoss())[0][1] == "warning"


class Several(nn.Module):
    """Two heads in training, one in evaluation."""

    def __init__(self, form):
        super().__init__()
        self.head, self.other, self.form = nn.Linear(4, 3), nn.Linear(4, 3), form

    def forward(self, x):
        logits = self.head(x)
        return self.form(logits, self.other(x)) if self.training else logits


FORMS = {
    "a tuple": lambda logits, other: (logits, other),
    "a list": lambda logits, other: [logits, other],
    "a named tuple": collections.namedtuple("Outputs", "logits other"),
    "a dict": lambda logits, other: {"other": other, "logits": logits},
    "an object": lambda logits, other: types.SimpleNamespace(logits=logits, other=other),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_line_that_picks_one_of_several_outputs_keeps_the_loss_and_works_in_validation(form):
    criterion = nn.CrossEntropyLoss(
        torch.tensor([1.0, 2, 9]), ignore_index=255, label_smoothing=0.1
    )
    targets = torch.tensor([0, 1, 2, 0, 1, 255])
    model = Several(FORMS[form])
    with pytest.raises(tc.ContractError) as refused:
        tc.fit(model, [(X, targets)], loss_fn=criterion, epochs=1, progress=False)
    line = re.search(r"forward=(lambda .*)\. \[output-form\]", str(refused.value))[1]
    expected = criterion(model.head(X), targets).item()
    history = tc.fit(
        model,
        [(X, targets)],
        [(X, targets)],
        loss_fn=criterion,
        metrics=[functools.partial(tc.accuracy, ignore_index=255)],  # it gets the one, too
        forward=eval(line),
        epochs=1,
        device="cpu",
        ignore=["valid-is-train"],
        progress=False,
    )
    assert history[0].train_loss == pytest.approx(expected, rel=1e-6)
    after = criterion(model.eval()(X), targets).item()
    assert history[0].valid_loss == pytest.approx(after, rel=1e-6)
