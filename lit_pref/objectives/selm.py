"""Self-exploring preference optimisation."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from lit_pref.batch import PairData
from lit_pref.errors import UsageError
from lit_pref.objectives.pairwise import Pairwise
from lit_pref.objectives.requirements import Requirements
from lit_pref.scores import ObjectiveOutput, PairScores


class SELM(Pairwise):
    """Self-exploring language models: DPO that also lowers the probability of the reference's own response.

        L = -log sigmoid(beta (h_w - h_l)) + alpha beta h_y',    h_y = log pi(y | x) - log pi_ref(y | x)

    y' is the reference model's own response, the `extra_response` of every record. Minimising **lowers** its
    probability: optimism rewards responses that the reference does not give yet. alpha = 0 is DPO. The last term is
    unbounded below with a constant gradient: watch `extra_response_change`, h_y' in nats. If the reference's response
    is also the chosen one, the two terms oppose each other.

    >>> SELM().requirements.sides
    ('chosen', 'rejected', 'extra_response')

    **When**: rounds of sampling and training, in which new responses are wanted. Not for one training on fixed pairs.

    **Source**: SELM, arXiv 2405.19332, and shenao-zhang/SELM (beta 0.01, alpha 0.001 or 0.0001, a new reference and
    new pairs each round). In that code the extra responses' reference log-probs cannot be computed beforehand; here
    they can. With several references h_y' is relative to the first one; without a reference it is log pi, because the
    reference only adds a constant without gradient. h_y' is a plain sum of log-probs, whatever `tokens` and `score`
    are, and is multiplied by the pair's beta, whatever `temperature` is.

    Args:
        beta: > 0, reward units per nat.
        alpha: >= 0, the weight of the exploration.
        parts: the other parts of `Pairwise`.

    Raises:
        UsageError: alpha is negative or not finite.
    """

    faithfulness = "code"
    family = "exploration"
    log_probs_only = True

    def __init__(self, beta: float = 0.01, alpha: float = 0.001, **parts: Any) -> None:
        super().__init__(beta=beta, **parts)
        if not 0 <= alpha < float("inf"):
            raise UsageError(f"SELM: alpha weighs the exploration and must be finite and >= 0, got {alpha}.")
        self.alpha = alpha

    @cached_property
    def requirements(self) -> Requirements:
        return super().requirements | Requirements(sides=("chosen", "rejected", "extra_response"))

    def forward(self, policy: PairScores, references: Sequence[PairScores], pairs: PairData) -> ObjectiveOutput:
        output = super().forward(policy, references, pairs)
        assert policy.extra_response is not None
        change = policy.extra_response.scores
        for first in references[:1]:
            assert first.extra_response is not None
            change = change - first.extra_response.scores
        output.losses = output.losses + self.alpha * output.logged["beta"] * change
        output.logged["extra_response_change"] = change.detach()
        return output
