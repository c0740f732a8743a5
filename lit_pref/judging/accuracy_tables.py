"""Accuracy of a judge by groups of pairs: margin, source, difference of lengths."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from lit_pref.judging.comparison import Array, Interval, PromptBootstrap, mean_of


@dataclass(frozen=True)
class AccuracyGroup:
    """The accuracy of one group of pairs, with its interval over prompts, and the mean confidence there.

    A confidence above the accuracy is overconfidence in this group. `accuracy` is over the pairs with a preferred side;
    it is NaN if the group has none.
    """

    name: str
    pairs: int
    prompts: int
    accuracy: Interval
    confidence: float


def accuracy_by(
    groups: Sequence[str | None], right: ArrayLike, confidence: ArrayLike, prompts: Sequence[str]
) -> list[AccuracyGroup]:
    """Return the accuracy of each group, sorted by name; pairs of no group (None) come last, as "none".

    Args:
        groups: (n,) the group of each pair, e.g. its source.
        right: (n,) 1, 1/2 or 0, or NaN for a pair without a preferred side (`calibration.agreement`).
        confidence: (n,) max(q, 1 - q).
        prompts: (n,) the prompt of each pair.
    """
    names = sorted({name for name in groups if name is not None})
    index = [len(names) if name is None else names.index(name) for name in groups]
    return _accuracies(index, [*names, "none"], right, confidence, prompts)


def accuracy_by_quantile(
    values: ArrayLike, count: int, right: ArrayLike, confidence: ArrayLike, prompts: Sequence[str]
) -> list[AccuracyGroup]:
    """Return the accuracy of groups of about equal count by a number of each pair, the smallest numbers first.

    Equal numbers are in one group, that of their mean rank, so that there are fewer groups if many are tied. A group is
    named by the smallest and the largest number in it, e.g. "0.5 to 1"; pairs without a number come last, as "none".

    Args:
        values: (n,) e.g. margins, or differences of lengths; NaN for a pair without one.
        count: number of groups.
        right: as in `accuracy_by`.
        confidence: as in `accuracy_by`.
        prompts: (n,) the prompt of each pair.
    """
    array = np.asarray(values, dtype=np.float64)
    known = np.isfinite(array)
    levels, level, tied = np.unique(array[known], return_inverse=True, return_counts=True)
    middle = (np.cumsum(tied) - tied / 2) / max(1, int(known.sum()))  # the mean rank of equal values, in (0, 1)
    index = np.full(len(array), count)
    index[known] = (middle * count).astype(int)[level] if len(levels) else 0
    names = [_range(array[index == k]) for k in range(count)]
    return _accuracies(index, [*names, "none"], right, confidence, prompts)


def _accuracies(
    index: ArrayLike, names: list[str], right: ArrayLike, confidence: ArrayLike, prompts: Sequence[str]
) -> list[AccuracyGroup]:
    """Return the accuracy of each group that has pairs; `index` (n,) points into `names`."""
    present = np.unique(np.asarray(index))
    inside = np.asarray(index)[:, None] == present
    values = np.where(inside, np.asarray(right, dtype=np.float64)[:, None], np.nan)
    found = []
    for k, own, interval in zip(
        present.tolist(), inside.T, PromptBootstrap(prompts).intervals(mean_of(values)), strict=True
    ):
        prompts_here = len({prompts[row] for row in np.flatnonzero(own).tolist()})
        mean = float(np.asarray(confidence)[own].mean())
        found.append(AccuracyGroup(names[k], int(own.sum()), prompts_here, interval, mean))
    return found


def _range(values: Array) -> str:
    if not len(values):
        return ""
    low, high = float(values.min()), float(values.max())
    return f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"
