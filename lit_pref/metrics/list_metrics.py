"""Metrics of lists of responses: means over lists of how the rewards order the responses of a list."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from lit_pref.metrics.meaning import Meaning
from lit_pref.metrics.records import Records

LISTS: dict[str, Meaning] = {
    "loss": Meaning("the objective's loss of a list", "nats, for a log-loss"),
    "accuracies": Meaning(
        "share of the pairs of different scores that the rewards order alike; equal rewards count 1/2", "1"
    ),
    "kendall_tau": Meaning("Kendall's tau-b of rewards and scores; 0 where all rewards are equal", "1"),
    "best_first": Meaning("1 if a response of the best score has the highest reward; shared among equal ones", "1"),
    "count": Meaning("evaluated lists", "lists"),
}
"""Metrics under `val/lists/`; each is a mean over lists, so that a long list counts no more than a short one."""


def summarise_lists(records: Records, prefix: str = "val") -> dict[str, float]:
    """Return the metrics of the lists in merged records; none if the records are of pairs.

    `PREFIX/loss`, which for pairs is a mean over records, is the mean over lists.

    >>> records = {"id": list("abc"), "list": ["a"] * 3, "loss": [0.5] * 3, "chosen_reward": [3.0, 1.0, 1.0]}
    >>> numbers = summarise_lists({**records, "score": [9.0, 5.0, 2.0]})
    >>> [round(numbers[f"val/lists/{name}"], 4) for name in ("accuracies", "kendall_tau", "best_first")]
    [0.8333, 0.8165, 1.0]
    """
    if "list" not in records:
        return {}
    members: dict[str, list[int]] = {}
    for k, name in enumerate(records["list"]):
        members.setdefault(name, []).append(k)
    each: dict[str, list[float]] = {"loss": [records["loss"][index[0]] for index in members.values()]}
    for index in members.values():
        rewards, labels = ([records[name][k] for k in index] for name in ("chosen_reward", "score"))
        for name, value in order_metrics(rewards, labels).items():
            each.setdefault(name, []).append(value)
    numbers: dict[str, float] = {f"{prefix}/lists/{name}": _mean(values) for name, values in each.items()}
    return numbers | {f"{prefix}/lists/count": len(members), f"{prefix}/loss": numbers[f"{prefix}/lists/loss"]}


def order_metrics(rewards: ArrayLike, labels: ArrayLike) -> dict[str, float]:
    """Return how the rewards of one list order its responses, by the names in `LISTS`; NaN if a reward is not finite.

    **Source** tau-b: Kendall, Biometrika 33(3), 1945.

    Args:
        rewards: (K,).
        labels: (K,), not all equal.
    """
    s, y = np.asarray(rewards, float), np.asarray(labels, float)
    if not np.isfinite(s).all():
        return dict.fromkeys(("accuracies", "kendall_tau", "best_first"), math.nan)
    of_s, of_y = np.sign(s[:, None] - s), np.sign(y[:, None] - y)  # (K, K)
    agreement = of_s * of_y
    ordered, distinct = (of_y**2).sum(), (of_s**2).sum()
    highest = s == s.max()
    return {
        "accuracies": float((agreement.sum() / ordered + 1) / 2),
        "kendall_tau": float(agreement.sum() / math.sqrt(ordered * distinct)) if distinct else 0.0,
        "best_first": float((y[highest] == y.max()).mean()),
    }


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if all(map(math.isfinite, values)) else math.nan
