"""Anchored preference optimisation for chosen responses that are worse than the policy's own."""

from torch import Tensor

from lit_pref.batch import PairData
from lit_pref.objectives.parts.part import Sides
from lit_pref.objectives.pointwise import Pointwise
from lit_pref.scores import PairScores


class APODown(Pointwise):
    """APO-down: lowers the probability of both responses, and that of the rejected one more.

        L = sigmoid(beta h_w) + 1 - sigmoid(beta (h_w - h_l)),    h_y = log pi(y | x) - log pi_ref(y | x)

    The loss lies in (0, 2), but its infimum is at h_w = -infinity with h_l further below: watch the chosen rewards,
    which fall by intention and without a bound.

    >>> APODown(beta=0.2)
    APODown(beta=0.2)

    **When**: both responses, also the chosen one, are worse than what the policy writes itself. Not with chosen
    responses that it should learn to write: see `APOZero`.

    **Source**: APO, arXiv 2408.06266, eq. 8, as cited in TRL 1.16 (`apo_down`), which is the same. Here 1 - sigmoid(z)
    is computed as sigmoid(-z), which keeps its digits where it is small.

    Args:
        beta: > 0, reward units per nat.
    """

    faithfulness = "derived"

    def losses(self, ratios: Sides, policy: PairScores, reference: PairScores, pairs: PairData) -> Tensor:
        chosen, rejected = ratios
        return (self.beta * chosen).sigmoid() + (-self.beta * (chosen - rejected)).sigmoid()
