"""Preference optimisation with a shaped reward."""

from typing import Any

from lit_pref.objectives.numbers import finite
from lit_pref.objectives.pairwise import Pairwise
from lit_pref.objectives.parts.offset import ConstantOffset
from lit_pref.objectives.parts.part import Sides
from lit_pref.objectives.parts.reference import NoReference
from lit_pref.objectives.parts.score import Score, bounded_expm1
from lit_pref.objectives.parts.tokens import Mean


class AlphaReward(Score):
    """phi(a) = (1 - exp(-alpha a)) / alpha of a log-prob a, or a itself if alpha is 0 (AlphaPO).

    The exponent is bounded by half of the largest one that the dtype can represent (44 in fp32); beyond it phi is
    constant. For ratios to a reference and alpha in (0, 1] it is `AlphaDivergence`.

    Args:
        alpha: finite; positive makes low probabilities count more.
    """

    needs_ratio = False
    log_probs_only = True

    def __init__(self, alpha: float = 0.25) -> None:
        super().__init__()
        self.alpha = finite(alpha, "AlphaReward: alpha")

    def forward(self, ratios: Sides) -> Sides:
        if self.alpha == 0:
            return ratios
        chosen, rejected = ratios
        return (
            -bounded_expm1(-self.alpha * chosen) / self.alpha,
            -bounded_expm1(-self.alpha * rejected) / self.alpha,
        )


class AlphaPO(Pairwise):
    """AlphaPO: SimPO with a reward whose shape alpha sets how much likely and unlikely responses count.

        L = -log sigmoid(beta (r_w - r_l) - gamma),    r = (1 - exp(-alpha l / n)) / alpha

    alpha = 0 is SimPO, r = l / n. With alpha > 0 an unlikely rejected response has a large gradient, with alpha < 0 a
    small one, so that both probabilities fall less. Rewards are beta r.

    >>> AlphaPO(alpha=0.1).score
    AlphaReward(alpha=0.1)

    **When**: under SimPO the probability of the chosen responses falls too much, and alpha can be searched for. Not as
    a first choice: it has a hyper-parameter more than `SimPO`.

    **Source**: AlphaPO, arXiv 2501.03884, reconstructed from TRL's code of `alphapo` (`alpha`, `simpo_gamma`, `beta`);
    the paper's text was not at hand. TRL computes (1 - p^-alpha) / alpha by exponentials of the mean log-prob, which
    overflow for very unlikely responses; here the exponent is bounded. TRL's `cpo_alpha` is 0 there.

    Args:
        beta: > 0, reward units per unit of r.
        gamma: finite, units of the logit.
        alpha: finite.
        parts: the other parts of `Pairwise`.
    """

    faithfulness = "reconstruction"
    family = "reference-free"

    def __init__(self, beta: float = 2.0, gamma: float = 0.5, alpha: float = 0.25, **parts: Any) -> None:
        super().__init__(
            beta=beta,
            reference=NoReference(),
            tokens=Mean(),
            score=AlphaReward(alpha),
            offset=ConstantOffset(gamma),
            **parts,
        )
