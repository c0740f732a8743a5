"""Metrics of pairs: every metric is the mean over pairs of a function of the values of a pair."""

import math
from bisect import bisect_right
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lit_pref.metrics.list_metrics import summarise_lists
from lit_pref.metrics.meaning import Meaning
from lit_pref.metrics.records import Records, select


def accuracy(z: Tensor) -> Tensor:
    """Return, for each pair, 1 if z > 0, 1/2 if z = 0, 0 if z < 0, and NaN if z is not finite (`z > 0` would hide it).

    >>> accuracy(torch.tensor([2.0, 0.0, -1.0, float("nan")]))
    tensor([1.0000, 0.5000, 0.0000,    nan])
    """
    return z.sign().add_(1).mul_(0.5).add_(z - z)  # adds 0, or NaN if z is not finite


def _below_zero(change: Tensor) -> Tensor:
    return (change - change).sub_(change.sign().clamp_(max=0))


def _itself(value: Tensor) -> Tensor:
    return value


class Measure(NamedTuple):
    """A metric: the mean over pairs of `function`, applied to the values of a pair that `inputs` name."""

    inputs: tuple[str, ...]
    function: Callable[..., Tensor]
    meaning: Meaning


def _mean_of(name: str, formula: str, unit: str) -> Measure:
    return Measure((name,), _itself, Meaning(formula, unit))


_REWARD = "beta (log π(y) - log π_ref(y)), as the objective defines it, of the {} response"
MEASURES: dict[str, Measure] = {
    "loss": _mean_of("loss", "the objective's loss", "nats, for a log-loss"),
    "rewards/chosen": _mean_of("chosen_reward", _REWARD.format("chosen"), "reward"),
    "rewards/rejected": _mean_of("rejected_reward", _REWARD.format("rejected"), "reward"),
    "rewards/margins": _mean_of("z", "z = chosen reward - rejected reward", "reward"),
    "rewards/accuracies": Measure(("z",), accuracy, Meaning("1 if z > 0, 1/2 if z = 0, else 0", "1")),
    "rewards/accuracies@reference0": Measure(
        ("z_reference0",), accuracy, Meaning("the same with reference 0 alone, if there are several references", "1")
    ),
    "logps/chosen": _mean_of("chosen_logp", "log π(chosen), summed over its tokens", "nats"),
    "logps/rejected": _mean_of("rejected_logp", "log π(rejected), summed over its tokens", "nats"),
    "chosen_fell": Measure(
        ("chosen_change",), _below_zero, Meaning("1 if log π(chosen) < log π_reference0(chosen), else 0", "1")
    ),
    "lengths/chosen": _mean_of("chosen_length", "tokens of the chosen response", "tokens"),
    "lengths/rejected": _mean_of("rejected_length", "tokens of the rejected response", "tokens"),
}
"""Every metric that is computed from the values of pairs (see `pair_values`). The names are TRL's where TRL has one."""

NOT_MEASURED = frozenset({"id", "group", "prompt", "list", "place", "margin", "probability"}) | {
    name for measure in MEASURES.values() for name in measure.inputs
}
"""Columns whose mean is not reported under their own name; any other column is a value that the objective logged."""

TOTALS: dict[str, Meaning] = {
    "train/pairs": Meaning("pairs since the last log line, over all ranks", "pairs"),
    "train/response_tokens": Meaning("tokens of both responses since the last log line, over all ranks", "tokens"),
    "val/pairs": Meaning("evaluated pairs, each id once", "pairs"),
    "val/non_finite_pairs": Meaning("pairs with a value that is NaN or infinite", "pairs"),
}
"""Totals that are reported in addition to the means."""

_TAKEN = MEASURES.keys() | {tag.partition("/")[2] for tag in TOTALS}


def _logged(names: Iterable[str]) -> list[str]:
    logged = [name for name in names if name not in NOT_MEASURED]
    if taken := [name for name in logged if name in _TAKEN]:
        raise ValueError(f"an objective may not log {', '.join(taken)}: a metric already has that name")
    return logged


