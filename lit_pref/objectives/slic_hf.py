"""Sequence likelihood calibration with human feedback."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from lit_pref.batch import PairData
from lit_pref.objectives.pairwise import Pairwise
from lit_pref.objectives.parts.link import Hinge
from lit_pref.objectives.parts.part import Sides
from lit_pref.objectives.parts.reference import NoReference
from lit_pref.objectives.parts.terms import Term
from lit_pref.scores import PairScores


class SequenceNLL(Term):
    """-l_w: the negative log-prob of the whole chosen response, nats. For policies, not for reward models.

    `ChosenNLL` is the same per token.
    """

    log_probs_only = True

    def forward(
        self, beta: Tensor, rewards: Sides, policy: PairScores, references: Sequence[PairScores], pairs: PairData
    ) -> Tensor:
        return -policy.chosen.scores


class SLiCHF(Pairwise):
    """Sequence likelihood calibration: a hinge on the log-probs of a pair, plus cross-entropy on the chosen response.

        L = max(0, delta - l_w + l_l) - lambda l_w

    There is no reference: the cross-entropy keeps the policy near its data. Both terms are bounded below. A pair whose
    log-probs differ by more than delta nats has only the second term. Rewards are the summed log-probs.

    >>> SLiCHF(delta=2.0).link
    Hinge(delta=2.0)

    **When**: memory for a reference is missing and the chosen responses are good enough to imitate. Not if they are
    only the lesser evil, or of very different lengths: log-probs of whole responses are compared.

    **Source**: SLiC-HF, arXiv 2305.10425; reconstructed, because neither the paper's text nor its settings could be
    read: the defaults are ours. The paper's regulariser is on the reference answers of supervised fine-tuning; here, as
    in HALOs, it is on the chosen responses. HALOs adds it per token in the wrong shape; here it is summed. TRL's
    `hinge` is another loss, `DPO` with `link: Hinge`.

    Args:
        delta: > 0, margin between the two log-probs, nats.
        lambd: >= 0, lambda, the weight of the cross-entropy.
        terms: further losses, each with its coefficient.
        parts: the other parts of `Pairwise`.
    """

    faithfulness = "reconstruction"
    family = "reference-free"

    def __init__(self, delta: float = 1.0, lambd: float = 0.1, terms: list[Term] | None = None, **parts: Any) -> None:
        own = [SequenceNLL(lambd), *(terms or [])]
        super().__init__(beta=1.0, reference=NoReference(), link=Hinge(delta), terms=own, **parts)
