"""Statistics of prepared pairs that need only their columns: margins, targets, and rules that ignore quality."""

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

Array = NDArray[Any]
QUANTILES = {"5 %": 0.05, "25 %": 0.25, "median": 0.5, "75 %": 0.75, "95 %": 0.95}
ENOUGH = 200
"""The number of pairs above which an accuracy is meaningful: its standard error is then below 0.036."""


class Pairs(Protocol):
    """The interface that `check` needs of prepared pairs; `PairView` provides it."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...

    @property
    def lengths(self) -> Array: ...

    def column(self, name: str) -> Array: ...


def spread(values: Array) -> dict[str, float]:
    """The smallest value, quantiles, the largest value and the mean; empty if there are no values.

    >>> spread(np.array([1.0, 2.0, 3.0]))["median"]
    2.0
    """
    if not len(values):
        return {}
    quantiles = np.quantile(values, list(QUANTILES.values()))
    middle = {name: float(value) for name, value in zip(QUANTILES, quantiles, strict=True)}
    return {"min": float(values.min()), **middle, "max": float(values.max()), "mean": float(values.mean())}


def share(truth: Array) -> float:
    """The share of true values; 0 if there are no values."""
    return float(np.mean(truth)) if len(truth) else 0.0


def evenly(number: int, most: int) -> list[int]:
    """Up to `most` evenly spaced indices below `number`.

    >>> evenly(10, 3), evenly(2, 3)
    ([0, 4, 9], [0, 1])
    """
    if number <= most:
        return list(range(number))
    return np.linspace(0, number - 1, most).astype(int).tolist()


def rank_correlation(a: Array, b: Array) -> float:
    """Spearman's rank correlation; tied values share their mean rank.

    >>> round(rank_correlation(np.array([1, 2, 2, 9]), np.array([1, 5, 6, 7])), 4)
    0.9487
    """

    def ranks(values: Array) -> Array:
        _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
        return (np.cumsum(counts) - (counts - 1) / 2)[group.reshape(-1)]

    if len(a) < 2 or len(np.unique(a)) < 2 or len(np.unique(b)) < 2:
        return math.nan
    return float(np.corrcoef(ranks(a), ranks(b))[0, 1])


# Margins


@dataclass(frozen=True)
class Margins:
    """Statistics of the margins; the counts are numbers of pairs.

    Args:
        pairs: those with a margin.
        zero: those with margin 0.
        clipped: those whose margins the mapping clipped.
        at_maximum: those with the largest margin, whether or not the mapping clipped it.
        distinct: the number of distinct margins.
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
        """The share of pairs with the largest margin."""
        return self.at_maximum / self.pairs

    @property
    def is_clip(self) -> bool:
        """Whether so many pairs have the largest margin that it must be a clip and not a measurement.

        A rating scale has few distinct values, and many pairs may legitimately have the largest one.
        """
        return self.at_maximum >= 20 and self.pile >= 0.05 and (self.distinct > 20 or self.pile > 0.5)


