"""Conversations as a tokenizer's chat template writes them, and where the answer stands in what it wrote."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import jinja2
from transformers.utils.chat_template_utils import render_jinja_template

from lit_pref.models.special_text import EncodableText, Place, SpecialNames, unused
from lit_pref.pairs import Message

TEMPLATE_ERRORS = (jinja2.TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
"""What a chat template raises where it refuses a conversation, or was not written for one like it."""
REMEMBERED = 1024  # prompts, many pairs share one


@dataclass(frozen=True)
class RenderedChat:
    """A conversation with its answer.

    Args:
        whole: up to the end of the answer's turn.
        prompt: where the part ends that the model is given, in characters; None: where the template says so by itself,
            when it is asked for an answer.
        place: of the answer's own text, without whitespace before it; None where the template rewrites the answer.
    """

    whole: EncodableText
    prompt: int | None
    place: Place | None


class Chat:
    """A tokenizer's chat template.

    Args:
        tokenizer: with a chat template.
        names: of its special tokens.
        plain: read the names of special tokens inside messages as the characters that they are.
    """

    def __init__(self, tokenizer: Any, names: SpecialNames, plain: bool = True) -> None:
        self.tokenizer = tokenizer
        self._names = names
        self._plain = plain
        self._tail: str | None = None
        self._remembered = lru_cache(REMEMBERED)(self._ask)

    def asked(self, messages: Sequence[Message]) -> EncodableText:
        """The conversation up to where the assistant answers.

        Raises:
            TEMPLATE_ERRORS: the template refuses it.
        """
        return self._remembered(tuple((message["role"], message["content"]) for message in messages))

    def _ask(self, messages: tuple[tuple[str, str], ...]) -> EncodableText:
        turns = [{"role": role, "content": content} for role, content in messages]
        return self._read(turns, self._render(turns, asks=True)[0], asks=True)

    def answered(self, messages: Sequence[Message], response: str) -> RenderedChat:
        """The conversation with its answer, without what the template writes after the turn's end (a line break).

        A model is to stop at the turn's end: what comes after it is never generated. Where the template says by
        `{% generation %}` what the assistant writes, the turn is that block and the turn's end, and all before the
        block is given.

        Raises:
            TEMPLATE_ERRORS: the template refuses it.
        """
        turns = [*messages, {"role": "assistant", "content": response}]
        text, blocks = self._render(turns)
        place = self._place(messages, response, text.rstrip())
        whole = self._read(turns, text)
        if not blocks:
            return RenderedChat(whole.upto(len(text.rstrip())), None, place)
        start, end = blocks[-1]
        if place is not None:
            holding = [block for block in blocks if block[0] <= place[0] and place[1] <= block[1]]
            if not holding:
                raise ValueError("its generation block does not hold the answer")
            start, end = holding[-1]
        return RenderedChat(whole.upto(self._end_of_turn(text, start, end, place)), start, place)

    def keeps_leading_space(self, messages: Sequence[Message], response: str) -> bool:
        """Whether the whitespace that a response begins with is written too."""
        whole, stripped = (
            self._attempt([*messages, {"role": "assistant", "content": content}])
            for content in (response, response.lstrip())
        )
        return len(whole) > len(stripped) > 0

    def contents(self, messages: Sequence[Message]) -> list[Place | None]:
        """Where in `asked` the text of each message stands, without the whitespace around it; None: not as it was."""
        text = self.asked(messages).text
        marks = unused([text, *(message["content"] for message in messages)], 2)
        marked = [{**message, "content": marks[0] + message["content"].strip() + marks[1]} for message in messages]
        shown = self._attempt(marked, asks=True)
        places: list[Place | None] = []
        position = 0
        for message in messages:
            content = message["content"].strip()
            head, found, shown = shown.partition(marks[0] + content + marks[1])
            start = position + len(head)
            position = start + len(content)
            places.append((start, position) if found and text[start:position] == content else None)
        return places

    def _render(self, turns: list[Message], asks: bool = False) -> tuple[str, list[Place]]:
        if asks or not self._has_blocks:
            written = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=asks)
            return str(written), []
        rendered: Any = render_jinja_template(
            conversations=[turns],
            chat_template=self.tokenizer.get_chat_template(),
            return_assistant_tokens_mask=True,
            **self.tokenizer.special_tokens_map,
        )
        (text,), (blocks,) = rendered
        return str(text), blocks

    def _attempt(self, turns: list[Message], asks: bool = False) -> str:
        """What the template writes, nothing where it refuses."""
        try:
            return self._render(turns, asks)[0]
        except TEMPLATE_ERRORS:
            return ""

    def _read(self, turns: list[Message], text: str, asks: bool = False) -> EncodableText:
        """How a rendered text is to be read: the template's own special tokens are tokens, those of messages not."""
        contents = [turn["content"] for turn in turns]
        if not self._plain or not any(map(self._names.first, contents)):
            return EncodableText(text)
        marks = unused([text, *contents], 2)
        marked = [{**turn, "content": self._names.marked(turn["content"], marks)} for turn in turns]
        written = self._names.unmarked(self._render(marked, asks)[0], marks)
        if written.text != text:
            named = next(filter(None, map(self._names.first, contents)))
            raise ValueError(f"it goes by special tokens inside messages, such as {named!r}")
        return written

    def _place(self, messages: Sequence[Message], response: str, text: str) -> Place | None:
        if self._tail is None or (place := self._before(self._tail, response, text)) is None:
            # What stands behind an answer is the same for nearly all; looked for with marks where it is not.
            marks = unused([text, response], 2)
            marked = marks[0] + response.strip() + marks[1]
            shown = self._attempt([*messages, {"role": "assistant", "content": marked}]).rstrip()
            if shown.count(marks[0]) != 1 or shown.count(marks[1]) != 1:
                return None
            head, _, rest = shown.partition(marks[0])
            tail = rest.partition(marks[1])[2]
            place = self._before(tail, response, text)
            if place is None or not text.startswith(head):
                return None
            self._tail = tail
        return place

    @staticmethod
    def _before(tail: str, response: str, text: str) -> Place | None:
        end = len(text) - len(tail)
        # Templates that trim leave less of it.
        for own in (response.lstrip(), response.strip()):
            if text.endswith(own + tail):
                return end - len(own), end
        return None

    def _end_of_turn(self, text: str, start: int, end: int, place: Place | None) -> int:
        """Where a turn with a generation block ends: after the template's own end token, if it writes one."""
        block = start + len(text[start:end].rstrip())
        if place is None and text.endswith(self._ends, start, block):
            return block
        behind = end if place is None else place[1]
        found = self._end_pattern.search(text, behind)
        return found.end() if found else max(behind, block)

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
