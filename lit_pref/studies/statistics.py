"""Statistics over seeds: t intervals of means and of paired differences, sign counts, Holm's correction, rank order."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lit_pref.judging.comparison import Interval
from lit_pref.judging.rank_correlation import spearman_of
from lit_pref.objectives.parts.estimation import student_975, student_within


def t_interval(values: Sequence[float]) -> Interval:
    """Return the mean of independent values with its 95 % interval by Student's t; one value has an infinite one.

    >>> print(t_interval([1.0, 2.0, 3.0]))
    2 (-0.4841 to 4.484)
    """
    n, mean = len(values), float(np.mean(values))
    if n < 2:
        return Interval(mean, -math.inf, math.inf)
    half = student_975(n - 1) * float(np.std(values, ddof=1)) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half)


def t_probability(values: Sequence[float]) -> float:
    """Return the two-sided p-value of Student's t test that the mean of independent values is 0.

    >>> round(t_probability([1.0, 2.0, 3.0]), 4)  # t = 3.464 with 2 degrees of freedom
    0.0742
    """
    n, mean = len(values), float(np.mean(values))
    if n < 2:
        return math.nan
    error = float(np.std(values, ddof=1)) / math.sqrt(n)
    if error == 0:
        return 1.0 if mean == 0 else 0.0
    return max(0.0, 1.0 - student_within(abs(mean) / error, n - 1))


def holm(probabilities: Sequence[float]) -> list[float]:
    """Return Holm's corrected p-values, in the same order; NaN stays NaN and is not counted.

    **Source** Holm, Scandinavian Journal of Statistics 6 (1979).

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    known = sorted((p, k) for k, p in enumerate(probabilities) if not math.isnan(p))
    corrected = [math.nan] * len(probabilities)
    largest = 0.0
    for rank, (p, k) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * p))
        corrected[k] = largest
    return corrected


@dataclass(frozen=True)
class Paired:
    """The paired difference of two cells over the seeds that both have.

    Args:
        difference: its mean with the 95 % t interval.
        better: seeds in which the first cell is better.
        seeds: seeds that both have.
        probability: the p-value, before any correction.
    """

    difference: Interval
    better: int
    seeds: int
    probability: float

    @property
    def identical(self) -> bool:
        """Whether both cells have the same number in every seed."""
        return self.seeds > 1 and self.difference.value == 0 and self.difference.low == 0


def paired(first: dict[int, float], second: dict[int, float], goal: str) -> Paired | None:
    """Compare two cells, seed -> value, on the seeds that both have; None if there is none."""
    shared = sorted(first.keys() & second.keys())
    if not shared:
        return None
    differences = [first[seed] - second[seed] for seed in shared]
    better = sum(d > 0 if goal == "max" else d < 0 for d in differences)
    return Paired(t_interval(differences), better, len(shared), t_probability(differences))


def spearman(first: Sequence[float], second: Sequence[float]) -> float:
    """Return Spearman's rank correlation; NaN below three items or where one side has no order."""
    if len(first) < 3:
        return math.nan
    return float(spearman_of(first, second)(np.ones((1, len(first))))[0])


def decimals(of: Interval) -> int:
    """The decimals that show two digits of an interval's half-width."""
    half = of.high - of.value
    if not math.isfinite(half) or half <= 0:
        return 3
    return min(8, max(0, 1 - math.floor(math.log10(half))))


def signed(difference: Interval) -> str:
    """Format a difference with its interval; that of one seed has none.

    >>> signed(Interval(0.0999, 0.0658, 0.134)), signed(Interval(0.1, -math.inf, math.inf))
    ('+0.100 [+0.066, +0.134]', '+0.100')
    >>> signed(Interval(-0.001, -0.13, 0.128))
    '+0.00 [-0.13, +0.13]'
    """
    digits = decimals(difference)
    # Adding 0 turns -0.0 into 0.0, which a rounded difference below zero would be printed as.
    value, low, high = (round(v, digits) + 0.0 for v in (difference.value, difference.low, difference.high))
    bounds = "" if math.isinf(low) else f" [{low:+.{digits}f}, {high:+.{digits}f}]"
    return f"{value:+.{digits}f}{bounds}"
