"""Comparability of two runs: the numbers that may be compared, and the reasons why others may not."""

from collections.abc import Sequence

import numpy as np

from lit_pref.comparing.run_record import RunRecord
from lit_pref.judging.comparison import Array
from lit_pref.metrics.meaning import LOGGED_BY_OBJECTIVES
from lit_pref.metrics.records import Records

REWARD_PARTS = ("beta", "reference", "temperature", "tokens", "score")
"""The arguments of an objective that decide its rewards; the others decide only which rewards it asks for."""
OWN_REFERENCE = ("rewards/chosen", "rewards/rejected", "rewards/margins")
FIRST_REFERENCE = ("chosen_fell", "rewards/accuracies@reference0")
TOKENS = ("logps/chosen", "logps/rejected")


class Comparability:
    """Says, for each metric, why a run cannot be compared with the baseline.

    Accuracies, and the log-loss and Brier score of sigma(z), are the same question to any two runs: which response is
    better, and how sure is it? Rewards have the unit of their beta and the zero of their reference. A loss has the unit
    and the smallest value of its objective.

    Args:
        run: a run.
        baseline: the run that it is compared with.
        records: the run's records of the common pairs.
        records_of_baseline: the baseline's, in the same order.
    """

    def __init__(self, run: RunRecord, baseline: RunRecord, records: Records, records_of_baseline: Records) -> None:
        self.rewards = _of_rewards(run, baseline, records, records_of_baseline)
        self.objective = "" if run.objective == baseline.objective else "another objective"
        if not (run.objective and baseline.objective):
            self.objective = "its objective is not known"
        self.objective = self.objective or _of_references(run, baseline, all_of_them=True)
        self.first_reference = _of_references(run, baseline, all_of_them=False)
        lengths = ("chosen_length", "rejected_length")
        same = all(records.get(name) == records_of_baseline.get(name) for name in lengths)
        self.tokens = "" if same else "other tokens (tokenizer or truncation)"

    def reason(self, name: str, values: Array, of_baseline: Array) -> str:
        """Return the reason why a metric cannot be compared; empty if it can.

        Args:
            name: the metric.
            values: (n,) the run's values of the common pairs.
            of_baseline: (n,) the baseline's.
        """
        if name == "rewards/accuracies" or name.startswith(("calibration", "lengths/")):
            return ""
        if name in OWN_REFERENCE:
            return self.rewards
        if name in FIRST_REFERENCE:
            return self.first_reference
        if name in TOKENS:
            return self.tokens
        if name == "loss" or name in LOGGED_BY_OBJECTIVES:
            return self.objective
        # Columns of the data are the same in all runs; other values are those that an objective of one's own logs.
        return "" if np.array_equal(values, of_baseline, equal_nan=True) else self.objective


def _of_rewards(run: RunRecord, baseline: RunRecord, records: Records, records_of_baseline: Records) -> str:
    if not (run.objective and baseline.objective):
        return "its objective is not known"
    if reason := _of_references(run, baseline, all_of_them=True):
        return reason
    if run.objective != baseline.objective:
        own, other = arguments_of(run.objective), arguments_of(baseline.objective)
        # An objective with a fixed beta does not show it, but its records have it.
        recorded = "beta" in records and "beta" in records_of_baseline
        for name in REWARD_PARTS:
            if name == "beta" and recorded and not (name in own and name in other):
                continue
            if name not in own or name not in other:
                return "another objective"
            if own[name] != other[name]:
                return f"{name} {own[name]} against {other[name]}"
    betas = [np.array(every.get("beta", [np.nan]), dtype=np.float64) for every in (records, records_of_baseline)]
    # A moving beta differs although its rule is the same.
    same = betas[0].shape == betas[1].shape and np.allclose(betas[0], betas[1], rtol=1e-6, equal_nan=True)
    return "" if same else f"beta {betas[0].mean():.3g} against {betas[1].mean():.3g}"


def _of_references(run: RunRecord, baseline: RunRecord, all_of_them: bool) -> str:
    if not (run.manifest and baseline.manifest):
        return "its reference is not known"
    if run.is_reward_model != baseline.is_reward_model:
        return "a reward model against a policy"
    own, other = ([one.get("fingerprint") for one in each.manifest.get("references", [])] for each in (run, baseline))
    same = own == other if all_of_them else own[:1] == other[:1]
    return "" if same else "another reference"


def arguments_of(text: str) -> dict[str, str]:
    """Return the arguments of a call as text, by name.

    >>> arguments_of("DPO(beta=0.1, reference=Harmonic(eta=0.1, weights=None), terms=[])")
    {'beta': '0.1', 'reference': 'Harmonic(eta=0.1, weights=None)', 'terms': '[]'}
    """
    inside = text.partition("(")[2].removesuffix(")")
    parts, depth, quote = [""], 0, ""
    for char in inside:
        if quote or char in "'\"":
            quote = "" if char == quote else quote or char
        else:
            depth += (char in "([{") - (char in ")]}")
        if char == "," and depth == 0 and not quote:
            parts.append("")
        else:
            parts[-1] += char
    pairs = (part.strip().partition("=") for part in parts if "=" in part)
    return {name: value for name, _, value in pairs}


def not_comparable(reasons: Sequence[tuple[str, str]]) -> str:
    """Return the metrics that cannot be compared, from (metric, reason), grouped by reason; empty if there are none.

    >>> not_comparable([("loss", "another objective"), ("target", "another objective")])
    'loss, target (another objective)'
    """
    by_reason: dict[str, list[str]] = {}
    for name, reason in reasons:
        by_reason.setdefault(reason, []).append(name)
    return "; ".join(f"{', '.join(names)} ({reason})" for reason, names in by_reason.items())
