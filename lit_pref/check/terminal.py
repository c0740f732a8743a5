"""The report for a terminal, a pipe or a log file."""

import sys

from rich.console import Console
from rich.text import Text

from lit_pref.check.memory import memory_table
from lit_pref.check.rendering import Kind, PairPieces
from lit_pref.check.report import SEVERITIES, Finding, Report, Severity
from lit_pref.errors import visible

STYLES: dict[Severity, str] = {"stop": "bold white on red", "warning": "bold yellow", "note": "cyan", "ok": "green"}
VERDICTS: dict[Severity, str] = {
    "stop": "do not start this run: fix the findings marked stop",
    "warning": "read the warnings before you start this run",
    "note": "no problems found",
    "ok": "no problems found",
}
PIECES: dict[Kind, str] = {
    "prompt": "dim",
    "boundary": "bold black on green",
    "trained": "green",
    "end": "bold black on cyan",
    "left out": "dim italic",
}
WIDTH = 130


def print_report(report: Report, console: Console | None = None) -> None:
    """Print the report: the verdict, the findings with the worst first, and a few pairs.

    Args:
        report: the findings.
        console: where to print; stdout by default. A terminal gets colours; elsewhere « » enclose the trained text.
    """
    console = console or Console(file=sys.stdout, width=None if sys.stdout.isatty() else WIDTH, soft_wrap=True)
    counts = ", ".join(f"{count} {severity}" for severity, count in report.counts.items() if count)
    console.print(Text(visible(f"{report.title}: {counts}")), style="bold", highlight=False)
    console.print(Text(f"{VERDICTS[report.verdict]}\n"), style=STYLES[report.verdict], highlight=False)
    for severity in SEVERITIES:
        for finding in report.of(severity):
            # With a single source, its numbers would repeat those of the split.
            if finding.topic != "source" or len(report.about("source", finding.split)) > 1:
                _line(console, finding)
    if report.rendered:
        console.print(Text(f"\npairs as the policy reads them; trained on: {_legend(console)}"), highlight=False)
    for pair in report.rendered:
        _pair(console, pair)


def _line(console: Console, finding: Finding) -> None:
    line = Text(f"{finding.severity:8}", STYLES[finding.severity])
    console.print(line, Text(visible(finding.says)), soft_wrap=True, highlight=False, sep="")
    if finding.topic in ("layout", "memory"):
        lines = finding.numbers["example"].splitlines() if finding.topic == "layout" else memory_table(finding.numbers)
        for words in lines:
            console.print(Text(f"          {visible(words)}", "dim"), soft_wrap=True, highlight=False)


def _legend(console: Console) -> str:
    return "the coloured text" if console.is_terminal else "the text in « »; ¦ marks the end of its first token"


def _pair(console: Console, pair: PairPieces) -> None:
    margin = ", no margin" if pair.margin is None else f", margin {pair.margin:.4g}"
    title = f"{pair.place or pair.id}{margin if pair.rejected else ''}"
    console.print(Text(visible(title)), style="bold", highlight=False)
    for side in ("chosen", "rejected") if pair.rejected else ("chosen",):
        line = Text(f"  {side:9}")
        if console.is_terminal:
            for kind, piece in getattr(pair, side):
                line.append(_one_line(piece), PIECES[kind])
        else:
            line.append(plain_line(getattr(pair, side)))
        console.print(line, soft_wrap=True, highlight=False)


def plain_line(pieces: object) -> str:
    """Format the pieces of one response without colour.

    >>> plain_line([("prompt", "2+2="), ("boundary", " 4"), ("trained", ".\\n"), ("end", "</s>")])
    '2+2=« 4¦.⏎</s>»'
    """
    line, open_ = "", False
    for kind, piece in pieces:  # type: ignore[attr-defined]
        if kind != "prompt" and kind != "left out" and not open_:
            line, open_ = line + "«", True
        line += _one_line(piece) + ("¦" if kind == "boundary" else "")
    return line + "»" * open_


def _one_line(piece: str) -> str:
    return visible(piece.replace("\r", "␍").replace("\n", "⏎").replace("\t", "⇥"))
