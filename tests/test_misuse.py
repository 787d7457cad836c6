"""What torchcls says about each case of the table in ``misuse``, and where it is silent."""

import copy
import warnings

import pytest
import torch
from misuse import CASES, FILE_CASES, Case

import torchcls as tc


def of_kind(*severities):
    found = [case for case in CASES if (case.says[1] if case.says else None) in severities]
    return pytest.mark.parametrize(
        "case", found, ids=[f"{case.code} {case.title}" for case in found]
    )


def fit(case: Case, epochs: int = 2, **keywords):
    """A run of some epochs; the model is there to be looked at afterwards."""
    torch.manual_seed(0)  # whatever ran before
    made = case.make()
    start = copy.deepcopy(made.model.state_dict())
    with warnings.catch_warnings(record=True) as seen, torch.random.fork_rng([]):
        warnings.simplefilter("always")
        torch.manual_seed(0)  # of Dropout, whatever ran before
        error = history = None
        try:
            history = tc.fit(
                made.model,
                made.train,
                made.valid,
                loss_fn=made.loss_fn,
                metrics=made.metrics,
                optimizer=made.optimizer,
                epochs=epochs,
                progress=False,
                device="cpu",
                **keywords,
            )
        except Exception as raised:  # of torch, where nobody looks
            error = raised
    return made.model, start, history, error, [str(w.message) for w in seen]


def are_same(one, other):
    return all(
        torch.equal(one[name], other[name])
        for name in one
        if "running" not in name and "num_batches" not in name
    )


@of_kind("error")
def test_an_error_stops_the_run_before_the_weights_move_and_names_the_fix(case):
    model, start, history, error, _ = fit(case)
    assert history is None
    assert type(error) is (case.raises or tc.ContractError)
    if case.raises is None:
        assert case.says[0] in [finding.code for finding in error.findings]
    for word in case.words:
        assert word in str(error)
    assert are_same(model.state_dict(), start)


@of_kind("warning")
def test_a_doubt_is_said_once_and_the_run_goes_on(case):
    _, _, history, error, said = fit(case)
    assert error is None
    assert len(history) == 2
    assert len(said) == 1
    assert f"[{case.says[0]}]" in said[0]
    for word in case.words:
        assert word in said[0]


@of_kind("note")
def test_a_note_is_kept_and_nothing_is_said(case):
    _, _, history, error, said = fit(case)
    assert error is None
    assert said == []
    assert [finding.code for finding in history.findings] == [case.says[0]]
    for word in case.words:
        assert word in history.findings[0].message


@of_kind(None)
def test_what_is_right_meets_silence_and_trains(case):
    _, _, history, error, said = fit(case, epochs=8)
    assert error is None
    assert said == []
    assert history.findings == []
    losses = [record.train_loss for record in history]
    assert all(loss == loss and loss < float("inf") for loss in losses)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    "case",
    [case for case in CASES if case.says and not case.raises],
    ids=lambda case: f"{case.code} {case.title}",
)
def test_its_code_can_be_ignored(case):
    *_, error, said = fit(case, ignore=[case.says[0]])
    if isinstance(error, tc.ContractError):
        assert case.says[0] not in [finding.code for finding in error.findings]
    assert not any(f"[{case.says[0]}]" in text for text in said)


@of_kind("error")
def test_with_warn_it_is_said_and_off_says_nothing(case):
    if case.raises is not None:
        pytest.skip("an argument of the wrong kind is no finding")
    *_, said = fit(case, check="warn")
    assert any(f"[{case.says[0]}]" in text for text in said)
    *_, error, said = fit(case, check="off")
    assert not isinstance(error, tc.ContractError)
    assert not any("[" in text and text.endswith("]") for text in said)


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.in_batch], ids=lambda c: f"{c.code} {c.title}"
)
def test_check_says_the_same_of_one_batch_and_leaves_no_trace(case):
    made = case.make()
    batch = next(iter(made.train))
    before = copy.deepcopy(made.model.state_dict())
    state = torch.get_rng_state()
    found = tc.check(made.model, batch, made.loss_fn, made.metrics, made.optimizer)
    if case.says is None:
        assert found == []
    else:
        assert case.says in [(finding.code, finding.severity) for finding in found]
        finding = next(f for f in found if f.code == case.says[0])
        for word in case.words:
            if "epoch" not in word:
                assert word in finding.message
    for name, value in made.model.state_dict().items():
        assert torch.equal(value.nan_to_num(), before[name].nan_to_num()), name
    assert all(p.grad is None for p in made.model.parameters())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("case", FILE_CASES, ids=lambda case: f"{case.code} {case.title}")
def test_a_file_that_is_wrong_is_named_with_the_fix(case, tmp_path):
    if case.words is None:
        case.act(tmp_path)
        return
    with pytest.raises((ValueError, OSError)) as refused:
        case.act(tmp_path)
    for word in case.words:
        assert word in str(refused.value)
