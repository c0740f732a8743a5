"""Estimates of gamma in p = sigmoid(gamma m), with their intervals; derived in `gamma.Fitted`."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lit_pref.errors import UserError


class Estimate(NamedTuple):
    """A fitted gamma and its 95 % interval."""

    gamma: float
    low: float
    high: float


def student_975(freedom: int) -> float:
    """Return the 97.5 % quantile of Student's t distribution.

    **Source** Abramowitz and Stegun, Handbook of Mathematical Functions (1964), 26.7.3 and 26.7.4 (the probability as
    a finite sum), and 26.7.5 above 500 degrees of freedom.

    >>> [round(student_975(freedom), 3) for freedom in (1, 2, 9, 49, 1000)]
    [12.706, 4.303, 2.262, 2.01, 1.962]
    """
    if freedom < 1:
        return math.inf
    z = 1.959963984540054  # of the normal distribution
    if freedom > 500:
        return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    low, high = z, 13.0
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if student_within(middle, freedom) < 0.95 else (low, middle)
    return middle


def student_within(t: float, freedom: int) -> float:
    """Return P(|T| < t) under Student's t distribution."""
    angle = math.atan(t / math.sqrt(freedom))
    odd = freedom % 2
    term = math.cos(angle) if odd else 1.0
    total = term if freedom > 1 else 0.0
    for k in range(2 + odd, freedom - 1, 2):
        term *= math.cos(angle) ** 2 * (k - 1) / k
        total += term
    return 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total


def labels_of_repeats(responses: Sequence[tuple[bytes, bytes]], margin: Tensor) -> Tensor:
    """Return, for each pair, how often its chosen text wins in other comparisons of the same texts (`gamma.Fitted`).

    >>> labels_of_repeats([(b"a", b"b"), (b"b", b"a"), (b"a", b"b"), (b"a", b"c")], torch.tensor([2.0, 1.0, 1.0, 1.0]))
    tensor([0.5000, 0.0000, 0.5000,    nan], dtype=torch.float64)

    Args:
        responses: (P, 2) identifiers of the chosen and of the rejected response.
        margin: (P,); 0 is a tie.
    """
    # For each two compared texts, in a fixed order: the number of comparisons, and of those that prefer the first text.
    votes = [0.5 if m == 0 else float((m > 0) == (a < b)) for (a, b), m in zip(responses, margin.tolist(), strict=True)]
    totals: dict[tuple[bytes, bytes], tuple[int, float]] = {}
    for (a, b), vote in zip(responses, votes, strict=True):
        count, first = totals.get((min(a, b), max(a, b)), (0, 0.0))
        totals[min(a, b), max(a, b)] = count + 1, first + vote
    labels = []
    for (a, b), vote in zip(responses, votes, strict=True):
        count, first = totals[min(a, b), max(a, b)]
        share = (first - vote) / (count - 1) if count > 1 else math.nan
        labels.append(share if a < b else 1 - share)
    return torch.tensor(labels, dtype=torch.float64)


def log_odds_factor(margin: Tensor, labels: Tensor) -> float | None:
    """Return the factor by which the margins become the labels' log-odds, up to a bound; None if there is none.

    Both may be rounded: with the median factor of the pairs below the bound, every label must be sigmoid(factor m) to
    four digits; at the bound it may be further from one half. Below the bound there must be at least two different
    margins, because a single one fits some factor whatever the labels are.

    >>> labels = torch.tensor([0.6, 0.7, 0.9, 0.999])
    >>> round(log_odds_factor((2 * labels.logit()).clamp(max=5), labels), 4)
    0.5
    >>> log_odds_factor(torch.arange(1, 5), labels) is None
    True

    Args:
        margin: (P,).
        labels: (P,), NaN for a pair without a label.
    """
    known = ~labels.isnan()
    margin, labels = margin[known].double(), labels[known].double()
    size = margin.abs()
    bound = size.max() * (1 - 1e-6)
    below = (size < bound) & (margin != 0) & (labels > 0) & (labels < 1)
    if len(size[below].unique()) < 2:
        return None
    factor = (labels[below].logit() / margin[below]).median()
    expected = torch.sigmoid(factor * margin)
    beyond = torch.where(margin > 0, labels - expected, expected - labels) >= -1e-4
    fits = bool(((labels - expected).abs() <= 1e-4).logical_or((size >= bound) & beyond).all()) and float(factor) > 0
    return float(factor) if fits else None


