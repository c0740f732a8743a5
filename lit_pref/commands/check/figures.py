"""The figures of the page, each as the content of an `img`: one file needs nothing beside it."""

import base64
from collections.abc import Callable, Iterator
from functools import partial
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np

from lit_pref.commands.check import numbers as n
from lit_pref.commands.check.findings import Arrays, Report
from lit_pref.commands.check.target import Strength

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CHOSEN, REJECTED, PROMPT, MARK = "#1b7f5c", "#b3443c", "#6b7280", "#c98a00"


def figures(report: Report, strength: Strength | None) -> Iterator[tuple[str, str]]:
    """(caption, data URI): all figures of the training pairs, and the margins of the held-out ones."""
    for split, arrays in report.arrays.items():
        if not len(arrays.lengths):
            continue
        known = np.isfinite(arrays.margin)
        few = Arrays(arrays.margin[known], arrays.lengths[known])
        if known.any():
            yield f"{split}: margins", _drawn(partial(_margins, arrays=few, strength=strength))
        if split == "train":
            yield f"{split}: tokens of each part", _drawn(partial(_lengths, arrays=arrays))
        if split == "train" and few.lengths[:, 2].any():
            caption = f"{split}: who is longer, and by what margin it won"
            yield caption, _drawn(partial(_length_and_margin, arrays=few))
        if split == "train" and known.any() and strength is not None and np.isfinite(strength.gamma):
            caption = f"{split}: the target, and what it asks of the policy"
            yield caption, _drawn(partial(_target, arrays=few, strength=strength))


def _drawn(draw: Callable[["Axes"], Any]) -> str:
    import matplotlib
    from matplotlib.figure import Figure  # no pyplot: a figure of its own, drawn by Agg

    with matplotlib.rc_context({"svg.hashsalt": "lit_pref", "font.size": 9, "svg.fonttype": "path"}):
        figure = Figure(figsize=(5.6, 3.5), layout="constrained")
        axes = figure.subplots()
        draw(axes)
        axes.spines[["top", "right"]].set_visible(False)
        out = BytesIO()
        figure.savefig(out, format="svg", dpi=150, metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(out.getvalue()).decode()


def _lengths(axes: "Axes", arrays: Arrays) -> None:
    top = max(2.0, float(np.quantile(arrays.lengths, 0.995)))
    bins = np.linspace(0, top, 51).tolist()
    parts = (("prompt", PROMPT), ("chosen", CHOSEN), ("rejected", REJECTED))
    for values, (name, colour) in zip(arrays.lengths.T, parts, strict=True):
        if values.any():
            label = f"{name}, median {np.median(values):.0f}"
            axes.hist(np.minimum(values, top), bins=bins, histtype="step", linewidth=1.6, color=colour, label=label)
    axes.set(xlabel="tokens (the longest 0.5 % at the right edge)", ylabel="pairs", xlim=(0, top))
    axes.legend(frameon=False)


def _margins(axes: "Axes", arrays: Arrays, strength: Strength | None) -> None:
    of = n.margins(arrays.margin, np.zeros(len(arrays.margin), bool))
    assert of is not None
    axes.hist(arrays.margin, bins=60, color=CHOSEN, alpha=0.75)
    if of.is_clip:
        label = f"{of.pile:.1%} at {of.spread['max']:.4g}"
        axes.axvline(of.spread["max"], color=REJECTED, linestyle="--", label=label)
    if of.zero:
        axes.axvline(0, color=PROMPT, linestyle=":", label=f"{of.zero} at 0")
    median = of.spread["median"]
    axes.axvline(median, color=MARK, label=f"median {median:.4g}")
    if strength is not None and 0 < strength.gamma < np.inf:
        saturates = 17 / strength.gamma
        if saturates <= of.spread["max"]:
            axes.axvspan(saturates, of.spread["max"], color=REJECTED, alpha=0.12, label="target is 1 in fp32")
    axes.set(xlabel="margin, units of the data", ylabel="pairs")
    if of.pile > 0.25:  # the rest would be a line at the bottom
        axes.set(yscale="log", ylabel="pairs (logarithmic)")
    axes.legend(frameon=False)


def _length_and_margin(axes: "Axes", arrays: Arrays) -> None:
    longer = arrays.lengths[:, 1] - arrays.lengths[:, 2]
    bound = max(1.0, float(np.quantile(np.abs(longer), 0.99)))
    inside = np.abs(longer) <= bound
    # A picture and not points: ten thousand of them would be ten megabytes.
    axes.hist2d(
        longer[inside], arrays.margin[inside], bins=(60, 40), cmap="Greens", norm="log", cmin=1, rasterized=True
    )
    axes.axvline(0, color=PROMPT, linewidth=1)
    right, left = n.share(longer > 0), n.share(longer < 0)
    text = f"chosen shorter\n{left:.1%}", f"chosen longer\n{right:.1%}"
    axes.text(0.02, 0.97, text[0], transform=axes.transAxes, va="top", color=REJECTED)
    axes.text(0.98, 0.97, text[1], transform=axes.transAxes, va="top", ha="right", color=CHOSEN)
    axes.set(xlabel="tokens of chosen minus tokens of rejected", ylabel="margin", xlim=(-bound, bound))


def _target(axes: "Axes", arrays: Arrays, strength: Strength) -> None:
    largest = max(float(arrays.margin.max()), 1e-9)
    margin = np.linspace(0, largest, 400)
    # Up to a hair below 1: at the edge of fp32 the curve is flat anyway.
    axes.plot(margin, n.targets(strength.gamma, margin), color=CHOSEN, label="target p")
    quantiles = np.quantile(arrays.margin, [0.05, 0.25, 0.5, 0.75, 0.95])
    axes.plot(quantiles, n.targets(strength.gamma, quantiles), "o", color=MARK, label="5 % to 95 % of the pairs")
    axes.set(xlabel="margin", ylabel="target p", ylim=(0.48, 1.02), xlim=(0, largest * 1.02))
    axes.legend(frameon=False, loc="lower right")
    if strength.beta is not None and not strength.mean_scores:
        scale = strength.gamma / strength.beta
        there, back = (lambda m: np.asarray(m) * scale), (lambda h: np.asarray(h) / (scale or 1.0))
        upper = axes.secondary_xaxis("top", functions=(there, back))
        upper.set_xlabel("log-ratio difference that it asks for, nats")
