"""Efficient exact optimisation."""

from typing import Any

from lit_pref.objectives.pairwise import Pairwise
from lit_pref.objectives.parts.link import ReverseKL
from lit_pref.objectives.parts.target import Smoothed


class EXO(Pairwise):
    """Efficient exact optimisation: the reverse KL divergence from the policy's preference to the smoothed label.

        L = KL(q || p) = q log(q / p) + (1 - q) log((1 - q) / (1 - p))
        q = sigmoid(beta (h_w - h_l)),    p = 1 - epsilon

    DPO is the forward KL(p || q) and covers all modes of the target; EXO seeks one. The minimum is 0, at
    beta (h_w - h_l) = log((1 - epsilon) / epsilon). On badly misranked pairs the gradient vanishes, where DPO's stays.

    >>> EXO().target
    Smoothed(epsilon=0.001)

    **When**: most pairs are ranked correctly already, and a policy of limited capacity should concentrate on one mode.
    Not with many wrong labels or a poor start: pairs that the policy misranks clearly are hardly corrected.

    **Source**: EXO, arXiv 2402.00856, equation 16 for two responses; equal to TRL's `exo_pair`, where `label_smoothing`
    is epsilon. epsilon = 0, TRL's default, makes the loss infinite and is refused.

    Args:
        beta: > 0, reward units per nat.
        epsilon: probability of a wrong label, in (0, 1/2].
        parts: the other parts of `Pairwise`.

    Raises:
        UsageError: epsilon is 0 or out of range.
    """

    faithfulness = "derived"
    family = "links"

    def __init__(self, beta: float = 0.1, epsilon: float = 0.001, **parts: Any) -> None:
        super().__init__(beta=beta, target=Smoothed(epsilon), link=ReverseKL(), **parts)
