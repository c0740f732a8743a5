"""Anchored preference optimisation for chosen responses that are better than the policy's own."""

from torch import Tensor

from lit_pref.batch import PairData
from lit_pref.objectives.parts.part import Sides
from lit_pref.objectives.pointwise import Pointwise
from lit_pref.scores import PairScores


class APOZero(Pointwise):
    """APO-zero: raises the probability of the chosen response and lowers that of the rejected one.

        L = 1 - sigmoid(beta h_w) + sigmoid(beta h_l),    h_y = log pi(y | x) - log pi_ref(y | x)

    The loss lies in (0, 2) and is 1 as long as the policy equals its reference. Each response by itself pulls most at
    its reference's probability and stops far from it, so that wrong pairs far away have no influence either.

    >>> APOZero(beta=0.2)
    APOZero(beta=0.2)

    **When**: the chosen responses are better than what the policy writes itself, such as those of a stronger model.
    If they are worse, take `APODown`.

    **Source**: APO, arXiv 2408.06266, eq. 7, as cited in TRL 1.16 (`apo_zero`), which is the same. Here 1 - sigmoid(z)
    is computed as sigmoid(-z), which keeps its digits where it is small.

    Args:
        beta: > 0, reward units per nat.
    """

    faithfulness = "derived"

    def losses(self, ratios: Sides, policy: PairScores, reference: PairScores, pairs: PairData) -> Tensor:
        chosen, rejected = ratios
        return (-self.beta * chosen).sigmoid() + (self.beta * rejected).sigmoid()
