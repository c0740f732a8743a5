"""Margin matching preference optimisation."""

from typing import Any

from lit_pref.objectives.pairwise import Pairwise
from lit_pref.objectives.parts.gamma import Gamma
from lit_pref.objectives.parts.target import MarginTarget


class MMPO(Pairwise):
    """Margin matching: the loss fits the probability that the quality margin m gives the chosen response.

        L = -p log sigmoid(x) - (1 - p) log sigmoid(-x),    p = sigmoid(gamma m),    x = beta (h_w - h_l)

    The minimum is at x = gamma m, that is h_w - h_l = gamma m / beta nats, where the loss is the entropy of p and not
    0: compare runs by `kl_to_target`. gamma = inf is DPO, but for ties (m = 0), whose p stays 1/2. The same
    loss fits a reward model's scores (beta 1, `reference: NoReference`).

    **When**: the data say how much better the chosen response is, and pairs that are nearly equal should not be pushed
    as far apart as clear ones. Not if the strength is noise, or the same for all pairs.

    >>> MMPO(gamma=2.2).target
    MarginTarget(gamma=2.2)

    **Source**: MMPO, arXiv 2410.03145, and kykim0/margin-matching-pref-opt (gamma is `bt_beta`; used there: 2.2, 1.1
    and 0.3 on raw score differences, with beta 0.01). Differences, each a fault of that code: gamma = 0 is p = 1/2,
    not hard labels; a margin with gamma m < -709 gives p = 0 instead of an overflow; the reward model's loss pairs
    p_i with pair i, where theirs broadcasts (B, 1) against (B,).

    Args:
        beta: > 0, reward units per nat.
        gamma: >= 0 or inf (`.inf` in YAML), per unit of the data's margin; so it is tied to the rating scale. Given as
            `UnitMargin`, it is the probability at a margin of one; as `Fitted`, it is fitted to the training pairs.
        parts: the other parts of `Pairwise`.
    """

    faithfulness = "code"
    family = "margins"

    def __init__(self, beta: float = 0.1, gamma: float | Gamma = 1.0, **parts: Any) -> None:
        super().__init__(beta=beta, target=MarginTarget(gamma), **parts)
