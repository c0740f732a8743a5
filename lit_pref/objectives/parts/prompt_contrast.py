"""The term that contrasts a response under its prompt with the same response under a corrupted one."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from lit_pref.batch import PairData
from lit_pref.errors import UsageError
from lit_pref.objectives.parts.part import Sides
from lit_pref.objectives.parts.terms import Term
from lit_pref.objectives.requirements import Requirements
from lit_pref.pairs import PreferencePair
from lit_pref.scores import PairScores


@dataclass(frozen=True)
class PromptCrop:
    """The chosen response under one contiguous piece of the prompt, drawn from the seed and the pair's id.

    All special tokens are kept too.

    >>> from lit_pref.pairs import TruncatedText
    >>> text = TruncatedText("", "", "", True, True)
    >>> pair = PreferencePair("7", [1, *range(10, 30), 2], [5], [6], None, None, {}, None, text)
    >>> PromptCrop(0.2, 0.2, seed=0)(pair, special=frozenset({1, 2}))
    ([1, 15, 16, 17, 18, 2], [5])

    Args:
        smallest: the smallest share of the other tokens that is kept; at least one is.
        largest: the largest share.
        seed: of the draws.
    """

    smallest: float
    largest: float
    seed: int

    def __call__(self, pair: PreferencePair, special: frozenset[int]) -> tuple[list[int], list[int]]:
        ordinary = [k for k, token in enumerate(pair.prompt) if token not in special]
        draw = random.Random(f"{self.seed}/{pair.id}")
        size = min(len(ordinary), max(1, round(draw.uniform(self.smallest, self.largest) * len(ordinary))))
        start = draw.randint(0, len(ordinary) - size)
        kept = {*range(len(pair.prompt))} - {*ordinary} | {*ordinary[start : start + size]}
        return [pair.prompt[k] for k in sorted(kept)], pair.chosen


class PromptContrast(Term):
    """-log sigmoid(beta_i (h_w - h_w')): the chosen response must be likelier under its prompt than under a crop of it.

    h_w' = log pi(y_w | x') - log pi_ref(y_w | x'). x' keeps one contiguous piece of the prompt's tokens and all special
    tokens. It is drawn once for each pair, from the seed and the pair's id, and not anew in each epoch: policy and
    references read the same x', pairs are read by index without knowledge of the epoch, and stored reference scores
    stay valid. With several references, h_w and h_w' are relative to the first one. Logged as `prompt_gap`: h_w - h_w',
    which a policy can also widen by noticing that a prompt is damaged.

    **Source**: text-only analogue of the conditional loss of mDPO, arXiv 2406.11839; see `ConditionalContrast`.

    Args:
        coefficient: >= 0.
        smallest: the smallest share of a prompt that is kept, in [0, largest]; at least one token is.
        largest: the largest share, in [smallest, 1).
        seed: of the draws.

    Raises:
        UsageError: an argument is out of range.
    """

    log_probs_only = True
    sums_only = "PromptContrast compares sums of log-probs, in whose units beta must be: choose `tokens: Sum`."

    def __init__(self, coefficient: float = 1.0, smallest: float = 0.01, largest: float = 0.2, seed: int = 0) -> None:
        super().__init__(coefficient)
        if not 0 <= smallest <= largest < 1:
            raise UsageError(f"PromptContrast: 0 <= smallest <= largest < 1 must hold, got {smallest}, {largest}.")
        self.crop = PromptCrop(smallest, largest, seed)

    @property
    def requirements(self) -> Requirements:
        return Requirements(sides=("chosen", "rejected", "extra_response"), extra_function=self.crop)

    def forward(
        self, beta: Tensor, rewards: Sides, policy: PairScores, references: Sequence[PairScores], pairs: PairData
    ) -> Tensor:
        return -F.logsigmoid(beta * self._gap(policy, references))

    def log(self, policy: PairScores, references: Sequence[PairScores]) -> dict[str, Tensor]:
        return {"prompt_gap": self._gap(policy, references)}

    def _gap(self, policy: PairScores, references: Sequence[PairScores]) -> Tensor:
        """h_w - h_w' of every pair, (B,)."""
        assert policy.extra_response is not None
        gap = policy.chosen.scores - policy.extra_response.scores
        for first in references[:1]:
            assert first.extra_response is not None
            gap = gap - (first.chosen.scores - first.extra_response.scores)
        return gap
