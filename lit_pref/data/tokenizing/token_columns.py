"""Values of character spans become values of tokens."""

from bisect import bisect_right
from collections.abc import Sequence

from lit_pref.data.checking.row_reader import Spans
from lit_pref.data.sources.row import BadRow
from lit_pref.data.tokenizing.rendering import RenderedPair, RenderedResponse
from lit_pref.models.encoding import Encoded, Encoding

SIDES = ("chosen", "rejected")


def token_columns(
    encoding: Encoding, made: RenderedPair, whole: RenderedResponse, read: Encoded, start: int, length: int
) -> dict[str, list[float]]:
    """The values of `length` response tokens, of which the first is the one at `start`, for each of a pair's columns.

    Raises:
        BadRow: the chat template has rewritten the response.
    """
    if whole.side not in SIDES or read.spans is None:
        return {}
    if (place := whole.place) is None:
        raise BadRow(
            made.row,
            whole.side,
            "is rewritten by the chat template, so that its spans cannot be found",
            "leave out data.token_columns, or give the tokenizer another template",
        )
    space = 0
    if isinstance(messages := made.text.prompt, list):
        space = len(whole.response) - len(whole.response.lstrip())
        if space and encoding.chat.keeps_leading_space(messages, whole.response):
            place, space = (place[0] - space, place[1]), 0
    columns = {}
    for name, spans in made.text.spans.items():
        values = token_values(spans[SIDES.index(whole.side)], read.spans, place, space)[start : start + length]
        columns[name] = [*values, *[0.0] * (length - len(values))]
    return columns


def token_values(spans: Spans, tokens: Sequence[tuple[int, int]], text: tuple[int, int], skipped: int) -> list[float]:
    """One value for each token: of the span that covers most of its characters, else 0.

    The earliest span of several that cover as much; 0 where none covers any. Only characters of the response's own text
    count. Tokens of one character that takes several all take its value.

    Args:
        spans: (start, end, value) in characters of the response.
        tokens: (start, end) of each token of the whole text, in it.
        text: (start, end) of the response in the whole text.
        skipped: characters at the response's beginning that the whole text does not have.

    >>> token_values([(0, 2, 0.5), (2, 9, 1.0)], [(3, 6), (6, 8), (8, 20)], (4, 10), 0)
    [0.5, 1.0, 1.0]
    """
    ends = _without_gaps(tokens)
    values = [0.0] * len(ends)
    most = [0] * len(ends)
    last = [end for _, end in ends]
    shift = text[0] - skipped
    for first, stop, value in sorted(spans, key=lambda span: span[0]):
        start, end = max(first + shift, text[0]), min(stop + shift, text[1])
        for k in range(bisect_right(last, start), len(ends)):
            if ends[k][0] >= end:
                break
            covered = min(end, ends[k][1]) - max(start, ends[k][0])
            if covered > most[k]:
                most[k], values[k] = covered, float(value)
    return values


def _without_gaps(tokens: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Tokenizers may leave the whitespace before a word out of its token's place: it belongs to the token."""
    whole = []
    before = tokens[0][0] if tokens else 0
    for start, end in tokens:
        whole.append((min(start, before), max(end, before)))
        before = max(end, before)
    return whole
