"""The report on a selection: its scores, the overlap with other selections, and the kinds of pairs it keeps."""

import base64
import html
from collections import Counter
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from rich.table import Table

from lit_pref.data.prepared.pair_view import PairView
from lit_pref.data.selection.criteria import (
    AlignmentPotential,
    Certainty,
    ExplicitMargin,
    ImplicitMargin,
    PredictiveEntropy,
    Random,
)
from lit_pref.data.selection.selection import Choice, Pool, Selection
from lit_pref.references.selection_scores import summary
from lit_pref.run.summary import as_text

MOST_NAMES = 12
"""The most names in a table; all others are counted together."""
KEPT, LEFT = "#0072b2", "#d0d0d0"


@dataclass
class SelectionReport:
    """The report on a selection.

    Args:
        summary: one line: the selection, the pairs it kept, and their scores.
        notes: warnings of the selection.
        numbers: plain data for the JSON file.
        tables: (title, columns, rows), all texts.
        figure: a PNG.
    """

    summary: str
    notes: list[str]
    numbers: dict[str, Any]
    tables: list[tuple[str, list[str], list[list[str]]]]
    figure: bytes


def report_of(selection: Selection, pool: Pool, choice: Choice, pairs: PairView) -> SelectionReport:
    """Build the report on the pairs that a selection kept.

    Args:
        selection: the criterion with its arguments.
        pool: ids, columns and scores of all training pairs.
        choice: the kept pairs.
        pairs: all training pairs.
    """
    kept = np.zeros(len(pairs), bool)
    kept[choice.indices] = True
    kinds, overlaps = _kinds(pool, pairs, kept), _overlaps(selection, pool, choice)
    names = {title: _counts(values, kept) for title, values in _names(pairs).items()}
    prompts = {"all": len(np.unique(pool.prompts.astype(str))), "kept": len(np.unique(pool.prompts[kept].astype(str)))}
    numbers = {
        "selection": repr(selection),
        "pairs": len(pairs),
        "kept": int(kept.sum()),
        "tied_at_the_edge": choice.tied,
        "score": {
            name: float(value)
            for name, value in (
                ("lowest", choice.scores.min()),
                ("highest", choice.scores.max()),
                ("lowest kept", choice.scores[kept].min()),
                ("highest kept", choice.scores[kept].max()),
            )
        },
        "prompts": prompts,
        "kinds": kinds,
        "overlap": overlaps,
        **names,
    }
    rows = [[name, *(_number(row[part]) for part in ("all", "kept", "left_out"))] for name, row in kinds.items()]
    rows.append(["prompts with a pair", f"{prompts['all']:,}", f"{prompts['kept']:,}", ""])
    tables = [("Kept and left out", ["mean of", "all", "kept", "left out"], rows)]
    shares = [[name, f"{row['shared']:.3f}", f"{row['jaccard']:.3f}"] for name, row in overlaps.items()]
    tables.append(("Overlap with other selections", ["other selection", "share of the kept", "Jaccard"], shares))
    for title, counts in names.items():
        cells = [[name, f"{row['all']:,}", f"{row['kept']:,}", f"{row['share']:.3f}"] for name, row in counts.items()]
        tables.append((f"By {title}", [title, "all", "kept", "share kept"], cells))
    notes = selection.notes(pool)
    return SelectionReport(
        summary(pool, choice, selection), notes, numbers, tables, _figure(selection, pool, choice, pairs)
    )


