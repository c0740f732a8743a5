"""A gather of rows whose gradient is made of gathers too. Depends on torch and numpy only."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


@dataclass(frozen=True)
class GatheredRows:
    """The rows of a tensor that a gather reads, each at least once and at most twice, and their places in its result.

    Args:
        index: (M,) the row that each row of the result is a copy of, in any integer dtype.
        first: (T,) a place of each row in the result.
        last: (T,) its other place, or `first` again if it has only one.

    >>> rows = GatheredRows.of([0, 1, 2, 0, 3])
    >>> rows.first.tolist(), rows.last.tolist()
    ([0, 1, 2, 4], [3, 1, 2, 4])
    >>> rows(torch.tensor([[5.0], [6.0], [7.0], [8.0]])).flatten().tolist()
    [5.0, 6.0, 7.0, 5.0, 8.0]
    """

    index: Tensor
    first: Tensor
    last: Tensor

    @classmethod
    def of(cls, index: list[int]) -> "GatheredRows":
        """Return the gather of these rows, on the CPU.

        Raises:
            ValueError: a row is missing, or read more than twice.
        """
        rows = np.array(index)
        counts = np.bincount(rows)
        if counts.min() < 1 or counts.max() > 2:
            raise ValueError("every row must be read once or twice")
        places, ends = np.argsort(rows, kind="stable"), counts.cumsum()
        return cls(*(torch.tensor(part, dtype=torch.int32) for part in (rows, places[ends - counts], places[ends - 1])))

    def __call__(self, tensor: Tensor) -> Tensor:
        """Return `tensor.index_select(0, index)`, with a gradient without atomic additions.

        The backward pass of `index_select` on CUDA adds every row of the result to a row of zeros by atomic additions,
        which are slow below fp32. Here each row of the gradient reads its one or two places and adds them. The sums are
        the same bits, because the order of two terms does not change their sum.
        """
        return _Gather.apply(tensor, self.index, self.first, self.last)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, index: Tensor, first: Tensor, last: Tensor) -> Tensor:
        ctx.save_for_backward(first, last)
        return tensor.index_select(0, index)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        first, last = ctx.saved_tensors
        other = gradient.index_select(0, last)
        once = (first == last).view(-1, *(1,) * (gradient.ndim - 1))
        return gradient.index_select(0, first).add_(other.masked_fill_(once, 0)), None, None, None
