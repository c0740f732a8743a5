"""One preference after another, each keeping those before it."""

import math
from typing import Any

from lit_pref.errors import UsageError
from lit_pref.objectives.pairwise import Pairwise
from lit_pref.objectives.parts.reference import ImplicitRewards


class SequentialSPO(Pairwise):
    """Sequential preference optimisation, round n: the present preference beside the rewards of the rounds before it.

        L_n = -log sigmoid(beta (h_w - h_l) - sum_i<n lambda_i (R_i,w - R_i,l))
        R_i = beta (log pi_i - log pi_ref) - sum_j<i lambda_j R_j

    pi_i is the policy after round i, so that R_i is the reward that round i itself has taught; log Z(x) cancels in a
    pair. References: first the model before all rounds, pi_ref, then pi_1, ..., pi_n-1 in this order. Each lambda_i
    buys as much of E[R_i] as round n must not lose. All lambda_i = 0 is DPO. beta must be that of the earlier rounds.

    >>> SequentialSPO([0.5, 0.2]).reference
    ImplicitRewards(weights=[0.4, 0.2])

    **When**: preferences of several kinds come as separate data sets (help first, then harm) and a later round undoes
    an earlier one. Not for rewards of the same pairs, which `MODPO` takes at once.

    **Source**: SPO, arXiv 2405.12739, by its abstract: rounds over dimensions, no reward model, a closed-form loss that
    keeps earlier dimensions. The formula is reconstructed as the optimum of E[R_n] - beta KL(pi || pi_ref) under
    E[R_i] >= c_i for i < n, with the multipliers lambda_i. Soft, self-play and other methods are called SPO too.

    Args:
        multipliers: lambda_i of the earlier rounds, in their order, finite.
        beta: > 0, reward units per nat.
        parts: the other parts of `Pairwise`.
    """

    faithfulness = "reconstruction"
    family = "several rewards"

    def __init__(self, multipliers: list[float], beta: float = 0.1, **parts: Any) -> None:
        if not multipliers or not all(map(math.isfinite, multipliers)):
            raise UsageError(
                "SequentialSPO: multipliers are finite numbers, one for each reference after the first, got "
                f"{multipliers}."
            )
        weights: list[float] = []
        for multiplier in multipliers:
            # S_i = sum_j<=i lambda_j R_j / beta = (1 - lambda_i) S_i-1 + lambda_i (log pi_i - log pi_ref)
            weights = [weight * (1 - multiplier) for weight in weights] + [multiplier]
        super().__init__(beta=beta, reference=ImplicitRewards(weights), **parts)
