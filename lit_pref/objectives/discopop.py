"""Discovered preference optimisation."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_pref.errors import UsageError
from lit_pref.objectives.pairwise import Pairwise
from lit_pref.objectives.parts.link import MarginLink


class LogRatioModulated(MarginLink):
    """l(x) = (1 - g) (-log sigmoid(x)) + g exp(-x), g = sigmoid(x / tau): logistic below 0, exponential above.

    g exp(-x) is computed as one exponential, whose exponent is never positive for tau <= 1.

    Args:
        tau: in (0, 1], width of the transition, units of the logit.
    """

    def __init__(self, tau: float = 0.05) -> None:
        super().__init__()
        if not 0 < tau <= 1:
            raise UsageError(f"LogRatioModulated: tau must be in (0, 1], got {tau}; above 1 the loss overflows.")
        self.tau = tau

    def loss(self, logits: Tensor) -> Tensor:
        scaled = logits / self.tau
        logistic = -torch.sigmoid(-scaled) * F.logsigmoid(logits)
        return logistic + torch.exp(F.logsigmoid(scaled) - logits)


class DiscoPOP(Pairwise):
    """Discovered preference optimisation: a loss that changes from the logistic to the exponential one at x = 0.

        L = (1 - g) (-log sigmoid(x)) + g exp(-x),    g = sigmoid(x / tau),    x = beta (h_w - h_l)

    It is not convex: at x = 0, where training starts, it rises with x, between a local minimum at a small negative and
    a maximum at a small positive x. So pairs are first pushed towards the wrong order, and some stay there. Far from 0
    it is nearly DPO's loss, because exp(-x) and -log sigmoid(x) agree for large x.

    >>> DiscoPOP().link
    LogRatioModulated(tau=0.05)

    **When**: as a further candidate in a comparison of losses. Not if the training must be explained, or with a beta
    far from 0.05, for which it was found.

    **Source**: DiscoPOP, arXiv 2406.08414, equation 5, a loss found by a language model's search, with beta and tau
    0.05; the authors' code was not read. TRL's `discopop` is the same, but computes sigmoid and exponential separately:
    in fp32 it is NaN from x = -89 on. Here they are one exponential.

    Args:
        beta: > 0, reward units per nat.
        tau: in (0, 1], width of the transition, units of the logit.
        parts: the other parts of `Pairwise`.
    """

    faithfulness = "derived"
    family = "links"

    def __init__(self, beta: float = 0.05, tau: float = 0.05, **parts: Any) -> None:
        super().__init__(beta=beta, link=LogRatioModulated(tau), **parts)
