"""Contrastive preference optimisation."""

from typing import Any

from lit_pref.objectives.pairwise import Pairwise
from lit_pref.objectives.parts.reference import NoReference
from lit_pref.objectives.parts.terms import ChosenNLL, Term


class CPO(Pairwise):
    """Contrastive preference optimisation: DPO without a reference, plus cross-entropy on the chosen response.

        L = -log sigmoid(beta (l_w - l_l)) - cpo_alpha l_w / n_w

    It is DPO's loss for a uniform reference. The cross-entropy holds the policy near its data in place of one. Rewards
    are beta times the summed log-prob.

    >>> CPO().terms[0]
    ChosenNLL(coefficient=1.0)

    **When**: memory for a reference is missing and the chosen responses are very good, as in translation, for which it
    was made. Not if they are only the better of two samples, or if the responses differ much in length.

    **Source**: CPO, arXiv 2401.08417, with the weight named as in TRL. TRL's `sigmoid` of CPO averages the
    cross-entropy over all chosen tokens of a batch, so that long responses count more and the batches matter; here
    every pair counts the same. The two agree if all chosen responses are equally long. Its `label_smoothing` is
    `target: Smoothed`.

    Args:
        beta: > 0, reward units per nat.
        cpo_alpha: >= 0, weight of the cross-entropy, per nat per token.
        terms: further losses, each with its coefficient.
        parts: the other parts of `Pairwise`.
    """

    faithfulness = "derived"
    family = "reference-free"

    def __init__(
        self, beta: float = 0.1, cpo_alpha: float = 1.0, terms: list[Term] | None = None, **parts: Any
    ) -> None:
        own = [ChosenNLL(cpo_alpha), *(terms or [])]
        super().__init__(beta=beta, reference=NoReference(), terms=own, **parts)
