"""The report as one self-contained HTML page, with its figures."""

import base64
import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from io import BytesIO
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np

from lit_pref.check.report import SEVERITIES, Arrays, Report, percent, plain
from lit_pref.check.statistics import margins, share, targets
from lit_pref.check.strength_findings import Strength
from lit_pref.check.terminal import VERDICTS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CHOSEN, REJECTED, PROMPT, MARK = "#1b7f5c", "#b3443c", "#6b7280", "#c98a00"


def page(report: Report, strength: Strength | None) -> str:
    """Render the page.

    Args:
        report: the findings.
        strength: how the objective uses margins, for the figures; None if it does not.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("lit_pref.check", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"percent": percent, "number": number, "flat": flat}
    template = environment.get_template("page.html.j2")
    # HTML does not unescape the content of a script element; only `<` could end it.
    data = json.dumps(report.to_json(), allow_nan=False).replace("<", "\\u003c")
    return template.render(
        report=report,
        severities=SEVERITIES,
        verdict=VERDICTS[report.verdict],
        figures=list(figures(report, strength)),
        data=data,
    )


def number(value: Any) -> str:
    """Format a value for a table.

    >>> number(0.8603), number(20000), number(None), number(True)
    ('0.8603', '20000', '-', 'yes')
    """
    value = plain(value)
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def flat(numbers: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Flatten nested numbers into (name, value).

    >>> flat({"margin": {"max": 6.0}, "zero": 1})
    [('margin, max', 6.0), ('zero', 1)]
    """
    rows: list[tuple[str, Any]] = []
    for name, value in numbers.items():
        words = prefix + str(name).replace("_", " ")
        rows += flat(value, f"{words}, ") if isinstance(value, Mapping) else [(words, value)]
    return rows


# Figures


def figures(report: Report, strength: Strength | None) -> Iterator[tuple[str, str]]:
    """Draw all figures of the training pairs and the margins of the validation pairs, as (caption, data URI)."""
    for split, arrays in report.arrays.items():
        if not len(arrays.lengths):
            continue
        known = np.isfinite(arrays.margin)
        with_margin = Arrays(arrays.margin[known], arrays.lengths[known])
        if known.any():
            yield f"{split}: margins", _drawn(partial(_margins, arrays=with_margin, strength=strength))
        if split == "train":
            yield f"{split}: tokens of prompt and responses", _drawn(partial(_lengths, arrays=arrays))
        if split == "train" and with_margin.lengths[:, 2].any():
            caption = f"{split}: margin by difference of lengths"
            yield caption, _drawn(partial(_length_and_margin, arrays=with_margin))
        if split == "train" and known.any() and strength is not None and np.isfinite(strength.gamma):
            caption = f"{split}: target and log-ratio difference by margin"
            yield caption, _drawn(partial(_target, arrays=with_margin, strength=strength))


def _drawn(draw: Callable[["Axes"], Any]) -> str:
    import matplotlib
    from matplotlib.figure import Figure  # pyplot is avoided: it has global state and may choose an interactive backend

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
    axes.set(xlabel="tokens (the longest 0.5 % are in the last bin)", ylabel="pairs", xlim=(0, top))
    axes.legend(frameon=False)


def _margins(axes: "Axes", arrays: Arrays, strength: Strength | None) -> None:
    of = margins(arrays.margin, np.zeros(len(arrays.margin), bool))
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
    axes.axvline(0, color=PROMPT, linewidth=1)
    right, left = share(longer > 0), share(longer < 0)
    text = f"chosen shorter\n{left:.1%}", f"chosen longer\n{right:.1%}"
    axes.text(0.02, 0.97, text[0], transform=axes.transAxes, va="top", color=REJECTED)
    axes.text(0.98, 0.97, text[1], transform=axes.transAxes, va="top", ha="right", color=CHOSEN)
    axes.set(xlabel="tokens of chosen minus tokens of rejected", ylabel="margin", xlim=(-bound, bound))


def _target(axes: "Axes", arrays: Arrays, strength: Strength) -> None:
    largest = max(float(arrays.margin.max()), 1e-9)
    margin = np.linspace(0, largest, 400)
    axes.plot(margin, targets(strength.gamma, margin), color=CHOSEN, label="target p")
    quantiles = np.quantile(arrays.margin, [0.05, 0.25, 0.5, 0.75, 0.95])
    axes.plot(quantiles, targets(strength.gamma, quantiles), "o", color=MARK, label="5 % to 95 % of the pairs")
    axes.set(xlabel="margin", ylabel="target p", ylim=(0.48, 1.02), xlim=(0, largest * 1.02))
    axes.legend(frameon=False, loc="lower right")
    if strength.beta is not None and not strength.mean_scores:
        scale = strength.gamma / strength.beta
        there, back = (lambda m: np.asarray(m) * scale), (lambda h: np.asarray(h) / (scale or 1.0))
        upper = axes.secondary_xaxis("top", functions=(there, back))
        upper.set_xlabel("log-ratio difference that minimises the loss, nats")
