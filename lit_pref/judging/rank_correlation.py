"""Rank correlations of predicted with given margins, as statistics of weighted items."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lit_pref.judging.comparison import Array, Statistic

_BLOCK = 2**22
"""Entries of the matrix of pairs of items that are in memory at a time."""


def spearman_of(x: ArrayLike, y: ArrayLike) -> Statistic:
    """Return Spearman's correlation: Pearson's correlation of the ranks, where ties share their mean rank.

    The rank of an item in a resample is the weight below it plus half of the weight that is tied with it.

    **Source** Spearman, The American Journal of Psychology 15(1), 1904; mean ranks for ties: Kendall, Biometrika 33(3),
    1945.

    >>> spearman_of([1.0, 2.0, 3.0], [10.0, 30.0, 20.0])(np.ones((1, 3)))
    array([0.5])

    Args:
        x: (n,) finite values, e.g. predicted margins.
        y: (n,) finite values, e.g. given margins.
    """
    first, second = np.unique(x, return_inverse=True)[1], np.unique(y, return_inverse=True)[1]

    def correlation(weights: Array) -> Array:
        a, b = _ranks(first, weights), _ranks(second, weights)
        total = weights.sum(axis=1, keepdims=True)
        a -= (weights * a).sum(axis=1, keepdims=True) / total
        b -= (weights * b).sum(axis=1, keepdims=True) / total
        both, of_a, of_b = ((weights * product).sum(axis=1) for product in (a * b, a * a, b * b))
        with np.errstate(invalid="ignore"):
            return both / np.sqrt(of_a * of_b)

    return correlation


def _ranks(level: NDArray[np.intp], weights: Array) -> Array:
    """Return the weighted mean ranks, (R, n), of items with levels 0, 1, ..."""
    tied = _tied(level, weights)
    return (tied.cumsum(axis=1) - tied / 2)[:, level]


def kendall_of(x: ArrayLike, y: ArrayLike) -> Statistic:
    """Return Kendall's tau-b: (concordant - discordant) / sqrt((pairs not tied in x) (pairs not tied in y)).

    With the weights w it is the sum over i, j of w_i w_j sgn(x_i - x_j) sgn(y_i - y_j), divided by the root of the same
    sums over sgn² of x and of y; copies of an item in a resample are tied with it. n items need n² operations a
    resample.

    **Source** Kendall, Biometrika 33(3), 1945.

    >>> kendall_of([1.0, 2.0, 3.0], [10.0, 30.0, 20.0])(np.ones((1, 3))).round(6)
    array([0.333333])

    Args:
        x: (n,) finite values.
        y: (n,) finite values.
    """
    first, second = np.unique(x, return_inverse=True)[1], np.unique(y, return_inverse=True)[1]
    rows = max(1, _BLOCK // max(1, len(first)))

    def tau(weights: Array) -> Array:
        drawn = weights.astype(np.float32)  # sums of small integers are exact
        both = np.zeros(len(weights))
        for start in range(0, len(first), rows):
            block = slice(start, start + rows)
            signs = np.sign(first[block, None] - first) * np.sign(second[block, None] - second)
            both += ((drawn @ signs.T.astype(np.float32)) * weights[:, block]).sum(axis=1)
        total = weights.sum(axis=1) ** 2
        of_a, of_b = (total - (_tied(level, weights) ** 2).sum(axis=1) for level in (first, second))
        with np.errstate(invalid="ignore"):
            return both / np.sqrt(of_a * of_b)

    return tau


def _tied(level: NDArray[np.intp], weights: Array) -> Array:
    """Return the total weight of each level, (R, levels), of items with levels 0, 1, ..."""
    order = np.argsort(level, kind="stable")
    starts = np.searchsorted(level[order], np.arange(level.max() + 1))
    return np.add.reduceat(weights[:, order], starts, axis=1)
