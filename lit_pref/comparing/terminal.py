"""The comparison of runs for a terminal or a log."""

from collections.abc import Iterator, Sequence

from rich.table import Table

from lit_pref.comparing.comparison import RunComparison
from lit_pref.comparing.measures import p_value
from lit_pref.comparing.page import change
from lit_pref.judging.pair_items import shown
from lit_pref.judging.report import interval
from lit_pref.run.summary import as_text

WIDTH = 140
FULL = 3
"""The most runs of which a terminal shows all metrics; the page has those of any number."""
FIRST = ("rewards/accuracies", "calibration/", "rewards/margins")
"""The metrics of more runs that a terminal shows, by the beginnings of their names."""
SHOWN = 3
"""Pairs that a terminal shows; the page has all."""
LONGEST = 100
"""Characters of a text in a terminal."""


def lines(comparison: RunComparison) -> Iterator[str]:
    """Yield the blocks of the report: settings, metrics, pairs, sentences and notes."""
    names = comparison.names
    yield f"{', '.join(names[1:])} against {names[0]}, on {len(comparison.pairs.ids)} held-out pairs of " + (
        f"{len(set(comparison.pairs.prompts))} prompts"
    )
    yield _settings(comparison)
    yield _metrics(comparison)
    if comparison.unchanged:
        yield f"The same in all runs: {', '.join(comparison.unchanged)}."
    for pair in comparison.differing[:SHOWN]:
        z = ", ".join(f"{name} {value:.3g}" for name, value in zip(names, pair.z, strict=True))
        text = [] if pair.text is None else [("prompt", shown(pair.text.prompt)), ("chosen", pair.text.chosen)]
        text += [] if pair.text is None or pair.text.rejected is None else [("rejected", pair.text.rejected)]
        cut = [f"    {side:<9} {_one_line(words)}" for side, words in text]
        yield "\n".join([f"{pair.place or pair.id}: z {z}", *cut])
    yield "\n".join(comparison.sentences) or "There is no accuracy or log-loss to compare."
    yield "\n".join(f"note        {note}" for note in comparison.notes)


def _settings(comparison: RunComparison) -> str:
    if not comparison.settings:
        return "Settings that differ: none"
    table = _table("Settings that differ", ["setting", *comparison.names])
    for setting in comparison.settings:
        table.add_row(f"{setting.name} (manifest)" if setting.recorded else setting.name, *setting.values)
    return as_text(table, WIDTH)


def _metrics(comparison: RunComparison) -> str:
    columns = ["metric", "run", "value, 95 %", f"difference to {comparison.names[0]}", "above:below:equal", "p"]
    table = _table("Held-out metrics (intervals over prompts; prompts above, below and equal, sign test)", columns)
    for metric in comparison.metrics:
        if not metric.comparable or (len(comparison.runs) > FULL and not metric.name.startswith(FIRST)):
            continue
        for k, (name, measure) in enumerate(zip(comparison.names, metric.runs, strict=True)):
            first = metric.name if k == 0 else ""
            if measure is None:
                table.add_row(first, name, "-")
                continue
            signs = measure.signs
            counts = ("", "") if signs is None else (f"{signs.above}:{signs.below}:{signs.equal}", p_value(signs.p))
            differs = measure.incomparable or change(measure)
            table.add_row(first, name, interval(measure.value), differs, *counts)
    return as_text(table, WIDTH)


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left")
    for k, name in enumerate(columns):
        table.add_column(name, overflow="fold", no_wrap=k == 0)
    return table


def _one_line(text: str) -> str:
    words = " ".join(text.split())
    return words if len(words) <= LONGEST else f"{words[: LONGEST - 3]}..."