def _kinds(pool: Pool, pairs: PairView, kept: Any) -> dict[str, dict[str, float | None]]:
    prompt, chosen, rejected = pairs.lengths.T
    values: dict[str, Any] = {name: column for name, column in pool.columns.items() if not np.isnan(column).any()}
    values |= {f"{name} is the largest there is (share)": of == of.max() for name, of in [*values.items()]}
    values |= {"margin was clipped (share)": pairs.column("clipped"), "tie (share)": pairs.column("tie")}
    values |= {"tokens of the prompt": prompt, "tokens of chosen": chosen, "tokens of rejected": rejected}
    values |= {"chosen is longer (share)": chosen > rejected, "chosen was cut (share)": pairs.column("chosen_cut")}
    values |= {"rejected was cut (share)": pairs.column("rejected_cut")}
    if pool.policy is not None:
        means = pool.policy.means
        values |= {"policy, chosen (nats per token)": means[:, 0], "policy, rejected (nats per token)": means[:, 1]}
        values["policy finds chosen more likely (share, mean)"] = means[:, 0] > means[:, 1]
        values["policy finds chosen more likely (share, sum)"] = pool.policy.sums[:, 0] > pool.policy.sums[:, 1]
    values |= {f"column {name}": pairs.column(name) for name in pairs.columns if name not in values}
    which = {"all": np.ones_like(kept), "kept": kept, "left_out": ~kept}
    return {
        name: {part: float(np.mean(column[rows])) if rows.any() else None for part, rows in which.items()}
        for name, column in values.items()
    }


def _names(pairs: PairView) -> dict[str, Any]:
    sources = np.concatenate([np.full(len(part.indices), part.source, object) for part in pairs.parts])
    found = {"source": sources, "group": pairs.column("group")}
    found |= {"writer of chosen": pairs.column("chosen_source"), "writer of rejected": pairs.column("rejected_source")}
    return {title: values for title, values in found.items() if len({str(v) for v in values}) > 1}


def _counts(values: Any, kept: Any) -> dict[str, dict[str, float]]:
    everything, taken = Counter(map(str, values)), Counter(map(str, values[kept]))
    shown = [name for name, _ in everything.most_common(MOST_NAMES)]
    rest = set(everything) - set(shown)
    counted = {name: (everything[name], taken[name]) for name in shown}
    if rest:
        counted[f"{len(rest)} others"] = (sum(everything[name] for name in rest), sum(taken[name] for name in rest))
    return {name: {"all": a, "kept": k, "share": k / a} for name, (a, k) in counted.items()}


def _overlaps(selection: Selection, pool: Pool, choice: Choice) -> dict[str, dict[str, float]]:
    """Compare with all other criteria that can be computed from the pool, each selecting the same number of pairs."""
    amount: dict[str, Any] = {"count": len(choice.indices)}
    if selection.per_prompt:
        amount = {"keep": selection.keep, "count": selection.count, "per_prompt": True}
    column = selection.margin_column or "margin"
    chance = f"chance (expected {len(choice.indices) / len(pool.ids):.3f})"
    others: dict[str, Selection] = {chance: Random(**amount)}
    known = not np.isnan(pool.columns[column]).any()
    if known:
        others["explicit margin"] = ExplicitMargin(margin_column=column, **amount)
    if pool.policy is not None:
        others["smallest implicit margin"] = ImplicitMargin(**amount)
        others["implicit margin, wrongest"] = ImplicitMargin(signed=True, **amount)
        others["predictive entropy"] = PredictiveEntropy(**amount)
        others["predictive entropy per token"] = PredictiveEntropy(per_token=True, **amount)
        if known:
            others["alignment potential"] = AlignmentPotential(margin_column=column, **amount)
    if pool.reference is not None:
        others["certainty"] = Certainty(reference=selection.reference, **amount)
        others["smallest implicit margin, with the reference"] = ImplicitMargin(reference=selection.reference, **amount)
    found = {}
    for name, other in others.items():
        picked = other.choose(pool)
        same = len(np.intersect1d(picked.indices, choice.indices, assume_unique=True))
        if type(other) is not type(selection) or not np.array_equal(picked.scores, choice.scores):
            both = len(picked.indices) + len(choice.indices) - same
            found[name] = {"shared": same / len(choice.indices), "jaccard": same / both}
    return found


