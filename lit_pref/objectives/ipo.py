"""Identity preference optimisation."""

from typing import Any

from lit_pref.objectives.pairwise import Pairwise
from lit_pref.objectives.parts.link import Squared


class IPO(Pairwise):
    """Identity preference optimisation: regresses the difference of the log-ratios on 1 / (2 tau) nats.

        L = (h_w - h_l - 1 / (2 tau))^2

    Every pair gets the same finite gap, so that certain labels do not drive the policy away from the reference without
    end. A larger tau means a smaller gap. With a target p the gap is (2 p - 1) / (2 tau). Losses are in nats squared:
    with the default the first loss is 25, and they are not comparable across tau.

    >>> IPO(tau=0.05)
    IPO(tau=0.05, reference=Single(), temperature=Constant(), target=Hard(), link=Squared(), tokens=Sum(), \
score=Identity(), offset=NoOffset(), weight=NoWeight(), terms=[])

    **When**: labels are nearly deterministic and DPO overfits them. Not if responses differ much in length: the
    gap is one for the whole response; see `IPOMean`.

    **Source**: IPO, arXiv 2310.12036, equation 17, on summed log-probs, derived from the paper. TRL's `ipo` is
    `IPOMean`, with its `beta` as tau.

    Args:
        tau: > 0, strength of the regularisation, per nat of the gap.
        parts: the other parts of `Pairwise`.
    """

    faithfulness = "derived"
    family = "links"

    def __init__(self, tau: float = 0.1, **parts: Any) -> None:
        super().__init__(beta=tau, link=Squared(), **parts)
