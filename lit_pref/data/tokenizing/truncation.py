"""Prompts and responses that are cut: the tokens that are kept, and their text in whole characters."""

from dataclasses import dataclass

from lit_pref.data.sources.row import BadRow
from lit_pref.data.tokenizing.rendering import RenderedPair, RenderedResponse
from lit_pref.data.tokenizing.token_columns import token_columns
from lit_pref.models.encoding import Encoded, Encoding
from lit_pref.pairs import Message, Text

BROKEN = "\ufffd"
"""What decoders write for a part of a character."""


@dataclass(frozen=True)
class Response:
    """One response as it is kept; `columns` are the values of its tokens."""

    ids: list[int]
    text: str
    cut: bool
    columns: dict[str, list[float]]


def cut_response(
    encoding: Encoding, made: RenderedPair, whole: RenderedResponse, read: Encoded, start: int, room: int
) -> Response:
    """One response with its end, cut to `room` tokens.

    Args:
        encoding: of the policy.
        made: the pair.
        whole: the response with its prompt.
        read: the ids of that.
        start: the first of them that belongs to the response; it may hold the prompt's last characters.
        room: tokens.

    Raises:
        BadRow: the room is not enough for a character, or its spans cannot be found.
    """
    text = whole.response
    ids = encoding.with_end(read.ids[start:], whole.written.text, text, whole.place)
    if cut := len(ids) > room:
        text = _kept_response(encoding, whole, made.prompts[0].text, read.ids[: start + room], start)
        if not text.strip():
            raise BadRow(made.row, "prompt", "leaves no room for a response", "raise data.max_length")
        ids = ids[:room]
    return Response(ids, text, cut, token_columns(encoding, made, whole, read, start, len(ids)))


def kept_prompt(encoding: Encoding, prompt: Text, text: str, ids: list[int]) -> Text:
    """What the last tokens of a prompt stand for; of messages, those that are left.

    Args:
        encoding: of the policy.
        prompt: as it was given.
        text: of which `ids` are the last.
        ids: that are kept.
    """
    shown = _decoded(encoding, ids)
    while shown.startswith(BROKEN) and not text.endswith(shown):
        shown = shown[1:]
    if isinstance(prompt, str):
        return shown
    cut = len(text) - len(shown)
    left: list[Message] = []
    for message, place in zip(reversed(prompt), reversed(encoding.chat.contents(prompt)), strict=True):
        if place is None or place[1] <= cut:
            break
        left.insert(0, {"role": message["role"], "content": text[max(place[0], cut) : place[1]]})
    return left or shown


def _kept_response(encoding: Encoding, whole: RenderedResponse, prompt: str, ids: list[int], first: int) -> str:
    """The text of a response of which the last of `ids` is kept, and `ids[first]` is the first of its own."""
    text, response, place = whole.written.text, whole.response, whole.place
    shown = _decoded(encoding, ids)
    # Ids have no begin token; the text can name one, written by the template or by its author.
    begin = 0 if text.startswith(shown.rstrip(BROKEN)) else _begin(encoding, text)
    while shown.endswith(BROKEN) and not text.startswith(shown, begin):
        shown = shown[:-1]
    if not text.startswith(shown, begin):
        own = prompt[_begin(encoding, prompt) :]
        return shown[len(own) :] if shown.startswith(own) else _decoded(encoding, ids[first:]).rstrip(BROKEN)
    end = begin + len(shown)
    if place is None:
        return text[len(prompt) : end] if text.startswith(prompt) else ""
    space = len(response) - len(response.lstrip())
    start = place[0] - space
    if start < len(prompt) or text[start : place[0]] != response[:space]:
        start = place[0]
    return text[start : min(end, place[1])]


def _decoded(encoding: Encoding, ids: list[int]) -> str:
    return str(encoding.tokenizer.decode(ids, clean_up_tokenization_spaces=False))


def _begin(encoding: Encoding, text: str) -> int:
    """Where a text begins behind the names of begin tokens."""
    name, start = str(encoding.tokenizer.bos_token or ""), 0
    while name and text.startswith(name, start):
        start += len(name)
    return start
