"""Bridging and modelling correlations in pairs."""

from typing import Any

from lit_pref.objectives.pairwise import Pairwise
from lit_pref.objectives.parts.tokens import EditWeighted


class BMC(Pairwise):
    """Bridging and modelling correlations: DPO that gives more weight to tokens in which the responses differ.

        L = -log sigmoid(beta (h_w - h_l)),    h_y = sum_t lambda_t [log pi(y_t) - log pi_ref(y_t)]

    lambda_t = 1 + d_t min(1 / pi(y_t), delta), where d_t marks the edited tokens; see `EditWeighted`. Responses that
    share no token are weighted everywhere.

    **Bridging is a matter of the data**: the paper's chosen response is the rejected one, edited by a strong model with
    the original chosen one in view. That text is a column of yours; name it as `chosen` in the data mapping.

    >>> BMC(delta=1.5).tokens
    EditWeighted(delta=1.5)

    **When**: the two responses are edits of one text, so that few tokens decide. Not for responses written
    independently of each other, all of whose tokens differ.

    **Source**: BMC, arXiv 2408.07471, and YJiangcm/BMC (beta 0.01 and delta 1.5 for Llama-3-8B, 0.01 and 2.0 for
    Mistral-7B, 0.05 and 3.0 for question answering, 0.05 and 2.5 for mathematics). `EditWeighted` lists how that code
    differs.

    Args:
        beta: > 0, reward units per nat.
        delta: the largest addition to a token's weight, finite and > 0.
        parts: the other parts of `Pairwise`.
    """

    faithfulness = "derived"
    family = "tokens and lengths"

    def __init__(self, beta: float = 0.01, delta: float = 2.0, **parts: Any) -> None:
        super().__init__(beta=beta, tokens=EditWeighted(delta), **parts)
