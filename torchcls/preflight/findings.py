"""What a check answers: findings with a code, a severity and a sentence that names the fix."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Literal

from torchcls.warn import warn

Severity = Literal["error", "warning", "note"]
Check = Literal["error", "warn", "off"]

# By what they look at. Codes are stable: people write them into `ignore`.
CODES = {
    about: tuple(codes.split())
    for about, codes in {
        "head and loss": """activated-twice bounded-outputs not-log-probabilities not-probabilities
            one-output output-form output-shape outputs-without-graph redundant-log-softmax
            wrong-axis""",
        "targets": """all-ignored row-sums shifted-targets target-dtype target-form target-range
            target-shape""",
        "loss": """averaged-by-samples label-smoothing loss-broadcasts loss-fails loss-parameters
            loss-weight loss-without-graph swapped-arguments""",
        "metrics": """metric-broadcasts metric-ignore-index metric-ignores-outputs
            metric-of-another-row metric-refuses metric-threshold""",
        "model and optimizer": """all-frozen batch-statistics forward-fails learning-rate maximize
            no-gradient nothing-moves optimizer-misses optimizer-of-another-model optimizer-part
            trains-in-evaluation unheld-parameters""",
        "data": """batch-form class-tables idle-processes input-dtype input-shape last-batch
            one-class one-input repeated-batches scale-differs shape-differs sorted-targets
            unscaled-inputs valid-drops-samples valid-is-train valid-overlaps""",
        "numbers": "non-finite-gradient non-finite-loss non-finite-valid-loss",
        "validation": "valid-fails",
    }.items()
}


@dataclass(frozen=True)
class Finding:
    """One thing that a check has to say.

    Attributes:
        code: A stable name, to be written into ``ignore``.
        severity: "error": certainly wrong. "warning": almost certainly not what was meant. "note":
            worth knowing, and often meant; ``fit`` keeps it in ``history.findings`` alone.
        message: What is wrong, what was seen, and the fix.
    """

    code: str
    severity: Severity
    message: str

    def __str__(self) -> str:
        return f"{self.message} [{self.code}]"


class ContractError(ValueError):
    """Model, loss, targets, metrics, optimizer or data do not fit each other.

    Attributes:
        findings: The findings behind it, all of severity "error".
    """

    def __init__(self, findings: Iterable[Finding]) -> None:
        self.findings = tuple(findings)
        super().__init__("\n".join(map(str, self.findings)))

    def __reduce__(self) -> tuple[type["ContractError"], tuple[tuple[Finding, ...]]]:
        return type(self), (self.findings,)  # so that it may cross to another process


def error(code: str, message: str) -> Finding:
    """What is certainly wrong."""
    return Finding(code, "error", message)


def warning(code: str, message: str) -> Finding:
    """What is almost certainly not meant."""
    return Finding(code, "warning", message)


def note(code: str, message: str) -> Finding:
    """What is worth knowing."""
    return Finding(code, "note", message)


def check_choice(check: str, ignore: Collection[str]) -> None:
    """Check the arguments ``check`` and ``ignore`` of a run."""
    if check not in ("error", "warn", "off"):
        raise ValueError(f"check must be 'error', 'warn' or 'off', got {check!r}.")
    if isinstance(ignore, str):
        raise TypeError(f"ignore must be a list of codes, got {ignore!r}. Write [{ignore!r}].")
    known = [code for codes in CODES.values() for code in codes]
    for code in ignore:
        if code not in known:
            raise ValueError(
                f"ignore must hold codes of findings, got {code!r}. There are: {', '.join(known)}."
            )


def act_on(
    findings: Iterable[Finding], check: Check, ignore: Collection[str], *, is_heard: bool = True
) -> list[Finding]:
    """Raise for errors and warn of doubts, as ``check`` says; returns what was not ignored.

    Of several processes only the first ``is_heard``: the others do not warn.
    """
    kept = [finding for finding in findings if finding.code not in ignore]
    if check == "off":
        return []
    errors = [finding for finding in kept if finding.severity == "error"]
    doubts = [finding for finding in kept if finding.severity == "warning"]
    doubts = [*errors, *doubts] if check == "warn" else doubts
    for finding in doubts if is_heard else ():
        warn(str(finding))
    if errors and check == "error":
        raise ContractError(errors)
    return kept
