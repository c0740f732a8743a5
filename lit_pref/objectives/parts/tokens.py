"""Aggregation of the log-probs of tokens into the score of a response."""

import math
from abc import abstractmethod
from difflib import SequenceMatcher

import torch

from lit_pref.batch import PairData
from lit_pref.errors import UsageError
from lit_pref.objectives.parts.part import Part, Sides
from lit_pref.objectives.requirements import Requirements
from lit_pref.pairs import TokenValues
from lit_pref.scores import PairScores, TokenLogps

TOKEN_LOGPS = Requirements(statistics=frozenset({TokenLogps()}), reference_statistics=frozenset({TokenLogps()}))


class TokenSum(Part):
    """Turns a model's `PairScores` into one score per response.

    It is called for the policy and, without gradient, for every reference. Token weights come from the data or from
    `policy` in both cases, so that a log-ratio is one weighted sum.
    """

    plain_sum: bool = False
    """The score of a response is the sum of its log-probs."""

    plain_mean: bool = False
    """The score of a response is the mean of its log-probs."""

    log_probs_only = True

    @abstractmethod
    def forward(self, scores: PairScores, policy: PairScores, pairs: PairData) -> Sides:
        """Return the scores of both responses, each (B,)."""


class Sum(TokenSum):
    """The sum over the response's tokens, nats; a reward model's score is unchanged."""

    plain_sum = True
    log_probs_only = False

    def forward(self, scores: PairScores, policy: PairScores, pairs: PairData) -> Sides:
        assert scores.rejected is not None
        return scores.chosen.scores, scores.rejected.scores


class Mean(TokenSum):
    """The sum divided by the number of the policy's response tokens, nats per token.

    A reference with another tokenizer is divided by the policy's number as well: its own number would weigh the two
    log-probs of one text differently.
    """

    plain_mean = True

    def forward(self, scores: PairScores, policy: PairScores, pairs: PairData) -> Sides:
        assert scores.rejected is not None and policy.rejected is not None
        return scores.chosen.scores / policy.chosen.lengths, scores.rejected.scores / policy.rejected.lengths


class TokenWeights(TokenSum):
    """A weighted sum over the response's tokens with constant weights: sum_t w_t log pi(y_t)."""

    @property
    def requirements(self) -> Requirements:
        return TOKEN_LOGPS

    @abstractmethod
    def weights(self, policy: Sides, pairs: PairData) -> Sides:
        """Return the weights w of the tokens of chosen (B, T) and rejected (B, T).

        Args:
            policy: the policy's log-probs, zero-padded, without gradient.
            pairs: the B pairs.
        """

    def forward(self, scores: PairScores, policy: PairScores, pairs: PairData) -> Sides:
        own, of_policy = _token_logps(scores), _token_logps(policy)
        chosen, rejected = self.weights((of_policy[0].detach(), of_policy[1].detach()), pairs)
        for logps, weights in zip(own, (chosen, rejected), strict=True):
            if logps.shape != weights.shape:
                raise ValueError(f"{tuple(weights.shape)} weights for token log-probs of shape {tuple(logps.shape)}")
        return (chosen * own[0]).sum(1), (rejected * own[1]).sum(1)


class ColumnTokens(TokenWeights):
    """sum_t w_t log pi(y_t) with the weights w from a token column of the data.

    A column of ones is `Sum`. A token has the value of the span that covers most of its characters; tokens outside of
    all spans, and the end-of-turn token, have weight 0.

    **Source**: own formulation; meant for fine-grained supervision by edited spans (arXiv 2406.02756) or by annotators'
    error spans.

    Args:
        column: name of the token column.
    """

    def __init__(self, column: str) -> None:
        super().__init__()
        self.column = column

    @property
    def requirements(self) -> Requirements:
        return TOKEN_LOGPS | Requirements(token_columns=frozenset({self.column}))

    def weights(self, policy: Sides, pairs: PairData) -> Sides:
        return _column(self.column, policy, pairs)


class EditWeighted(TokenWeights):
    """Gives more weight to tokens in which the two responses differ, and the more so the less likely they are (BMC).

        h_y = sum_t lambda_t [log pi(y_t) - log pi_ref(y_t)],    lambda_t = 1 + d_t min(1 / pi(y_t), delta)

    d_t is 1 for the tokens that an alignment of the two responses' ids replaces, deletes or inserts (`edits`), else 0.
    lambda is a constant of the step, and the same for policy and reference.

    **Source**: BMC, arXiv 2408.07471, and YJiangcm/BMC (`dpo_bmc_trainer.py`; delta 1.5 to 3). Differences: that code
    weighs the reference's log-probs by the reference's own confidence, so that h is not a weighted log-ratio (the sign
    of a pair's logit can change); here both are weighed by the policy's, as the equation has it. It removes stop words
    from the edits, and aligns prompt and padding along with the responses; here every differing token of the responses
    counts.

    Args:
        delta: the largest addition to a token's weight, finite and > 0. A probability is at most 1, so a delta below 1
            is the addition for every edited token.
    """

    def __init__(self, delta: float = 2.0) -> None:
        super().__init__()
        if not (math.isfinite(delta) and delta > 0):
            raise UsageError(f"EditWeighted: delta bounds a token's weight and must be finite and > 0, got {delta}.")
        self.delta = delta

    @property
    def requirements(self) -> Requirements:
        return TOKEN_LOGPS | Requirements(token_functions={"edits": edits})

    def weights(self, policy: Sides, pairs: PairData) -> Sides:
        marks = _column("edits", policy, pairs)
        chosen, rejected = (
            1 + mark * torch.exp(-logps).clamp(max=self.delta) for mark, logps in zip(marks, policy, strict=True)
        )
        return chosen, rejected


def edits(prompt: list[int], chosen: list[int], rejected: list[int] | None) -> TokenValues:
    """Return 1 for every token in which the responses differ and 0 for the others, by their longest matching blocks.

    >>> edits([1], [5, 6, 7], [5, 8, 9, 7])
    ([0.0, 1.0, 0.0], [0.0, 1.0, 1.0, 0.0])
    """
    assert rejected is not None
    marks = [1.0] * len(chosen), [1.0] * len(rejected)
    # SequenceMatcher's heuristic for long sequences (autojunk) would ignore frequent tokens.
    for block in SequenceMatcher(None, rejected, chosen, autojunk=False).get_matching_blocks():
        marks[0][block.b : block.b + block.size] = [0.0] * block.size
        marks[1][block.a : block.a + block.size] = [0.0] * block.size
    return marks


def _token_logps(scores: PairScores) -> Sides:
    assert scores.rejected is not None
    return scores.chosen.statistics[TokenLogps()], scores.rejected.statistics[TokenLogps()]


def _column(name: str, policy: Sides, pairs: PairData) -> Sides:
    chosen, rejected = pairs.token_column(name)
    assert rejected is not None
    return chosen.to(policy[0].dtype), rejected.to(policy[1].dtype)
