"""Renders conversations with a tokenizer's chat template, and locates the response in the rendered text."""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import jinja2
from transformers.utils.chat_template_utils import render_jinja_template

from lit_pref.models.message_values import Place, values_left_out
from lit_pref.models.special_text import EncodableText, Span, SpecialNames, unused
from lit_pref.models.template_limits import limited_rendering
from lit_pref.pairs import TEMPLATE_ARGUMENTS, Message

TEMPLATE_ERRORS = (jinja2.TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
"""Errors that a chat template raises if it refuses a conversation, or was not written for it."""
DISTINCT = 20  # characters of a text that do not occur elsewhere by chance
REMEMBERED = 1024  # number of rendered prompts to cache: many pairs share one


@dataclass(frozen=True)
class RenderedChat:
    """A rendered conversation with its response.

    Args:
        whole: the text up to the end of the response's turn.
        prompt_end: number of characters of the prompt; None if the prompt is `Chat.render_prompt` of the messages.
        span: the response itself, without leading whitespace; None if the template rewrites it.
    """

    whole: EncodableText
    prompt_end: int | None
    span: Span | None


class Chat:
    """The chat template of a tokenizer.

    Args:
        tokenizer: a tokenizer that has a chat template.
        names: the names of its special tokens.
        plain: encode the names of special tokens inside messages as plain text.
    """

    def __init__(self, tokenizer: Any, names: SpecialNames, plain: bool = True) -> None:
        self.tokenizer = tokenizer
        self._names = names
        self._plain = plain
        self._tail: str | None = None
        self._remembered = lru_cache(REMEMBERED)(self._render_prompt)
        self._remembered_losses = lru_cache(REMEMBERED)(self._losses)

    def render_prompt(self, messages: Sequence[Message]) -> EncodableText:
        """Render a conversation up to the beginning of the assistant's next message.

        Raises:
            TEMPLATE_ERRORS: the template refuses the conversation.
        """
        return self._remembered(json.dumps(messages))

    def _render_prompt(self, messages: str) -> EncodableText:
        turns = json.loads(messages)
        return self._read(turns, self._render(turns, asks=True)[0], asks=True)

    def unread(self, messages: Sequence[Message], response: str = "", further: Message | None = None) -> set[str]:
        """Return the keys, beyond role and content, that change nothing in the rendered conversation.

        Args:
            messages: the prompt.
            response: with `further`, the response.
            further: what the response's message has beyond role and content; None looks at the prompt's keys.

        Raises:
            TEMPLATE_ERRORS: the template refuses the conversation.
        """
        if further is not None:
            answered = [*messages, {"role": "assistant", "content": response, **further}]
            text, own = self._render(answered)[0], {"role": "assistant", "content": response}
            rest = {key: {k: v for k, v in further.items() if k != key} for key in further}
            return {key for key in further if self._attempt([*messages, {**own, **rest[key]}]) == text}
        text, arguments = self._render([*messages], asks=True)[0], messages[0].get(TEMPLATE_ARGUMENTS, {})
        keys = {key for message in messages for key in message} - {"role", "content", TEMPLATE_ARGUMENTS}
        without = {key: [{k: v for k, v in m.items() if k != key} for m in messages] for key in keys}
        for key in arguments:
            if key != "tools" and re.search(rf"\b{re.escape(key)}\b", self.tokenizer.get_chat_template()):
                continue  # an argument may have the value that the template gives it by default
            rest = {name: value for name, value in arguments.items() if name != key}
            without[key] = [{**messages[0], TEMPLATE_ARGUMENTS: rest}, *messages[1:]]
        return {key for key, fewer in without.items() if self._attempt(fewer, asks=True) == text}

    def left_out(self, messages: Sequence[Message], response: str = "", further: Message | None = None) -> set[Place]:
        """Return the places of the values in `unread`'s keys that the template does not write; arguments as there."""
        answer = [] if further is None else [{"role": "assistant", "content": response, **further}]
        first, asks = len(messages) if answer else 0, further is None
        return set(values_left_out(lambda turns: self._attempt(turns, asks), [*messages, *answer], first))

    def repeats(self, messages: Sequence[Message]) -> bool:
        """Return whether the template writes a prompt again as it wrote it before."""
        return self._render_prompt(json.dumps(messages)).text == self.render_prompt(messages).text

    def render_answer(self, messages: Sequence[Message], response: str, further: Message | None = None) -> RenderedChat:
        """Render a conversation with its response, without text that the template adds after the end of the turn.

        Such text (usually a line break) is never generated, because the model stops at the end of the turn. If the
        template marks the assistant's text by `{% generation %}`, the response is that block with its end of turn, and
        everything before the block is prompt. `further` is what the response's message has beyond role and content.

        Raises:
            TEMPLATE_ERRORS: the template refuses the conversation.
        """
        turns = [*messages, {"role": "assistant", "content": response, **(further or {})}]
        text, blocks = self._render(turns)
        span = self._find(turns, response, text.rstrip())
        whole = self._read(turns, text)
        if not blocks:
            return RenderedChat(whole.upto(len(text.rstrip())), None, span)
        start, end = blocks[-1]
        if span is not None:
            around = [block for block in blocks if block[0] <= span[0] and span[1] <= block[1]]
            if not around:
                raise ValueError("its generation block does not contain the response")
            start, end = around[-1]
        return RenderedChat(whole.upto(self._end_of_turn(text, start, end, span)), start, span)

    def keeps_leading_space(self, messages: Sequence[Message], response: str) -> bool:
        """Return whether the template keeps the leading whitespace of a response."""
        whole, stripped = (
            self._attempt([*messages, {"role": "assistant", "content": content}])
            for content in (response, response.lstrip())
        )
        return len(whole) > len(stripped) > 0

    def contents(self, messages: Sequence[Message]) -> list[Span | None]:
        """Return the span of each message in `render_prompt`, without surrounding whitespace; None if rewritten."""
        text = self.render_prompt(messages).text
        marks = unused([text, *(message["content"] for message in messages)], 2)
        marked = [{**message, "content": marks[0] + message["content"].strip() + marks[1]} for message in messages]
        shown = self._attempt(marked, asks=True)
        spans: list[Span | None] = []
        position = 0
        for message in messages:
            content = message["content"].strip()
            head, marked_content, shown = shown.partition(marks[0] + content + marks[1])
            start = position + len(head)
            position = start + len(content)
            spans.append((start, position) if marked_content and text[start:position] == content else None)
        return spans

    def losses(self, messages: Sequence[Message]) -> tuple[str, ...]:
        """Return the roles of the messages whose text the rendered prompt leaves out or rewrites."""
        return self._remembered_losses(json.dumps(messages))

    def _losses(self, serialised: str) -> tuple[str, ...]:
        messages: list[Message] = json.loads(serialised)
        text = self.render_prompt(messages).text
        contents = [message["content"].strip() for message in messages]
        if all(len(content) >= DISTINCT for content in contents) and _in_order(contents, text):
            return ()
        marks = unused([text, *contents], 2 * len(contents))  # its own for each, as two may have the same text
        around = [(marks[2 * k], marks[2 * k + 1]) for k in range(len(contents))]
        marked = [
            {**message, "content": first + content + last} if content else message
            for message, content, (first, last) in zip(messages, contents, around, strict=True)
        ]
        shown = self._attempt(marked, asks=True)
        if not shown:  # the template refuses the marks
            shown, around = text, [("", "")] * len(contents)
        # A template may write the output of a tool as JSON.
        return tuple(
            message["role"]
            for message, content, (first, last) in zip(messages, contents, around, strict=True)
            if content
            and first + content + last not in shown
            and first + json.dumps(content, ensure_ascii=False)[1:-1] + last not in shown
        )

    def _render(self, turns: list[Message], asks: bool = False) -> tuple[str, list[Span]]:
        arguments: dict[str, Any] = turns[0].get(TEMPLATE_ARGUMENTS, {}) if turns else {}
        turns = [{key: value for key, value in turn.items() if key != TEMPLATE_ARGUMENTS} for turn in turns]
        with limited_rendering(self.tokenizer.name_or_path or "the tokenizer"):
            if asks or not self._has_blocks:
                render = self.tokenizer.apply_chat_template
                return str(render(turns, tokenize=False, add_generation_prompt=asks, **arguments)), []
            rendered: Any = render_jinja_template(
                conversations=[turns],
                chat_template=self.tokenizer.get_chat_template(),
                return_assistant_tokens_mask=True,
                **{**self.tokenizer.special_tokens_map, **arguments},
            )
        (text,), (blocks,) = rendered
        return str(text), blocks

    def _attempt(self, turns: list[Message], asks: bool = False) -> str:
        """Render a conversation; the empty string if the template refuses it."""
        try:
            return self._render(turns, asks)[0]
        except TEMPLATE_ERRORS:
            return ""

    def _read(self, turns: list[Message], text: str, asks: bool = False) -> EncodableText:
        """Mark which special tokens of a rendered text are the template's own; names inside messages are plain text."""
        contents = [text for turn in turns for key, value in turn.items() if key != "role" for text in _texts(value)]
        if not self._plain or not any(map(self._names.first, contents)):
            return EncodableText(text)
        marks = unused([text, *contents], 2)

        def mark(content: str) -> str:
            return self._names.marked(content, marks)

        marked = [
            {key: value if key == "role" else _mapped(value, mark) for key, value in turn.items()} for turn in turns
        ]
        encodable = self._names.unmarked(self._render(marked, asks)[0], marks)
        if encodable.text != text:
            named = next(filter(None, map(self._names.first, contents)))
            raise ValueError(f"its output depends on special tokens inside messages, such as {named!r}")
        return encodable

    def _find(self, turns: Sequence[Message], response: str, text: str) -> Span | None:
        """Return the span of the response, which is the last of `turns`, in the rendered text."""
        if self._tail is None or (span := self._before(self._tail, response, text)) is None:
            # The same text follows nearly all responses; if another text follows this one, marks find the end of the
            # response.
            marks = unused([text, response], 2)
            marked = marks[0] + response.strip() + marks[1]
            shown = self._attempt([*turns[:-1], {**turns[-1], "content": marked}]).rstrip()
            if shown.count(marks[0]) != 1 or shown.count(marks[1]) != 1:
                return None
            head, _, rest = shown.partition(marks[0])
            tail = rest.partition(marks[1])[2]
            span = self._before(tail, response, text)
            if span is None or not text.startswith(head):
                return None
            self._tail = tail
        return span

    @staticmethod
    def _before(tail: str, response: str, text: str) -> Span | None:
        end = len(text) - len(tail)
        # Some templates strip whitespace on both sides of messages.
        for kept in (response.lstrip(), response.strip()):
            if text.endswith(kept + tail):
                return end - len(kept), end
        return None

    def _end_of_turn(self, text: str, start: int, end: int, span: Span | None) -> int:
        """Return the end of a turn with a generation block: after the template's end-of-turn token, if there is one."""
        block = start + len(text[start:end].rstrip())
        if span is None and text.endswith(self._ends, start, block):
            return block
        response_end = end if span is None else span[1]
        match = self._end_pattern.search(text, response_end)
        return match.end() if match else max(response_end, block)

    @cached_property
    def _has_blocks(self) -> bool:
        template = self.tokenizer.get_chat_template()
        return re.search(r"\{%-?\s*generation\s*-?%\}", template) is not None

    @cached_property
    def _ends(self) -> tuple[str, ...]:
        added = {token.content for token in self.tokenizer.added_tokens_decoder.values()}
        return tuple(sorted((name for name in {*added, *self._names.names} if name.strip()), key=len, reverse=True))

    @cached_property
    def _end_pattern(self) -> re.Pattern[str]:
        return re.compile("|".join(map(re.escape, self._ends)))


def _in_order(parts: Sequence[str], text: str) -> bool:
    """Return whether the text holds all parts, one after the other."""
    end = 0
    for part in parts:
        start = text.find(part, end)
        if start < 0:
            return False
        end = start + len(part)
    return True


def _texts(value: Any) -> Iterator[str]:
    """Yield every text in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _texts(part)


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    """Return a JSON value with every text in it changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {key: _mapped(part, change) for key, part in value.items()}
    return [_mapped(part, change) for part in value] if isinstance(value, list) else value
