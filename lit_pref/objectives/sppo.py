"""Self-play preference optimisation."""

from functools import cached_property

from torch import Tensor

from lit_pref.batch import PairData
from lit_pref.errors import UsageError
from lit_pref.objectives.base import ONE_REFERENCE
from lit_pref.objectives.component import call_text
from lit_pref.objectives.parts.part import Sides
from lit_pref.objectives.parts.target import Hard, Target
from lit_pref.objectives.pointwise import Pointwise
from lit_pref.objectives.requirements import Requirements
from lit_pref.pairs import Strengths
from lit_pref.scores import PairScores


class SPPO(Pointwise):
    """Self-play preference optimisation: regresses each log-ratio on the probability that its response wins.

        L = (h_w - (p - 1/2) / beta)^2 + (h_l + (p - 1/2) / beta)^2,    h_y = log pi(y | x) - log pi_ref(y | x)

    p is the probability that the chosen response is better: 1 is the hard form, `target: ProbabilityColumn` and
    `target: MarginTarget` are soft ones. nats^2: at beta = 0.001 the loss starts at 500 000, and a gradient clipped by
    its norm forgets that scale.

    >>> SPPO(beta=0.01)
    SPPO(beta=0.01, target=Hard())

    **When**: rounds of sampling from the policy, in which the reference is the policy of the last round and a judge
    gives probabilities. Not for pairs that other models wrote.

    **Source**: SPPO, arXiv 2405.00675, eq. 4.7, and uclaml/SPPO, which halves the loss. The hard form is TRL 1.16's
    `sppo_hard`. The paper's win rates are those of each response against all K samples, of which the pair's own p is a
    part: with these as columns, take `GPORegression` with `center: 0.5`, which is the paper's soft form.

    Args:
        beta: > 0; 1 / beta nats is the paper's eta.
        target: p; default `Hard`.

    Raises:
        UsageError: beta is not positive, or the target is no probability.
    """

    faithfulness = "derived"

    def __init__(self, beta: float = 0.001, target: Target | None = None) -> None:
        super().__init__(beta)
        self.target = target or Hard()
        if not self.target.proper:
            raise UsageError(
                f"SPPO: {type(self.target).__name__} is no probability, and so no log-ratio to regress on: choose "
                "`target: ProbabilityColumn`, `MarginTarget`, `Smoothed` or `Hard`."
            )

    @cached_property
    def requirements(self) -> Requirements:
        return ONE_REFERENCE | self.target.requirements

    def fit(self, strengths: Strengths) -> list[str]:
        return self.target.fit(strengths)

    def losses(self, ratios: Sides, policy: PairScores, reference: PairScores, pairs: PairData) -> Tensor:
        aim = (self.target(policy, pairs) - 0.5) / self.beta  # nats
        return (ratios[0] - aim).square() + (ratios[1] + aim).square()

    def __repr__(self) -> str:
        return call_text(self, {**self.arguments, "target": self.target})
