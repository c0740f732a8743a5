"""Per-token columns: values of character spans mapped to the tokens that cover them."""

from bisect import bisect_right
from collections.abc import Sequence

from lit_pref.data.checking.fields import Spans
from lit_pref.data.sources.row import BadRow
from lit_pref.data.tokenizing.rendering import RenderedPair, RenderedResponse
from lit_pref.models.encoding import Encoded, Encoding

SIDES = ("chosen", "rejected")


def token_columns(
    encoding: Encoding, rendered: RenderedPair, response: RenderedResponse, encoded: Encoded, start: int, length: int
) -> dict[str, list[float]]:
    """Return the values of `length` response tokens, the first of them at `start`, for each of a pair's columns.

    Raises:
        BadRow: the chat template has changed the text of the response.
    """
    if response.side not in SIDES or encoded.spans is None:
        return {}
    if (place := response.place) is None:
        raise BadRow(
            rendered.row,
            response.side,
            "is rewritten by the chat template, so that its spans cannot be found",
            "leave out data.token_columns, or give the tokenizer another template",
        )
    space = 0
    if isinstance(messages := rendered.text.prompt, list):
        space = len(response.response) - len(response.response.lstrip())
        if space and encoding.chat.keeps_leading_space(messages, response.response):
            place, space = (place[0] - space, place[1]), 0
    columns = {}
    for name, spans in rendered.text.spans.items():
        values = token_values(spans[SIDES.index(response.side)], encoded.spans, place, space)[start : start + length]
        columns[name] = [*values, *[0.0] * (length - len(values))]
    return columns


def token_values(spans: Spans, tokens: Sequence[tuple[int, int]], text: tuple[int, int], skipped: int) -> list[float]:
    """Return one value for each token: that of the span that covers most of its characters, else 0.

    If several spans cover the same number of characters, the first one counts. Only characters of the response's own
    text count. If one character takes several tokens, all of them take its value.

    Args:
        spans: (start, end, value) in characters of the response.
        tokens: (start, end) of each token of the whole text, in that text.
        text: (start, end) of the response in the whole text.
        skipped: leading characters of the response that the whole text does not contain.

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
    """Extend each token over the whitespace before it, which some tokenizers leave out of its position."""
    extended = []
    before = tokens[0][0] if tokens else 0
    for start, end in tokens:
        extended.append((min(start, before), max(end, before)))
        before = max(end, before)
    return extended
