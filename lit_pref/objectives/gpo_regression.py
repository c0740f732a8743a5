"""General preference optimisation: regression of log-ratios on the scores of a preference model."""

from functools import cached_property

from torch import Tensor

from lit_pref.batch import PairData
from lit_pref.objectives.base import ONE_REFERENCE
from lit_pref.objectives.numbers import finite
from lit_pref.objectives.parts.part import Sides
from lit_pref.objectives.pointwise import Pointwise
from lit_pref.objectives.requirements import Requirements
from lit_pref.scores import PairScores


class GPORegression(Pointwise):
    """General preference optimisation (GPO): regresses each log-ratio on its response's mean preference score.

        L = (h_w - (s_w - c) / beta)^2 + (h_l - (s_l - c) / beta)^2,    h_y = log pi(y | x) - log pi_ref(y | x)

    s_y is the mean score of y against the policy's other responses to x, from the columns `NAME_chosen` and
    `NAME_rejected`; c = 0 for the antisymmetric scores of a general preference model. With win rates and c = 1/2 it is
    SPPO with its own soft probabilities. nats^2, unbounded above: with beta = 0.001 a score of 1 is a gap of 1000 nats.

    Another method is also called GPO: Generalized Preference Optimization (arXiv 2402.05749), which is a family of
    convex losses of the difference h_w - h_l; that is `DPO` with another `link`.

    >>> GPORegression("win_rate", center=0.5).requirements.columns == {"win_rate_chosen", "win_rate_rejected"}
    True

    **When**: rounds of sampling from the policy, where a preference model or judge compares all K samples. Not with one
    pair per prompt and no scores of each response: see `SPPO`.

    **Source**: GPM, arXiv 2410.02197, its policy optimisation, and general-preference/general-preference-model (beta
    0.001). The log-partition is taken as 0, as there. That code's table of scores counts every comparison twice, so
    its s is twice the mean; and it takes the mean over K samples, of which a pair here has two.

    Args:
        column: NAME of the score.
        beta: > 0, units of the score per nat.
        center: c, finite, units of the score.

    Raises:
        UsageError: beta is not positive, or center is not finite.
    """

    faithfulness = "reconstruction"

    def __init__(self, column: str, beta: float = 0.001, center: float = 0.0) -> None:
        super().__init__(beta)
        self.column, self.center = column, finite(center, "GPORegression: center")

    @cached_property
    def requirements(self) -> Requirements:
        return ONE_REFERENCE | Requirements(columns=frozenset({f"{self.column}_chosen", f"{self.column}_rejected"}))

    def losses(self, ratios: Sides, policy: PairScores, reference: PairScores, pairs: PairData) -> Tensor:
        names = f"{self.column}_chosen", f"{self.column}_rejected"
        chosen, rejected = (
            (ratio - (pairs.columns[name].to(ratio.dtype) - self.center) / self.beta).square()
            for ratio, name in zip(ratios, names, strict=True)
        )
        return chosen + rejected
