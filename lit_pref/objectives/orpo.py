"""Odds ratio preference optimisation."""

from typing import Any

import torch

from lit_pref.objectives.pairwise import Pairwise
from lit_pref.objectives.parts.part import Sides
from lit_pref.objectives.parts.reference import NoReference
from lit_pref.objectives.parts.score import Score
from lit_pref.objectives.parts.terms import ChosenNLL, Term, TextNLL
from lit_pref.objectives.parts.tokens import Mean
from lit_pref.objectives.parts.weight import ConstantWeight


class LogOdds(Score):
    """phi(a) = a - log(1 - exp(a)): the log-odds of a response with the mean log-prob a (ORPO).

    a is bounded away from 0 by the resolution of the dtype, where the odds would be infinite; the gradient is 0 there.
    """

    needs_ratio = False
    log_probs_only = True
    means_only = (
        "LogOdds is a function of the mean log-prob per token, which is negative: "
        "choose `tokens: Mean` with `reference: NoReference`, or another score."
    )

    def forward(self, ratios: Sides) -> Sides:
        largest = -torch.finfo(ratios[0].dtype).eps
        chosen, rejected = (torch.where(a >= largest, largest, a) for a in ratios)
        return chosen - torch.log(-torch.expm1(chosen)), rejected - torch.log(-torch.expm1(rejected))


class ORPO(Pairwise):
    """Odds ratio preference optimisation: supervised fine-tuning plus a loss on the ratio of the responses' odds.

        L = -a_w - lambda log sigmoid(log odds(a_w) - log odds(a_l)),    a = l / n,    log odds(a) = a - log(1 - e^a)

    There is no reference, and no supervised stage before. lambda = 0 is `SFT`. Rewards are the log-odds.

    >>> ORPO(lambd=0.2).weight
    ConstantWeight(c=0.2)

    **When**: a base model is to be tuned in one stage, on chosen responses worth imitating. Not after supervised
    fine-tuning on the same responses, or if they are only the better of two samples.

    **Source**: ORPO, arXiv 2403.07691, equations 6 and 7; derived. TRL's `beta` is lambda. TRL's cross-entropy is that
    of the prompt's tokens too, -log pi(x, y_w) / (n_x - 1 + n_w), `prompt_nll` here; in the paper's equation it is that
    of the response. TRL averages it over all tokens of a batch, here it is averaged over pairs: with one pair, or texts
    of equal length, they agree. The odds ratio terms agree.

    Args:
        lambd: >= 0, lambda, the weight of the odds ratio loss.
        prompt_nll: whether the cross-entropy includes the prompt, as in TRL; costs a further forward pass of the
            chosen responses.
        terms: further losses, each with its coefficient.
        parts: the other parts of `Pairwise`.
    """

    faithfulness = "derived"
    family = "reference-free"

    def __init__(
        self, lambd: float = 0.1, prompt_nll: bool = False, terms: list[Term] | None = None, **parts: Any
    ) -> None:
        own = [TextNLL() if prompt_nll else ChosenNLL(), *(terms or [])]
        super().__init__(
            beta=1.0,
            reference=NoReference(),
            tokens=Mean(),
            score=LogOdds(),
            weight=ConstantWeight(lambd),
            terms=own,
            **parts,
        )