def margins(values: Array, clipped: Array) -> Margins | None:
    """Compute statistics of the margins; None if no pair has a margin.

    Args:
        values: (pairs,) margins, NaN if unknown.
        clipped: (pairs,) whether the mapping clipped the margin.
    """
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
class Demand:
    """The targets p = sigmoid(gamma m), and the log-ratio differences that the policy needs to reach them.

    Args:
        gamma: of the target, per unit of the margin.
        beta: reward units per nat.
        saturated: the share of targets that are exactly 1 in fp32.
        mean_target: the mean over pairs.
        nats: the log-ratio difference h_w - h_l = gamma m / beta that minimises the loss, at a margin of one, at the
            median and at the largest margin.
        per_token: the same, divided by the tokens of the median response.
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
    """Compute sigmoid(gamma m) in fp32, as training does; a tie gives one half, whatever gamma is."""
    m = torch.from_numpy(np.asarray(values, np.float64)).float()
    return torch.where(m == 0, 0.5, torch.sigmoid(gamma * m)).numpy()


def demand(gamma: float, beta: float, values: Array, lengths: Array, mean_scores: bool = False) -> Demand:
    """Compute the targets of a `MarginTarget` and how far the policy has to move to reach them.

    Args:
        gamma: of the target, per unit of the margin.
        beta: reward units per nat.
        values: (pairs,) margins.
        lengths: (pairs, 3) tokens of prompt, chosen, rejected.
        mean_scores: the objective uses mean log-probs (nats per token) instead of sums.
    """
    values = values[np.isfinite(values)]
    response = float(np.median(lengths[:, 1:]))
    at = {"margin 1": 1.0, "median margin": float(np.median(values)), "largest margin": float(values.max())}
    differences = {name: gamma * margin / beta for name, margin in at.items()}
    scale = response if mean_scores else 1.0
    probability = targets(gamma, values)
    return Demand(
        gamma=gamma,
        beta=beta,
        saturated=share(probability == 1),
        mean_target=float(probability.astype(np.float64).mean()),
        nats={name: value * scale for name, value in differences.items()},
        per_token={name: value * scale / response for name, value in differences.items()},
        response=response,
    )


# Shortcuts


@dataclass(frozen=True)
class Shortcut:
    """The accuracy of a rule that ignores the meaning of the texts.

    Args:
        rule: a description.
        accuracy: over the pairs to which it applies, without ties in strength.
        pairs: the number of pairs to which it applies.
        share: the same as a share of all pairs that are not ties.
        prompts: the share of the prompts to which it applies.
    """

    rule: str
    accuracy: float
    pairs: int
    share: float
    prompts: float


def shortcuts(pairs: Pairs) -> list[Shortcut]:
    """Evaluate the rules for which these pairs have data; of two opposite rules, the more accurate one is returned."""
    decided = ~pairs.column("tie").astype(bool)
    if not decided.any():
        return []
    prompts = np.unique(pairs.column("prompt_id").astype(str), return_inverse=True)[1]
    number = len(np.unique(prompts[decided]))

    def rule(wins: Array, loses: Array, words: str, opposite: str) -> list[Shortcut]:
        applies = decided & (wins | loses)
        count = int(applies.sum())
        if not count:
            return []
        accuracy, reach = share(wins[applies]), len(np.unique(prompts[applies])) / number
        words, accuracy = (words, accuracy) if accuracy >= 0.5 else (opposite, 1 - accuracy)
        return [Shortcut(words, accuracy, count, count / int(decided.sum()), reach)]

    difference = pairs.lengths[:, 1] - pairs.lengths[:, 2]
    two_sided = pairs.lengths[:, 2] > 0
    longer = rule(
        (difference > 0) & two_sided,
        (difference < 0) & two_sided,
        "the longer response wins",
        "the shorter response wins",
    )
    first = pairs.column("chosen_first").astype(float)
    found = longer + rule(first == 1, first == 0, "the first in the source wins", "the second in the source wins")
    for name, wins, loses in _writers(pairs, decided):
        found += rule(wins, loses, f"a response of {name} wins", f"a response of {name} loses")
    return found


def _writers(pairs: Pairs, decided: Array) -> list[tuple[str, Array, Array]]:
    """The most frequent writer of responses, and up to three others that nearly always win or lose."""
    sides = [pairs.column(f"{side}_source") for side in ("chosen", "rejected")]
    known = np.array([a is not None and b is not None for a, b in zip(*sides, strict=True)], bool)
    if not known.any():
        return []
    names, codes = np.unique(np.concatenate([side[known].astype(str) for side in sides]), return_inverse=True)
    won, lost = np.full(len(known), -1), np.full(len(known), -1)
    won[known], lost[known] = np.split(codes, 2)
    counted = decided & known & (won != lost)
    wins, losses = (np.bincount(side[counted], minlength=len(names)) for side in (won, lost))
    total = wins + losses
    sided = np.abs(wins / np.maximum(total, 1) - 0.5) >= 0.15
    order = np.argsort(-total, kind="stable")
    chosen = [order[0], *[k for k in order[1:] if sided[k] and total[k] >= ENOUGH][:3]]
    return [(str(names[k]), (won == k) & (lost != k), (lost == k) & (won != k)) for k in chosen if total[k]]
