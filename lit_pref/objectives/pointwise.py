"""Base class of losses that judge each response by its own log-ratio, not by the difference of the two."""

from abc import abstractmethod
from collections.abc import Sequence

from torch import Tensor

from lit_pref.batch import PairData
from lit_pref.objectives.base import Objective
from lit_pref.objectives.numbers import positive
from lit_pref.objectives.parts.part import Sides
from lit_pref.scores import ObjectiveOutput, PairScores


class Pointwise(Objective):
    """A loss of the log-ratios of both responses to one reference, h_w and h_l, each taken by itself.

        h_y = log pi(y | x) - log pi_ref(y | x),    reward of y: beta h_y

    Subclasses implement `losses`. The parts of `Pairwise` that need the difference h_w - h_l do not exist here: a
    divergence other than the reverse KL leaves a log-partition that cancels only in a difference, and the probability
    of a pair is not the label of a response.

    Args:
        beta: > 0, reward units per nat.

    Raises:
        UsageError: beta is not positive and finite.
    """

    family = "single responses and batches"
    log_probs_only = True

    def __init__(self, beta: float = 0.1) -> None:
        super().__init__()
        self.beta = positive(beta, f"{type(self).__name__}: beta")

    @abstractmethod
    def losses(self, ratios: Sides, policy: PairScores, reference: PairScores, pairs: PairData) -> Tensor:
        """Return the loss of every pair, (B,).

        Args:
            ratios: h_w and h_l, each (B,).
            policy: the policy's scores, with the required statistics.
            reference: the reference's scores; take no gradient of them.
            pairs: the B pairs.
        """

    def forward(self, policy: PairScores, references: Sequence[PairScores], pairs: PairData) -> ObjectiveOutput:
        self.check_inputs(policy, references, pairs)
        (reference,) = references
        assert policy.rejected is not None and reference.rejected is not None
        chosen = policy.chosen.scores - reference.chosen.scores.detach()
        rejected = policy.rejected.scores - reference.rejected.scores.detach()
        return ObjectiveOutput(
            losses=self.losses((chosen, rejected), policy, reference, pairs),
            chosen_rewards=self.beta * chosen.detach(),
            rejected_rewards=self.beta * rejected.detach(),
        )
