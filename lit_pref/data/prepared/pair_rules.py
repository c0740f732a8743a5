"""Rules for single pairs: their split, the filters of a mapping, the cap per prompt, and their ids."""

import hashlib
import heapq
import json
from collections import Counter
from collections.abc import Iterable
from typing import Any

from lit_pref.data.checking.text_pair import TextPair
from lit_pref.data.formats.spec import Filters
from lit_pref.data.sources.row import BadRow, Row
from lit_pref.data.sources.unread import said
from lit_pref.data.sources.values import number_of
from lit_pref.errors import UserError


def in_validation(prompt: Any, val_fraction: float, split_seed: int) -> bool:
    """Return whether the pairs of a prompt belong to validation: hash(split_seed, prompt) < val_fraction.

    All pairs of a prompt stay together, and additional rows move no prompt to the other split.

    >>> sum(in_validation(f"prompt {k}", val_fraction=0.1, split_seed=0) for k in range(1000))
    94
    """
    if not val_fraction:
        return False
    text = json.dumps([split_seed, prompt], sort_keys=True, default=str)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) < val_fraction * 2**64


def filtered_out(filters: Filters, text: TextPair, row: Row) -> str | None:
    """Return the reason why a pair does not pass the filters, or None if it does."""
    if filters.drop_ties and text.tie:
        return "tie"
    if filters.min_margin is not None and (text.margin is None or text.margin < filters.min_margin):
        return "no margin" if text.margin is None else f"margin below {filters.min_margin:g}"
    if filters.min_score_ratio is not None:
        try:
            low, high = sorted((number_of(row, "score_chosen"), number_of(row, "score_rejected")))
        except BadRow:
            return "no scores for a ratio"
        if low <= 0 or high < filters.min_score_ratio * low:
            return f"score ratio below {filters.min_score_ratio:g}"
    return None


class Lots:
    """Draws a deterministic random number for each pair: a hash of seed and texts, independent of file order.

    Repeated pairs get different numbers, because a cap would otherwise keep all or none of them.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._drawn: Counter[bytes] = Counter()

    def draw(self, text: TextPair) -> bytes:
        """Return the number of the next pair."""
        pair = hashlib.sha256(json.dumps([self._seed, *_said(text)]).encode()).digest()
        self._drawn[pair] += 1
        return hashlib.sha256(pair + self._drawn[pair].to_bytes(8)).digest()


def last_lots(texts: Iterable[TextPair], cap: int, seed: int) -> dict[str, bytes]:
    """Return, by `prompt_id`, the largest number that is still within the cap."""
    lots = Lots(seed)
    smallest: dict[str, list[_Descending]] = {}
    for text in texts:
        kept = smallest.setdefault(text.prompt_id, [])
        add = heapq.heappush if len(kept) < cap else heapq.heappushpop
        add(kept, _Descending(lots.draw(text)))
    return {prompt: kept[0].lot for prompt, kept in smallest.items()}


def _said(text: TextPair) -> list[Any]:
    """Return what identifies a pair: its texts, and calls of tools and the like beside them."""
    sides = dict(zip(text.further, said(text.further.values()), strict=True))
    further = {side: own for side, own in sides.items() if own}
    return [said(text.prompt), text.chosen, text.rejected, *([further] if further else [])]


class _Descending:
    """Orders numbers from the largest to the smallest, for a heap whose top is the largest."""

    def __init__(self, lot: bytes) -> None:
        self.lot = lot

    def __lt__(self, other: "_Descending") -> bool:
        return self.lot > other.lot


class PairIds:
    """Assigns stable ids: the row's own id, or a hash of its texts with a number for exact duplicates."""

    def __init__(self) -> None:
        self._seen: dict[str, int] = {}

    def of(self, row: Row, text: TextPair) -> tuple[str, bool]:
        """Return the id, and whether the same texts occurred before in the source."""
        key = text.id
        if key is None:
            texts = json.dumps(_said(text), sort_keys=True)
            key = hashlib.sha256(texts.encode()).hexdigest()[:16]
        before = self._seen.get(key)
        if before is not None and text.id is not None:
            raise UserError(
                f"{row.place}: line {before} has the id {key!r} too; make ids unique or remove the column `id`."
            )
        self._seen[key] = row.line if text.id is not None else (before or 0) + 1
        return (key, False) if before is None else (f"{key}-{before}", True)
