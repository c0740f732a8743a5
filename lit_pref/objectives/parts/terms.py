"""Losses that are added to the preference loss."""

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_pref.batch import PairData
from lit_pref.errors import UsageError
from lit_pref.objectives.parts.part import Part, Sides
from lit_pref.objectives.requirements import Requirements
from lit_pref.pairs import PreferencePair
from lit_pref.scores import PairScores


class Term(Part):
    """A_j of every pair; `Pairwise` adds coefficient times A_j.

    Args:
        coefficient: c_j, finite and >= 0.
    """

    hard_targets: str = ""
    """A warning, if the term takes the chosen response for the better one, for targets other than 1 (`Target.hard`)."""

    def __init__(self, coefficient: float = 1.0) -> None:
        super().__init__()
        if not (math.isfinite(coefficient) and coefficient >= 0):
            raise UsageError(f"{type(self).__name__}: coefficient must be finite and >= 0, got {coefficient}.")
        self.coefficient = coefficient

    @abstractmethod
    def forward(
        self, beta: Tensor, rewards: Sides, policy: PairScores, references: Sequence[PairScores], pairs: PairData
    ) -> Tensor:
        """Return A_j of every pair, (B,), with gradient.

        Args:
            beta: beta of every pair, (B,).
            rewards: beta_i phi(h) of both responses, each (B,), with gradient.
            policy: the policy's scores, with gradient, and the required statistics.
            references: the K references, unmixed.
            pairs: the B pairs.
        """

    def log(self, policy: PairScores, references: Sequence[PairScores]) -> dict[str, Tensor]:
        """Return values to log, each (B,)."""
        return {}


class ChosenNLL(Term):
    """-l_w / n_w: the negative log-prob of the chosen response, nats per token. For policies, not for reward models.

    **Source**: iterative RPO, arXiv 2404.19733. CPO and TRL average over the tokens of the batch instead of over pairs.
    """

    log_probs_only = True

    def forward(
        self, beta: Tensor, rewards: Sides, policy: PairScores, references: Sequence[PairScores], pairs: PairData
    ) -> Tensor:
        return -policy.chosen.scores / policy.chosen.lengths


@dataclass(frozen=True)
class WholeText:
    """Prompt and chosen response as one response to the first token of the prompt, which nothing predicts."""

    def __call__(self, pair: PreferencePair, special: frozenset[int]) -> tuple[list[int], list[int]]:
        return pair.prompt[:1], pair.prompt[1:] + pair.chosen


class TextNLL(Term):
    """-log pi(x, y_w) / (n_x - 1 + n_w): the negative log-prob of prompt and chosen response, nats per token.

    The first token of the prompt x is given, n_x is the length of the prompt. It is for policies, not for reward
    models, and costs a further forward pass of the chosen responses.

    **Source**: the cross-entropy of TRL's ORPO trainer, which averages over the tokens of the batch instead of over
    pairs. `ChosenNLL` is the same of the response alone.
    """

    log_probs_only = True
    requirements = Requirements(sides=("chosen", "rejected", "extra_response"), extra_function=WholeText())

    def forward(
        self, beta: Tensor, rewards: Sides, policy: PairScores, references: Sequence[PairScores], pairs: PairData
    ) -> Tensor:
        assert policy.extra_response is not None
        return -policy.extra_response.scores / policy.extra_response.lengths


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


class CalibratedNLL(Term):
    """-l_w / n_w of good chosen responses that the policy finds less likely than the reference does, else 0.

    **Source**: Omni-DPO, arXiv 2506.10054, and pspdada/Uni-DPO. Good means a `score_chosen` of tau_good at least.

    Args:
        coefficient: >= 0, per nat per token.
        tau_good: the lowest score of a good response, in the units of the data.
    """

    log_probs_only = True
    requirements = Requirements(min_references=1, columns=frozenset({"score_chosen"}))

    def __init__(self, coefficient: float = 0.001, tau_good: float = 3.2) -> None:
        super().__init__(coefficient)
        self.tau_good = tau_good

    def forward(
        self, beta: Tensor, rewards: Sides, policy: PairScores, references: Sequence[PairScores], pairs: PairData
    ) -> Tensor:
        counted = (rewards[0] < 0) & (self.read("score_chosen", policy, pairs) >= self.tau_good)
        return torch.where(counted, -policy.chosen.scores / policy.chosen.lengths, 0)


class Anchor(Term):
    """-log sigmoid(reward of the chosen response): it must not fall below the reference's level.

    **Source**: mDPO, arXiv 2406.11839, with the anchor at 0.
    """

    hard_targets = (
        "Anchor holds the chosen response up at full strength, also where the target says that the rejected one may be "
        "better: choose `target: Hard`, a smaller coefficient, or data whose targets are all at least 1/2."
    )

    def forward(
        self, beta: Tensor, rewards: Sides, policy: PairScores, references: Sequence[PairScores], pairs: PairData
    ) -> Tensor:
        return -F.logsigmoid(rewards[0])


class Center(Term):
    """(r_w + r_l)^2: holds the mean reward near 0, which a loss on differences leaves free. For reward models.

    **Source**: Eisenstein et al., arXiv 2312.09244, equation 2; TRL's `center_rewards_coefficient`.
    """

    def forward(
        self, beta: Tensor, rewards: Sides, policy: PairScores, references: Sequence[PairScores], pairs: PairData
    ) -> Tensor:
        return (rewards[0] + rewards[1]).square()
