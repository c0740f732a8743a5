"""The whole texts of a pair, before they are encoded: plain text, or the output of a chat template."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from lit_pref.data.checking.text_pair import TextPair
from lit_pref.data.sources.row import BadRow, Row
from lit_pref.data.sources.unread import key_belongs, refuse_unread_keys
from lit_pref.errors import UserError
from lit_pref.models.encoding import TEMPLATE_ERRORS, Encoding, common_prefix_length
from lit_pref.models.message_values import Place
from lit_pref.models.special_text import EncodableText, Span
from lit_pref.pairs import TEMPLATE_ARGUMENTS, Message, Text


@dataclass(frozen=True)
class RenderedResponse:
    """A prompt with one response; `place` is the response's position, or None if a template has changed its text."""

    side: str
    response: str
    written: EncodableText
    place: Span | None


@dataclass(frozen=True)
class RenderedPair:
    """A pair and its whole texts.

    `prompts` has one entry, or several if a template renders a different prompt for each response. `special_texts`
    counts the names of special tokens in the pair's texts. `unasked` means that a turn of the assistant does not begin
    with the template's generation prompt. `unread` names keys of messages that the template does not write; `lost`
    describes the texts that it omits or rewrites.
    """

    row: Row
    text: TextPair
    prompts: list[EncodableText]
    responses: list[RenderedResponse]
    special_texts: int
    unasked: bool
    unread: frozenset[str] = frozenset()
    lost: tuple[str, ...] = ()


@dataclass(frozen=True)
class RenderedPrompt:
    """A prompt without a response, as a model that answers it reads it; `lost` is that of `RenderedPair`."""

    written: EncodableText
    lost: tuple[str, ...] = ()


def render_prompt(encoding: Encoding, row: Row, prompt: Text) -> RenderedPrompt:
    """Return the text that is encoded to answer a prompt: plain text, or messages up to the assistant's next turn.

    Raises:
        BadRow: the chat template refuses the conversation.
        UserError: there is no chat template, or it does not write a part of the conversation.
    """
    if isinstance(prompt, str):
        return RenderedPrompt(encoding.encodable(prompt))
    _refuse_no_template(encoding, row)
    with _refused(row, "prompt"):
        written = encoding.chat.render_prompt(prompt)
        lost = tuple(dict.fromkeys(f"the {role} message of the prompt" for role in encoding.chat.losses(prompt)))
        _unread_of_prompt(encoding, row, prompt)
    return RenderedPrompt(written, lost)


def render(encoding: Encoding, row: Row, text: TextPair) -> RenderedPair:
    """Return the whole texts of a checked row.

    Raises:
        BadRow: the chat template refuses the conversation.
        UserError: there is no chat template, or it does not write a part of the conversation.
    """
    sides = {"chosen": text.chosen, "rejected": text.rejected, "extra_response": text.extra_response}
    responses = {side: response for side, response in sides.items() if response is not None}
    if isinstance(text.prompt, str):
        contents, unread, lost = [text.prompt], frozenset[str](), []
        prompts, rendered = _plain(encoding, text.prompt, responses)
        unasked = False
    else:
        contents = [message["content"] for message in text.prompt]
        prompts, rendered = _chat(encoding, row, text, text.prompt, responses)
        _refuse_moving_prompt(encoding, row, text.prompt, prompts, rendered)
        unread = _unread(encoding, row, text, text.prompt, responses)
        lost = [f"the {role} message of the prompt" for role in encoding.chat.losses(text.prompt)]
        lost += _values_left_out(encoding, text, text.prompt, responses, unread)
        lost += [f"the {one.side} response" for one in rendered if one.place is None and one.response.strip()]
        # If the template marks the assistant's turns, the prompt is cut from the rendered text with the response.
        unasked = len(prompts) == 1 and not all(one.written.text.startswith(prompts[0].text) for one in rendered)
    names = sum(len(encoding.names.spans(content)) for content in (*contents, *responses.values()))
    return RenderedPair(row, text, prompts, rendered, names, unasked, unread, tuple(dict.fromkeys(lost)))


def _plain(
    encoding: Encoding, prompt: str, responses: dict[str, str]
) -> tuple[list[EncodableText], list[RenderedResponse]]:
    rendered = []
    for side, response in responses.items():
        whole = prompt + response
        rendered.append(RenderedResponse(side, response, encoding.encodable(whole), (len(prompt), len(whole))))
    return [encoding.encodable(prompt)], rendered


def _chat(
    encoding: Encoding, row: Row, text: TextPair, prompt: list[Message], responses: dict[str, str]
) -> tuple[list[EncodableText], list[RenderedResponse]]:
    _refuse_no_template(encoding, row)
    with _refused(row, "prompt"):
        asked = encoding.chat.render_prompt(prompt)
    prompts, rendered = [], []
    for side, response in responses.items():
        with _refused(row, side):
            answer = encoding.chat.render_answer(prompt, response, text.further.get(side))
        prompts.append(asked if answer.prompt_end is None else answer.whole.upto(answer.prompt_end))
        rendered.append(RenderedResponse(side, response, answer.whole, answer.span))
    return list(dict.fromkeys(prompts)), rendered


def _refuse_no_template(encoding: Encoding, row: Row) -> None:
    if encoding.tokenizer.chat_template is None:
        raise UserError(
            f"{row.place}: the prompt is read as messages, but the tokenizer has no chat template; use a tokenizer "
            "with one (model.policy.tokenizer), put a chat_template.jinja into its folder, or write prompts and "
            "responses as strings (data.mapping `as: text` keeps HH dialogues as text)."
        )


def _refuse_moving_prompt(
    encoding: Encoding,
    row: Row,
    messages: list[Message],
    prompts: list[EncodableText],
    rendered: list[RenderedResponse],
) -> None:
    """Refuse a template that writes another prompt with a response, before the end of the text that is answered."""
    asked = prompts[0].text
    shared = common_prefix_length([*(prompt.text for prompt in prompts), *(one.written.text for one in rendered)])
    if shared >= len(asked):
        return
    spans = reversed(encoding.chat.contents(messages))
    for message, span in zip(reversed(messages), spans, strict=True):
        content = message["content"].strip()
        start = span[0] if span else asked.rfind(content)
        if not content or start < 0:
            continue
        if shared >= start + len(content):
            return
        if encoding.chat.repeats(messages):
            raise UserError(
                f"{row.place}: the chat template writes the prompt differently once a response follows it, as one that "
                "shows only the last messages, so that the text which is answered would be trained on; give the "
                "tokenizer a template that writes a prompt alone as it does with a response."
            )
        raise UserError(
            f"{row.place}: the chat template writes another prompt each time it is called, as with a clock or "
            "random content, so that the text which is answered would be trained on; give the tokenizer a template "
            "that always writes the same (a fixed date can be passed in a column chat_template_kwargs)."
        )


def _unread(
    encoding: Encoding, row: Row, text: TextPair, prompt: list[Message], responses: dict[str, str]
) -> frozenset[str]:
    """Return the keys of messages that the template does not write, of which none belongs to the conversation."""
    unread = _unread_of_prompt(encoding, row, prompt)
    for side, further in text.further.items():
        unread |= (names := encoding.chat.unread(prompt, responses[side], further))
        refuse_unread_keys(row, side, {name: further[name] for name in names})
    return frozenset(unread)


def _unread_of_prompt(encoding: Encoding, row: Row, prompt: list[Message]) -> set[str]:
    if all(len(message) <= 2 for message in prompt):
        return set()
    names = encoding.chat.unread(prompt)
    values = {key: value for message in prompt for key, value in message.items() if key in names}
    arguments = {k: v for k, v in prompt[0].get(TEMPLATE_ARGUMENTS, {}).items() if k in names}
    refuse_unread_keys(row, "prompt", values | arguments, arguments)
    return names


def _values_left_out(
    encoding: Encoding, text: TextPair, prompt: list[Message], responses: dict[str, str], unread: frozenset[str]
) -> Iterator[str]:
    """Yield a description of each value that belongs to the conversation and that the template does not write.

    Keys that it never writes are left to `_unread`. Some templates write reasoning only after the last message of a
    user, and some write the name of a call without its arguments.
    """
    told: list[tuple[list[Message], set[Place], str]] = []
    if any(len(message) > 2 for message in prompt):
        told.append((prompt, encoding.chat.left_out(prompt), "message of the prompt"))
    for side, further in text.further.items():
        turns = [*prompt, {"role": "assistant", **further}]
        told.append((turns, encoding.chat.left_out(prompt, responses[side], further), f"{side} response"))
    for turns, places, where in told:
        for number, path in sorted(places, key=str):
            message, key = turns[number], path[0]
            if key not in unread and key_belongs(key, message[key]):
                role = f"{message['role']} " if where.startswith("message") else ""
                yield f"`{'.'.join(part for part in path if isinstance(part, str))}` of the {role}{where}"


@contextmanager
def _refused(row: Row, field: str) -> Iterator[None]:
    try:
        yield
    except TEMPLATE_ERRORS as error:
        remedy = "write a conversation that it accepts, or give the tokenizer another template"
        raise BadRow(row, field, "is refused by the chat template", remedy, f" ({error})") from error
