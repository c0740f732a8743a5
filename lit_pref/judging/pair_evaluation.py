"""The evaluation of a judge on pairs, with one record per pair, and the comparison of two judges."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from lit_pref.errors import UserError
from lit_pref.judging.accuracy_tables import AccuracyGroup, accuracy_by, accuracy_by_quantile
from lit_pref.judging.calibration import BINS, Calibration, agreement, calibration, cross_entropy, entropy, sigmoid
from lit_pref.judging.comparison import (
    Array,
    Comparison,
    Interval,
    PromptBootstrap,
    Statistic,
    compare,
    matched,
    mean_of,
)
from lit_pref.judging.rank_correlation import kendall_of, spearman_of
from lit_pref.metrics.records import Records
from lit_pref.pages.html import plain

GROUPS = 5
"""Number of groups of margins and of length differences."""


@dataclass(frozen=True)
class JudgedPair:
    """A pair with the scores of a judge.

    `label` is the probability or share of votes that chosen is better, 1 for a pair without votes. `margin` is given by
    the data, if at all. `file` and `line` are where the pair was read.
    """

    id: str
    prompt: str
    chosen: str
    rejected: str
    chosen_score: float
    rejected_score: float
    label: float = 1.0
    margin: float | None = None
    source: str | None = None
    file: str = ""
    line: int = 0

    @property
    def z(self) -> float:
        """Score of chosen - score of rejected."""
        return self.chosen_score - self.rejected_score

    @property
    def longer_by(self) -> int:
        """Characters of chosen - characters of rejected."""
        return len(self.chosen) - len(self.rejected)


@dataclass(frozen=True)
class PairEvaluation:
    """The numbers of a judge on pairs; intervals are over prompts.

    `by_margin`, `by_source` and `by_length` are accuracies of groups of pairs; a table is empty if the pairs have no
    margins, or one source. `spearman` and `kendall` correlate z with the given margins (signed: a margin is that of
    chosen over rejected), None without margins. `reliability` has groups of about equal count by confidence.
    """

    calibration: Calibration
    by_margin: list[AccuracyGroup]
    by_source: list[AccuracyGroup]
    by_length: list[AccuracyGroup]
    reliability: list[AccuracyGroup]
    spearman: Interval | None
    kendall: Interval | None

    def to_json(self) -> dict[str, Any]:
        """The numbers as plain values; numbers that are not finite are null, an interval is [value, low, high]."""
        numbers: dict[str, Any] = plain(asdict(self))
        return numbers


def evaluate_pairs(pairs: Sequence[JudgedPair], votes: float = 1, bins: int = BINS) -> PairEvaluation:
    """Return the numbers of a judge on pairs.

    Args:
        pairs: with finite scores; at least one.
        votes: the number of votes behind a label (`calibration.calibration`).
        bins: number of bins of the confidence.
    """
    prompts = [pair.prompt for pair in pairs]
    z, label = (np.array([getattr(pair, name) for pair in pairs], dtype=np.float64) for name in ("z", "label"))
    right, confidence = agreement(z, label), sigmoid(np.abs(z))
    margin = np.array([math.nan if pair.margin is None else pair.margin for pair in pairs])
    longer = np.array([float(pair.longer_by) for pair in pairs])
    sources = [pair.source for pair in pairs]
    known = ~np.isnan(margin)
    correlations: list[Interval | None] = [None, None]
    if known.sum() > 1:
        bootstrap = PromptBootstrap([prompt for prompt, has in zip(prompts, known, strict=True) if has])
        fewer = PromptBootstrap([prompt for prompt, has in zip(prompts, known, strict=True) if has], resamples=500)
        correlations = [
            bootstrap.interval(spearman_of(z[known], margin[known])),
            fewer.interval(kendall_of(z[known], margin[known])),
        ]
    agrees = np.where(z == 0, 0.5, np.where(z > 0, label, 1 - label))
    return PairEvaluation(
        calibration(z, label, prompts, votes, bins),
        accuracy_by_quantile(margin, GROUPS, right, confidence, prompts) if known.any() else [],
        accuracy_by(sources, right, confidence, prompts) if len(set(sources)) > 1 else [],
        accuracy_by_quantile(longer, GROUPS, right, confidence, prompts),
        accuracy_by_quantile(confidence, bins, agrees, confidence, prompts),
        *correlations,
    )


def losses(pairs: Sequence[JudgedPair]) -> Array:
    """Return the log-loss of each pair above the smallest possible one: KL(label || sigmoid(z)), in nats."""
    z, label = (np.array([getattr(pair, name) for pair in pairs], dtype=np.float64) for name in ("z", "label"))
    return cross_entropy(z, label) - entropy(label)


def records_of(pairs: Sequence[JudgedPair]) -> Records:
    """Return one record per pair, for `metrics.records.write_parquet`, with its texts, scores and loss.

    `loss` is the log-loss in nats, `excess_loss` that above the entropy of the label; `agreement` is 1, 1/2 or 0, None
    for a label of 1/2.
    """
    z, label = (np.array([getattr(pair, name) for pair in pairs], dtype=np.float64) for name in ("z", "label"))
    names = ("id", "file", "line", "source", "prompt", "chosen", "rejected", "chosen_score", "rejected_score", "z")
    records: Records = {name: [getattr(pair, name) for pair in pairs] for name in (*names, "label", "margin")}
    records["longer_by"] = [pair.longer_by for pair in pairs]
    records["agreement"] = [None if math.isnan(value) else value for value in agreement(z, label).tolist()]
    records["loss"] = cross_entropy(z, label).tolist()
    records["excess_loss"] = losses(pairs).tolist()
    return records


def compare_judges(a: Records, b: Records, names: tuple[str, str] = ("A", "B")) -> list[Comparison]:
    """Return the paired differences of two judges in accuracy and log-loss, from their records (`records_of`).

    Pairs are matched by id; those that only one judge has are left out.

    Raises:
        UserError: the two have no pair in common, or different labels for one pair.
    """
    a, b, _ = matched(a, b)
    for item, label, other in zip(a["id"], a["label"], b["label"], strict=True):
        if label != other:
            raise UserError(
                f"The pair {item} has the label {label} in one evaluation and {other} in the other: evaluate both "
                "judges on the same file."
            )
    bootstrap = PromptBootstrap(a["prompt"])

    def of(records: Records, column: str) -> Statistic:
        return mean_of([math.nan if value is None else value for value in records[column]])

    return [
        compare(of(a, "agreement"), of(b, "agreement"), bootstrap, "accuracy", names),
        compare(of(a, "loss"), of(b, "loss"), bootstrap, "log-loss", names, higher_is_better=False),
    ]
