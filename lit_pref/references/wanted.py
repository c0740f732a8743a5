"""The scores that one run will read: which responses, which of them are there, and finding them again by content."""

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lit_pref.references.addresses import NOWHERE
from lit_pref.references.store import Scores

Array = NDArray[Any]
SMALLEST_BLOCK, MOST_BLOCKS = 64, 512


class NeededScores:
    """The distinct responses of some pairs, in sorted arrays: a million pairs take some 200 MB.

    Args:
        table: (pairs,) rows of `addresses.TABLE`.
    """

    def __init__(self, table: NDArray[np.void]) -> None:
        flat = table["addresses"].reshape(-1)
        there = flat != NOWHERE
        self.addresses, rows = np.unique(flat[there], return_inverse=True)
        sides = np.full(len(flat), -1)
        sides[there] = rows
        responses = sides.reshape(-1, 2)
        # A pair by its two responses, each pair once; its number orders as the addresses do.
        code = responses[:, 0] * (len(self.addresses) + 1) + responses[:, 1] + 1
        _, self.first = np.unique(code, return_index=True)  # of each distinct pair, where it is in the table
        self.pairs = responses[self.first]  # chosen and rejected, by row; -1 for none
        self.tokens = table["tokens"][self.first]
        self._keys, at = np.unique(table["keys"].reshape(-1)[there], return_index=True)
        self._rows = rows[at]
        self.scores = np.full(len(self.addresses), np.nan)
        self.lengths = np.zeros(len(self.addresses), np.int32)
        self.found = np.zeros(len(self.addresses), bool)
        self._token_parts: list[Array] = []
        self._token_places = np.zeros((len(self.addresses), 2), np.int64)  # which part, and where in it

    def take(self, part: Scores) -> None:
        """Keep what is wanted of a part and not there yet."""
        if not len(self.addresses):
            return
        rows = np.searchsorted(self.addresses, part.addresses).clip(max=len(self.addresses) - 1)
        new = (self.addresses[rows] == part.addresses) & ~self.found[rows]
        rows = rows[new]
        self.scores[rows], self.lengths[rows] = part.scores[new], part.lengths[new]
        self.found[rows] = True
        if part.tokens is not None:
            starts = np.cumsum(part.lengths, dtype=np.int64) - part.lengths
            self._token_places[rows, 0] = len(self._token_parts)
            self._token_places[rows, 1] = starts[new]
            self._token_parts.append(part.tokens)

    def rows(self, keys: list[bytes]) -> Array:
        """Where the responses with these keys are; -1 for one that is not wanted or not there."""
        asked = np.array(keys, self._keys.dtype)
        if not len(self._keys):
            return np.full(len(asked), -1)
        at = np.searchsorted(self._keys, asked).clip(max=len(self._keys) - 1)
        rows = self._rows[at]
        return np.where((self._keys[at] == asked) & self.found[rows], rows, -1)

    def token_logps(self, row: int) -> Array:
        """The log-probs of the tokens of one response."""
        part, start = self._token_places[row]
        return self._token_parts[part][start : start + self.lengths[row]]

    @property
    def missing(self) -> int:
        """How many responses have no score yet."""
        return int((~self.found).sum())

    def lacking(self, pairs: Array) -> Array:
        """Those of some pairs that lack a score."""
        found = np.append(self.found, True)  # row -1: there is no response
        return pairs[~found[self.pairs[pairs]].all(axis=1)]

    def blocks(self) -> list[Array]:
        """All pairs in blocks whose composition depends on the pairs alone, the longest first.

        So a run that was killed, or shares the work, reads every pair in the same company as one that did neither: the
        same bits. The longest first, because memory runs out at once or never. Pairs of two responses and single
        ones, such as extra responses, are read apart: a batch is of one kind.
        """
        order = np.lexsort((np.arange(len(self.pairs)), -self.tokens))
        single = self.pairs[order, 1] < 0
        return [*_cut(order[~single]), *_cut(order[single])]

    def name(self, block: Array) -> str:
        """Of a block, by its content."""
        responses = self.pairs[block].reshape(-1)
        return hashlib.sha256(self.addresses[responses[responses >= 0]].tobytes()).hexdigest()[:32]


def _cut(order: Array) -> list[Array]:
    size = max(SMALLEST_BLOCK, -(-len(order) // MOST_BLOCKS))
    return [order[start : start + size] for start in range(0, len(order), size)]
