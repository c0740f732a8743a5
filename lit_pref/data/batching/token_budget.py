"""Windows cut by tokens instead of pairs."""

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lit_pref.errors import UserError
from lit_pref.pairs import PreferencePair
from lit_pref.scoring.layout import Layout


class TokenBudget:
    """The most tokens of one forward pass of one rank, and how a window is cut by it.

    A pair takes its tokens, prompt + chosen + rejected, where rows are shared, and a cell the sum of its pairs. Padded,
    a pair takes its rows times the longer one, and a cell as much for each of its pairs as for the largest. A window is
    sorted by that and sliced, so that a padded cell holds pairs of like lengths.

    An extra response is read apart and kept until the same backward pass: it takes the prompt's tokens once more and
    its own; padded, one row more, as long as the longest of the pair.

    Args:
        tokens: the most of a cell; no pair alone may take more.
        lengths: (pairs, 3), tokens of prompt, chosen and rejected response; rejected 0 for one-sided data.
        layout: of the rows.
        extra_response: (pairs,), tokens of the extra response; None where none is read.

    >>> budget = TokenBudget(20, np.array([[2, 1, 1], [2, 4, 3], [3, 2, 1]]), "padded")
    >>> budget.costs.tolist(), budget.least([0, 1, 2]), budget.cut([0, 1, 2], cells=2)
    ([6, 12, 10], 2, [[1], [0, 2]])
    """

    def __init__(
        self, tokens: int, lengths: NDArray[Any], layout: Layout, extra_response: NDArray[Any] | None = None
    ) -> None:
        prompt, chosen, rejected = lengths.astype(np.int64).T
        further = np.zeros_like(prompt) if extra_response is None else extra_response.astype(np.int64)
        self.tokens, self.layout = tokens, layout
        rows = 1 + (rejected > 0) + (further > 0)
        padded = rows * (prompt + np.maximum(np.maximum(chosen, rejected), further))
        shared = prompt + chosen + rejected + (further > 0) * (prompt + further)
        self.costs = shared if layout == "prefix_shared" else padded  # (pairs,)

    def least(self, window: Sequence[int]) -> int:
        """The least number of cells that hold the pairs of a window."""
        return len(self._ends(np.sort(self.costs[np.asarray(window)]).tolist(), self.tokens))

    def cut(self, window: Sequence[int], cells: int) -> list[list[int]]:
        """The pairs of a window in that many cells, or in cells of one pair where it has fewer.

        They are slices of the pairs from the smallest to the largest, such that the cell that takes most takes least;
        that one is the last.

        Raises:
            ValueError: a cell would be above the budget.
        """
        costs = self.costs[np.asarray(window)]
        order = np.argsort(costs, kind="stable")  # of equal ones the first of the window is first
        ascending = costs[order].tolist()
        limits = range(ascending[-1], self.tokens + 1)
        k = bisect_left(limits, True, key=lambda limit: len(self._ends(ascending, limit)) <= cells)
        if k == len(limits):
            raise ValueError(f"{len(window)} pairs do not fit {cells} cells of {self.tokens} tokens")
        ends = self._ends(ascending, limits[k], cells)
        slices = list(zip([0, *ends], ends, strict=False))
        slices.sort(key=lambda part: self._taken(ascending[slice(*part)]))
        pairs = [window[place] for place in order.tolist()]
        return [pairs[start:end] for start, end in slices]

    def _taken(self, ascending: list[int]) -> int:
        return sum(ascending) if self.layout == "prefix_shared" else len(ascending) * ascending[-1]

    def _ends(self, ascending: list[int], limit: int, cells: int = 0) -> list[int]:
        """Where each of the fewest slices within the limit ends; of more slices, if there are pairs for all `cells`."""
        ends: list[int] = []
        start, taken, pairs, shared = 0, 0, len(ascending), self.layout == "prefix_shared"
        for k, cost in enumerate(ascending):
            taken = taken + cost if shared else (k - start + 1) * cost
            if k > start and (taken > limit or pairs - k < cells - len(ends)):
                ends.append(k)
                start, taken = k, cost
        return [*ends, pairs]


def refuse_pairs_above(splits: Sequence[tuple[TokenBudget, Sequence[PreferencePair]]]) -> None:
    """Refuse pairs that do not even fit alone, by the largest of all splits.

    Raises:
        UserError: a pair is above the budget.
    """
    splits = [(budget, pairs) for budget, pairs in splits if len(pairs)]
    if not splits:
        return
    budget, pairs = max(splits, key=lambda split: split[0].costs.max())
    most = int(budget.costs.argmax())
    tokens = int(budget.costs[most])
    if tokens > budget.tokens:
        raise UserError(
            f"Pair {pairs[most].id} alone takes {tokens} tokens of a forward pass ({budget.layout} rows), more than "
            f"data.max_tokens {budget.tokens}; raise that to {tokens} or more, or lower data.max_length."
        )
