"""Findings: codes, severities, and what is done about them."""

import pickle
import re
import warnings
from pathlib import Path

import pytest

import torchcls as tc
from torchcls.preflight.findings import CODES, act_on, error, note, warning

FOUND = [error("one-output", "It is wrong."), warning("row-sums", "It is odd."),
         note("one-class", "So it is.")]  # fmt: skip


def test_every_code_is_used_and_every_code_that_is_used_is_listed():
    listed = [code for codes in CODES.values() for code in codes]
    assert len(listed) == len(set(listed))
    package = Path(tc.__file__).parent / "preflight"
    sources = "".join(file.read_text("utf-8") for file in package.glob("*.py")
                      if file.name != "findings.py")  # fmt: skip
    assert [code for code in listed if f'"{code}"' not in sources] == []
    used = re.findall(r'(?:error|warning|note|_failed)\(\s*"([a-z-]+)"', sources)
    assert set(used) <= set(listed)


def test_errors_raise_and_doubts_are_said():
    odd = pytest.warns(UserWarning, match=r"It is odd. \[row-sums\]")
    with odd, pytest.raises(tc.ContractError) as stopped:
        act_on(FOUND, "error", ())
    assert str(stopped.value) == "It is wrong. [one-output]"
    assert stopped.value.findings == (FOUND[0],)
    assert isinstance(stopped.value, ValueError)


def test_warn_says_both_and_keeps_all():
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert act_on(FOUND, "warn", ()) == FOUND
    assert [str(w.message) for w in said] == [str(finding) for finding in FOUND[:2]]


def test_off_says_nothing_and_ignored_codes_are_left_out():
    assert act_on(FOUND, "off", ()) == []
    assert act_on(FOUND, "error", ["one-output", "row-sums"]) == FOUND[2:]


def test_a_contract_error_crosses_to_another_process():
    failure = pickle.loads(pickle.dumps(tc.ContractError(FOUND)))
    assert failure.findings == tuple(FOUND)
    assert str(failure) == "\n".join(map(str, FOUND))
