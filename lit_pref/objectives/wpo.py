"""Weighted preference optimisation."""

import math
from typing import Any

from torch import Tensor

from lit_pref.batch import PairData
from lit_pref.errors import UsageError
from lit_pref.objectives.pairwise import Pairwise
from lit_pref.objectives.parts.weight import Weight
from lit_pref.objectives.requirements import Requirements
from lit_pref.scores import LogSumSquares, PairScores, SequenceScores


class OnPolicyWeight(Weight):
    """omega = v_w v_l: weighs a pair by how likely the policy itself is to write its two responses (WPO).

        v_y = exp( mean_t [log pi(y_t) - log sum_v pi(v)^2] )

    sum_v pi(v)^2 is the mean probability of a sampled token, so that v is about 1 for a response that the policy
    sampled, and near 0 for one that it would not write. A constant of the step; it multiplies the preference loss.

    **Source**: WPO, arXiv 2406.11827, eq. 2; see `WPO`.

    Args:
        cap: > 0, the largest omega; infinity is none.
    """

    log_probs_only = True
    requirements = Requirements(statistics=frozenset({LogSumSquares()}))

    def __init__(self, cap: float = math.inf) -> None:
        super().__init__()
        if not cap > 0:
            raise UsageError(f"OnPolicyWeight: cap is the largest weight and must be > 0, got {cap}.")
        self.cap = cap

    def forward(self, policy: PairScores, pairs: PairData) -> Tensor:
        assert policy.rejected is not None
        return (_alignment(policy.chosen) + _alignment(policy.rejected)).exp().clamp(max=self.cap)


class WPO(Pairwise):
    """Weighted preference optimisation: DPO in which pairs count the more, the likelier the policy is to write them.

        L = -omega log sigmoid(beta (h_w - h_l)),    omega = v_w v_l,    v_y = exp(mean_t [log pi(y_t) - log c_t])

    c_t = sum_v pi(v)^2 at position t, see `OnPolicyWeight`. omega is not normalised: if the policy would write neither
    response, the loss and its gradient vanish, so watch `weight` in the log; for flat distributions it exceeds 1.

    >>> WPO(cap=1.0).weight
    OnPolicyWeight(cap=1.0)

    **When**: the pairs were written by other models, in part unlike anything that the policy writes. Not if all of them
    are: then little is left to train on.

    **Source**: WPO, arXiv 2406.11827, eq. 2, as TRL 1.16 computes it (`use_weighting`). Earlier versions of TRL, such
    as 0.13, cut omega at 1, which is `cap: 1`. As there, it multiplies any loss of a pair: take other parts, or
    `weight: OnPolicyWeight` with another method.

    Args:
        beta: > 0, reward units per nat.
        cap: > 0, the largest omega; infinity (`.inf` in YAML) is none.
        parts: the other parts of `Pairwise`.

    Raises:
        UsageError: cap is not positive.
    """

    faithfulness = "derived"
    family = "tokens and lengths"

    def __init__(self, beta: float = 0.1, cap: float = math.inf, **parts: Any) -> None:
        super().__init__(beta=beta, weight=OnPolicyWeight(cap), **parts)


def _alignment(response: SequenceScores) -> Tensor:
    """Return log v of every response, (B,)."""
    return (response.scores.detach() - response.statistics[LogSumSquares()]) / response.lengths
