"""Optimizer steps cut into micro-batches by tokens instead of pairs."""

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lit_pref.data.prepared.lists import Lists
from lit_pref.errors import UserError
from lit_pref.pairs import PreferencePair
from lit_pref.scoring.layout import Layout


class TokenBudget:
    """Cuts an optimizer step into micro-batches, given the most tokens in one forward pass of one rank.

    In the prefix-shared layout a pair costs its tokens, prompt + chosen + rejected, and a micro-batch costs the sum of
    its pairs. In the padded layout a pair costs its rows times the longer one, and a micro-batch costs all its rows
    times the longest one. A step is sorted by length and sliced, so that a padded micro-batch has pairs of similar
    lengths. Lists are cut like pairs that have the rows of all their responses; none is split.

    An extra response is read separately and kept until the same backward pass: it costs the prompt's tokens once more
    and its own; in the padded layout, one more row as long as the longest of the pair.

    Args:
        tokens: the most tokens of a micro-batch; no single pair may cost more.
        lengths: (pairs, 3), tokens of prompt, chosen and rejected response; rejected 0 for one-sided data.
        layout: layout of the rows.
        extra_response: (pairs,), tokens of the extra response; None if none is read.
        lists: the lists that the pairs form; indices are then of lists.

    >>> budget = TokenBudget(20, np.array([[2, 1, 1], [2, 4, 3], [3, 2, 1]]), "padded")
    >>> budget.costs.tolist(), budget.least([0, 1, 2]), budget.cut([0, 1, 2], micro_batches=2)
    ([6, 12, 10], 2, [[1], [0, 2]])
    """

    def __init__(
        self,
        tokens: int,
        lengths: NDArray[Any],
        layout: Layout,
        extra_response: NDArray[Any] | None = None,
        lists: Lists | None = None,
    ) -> None:
        prompt, chosen, rejected = lengths.astype(np.int64).T
        extra = np.zeros_like(prompt) if extra_response is None else extra_response.astype(np.int64)
        self.tokens, self.layout, self.lists = tokens, layout, lists
        rows = 1 + (rejected > 0) + (extra > 0)
        longest = prompt + np.maximum(np.maximum(chosen, rejected), extra)
        if layout == "prefix_shared":  # as one row without padding, whose length is the sum
            rows, longest = np.ones_like(rows), prompt + chosen + rejected + (extra > 0) * (prompt + extra)
        if lists is not None and len(lists):
            of_list = np.add if layout == "prefix_shared" else np.maximum
            rows = rows[lists.starts] if layout == "prefix_shared" else np.add.reduceat(rows, lists.starts)
            longest = of_list.reduceat(longest, lists.starts)
        self.rows, self.longest = rows, longest  # (pairs,) each
        self.costs = rows * longest

    def cost(self, indices: Sequence[int]) -> int:
        """Return the cost of one micro-batch."""
        rows, longest = self.rows[list(indices)], self.longest[list(indices)]
        return int(longest.sum() if self.layout == "prefix_shared" else rows.sum() * longest.max())

    def least(self, window: Sequence[int]) -> int:
        """Return the smallest number of micro-batches for the pairs of an optimizer step."""
        return len(self._ends(self._ascending(window)[1], self.tokens))

    def cut(self, window: Sequence[int], micro_batches: int) -> list[list[int]]:
        """Cut an optimizer step into that many micro-batches, or into single pairs if it has fewer pairs.

        The pairs, sorted by length, are sliced so that the cost of the most expensive micro-batch is minimal; it is the
        last one.

        Raises:
            ValueError: a micro-batch would exceed the budget.
        """
        order, ascending = self._ascending(window)
        limits = range(max(rows * longest for rows, longest in ascending), self.tokens + 1)
        k = bisect_left(limits, True, key=lambda limit: len(self._ends(ascending, limit)) <= micro_batches)
        if k == len(limits):
            raise ValueError(f"{len(window)} pairs do not fit {micro_batches} micro-batches of {self.tokens} tokens")
        ends = self._ends(ascending, limits[k], micro_batches)
        slices = list(zip([0, *ends], ends, strict=False))
        slices.sort(key=lambda part: self._cost(ascending[slice(*part)]))
        pairs = [window[place] for place in order.tolist()]
        return [pairs[start:end] for start, end in slices]

    def _ascending(self, window: Sequence[int]) -> tuple[NDArray[Any], list[tuple[int, int]]]:
        """Return the order of a step's pairs by length, and the rows and the longest row of each in that order."""
        index = np.asarray(window)
        order = np.argsort(self.longest[index], kind="stable")  # a stable sort, so that equal pairs keep their order
        sizes = zip(self.rows[index][order].tolist(), self.longest[index][order].tolist(), strict=True)
        return order, list(sizes)

    def _cost(self, ascending: list[tuple[int, int]]) -> int:
        if self.layout == "prefix_shared":
            return sum(longest for _, longest in ascending)
        return sum(rows for rows, _ in ascending) * ascending[-1][1]

    def _ends(self, ascending: list[tuple[int, int]], limit: int, least: int = 0) -> list[int]:
        """Return the ends of as few slices as the limit allows, but at least `least` if there are enough pairs."""
        ends: list[int] = []
        start, together, pairs, shared = 0, 0, len(ascending), self.layout == "prefix_shared"
        for k, (rows, longest) in enumerate(ascending):
            together += longest if shared else rows
            taken = together if shared else together * longest
            if k > start and (taken > limit or pairs - k < least - len(ends)):
                ends.append(k)
                start, together = k, longest if shared else rows
        return [*ends, pairs]


def refuse_pairs_above(splits: Sequence[tuple[TokenBudget, Sequence[PreferencePair]]]) -> None:
    """Refuse the data if the largest pair, or list, of all splits exceeds the budget by itself.

    Raises:
        UserError: a pair or a list exceeds the budget.
    """
    splits = [(budget, pairs) for budget, pairs in splits if len(pairs)]
    if not splits:
        return
    budget, pairs = max(splits, key=lambda split: split[0].costs.max())
    most = int(budget.costs.argmax())
    tokens = int(budget.costs[most])
    if tokens > budget.tokens:
        too_large = sum(int((each.costs > each.tokens).sum()) for each, _ in splits) - 1
        if budget.lists is None:
            what = _of_pair(pairs[most])
        else:
            first = pairs[int(budget.lists.starts[most])]
            what = f"{first.place}: the list of {budget.lists.sizes[most]} responses, which stays in one micro-batch,"
            what += " takes"
        others = f" ({too_large} other(s) are too large as well)" if too_large else ""
        raise UserError(
            f"{what} {tokens} tokens of a forward pass ({budget.layout} rows), more than data.max_tokens "
            f"{budget.tokens}{others}; raise that to {tokens} or more, or lower data.max_length."
        )


def _of_pair(pair: PreferencePair) -> str:
    """The beginning of a sentence on a pair: its place, the tokens of its texts, and the verb."""
    texts = {name: getattr(pair, name) or () for name in ("prompt", "chosen", "rejected", "extra_response")}
    counted = ", ".join(f"{name} {len(ids)}" for name, ids in texts.items() if ids)
    return f"{pair.place or f'pair {pair.id}'}: the texts (in tokens: {counted}) take"