def measures(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return, per pair, each metric whose inputs are among these values: name -> (B,); other values are unchanged."""
    measured = {
        name: measure.function(*[values[key] for key in measure.inputs])
        for name, measure in MEASURES.items()
        if all(key in values for key in measure.inputs)
    }
    measured.update((name, values[name]) for name in _logged(values))
    return measured


def per_pair(records: Records) -> dict[str, Tensor]:
    """Return each metric from records: metric name -> (pairs that have it,) in float64."""
    metrics = {name: (measure.inputs, measure.function) for name, measure in MEASURES.items()}
    metrics.update((name, ((name,), _itself)) for name in _logged(records))
    result = {}
    for name, (inputs, function) in metrics.items():
        columns = [records.get(key, []) for key in inputs]
        rows = [row for row in zip(*columns, strict=False) if None not in row]
        if rows:
            result[name] = function(*torch.tensor(rows, dtype=torch.float64).T)
    return result


def summarise(records: Records, prefix: str = "val") -> dict[str, float]:
    """Return the metrics of merged records, under `prefix/`: exact means over pairs, and totals.

    For lists of responses, `PREFIX/loss` is the mean over lists, and `PREFIX/lists/` has their metrics (see
    `summarise_lists`); the other metrics are means over responses.

    A metric is the mean over the pairs that have its values. A non-finite value is not left out: it makes the mean
    non-finite, and `non_finite_pairs` counts the pairs that have one.

    >>> summarise({"id": ["a", "b"], "z": [3.0, 0.0]})
    {'val/rewards/margins': 1.5, 'val/rewards/accuracies': 0.75, 'val/pairs': 2, 'val/non_finite_pairs': 0}
    """
    summary: dict[str, float] = {f"{prefix}/{name}": value.mean().item() for name, value in per_pair(records).items()}
    summary[f"{prefix}/pairs"] = len(records["id"])
    summary[f"{prefix}/non_finite_pairs"] = len(non_finite_pairs(records))
    return summary | summarise_lists(records, prefix)


def non_finite_pairs(records: Records) -> list[str]:
    """Return the ids of the pairs with a value that is NaN or infinite.

    >>> non_finite_pairs({"id": ["a", "b"], "loss": [0.5, float("nan")]})
    ['b']
    """
    bad = {
        pair_id
        for column in records.values()
        for pair_id, value in zip(records["id"], column, strict=True)
        if isinstance(value, float) and not math.isfinite(value)
    }
    return [pair_id for pair_id in records["id"] if pair_id in bad]


def split_by_group(records: Records) -> dict[str, Records]:
    """Split records by group; pairs without a group are under `ungrouped`. Every pair is in exactly one group."""
    groups = [
        group if group is not None else "ungrouped" for group in records.get("group", [None] * len(records["id"]))
    ]
    return {name: select(records, [group == name for group in groups]) for name in sorted(set(groups))}


def split_by_margin(records: Records, edges: Sequence[float]) -> dict[str, Records]:
    """Split records into the non-empty bins of the margin, smallest margins first; each pair is in exactly one bin.

    Args:
        records: merged records.
        edges: inner edges in increasing order, in the units of the margin; an edge belongs to the bin above it. The
            outer bins are open; pairs without a margin are under `no_margin`.

    Raises:
        ValueError: the edges do not increase.

    >>> split_by_margin({"id": ["a", "b"], "margin": [0.5, 1.0]}, edges=[1.0, 2.0])
    {'0_below_1': {'id': ['a'], 'margin': [0.5]}, '1_from_1': {'id': ['b'], 'margin': [1.0]}}
    """
    if list(edges) != sorted(set(edges)):
        raise ValueError(f"edges must increase, got {list(edges)}")
    margins = records.get("margin", [None] * len(records["id"]))
    bins = [-1 if margin is None else bisect_right(edges, margin) for margin in margins]
    names = {-1: "no_margin", 0: f"0_below_{edges[0]:g}" if edges else "0_all"}
    names.update((k, f"{k}_from_{edge:g}") for k, edge in enumerate(edges, start=1))
    return {names[k]: select(records, [entry == k for entry in bins]) for k in sorted(set(bins))}


def margin_quantiles(records: Records, bins: int) -> list[float]:
    """Return inner edges that divide the pairs into `bins` bins of about equal count; fewer if margins are tied.

    >>> margin_quantiles({"id": list("abcd"), "margin": [1.0, 2.0, 3.0, 4.0]}, bins=2)
    [2.5]
    """
    margins = [margin for margin in records.get("margin", []) if margin is not None]
    if not margins:
        return []
    levels = torch.arange(1, bins, dtype=torch.float64) / bins
    edges = torch.quantile(torch.tensor(margins, dtype=torch.float64), levels).tolist()
    return sorted(set(edges))


def bootstrap_interval(
    values: Tensor, clusters: Sequence[Hashable] | None, seed: int, resamples: int = 1000, level: float = 0.95
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of a mean over pairs, resampling whole clusters.

    Pairs of one prompt are not independent: with the prompts as clusters the interval also covers unseen prompts. The
    statistic is the sum over the resampled pairs divided by their number, so that a cluster is weighted by its pairs.

    **Source** Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13 (percentile interval).

    Args:
        values: (n,) one value per pair.
        clusters: the cluster of each pair (e.g. its prompt), or None: each pair is a cluster.
        seed: random seed; the interval is a pure function of the arguments.
        resamples: number of bootstrap samples.
        level: nominal coverage, in (0, 1).

    Returns:
        Lower and upper end; both are NaN if a value is not finite.

    >>> bootstrap_interval(torch.tensor([1.0, 1.0, 1.0]), None, seed=0)
    (1.0, 1.0)
    """
    names = list(range(len(values))) if clusters is None else list(clusters)
    if values.ndim != 1 or len(values) != len(names) or not names:
        raise ValueError(f"values {tuple(values.shape)} and {len(names)} clusters: expected (n,) and n, n at least 1")
    if not values.isfinite().all():
        return math.nan, math.nan
    number = {name: k for k, name in enumerate(dict.fromkeys(names))}
    index = torch.tensor([number[name] for name in names])
    zeros = torch.zeros(len(number), dtype=torch.float64)
    sums = zeros.index_add(0, index, values.detach().double().cpu())
    counts = zeros.index_add(0, index, torch.ones(len(names), dtype=torch.float64))
    generator = torch.Generator().manual_seed(seed)
    means = []
    for _ in range(resamples):
        drawn = torch.randint(len(number), (len(number),), generator=generator)
        means.append(sums[drawn].sum() / counts[drawn].sum())
    tail = (1 - level) / 2
    low, high = torch.quantile(torch.stack(means), torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return low, high
