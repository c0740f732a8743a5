"""General preference model."""

from typing import Any

from lit_pref.errors import UsageError
from lit_pref.objectives.pairwise import Pairwise
from lit_pref.objectives.parts.reference import NoReference


class GPM(Pairwise):
    """General preference model: a preference embedding scores pairs, so that preferences may be cyclic.

        L = -log sigmoid(s / tau),    s = sum_b lambda_b (v_w[2b] v_l[2b+1] - v_w[2b+1] v_l[2b])

    The embedding v belongs to the model (`model.policy.embedding`); with a scalar head in its place, s = r_w - r_l and
    the loss is Bradley-Terry at the temperature tau. The rewards of a pair are s / (2 tau) and -s / (2 tau).

    >>> GPM(tau=0.5)
    GPM(tau=0.5, reference=NoReference(), temperature=Constant(), target=Hard(), link=Logistic(), tokens=Sum(), \
score=Identity(), offset=NoOffset(), weight=NoWeight(), terms=[])

    **When**: preferences may be cyclic, as between styles that beat one another, and the model has a preference
    embedding. Not if responses need a score of their own, for ranking or for PPO: only pairs have one.

    **Source**: GPM, arXiv 2410.02197, and general-preference/general-preference-model (tau 0.1 by default, 1 in one of
    its scripts). Its margin inside the loss, (s - m) / tau, is `offset: ColumnOffset(margin, scale=1 / tau)`.

    Args:
        tau: > 0, temperature of s.
        parts: the other parts of `Pairwise`.

    Raises:
        UsageError: tau is not positive.
    """

    faithfulness = "code"
    family = "reward models"
    rewards_only = True

    def __init__(self, tau: float = 0.1, **parts: Any) -> None:
        if not 0 < tau < float("inf"):
            raise UsageError(f"GPM: tau divides the scores and must be positive and finite, got {tau}.")
        super().__init__(beta=1 / tau, reference=NoReference(), **parts)
