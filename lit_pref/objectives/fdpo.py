"""DPO under another divergence than the reverse KL."""

from typing import Any

from lit_pref.objectives.pairwise import Pairwise
from lit_pref.objectives.parts.score import JensenShannon, Score


class FDPO(Pairwise):
    """f-DPO: DPO for a policy that is held near its reference by another f-divergence than the reverse KL.

        L = -log sigmoid(beta (phi(h_w) - phi(h_l))),    phi(h) = f'(e^h),    h_y = log pi(y | x) - log pi_ref(y | x)

    Up to a constant, phi(h) is h for the reverse KL (DPO), 1 - e^-h for the forward KL, log sigmoid(h) for
    Jensen-Shannon, and (1 - e^(-alpha h)) / alpha between the two KLs. The forward KL and the alpha-divergences grow
    exponentially where a response falls below its reference (the exponent is bounded); Jensen-Shannon saturates above
    it, so that its logit is at most beta (ln 2 - phi(h_l)).

    >>> FDPO().score
    JensenShannon()

    **When**: responses have become too uniform under DPO; divergences with more mass covering keep more of the
    reference's diversity. Not with a temperature or a loss that is derived for the reverse KL.

    **Source**: f-DPO, arXiv 2309.16240. TRL has them as `f_divergence_type`.

    Args:
        beta: > 0, reward units per unit of phi.
        divergence: `JensenShannon` (default), `ForwardKL` or `AlphaDivergence`; `Identity` is DPO.
        parts: the other parts of `Pairwise`.
    """

    faithfulness = "derived"
    family = "references and temperature"

    def __init__(self, beta: float = 0.1, divergence: Score | None = None, **parts: Any) -> None:
        super().__init__(beta=beta, score=divergence or JensenShannon(), **parts)
