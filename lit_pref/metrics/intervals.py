"""Intervals over prompts of the mean of a value of pairs, which have width on few prompts and at shares of 0 and 1."""

import math
from collections.abc import Hashable, Mapping, Sequence

import torch
from torch import Tensor

from lit_pref.metrics.pair_metrics import bootstrap_interval
from lit_pref.metrics.records import Records
from lit_pref.objectives.parts.estimation import student_975

FEW_PROMPTS = 20
"""Below so many prompts, bootstrap intervals are too narrow, because resampling finds no prompt that was not drawn."""
_NORMAL_975 = 1.959963984540054


def prompt_intervals(records: Records, values: Mapping[str, Tensor]) -> dict[str, tuple[float, float]]:
    """Return the 95 % interval over prompts of the mean of each value; left out where pairs have none.

    Shares get `share_interval`. Other means get the bootstrap over prompts, or `mean_interval` on few prompts; one
    prompt has no such interval.

    Args:
        records: merged records.
        values: name -> (pairs,) one value of every pair of the records.
    """
    prompts = records.get("prompt") or records["id"]
    found = {name: _interval(v, prompts) for name, v in values.items() if len(v) == len(prompts) > 0}
    return {name: interval for name, interval in found.items() if interval is not None}


def _interval(values: Tensor, prompts: Sequence[Hashable]) -> tuple[float, float] | None:
    # Ties alone are no share: a policy that equals its reference ties on any prompt.
    if ((values == 0) | (values == 0.5) | (values == 1)).all() and (values != 0.5).any():
        return share_interval(values, prompts)
    if len(set(prompts)) >= FEW_PROMPTS:
        return bootstrap_interval(values, prompts, seed=0)
    return None if len(set(prompts)) == 1 else mean_interval(values, prompts)


def share_interval(values: Tensor, clusters: Sequence[Hashable]) -> tuple[float, float]:
    """Return the 95 % Wilson interval of a share over pairs, with the effective number of independent pairs.

    That number is p (1 - p) / v, at most the number of pairs, with v the variance of the share over clusters, and it is
    reduced by (1.96 / t)² as v has clusters - 1 degrees of freedom. Where v is 0 it is the number of clusters.

    **Source** Wilson, JASA 22 (1927); the effective number: Korn and Graubard, Survey Methodology 24 (1998).

    Args:
        values: (n,) 0, 1/2 (a tie) or 1 for each pair.
        clusters: the cluster of each pair, such as its prompt.

    >>> low, high = share_interval(torch.ones(3), "abc")  # three of three prompts are right
    >>> round(low, 3), high
    (0.439, 1.0)
    """
    share, variance, number = _mean_and_variance(values, clusters)
    effective = float(number)
    if variance > 0:
        effective = min(len(values), share * (1 - share) / variance) * (_NORMAL_975 / student_975(number - 1)) ** 2
    return wilson(share, effective)


def mean_interval(values: Tensor, clusters: Sequence[Hashable]) -> tuple[float, float]:
    """Return the 95 % interval of a mean over pairs by Student's t distribution with clusters - 1 degrees of freedom.

    Args:
        values: (n,) one value per pair.
        clusters: the cluster of each pair, such as its prompt; at least two are different.

    >>> low, high = mean_interval(torch.tensor([1.0, 2.0, 3.0]), "abc")
    >>> round(low, 3), round(high, 3)  # 2 ± 4.303 / sqrt(3)
    (-0.484, 4.484)
    """
    mean, variance, number = _mean_and_variance(values, clusters)
    half = student_975(number - 1) * math.sqrt(variance)
    return mean - half, mean + half


def wilson(share: float, count: float) -> tuple[float, float]:
    """Return the 95 % Wilson interval of a share of `count` independent trials.

    >>> low, high = wilson(0.5, 100)
    >>> round(low, 3), round(high, 3)
    (0.404, 0.596)
    """
    scale = count + _NORMAL_975**2
    centre = (count * share + _NORMAL_975**2 / 2) / scale
    half = _NORMAL_975 / scale * math.sqrt(count * share * (1 - share) + _NORMAL_975**2 / 4)
    return max(0.0, centre - half), min(1.0, centre + half)


def _mean_and_variance(values: Tensor, clusters: Sequence[Hashable]) -> tuple[float, float, int]:
    """Return the mean over pairs, its variance over clusters (0 for a single one), and the number of clusters."""
    number = {name: k for k, name in enumerate(dict.fromkeys(clusters))}
    index = torch.tensor([number[name] for name in clusters])
    zeros = torch.zeros(len(number), dtype=torch.float64)
    deviations = values.detach().double().cpu() - (mean := float(values.double().mean()))
    sums = zeros.index_add(0, index, deviations)
    freedom = max(1, len(number) - 1)
    return mean, float(sums.square().sum()) / len(values) ** 2 * len(number) / freedom * (len(number) > 1), len(number)
