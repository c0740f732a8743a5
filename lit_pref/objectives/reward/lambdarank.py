"""LambdaRank: pairs of a list, weighted by what their exchange would change of the NDCG."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_pref.objectives.listwise import Listwise, total


class LambdaRank(Listwise):
    """LambdaRank: the logistic loss of every pair, weighted by how much exchanging the two changes the NDCG.

        L = sum over y_i > y_j of |2^y_i - 2^y_j| |1/log2(1 + r_i) - 1/log2(1 + r_j)| / IDCG  -log sigmoid(s_i - s_j)

    r is the rank of a response by its present score, 1 for the highest, without gradient; of equal scores, the lower
    label has the better rank, so that a tie is not free. IDCG = sum_i (2^y_i - 1) / log2(1 + i) over the labels in
    falling order. Labels count from the lowest one of their list, because rewards have no natural zero. Responses of
    equal labels form no pair.

    >>> LambdaRank()
    LambdaRank(beta=1.0)

    **When**: lists with graded labels, of which the best few responses matter, as for best-of-n. Not for lists of two,
    or if the labels are only an order: their size sets the weights.

    **Source**: Burges, Ragno and Le, Learning to Rank with Nonsmooth Cost Functions, NIPS 2006; as the loss whose
    gradient they give: Wang et al., The LambdaLoss Framework for Ranking Metric Optimization, CIKM 2018. Differs from
    them by the lowest label of a list, which counts as 0 here.

    Args:
        beta: > 0; 1 for a reward model.

    Raises:
        UsageError: beta is not positive.
    """

    faithfulness = "derived"

    def losses_of_lists(self, s: Tensor, y: Tensor, same: Tensor) -> Tensor:
        better = same & (y[:, None] > y)
        weights = ndcg_changes(s.detach(), y, same)
        return total(total(weights * -F.logsigmoid(s[:, None] - s), better), same)


@torch.no_grad()
def ndcg_changes(s: Tensor, y: Tensor, same: Tensor) -> Tensor:
    """Return how much exchanging the ranks of two responses of one list changes its NDCG, (B, B).

    >>> ndcg_changes(torch.tensor([0.5, 0.2]), torch.tensor([0.0, 1.0]), torch.ones(2, 2, dtype=torch.bool))
    tensor([[0.0000, 0.3691],
            [0.3691, 0.0000]])
    """
    lowest = torch.where(same, y, torch.inf).amin(1)
    highest = torch.where(same, y, -torch.inf).amax(1)
    # Divided by the largest gain, which cancels in the NDCG, so that none overflows.
    gains = torch.exp2(y - highest) - torch.exp2(lowest - highest)
    ideal = total(gains * _discounts(y, torch.zeros_like(y), same), same)
    discounts = _discounts(s, -y, same)
    changes = (gains[:, None] - gains).abs() * (discounts[:, None] - discounts).abs()
    return changes / torch.where(ideal > 0, ideal, 1.0)[:, None]


def _discounts(values: Tensor, ties: Tensor, same: Tensor) -> Tensor:
    """Return 1 / log2(1 + rank) by falling `values` in each list; of equal ones by falling `ties`, then by place."""
    first = torch.ones_like(same).tril(-1)  # row i: the records before i
    equal, tied = values == values[:, None], ties == ties[:, None]
    ahead = (values > values[:, None]) | (equal & ((ties > ties[:, None]) | (tied & first)))
    return 1 / torch.log2(2 + (ahead & same).sum(1).to(values))