def by_likelihood(margin: Tensor, labels: Tensor, prompts: Sequence[str], name: str = "the labels") -> Estimate:
    """Return the gamma under which the labels are likeliest; see `gamma.Fitted`.

    Args:
        margin: (P,) float64.
        labels: (P,) float64, in [0, 1]: the probability that the chosen response is better.
        prompts: the prompts of the pairs.
        name: the name of the labels, for messages.

    Raises:
        UserError: the likelihood has no maximum above zero and below infinity.
    """
    if not bool(((labels >= 0) & (labels <= 1)).all()):
        raise UserError(
            f"gamma cannot be fitted to {name}, which has values outside of [0, 1]: give the probability that the "
            "chosen response is better"
        )
    if float((margin * (labels - 0.5)).sum()) <= 0:
        raise UserError(
            f"gamma cannot be fitted to {name}: larger margins do not make the chosen response likelier there; check "
            "that margins and labels have the same orientation, or give gamma as a number"
        )
    if not bool((torch.where(margin > 0, 1 - labels, labels)[margin != 0] > 0).any()):
        raise UserError(
            f"gamma cannot be fitted to {name}, which contradicts no margin, so that every gamma is too small: take "
            "labels that were made without the margin, or `gamma: .inf` for hard labels"
        )

    def terms(gamma: float) -> tuple[Tensor, Tensor]:
        p = torch.sigmoid(gamma * margin)
        return margin * (p - labels), margin.square() * p * (1 - p)

    return _solve(terms, 1 / float(margin.abs().mean()), prompts)


def by_mean_probability(margin: Tensor, probability: float, prompts: Sequence[str]) -> Estimate:
    """Return the gamma under which sigmoid(gamma m) has this mean over the pairs; see `gamma.Fitted`.

    Args:
        margin: (P,) float64.
        probability: in (1/2, 1).
        prompts: the prompts of the pairs.

    Raises:
        UserError: no gamma gives this mean, because too many pairs are ties.
    """
    ties = int((margin == 0).sum())
    highest = (int((margin > 0).sum()) + ties / 2) / len(margin)
    if highest <= probability:
        raise UserError(
            f"gamma cannot be fitted so that the mean probability is {probability:g}: {ties:,} of {len(margin):,} "
            f"pairs are ties, with which it stays below {highest:.4g}; lower mean_probability, or leave ties out "
            "(data.ties: drop)"
        )

    def terms(gamma: float) -> tuple[Tensor, Tensor]:
        p = torch.sigmoid(gamma * margin)
        return p - probability, margin * p * (1 - p)

    return _solve(terms, 1 / float(margin.abs().mean()), prompts)


def _solve(terms: Callable[[float], tuple[Tensor, Tensor]], start: float, prompts: Sequence[str]) -> Estimate:
    """Return the root of sum_i psi_i, which is negative at 0 and positive at infinity, with its interval.

    Args:
        terms: psi_i and its derivative at a gamma, each (P,).
        start: a gamma of the right order of magnitude.
        prompts: the prompts of the pairs.
    """
    low, high = 0.0, start
    while float(terms(high)[0].sum()) < 0:
        low, high = high, 2 * high
    gamma = high
    while True:  # Newton's method; if a step leaves the bracket, the bracket is halved instead
        psi, slope = terms(gamma)
        total = float(psi.sum())
        low, high = (gamma, high) if total < 0 else (low, gamma)
        step = gamma - total / max(float(slope.sum()), 1e-300)
        if abs(step - gamma) <= 1e-12 * gamma or high - low <= 1e-12 * high:
            break
        gamma = step if low < step < high else (low + high) / 2
    numbers = {prompt: k for k, prompt in enumerate(dict.fromkeys(prompts))}
    clusters = torch.bincount(torch.tensor([numbers[prompt] for prompt in prompts]), weights=psi)
    # A single prompt does not show how prompts differ: 1 / 0 makes the interval infinite.
    correction = torch.tensor(float(len(clusters))) / (len(clusters) - 1)
    error = (correction * clusters.square().sum()).sqrt() / slope.sum()
    factor = float(torch.exp(student_975(len(clusters) - 1) * error / gamma))
    return Estimate(gamma, gamma / factor, gamma * factor)
