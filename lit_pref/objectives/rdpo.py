"""Length-regularised direct preference optimisation."""

from typing import Any

from lit_pref.objectives.pairwise import Pairwise
from lit_pref.objectives.parts.offset import LengthOffset


class RDPO(Pairwise):
    """R-DPO: DPO with the reward r - alpha n, n being the response's number of tokens.

        L = -log sigmoid(beta (h_w - h_l) + alpha (n_w - n_l))

    A chosen response that is longer counts as ahead already, so the pair is pushed less. alpha = 0 is DPO. The number
    of tokens is that of the policy's tokenizer, with the end token.

    >>> RDPO(alpha=0.05).offset
    LengthOffset(alpha=0.05)

    **When**: chosen responses are longer on average and the policy should not learn length from that. Not if length is
    part of the quality, as in answers that must be complete.

    **Source**: R-DPO, arXiv 2403.19159, derived from its regularised reward. The sign follows from maximising
    r - alpha n, and ZHZisZZ/modpo, which repeats the paper's experiment, has the same; re-implementations with
    alpha (n_l - n_w) lengthen the responses instead.

    Args:
        beta: > 0, reward units per nat.
        alpha: finite, units of the logit per token; positive makes responses shorter.
        parts: the other parts of `Pairwise`.
    """

    faithfulness = "derived"
    family = "tokens and lengths"

    def __init__(self, beta: float = 0.1, alpha: float = 0.01, **parts: Any) -> None:
        super().__init__(beta=beta, offset=LengthOffset(alpha), **parts)
