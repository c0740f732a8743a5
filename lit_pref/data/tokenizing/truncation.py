"""Truncation of prompts and responses: the tokens that are kept, and their text in whole characters."""

from dataclasses import dataclass

from lit_pref.data.sources.row import BadRow
from lit_pref.data.tokenizing.rendering import RenderedPair, RenderedResponse
from lit_pref.data.tokenizing.token_columns import token_columns
from lit_pref.models.encoding import Encoded, Encoding
from lit_pref.pairs import Message, Text

BROKEN = "\ufffd"
"""The character that decoders write for an incomplete character."""


@dataclass(frozen=True)
class Response:
    """One response after truncation; `columns` contains its per-token values."""

    ids: list[int]
    text: str
    cut: bool
    columns: dict[str, list[float]]


def cut_response(
    encoding: Encoding, rendered: RenderedPair, response: RenderedResponse, encoded: Encoded, start: int, room: int
) -> Response:
    """Return one response with its end token, cut to `room` tokens.

    Args:
        encoding: encoding of the policy.
        rendered: the pair.
        response: the response with its prompt.
        encoded: the ids of that text.
        start: index of the first id that belongs to the response; its token may contain the prompt's last characters.
        room: the most tokens of the response.

    Raises:
        BadRow: there is no room for a single character, or the response's spans cannot be found.
    """
    text = response.response
    ids = encoding.with_end(encoded.ids[start:], response.written.text, text, response.place)
    if cut := len(ids) > room:
        text = _kept_response(encoding, response, rendered.prompts[0].text, encoded.ids[: start + room], start)
        if not text.strip():
            raise BadRow(rendered.row, "prompt", "leaves no room for a response", "raise data.max_length")
        ids = ids[:room]
    return Response(ids, text, cut, token_columns(encoding, rendered, response, encoded, start, len(ids)))


def kept_prompt(encoding: Encoding, prompt: Text, text: str, ids: list[int]) -> Text:
    """Return the part of a prompt that its last tokens represent: a text, or the remaining messages.

    Args:
        encoding: encoding of the policy.
        prompt: the prompt before truncation.
        text: the whole prompt as text.
        ids: the last ids of that text, which are kept.
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
        left.insert(0, {**message, "content": text[max(place[0], cut) : place[1]]})
    return left or shown


def _kept_response(encoding: Encoding, rendered: RenderedResponse, prompt: str, ids: list[int], first: int) -> str:
    """Return the kept text of a response whose own ids are `ids[first:]`."""
    text, response, place = rendered.written.text, rendered.response, rendered.place
    shown = _decoded(encoding, ids)
    # Ids have no bos token; the text can contain its name, written by the template or by its author.
    begin = 0 if text.startswith(shown.rstrip(BROKEN)) else _after_bos(encoding, text)
    while shown.endswith(BROKEN) and not text.startswith(shown, begin):
        shown = shown[:-1]
    if not text.startswith(shown, begin):
        asked = prompt[_after_bos(encoding, prompt) :]
        return shown[len(asked) :] if shown.startswith(asked) else _decoded(encoding, ids[first:]).rstrip(BROKEN)
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


def _after_bos(encoding: Encoding, text: str) -> int:
    """Return the position in a text after all leading names of the bos token."""
    name, start = str(encoding.tokenizer.bos_token or ""), 0
    while name and text.startswith(name, start):
        start += len(name)
    return start
