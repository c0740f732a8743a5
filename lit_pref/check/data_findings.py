"""Findings about the data: how each source was read, and prompts, repeats, lengths and tokens of each split."""

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lit_pref.check import counts, statistics
from lit_pref.check.report import Finding, Severity
from lit_pref.check.statistics import Pairs
from lit_pref.check.strength_findings import margins, orientation, shortcuts
from lit_pref.check.text_findings import lost, prompt_texts, unread
from lit_pref.data.prepared.normalisation import Normaliser
from lit_pref.data.prepared.pair_view import PairView, SourcePairs
from lit_pref.data.prepared.preparation_report import PreparationReport
from lit_pref.pages.html import percent

SIDES = ("prompt", "chosen", "rejected")


@dataclass(frozen=True)
class BadRowLimits:
    """The configured limits of `data.bad_rows`, `max_refused` and `lost_text`; `check` reads with the most lenient."""

    strict: bool
    max_refused: float
    refuses_lost: bool = True


# Sources


def source_findings(splits: dict[str, PairView], limits: BadRowLimits, template: bool) -> list[Finding]:
    """Report for every split and source how it was read and what happened to its records.

    Args:
        splits: the pairs by split.
        limits: the configured limits on faulty records.
        template: whether the tokenizer has a chat template.
    """
    # A run counts the refused records of a source over both of its splits.
    reports: dict[Path, list[PreparationReport]] = {}
    for pairs in splits.values():
        for part in pairs.parts:
            reports.setdefault(part.pairs.folder, []).append(part.pairs.report)
    found: list[Finding] = []
    for split, pairs in splits.items():
        for part in pairs.parts:
            report = part.pairs.report
            if not report.rows:
                continue
            # Pairs held out from the training source were read like the training pairs.
            if split == "train" or part.pairs.split == "train":
                found.append(source_format(split, part.source, report))
            found.append(records(split, part.source, report, limits, reports[part.pairs.folder]))
            found.append(source(split, part))
            found += unread(split, part.source, report) + lost(split, part.source, report, limits.refuses_lost)
            found += normalised(split, part)
            found += prompt_texts(split, part.source, report, template)
            found += orientation(split, part.source, report, part.pairs)
    return found


def source_format(split: str, source: str, report: PreparationReport) -> Finding:
    """The format of a source, with its first pair as an example."""
    numbers = {"layout": report.format, "example": report.example}
    return Finding("layout", "ok", f"{split} {source}: {report.format}", split, source, numbers)


def records(
    split: str, source: str, report: PreparationReport, limits: BadRowLimits, reports: list[PreparationReport]
) -> Finding:
    """Count the kept, refused and left-out records of one split of a source.

    Args:
        split: its name.
        source: its name.
        report: the report of this split.
        limits: the configured limits on faulty records.
        reports: the reports of all splits of the source.
    """
    refused, left_out = report.refused, Counter(report.left_out)
    left_out["beyond the pairs per prompt"] += report.capped
    left_out["ties dropped"] += report.ties_dropped
    left_out = +left_out
    severity, consequence = _consequence(report, limits, reports)
    kept = f"{report.pairs} responses in {report.lists} lists" if report.lists else f"{report.pairs} pairs"
    parts = [f"{report.rows} records, {kept} kept"]
    parts += [f"{refused.total()} refused ({_reasons(refused)})"] if refused else []
    parts += [f"{left_out.total()} left out ({_reasons(left_out)})"] if left_out else []
    if refused:
        # The general advice at the end of each message is removed, because the consequence repeats it.
        first = [message.rpartition(", or leave")[0] or message for message in report.refused_first.values()]
        parts.append(f"the first of each kind: {' | '.join(first)}")
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
    return Finding("rows", severity, f"{split} {source}: {'; '.join(parts)}{consequence}", split, source, numbers)


def _consequence(
    report: PreparationReport, limits: BadRowLimits, reports: list[PreparationReport]
) -> tuple[Severity, str]:
    refused, rows = sum(r.refused.total() for r in reports), sum(r.rows for r in reports)
    if report.refused and limits.strict:
        return "stop", "; a run stops at the first faulty record: fix them all, or set data.bad_rows to lenient"
    if report.refused and refused > limits.max_refused * rows:
        words = f"; {percent(refused / rows)} of the source is refused and data.max_refused is {limits.max_refused:g}"
        return "stop", f"{words}: fix the records, or raise it"
    if report.refused:
        return "warning", "; data.bad_rows is lenient, so a run leaves the faulty records out"
    return ("note" if report.left_out or report.capped or report.ties_dropped else "ok"), ""


