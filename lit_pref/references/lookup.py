"""Looks up the scores that a run needs, by keys of their responses."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lit_pref.cache import build_once, cache_folder
from lit_pref.models.encoding import Encoding, tokenizer_state
from lit_pref.pairs import ExtraFunction, PreferencePair, TruncatedText
from lit_pref.references.own_tokenizer import ids_of
from lit_pref.references.store import KEY, Scores
from lit_pref.response_key import response_key

Array = NDArray[Any]
FORMAT = 3  # raise it when a code change makes the same pairs get other keys
NO_RESPONSE = b""
TABLE = np.dtype([("lookup_keys", KEY, 2), ("store_keys", KEY, 2), ("tokens", np.int32)])
"""A row per pair: keys of its chosen and rejected response, and the tokens of prompt and longer response together.

A lookup key is computed from a batch; it equals the store key where the reference reads the policy's tokens, and is a
hash of the truncated text otherwise. The rejected response of one-sided data has the key NO_RESPONSE.
"""
SMALLEST_BLOCK, MOST_BLOCKS = 64, 512


class SplitPairs(Protocol):
    """The prepared pairs of one split."""

    @property
    def fingerprint(self) -> str: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> PreferencePair: ...


class ExtraResponses:
    """The extra responses of a split as one-sided pairs, which the store treats like any other pairs.

    Args:
        pairs: pairs that each have an extra response.
        function: the function that computes them; None if the data have them.
    """

    def __init__(self, pairs: SplitPairs, function: ExtraFunction | None = None) -> None:
        self._pairs, self._function = pairs, function

    @property
    def fingerprint(self) -> str:
        under = "" if self._function is None else f" under {self._function!r}"
        return f"{self._pairs.fingerprint} extra response{under}"

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int, /) -> PreferencePair:
        return self._pairs[index].of_extra_response()


def key_table(pairs: SplitPairs, tokenizer: Any, say: Callable[[str], None] = print) -> Array:
    """Return the (pairs,) TABLE of a split, from the cache if it was built before.

    Args:
        pairs: the pairs of the split.
        tokenizer: the reference's own; None if it reads the policy's tokens.
        say: called with a line before work that takes long.

    Raises:
        UserError: the reference's chat template refuses a conversation.
    """
    state: Any = None
    if tokenizer is not None:
        special = [tokenizer.bos_token_id, tokenizer.eos_token_id, sorted(tokenizer.all_special_tokens)]
        state = [tokenizer_state(tokenizer), tokenizer.chat_template, special]
    key = hashlib.sha256(json.dumps([FORMAT, pairs.fingerprint, state], sort_keys=True).encode()).hexdigest()

    def build(folder: Path) -> None:
        if tokenizer is not None:
            say(f"tokenizing {len(pairs)} pairs once with the tokenizer of {tokenizer.name_or_path}")
        rows = np.fromiter(_rows(pairs, tokenizer), TABLE, len(pairs))
        np.save(folder / "keys.npy", rows)

    folder = build_once(cache_folder("keys", key[:32]), build)
    return np.load(folder / "keys.npy", mmap_mode="r")


def _rows(pairs: SplitPairs, tokenizer: Any) -> Iterator[Any]:
    encoding = None if tokenizer is None else Encoding(tokenizer)
    for k in range(len(pairs)):
        pair = pairs[k] if encoding is None else in_own_ids(pairs[k], encoding)
        rejected = pair.rejected
        store_keys = (
            response_key(pair.prompt, pair.chosen),
            NO_RESPONSE if rejected is None else response_key(pair.prompt, rejected),
        )
        tokens = len(pair.prompt) + max(len(pair.chosen), len(rejected or ()))
        yield store_keys if encoding is None else text_keys(pair.text), store_keys, tokens


class TablePairs:
    """The pairs of the splits that a run reads, one split after another, in the ids that a reference reads.

    Args:
        splits: for each split, its pairs and the indices of the needed ones.
        encoding: the encoding of the reference's own tokenizer; None if it reads the policy's tokens.
    """

    def __init__(self, splits: Sequence[tuple[SplitPairs, Array]], encoding: Encoding | None) -> None:
        self._splits, self._encoding = splits, encoding

    def __getitem__(self, row: int) -> PreferencePair:
        for pairs, indices in self._splits:
            if row < len(indices):
                pair = pairs[int(indices[row])]
                return pair if self._encoding is None else in_own_ids(pair, self._encoding)
            row -= len(indices)
        raise IndexError(row)


def in_own_ids(pair: PreferencePair, encoding: Encoding) -> PreferencePair:
    """Return the pair in the ids of another tokenizer, from its text after the policy's truncation."""
    prompt, chosen, rejected = ids_of(pair.text, encoding)
    return replace(pair, prompt=prompt, chosen=chosen, rejected=None if pair.rejected is None else rejected)


