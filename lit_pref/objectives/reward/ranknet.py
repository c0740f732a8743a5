"""RankNet: a logistic loss of every pair of a list."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_pref.errors import UsageError
from lit_pref.objectives.listwise import Listwise, total


class RankNet(Listwise):
    """RankNet: the mean logistic loss of the pairs of a list, with hard or with soft targets.

        L = mean over y_i > y_j of [p ls(s_i - s_j) + (1 - p) ls(s_j - s_i)],    p = sigmoid(gamma (y_i - y_j))

    ls(x) = -log sigmoid(x), s the scores and y the labels of a list. With gamma infinite p = 1: with two responses the
    loss is Bradley-Terry's, and with a finite gamma it is MMPO's. Responses of equal labels form no pair.

    >>> RankNet(gamma=0.5)
    RankNet(beta=1.0, gamma=0.5)

    **When**: lists in which some pairs are in doubt; the first list loss to try, because with two responses it is the
    loss of pairs. Not if only the best responses of a list matter: see `LambdaRank`.

    **Source**: Burges et al., Learning to Rank using Gradient Descent, ICML 2005; soft targets from margins as in MMPO,
    arXiv 2410.03145. Differs from RankNet, which also trains on ties, with p = 1/2.

    Args:
        beta: > 0; 1 for a reward model.
        gamma: > 0, the log-odds that one unit of the labels stands for; `.inf` gives hard targets.

    Raises:
        UsageError: beta or gamma is not positive.
    """

    faithfulness = "derived"

    def __init__(self, beta: float = 1.0, gamma: float = math.inf) -> None:
        super().__init__(beta)
        if not gamma > 0:
            raise UsageError(f"RankNet: gamma must be above 0, got {gamma}; .inf gives hard targets.")
        self.gamma = gamma

    def losses_of_lists(self, s: Tensor, y: Tensor, same: Tensor) -> Tensor:
        better = same & (y[:, None] > y)  # (B, B): row i is better than column j
        margins = torch.where(better, y[:, None] - y, 1.0)
        target = torch.sigmoid(self.gamma * margins)
        losses = F.binary_cross_entropy_with_logits(s[:, None] - s, target, reduction="none")
        pairs = total(better.sum(1).to(s), same)
        return total(total(losses, better), same) / torch.where(pairs > 0, pairs, 1.0)
