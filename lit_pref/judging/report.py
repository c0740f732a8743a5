"""The evaluation of a judge on pairs as one self-contained HTML page, with reliability diagram and worst pairs."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from lit_pref.judging.accuracy_tables import AccuracyGroup
from lit_pref.judging.calibration import CalibrationError
from lit_pref.judging.comparison import Interval
from lit_pref.judging.pair_evaluation import JudgedPair, PairEvaluation, losses
from lit_pref.pages.html import BAD, GOOD, MARK, NEUTRAL, drawn, number, plain, render

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WORST = 20
"""Number of pairs that are shown as text."""
FEW = 10
"""Below so many prompts, intervals are not to be relied on."""


@dataclass(frozen=True)
class Example:
    """An item that is shown as text: a title, a remark, and texts by what they are."""

    title: str
    remark: str
    texts: dict[str, str]


def page(
    title: str,
    evaluation: PairEvaluation | None,
    pairs: Sequence[JudgedPair],
    benchmarks: Mapping[str, Mapping[str, Interval]] | None = None,
    comparisons: Sequence[str] = (),
    verdict: str | None = None,
    notes: Sequence[str] = (),
    examples: tuple[str, Sequence[Example]] = ("", ()),
) -> str:
    """Render the page.

    Args:
        title: the judge and the data.
        evaluation: the numbers of these pairs; None if no pairs were judged.
        pairs: of which the worst are shown.
        benchmarks: for each benchmark its numbers by name, in shares.
        comparisons: sentences about differences to other judges (`Comparison.sentence`).
        verdict: the first sentence; None for that of the pairs.
        notes: sentences about what was left out.
        examples: a heading, and items to show as text.
    """
    tables: dict[str, tuple[str, list[AccuracyGroup]]] = {}
    if evaluation is not None:
        tables = {
            "Accuracy by margin": ("margin", evaluation.by_margin),
            "Accuracy by length": ("characters of chosen - rejected", evaluation.by_length),
            "Accuracy by source": ("source", evaluation.by_source),
        }
        verdict = verdict or headline(evaluation)
    return render(
        "lit_pref.judging",
        "evaluation.html.j2",
        {"title": title, "comparisons": list(comparisons)}
        | (evaluation.to_json() if evaluation is not None else {})
        | {"benchmarks": plain(benchmarks or {})},
        title=title,
        verdict=verdict or "",
        numbers={} if evaluation is None else numbers(evaluation),
        figures=[] if evaluation is None else list(figures(evaluation, pairs)),
        tables={name: table for name, table in tables.items() if table[1]},
        benchmarks=benchmarks or {},
        comparisons=comparisons,
        notes=notes,
        worst=[] if evaluation is None else _worst(pairs),
        examples=examples,
        interval=interval,
        scale_of=scale_of,
        places_of=places_of,
    )


def _worst(pairs: Sequence[JudgedPair]) -> list[tuple[JudgedPair, float]]:
    found = losses(pairs)
    return [(pairs[k], float(found[k])) for k in np.argsort(-found, kind="stable")[:WORST]]


def headline(evaluation: PairEvaluation) -> str:
    """Return the result in one sentence."""
    of = evaluation.calibration
    says = f"Right in {100 * of.accuracy.value:.1f} % of {of.pairs - of.tied} pairs of {of.prompts} prompts"
    if of.tied:
        says += f" ({of.tied} more have the label 1/2 and no right side)"
    if of.prompts < FEW:
        return f"{says}: too few prompts to judge the calibration."
    if of.boundary == "no better than chance":
        return f"{says}: no better than chance."
    if of.boundary:
        return f"{says}; no temperature can be fitted ({of.boundary})."
    t = of.temperature
    if t.high == np.inf:
        return (
            f"{says}; whether its scores say anything about such pairs is not shown: the fitted temperature, "
            f"{t.value:.3g}, may be any from {t.low:.3g} on."
        )
    sure = "overconfident" if t.low > 1 else "underconfident" if t.high < 1 else "neither over- nor underconfident"
    return f"{says}, and {sure}: the fitted temperature is {t.value:.3g} ({t.low:.3g} to {t.high:.3g})."


def numbers(evaluation: PairEvaluation) -> dict[str, str]:
    """Return the numbers of the first table as text: name -> a value with its interval, or a value."""
    of = evaluation.calibration
    boundary = f" ({of.boundary})" if of.boundary else ""
    return {
        "accuracy": interval(of.accuracy),
        "log-loss, nats": interval(of.log_loss),
        "smallest possible log-loss": number(of.entropy),
        "KL(label || q), nats": interval(of.kl),
        "Brier score": interval(of.brier),
        "calibration error, bins of equal count": number(of.equal_mass.value),
        "to expect if calibrated, equal count": number(of.equal_mass.if_calibrated),
        "calibration error, bins of equal width": number(of.equal_width.value),
        "to expect if calibrated, equal width": number(of.equal_width.if_calibrated),
        "temperature": interval(of.temperature) + boundary,
        "Spearman correlation of z with margins": interval(evaluation.spearman),
        "Kendall correlation of z with margins": interval(evaluation.kendall),
    }


def scale_of(found: Iterable[Interval]) -> tuple[int, int] | None:
    """Return the scale on which values are drawn: from 0 to 1, or from 1 to 10; None for others.

    >>> scale_of([Interval(0.5, 0.4, 0.6)]), scale_of([Interval(7.0, 6.5, 7.5)]), scale_of([Interval(80.0, 70.0, 90.0)])
    ((0, 1), (1, 10), None)
    """
    values = [value.value for value in found if np.isfinite(value.value)]
    fits = ((0, 1), (1, 10)) if values else ()
    return next((scale for scale in fits if scale[0] <= min(values) and max(values) <= scale[1]), None)


def places_of(found: Interval, scale: tuple[int, int]) -> tuple[float, float, float] | None:
    """Return where an interval begins, how wide it is, and where its value is, in percent of a scale.

    >>> places_of(Interval(0.5, 0.25, 0.75), (0, 1)), places_of(Interval(5.5, -np.inf, np.inf), (1, 10))
    ((25.0, 50.0, 50.0), (50.0, 0.0, 50.0))
    """
    if not np.isfinite(found.value):
        return None
    ends = (found.low, found.high) if np.isfinite([found.low, found.high]).all() else (found.value, found.value)
    start, width = scale[0], scale[1] - scale[0]
    low, high, value = (100 * float(np.clip((x - start) / width, 0, 1)) for x in (*ends, found.value))
    return round(low, 2), round(high - low, 2), round(value, 2)


def interval(found: Interval | None) -> str:
    """Format a value with its interval for a table.

    >>> interval(Interval(0.71234, 0.7, 0.72)), interval(None)
    ('0.7123 (0.7 to 0.72)', '-')
    """
    if found is None or not np.isfinite(found.value):
        return "-"
    if np.isnan([found.low, found.high]).any():
        return number(found.value)
    return f"{found.value:.4g} ({found.low:.3g} to {found.high:.3g})"


def figures(evaluation: PairEvaluation, pairs: Sequence[JudgedPair]) -> Iterator[tuple[str, str]]:
    """Draw all figures, as (caption, data URI)."""
    yield (
        "Reliability",
        drawn(partial(draw_reliability, groups=evaluation.reliability, error=evaluation.calibration.equal_mass)),
    )
    if evaluation.by_margin:
        yield "Accuracy by margin", drawn(partial(_groups, groups=evaluation.by_margin, label="given margin"))
    label = "characters of chosen - characters of rejected"
    yield "Accuracy by difference of lengths", drawn(partial(_groups, groups=evaluation.by_length, label=label))
    yield "Score differences", drawn(partial(_scores, pairs=pairs))


def draw_reliability(
    axes: "Axes", groups: Sequence[AccuracyGroup], error: CalibrationError, colour: str = GOOD
) -> None:
    """Draw the agreement with the labels over the confidence, with intervals."""
    groups = [group for group in groups if np.isfinite(group.accuracy.value)]
    x = [group.confidence for group in groups]
    axes.plot([0.5, 1], [0.5, 1], color=NEUTRAL, linestyle="--", linewidth=1, label="calibrated")
    label = f"observed, 95 % over prompts; ECE {error.value:.3f} ({error.if_calibrated:.3f} if calibrated)"
    draw_accuracies(axes, x, groups, colour, label)
    lowest = min([0.5, *(group.accuracy.low for group in groups if np.isfinite(group.accuracy.low))])
    axes.set(xlabel="confidence max(q, 1 - q), q = sigmoid(z)", ylabel="agreement with the labels")
    axes.set(xlim=(0.49, 1.01), ylim=(max(0, lowest - 0.02), 1.14))
    axes.legend(frameon=False, loc="upper left", fontsize=8)


def _groups(axes: "Axes", groups: Sequence[AccuracyGroup], label: str) -> None:
    known = [group for group in groups if np.isfinite(group.accuracy.value)]
    places = list(range(len(known)))
    axes.axhline(0.5, color=NEUTRAL, linewidth=1, linestyle=":")
    draw_accuracies(axes, places, known, GOOD, "accuracy, 95 % over prompts", line="")
    axes.plot(places, [group.confidence for group in known], "_", color=MARK, markersize=14, label="mean confidence")
    names = [group.name.replace(" to ", " to\n") + f"\nn = {group.pairs}" for group in known]
    axes.set_xticks(places, names, fontsize=8)
    axes.set(xlabel=label, ylim=(0, 1.02), xlim=(-0.5, len(known) - 0.5))
    axes.legend(frameon=False, loc="lower right", fontsize=8)


def draw_accuracies(
    axes: "Axes", x: Sequence[float], groups: Sequence[AccuracyGroup], colour: str, label: str, line: str = "-"
) -> None:
    """Draw the accuracies of groups with their intervals."""
    y = np.array([group.accuracy.value for group in groups])
    ends = np.array([[group.accuracy.low, group.accuracy.high] for group in groups]).reshape(-1, 2)
    bars = np.abs(np.where(np.isfinite(ends), np.clip(ends, 0, 1), y[:, None]) - y[:, None]).T
    axes.errorbar(x, y, yerr=bars, fmt="o" + line, markersize=4, linewidth=1.2, color=colour, capsize=2, label=label)


def _scores(axes: "Axes", pairs: Sequence[JudgedPair]) -> None:
    z = np.array([pair.z for pair in pairs])
    bound = max(float(np.quantile(np.abs(z), 0.99)), 1e-9)
    bins = np.linspace(-bound, bound, 41)  # the outer 1 % are in the last bins
    axes.hist(
        np.clip(z[z > 0], -bound, bound), bins=bins.tolist(), color=GOOD, alpha=0.75, label="chosen scores higher"
    )
    lower = np.clip(z[z <= 0], -bound, -1e-9 * bound)  # ties are not higher, so they belong left of 0
    axes.hist(lower, bins=bins.tolist(), color=BAD, alpha=0.75, label="not higher")
    axes.set(xlabel="z = score of chosen - score of rejected", ylabel="pairs")
    axes.legend(frameon=False, fontsize=8)
