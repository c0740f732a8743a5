"""What became of the rows of every source, as findings."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lit_pref.commands.check import numbers as n
from lit_pref.commands.check.findings import Finding, Severity, percent
from lit_pref.data.prepared.normalisation import Normaliser
from lit_pref.data.prepared.pair_view import PairView, Part
from lit_pref.data.prepared.preparation_report import PreparationReport


@dataclass(frozen=True)
class Asked:
    """What the configuration says of bad rows, whatever `check` reads them by."""

    strict: bool
    max_refused: float


def row_findings(splits: dict[str, PairView], asked: Asked, template: bool) -> list[Finding]:
    """Of every split and source: how it was read, and what became of its rows."""
    # The two splits of one source are refused together, as they are when a run prepares them.
    totals: dict[Path, list[PreparationReport]] = {}
    for pairs in splits.values():
        for part in pairs.parts:
            totals.setdefault(part.pairs.folder, []).append(part.pairs.report)
    found: list[Finding] = []
    for split, pairs in splits.items():
        for part in pairs.parts:
            report = part.pairs.report
            if not report.rows:
                continue
            # Held-out pairs of the training file were read as they were.
            if split == "train" or part.pairs.split == "train":
                found.append(layout(split, part.source, report))
            found.append(rows(split, part.source, report, asked, totals[part.pairs.folder]))
            found.append(source_row(split, part))
            found += normalised(split, part)
            found += read_as(split, part.source, report, template)
            found += oriented(split, part.source, report, part.pairs)
    return found


def read_as(split: str, source: str, report: PreparationReport, template: bool) -> list[Finding]:
    """Whether prompts go through the chat template, and whether it asks for an answer as it writes one."""
    found = []
    if report.unasked:
        words = (
            f"{split} {source}: in {report.unasked} of {report.pairs} pairs the assistant's turn does not begin as the "
            "chat template asks for one, so that the head of the turn is trained on; mend the template"
        )
        found.append(Finding("template", "stop", words, split, source, {"unasked": report.unasked}))
    if report.plain and template:
        words = (
            f"{split} {source}: the tokenizer has a chat template, and {report.plain} prompts are plain text, which "
            "stays as it is; data.mapping {format: messages} makes messages of them"
        )
        found.append(Finding("plain", "warning", words, split, source, {"plain": report.plain}))
    if report.joined:
        words = f"{split} {source}: {report.joined} pairs have no space between prompt and response"
        words += ", and are read as they stand"
        found.append(Finding("joined", "note", words, split, source, {"joined": report.joined}))
    return found


def normalised(split: str, part: Part) -> list[Finding]:
    """By what the margins of a source were divided, or that they are quantiles."""
    scale = part.normaliser
    if scale == Normaliser():
        return []
    how = "quantiles of its training pairs" if scale.margins else f"divided by {scale.scale:.4g}, fitted on them"
    words = f"{split} {part.source}: margins here are normalised ({how}); the example is as the source has it"
    return [Finding("normalised", "ok", words, split, part.source, {"scale": scale.scale})]


def layout(split: str, source: str, report: PreparationReport) -> Finding:
    numbers = {"layout": report.format, "example": report.example}
    return Finding("layout", "ok", f"{split} {source}: {report.format}", split, source, numbers)


def source_row(split: str, part: Part) -> Finding:
    """A row of the table of sources: of the pairs that are seen, shares but for the counts."""
    view = PairView([part])
    of = n.margins(view.column("margin").astype(float), view.column("clipped")) if len(view) else None
    numbers: dict[str, Any] = {"pairs": len(view), "prompts": len(np.unique(view.column("prompt_id").astype(str)))}
    numbers |= {"median_margin": of and of.spread["median"], "at_largest": of and of.pile}
    numbers |= {"chosen_longer": n.share(view.lengths[:, 1] > view.lengths[:, 2])}
    columns = {"ties": "tie", "swapped": "swapped", "chosen_cut": "chosen_cut", "rejected_cut": "rejected_cut"}
    numbers |= {name: n.share(view.column(column)) for name, column in columns.items()}
    words = f"{split} {part.source}: {numbers['pairs']} pairs of {numbers['prompts']} prompts"
    words += f", chosen longer in {percent(numbers['chosen_longer'])}"
    return Finding("source", "ok", words, split, part.source, numbers)


def rows(split: str, source: str, report: PreparationReport, asked: Asked, both: list[PreparationReport]) -> Finding:
    """Counts of one split of one source.

    Args:
        split: its name.
        source: its name.
        report: of the split.
        asked: of the configuration.
        both: the reports of all splits that were prepared together with it.
    """
    refused, left_out = report.refused, Counter(report.left_out)
    left_out["beyond the pairs per prompt"] += report.capped
    left_out["ties dropped"] += report.ties_dropped
    left_out = +left_out
    severity, why = _judge(report, asked, both)
    parts = [f"{report.rows} rows, {report.pairs} pairs kept"]
    parts += [f"refused {refused.total()} ({_reasons(refused)})"] if refused else []
    parts += [f"left out {left_out.total()} ({_reasons(left_out)})"] if left_out else []
    parts += [
        f"the first of each: {' | '.join(f.rpartition(', or leave')[0] for f in report.refused_first.values())}"
    ] * bool(refused)
    numbers = {
        "rows": report.rows,
        "pairs": report.pairs,
        "prompts": report.prompts,
        "refused": dict(refused),
        "refused_first": dict(report.refused_first),
        "refused_share": refused.total() / report.rows if report.rows else 0.0,
        "left_out": dict(left_out),
        "special_texts": report.special_texts,
    }
    return Finding("rows", severity, f"{split} {source}: {'; '.join(parts)}{why}", split, source, numbers)


def _judge(report: PreparationReport, asked: Asked, both: list[PreparationReport]) -> tuple[Severity, str]:
    refused, rows = sum(r.refused.total() for r in both), sum(r.rows for r in both)
    if report.refused and asked.strict:
        return "stop", "; a run stops at the first of them, mend them or set data.bad_rows to lenient"
    if report.refused and refused > asked.max_refused * rows:
        return "stop", f"; {percent(refused / rows)} of the source, and data.max_refused is {asked.max_refused:g}"
    if report.refused:
        return "warning", "; data.bad_rows is lenient, so that a run leaves them out"
    return ("note" if report.left_out or report.capped or report.ties_dropped else "ok"), ""


def oriented(split: str, source: str, report: PreparationReport, pairs: n.Pairs) -> list[Finding]:
    """Rows whose strength prefers the rejected text, strengths that disagree, ties, and repeated pairs."""
    if not report.pairs:
        return []
    where, share = f"{split} {source}", report.share
    # In layouts of two texts with a label (A and B, lists) half of all rows have the better text second.
    told = not np.isfinite(pairs.column("chosen_first").astype(float)).any()
    turned: Severity = "ok" if not report.swapped or not told else "warning" if share("swapped") >= 0.05 else "note"
    words = (
        f"{where}: {report.swapped} of {report.pairs} pairs ({percent(share('swapped'))}) exchange chosen and rejected"
    )
    if turned == "warning":
        words += ", as their strength prefers the rejected text: is its sign the right way round?"
    numbers = {"swapped": report.swapped, "share": share("swapped")}
    found = [Finding("swapped", turned, words, split, source, numbers)]
    if report.disagreeing:
        bound = _cut_to(pairs)
        severity: Severity = "warning" if share("disagreeing") >= 0.01 and bound is None else "note"
        words = f"{where}: {report.disagreeing} pairs ({percent(share('disagreeing'))}) have strengths that disagree"
        if bound is None:
            words += ": the margin is not the difference of the scores beside it, "
            words += "or a probability or label prefers the other"
        else:
            words += f", all at the bound of {bound:.4g}: as if differences of scores had been cut to it"
        disagreeing = {"disagreeing": report.disagreeing, "share": share("disagreeing"), "bound": bound}
        found.append(Finding("disagreeing", severity, words, split, source, disagreeing))
    kept = report.ties - report.ties_dropped
    tied: Severity = "warning" if kept / report.pairs >= 0.2 else "note" if kept else "ok"
    words = f"{where}: {kept} pairs ({percent(kept / report.pairs)}) are tied"
    numbers = {"ties": kept, "share": kept / report.pairs}
    words += f", {report.ties_dropped} more were dropped" if report.ties_dropped else ""
    return [*found, Finding("ties", tied, words, split, source, numbers)]


def _cut_to(pairs: n.Pairs) -> float | None:
    """The bound at which all pairs lie whose strengths disagree; None where they do not, or there is none."""
    margins = pairs.column("margin").astype(float)
    of = n.margins(margins, pairs.column("clipped"))
    if of is None or not of.is_clip:
        return None
    largest, disagreeing = of.spread["max"], margins[pairs.column("disagrees").astype(bool)]
    return largest if len(disagreeing) and (disagreeing == largest).all() else None


def _reasons(counts: Counter[str]) -> str:
    shown = counts.most_common(6)
    more = len(counts) - len(shown)
    return ", ".join(f"{kind}: {count}" for kind, count in shown) + (f", {more} other reasons" if more else "")
