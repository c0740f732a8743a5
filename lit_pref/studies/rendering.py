"""A study's table in the terminal, as Markdown, CSV and HTML, with the same cells in each."""

import csv
import io
import math
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table as RichTable

from lit_pref.judging.comparison import Interval
from lit_pref.pages.html import BAD, GOOD, NEUTRAL, drawn, plain, render
from lit_pref.studies.statistics import decimals, signed
from lit_pref.studies.table import Row, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def grid(table: Table) -> tuple[list[str], list[list[str]]]:
    """Return the header and the cells of a table as text."""
    study = table.study
    names = [measure.name for measure in study.measures]
    ends = [name.rpartition("/")[2] for name in names]
    short = {name: end if ends.count(end) == 1 else name for name, end in zip(names, ends, strict=True)}
    header = ["cell", "n", f"{short[study.primary.name]} ± 95 %"]
    compared = any(row.baseline is not None for row in table.rows)
    if compared:
        p = "p (Holm)" if study.compare.correction == "holm" else "p"
        header += [f"difference from {_baseline(table)}", p, "better"]
    header += [short[measure.name] for measure in study.also if measure.metric != "time"] + ["time"]
    return header, [_cells(table, row, compared) for row in table.rows]


def _cells(table: Table, row: Row, compared: bool) -> list[str]:
    study = table.study
    lost = [f"{len(seeds)} {state}" for state, seeds in row.states.items()]
    cells = [row.text, f"{len(row.seeds)}" + (f" ({', '.join(lost)})" if lost else "")]
    cells.append(interval(row.means.get(study.primary.name)))
    if compared and row.against is None:
        cells += ["-", "-", "-"]
    elif compared and row.against is not None:
        p = "-" if math.isnan(row.probability) else "< .001" if row.probability < 0.001 else f"{row.probability:.3f}"
        cells += [signed(row.against.difference), p, f"{row.against.better}/{row.against.seeds}"]
    cells += [_other(row, measure.name) for measure in study.also if measure.metric != "time"]
    return [*cells, "-" if math.isnan(row.seconds) else f"{row.seconds:.0f} s"]


def _other(row: Row, metric: str) -> str:
    """A further measure, with its number of trials if fewer have it than the primary measure."""
    count = row.counts.get(metric, 0)
    return interval(row.means.get(metric)) + (f" (n={count})" if 0 < count != len(row.seeds) else "")


def _baseline(table: Table) -> str:
    against = table.study.compare.against
    return " and ".join(f"{axis}={label}" for axis, label in against.items()) or "base"


def interval(of: Interval | None) -> str:
    """Format a mean with its half-width; one value has none.

    >>> interval(Interval(7.8612, 7.7912, 7.9312)), interval(Interval(0.5, -math.inf, math.inf)), interval(None)
    ('7.861 ± 0.070', '0.5', '-')
    """
    if of is None:
        return "-"
    if math.isinf(of.low):
        return f"{of.value:.4g}"
    digits = decimals(of)
    return f"{of.value:.{digits}f} ± {of.high - of.value:.{digits}f}"


def terminal(table: Table) -> str:
    """The table as plain text, which looks the same on a terminal and in a log."""
    header, rows = grid(table)
    shown = RichTable(title=table.heading, title_justify="left", box=SIMPLE, pad_edge=False)
    for k, name in enumerate(header):
        shown.add_column(name, justify="left" if k == 0 else "right", no_wrap=True)
    for row in rows:
        shown.add_row(*row)
    out = io.StringIO()
    Console(file=out, width=400, force_terminal=False).print(shown)  # as wide as its content
    lines = [line.rstrip() for line in out.getvalue().rstrip().splitlines()]
    return "\n".join([f"Q  {table.study.question}", *lines, *_below(table)])


def _below(table: Table) -> list[str]:
    notes = [f"   {note}" for note in table.notes]
    return [*notes, f"HYPOTHESIS  {table.study.hypothesis}", f"VERDICT     {table.verdict}"]


