"""A preference loss with a contrast between prompts: the chosen response must depend on what it answers."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import torch.nn.functional as F

from lit_pref.batch import PairData
from lit_pref.errors import UsageError
from lit_pref.objectives.pairwise import Pairwise
from lit_pref.objectives.parts.prompt_crop import PromptCrop
from lit_pref.objectives.requirements import Requirements
from lit_pref.scores import ObjectiveOutput, PairScores


class ConditionalContrast(Pairwise):
    """Preference loss plus a contrast of the chosen response under its prompt with the same under a corrupted one.

        L = L_pairs - contrast log sigmoid(beta_i (h_w - h_w')),    h_w' = log pi(y_w | x') - log pi_ref(y_w | x')

    x' keeps one contiguous piece of the prompt's tokens and all special tokens. It is drawn once for each pair, from
    the seed and the pair's id: policy and references read the same x' in every epoch, so reference scores can be
    stored. contrast = 0 is `Pairwise`. Logged as `prompt_gap`: h_w - h_w', which a policy can also widen by noticing
    that a prompt is damaged.

    >>> ConditionalContrast(contrast=0.5).requirements.sides
    ('chosen', 'rejected', 'extra_response')

    **When**: responses ignore parts of long prompts. Not for short prompts; each step costs another forward pass.

    **Source**: text-only analogue of mDPO, arXiv 2406.11839, and luka-group/mDPO, which crops images to 1 to 20 % of
    their area; its loss is this one with `terms: [Anchor]`. That code draws in each forward pass, so policy and
    reference see different crops; here one draw serves both, in all epochs. The paper's text was not at hand. With
    several references, h_w and h_w' of the contrast are relative to the first one.

    Args:
        beta: > 0, reward units per nat.
        contrast: >= 0, the weight of the contrast.
        smallest: the smallest share of a prompt that is kept, in [0, largest]; at least one token is.
        largest: the largest share, in [smallest, 1).
        seed: of the draws.
        parts: the other parts of `Pairwise`.

    Raises:
        UsageError: an argument is out of range, or `tokens` is not the plain sum.
    """

    faithfulness = "reconstruction"
    family = "prompts"
    log_probs_only = True

    def __init__(
        self,
        beta: float = 0.1,
        contrast: float = 1.0,
        smallest: float = 0.01,
        largest: float = 0.2,
        seed: int = 0,
        **parts: Any,
    ) -> None:
        super().__init__(beta=beta, **parts)
        if not 0 <= contrast < float("inf"):
            raise UsageError(f"ConditionalContrast: contrast is a weight, finite and >= 0, got {contrast}.")
        if not 0 <= smallest <= largest < 1:
            raise UsageError(f"ConditionalContrast: 0 <= smallest <= largest < 1 must hold, got {smallest}, {largest}.")
        self.contrast, self.crop = contrast, PromptCrop(smallest, largest, seed)

    @cached_property
    def requirements(self) -> Requirements:
        sides = ("chosen", "rejected", "extra_response")
        return super().requirements | Requirements(sides=sides, extra_prompt=self.crop)

    def forward(self, policy: PairScores, references: Sequence[PairScores], pairs: PairData) -> ObjectiveOutput:
        output = super().forward(policy, references, pairs)
        assert policy.extra_response is not None
        gap = policy.chosen.scores - policy.extra_response.scores
        for first in references[:1]:
            assert first.extra_response is not None
            gap = gap - (first.chosen.scores - first.extra_response.scores)
        output.losses = output.losses - self.contrast * F.logsigmoid(output.logged["beta"] * gap)
        output.logged["prompt_gap"] = gap.detach()
        return output

    def _objections(self) -> Iterator[str]:
        yield from super()._objections()
        if not self.tokens.plain_sum:
            yield "the contrast is between sums of log-probs, in whose units beta must be: choose `tokens: Sum`."
