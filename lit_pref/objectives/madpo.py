"""Margin-adaptive direct preference optimisation."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_pref.batch import PairData
from lit_pref.errors import UsageError
from lit_pref.objectives.pairwise import Pairwise
from lit_pref.objectives.parts.weight import Weight
from lit_pref.objectives.requirements import Requirements
from lit_pref.scores import PairScores


class MarginAdaptive(Weight):
    """omega = sigmoid(c m) / sigmoid(m) for m > -tau, else 1: more for small margins m, less for large ones (MADPO).

        c = c_min + (c_max - c_min) / (1 + (c_max - 1) / (1 - c_min) exp(lambda (|m| - tau)))

    c falls with |m| from below c_max (1.68 at m = 0 with the defaults) to c_min, and is 1 at |m| = tau. omega is 1 at
    m = 0, at m = tau and in the limit.

    Args:
        c_max: > 1, finite.
        c_min: in [0, 1).
        lambd: > 0, lambda, steepness per unit of the margin.
        tau: >= 0, the margin at which c is 1.
    """

    requirements = Requirements(columns=frozenset({"margin"}))

    def __init__(self, c_max: float = 2.0, c_min: float = 0.5, lambd: float = 1.0, tau: float = 2.0) -> None:
        super().__init__()
        if not (0 <= c_min < 1 < c_max < math.inf and 0 < lambd < math.inf and 0 <= tau < math.inf):
            raise UsageError(
                f"MarginAdaptive: 0 <= c_min < 1 < c_max, lambd > 0 and tau >= 0 must hold, got c_min {c_min}, "
                f"c_max {c_max}, lambd {lambd}, tau {tau}."
            )
        self.c_max, self.c_min, self.lambd, self.tau = c_max, c_min, lambd, tau

    def forward(self, policy: PairScores, pairs: PairData) -> Tensor:
        margin = self.read("margin", policy, pairs)
        growth = (self.c_max - 1) / (1 - self.c_min) * torch.exp(self.lambd * (margin.abs() - self.tau))
        c = self.c_min + (self.c_max - self.c_min) / (1 + growth)
        return torch.where(margin > -self.tau, torch.exp(F.logsigmoid(c * margin) - F.logsigmoid(margin)), 1)


class MADPO(Pairwise):
    """Margin-adaptive DPO: weighs each pair by its quality margin, so that close pairs count more than clear ones.

        L = -omega log sigmoid(beta (h_w - h_l)),    omega(m) as in `MarginAdaptive`

    >>> MADPO(tau=1.0).weight
    MarginAdaptive(c_max=2.0, c_min=0.5, lambd=1.0, tau=1.0)

    **When**: a reward model, trained as Bradley-Terry's, gives the margins, and clear pairs dominate the training. Not
    with ratings on a scale of their own, whose unit is no log-odds: the weights are computed from sigmoid(m).

    **Source**: MADPO, arXiv 2510.05342, and sirano1004/Margin-Apative-Direct-Preference-Optimization, with these
    defaults. There the reward model's margin is signed by the label; here by the data, which is the same.

    Args:
        beta: > 0, reward units per nat.
        c_max: > 1, finite; the larger, the more the close pairs count.
        c_min: in [0, 1); the smaller, the less the clear pairs count.
        lambd: > 0, lambda, steepness of the change from c_max to c_min, per unit of the margin.
        tau: >= 0, the margin that separates close from clear pairs.
        parts: the other parts of `Pairwise`.

    Raises:
        UsageError: a number is out of its range.
    """

    faithfulness = "code"
    family = "margins"

    def __init__(
        self,
        beta: float = 0.1,
        c_max: float = 2.0,
        c_min: float = 0.5,
        lambd: float = 1.0,
        tau: float = 2.0,
        **parts: Any,
    ) -> None:
        super().__init__(beta=beta, weight=MarginAdaptive(c_max, c_min, lambd, tau), **parts)
