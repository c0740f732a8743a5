"""Findings about preference strength: orientation, margins, shortcuts, and the targets made from margins."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from lit_pref.check import statistics
from lit_pref.check.report import Finding, Severity
from lit_pref.check.statistics import Margins, Pairs
from lit_pref.data.prepared.preparation_report import PreparationReport
from lit_pref.objectives.base import Objective
from lit_pref.objectives.pairwise import Pairwise
from lit_pref.objectives.parts.target import Target
from lit_pref.pages.html import percent

RULE = 0.65
"""The accuracy from which a rule that ignores quality causes a warning."""
NATS = (30.0, 100.0)
PER_TOKEN = (0.15, 0.5)
"""Log-ratio differences that are large, and out of reach: in nats, and in nats per token of a response.

Each of the two responses contributes half of the difference: at 0.5 nats per token, a response of 100 tokens has to
become e^25 times likelier than it is, and the other one that much less likely. Such a policy has left its reference.
"""


def orientation(split: str, source: str, report: PreparationReport, pairs: Pairs) -> list[Finding]:
    """Report swapped pairs, contradicting strengths and ties."""
    if not report.pairs or (report.one_sided and not report.swapped and not report.disagreeing):
        return []
    where, share = f"{split} {source}", report.share
    # In formats with two texts and a label, the better text is second in half of the records, so swaps mean nothing.
    labelled = np.isfinite(pairs.column("chosen_first").astype(float)).any()
    severity: Severity = "ok" if not report.swapped or labelled else "warning" if share("swapped") >= 0.05 else "note"
    words = f"{where}: chosen and rejected are swapped in {report.swapped} of {report.pairs} pairs "
    words += f"({percent(share('swapped'))})"
    if severity == "warning":
        words += ", because their strength prefers the rejected text: check the sign of the strength"
    numbers = {"swapped": report.swapped, "share": share("swapped")}
    found = [Finding("swapped", severity, words, split, source, numbers)]
    if report.disagreeing:
        bound = _common_bound(pairs)
        severity = "warning" if share("disagreeing") >= 0.01 and bound is None else "note"
        words = f"{where}: {report.disagreeing} pairs ({percent(share('disagreeing'))}) have contradicting strengths"
        if bound is None:
            words += f": {_contradictions(report)}; check which columns data.mapping reads"
        else:
            words += f", all with the margin {bound:.4g}: the source seems to have clipped differences of scores to it"
        disagreeing = {"disagreeing": report.disagreeing, "share": share("disagreeing"), "bound": bound}
        found.append(Finding("disagreeing", severity, words, split, source, disagreeing))
    kept = report.ties - report.ties_dropped
    tied: Severity = "warning" if kept / report.pairs >= 0.2 else "note" if kept else "ok"
    words = f"{where}: {kept} pairs ({percent(kept / report.pairs)}) are ties"
    words += f", and {report.ties_dropped} more were dropped" if report.ties_dropped else ""
    words += "; data.ties drop leaves them out" if tied == "warning" else ""
    return [*found, Finding("ties", tied, words, split, source, {"ties": kept, "share": kept / report.pairs})]


def _contradictions(report: PreparationReport) -> str:
    """The kinds of contradictions with their numbers of pairs, each with the place and the numbers of the first."""
    if not report.contradictions:  # prepared by an older version
        return "the margin is not the difference of the scores, or a probability or label prefers the other response"
    kinds = report.contradictions.most_common()
    return "; ".join(f"{kind} in {count} (first: {report.contradictions_first[kind]})" for kind, count in kinds)


def _common_bound(pairs: Pairs) -> float | None:
    """The margin of all pairs with contradicting strengths, if it is one at which the margins were clipped."""
    margins = pairs.column("margin").astype(float)
    of = statistics.margins(margins, pairs.column("clipped"))
    if of is None or not of.is_clip:
        return None
    largest, disagreeing = of.spread["max"], margins[pairs.column("disagrees").astype(bool)]
    return largest if len(disagreeing) and (disagreeing == largest).all() else None


# Margins


def margins(split: str, pairs: Pairs) -> list[Finding]:
    """Report whether the pairs have margins, their distribution, and whether many of them were clipped."""
    values, probability = pairs.column("margin").astype(float), pairs.column("probability").astype(float)
    of = statistics.margins(values, pairs.column("clipped"))
    if of is None:
        known = np.isfinite(probability).any()
        # This is only a note: a run is refused anyway if its objective needs a strength and there is none.
        words = "a probability but no margin" if known else "neither margin nor probability"
        words = f"{split}: the pairs have {words}, so an objective cannot use margins"
        return [Finding("margins", "note", words, split, numbers={"pairs": 0})]
    s = of.spread
    words = f"{split}: margin median {s['median']:.4g} (5 % {s['5 %']:.4g}, 95 % {s['95 %']:.4g}, largest "
    words += f"{s['max']:.4g}), {of.zero} are zero"
    numbers: dict[str, Any] = {"pairs": of.pairs, "zero": of.zero, "zero_share": of.zero / of.pairs}
    numbers |= {"distinct": of.distinct, "spread": s, "gamma_for_three_quarters": _three_quarters(of)}
    longer, known = pairs.lengths[:, 1] - pairs.lengths[:, 2], np.isfinite(values)
    numbers["correlation_with_length"] = statistics.rank_correlation(longer[known], values[known])
    severity: Severity = "warning" if _constant(of) else "ok"
    found = [Finding("margins", severity, "; ".join([words, *_hints(of)]), split, numbers=numbers)]
    return [*found, _clip(split, of)]


def _constant(of: Margins) -> bool:
    return of.distinct == 1 and of.pairs > 1


def _hints(of: Margins) -> list[str]:
    hints = ["all are equal, so they contain no strength"] if _constant(of) else []
    if of.whole and of.distinct > 1:
        hints.append(f"whole numbers with {of.distinct} distinct values, as on a rating scale")
    elif 1 < of.distinct <= 20:
        hints.append(f"{of.distinct} distinct values")
    if (gamma := _three_quarters(of)) is not None:
        hints.append(f"gamma {gamma:.3g} gives the median margin a target of 0.75")
    return hints


def _three_quarters(of: Margins) -> float | None:
    return math.log(3) / of.spread["median"] if of.spread["median"] > 0 else None


def _clip(split: str, of: Margins) -> Finding:
    """The share of margins that the mapping, or the author of the data, has clipped to a bound."""
    clipped = of.clipped / of.pairs
    largest = of.spread["max"]
    bound = max(of.pile if of.is_clip else 0.0, clipped)
    severity: Severity = "warning" if bound >= 0.25 else "note" if bound else "ok"
    words = f"{split}: {percent(of.pile)} of the margins equal the largest, {largest:.4g}"
    if of.is_clip:
        words += ": the mapping's clip" if clipped >= 0.5 * of.pile else ": they were clipped in the source"
        words += ", so larger strengths cannot be told apart" if severity == "warning" else ""
    elif of.pairs >= statistics.ENOUGH:
        words += ", which does not look like a clip"
    else:
        words += ", but with so few pairs a clip cannot be recognised"
    words += f"; the mapping clipped {percent(clipped)}" if of.clipped else ""
    numbers = {"at_largest": of.pile, "largest": largest, "clipped": clipped, "is_clip": of.is_clip}
    return Finding("clip", severity, words, split, numbers=numbers)


def shortcuts(split: str, pairs: Pairs) -> list[Finding]:
    """The accuracy of rules that ignore quality, with a warning if a policy could learn one instead."""
    ties = int(pairs.column("tie").astype(bool).sum())
    found = []
    for rule in statistics.shortcuts(pairs):
        accurate = rule.accuracy >= RULE and rule.pairs >= statistics.ENOUGH
        # A rule that applies to few pairs is a note only: a policy cannot rely on it.
        harmful = accurate and rule.share >= 0.1
        severity: Severity = "warning" if harmful else "note" if accurate else "ok"
        words = f"{split}: the rule “{rule.rule}” is right in {percent(rule.accuracy)} of the {rule.pairs} pairs it "
        words += f"applies to ({percent(rule.prompts)} of the prompts)"
        words += f", not counting {ties} ties" if ties else ""
        words += "; too few pairs to judge it" if rule.pairs < statistics.ENOUGH else ""
        words += ": a policy could learn this rule instead of quality" if harmful else ""
        numbers = {**vars(rule), "ties": ties}
        found.append(Finding("shortcut", severity, words, split, numbers=numbers))
    return found


# Targets


@dataclass(frozen=True)
class Strength:
    """How an objective uses margins.

    Args:
        gamma: the gamma of its target.
        beta: reward units per nat; None unless its loss is known to have its minimum at gamma m / beta.
        mean_scores: whether its scores are means over tokens instead of sums.
    """

    gamma: float
    beta: float | None
    mean_scores: bool


def strength_of(objective: Objective) -> Strength | None:
    """Find gamma and beta of an objective; None if it makes no targets from margins.

    Raises:
        UserError: gamma has to be fitted and has not been fitted yet.
    """
    strengths = (part.strength for part in objective.modules() if isinstance(part, Target))
    gamma = next((strength for strength in strengths if strength is not None), None)
    if gamma is None:
        return None
    if not isinstance(objective, Pairwise):
        return Strength(gamma, None, False)
    tokens = objective.tokens
    known = objective.link.fits_target and objective.score.identity and (tokens.plain_sum or tokens.plain_mean)
    return Strength(gamma, objective.beta if known else None, tokens.plain_mean)


def target_findings(split: str, pairs: Pairs, strength: Strength | None) -> list[Finding]:
    """Report how many targets are hard labels in fp32, and how far the policy has to move to reach the targets."""
    values = pairs.column("margin").astype(float) if len(pairs) else np.zeros(0)
    if strength is None or not np.isfinite(values).any():
        return []
    of = statistics.demand(strength.gamma, strength.beta or 1.0, values, pairs.lengths, strength.mean_scores)
    found = [_saturation(split, of)]
    return [*found, _demand(split, of)] if strength.beta is not None else found


def _saturation(split: str, of: statistics.Demand) -> Finding:
    severity: Severity = "ok"
    if of.saturated >= 0.25 or of.mean_target >= 0.99:
        severity = "warning"
    elif of.saturated >= 0.01 or of.mean_target >= 0.95:
        severity = "note"
    words = f"{split}: with gamma {of.gamma:.4g} the mean target is {of.mean_target:.4f}"
    words += f", and {percent(of.saturated)} of the targets are exactly 1 in fp32"
    if severity == "warning":
        words += ": these are nearly hard labels; lower gamma to let the margins matter"
    numbers = {"gamma": of.gamma, "saturated": of.saturated, "mean_target": of.mean_target}
    return Finding("target", severity, words, split, numbers=numbers)


def _demand(split: str, of: statistics.Demand) -> Finding:
    """The log-ratio difference that minimises the loss."""
    at = "median margin"
    nats, per_token = of.nats[at], of.per_token[at]
    beyond = nats > NATS[1] or per_token > PER_TOKEN[1] or of.nats["margin 1"] > NATS[1]
    much = nats > NATS[0] or per_token > PER_TOKEN[0]
    severity: Severity = "warning" if beyond else "note" if much else "ok"
    if not np.isfinite(of.gamma):
        severity, verdict = (
            "ok",
            "infinite gamma means hard labels: no finite difference is enough, as in DPO",
        )
    else:
        verdict = {
            "warning": "a policy near its reference cannot reach that, so the loss acts as with hard labels; lower "
            "gamma or raise beta",
            "note": "that is far from the reference; watch the KL estimate and chosen_fell",
            "ok": "that is within reach",
        }[severity]
    words = (
        f"{split}: gamma {of.gamma:.4g} with beta {of.beta:.4g} requires from the policy a log-ratio difference of "
        f"{of.nats['margin 1']:.4g} nats at a margin of one, {nats:.4g} at the median margin ({per_token:.2g} nats per "
        f"token of the median response, which has {of.response:.0f}), and {of.nats['largest margin']:.4g} at the "
        f"largest: {verdict}"
    )
    numbers: dict[str, Any] = {"gamma": of.gamma, "beta": of.beta, "nats": of.nats, "nats_per_token": of.per_token}
    return Finding("demand", severity, words, split, numbers={**numbers, "median_response": of.response})
