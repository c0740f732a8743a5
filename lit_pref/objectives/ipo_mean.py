"""Identity preference optimisation on mean log-probs."""

from typing import Any

from lit_pref.objectives.pairwise import Pairwise
from lit_pref.objectives.parts.link import Squared
from lit_pref.objectives.parts.tokens import Mean


class IPOMean(Pairwise):
    """Length-normalised IPO: regresses the difference of the log-ratios per token on 1 / (2 tau).

        L = (h_w / n_w - h_l / n_l - 1 / (2 tau))^2

    The gap is in nats per token, so tau means something else than in `IPO`: at tau = 0.1 the gap is 5 nats for each
    token, which no policy reaches, and the loss is nearly linear. Choose tau by the gap.

    >>> IPOMean(tau=0.5).tokens
    Mean()

    **When**: a run of TRL or HALOs with IPO is to be repeated, or responses differ much in length. Not to repeat
    the paper's equation: see `IPO`.

    **Source**: IPO, arXiv 2310.12036, equation 17, in the form of TRL 1.16 (`loss_type: ipo`, whose `beta` is tau) and
    HALOs, which divide each log-ratio by its number of tokens. TRL's source says that the authors confirmed this form
    as the one behind the paper's results; the paper does not mention it. HALOs counts only tokens whose log-ratio is
    not 0, which is 0 / 0 as long as the policy equals its reference; here all response tokens count.

    Args:
        tau: > 0, strength of the regularisation, tokens per nat of the gap.
        parts: the other parts of `Pairwise`.
    """

    faithfulness = "derived"
    family = "links"

    def __init__(self, tau: float = 0.1, **parts: Any) -> None:
        super().__init__(beta=tau, link=Squared(), tokens=Mean(), **parts)
