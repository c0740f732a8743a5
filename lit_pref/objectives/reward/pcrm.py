"""Prior constraints on the rewards of a pair."""

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_pref.batch import PairData
from lit_pref.errors import UsageError
from lit_pref.objectives.base import Objective
from lit_pref.objectives.pairwise import Pairwise
from lit_pref.objectives.parts.part import Part, Sides
from lit_pref.objectives.parts.terms import Term
from lit_pref.objectives.requirements import Requirements
from lit_pref.pairs import TokenValues
from lit_pref.scores import ObjectiveOutput, PairScores, TokenRewards


def diverged(prompt: list[int], chosen: list[int], rejected: list[int] | None) -> TokenValues:
    """Return 0 for the tokens that both responses begin with, and 1 for all tokens after them.

    >>> diverged([1], [5, 6, 7], [5, 8])
    ([0.0, 1.0, 1.0], [0.0, 1.0])
    """
    assert rejected is not None
    same = next((k for k, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), None)
    first = min(len(chosen), len(rejected)) if same is None else same
    return [float(k >= first) for k in range(len(chosen))], [float(k >= first) for k in range(len(rejected))]


DIVERGED = Requirements(token_functions={"diverged": diverged})


class Similarity(Part):
    """How similar the two responses of a pair are, in [0, 1]."""

    @abstractmethod
    def forward(self, policy: PairScores, pairs: PairData) -> Tensor:
        """Return the similarity of every pair, (B,)."""


class LengthRatio(Similarity):
    """n_shorter / n_longer, counting the tokens from the first one in which the responses differ.

    **Source**: PCRM, arXiv 2404.00978, `length_ratio` of its code.
    """

    requirements = DIVERGED

    def forward(self, policy: PairScores, pairs: PairData) -> Tensor:
        chosen, rejected = (side.sum(1) for side in _marks(pairs))
        return (torch.minimum(chosen, rejected) / torch.maximum(chosen, rejected).clamp_min(1)).to(policy.chosen.scores)


class CosineColumn(Similarity):
    """The angular similarity (pi - acos c) / pi of a cosine c of text embeddings, which is a column of the data.

    **Source**: PCRM, arXiv 2404.00978: c is the cosine of the CLS vectors of a frozen bert-base-uncased, cut to [0, 1].
    Its code for DPO takes c itself.

    Args:
        column: name of the column with c.
        angular: False takes c itself.
    """

    def __init__(self, column: str = "cosine", angular: bool = True) -> None:
        super().__init__()
        self.column, self.angular = column, angular

    @property
    def requirements(self) -> Requirements:
        return Requirements(columns=frozenset({self.column}))

    def forward(self, policy: PairScores, pairs: PairData) -> Tensor:
        cosine = self.read(self.column, policy, pairs).clamp(0, 1)
        return (math.pi - cosine.acos()) / math.pi if self.angular else cosine


class Cap(Term):
    """-log sigmoid(delta - d), d the difference of the rewards: d costs more and more from delta / 2 on.

        delta = b1 / (s + b2) + b3

    **Source**: PCRM, arXiv 2404.00978; see `PCRM`.

    Args:
        b1: numerator, > 0.
        b2: addition to the similarity, > 0.
        b3: addition to the whole.
        similarity: s in [0, 1]; default `LengthRatio`.
        epsilon: in [0, 1/2]; the loss is (1 - epsilon) l(delta - d) + epsilon l(d - delta), l(x) = -log sigmoid(x).
    """

    def __init__(
        self,
        b1: float = 20.0,
        b2: float = 0.001,
        b3: float = -15.0,
        similarity: Similarity | None = None,
        epsilon: float = 0.0,
    ) -> None:
        super().__init__()
        if not (b1 > 0 and b2 > 0 and math.isfinite(b1 + b2 + b3)):
            raise UsageError(f"Cap: b1 and b2 must be positive and all of b1, b2, b3 finite, got {b1}, {b2}, {b3}.")
        if not 0 <= epsilon <= 0.5:
            raise UsageError(f"Cap: epsilon is the share of wrong labels and must be in [0, 0.5], got {epsilon}.")
        self.b1, self.b2, self.b3, self.similarity = b1, b2, b3, similarity or LengthRatio()
        self.epsilon = epsilon

    @torch.no_grad()
    def delta(self, policy: PairScores, pairs: PairData) -> Tensor:
        """Return delta, (B,)."""
        return self.b1 / (self.similarity(policy, pairs) + self.b2) + self.b3

    def forward(
        self, beta: Tensor, rewards: Sides, policy: PairScores, references: Sequence[PairScores], pairs: PairData
    ) -> Tensor:
        room = self.delta(policy, pairs) - (rewards[0] - rewards[1])
        return -(1 - self.epsilon) * F.logsigmoid(room) - self.epsilon * F.logsigmoid(-room)


