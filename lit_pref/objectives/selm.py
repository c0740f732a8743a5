"""Self-exploring preference optimisation."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from lit_pref.batch import PairData
from lit_pref.errors import UsageError
from lit_pref.objectives.pairwise import Pairwise
from lit_pref.objectives.parts.part import Sides
from lit_pref.objectives.parts.terms import Term
from lit_pref.objectives.requirements import Requirements
from lit_pref.scores import PairScores


class Optimism(Term):
    """alpha beta_i h_y': lowers the probability of the reference's own response y', so that a policy explores (SELM).

    y' is the `extra_response` of every record, and h_y' = log pi(y') - log pi_ref(y') is a plain sum of log-probs,
    whatever `tokens` and `score` are. With several references it is relative to the first one; without a reference it
    is log pi(y'), because the reference only adds a constant without gradient. Unbounded below with a constant
    gradient: watch `extra_response_change`, h_y' in nats.

    **Source**: SELM, arXiv 2405.19332; see `SELM`.

    Args:
        alpha: >= 0, the weight of the exploration.

    Raises:
        UsageError: alpha is negative or not finite.
    """

    log_probs_only = True
    requirements = Requirements(sides=("chosen", "rejected", "extra_response"))

    def __init__(self, alpha: float = 0.001) -> None:
        super().__init__(coefficient=1.0)
        if not 0 <= alpha < float("inf"):
            raise UsageError(f"Optimism: alpha weighs the exploration and must be finite and >= 0, got {alpha}.")
        self.alpha = alpha

    def forward(
        self, beta: Tensor, rewards: Sides, policy: PairScores, references: Sequence[PairScores], pairs: PairData
    ) -> Tensor:
        return self.alpha * beta * self._change(policy, references)

    def log(self, policy: PairScores, references: Sequence[PairScores]) -> dict[str, Tensor]:
        return {"extra_response_change": self._change(policy, references)}

    def _change(self, policy: PairScores, references: Sequence[PairScores]) -> Tensor:
        """h_y' of every pair, (B,)."""
        assert policy.extra_response is not None
        change = policy.extra_response.scores
        for first in references[:1]:
            assert first.extra_response is not None
            change = change - first.extra_response.scores
        return change


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
