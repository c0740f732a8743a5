"""Iterative reasoning preference optimisation."""

from typing import Any

from lit_pref.objectives.pairwise import Pairwise
from lit_pref.objectives.parts.terms import ChosenNLL, Term


class RPO(Pairwise):
    """Reasoning preference optimisation: DPO plus the negative log-prob of the chosen response, nats per token.

        L = -log sigmoid(beta (h_w - h_l)) - alpha l_w / n_w,    h_y = log pi(y | x) - log pi_ref(y | x)

    l_w is the policy's log-prob of the chosen response and n_w its number of tokens. The second term keeps l_w from
    falling, which DPO alone allows as long as l_l falls faster. alpha = 0 is DPO.

    >>> RPO(alpha=0.5).terms
    ModuleList(
      (0): ChosenNLL(coefficient=0.5)
    )

    **When**: the chosen responses are right and worth imitating, as in reasoning with checked answers. Not if they are
    merely the better of two bad ones.

    **Source**: iterative RPO, arXiv 2404.19733, eq. 1 (alpha 1, beta 0.1 there), where rounds of sampling give the
    pairs. TRL's `rpo_alpha`, now its loss type `sft` beside `sigmoid`, takes the mean over all tokens of the
    micro-batch, so that long responses count more; here every pair counts the same. Other methods bear the name RPO
    too.

    Args:
        beta: > 0, reward units per nat.
        alpha: >= 0, weight of the negative log-prob.
        terms: further losses, each with its coefficient.
        parts: the other parts of `Pairwise`.
    """

    faithfulness = "derived"
    family = "basic"

    def __init__(self, beta: float = 0.1, alpha: float = 1.0, terms: list[Term] | None = None, **parts: Any) -> None:
        super().__init__(beta=beta, terms=[ChosenNLL(alpha), *(terms or [])], **parts)
