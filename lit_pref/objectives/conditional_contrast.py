"""A preference loss with a contrast between prompts: the chosen response must depend on what it answers."""

from typing import Any

from lit_pref.objectives.pairwise import Pairwise
from lit_pref.objectives.parts.prompt_contrast import PromptContrast
from lit_pref.objectives.parts.terms import Term


class ConditionalContrast(Pairwise):
    """Preference loss plus a contrast of the chosen response under its prompt with the same under a corrupted one.

        L = L_pairs - contrast log sigmoid(beta_i (h_w - h_w')),    h_w' = log pi(y_w | x') - log pi_ref(y_w | x')

    x' keeps one contiguous piece of the prompt's tokens and all special tokens. It is drawn once for each pair, from
    the seed and the pair's id: policy and references read the same x' in every epoch, so reference scores can be
    stored. contrast = 0 is `Pairwise`. Logged as `prompt_gap`: h_w - h_w', which a policy can also widen by noticing
    that a prompt is damaged. Other objectives take the second term as `PromptContrast`, one of their `terms`.

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
        terms: further losses, each with its coefficient.
        parts: the other parts of `Pairwise`.

    Raises:
        UsageError: an argument is out of range, or `tokens` is not the plain sum.
    """

    faithfulness = "reconstruction"
    family = "prompts"

    def __init__(
        self,
        beta: float = 0.1,
        contrast: float = 1.0,
        smallest: float = 0.01,
        largest: float = 0.2,
        seed: int = 0,
        terms: list[Term] | None = None,
        **parts: Any,
    ) -> None:
        own = PromptContrast(contrast, smallest, largest, seed)
        super().__init__(beta=beta, terms=[*(terms or []), own], **parts)
