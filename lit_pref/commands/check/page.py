"""The report as one HTML file that needs nothing beside it."""

import json
from collections.abc import Mapping
from typing import Any

import jinja2

from lit_pref.commands.check.figures import figures
from lit_pref.commands.check.findings import SEVERITIES, Report, percent, plain
from lit_pref.commands.check.target import Strength
from lit_pref.commands.check.text import VERDICTS


def page(report: Report, strength: Strength | None) -> str:
    """The HTML.

    Args:
        report: of one configuration.
        strength: how the objective reads margins, for the figures.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("lit_pref.commands.check", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"percent": percent, "number": number, "flat": flat}
    template = environment.get_template("page.html.j2")
    # Within a script element nothing is escaped; only `<` could end it.
    data = json.dumps(report.to_json(), allow_nan=False).replace("<", "\\u003c")
    return template.render(
        report=report,
        severities=SEVERITIES,
        verdict=VERDICTS[report.verdict],
        figures=list(figures(report, strength)),
        data=data,
    )


def number(value: Any) -> str:
    """A value as a table shows it.

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
    """Nested numbers as (name, value).

    >>> flat({"margin": {"max": 6.0}, "zero": 1})
    [('margin, max', 6.0), ('zero', 1)]
    """
    rows: list[tuple[str, Any]] = []
    for name, value in numbers.items():
        words = prefix + str(name).replace("_", " ")
        rows += flat(value, f"{words}, ") if isinstance(value, Mapping) else [(words, value)]
    return rows
