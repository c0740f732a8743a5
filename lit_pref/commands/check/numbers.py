"""The numbers of prepared pairs, from their columns alone: no model, no text."""

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

Array = NDArray[Any]
QUANTILES = {"5 %": 0.05, "25 %": 0.25, "median": 0.5, "75 %": 0.75, "95 %": 0.95}
ENOUGH = 200
"""Pairs from which on an accuracy says something: its standard error is below 0.035."""


class Pairs(Protocol):
    """What is asked of prepared pairs; `PairView` is one."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...

    @property
    def lengths(self) -> Array: ...

    def column(self, name: str) -> Array: ...


def spread(values: Array) -> dict[str, float]:
    """Smallest, quantiles, largest and mean; empty where there are no values.

    >>> spread(np.array([1.0, 2.0, 3.0]))["median"]
    2.0
    """
    if not len(values):
        return {}
    quantiles = np.quantile(values, list(QUANTILES.values()))
    middle = {name: float(value) for name, value in zip(QUANTILES, quantiles, strict=True)}
    return {"min": float(values.min()), **middle, "max": float(values.max()), "mean": float(values.mean())}


def share(truth: Array) -> float:
    """The share of true values; 0 where there are none."""
    return float(np.mean(truth)) if len(truth) else 0.0


# Margins


@dataclass(frozen=True)
class Margins:
    """Counts are of pairs.

    Args:
        pairs: with a margin.
        zero: with a margin of 0.
        clipped: cut to the mapping's bound.
        at_maximum: equal to the largest margin, whoever made them so.
        distinct: different values.
        whole: all margins are whole numbers.
        spread: see `spread`.
    """

    pairs: int
    zero: int
    clipped: int
    at_maximum: int
    distinct: int
    whole: bool
    spread: dict[str, float]

    @property
    def pile(self) -> float:
        """The share at the largest margin."""
        return self.at_maximum / self.pairs

    @property
    def is_clip(self) -> bool:
        """So many are equal at the largest margin that it is a bound and no measurement.

        A rating scale has few different values, and many pairs at the largest of them by right.
        """
        return self.at_maximum >= 20 and self.pile >= 0.05 and (self.distinct > 20 or self.pile > 0.5)


def margins(values: Array, clipped: Array) -> Margins | None:
    """What there is to say of margins; None where no pair has one."""
    known = np.isfinite(values)
    values, clipped = values[known], clipped[known].astype(bool)
    if not len(values):
        return None
    largest = values.max()
    return Margins(
        pairs=len(values),
        zero=int((values == 0).sum()),
        clipped=int(clipped.sum()),
        at_maximum=int((values >= largest - 1e-9 * abs(largest)).sum()),
        distinct=len(np.unique(values)),
        whole=bool((values == np.round(values)).all()),
        spread=spread(values),
    )


@dataclass(frozen=True)
class Asked:
    """What p = sigmoid(gamma m) makes of the margins, and asks of the policy.

    Args:
        saturated: share of the targets that are exactly 1 in fp32.
        mean_target: over pairs.
        nats: the log-ratio difference h_w - h_l = gamma m / beta at which the loss has its minimum, at a margin of one,
            at the median and at the largest margin.
        per_token: the same for each token of the median response.
        response: tokens of the median response.
    """

    gamma: float
    beta: float
    saturated: float
    mean_target: float
    nats: dict[str, float]
    per_token: dict[str, float]
    response: float


def targets(gamma: float, values: Array) -> NDArray[np.float32]:
    """sigmoid(gamma m) in fp32, as a run computes it; a tie is one half whatever gamma is."""
    m = torch.from_numpy(np.asarray(values, np.float64)).float()
    return torch.where(m == 0, 0.5, torch.sigmoid(gamma * m)).numpy()


def asked(gamma: float, beta: float, values: Array, lengths: Array, mean_scores: bool = False) -> Asked:
    """What a `MarginTarget` asks of a policy.

    Args:
        gamma: of the target, per unit of the margin.
        beta: reward units per nat.
        values: (pairs,) margins.
        lengths: (pairs, 3), tokens of prompt, chosen, rejected.
        mean_scores: the objective reads mean log-probs, nats per token, and not sums.
    """
    values = values[np.isfinite(values)]
    response = float(np.median(lengths[:, 1:]))
    at = {"margin 1": 1.0, "median margin": float(np.median(values)), "largest margin": float(values.max())}
    read = {name: gamma * margin / beta for name, margin in at.items()}
    scale = response if mean_scores else 1.0
    probability = targets(gamma, values)
    return Asked(
        gamma=gamma,
        beta=beta,
        saturated=share(probability == 1),
        mean_target=float(probability.astype(np.float64).mean()),
        nats={name: value * scale for name, value in read.items()},
        per_token={name: value * scale / response for name, value in read.items()},
        response=response,
    )


def evenly(number: int, most: int) -> list[int]:
    """Up to `most` indices below `number`, evenly spread.

    >>> evenly(10, 3), evenly(2, 3)
    ([0, 4, 9], [0, 1])
    """
    if number <= most:
        return list(range(number))
    return np.linspace(0, number - 1, most).astype(int).tolist()


def rank_correlation(a: Array, b: Array) -> float:
    """Spearman's; ties share their mean rank.

    >>> round(rank_correlation(np.array([1, 2, 2, 9]), np.array([1, 5, 6, 7])), 4)
    0.9487
    """

    def ranks(values: Array) -> Array:
        _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
        return (np.cumsum(counts) - (counts - 1) / 2)[group.reshape(-1)]

    if len(a) < 2 or len(np.unique(a)) < 2 or len(np.unique(b)) < 2:
        return math.nan
    return float(np.corrcoef(ranks(a), ranks(b))[0, 1])
