"""The comparison of runs: everything that the terminal, the page and the JSON file show."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from lit_pref.comparing.common_pairs import CommonPairs, common_pairs
from lit_pref.comparing.comparability import Comparability, not_comparable
from lit_pref.comparing.curves import Curve, held_out_curves, training_curves
from lit_pref.comparing.measures import MeasuredMetric, measure_runs, metrics_of, same_everywhere, sentences
from lit_pref.comparing.pair_texts import PairText, read_texts
from lit_pref.comparing.run_record import RunRecord
from lit_pref.comparing.settings import SettingDifference, setting_differences
from lit_pref.judging.accuracy_tables import AccuracyGroup, accuracy_by, accuracy_by_quantile
from lit_pref.judging.calibration import BINS, Calibration, agreement, calibration, sigmoid
from lit_pref.judging.comparison import Array
from lit_pref.metrics.pair_metrics import non_finite_pairs
from lit_pref.metrics.records import Records
from lit_pref.pages.html import plain

MARGIN_GROUPS = 5
FEW_PROMPTS = 20
ONE_SEED = (
    "The intervals cover other prompts of the same kind, not other training seeds: two runs that differ in "
    "nothing but their seed differ too. Train each setting with several seeds before you call it better."
)


@dataclass(frozen=True)
class RunCalibration:
    """Calibration, reliability, and accuracy by groups of one run on the common pairs."""

    calibration: Calibration
    reliability: list[AccuracyGroup]
    by_margin: list[AccuracyGroup]
    by_group: list[AccuracyGroup]


@dataclass(frozen=True)
class DifferingPair:
    """A pair on which runs differ: z and log-loss of each run, by which `spread` is the largest difference.

    Where a run has no z (it reads chosen responses only), `values` are log-probs of the chosen response.
    """

    id: str
    place: str
    margin: float | None
    z: tuple[float, ...]
    values: tuple[float, ...]
    spread: float
    text: PairText | None


@dataclass(frozen=True)
class RunComparison:
    """The comparison of runs, the baseline first; tuples and lists by run are in the order of `runs`."""

    runs: list[RunRecord]
    settings: list[SettingDifference]
    pairs: CommonPairs
    metrics: list[MeasuredMetric]
    unchanged: list[str]
    sentences: list[str]
    calibrations: list[RunCalibration | None]
    curves: list[Curve]
    differing: list[DifferingPair]
    notes: list[str]

    @property
    def names(self) -> list[str]:
        """The names of the runs."""
        return [run.name for run in self.runs]

    def to_json(self) -> dict[str, Any]:
        """The comparison as plain values: an interval is [value, low, high], a number that is not finite is null."""
        found: dict[str, Any] = plain(
            {
                "baseline": self.names[0],
                "runs": [_run_to_json(run) for run in self.runs],
                "settings": [asdict(found) for found in self.settings],
                "pairs": len(self.pairs.ids),
                "prompts": len(set(self.pairs.prompts)),
                "metrics": {
                    metric.name: {
                        "formula": metric.meaning.formula,
                        "unit": metric.meaning.unit,
                        "higher_is_better": metric.higher_is_better,
                        "runs": self._by_name([None if of is None else asdict(of) for of in metric.runs]),
                    }
                    for metric in self.metrics
                },
                "same_in_all_runs": self.unchanged,
                "sentences": self.sentences,
                "calibration": self._by_name([None if of is None else asdict(of) for of in self.calibrations]),
                "curves": [asdict(curve) for curve in self.curves],
                "differing_pairs": [
                    asdict(pair) | {"z": self._by_name(pair.z), "values": self._by_name(pair.values)}
                    for pair in self.differing
                ],
                "notes": self.notes,
            }
        )
        return found

    def _by_name(self, values: Sequence[Any]) -> dict[str, Any]:
        return dict(zip(self.names, values, strict=True))


def compare_runs(runs: Sequence[RunRecord], shown: int = 10) -> RunComparison:
    """Compare runs on the held-out pairs that all of them have.

    Args:
        runs: at least two, the baseline first.
        shown: how many of the pairs on which they differ most are read as text.

    Raises:
        UserError: there is no common pair.
    """
    common = common_pairs(runs)
    metrics = [metrics_of(records) for records in common.records]
    comparability = [
        Comparability(run, runs[0], records, common.records[0])
        for run, records in zip(runs[1:], common.records[1:], strict=True)
    ]
    unchanged = [name for name in same_everywhere(metrics) if _describes_data(name)]
    compared = [{name: own[name] for name in own if name not in unchanged} for own in metrics]
    measured = measure_runs(compared, common.prompts, comparability)
    names = [run.name for run in runs]
    differing, words = _differing(runs, common, metrics, shown)
    return RunComparison(
        list(runs),
        setting_differences(runs),
        common,
        measured,
        unchanged,
        sentences(measured, names, len(set(common.prompts))),
        [_calibration(records, _column(common.records[0], "margin"), common.prompts) for records in common.records],
        [*held_out_curves(runs, common), *(curve for run in runs for curve in training_curves(run))],
        differing,
        [*_notes(runs, common, measured), *([words] if words else [])],
    )


def _notes(runs: Sequence[RunRecord], common: CommonPairs, measured: Sequence[MeasuredMetric]) -> list[str]:
    found = [f"{run.name} {problem}." for run in runs for problem in run.problems]
    found += [f"{run.name} was resumed {change}." for run in runs for change in run.changes]
    found += common.notes
    for run, records in zip(runs, common.records, strict=True):
        if bad := non_finite_pairs(records):
            found.append(f"{run.name} has values that are NaN or infinite for {len(bad)} pairs: they are left out.")
    if len({run.step for run in runs}) > 1:
        found.append("Their steps differ: " + ", ".join(f"{run.name} {run.step}" for run in runs) + ".")
    found += _not_compared(runs, measured)
    if (prompts := len(set(common.prompts))) < FEW_PROMPTS:
        found.append(f"Intervals over {prompts} prompts are rough: below {FEW_PROMPTS} they are often too narrow.")
    if len(runs) > 2:
        found.append(
            f"{len(runs) - 1} runs are compared with {runs[0].name}: at 5 % each, one of them seems to differ without "
            f"doing so in up to {1 - 0.95 ** (len(runs) - 1):.0%} of all such comparisons."
        )
    found.append(ONE_SEED)
    return found


def _not_compared(runs: Sequence[RunRecord], measured: Sequence[MeasuredMetric]) -> Iterator[str]:
    """Yield a sentence about the metrics of each run that cannot be compared, and one about those that can."""
    told = False
    for k, run in enumerate(runs):
        of_run = [(metric.name, of.incomparable) for metric in measured if (of := metric.runs[k]) and of.incomparable]
        if of_run:
            told = True
            yield f"Not comparable between {run.name} and {runs[0].name}: {not_comparable(of_run)}."
    if told:
        yield COMPARABLE


COMPARABLE = (
    "Accuracies can be compared in any case, as well as log-loss and Brier score, which say how good the probabilities "
    "sigma(z) are that a run's rewards claim; rewards and z only with the same beta and reference."
)


def _describes_data(name: str) -> bool:
    """Whether a metric that is the same in all runs only describes their data or settings."""
    return not name.startswith(("rewards/", "calibration", "logps/")) and name not in ("loss", "kl_to_target")


def _calibration(records: Records, margin: Array, prompts: Sequence[str]) -> RunCalibration | None:
    """Return the calibration of a run, None if it has no z; margins are the baseline's, so that groups are the same."""
    z = _column(records, "z")
    kept = np.isfinite(z)
    if not kept.any():
        return None
    z, margin = z[kept], margin[kept]
    prompts = [prompt for prompt, has in zip(prompts, kept, strict=True) if has]
    groups = [group for group, has in zip(records.get("group", [None] * len(kept)), kept, strict=True) if has]
    label = np.ones_like(z)
    right, confidence = agreement(z, label), sigmoid(np.abs(z))
    known = np.isfinite(margin).any()
    return RunCalibration(
        calibration(z, None, prompts),
        accuracy_by_quantile(confidence, BINS, right, confidence, prompts),
        accuracy_by_quantile(margin, MARGIN_GROUPS, right, confidence, prompts) if known else [],
        accuracy_by(groups, right, confidence, prompts) if len(set(groups)) > 1 else [],
    )


