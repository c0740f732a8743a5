"""Self-exploring preference optimisation."""

from typing import Any

from lit_pref.objectives.pairwise import Pairwise
from lit_pref.objectives.parts.terms import Optimism, Term


class SELM(Pairwise):
    """Self-exploring language models: DPO that also lowers the probability of the reference's own response.

        L = -log sigmoid(beta (h_w - h_l)) + alpha beta h_y',    h_y = log pi(y | x) - log pi_ref(y | x)

    y' is the reference model's own response, the `extra_response` of every record. Minimising **lowers** its
    probability: optimism rewards responses that the reference does not give yet. alpha = 0 is DPO. The last term is
    unbounded below. If the reference's response is also the chosen one, the two terms oppose each other. Other
    objectives take the second term as `Optimism`, one of their `terms`.

    >>> SELM(alpha=0.002).terms
    ModuleList(
      (0): Optimism(alpha=0.002)
    )

    **When**: rounds of sampling and training, in which new responses are wanted. Not for one training on fixed pairs.

    **Source**: SELM, arXiv 2405.19332, and shenao-zhang/SELM (beta 0.01, alpha 0.001 or 0.0001, a new reference and
    new pairs each round). In that code the extra responses' reference log-probs cannot be computed beforehand; here
    they can. h_y' is multiplied by the pair's beta, whatever `temperature` is.

    Args:
        beta: > 0, reward units per nat.
        alpha: >= 0, the weight of the exploration.
        terms: further losses, each with its coefficient.
        parts: the other parts of `Pairwise`.

    Raises:
        UsageError: alpha is negative or not finite.
    """

    faithfulness = "code"
    family = "exploration"

    def __init__(self, beta: float = 0.01, alpha: float = 0.001, terms: list[Term] | None = None, **parts: Any) -> None:
        super().__init__(beta=beta, terms=[*(terms or []), Optimism(alpha)], **parts)
