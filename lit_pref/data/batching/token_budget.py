"""Optimizer steps cut into micro-batches by tokens instead of pairs."""

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lit_pref.errors import UserError
from lit_pref.pairs import PreferencePair
from lit_pref.scoring.layout import Layout


class TokenBudget:
    """Cuts an optimizer step into micro-batches, given the most tokens in one forward pass of one rank.

    In the prefix-shared layout a pair costs its tokens, prompt + chosen + rejected, and a micro-batch costs the sum of
    its pairs. In the padded layout a pair costs its rows times the longer one, and every pair of a micro-batch costs as
    much as its largest pair. A step is sorted by cost and sliced, so that a padded micro-batch has pairs of similar
    lengths.

    An extra response is read separately and kept until the same backward pass: it costs the prompt's tokens once more
    and its own; in the padded layout, one more row as long as the longest of the pair.

    Args:
        tokens: the most tokens of a micro-batch; no single pair may cost more.
        lengths: (pairs, 3), tokens of prompt, chosen and rejected response; rejected 0 for one-sided data.
        layout: layout of the rows.
        extra_response: (pairs,), tokens of the extra response; None if none is read.

    >>> budget = TokenBudget(20, np.array([[2, 1, 1], [2, 4, 3], [3, 2, 1]]), "padded")
    >>> budget.costs.tolist(), budget.least([0, 1, 2]), budget.cut([0, 1, 2], micro_batches=2)
    ([6, 12, 10], 2, [[1], [0, 2]])
    """

    def __init__(
        self, tokens: int, lengths: NDArray[Any], layout: Layout, extra_response: NDArray[Any] | None = None
    ) -> None:
        prompt, chosen, rejected = lengths.astype(np.int64).T
        extra = np.zeros_like(prompt) if extra_response is None else extra_response.astype(np.int64)
        self.tokens, self.layout = tokens, layout
        rows = 1 + (rejected > 0) + (extra > 0)
        padded = rows * (prompt + np.maximum(np.maximum(chosen, rejected), extra))
        shared = prompt + chosen + rejected + (extra > 0) * (prompt + extra)
        self.costs = shared if layout == "prefix_shared" else padded  # (pairs,)

    def least(self, window: Sequence[int]) -> int:
        """Return the smallest number of micro-batches for the pairs of an optimizer step."""
        return len(self._ends(np.sort(self.costs[np.asarray(window)]).tolist(), self.tokens))

    def cut(self, window: Sequence[int], micro_batches: int) -> list[list[int]]:
        """Cut an optimizer step into that many micro-batches, or into single pairs if it has fewer pairs.

        The pairs, sorted by cost, are sliced so that the cost of the most expensive micro-batch is minimal; it is the
        last one.

        Raises:
            ValueError: a micro-batch would exceed the budget.
        """
        costs = self.costs[np.asarray(window)]
        order = np.argsort(costs, kind="stable")  # a stable sort, so that equal pairs keep their order
        ascending = costs[order].tolist()
        limits = range(ascending[-1], self.tokens + 1)
        k = bisect_left(limits, True, key=lambda limit: len(self._ends(ascending, limit)) <= micro_batches)
        if k == len(limits):
            raise ValueError(f"{len(window)} pairs do not fit {micro_batches} micro-batches of {self.tokens} tokens")
        ends = self._ends(ascending, limits[k], micro_batches)
        slices = list(zip([0, *ends], ends, strict=False))
        slices.sort(key=lambda part: self._cost(ascending[slice(*part)]))
        pairs = [window[place] for place in order.tolist()]
        return [pairs[start:end] for start, end in slices]

    def _cost(self, ascending: list[int]) -> int:
        return sum(ascending) if self.layout == "prefix_shared" else len(ascending) * ascending[-1]

    def _ends(self, ascending: list[int], limit: int, least: int = 0) -> list[int]:
        """Return the ends of as few slices as the limit allows, but at least `least` if there are enough pairs."""
        ends: list[int] = []
        start, taken, pairs, shared = 0, 0, len(ascending), self.layout == "prefix_shared"
        for k, cost in enumerate(ascending):
            taken = taken + cost if shared else (k - start + 1) * cost
            if k > start and (taken > limit or pairs - k < least - len(ends)):
                ends.append(k)
                start, taken = k, cost
        return [*ends, pairs]


def refuse_pairs_above(splits: Sequence[tuple[TokenBudget, Sequence[PreferencePair]]]) -> None:
    """Refuse the data if the largest pair of all splits exceeds the budget by itself.

    Raises:
        UserError: a pair exceeds the budget.
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
