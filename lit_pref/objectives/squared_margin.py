"""Regression of the reward difference on the quality margin."""

from typing import Any

from torch import Tensor

from lit_pref.objectives.pairwise import Pairwise
from lit_pref.objectives.parts.link import Link
from lit_pref.objectives.parts.offset import ColumnOffset


class SquaredResidual(Link):
    """(x / beta)^2: regresses the difference of the log-ratios on the offset / beta, in nats squared.

    The offset is what the difference should be, so the link is of use only with one.
    """

    constant_beta_only = (
        "SquaredResidual divides by beta squared, so that a beta that varies would weigh the pairs: "
        "choose `temperature: Constant`, or `link: Logistic`."
    )
    hard_targets_only = (
        "SquaredResidual fits the offset and does not read the target: choose `target: Hard`, or `link: Squared`."
    )

    def forward(self, logits: Tensor, target: Tensor, beta: Tensor) -> Tensor:
        return (logits / beta) ** 2


class SquaredMargin(Pairwise):
    """Squared margin matching: regresses the difference of the log-ratios on gamma m / beta nats.

        L = (h_w - h_l - gamma m / beta)^2

    It has the same minimum as `MMPO` for every pair, beta (h_w - h_l) = gamma m, and no saturation: a margin of 10
    counts ten times a margin of 1, and so does an outlier. Losses are in nats squared; with gamma = 0 they hold the
    policy at its reference.

    >>> SquaredMargin(gamma=0.5).offset
    ColumnOffset(column='margin', scale=0.5)

    **When**: margins are measured on an interval scale and their size should be learned, not only the probability it
    implies. Not with heavy-tailed margins: normalise them in the data mapping first, or take `MMPO`.

    **Source**: own formulation, no paper's: MMPO's target (arXiv 2410.03145) with IPO's loss (arXiv 2310.12036).

    Args:
        beta: > 0, reward units per nat.
        gamma: finite, reward units per unit of the data's margin.
        parts: the other parts of `Pairwise`.
    """

    faithfulness = "derived"
    family = "margins"

    def __init__(self, beta: float = 0.1, gamma: float = 1.0, **parts: Any) -> None:
        super().__init__(beta=beta, link=SquaredResidual(), offset=ColumnOffset("margin", gamma), **parts)
