"""What the prepared pairs of a run are like, as findings."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from lit_pref.commands.check import counts
from lit_pref.commands.check import numbers as n
from lit_pref.commands.check.findings import Finding, Severity, percent
from lit_pref.commands.check.numbers import Pairs
from lit_pref.commands.check.shortcuts import shortcuts as rules

SIDES = ("prompt", "chosen", "rejected")
RULE = 0.65
"""The accuracy from which a rule that knows nothing of quality is warned of."""


def pair_findings(split: str, pairs: Pairs, begin: int | None, ends: set[int]) -> list[Finding]:
    """Of one split.

    Args:
        split: "train" or "val".
        pairs: of it.
        begin: id of the begin token; None where the tokenizer has none.
        ends: ids of tokens that may end a turn.
    """
    if not len(pairs):
        if split == "val":
            return [Finding("pairs", "note", "val: no validation pairs, so no held-out metrics", split)]
        return [Finding("pairs", "stop", "train: no pairs to train on", split)]
    found = [prompts(split, pairs), *repeated(split, pairs), lengths(split, pairs), truncation(split, pairs)]
    found.append(tokens(split, pairs, begin, ends))
    found += margins(split, pairs) + shortcuts(split, pairs)
    return found


def prompts(split: str, pairs: Pairs) -> Finding:
    """How many prompts there are, and pairs for each."""
    of = counts.prompts(pairs.column("prompt_id"))
    words = (
        f"{split}: {len(pairs)} pairs of {of.prompts} prompts, at most {of.most} of one; {percent(of.repeated)} share "
    )
    severity: Severity = "note" if of.most > 0.1 * len(pairs) and len(pairs) >= n.ENOUGH else "ok"
    numbers = {"pairs": len(pairs), **vars(of)}
    return Finding("prompts", severity, words + "their prompt with another", split, numbers=numbers)


def repeated(split: str, pairs: Pairs) -> list[Finding]:
    """The same pair twice, and the same two responses with both labels."""
    of = counts.repeated(pairs)
    least = "" if of.complete else f"at least, among the first {counts.CANDIDATES} that could be "
    share, turned = of.same / len(pairs), of.turned / len(pairs)
    severity: Severity = "warning" if share >= 0.01 else "note" if of.same else "ok"
    words = f"{split}: {of.same} pairs ({percent(share)}) {least}repeat an earlier one"
    found = [Finding("repeated", severity, words, split, numbers={"pairs": of.same, "share": share})]
    if of.turned:
        words = f"{split}: {of.turned} pairs ({percent(turned)}) {least}have the responses of an earlier one, with the "
        severity = "warning" if turned >= 0.01 else "note"
        numbers = {"pairs": of.turned, "share": turned}
        found.append(Finding("contradicting", severity, words + "other one chosen", split, numbers=numbers))
    return found


def overlap(train: Pairs, val: Pairs) -> list[Finding]:
    """Prompts of both splits.

    The same pair in both is a stop: held-out numbers are then of pairs that were trained on, which nobody means. A
    prompt in both is a warning: it makes them look better than they are, but new responses to known prompts may be what
    a validation file is for.
    """
    if not len(val) or not len(train):
        return []
    of = counts.overlap(train, val)
    share = of.shared / of.pairs
    words = f"{of.shared} of {of.pairs} validation pairs ({percent(share)}) have a prompt that is trained on"
    severity: Severity = "ok" if not of.shared else "warning"
    if of.same:
        severity, words = "stop", f"{words}, {of.same} of them as they are: held-out numbers would be of trained pairs"
    return [Finding("overlap", severity, words, numbers={**vars(of), "share": share})]


def lengths(split: str, pairs: Pairs) -> Finding:
    """Token length quantiles of prompt, chosen, rejected and the longest row of a pair."""
    columns = dict(zip(SIDES, pairs.lengths.T, strict=True))
    columns["whole"] = pairs.lengths[:, 0] + pairs.lengths[:, 1:].max(1)
    spreads = {name: n.spread(values) for name, values in columns.items()}
    words = "; ".join(f"{name} {s['median']:.0f} ({s['5 %']:.0f} to {s['95 %']:.0f})" for name, s in spreads.items())
    words = f"{split}: tokens, median (5 % to 95 %): {words}, longest {spreads['whole']['max']:.0f}"
    return Finding("lengths", "ok", words, split, numbers=spreads)


def truncation(split: str, pairs: Pairs) -> Finding:
    """Shares that were cut, and whether one side was cut more often than the other."""
    cut = {side: n.share(pairs.column(f"{side}_cut")) for side in SIDES}
    gap = cut["chosen"] - cut["rejected"]
    severity: Severity = "warning" if max(cut.values()) >= 0.1 else "note" if max(cut.values()) >= 0.01 else "ok"
    words = ", ".join(f"{side} {percent(share)}" for side, share in cut.items())
    words = f"{split}: cut by data.max_length or data.max_prompt_length: {words}"
    if abs(gap) >= 0.05:
        severity = "warning"
        more, less = ("chosen", "rejected") if gap > 0 else ("rejected", "chosen")
        words += f"; the {more} response is cut more often than the {less} one, so that a missing end tells them apart"
    return Finding("truncation", severity, words, split, numbers={**cut, "chosen_minus_rejected": gap})


def tokens(split: str, pairs: Pairs, begin: int | None, ends: set[int]) -> Finding:
    """Begin and end tokens, tokens across the boundary, and names of special tokens in texts."""
    of = counts.tokens(pairs, begin, ends)
    merged, special = n.share(pairs.column("merged")), int((pairs.column("special_texts") > 0).sum())
    severity: Severity = "note" if special or merged >= 0.5 else "ok"
    begun = "none begins with a begin token, as the tokenizer has none"
    if of.begins_once is not None:
        begun = f"{percent(of.begins_once)} begin with the begin token"
        begun += f", and {of.further_begins} stand elsewhere" if of.further_begins else ", none has a second one"
        # Every one, by construction: where it is not so, tokenizer or template are at odds with what they say.
        severity = "stop" if of.begins_once < 1 or of.further_begins else severity
    if of.ended != 1 and not math.isnan(of.ended):
        severity = "stop"
    words = [f"{split}: of {of.pairs} pairs looked at {begun}"]
    words += [] if math.isnan(of.ended) else [f"{percent(of.ended)} of the whole responses end in an end token"]
    words.append(f"a token spans the boundary in {percent(merged)} of all pairs")
    words += [f"{special} pairs hold the name of a special token in a text"] if special else []
    numbers = {**vars(of), "merged": merged, "special_texts": special}
    return Finding("tokens", severity, "; ".join(words), split, numbers=numbers)


# Strength


def margins(split: str, pairs: Pairs) -> list[Finding]:
    """Whether there are margins, how they are spread, and whether a bound holds many of them."""
    values, probability = pairs.column("margin").astype(float), pairs.column("probability").astype(float)
    of = n.margins(values, pairs.column("clipped"))
    if of is None:
        known = np.isfinite(probability).any()
        severity: Severity = "note"  # what needs a strength and has none is refused
        words = "a probability and no margin" if known else "neither margin nor probability"
        missing = f"{split}: the pairs have {words}, so their strength cannot be used as one"
        return [Finding("margins", severity, missing, split, numbers={"pairs": 0})]
    s = of.spread
    words = (
        f"{split}: margin median {s['median']:.4g} (5 % {s['5 %']:.4g}, 95 % {s['95 %']:.4g}, largest {s['max']:.4g})"
    )
    words += f", {of.zero} zero"
    hints = _scale(of)
    severity = "warning" if constant(of) else "ok"
    numbers: dict[str, Any] = {"pairs": of.pairs, "zero": of.zero, "zero_share": of.zero / of.pairs}
    numbers |= {"distinct": of.distinct, "spread": s, "gamma_for_three_quarters": _three_quarters(of)}
    apart, known = pairs.lengths[:, 1] - pairs.lengths[:, 2], np.isfinite(values)
    numbers["correlation_with_length"] = n.rank_correlation(apart[known], values[known])
    found = [Finding("margins", severity, f"{words}; {'; '.join(hints)}" if hints else words, split, numbers=numbers)]
    return [*found, _bound(split, of)]


def constant(of: n.Margins) -> bool:
    """Whether all margins are the same."""
    return of.distinct == 1 and of.pairs > 1


def _scale(of: n.Margins) -> Sequence[str]:
    hints = ["all the same, so that they say nothing of strength"] if constant(of) else []
    if of.whole and of.distinct > 1:
        hints.append(f"whole numbers, {of.distinct} different ones: a rating scale")
    elif 1 < of.distinct <= 20:
        hints.append(f"{of.distinct} different values")
    if (gamma := _three_quarters(of)) is not None:
        hints.append(f"gamma {gamma:.3g} makes the median a target of 0.75")
    return hints


def _three_quarters(of: n.Margins) -> float | None:
    return math.log(3) / of.spread["median"] if of.spread["median"] > 0 else None


def _bound(split: str, of: n.Margins) -> Finding:
    """The share at a clip: of the mapping, or one that the data came with."""
    clipped = of.clipped / of.pairs
    largest = of.spread["max"]
    bound = max(of.pile if of.is_clip else 0.0, clipped)
    severity: Severity = "warning" if bound >= 0.25 else "note" if bound else "ok"
    if of.is_clip:
        words = f"{percent(of.pile)} of the margins are {largest:.4g}, the largest: "
        words += "the mapping's clip" if clipped >= 0.5 * of.pile else "a bound that the data came with"
        words += ", above which strengths are not told apart" if severity == "warning" else ""
    else:
        words = f"{percent(of.pile)} of the margins are the largest ({largest:.4g}), "
        words += "no sign of a bound" if of.pairs >= n.ENOUGH else "and there are too few to tell whether by a bound"
    words += f"; the mapping clipped {percent(clipped)}" if of.clipped else ""
    numbers = {"at_largest": of.pile, "largest": largest, "clipped": clipped, "is_clip": of.is_clip}
    return Finding("clip", severity, f"{split}: {words}", split, numbers=numbers)


def shortcuts(split: str, pairs: Pairs) -> list[Finding]:
    """Rules that know nothing of quality, and how often they are right."""
    ties = int(pairs.column("tie").astype(bool).sum())
    found = []
    for rule in rules(pairs):
        right = rule.accuracy >= RULE and rule.pairs >= n.ENOUGH
        # What helps in a few pairs only is worth knowing, and nothing that a policy would live by.
        worrying = right and rule.share >= 0.1
        severity: Severity = "warning" if worrying else "note" if right else "ok"
        words = f"{split}: “{rule.rule}” is right in {percent(rule.accuracy)} of {rule.pairs} pairs"
        words += f" ({percent(rule.prompts)} of the prompts)"
        words += f"; ties left out: {ties}" if ties else ""
        words += "; too few pairs to tell" if rule.pairs < n.ENOUGH else ""
        words += ": a policy can learn this and nothing else" if worrying else ""
        numbers = {**vars(rule), "ties": ties}
        found.append(Finding("shortcut", severity, words, split, numbers=numbers))
    return found
