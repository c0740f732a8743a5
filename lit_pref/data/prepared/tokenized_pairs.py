"""Tokenization of checked pairs in chunks, and lists that have no order once their faulty responses are left out."""

import itertools
from collections.abc import Iterable, Iterator

from lit_pref.data.checking.text_pair import CheckedPair
from lit_pref.data.formats.whole_lists import LABEL
from lit_pref.data.prepared.garbage import collecting
from lit_pref.data.sources.row import BadRow, LeftOut
from lit_pref.data.tokenizing.tokenization import Tokenization, TokenizedPair

CHUNK, CHUNK_TEXT = 256, 2**20  # pairs that are tokenized together, and the characters after which no more are added
Tokenized = Iterator[tuple[CheckedPair, TokenizedPair | BadRow]]
"""Each pair with its ids, or with the reason why it has none."""


def tokenized_pairs(pairs: Iterable[CheckedPair], tokenization: Tokenization) -> Tokenized:
    """Yield each pair with its ids, or with the reason why it has none."""
    for chunk in collecting(_chunks(pairs)):
        yield from zip(chunk, tokenization.tokenize_all([(pair.row, pair.text) for pair in chunk]), strict=True)


def lists_with_an_order(responses: Tokenized) -> Tokenized:
    """Yield all responses, with a `LeftOut` for those of a list with one response or with one label for all."""
    for _, members in itertools.groupby(responses, key=lambda item: item[0].row.list_number):
        listed = list(members)
        kept = [pair for pair, tokenized in listed if not isinstance(tokenized, BadRow)]
        ordered = len({pair.text.columns[LABEL] for pair in kept}) > 1
        for pair, tokenized in listed:
            if ordered or isinstance(tokenized, BadRow):
                yield pair, tokenized
            elif len(kept) == 1:
                yield pair, LeftOut(pair.row, "chosen", "is the only response left of its list", "a list needs two")
            else:
                reason = "is that of every response of its list, which so has no order"
                yield pair, LeftOut(pair.row, LABEL, reason, "a list needs two different scores")


def _chunks(pairs: Iterable[CheckedPair]) -> Iterator[list[CheckedPair]]:
    """Yield the pairs in order, in chunks bounded by number and by text, because tokens take many times its memory."""
    chunk: list[CheckedPair] = []
    size = 0
    for pair in pairs:
        text = pair.text
        prompt = text.prompt if isinstance(text.prompt, str) else "".join(turn["content"] for turn in text.prompt)
        chunk.append(pair)
        size += 2 * len(prompt) + len(text.chosen) + len(text.rejected or "") + len(text.extra_response or "")
        if len(chunk) == CHUNK or size >= CHUNK_TEXT:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk
