"""What `check` found: one sentence each, with its numbers and how bad it is."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from lit_pref.commands.check.rendering import RenderedPair

Severity = Literal["stop", "warning", "note", "ok"]
SEVERITIES: tuple[Severity, ...] = ("stop", "warning", "note", "ok")
"""The worst first. A `stop` ends the command with exit code 1; a `warning` should be understood before a run."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Args:
        topic: names it, the same in every version.
        severity: how bad it is.
        says: one sentence for a person.
        split: "train" or "val", or "" where it is of the whole run.
        source: of the pairs, or "" where it is of all of them.
        numbers: what the sentence rests on.

    >>> Finding("ties", "ok", "train: 3 ties", "train", numbers={"ties": 3, "share": float("nan")}).to_json()["numbers"]
    {'ties': 3, 'share': None}
    """

    topic: str
    severity: Severity
    says: str
    split: str = ""
    source: str = ""
    numbers: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain values; a number that is not finite is null."""
        return {name: plain(value) for name, value in vars(self).items()}


@dataclass
class Arrays:
    """What the figures of one split are drawn from, one value a pair."""

    margin: NDArray[np.float64]
    lengths: NDArray[np.int32]  # (pairs, 3): prompt, chosen, rejected


@dataclass
class Report:
    """All findings of one configuration.

    Args:
        title: what was checked.
    """

    title: str
    findings: list[Finding] = field(default_factory=list)
    rendered: list["RenderedPair"] = field(default_factory=list)
    arrays: dict[str, Arrays] = field(default_factory=dict)

    @property
    def counts(self) -> dict[Severity, int]:
        """How many findings there are of each severity, the worst first."""
        counted = Counter(finding.severity for finding in self.findings)
        return {severity: counted[severity] for severity in SEVERITIES}

    @property
    def verdict(self) -> Severity:
        """The worst severity of all."""
        return next((severity for severity, count in self.counts.items() if count), "ok")

    def of(self, severity: Severity) -> list[Finding]:
        return [finding for finding in self.findings if finding.severity == severity]

    def about(self, topic: str, split: str | None = None) -> list[Finding]:
        return [f for f in self.findings if f.topic == topic and split in (None, f.split)]

    def to_json(self) -> dict[str, Any]:
        """For machines. `topic`, `split` and `source` name a finding; they and the keys of `numbers` stay as they are.

        {"format": 1, "checked": TEXT, "verdict": SEVERITY, "counts": {SEVERITY: N}, "findings": [
            {"topic": NAME, "split": "train"|"val"|"", "source": NAME|"", "severity": SEVERITY, "says": TEXT,
             "numbers": {...}}],
         "pairs": [{"id": ID, "place": "file:line", "margin": NUMBER|null, "chosen": [[KIND, TEXT]], "rejected": ...}]}

        Shares are in [0, 1], lengths in tokens, scores in nats, memory in bytes; what is not finite is null.
        """
        return {
            "format": 1,
            "checked": self.title,
            "verdict": self.verdict,
            "counts": self.counts,
            "findings": [finding.to_json() for finding in self.findings],
            "pairs": [plain(vars(pair)) for pair in self.rendered],
        }


def plain(value: Any) -> Any:
    """A value as JSON has it: no numpy, no infinity."""
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def percent(share: float) -> str:
    """A share for a person.

    >>> percent(0.773), percent(0.0004), percent(0.0), percent(1.0), percent(0.99996)
    ('77.3 %', '0.04 %', '0 %', '100 %', '99.996 %')
    """
    for digits in (1, 2, 3):
        text = f"{100 * share:.{digits}f}"
        if share in (0.0, 1.0):
            return f"{round(100 * share)} %"
        if float(text) not in (0.0, 100.0):
            return f"{text} %"
    return f"{100 * share:.1g} %" if share < 0.5 else "over 99.999 %"
