"""What the objective makes of the margins and asks of the policy, as findings."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from lit_pref.commands.check import numbers as n
from lit_pref.commands.check.findings import Finding, Severity, percent
from lit_pref.commands.check.numbers import Pairs
from lit_pref.objectives.base import Objective
from lit_pref.objectives.pairwise import Pairwise
from lit_pref.objectives.parts.link import Logistic, ReverseKL
from lit_pref.objectives.parts.score import Identity
from lit_pref.objectives.parts.target import MarginTarget
from lit_pref.objectives.parts.tokens import Mean, Sum

NATS = (30.0, 100.0)
PER_TOKEN = (0.15, 0.5)
"""A log-ratio difference that is much, and one that is out of reach: in nats, and in nats per token of a response.

The gap opens between two responses, half on each: at 0.5 nats per token a text of 100 tokens has to become e^25 times
likelier than it is, and the other one so much less likely. A policy that does that has left its reference.
"""


@dataclass(frozen=True)
class Strength:
    """How an objective reads margins: gamma of its target; beta, and whether scores are means, where the optimum of its
    loss is known to be at gamma m / beta."""

    gamma: float
    beta: float | None
    mean_scores: bool


def strength_of(objective: Objective) -> Strength | None:
    """None where no target is made of margins.

    Raises:
        UserError: gamma is to be fitted and was not.
    """
    target = next((part for part in objective.modules() if isinstance(part, MarginTarget)), None)
    if target is None:
        return None
    gamma = target.strength
    if not isinstance(objective, Pairwise):
        return Strength(gamma, None, False)
    known = isinstance(objective.link, Logistic | ReverseKL) and isinstance(objective.score, Identity)
    known = known and type(objective.tokens) in (Sum, Mean)
    return Strength(gamma, objective.beta if known else None, type(objective.tokens) is Mean)


def target_findings(split: str, pairs: Pairs, strength: Strength | None) -> list[Finding]:
    """How many targets say what a hard label says, and how far the policy would have to go."""
    values = pairs.column("margin").astype(float) if len(pairs) else np.zeros(0)
    if strength is None or not np.isfinite(values).any():
        return []
    of = n.asked(strength.gamma, strength.beta or 1.0, values, pairs.lengths, strength.mean_scores)
    found = [_saturation(split, of)]
    return [*found, _demand(split, of)] if strength.beta is not None else found


def _saturation(split: str, of: n.Asked) -> Finding:
    severity: Severity = "ok"
    if of.saturated >= 0.25 or of.mean_target >= 0.99:
        severity = "warning"
    elif of.saturated >= 0.01 or of.mean_target >= 0.95:
        severity = "note"
    words = f"{split}: with gamma {of.gamma:.4g} the mean target is {of.mean_target:.4f}"
    words += f", and {percent(of.saturated)} of the targets are exactly 1 in fp32"
    if severity == "warning":
        words += ": hard labels in all but name, a smaller gamma lets margins speak"
    numbers = {"gamma": of.gamma, "saturated": of.saturated, "mean_target": of.mean_target}
    return Finding("target", severity, words, split, numbers=numbers)


def _demand(split: str, of: n.Asked) -> Finding:
    """The log-ratio difference at which the loss is least."""
    at = "median margin"
    nats, per_token = of.nats[at], of.per_token[at]
    beyond = nats > NATS[1] or per_token > PER_TOKEN[1] or of.nats["margin 1"] > NATS[1]
    much = nats > NATS[0] or per_token > PER_TOKEN[0]
    severity: Severity = "warning" if beyond else "note" if much else "ok"
    if not np.isfinite(of.gamma):
        severity, verdict = "ok", "an infinite gamma is hard labels: no finite gap is enough, as in DPO"
    else:
        verdict = {
            "warning": "more than a policy near its reference can do: the loss will push as with hard labels, so lower "
            "gamma or raise beta",
            "note": "a long way from the reference: watch the KL estimate and chosen_fell",
            "ok": "within reach",
        }[severity]
    words = (
        f"{split}: gamma {of.gamma:.4g} with beta {of.beta:.4g} asks the policy for a log-ratio difference of "
        f"{of.nats['margin 1']:.4g} nats at a margin of one, {nats:.4g} at the median margin ({per_token:.2g} for each "
        f"of the {of.response:.0f} tokens of the median response), {of.nats['largest margin']:.4g} at the largest: "
        f"{verdict}"
    )
    numbers: dict[str, Any] = {"gamma": of.gamma, "beta": of.beta, "nats": of.nats, "nats_per_token": of.per_token}
    return Finding("demand", severity, words, split, numbers={**numbers, "median_response": of.response})
