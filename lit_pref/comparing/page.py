"""The comparison of runs as one self-contained HTML page."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from lit_pref.comparing.comparison import RunCalibration, RunComparison
from lit_pref.comparing.curves import Curve, pairs_per_step, smoothed, title_of
from lit_pref.comparing.measures import Measure, MeasuredMetric, p_value
from lit_pref.judging.accuracy_tables import AccuracyGroup
from lit_pref.judging.pair_items import shown
from lit_pref.judging.report import draw_accuracies, draw_reliability, interval
from lit_pref.pages.html import NEUTRAL, drawn, render

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#6b7280", "#0072b2", "#d55e00", "#1b7f5c", "#cc79a7", "#c98a00", "#56b4e9", "#7a3e9d")
"""Colours of runs, that of the baseline first; they repeat from the ninth run on."""


def page(comparison: RunComparison) -> str:
    """Render the page."""
    return render(
        "lit_pref.comparing",
        "comparison.html.j2",
        comparison.to_json(),
        of=comparison,
        names=comparison.names,
        colours=[colour(k) for k in range(len(comparison.runs))],
        figures=[*_reliability(comparison), *_accuracies(comparison)],
        curves=list(_curves(comparison)),
        groups=group_table(comparison.calibrations),
        interval=interval,
        change=change,
        side=side,
        p_value=p_value,
        shown=shown,
    )


def colour(k: int) -> str:
    """Return the colour of run k."""
    return COLOURS[k % len(COLOURS)]


def change(measure: Measure) -> str:
    """Format the difference to the baseline with its interval; empty for the baseline itself."""
    if measure.difference is None:
        return ""
    value, low, high = measure.difference
    if not np.isfinite([low, high]).all():
        return f"{value:+.3g}"
    return f"{value:+.3g} ({low:+.3g} to {high:+.3g})"


def side(metric: MeasuredMetric, measure: Measure) -> str:
    """Return "better" or "worse" than the baseline, or "other" if neither side is better.

    It is empty if the interval of the difference contains 0.
    """
    difference = measure.difference
    if difference is None or not (difference.low > 0 or difference.high < 0):
        return ""
    if metric.higher_is_better is None:
        return "other"
    return "better" if (difference.value > 0) == metric.higher_is_better else "worse"


def group_table(calibrations: Sequence[RunCalibration | None]) -> dict[str, list[AccuracyGroup | None]]:
    """Return the accuracies of the groups of the data by name, one entry per run; empty without groups."""
    tables = [{} if of is None else {group.name: group for group in of.by_group} for of in calibrations]
    names = dict.fromkeys(name for table in tables for name in table)
    return {name: [table.get(name) for table in tables] for name in names}


def _reliability(comparison: RunComparison) -> Iterator[tuple[str, str]]:
    known = [(k, of) for k, of in enumerate(comparison.calibrations) if of is not None]
    groups = [group for _, of in known for group in of.reliability]
    bottom = max(0.0, min([0.5, *(group.accuracy.low for group in groups if np.isfinite(group.accuracy.low))]) - 0.02)
    right = min(1.01, 0.01 + max([0.6, *(group.confidence for group in groups)]))  # rewards may be small

    def draw(axes: "Axes", k: int, of: RunCalibration) -> None:
        draw_reliability(axes, of.reliability, of.calibration.equal_mass, colour(k))
        axes.set(xlim=(0.5 - 0.02 * (right - 0.5), right), ylim=(bottom, 1.14))  # the same in all figures

    for k, of in known:
        yield f"Reliability of {comparison.names[k]}", drawn(partial(draw, k=k, of=of))


def _accuracies(comparison: RunComparison) -> Iterator[tuple[str, str]]:
    if any(of is not None and of.by_margin for of in comparison.calibrations):
        yield "Accuracy by margin", drawn(partial(_by_margin, comparison=comparison))


def _by_margin(axes: "Axes", comparison: RunComparison) -> None:
    runs = [(k, of.by_margin) for k, of in enumerate(comparison.calibrations) if of is not None]
    groups = max((of for _, of in runs), key=len)
    width = 0.7 / len(runs)
    axes.axhline(0.5, color=NEUTRAL, linewidth=1, linestyle=":")
    for place, (k, own) in enumerate(runs):
        x = np.arange(len(own)) + (place - (len(runs) - 1) / 2) * width
        draw_accuracies(axes, x.tolist(), own, colour(k), comparison.names[k], line="")
    names = [group.name.replace(" to ", " to\n") + f"\nn = {group.pairs}" for group in groups]
    axes.set_xticks(range(len(groups)), names, fontsize=8)
    axes.set(
        xlabel="given margin", ylabel="accuracy, 95 % over prompts", ylim=(0, 1.02), xlim=(-0.5, len(groups) - 0.5)
    )
    axes.legend(frameon=False, loc="lower right", fontsize=8)


def _curves(comparison: RunComparison) -> Iterator[tuple[str, str]]:
    sizes = pairs_per_step(comparison.runs)
    for metric in dict.fromkeys(curve.metric for curve in comparison.curves):
        curves = [curve for curve in comparison.curves if curve.metric == metric]
        if max(len(curve.steps) for curve in curves) > 1:
            draw = partial(_draw_curves, curves=curves, names=comparison.names, sizes=sizes)
            yield title_of(metric), drawn(draw)


def _draw_curves(axes: "Axes", curves: Sequence[Curve], names: Sequence[str], sizes: Sequence[int] | None) -> None:
    for curve in curves:
        k = names.index(curve.run)
        x = np.array(curve.steps) * (1 if sizes is None else sizes[k])
        smooth = smoothed(curve.values)
        marker = "o" if len(x) < 15 else ""
        if smooth != list(curve.values):
            axes.plot(x, curve.values, color=colour(k), linewidth=0.8, alpha=0.3)
        axes.plot(x, smooth, color=colour(k), linewidth=1.6, marker=marker, markersize=3.5, label=curve.run)
    axes.set(xlabel="optimizer step" if sizes is None else "pairs trained on (step times pairs of a step)")
    axes.set(ylabel=curves[0].label)
    axes.legend(frameon=False, fontsize=8)
