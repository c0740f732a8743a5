"""ListNet: cross-entropy of the probabilities of being the best response."""

from torch import Tensor

from lit_pref.objectives.listwise import Listwise, log_total_exp, total
from lit_pref.objectives.numbers import positive


class ListNet(Listwise):
    """ListNet, top one: the cross-entropy between the softmax of the labels and the softmax of the scores.

        L = -sum_j softmax(y / T)_j log softmax(s)_j

    Its minimum is the entropy of softmax(y / T), at s = y / T + c for any c: the loss does not depend on the mean of
    the scores. As T falls to 0, only the best response counts.

    >>> ListNet(temperature=2.0)
    ListNet(beta=1.0, temperature=2.0)

    **When**: graded labels whose differences are meaningful, as log-odds are. Not if the labels are only an order:
    their size decides the target, so choose T for their scale.

    **Source**: Cao et al., Learning to Rank: From Pairwise Approach to Listwise Approach, ICML 2007. Differs from
    it in the temperature, which is 1 there.

    Args:
        beta: > 0; 1 for a reward model.
        temperature: T > 0, the difference of two labels that stands for a factor of e in probability.

    Raises:
        UsageError: beta or temperature is not positive.
    """

    faithfulness = "derived"

    def __init__(self, beta: float = 1.0, temperature: float = 1.0) -> None:
        super().__init__(beta)
        self.temperature = positive(temperature, "ListNet: temperature")

    def losses_of_lists(self, s: Tensor, y: Tensor, same: Tensor) -> Tensor:
        labels = y / self.temperature
        target = (labels - log_total_exp(labels, same)).exp()
        return total(target * (log_total_exp(s, same) - s), same)
