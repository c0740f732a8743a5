"""The Bradley-Terry loss of a reward model."""

from typing import Any

from lit_pref.objectives.pairwise import Pairwise
from lit_pref.objectives.parts.reference import NoReference


class BradleyTerry(Pairwise):
    """The negative log-probability of the preferences under the Bradley-Terry model.

        L = -log sigmoid(r_w - r_l)

    With `offset: ColumnOffset(margin)` a stronger preference requires a larger difference of rewards, and with
    `target: MarginTarget` it is margin matching, as `MMPO` has it with `beta: 1` and `reference: NoReference`. The
    difference of rewards does not depend on their mean: `terms: [Center]` holds it near 0.

    >>> BradleyTerry().requirements.max_references
    0

    **When**: the first reward model to train, and the baseline of the others. Not if the data say how much better the
    chosen response is: let the margin be an offset or a target then.

    **Source**: Bradley and Terry (1952); InstructGPT, arXiv 2203.02155, equation 1; with the margin as offset: Llama 2,
    arXiv 2307.09288, equation 2.

    Args:
        parts: the other parts of `Pairwise`.
    """

    faithfulness = "derived"
    family = "reward models"
    rewards_only = True

    def __init__(self, **parts: Any) -> None:
        super().__init__(beta=1.0, reference=NoReference(), **parts)
