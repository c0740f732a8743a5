"""Held-out metrics of several runs on the same pairs: values, and paired differences to the baseline."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from lit_pref.comparing.comparability import Comparability
from lit_pref.judging.calibration import cross_entropy, sigmoid
from lit_pref.judging.comparison import Array, Comparison, Interval, PromptBootstrap, SignTest, mean_of, sign_test
from lit_pref.metrics.calibration import CALIBRATION
from lit_pref.metrics.meaning import LOGGED_BY_OBJECTIVES, Meaning
from lit_pref.metrics.pair_metrics import MEASURES, measures
from lit_pref.metrics.records import Records

PROBABILITIES = ("p_true", "probability")
"""Columns of known probabilities, against which sigma(z) is measured in addition to the labels."""
SENTENCES = {"rewards/accuracies": "accuracy", "calibration/log_loss": "log-loss"}
"""The metrics about which a comparison has a sentence, by their names in it."""
MANY_SMALL = (
    " The sign test counts prompts and the mean weighs them: many small differences stand against few large ones."
)
HIGHER = ("rewards/accuracies", "rewards/accuracies@reference0")
LOWER = ("brier", "log_loss", "loss", "kl_to_target")
"""Metrics of which the larger, or the smaller, is better (by their last part); the others have no better side."""


@dataclass(frozen=True)
class Measure:
    """A metric of one run, with its interval over prompts.

    `difference` is that to the baseline, on the same pairs; it is None for the baseline, and where `incomparable` says
    why it would mean nothing.
    """

    value: Interval
    difference: Interval | None = None
    signs: SignTest | None = None
    incomparable: str = ""


@dataclass(frozen=True)
class MeasuredMetric:
    """A metric of all runs, None for a run that does not have it; `higher_is_better` is None if neither side is."""

    name: str
    meaning: Meaning
    higher_is_better: bool | None
    runs: tuple[Measure | None, ...]

    @property
    def comparable(self) -> bool:
        """Whether any run is compared with the baseline."""
        return any(measure is not None and measure.difference is not None for measure in self.runs)


def metrics_of(records: Records) -> dict[str, Array]:
    """Return every metric of pairs, (n,) in the order of the records, with NaN for a pair without a finite value."""
    columns = {
        name: torch.tensor([math.nan if value is None else float(value) for value in column], dtype=torch.float64)
        for name, column in records.items()
        if all(value is None or isinstance(value, int | float) for value in column)
    }
    # An infinite value would make every mean infinite, or NaN; they are counted elsewhere.
    columns = {name: torch.where(column.isfinite(), column, math.nan) for name, column in columns.items()}
    found: dict[str, Array] = {}
    if "z" in columns:
        z = columns["z"].numpy()
        found["rewards/accuracies"] = np.zeros(0)  # the most important first
        for column in (None, *(name for name in PROBABILITIES if name in columns)):
            label = np.ones_like(z) if column is None else columns[column].numpy()
            name = "calibration" if column is None else f"calibration@{column}"
            with np.errstate(invalid="ignore"):
                found[f"{name}/log_loss"] = cross_entropy(z, label)
                found[f"{name}/brier"] = (sigmoid(z) - label) ** 2
    found |= {name: value.numpy() for name, value in measures(columns).items()}
    return {name: values for name, values in found.items() if not np.isnan(values).all()}


def measure_runs(
    metrics: Sequence[Mapping[str, Array]], prompts: Sequence[str], comparability: Sequence[Comparability]
) -> list[MeasuredMetric]:
    """Return all metrics of all runs, with intervals over prompts and paired differences to the first run.

    Args:
        metrics: `metrics_of` the common pairs of each run, that of the baseline first.
        prompts: (n,) the prompt of each pair.
        comparability: of each run but the baseline.
    """
    names = dict.fromkeys(name for own in metrics for name in own)
    columns: dict[tuple[str, int, bool], Array] = {}
    reasons: dict[tuple[str, int], str] = {}
    for name in names:
        for k, own in enumerate(metrics):
            if name not in own:
                continue
            columns[name, k, False] = own[name]
            if k and name in metrics[0]:
                reasons[name, k] = comparability[k - 1].reason(name, own[name], metrics[0][name])
                if not reasons[name, k]:
                    columns[name, k, True] = own[name] - metrics[0][name]
            elif k:
                reasons[name, k] = "the baseline does not have it"
    intervals = dict(
        zip(columns, PromptBootstrap(prompts).intervals(mean_of(np.stack(list(columns.values()), axis=1))), strict=True)
    )

    def measure(name: str, k: int) -> Measure | None:
        if name not in metrics[k]:
            return None
        difference = intervals.get((name, k, True))
        signs = None if difference is None else sign_test(columns[name, k, True], prompts)
        return Measure(intervals[name, k, False], difference, signs, reasons.get((name, k), ""))

    return [
        MeasuredMetric(name, meaning_of(name), _better(name), tuple(measure(name, k) for k in range(len(metrics))))
        for name in names
    ]


def same_everywhere(metrics: Sequence[Mapping[str, Array]]) -> list[str]:
    """Return the metrics that have the same value in every run for every pair, as lengths and columns of data have."""
    first = metrics[0]
    return [
        name
        for name, values in first.items()
        if all(name in own and np.array_equal(values, own[name], equal_nan=True) for own in metrics[1:])
    ]


def sentences(measured: Sequence[MeasuredMetric], names: Sequence[str], prompts: int) -> list[str]:
    """Return a sentence about each run in accuracy and in log-loss, with the sign test."""
    found = []
    for metric in measured:
        for name, measure in zip(names[1:], metric.runs[1:], strict=True):
            baseline = metric.runs[0]
            if metric.name not in SENTENCES or measure is None or baseline is None or measure.difference is None:
                continue
            higher = metric.higher_is_better is not False
            both = (measure.value, baseline.value, measure.difference)
            compared = Comparison(SENTENCES[metric.name], (name, names[0]), *both, prompts, higher)
            many_small = compared.winner is None and measure.signs is not None and measure.signs.p < 0.05
            found.append(
                f"{compared.sentence} {in_words(measure.signs, name, higher)}{MANY_SMALL if many_small else ''}"
            )
    return found


def in_words(signs: SignTest | None, name: str, higher_is_better: bool) -> str:
    """Return a sign test as a sentence.

    >>> in_words(SignTest(above=3, below=1, equal=1, p=0.625), "mmpo", higher_is_better=False)
    'By prompts, mmpo is better in 1, worse in 3 and equal in 1 (sign test: p = 0.625).'
    """
    if signs is None:
        return ""
    better, worse = (signs.above, signs.below) if higher_is_better else (signs.below, signs.above)
    p = p_value(signs.p)
    p = f"p {p}" if p.startswith("<") else f"p = {p}"
    return f"By prompts, {name} is better in {better}, worse in {worse} and equal in {signs.equal} (sign test: {p})."


def p_value(p: float) -> str:
    """Format a p-value.

    >>> p_value(0.03456), p_value(1e-9)
    ('0.0346', '< 0.0001')
    """
    return f"{p:.3g}" if p >= 1e-4 else "< 0.0001"


def meaning_of(name: str) -> Meaning:
    """Return the formula and the unit of a metric; empty ones for a column of the data or a user's own value."""
    if name.startswith("calibration"):
        formula, unit = CALIBRATION[name.rpartition("/")[2]]
        label = name.partition("/")[0].partition("@")[2]
        return Meaning(f"{formula}, p = {label or '1: chosen is better'}", unit)
    if name in MEASURES:
        return MEASURES[name].meaning
    return LOGGED_BY_OBJECTIVES.get(name, Meaning("", ""))


def _better(name: str) -> bool | None:
    return True if name in HIGHER else False if name.rpartition("/")[2] in LOWER else None