def text_keys(text: TruncatedText) -> tuple[bytes, bytes]:
    """Return the lookup keys of the two responses of a truncated text.

    Both hash the whole pair, because both responses decide where the prompt ends in another tokenizer's ids.
    """
    parts = [text.prompt, text.chosen, text.rejected, text.chosen_complete, text.rejected_complete]
    digest = hashlib.sha256(json.dumps(parts).encode()).digest()
    return digest[:16], NO_RESPONSE if text.rejected is None else digest[16:]


class NeededScores:
    """Scores of the distinct responses of some pairs, in sorted arrays; a million pairs take about 200 MB.

    Args:
        table: (pairs,) rows of `TABLE`.
    """

    def __init__(self, table: NDArray[np.void]) -> None:
        flat = table["store_keys"].reshape(-1)
        exists = flat != NO_RESPONSE
        self.keys, rows = np.unique(flat[exists], return_inverse=True)
        sides = np.full(len(flat), -1)
        sides[exists] = rows
        responses = sides.reshape(-1, 2)
        # Each combination of two responses gets one number, which sorts pairs in the order of their keys.
        code = responses[:, 0] * (len(self.keys) + 1) + responses[:, 1] + 1
        _, self.first = np.unique(code, return_index=True)  # the first table row of each distinct pair
        self.pairs = responses[self.first]  # rows of the chosen and the rejected response; -1 for none
        self.tokens = table["tokens"][self.first]
        self._lookup_keys, at = np.unique(table["lookup_keys"].reshape(-1)[exists], return_index=True)
        self._rows = rows[at]
        self.scores = np.full(len(self.keys), np.nan)
        self.lengths = np.zeros(len(self.keys), np.int32)
        self.found = np.zeros(len(self.keys), bool)
        self._token_parts: list[Array] = []
        self._token_places = np.zeros((len(self.keys), 2), np.int64)  # the part, and the position within it

    def take(self, part: Scores) -> None:
        """Copy the needed scores of a part; if a response has several scores, the first one is used."""
        if not len(self.keys):
            return
        rows = np.searchsorted(self.keys, part.keys).clip(max=len(self.keys) - 1)
        new = (self.keys[rows] == part.keys) & ~self.found[rows]
        rows = rows[new]
        self.scores[rows], self.lengths[rows] = part.scores[new], part.lengths[new]
        self.found[rows] = True
        if part.tokens is not None:
            starts = np.cumsum(part.lengths, dtype=np.int64) - part.lengths
            self._token_places[rows, 0] = len(self._token_parts)
            self._token_places[rows, 1] = starts[new]
            self._token_parts.append(part.tokens)

    def rows(self, keys: list[bytes]) -> Array:
        """Return the rows of the responses with these lookup keys; -1 for responses without a score."""
        asked = np.array(keys, self._lookup_keys.dtype)
        if not len(self._lookup_keys):
            return np.full(len(asked), -1)
        at = np.searchsorted(self._lookup_keys, asked).clip(max=len(self._lookup_keys) - 1)
        rows = self._rows[at]
        return np.where((self._lookup_keys[at] == asked) & self.found[rows], rows, -1)

    def token_logps(self, row: int) -> Array:
        """The log-probs of the tokens of one response."""
        part, start = self._token_places[row]
        return self._token_parts[part][start : start + self.lengths[row]]

    @property
    def missing(self) -> int:
        """The number of responses without a score."""
        return int((~self.found).sum())

    def lacking(self, pairs: Array) -> Array:
        """Return those of `pairs` that lack a score."""
        found = np.append(self.found, True)  # row -1 means that there is no response
        return pairs[~found[self.pairs[pairs]].all(axis=1)]

    def blocks(self) -> list[Array]:
        """All pairs, the longest first, in blocks that depend on the pairs alone.

        A resumed run, or one that shares the work, therefore scores every pair in the same batch as any other run and
        gets the same bits. The longest pairs come first, so that memory runs out at the start or never. Pairs of two
        responses and single responses, such as extra responses, are in separate blocks, because a batch contains only
        one of the two kinds.
        """
        order = np.lexsort((np.arange(len(self.pairs)), -self.tokens))
        single = self.pairs[order, 1] < 0
        return [*_cut(order[~single]), *_cut(order[single])]

    def name(self, block: Array) -> str:
        """The name of a block: a hash of its responses' keys."""
        responses = self.pairs[block].reshape(-1)
        return hashlib.sha256(self.keys[responses[responses >= 0]].tobytes()).hexdigest()[:32]


def _cut(order: Array) -> list[Array]:
    size = max(SMALLEST_BLOCK, -(-len(order) // MOST_BLOCKS))
    return [order[start : start + size] for start in range(0, len(order), size)]
