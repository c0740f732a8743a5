"""What every tokenisation of a pair shares: one begin token, the boundary before the responses, the end of a turn."""

import json
import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import jinja2

from lit_pref.types import Message

TEMPLATE_ERRORS = (jinja2.TemplateError, TypeError)
"""What a chat template raises where it refuses a conversation, or was not written for one like it."""


class Encoding:
    """How texts become ids under one tokenizer.

    Args:
        tokenizer: with an end token.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.begin: list[int] = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]

    def ids(self, text: str, plain: bool = False) -> list[int]:
        """Ids without a begin token, whoever would have written it: tokenizer or template.

        Args:
            text: to encode.
            plain: read the names of special tokens as the characters that they are.
        """
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, split_special_tokens=plain, verbose=False)[
            "input_ids"
        ]
        start = 0
        while start < len(ids) and ids[start] == self.tokenizer.bos_token_id:
            start += 1
        return ids[start:]

    def special(self, text: str) -> str | None:
        """The first name of a special token in a text, which `ids` would read as that token."""
        found = self._special.search(text)
        return found.group() if found else None

    def asked(self, messages: list[Message]) -> str:
        """The conversation as the chat template writes it, up to where the assistant answers.

        Raises:
            jinja2.TemplateError, TypeError: the template refuses it (`TEMPLATE_ERRORS`).
        """
        return str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))

    def answered(self, messages: list[Message], response: str) -> str:
        """The conversation with its answer, without what templates write after the turn's end (a line break).

        A model is to stop at the turn's end: what comes after it is never generated.

        Raises:
            jinja2.TemplateError, TypeError: the template refuses it (`TEMPLATE_ERRORS`).
        """
        turns = [*messages, {"role": "assistant", "content": response}]
        return str(self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=False)).rstrip()

    def ended(self, ids: list[int], text: str, response: str) -> list[int]:
        """The ids of a whole text with an end: the template's own, else the tokenizer's end token.

        Args:
            ids: of `text`.
            text: prompt and response.
            response: as it was given.
        """
        # The template's own end is a token that a model can learn to stop at, and not the response's last word.
        ended = ids[-1] in self._added and not text.rstrip().endswith(response.rstrip())
        return ids if ended else [*ids, self.tokenizer.eos_token_id]

    @cached_property
    def _added(self) -> set[int]:
        return {*self.tokenizer.added_tokens_decoder, *self.tokenizer.all_special_ids}

    @cached_property
    def _special(self) -> re.Pattern[str]:
        names = {token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special}
        names |= set(self.tokenizer.all_special_tokens)
        return re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True))))


def boundary(lists: Sequence[list[int]]) -> int:
    """The length of the longest common prefix of ids: of a prompt, and of the prompt with each of its responses.

    No token that depends on a response then counts as prompt.

    >>> boundary([[5, 6, 7], [5, 6, 8, 9], [5, 6, 7, 9]])
    2
    """
    shortest = min(map(len, lists))
    first = lists[0]
    return next((k for k in range(shortest) if any(ids[k] != first[k] for ids in lists)), shortest)


def tokenizer_state(tokenizer: Any) -> Any:
    """All that decides how a tokenizer reads a text, as JSON values; its chat template is not part of it."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return [type(tokenizer).__name__, sorted(tokenizer.get_vocab().items())]
    # Left behind by whoever padded or truncated last.
    return {**json.loads(backend.to_str()), "truncation": None, "padding": None}
