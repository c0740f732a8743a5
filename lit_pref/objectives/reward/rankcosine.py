"""RankCosine: the angle between scores and labels."""

import torch
from torch import Tensor

from lit_pref.objectives.listwise import Listwise, total


class RankCosine(Listwise):
    """RankCosine: the cosine between the scores and the labels of a list, as a loss between 0 and 1.

        L = (1 - cos(s - mean s, y - mean y)) / 2

    The loss does not depend on the scale of the scores, nor, as they are centred, on their mean. Where all scores are
    equal up to rounding the cosine is taken as 0, without gradient.

    >>> RankCosine().centre
    True

    **When**: labels whose scale means nothing, or differs between lists. Not for lists of two, where every right order
    has the loss 0, and not if the scale of the rewards must be learnt: the loss leaves it free.

    **Source**: Qin et al., Query-level Loss Functions for Information Retrieval, Information Processing and Management
    44(2), 2008. Differs from the paper, which does not centre: `centre: false`.

    Args:
        beta: > 0; without effect, because the scale of the scores has none.
        centre: subtract the means of the list; false compares s and y themselves.

    Raises:
        UsageError: beta is not positive.
    """

    faithfulness = "derived"

    def __init__(self, beta: float = 1.0, centre: bool = True) -> None:
        super().__init__(beta)
        self.centre = centre

    def losses_of_lists(self, s: Tensor, y: Tensor, same: Tensor) -> Tensor:
        s, y = (self._direction(values, same) for values in (s, y))
        return (1 - total(s * y, same)) / 2

    def _direction(self, values: Tensor, same: Tensor) -> Tensor:
        """Return `values` divided by their norm in each list, or zeros in a list without a direction."""
        size = total(values.detach().square(), same)
        if self.centre:
            values = values - total(values, same) / same.sum(1)
        square = total(values.square(), same)
        has_direction = square > (8 * torch.finfo(values.dtype).eps) ** 2 * size
        return torch.where(has_direction, values, 0.0) / torch.where(has_direction, square, 1.0).sqrt()