class PCRM(Pairwise):
    """Prior constraints: the difference of the rewards is bounded, and the more so the more similar the responses are.

        L = -log sigmoid(x) - log sigmoid(delta - x),    delta = b1 / (s + b2) + b3

    x = r_w - r_l for a reward model (`beta: 1`, `reference: NoReference`), and beta (h_w - h_l) for a policy. Alone,
    a pair has its minimum at x = delta / 2. With a target other than `Hard` the second term stays as it is.

    **When**: a reward model whose scores run away on pairs of nearly equal responses. Not if similarity says little
    about how far two responses are apart in quality, as in answers that differ in one decisive digit.

    **Source**: PCRM, arXiv 2404.00978, and wangclnlp/DeepSpeed-Chat-Extension, branch PCRM: b of 20, 0.001, -15 and s
    the cosine for its Alpaca model. This is its sequence form: the last token's rewards; see `TokenPCRM`.

    Args:
        beta: > 0; 1 for a reward model.
        b1: numerator of delta, > 0.
        b2: addition to the similarity, > 0.
        b3: addition to delta.
        similarity: s; default `LengthRatio`.
        terms: further losses, each with its coefficient.
        parts: the other parts of `Pairwise`.

    Raises:
        UsageError: b1 or b2 is not positive, or a number is not finite.
    """

    faithfulness = "code"
    family = "reward models"

    def __init__(
        self,
        beta: float = 1.0,
        b1: float = 20.0,
        b2: float = 0.001,
        b3: float = -15.0,
        similarity: Similarity | None = None,
        terms: list[Term] | None = None,
        **parts: Any,
    ) -> None:
        cap = Cap(b1, b2, b3, similarity)
        super().__init__(beta=beta, terms=[cap, *(terms or [])], **parts)


class TokenPCRM(Objective):
    """PCRM's token form: the mean of its loss over the tokens from the first one in which the responses differ.

        L = mean_t [-log sigmoid(d_t) - log sigmoid(delta - d_t)],    d_t = r_w,t - r_l,t

    Where a response has ended, its last token's reward, which is its score, stands for the missing ones.

    **When**: as `PCRM`, if the reward should be meaningful at every token, as for search or dense rewards. Not for a
    policy, and not if only the score of the whole response is used: the sequence form is cheaper.

    **Source**: PCRM, arXiv 2404.00978, and wangclnlp/DeepSpeed-Chat-Extension, branch PCRM, which instead takes the
    rewards of padding tokens where a response has ended, and so depends on the padding.

    Args:
        b1: numerator of delta, > 0.
        b2: addition to the similarity, > 0.
        b3: addition to delta.
        similarity: s; default `LengthRatio`.

    Raises:
        UsageError: b1 or b2 is not positive, or a number is not finite.
    """

    faithfulness = "derived"
    family = "reward models"

    def __init__(
        self, b1: float = 20.0, b2: float = 0.001, b3: float = -15.0, similarity: Similarity | None = None
    ) -> None:
        super().__init__()
        self.cap = Cap(b1, b2, b3, similarity)

    @property
    def requirements(self) -> Requirements:
        own = Requirements(max_references=0, statistics=frozenset({TokenRewards()}))
        return own | DIVERGED | self.cap.similarity.requirements

    def forward(self, policy: PairScores, references: Sequence[PairScores], pairs: PairData) -> ObjectiveOutput:
        self.check_inputs(policy, references, pairs)
        assert policy.rejected is not None
        sides = policy.chosen, policy.rejected
        width = max(int(side.statistics[TokenRewards()].shape[1]) for side in sides)
        rewards = []
        for side in sides:
            tokens = F.pad(side.statistics[TokenRewards()], (0, width - side.statistics[TokenRewards()].shape[1]))
            ended = torch.arange(width, device=tokens.device) >= side.lengths[:, None]
            rewards.append(torch.where(ended, side.scores[:, None], tokens))
        d = rewards[0] - rewards[1]  # (B, T)
        counted = _counted(pairs, width).to(d)
        delta = self.cap.delta(policy, pairs)[:, None]
        losses = -F.logsigmoid(d) - F.logsigmoid(delta - d)
        mean = (losses * counted).sum(1) / counted.sum(1).clamp_min(1)
        return ObjectiveOutput(
            mean, policy.chosen.scores.detach(), policy.rejected.scores.detach(), {"delta": delta.squeeze(1)}
        )


def _marks(pairs: PairData) -> tuple[Tensor, Tensor]:
    chosen, rejected = pairs.token_column("diverged")
    assert rejected is not None
    return chosen, rejected


def _counted(pairs: PairData, width: int) -> Tensor:
    """1 for the positions from the first difference to the end of the longer response, (B, T)."""
    chosen, rejected = (F.pad(side, (0, width - side.shape[1])) for side in _marks(pairs))
    return torch.maximum(chosen, rejected)