def _reasons(counts: Counter[str]) -> str:
    shown = counts.most_common(6)
    more = len(counts) - len(shown)
    return ", ".join(f"{kind}: {count}" for kind, count in shown) + (f", {more} other reasons" if more else "")


def source(split: str, part: SourcePairs) -> Finding:
    """The counts and shares of one source; a row in the page's table of sources."""
    view = PairView([part])
    of = statistics.margins(view.column("margin").astype(float), view.column("clipped")) if len(view) else None
    numbers: dict[str, Any] = {"pairs": len(view), "prompts": len(np.unique(view.column("prompt_id").astype(str)))}
    numbers |= {"median_margin": of and of.spread["median"], "at_largest": of and of.pile}
    numbers |= {"chosen_longer": statistics.share(view.lengths[:, 1] > view.lengths[:, 2])}
    columns = {"ties": "tie", "swapped": "swapped", "chosen_cut": "chosen_cut", "rejected_cut": "rejected_cut"}
    numbers |= {name: statistics.share(view.column(column)) for name, column in columns.items()}
    words = f"{split} {part.source}: {numbers['pairs']} pairs of {numbers['prompts']} prompts"
    if not part.pairs.report.one_sided:
        words += f"; the chosen response is longer in {percent(numbers['chosen_longer'])}"
    return Finding("source", "ok", words, split, part.source, numbers)


def normalised(split: str, part: SourcePairs) -> list[Finding]:
    """The normalisation of a source's margins, if there is one."""
    scale = part.normaliser
    if scale == Normaliser():
        return []
    how = "replaced by their quantiles among" if scale.margins else f"divided by {scale.scale:.4g}, fitted on"
    words = f"{split} {part.source}: margins are {how} the training pairs of this source; the example shows a margin "
    words += "before this normalisation"
    return [Finding("normalised", "ok", words, split, part.source, {"scale": scale.scale})]


# Splits


def split_findings(split: str, pairs: Pairs, bos: int | None, ends: dict[int, str]) -> list[Finding]:
    """Report prompts, repeats, lengths, tokens, margins and shortcuts of one split, or that it is empty.

    Args:
        split: "train" or "val".
        pairs: its pairs.
        bos: id of the bos token; None if the tokenizer has none.
        ends: names of eos and end-of-turn tokens by their ids.
    """
    if not len(pairs):
        if split == "val":
            return [Finding("pairs", "note", "val: no validation pairs, so no validation metrics", split)]
        return [Finding("pairs", "stop", "train: no pairs to train on", split)]
    found = [prompts(split, pairs), *repeated(split, pairs), lengths(split, pairs), truncation(split, pairs)]
    found.append(tokens(split, pairs, bos, ends))
    return found if _one_sided(pairs) else [*found, *margins(split, pairs), *shortcuts(split, pairs)]


def _one_sided(pairs: Pairs) -> bool:
    """Whether the pairs have no rejected response, as for SFT."""
    return not pairs.lengths[:, 2].any()


def prompts(split: str, pairs: Pairs) -> Finding:
    """The number of prompts, and of pairs per prompt."""
    of = counts.prompts(pairs.column("prompt_id"))
    words = f"{split}: {len(pairs)} pairs of {of.prompts} prompts, at most {of.most} per prompt; "
    words += f"{percent(of.repeated)} of the pairs share their prompt with another pair"
    many = of.most > 0.1 * len(pairs) and len(pairs) >= statistics.ENOUGH
    return Finding("prompts", "note" if many else "ok", words, split, numbers={"pairs": len(pairs), **vars(of)})


def repeated(split: str, pairs: Pairs) -> list[Finding]:
    """Count repeated pairs, and pairs that repeat an earlier one with chosen and rejected swapped."""
    of = counts.repeated(pairs)
    least, limit = ("", "") if of.complete else ("at least ", f"; only {counts.CANDIDATES} candidates were compared")
    share, swapped = of.same / len(pairs), of.swapped / len(pairs)
    severity: Severity = "warning" if share >= 0.01 else "note" if of.same else "ok"
    words = f"{split}: {least}{of.same} pairs ({percent(share)}) repeat an earlier pair{limit}"
    words += ": remove the duplicates" if severity == "warning" else ""
    found = [Finding("repeated", severity, words, split, numbers={"pairs": of.same, "share": share})]
    if of.swapped:
        severity = "warning" if swapped >= 0.01 else "note"
        words = f"{split}: {least}{of.swapped} pairs ({percent(swapped)}) contradict an earlier pair: the same two "
        words += f"responses, with the other one chosen{limit}"
        numbers = {"pairs": of.swapped, "share": swapped}
        found.append(Finding("contradicting", severity, words, split, numbers=numbers))
    return found