def _figure(selection: Selection, pool: Pool, choice: Choice, pairs: PairView) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    kept = np.zeros(len(pairs), bool)
    kept[choice.indices] = True
    figure = Figure(figsize=(10, 7), layout="constrained")
    FigureCanvasAgg(figure)
    (scores, plane), (margins, lengths) = figure.subplots(2, 2)
    _histogram(scores, choice.scores, kept, f"score ({selection.unit})" if selection.unit else "score")
    if not selection.per_prompt:
        edge = choice.scores[kept].max() if selection.which == "bottom" else choice.scores[kept].min()
        scores.axvline(edge, color="black", linewidth=1, linestyle="--", label=f"threshold {edge:.3g}")
    scores.legend(frameon=False)
    column = selection.margin_column or "margin"
    explicit = pool.columns[column]
    known = not np.isnan(explicit).any()
    if known and pool.policy is not None:
        implicit = selection.implicit_margins(pool)
        drawn = np.random.default_rng(0).permutation(len(kept))[:20_000]
        colours = np.where(kept, KEPT, LEFT)[drawn]
        plane.scatter(explicit[drawn], implicit[drawn], s=4, c=colours, alpha=0.5, linewidths=0, rasterized=True)
        plane.set(xlabel=f"`{column}` in the data", ylabel=f"implicit margin of the policy ({selection.implicit_unit})")
        plane.set_ylim(*np.quantile(implicit, (0.002, 0.998)))
    else:
        _histogram(plane, pairs.lengths[:, 0], kept, "tokens of the prompt")
    if known:
        _histogram(margins, explicit, kept, f"`{column}` in the data")
    else:
        _histogram(margins, pairs.lengths[:, 1], kept, "tokens of the chosen response")
    _histogram(lengths, pairs.lengths[:, 1] - pairs.lengths[:, 2], kept, "tokens of chosen minus tokens of rejected")
    out = BytesIO()
    figure.savefig(out, dpi=110)
    return out.getvalue()


def _histogram(axes: Any, values: Any, kept: Any, label: str) -> None:
    low, high = np.quantile(values, (0.001, 0.999))
    bins = np.linspace(low, high if high > low else low + 1, 41)
    parts = [np.clip(values[which], bins[0], bins[-1]) for which in (kept, ~kept)]
    axes.hist(parts, bins=bins, stacked=True, color=[KEPT, LEFT], label=["kept", "left out"])
    axes.set(xlabel=label, ylabel="pairs")


def plain(report: SelectionReport) -> str:
    """Format the tables for a terminal or a log file."""
    parts = []
    for title, columns, rows in report.tables:
        table = Table(title=title, title_justify="left")
        for k, column in enumerate(columns):
            table.add_column(column, justify="right" if k else "left")
        for row in rows:
            table.add_row(*row)
        parts.append(as_text(table))
    return "\n\n".join(parts)


def page(report: SelectionReport) -> str:
    """Render the report as one self-contained HTML page."""
    body = [f"<h1>Selected pairs</h1><p>{html.escape(report.summary)}</p>"]
    body += [f"<p class=note>{html.escape(note)}</p>" for note in report.notes]
    picture = base64.b64encode(report.figure).decode()
    body.append(f'<img alt="scores, margins and lengths, kept and left out" src="data:image/png;base64,{picture}">')
    for title, columns, rows in report.tables:
        lines = ["".join(f"<th>{html.escape(column)}</th>" for column in columns)]
        lines += ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows]
        body.append(f"<h2>{html.escape(title)}</h2><table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>")
    style = (
        "body{font:15px/1.5 sans-serif;max-width:64em;margin:2em auto;padding:0 1em}img{max-width:100%}"
        "table{border-collapse:collapse}td,th{padding:.15em .8em;text-align:right;border-bottom:1px solid #ddd}"
        "td:first-child,th:first-child{text-align:left}.note{border-left:4px solid #d55e00;padding-left:.8em}"
    )
    head = f"<!doctype html><html lang=en><head><meta charset=utf-8><title>Selected pairs</title><style>{style}</style>"
    return f"{head}</head><body>{''.join(body)}</body></html>\n"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}" if abs(value) < 100 else f"{value:.1f}"