def _differing(
    runs: Sequence[RunRecord], common: CommonPairs, metrics: Sequence[dict[str, Array]], shown: int
) -> tuple[list[DifferingPair], str]:
    """Return the pairs with the largest difference of log-losses between any two runs, and a note about their texts."""
    name = next(
        (name for name in ("calibration/log_loss", "logps/chosen") if all(name in own for own in metrics)), None
    )
    if name is None or not shown:
        return [], ""
    values = np.stack([own[name] for own in metrics], axis=1)
    spread = values.max(axis=1) - values.min(axis=1)
    order = [k for k in np.argsort(-np.nan_to_num(spread, nan=-1), kind="stable")[:shown].tolist() if spread[k] > 0]
    texts, words = read_texts(runs[0], [common.ids[k] for k in order]) if order else ({}, "")
    z = np.stack([_column(records, "z") for records in common.records], axis=1)
    margin = _column(common.records[0], "margin")
    places = common.records[0].get("place", [""] * len(common.ids))
    found = []
    for k in order:
        text = texts.get(common.ids[k])
        found.append(
            DifferingPair(
                common.ids[k],
                places[k] if text is None else text.place,
                None if math.isnan(margin[k]) else float(margin[k]),
                tuple(z[k].tolist()),
                tuple(values[k].tolist()),
                float(spread[k]),
                text,
            )
        )
    return found, words


def _column(records: Records, name: str) -> Array:
    """Return a column of numbers, (n,), with NaN where there is none."""
    values = records.get(name, [None] * len(records["id"]))
    return np.array([math.nan if value is None else value for value in values], dtype=np.float64)


def _run_to_json(run: RunRecord) -> dict[str, Any]:
    return {
        "name": run.name,
        "folder": str(run.folder),
        "objective": run.objective,
        "step": run.step,
        "records": run.stage,
        "pairs": len(run.records["id"]),
        "problems": run.problems,
        "resumed": run.changes,
    }
