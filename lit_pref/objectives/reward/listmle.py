"""ListMLE: the likelihood of the order of a list."""

from torch import Tensor

from lit_pref.objectives.listwise import Listwise, log_total_exp, total


class ListMLE(Listwise):
    """ListMLE: the negative log-likelihood of the labels' order under the Plackett-Luce model.

        L = 1/K sum_i [log sum_{j: y_j <= y_i} exp(s_j) - s_i]

    Every response competes with those whose label is not higher. With two responses, K L is Bradley-Terry's loss. Tied
    responses compete with each other (Breslow's approximation), so that the loss does not depend on the order of the
    records; without ties the likelihood is exact.

    >>> ListMLE(mean=False)
    ListMLE(beta=1.0, mean=False)

    **When**: each list has a full order, and all of its ranks matter. Not if many labels are tied, or if the labels'
    size means something: only their order is read.

    **Source**: Xia et al., Listwise Approach to Learning to Rank, ICML 2008; ties: Breslow, International Statistical
    Review 43(1), 1975. Differs from the paper by the factor 1/K, without which a list of 8 responses weighs
    15 times as much as one of two (at equal scores), and by ties, which it leaves to the order of the data.

    Args:
        beta: > 0; 1 for a reward model.
        mean: divide by K; false gives the likelihood itself.

    Raises:
        UsageError: beta is not positive.
    """

    faithfulness = "derived"

    def __init__(self, beta: float = 1.0, mean: bool = True) -> None:
        super().__init__(beta)
        self.mean = mean

    def losses_of_lists(self, s: Tensor, y: Tensor, same: Tensor) -> Tensor:
        not_better = same & (y[:, None] >= y)
        sums = total(log_total_exp(s, not_better) - s, same)
        return sums / same.sum(1) if self.mean else sums
