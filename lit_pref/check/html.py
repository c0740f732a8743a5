"""The report as one self-contained HTML page, with its figures."""

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from lit_pref.check.memory import AT_THE_PEAK, memory_parts
from lit_pref.check.report import SEVERITIES, Arrays, Report
from lit_pref.check.statistics import margins, share, targets
from lit_pref.check.strength_findings import Strength
from lit_pref.check.terminal import VERDICTS
from lit_pref.pages.html import BAD, GOOD, MARK, NEUTRAL, drawn, render

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def page(report: Report, strength: Strength | None) -> str:
    """Render the page.

    Args:
        report: the findings.
        strength: how the objective uses margins, for the figures; None if it does not.
    """
    return render(
        "lit_pref.check",
        "page.html.j2",
        report.to_json(),
        report=report,
        severities=SEVERITIES,
        verdict=VERDICTS[report.verdict],
        figures=list(figures(report, strength)),
        at_the_peak=AT_THE_PEAK,
        memory=[part for finding in report.about("memory") for part in memory_parts(finding.numbers)],
    )


# Figures


def figures(report: Report, strength: Strength | None) -> Iterator[tuple[str, str]]:
    """Draw all figures of the training pairs and the margins of the validation pairs, as (caption, data URI)."""
    for split, arrays in report.arrays.items():
        if not len(arrays.lengths):
            continue
        known = np.isfinite(arrays.margin)
        with_margin = Arrays(arrays.margin[known], arrays.lengths[known])
        if known.any():
            yield f"{split}: margins", drawn(partial(_margins, arrays=with_margin, strength=strength))
        if split == "train":
            yield f"{split}: tokens of prompt and responses", drawn(partial(_lengths, arrays=arrays))
        if split == "train" and with_margin.lengths[:, 2].any():
            caption = f"{split}: margin by difference of lengths"
            yield caption, drawn(partial(_length_and_margin, arrays=with_margin))
        if split == "train" and known.any() and strength is not None and np.isfinite(strength.gamma):
            caption = f"{split}: target and log-ratio difference by margin"
            yield caption, drawn(partial(_target, arrays=with_margin, strength=strength))


def _lengths(axes: "Axes", arrays: Arrays) -> None:
    top = max(2.0, float(np.quantile(arrays.lengths, 0.995)))
    bins = np.linspace(0, top, 51).tolist()
    parts = (("prompt", NEUTRAL), ("chosen", GOOD), ("rejected", BAD))
    for values, (name, colour) in zip(arrays.lengths.T, parts, strict=True):
        if values.any():
            label = f"{name}, median {np.median(values):.0f}"
            axes.hist(np.minimum(values, top), bins=bins, histtype="step", linewidth=1.6, color=colour, label=label)
    axes.set(xlabel="tokens (the longest 0.5 % are in the last bin)", ylabel="pairs", xlim=(0, top))
    axes.legend(frameon=False)


def _margins(axes: "Axes", arrays: Arrays, strength: Strength | None) -> None:
    of = margins(arrays.margin, np.zeros(len(arrays.margin), bool))
    assert of is not None
    axes.hist(arrays.margin, bins=60, color=GOOD, alpha=0.75)
    if of.is_clip:
        label = f"{of.pile:.1%} at {of.spread['max']:.4g}"
        axes.axvline(of.spread["max"], color=BAD, linestyle="--", label=label)
    if of.zero:
        axes.axvline(0, color=NEUTRAL, linestyle=":", label=f"{of.zero} at 0")
    median = of.spread["median"]
    axes.axvline(median, color=MARK, label=f"median {median:.4g}")
    if strength is not None and 0 < strength.gamma < np.inf:
        saturates = 17 / strength.gamma
        if saturates <= of.spread["max"]:
            axes.axvspan(saturates, of.spread["max"], color=BAD, alpha=0.12, label="target is 1 in fp32")
    axes.set(xlabel="margin, in units of the data", ylabel="pairs")
    if of.pile > 0.25:  # because on a linear axis the other bars would be too low to see
        axes.set(yscale="log", ylabel="pairs (logarithmic)")
    axes.legend(frameon=False)


def _length_and_margin(axes: "Axes", arrays: Arrays) -> None:
    longer = arrays.lengths[:, 1] - arrays.lengths[:, 2]
    bound = max(1.0, float(np.quantile(np.abs(longer), 0.99)))
    inside = np.abs(longer) <= bound
    # The histogram is rasterised, because an SVG of ten thousand points would have ten megabytes.
    axes.hist2d(
        longer[inside], arrays.margin[inside], bins=(60, 40), cmap="Greens", norm="log", cmin=1, rasterized=True
    )
    axes.axvline(0, color=NEUTRAL, linewidth=1)
    right, left = share(longer > 0), share(longer < 0)
    text = f"chosen shorter\n{left:.1%}", f"chosen longer\n{right:.1%}"
    axes.text(0.02, 0.97, text[0], transform=axes.transAxes, va="top", color=BAD)
    axes.text(0.98, 0.97, text[1], transform=axes.transAxes, va="top", ha="right", color=GOOD)
    axes.set(xlabel="tokens of chosen minus tokens of rejected", ylabel="margin", xlim=(-bound, bound))


def _target(axes: "Axes", arrays: Arrays, strength: Strength) -> None:
    largest = max(float(arrays.margin.max()), 1e-9)
    margin = np.linspace(0, largest, 400)
    axes.plot(margin, targets(strength.gamma, margin), color=GOOD, label="target p")
    quantiles = np.quantile(arrays.margin, [0.05, 0.25, 0.5, 0.75, 0.95])
    axes.plot(quantiles, targets(strength.gamma, quantiles), "o", color=MARK, label="5 % to 95 % of the pairs")
    axes.set(xlabel="margin", ylabel="target p", ylim=(0.48, 1.02), xlim=(0, largest * 1.02))
    axes.legend(frameon=False, loc="lower right")
    if strength.beta is not None and not strength.mean_scores:
        scale = strength.gamma / strength.beta
        there, back = (lambda m: np.asarray(m) * scale), (lambda h: np.asarray(h) / (scale or 1.0))
        upper = axes.secondary_xaxis("top", functions=(there, back))
        upper.set_xlabel("log-ratio difference that minimises the loss, nats")