def markdown(table: Table) -> str:
    """The table with heading, notes, hypothesis and verdict as Markdown."""
    header, rows = grid(table)
    lines = [f"{table.heading}.", "", _line(header), _line(["---", *(["---:"] * (len(header) - 1))])]
    lines += [_line(row) for row in rows]
    lines += ["", *(f"- {note}" for note in table.notes), ""]
    return "\n".join([*lines, f"Hypothesis: {table.study.hypothesis}", "", f"Verdict: {table.verdict}."])


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def table_csv(table: Table) -> str:
    """The table as CSV, with every digit: a row a cell."""
    out = io.StringIO()
    metrics = [measure.name for measure in table.study.measures]
    parts = ("", " low", " high")
    names = ["cell", "n", *(f"{metric}{part}" for metric in metrics for part in parts)]
    names += [
        "baseline",
        "difference",
        "difference low",
        "difference high",
        "better",
        "seeds",
        "p",
        "seconds",
        "not finished",
    ]
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(names)
    for row in table.rows:
        numbers: list[Any] = [n for metric in metrics for n in row.means.get(metric, ("", "", ""))]
        of = row.against
        against: list[Any] = [""] * 5 if of is None else [*of.difference, of.better, of.seeds]
        lost = " ".join(f"{state}:{','.join(map(str, seeds))}" for state, seeds in row.states.items())
        p = "" if math.isnan(row.probability) else row.probability
        writer.writerow([row.cell, len(row.seeds), *numbers, row.baseline or "", *against, p, row.seconds, lost])
    return out.getvalue()


def page(table: Table) -> str:
    """The table as a self-contained HTML page with the plots of effects and of ranks at rungs."""
    header, rows = grid(table)
    data = {"study": table.study.name, "question": table.study.question, "verdict": table.verdict, "header": header}
    measured = any(row.seeds for row in table.rows)
    figures = (
        [("Effects", drawn(partial(draw_effects, table=table), height_of(len(effects_of(table)))))] if measured else []
    )
    for ranks in table.rungs:
        if ranks.drawable:
            figures.append(
                (f"Ranks at {ranks.share:g} of the run", drawn(ranks.draw, height_of(len(ranks.cells), 3.5)))
            )
    values = {"table": table, "header": header, "rows": rows, "figures": figures}
    return render("lit_pref.studies", "page.html.j2", plain({**data, "rows": rows}), **values)


def height_of(cells: int, least: float = 0.0) -> float:
    """The height in inches of a figure with a line of text for each cell."""
    return max(least, 1.2 + 0.3 * cells)


def effects_of(table: Table) -> list[Row]:
    """The rows whose effects are drawn: those with a difference; without any, those with a mean."""
    return [row for row in table.rows if row.against is not None] or [row for row in table.rows if row.seeds]


def draw_effects(axes: "Axes", table: Table) -> None:
    """Draw the paired differences of the cells with their intervals; without a comparison, their means."""
    compared, rows = any(row.against is not None for row in table.rows), effects_of(table)
    for place, row in enumerate(reversed(rows)):
        of = row.against.difference if row.against is not None else row.means[table.study.primary.name]
        half = 0.0 if math.isinf(of.low) else of.high - of.value
        good = row.against is not None and (of.value > 0) == (table.study.primary.goal == "max")
        colour = NEUTRAL if row.against is None or not row.shown else GOOD if good else BAD
        axes.errorbar(of.value, place, xerr=half, fmt="o", color=colour, capsize=3)
    axes.set_yticks(range(len(rows)), [row.text for row in reversed(rows)])
    if compared:
        axes.axvline(0, color=NEUTRAL, linewidth=0.8, linestyle=":")
    what = f"difference from {_baseline(table)} in " if compared else ""
    axes.set_xlabel(f"{what}{table.study.primary.name}\n(95 % interval over seeds)")
