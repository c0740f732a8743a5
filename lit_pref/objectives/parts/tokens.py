"""How the log-probs of tokens become the score of a response."""

from abc import abstractmethod

from lit_pref.objectives.parts.part import Part, Sides
from lit_pref.types import PairScores, PreferenceBatch


class TokenSum(Part):
    """Turns a model's `PairScores` into one score a response.

    It is called for the policy and, without gradient, for every reference. What it weighs tokens by comes from
    `policy` in both cases, so that a log-ratio is one weighted sum: a reference's tokens are the policy's, or only
    its sums count.
    """

    @abstractmethod
    def forward(self, scores: PairScores, policy: PairScores, batch: PreferenceBatch) -> Sides:
        """The scores of both responses, each (B,)."""


class Sum(TokenSum):
    """The sum over the response's tokens, nats; a reward model's score as it is."""

    def forward(self, scores: PairScores, policy: PairScores, batch: PreferenceBatch) -> Sides:
        assert scores.rejected is not None
        return scores.chosen.scores, scores.rejected.scores


class Mean(TokenSum):
    """The sum divided by the number of the policy's response tokens, nats per token.

    A reference with another tokenizer is divided by the policy's number too: its own would weigh the two log-probs of
    one text differently.
    """

    def forward(self, scores: PairScores, policy: PairScores, batch: PreferenceBatch) -> Sides:
        assert scores.rejected is not None and policy.rejected is not None
        return scores.chosen.scores / policy.chosen.lengths, scores.rejected.scores / policy.rejected.lengths