def overlap(train: Pairs, val: Pairs) -> list[Finding]:
    """Count validation pairs with a training prompt.

    Validation pairs that are also training pairs are a `stop`: their metrics would be those of training. A shared
    prompt is a `warning`: it makes the metrics look better, but new responses to known prompts may be intended.
    """
    if not len(val) or not len(train):
        return []
    of = counts.overlap(train, val)
    share = of.shared / of.pairs
    words = f"{of.shared} of {of.pairs} validation pairs ({percent(share)}) share their prompt with a training pair"
    severity: Severity = "ok" if not of.shared else "warning"
    if of.same:
        severity = "stop"
        words += f", and {of.same} of them are training pairs: remove those from one split, as validation needs unseen "
        words += "pairs"
    elif of.shared:
        words += ", so validation metrics may look too good"
    return [Finding("overlap", severity, words, numbers={**vars(of), "share": share})]


def lengths(split: str, pairs: Pairs) -> Finding:
    """The distribution of token lengths of prompt, chosen, rejected, and prompt with the longer response."""
    columns = dict(zip(SIDES, pairs.lengths.T, strict=True))
    if _one_sided(pairs):
        del columns["rejected"]
    columns["whole"] = pairs.lengths[:, 0] + pairs.lengths[:, 1:].max(1)
    spreads = {name: statistics.spread(values) for name, values in columns.items()}
    whole = "prompt and response" if _one_sided(pairs) else "prompt and longer response"
    words = "; ".join(
        f"{name.replace('whole', whole)} {s['median']:.0f} ({s['5 %']:.0f} to {s['95 %']:.0f})"
        for name, s in spreads.items()
    )
    words = f"{split}: median tokens (5 % to 95 %): {words}; longest {spreads['whole']['max']:.0f}"
    return Finding("lengths", "ok", words, split, numbers=spreads)


def truncation(split: str, pairs: Pairs) -> Finding:
    """The share of truncated prompts and responses, and whether one side is truncated more often than the other."""
    cut = {side: statistics.share(pairs.column(f"{side}_cut")) for side in SIDES}
    gap = cut["chosen"] - cut["rejected"]
    severity: Severity = "warning" if max(cut.values()) >= 0.1 else "note" if max(cut.values()) >= 0.01 else "ok"
    words = ", ".join(f"{side} {percent(cut[side])}" for side in (SIDES[:2] if _one_sided(pairs) else SIDES))
    words = f"{split}: truncated to data.max_length or data.max_prompt_length: {words}"
    if abs(gap) >= 0.05 and not _one_sided(pairs):
        severity = "warning"
        more, less = ("chosen", "rejected") if gap > 0 else ("rejected", "chosen")
        words += f"; the {more} response is truncated more often than the {less} one, so a missing eos token gives it "
        words += "away"
    words += "; raise these limits if memory allows" if severity == "warning" else ""
    return Finding("truncation", severity, words, split, numbers={**cut, "chosen_minus_rejected": gap})


def tokens(split: str, pairs: Pairs, bos: int | None, ends: dict[int, str]) -> Finding:
    """Check bos and eos tokens, and count tokens across the prompt end and names of special tokens in texts."""
    of = counts.tokens(pairs, bos, ends)
    merged, special = statistics.share(pairs.column("merged")), int((pairs.column("special_texts") > 0).sum())
    severity: Severity = "note" if special or merged >= 0.5 else "ok"
    begun = "no bos token, because the tokenizer has none"
    if of.begins_once is not None:
        begun = f"{percent(of.begins_once)} start with the bos token"
        begun += (
            f", with {of.further_begins} more bos tokens right after it or at the start of a response"
            if of.further_begins
            else " and have no second one"
        )
    # Preparation adds both tokens, so if they are missing, tokenizer and chat template contradict each other.
    wrong = of.begins_once is not None and (of.begins_once < 1 or of.further_begins > 0)
    wrong = wrong or (of.ended != 1 and not math.isnan(of.ended))
    words = [f"{split}: of {of.pairs} pairs examined, {begun}"]
    if not math.isnan(of.ended):
        names = ", ".join(
            f"{ends[end]}" + (f" ({percent(share)})" if share < 1 else "") for end, share in of.ends.items()
        )
        words.append(f"{percent(of.ended)} of the complete responses end with an end token: {names or 'none'}")
    words.append(f"a token spans the prompt end in {percent(merged)} of all pairs")
    words += [f"{special} pairs contain the name of a special token in a text"] if special else []
    words += ["check bos, eos and the chat template of the tokenizer"] if wrong else []
    shares = {ends[end]: share for end, share in of.ends.items()}
    numbers = {**vars(of), "ends": shares, "merged": merged, "special_texts": special}
    return Finding("tokens", "stop" if wrong else severity, "; ".join(words), split, numbers=numbers)
