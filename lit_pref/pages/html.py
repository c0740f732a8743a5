"""Self-contained HTML pages: templates, numbers as text, figures as images inside the page."""

import base64
import json
import math
from collections.abc import Callable, Mapping
from io import BytesIO
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GOOD, BAD, NEUTRAL, MARK = "#1b7f5c", "#b3443c", "#6b7280", "#c98a00"
"""Colours of figures: chosen, rejected, prompt or reference lines, marks."""


def render(package: str, template: str, data: Any, **values: Any) -> str:
    """Render a template that extends `base.html.j2`, with `data` as JSON in the page.

    Args:
        package: the package with the template.
        template: name of its file.
        data: plain values, for programs that read the page.
        values: what the template names.
    """
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader(package, "."), jinja2.PackageLoader("lit_pref.pages", ".")]),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"percent": percent, "number": number, "flat": flat}
    # HTML does not unescape the content of a script element; only `<` could end it.
    text = json.dumps(data, allow_nan=False).replace("<", "\\u003c")
    return environment.get_template(template).render(data=text, **values)


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


def plain(value: Any) -> Any:
    """Convert a value to one that JSON can represent: no numpy types, no infinity or NaN."""
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def percent(share: float) -> str:
    """Format a share as a percentage; only exact values are shown as 0 % or 100 %.

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


def drawn(draw: Callable[["Axes"], Any], height: float = 3.5) -> str:
    """Return a figure, 5.6 inches wide, as an SVG data URI; `draw` draws into its axes."""
    import matplotlib
    from matplotlib.figure import Figure  # pyplot is avoided: it has global state and may choose an interactive backend

    with matplotlib.rc_context({"svg.hashsalt": "lit_pref", "font.size": 9, "svg.fonttype": "path"}):
        figure = Figure(figsize=(5.6, height), layout="constrained")
        axes = figure.subplots()
        draw(axes)
        axes.spines[["top", "right"]].set_visible(False)
        out = BytesIO()
        figure.savefig(out, format="svg", dpi=150, metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(out.getvalue()).decode()
