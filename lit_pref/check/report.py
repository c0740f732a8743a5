"""The findings of `check`: one sentence each, with its numbers and severity, and the report that collects them."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lit_pref.check.rendering import PairPieces
from lit_pref.pages.html import plain

Severity = Literal["stop", "warning", "note", "ok"]
SEVERITIES: tuple[Severity, ...] = ("stop", "warning", "note", "ok")
"""The worst first. A `stop` ends the command with exit code 1; a `warning` should be understood before a run."""


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Args:
        topic: the name of the check; it stays the same across versions.
        severity: how serious the result is.
        says: one sentence for the user.
        split: "train" or "val", or "" for the whole run.
        source: the source of the pairs, or "" for all sources.
        numbers: the values behind the sentence.

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
        """The finding as plain values; a number that is not finite becomes null."""
        return {name: plain(value) for name, value in vars(self).items()}


@dataclass
class Arrays:
    """The margins and lengths of one split, from which its figures are drawn; one value per pair."""

    margin: NDArray[np.float64]
    lengths: NDArray[np.int32]  # (pairs, 3): prompt, chosen, rejected


@dataclass
class Report:
    """All findings for one configuration.

    Args:
        title: the command and its configuration files.
        findings: the results, in the order of the checks.
        rendered: a few pairs as the policy reads them.
        arrays: the data of the figures, by split.
    """

    title: str
    findings: list[Finding] = field(default_factory=list)
    rendered: list[PairPieces] = field(default_factory=list)
    arrays: dict[str, Arrays] = field(default_factory=dict)

    @property
    def counts(self) -> dict[Severity, int]:
        """The number of findings of each severity, the worst first."""
        counted = Counter(finding.severity for finding in self.findings)
        return {severity: counted[severity] for severity in SEVERITIES}

    @property
    def verdict(self) -> Severity:
        """The worst severity among the findings."""
        return next((severity for severity, count in self.counts.items() if count), "ok")

    def of(self, severity: Severity) -> list[Finding]:
        return [finding for finding in self.findings if finding.severity == severity]

    def about(self, topic: str, split: str | None = None) -> list[Finding]:
        return [f for f in self.findings if f.topic == topic and split in (None, f.split)]

    def to_json(self) -> dict[str, Any]:
        """The report as plain values, for `--json`.

        {"format": 1, "checked": TEXT, "verdict": SEVERITY, "counts": {SEVERITY: N}, "findings": [
            {"topic": NAME, "split": "train"|"val"|"", "source": NAME|"", "severity": SEVERITY, "says": TEXT,
             "numbers": {...}}],
         "pairs": [{"id": ID, "place": "file:line", "margin": NUMBER|null, "chosen": [[KIND, TEXT]], "rejected": ...}]}

        `topic`, `split` and `source` identify a finding; they and the keys of `numbers` are stable across versions.
        Shares are in [0, 1], lengths in tokens, scores in nats, memory in bytes. Numbers that are not finite are null.
        """
        return {
            "format": 1,
            "checked": self.title,
            "verdict": self.verdict,
            "counts": self.counts,
            "findings": [finding.to_json() for finding in self.findings],
            "pairs": [plain(vars(pair)) for pair in self.rendered],
        }
