"""The whole texts of a pair, before they are read by a tokenizer: plain, or as a chat template writes them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from lit_pref.data.checking.row_reader import TextPair
from lit_pref.data.sources.row import BadRow, Row
from lit_pref.errors import UserError
from lit_pref.models.encoding import TEMPLATE_ERRORS, Encoding
from lit_pref.models.special_text import EncodableText, Span
from lit_pref.pairs import Message


@dataclass(frozen=True)
class RenderedResponse:
    """A prompt with one response; `place` is that of the response, None where a template has rewritten it."""

    side: str
    response: str
    written: EncodableText
    place: Span | None


@dataclass(frozen=True)
class RenderedPair:
    """A pair and its whole texts.

    `prompts` is one, or several where a template writes another one for each response. `special_texts` counts the names
    of special tokens in the pair's texts. `unasked` says that a turn of the assistant does not begin with what the
    template writes to ask for one.
    """

    row: Row
    text: TextPair
    id: str
    prompts: list[EncodableText]
    wholes: list[RenderedResponse]
    special_texts: int
    unasked: bool


def draft(encoding: Encoding, row: Row, text: TextPair, id: str) -> RenderedPair:
    """The whole texts of a checked row.

    Raises:
        BadRow: the chat template refuses the conversation.
        UserError: there is no chat template.
    """
    named = {"chosen": text.chosen, "rejected": text.rejected, "extra_response": text.extra_response}
    responses = {side: response for side, response in named.items() if response is not None}
    if isinstance(text.prompt, str):
        contents = [text.prompt]
        prompts, wholes = _plain(encoding, text.prompt, responses)
        unasked = False
    else:
        contents = [message["content"] for message in text.prompt]
        prompts, wholes = _chat(encoding, row, text.prompt, responses)
        # With blocks that mark what the assistant writes, the prompt is taken from the whole text itself.
        unasked = len(prompts) == 1 and not all(whole.written.text.startswith(prompts[0].text) for whole in wholes)
    names = sum(len(encoding.names.spans(content)) for content in (*contents, *responses.values()))
    return RenderedPair(row, text, id, prompts, wholes, names, unasked)


def _plain(
    encoding: Encoding, prompt: str, responses: dict[str, str]
) -> tuple[list[EncodableText], list[RenderedResponse]]:
    wholes = []
    for side, response in responses.items():
        whole = prompt + response
        wholes.append(RenderedResponse(side, response, encoding.encodable(whole), (len(prompt), len(whole))))
    return [encoding.encodable(prompt)], wholes


def _chat(
    encoding: Encoding, row: Row, prompt: list[Message], responses: dict[str, str]
) -> tuple[list[EncodableText], list[RenderedResponse]]:
    if encoding.tokenizer.chat_template is None:
        raise UserError(
            f"{row.place}: the prompt is read as messages, and the tokenizer has no chat template; take one that has "
            "(model.policy.tokenizer), put a chat_template.jinja into its folder, or write prompts and responses as "
            "strings (HH dialogues stay text with data.mapping `as: text`)."
        )
    with _refused(row, "prompt"):
        asked = encoding.chat.render_prompt(prompt)
    prompts, wholes = [], []
    for side, response in responses.items():
        with _refused(row, side):
            answer = encoding.chat.render_answer(prompt, response)
        prompts.append(asked if answer.prompt_end is None else answer.whole.upto(answer.prompt_end))
        wholes.append(RenderedResponse(side, response, answer.whole, answer.span))
    return list(dict.fromkeys(prompts)), wholes


@contextmanager
def _refused(row: Row, field: str) -> Iterator[None]:
    try:
        yield
    except TEMPLATE_ERRORS as error:
        remedy = "write a conversation that it takes, or give the tokenizer another template"
        raise BadRow(row, field, "is refused by the chat template", remedy, f" ({error})") from error
