"""The one tokenisation: checked texts to a pair of token ids, with one begin token and an end to every whole turn."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from lit_pref.data.fields import BadRow
from lit_pref.data.reading import Row
from lit_pref.data.rows import TextPair
from lit_pref.errors import UsageError, UserError
from lit_pref.models.encoding import TEMPLATE_ERRORS, Encoding, boundary, tokenizer_state
from lit_pref.types import KeptText, Message, PreferencePair, Text

SIDES = ("chosen", "rejected")


@dataclass(frozen=True)
class TokenizedPair:
    """A pair and what its tokenisation did to it: for the report."""

    pair: PreferencePair
    prompt_cut: bool
    chosen_cut: bool
    rejected_cut: bool
    merged: bool


class Tokenization:
    """Turns checked texts into token ids.

    - A sequence starts with exactly one begin token where the tokenizer has one.
    - The boundary between prompt and responses is the longest common prefix of the ids of prompt, prompt + chosen and
      prompt + rejected, so that no token that depends on a response counts as prompt.
    - Message lists go through the tokenizer's chat template. An untruncated response ends with the template's own turn
      end (whitespace after it is cut), or with the tokenizer's end token where there is none.
    - A prompt is cut from the left, equally for both responses; responses from the right.

    Args:
        tokenizer: of the policy.
        max_length: the most tokens of prompt and response together.
        max_prompt_length: the most tokens of a prompt; None refuses prompts that leave no room for a response.

    Raises:
        UsageError: the lengths leave no room.
        UserError: the tokenizer has no end token.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, max_length: int = 1024, max_prompt_length: int | None = None
    ) -> None:
        self.check_lengths(max_length, max_prompt_length)
        if tokenizer.eos_token_id is None:
            raise UserError("The tokenizer has no end token, so a response could never end; give it an `eos_token`.")
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.max_prompt_length = max_prompt_length
        self._encoding = Encoding(tokenizer)

    @staticmethod
    def check_lengths(max_length: int, max_prompt_length: int | None) -> None:
        """Refuse lengths that leave no room for a prompt and a response."""
        if max_length < 2 or (max_prompt_length is not None and not 2 <= max_prompt_length < max_length):
            raise UsageError(
                f"data.max_length {max_length} with data.max_prompt_length {max_prompt_length} leaves no room for a "
                "prompt and a response; max_prompt_length must be at least 2 and below max_length."
            )

    def fingerprint(self) -> str:
        """sha256 over all that decides the ids: tokenizer, template, lengths."""
        tokenizer = self.tokenizer
        state: Any = tokenizer_state(tokenizer)
        parts = (state, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.chat_template)
        settings = (self.max_length, self.max_prompt_length)
        return hashlib.sha256(json.dumps([parts, settings], sort_keys=True, default=str).encode()).hexdigest()

    def tokenize(self, row: Row, text: TextPair, id: str) -> TokenizedPair:
        """The pair of ids of a checked row.

        Raises:
            BadRow: a special token in a text, a conversation that the chat template refuses, a prompt without room, a
                response without a token, or responses that are the same after truncation.
        """
        self._refuse_special_tokens(row, text)
        prompt_text, rendered = self._render(row, text)
        prompt_ids, *whole = map(self._encoding.ids, [prompt_text, *rendered])
        start = boundary([prompt_ids, *whole])
        for side, ids in zip(SIDES, whole, strict=False):
            if ids == prompt_ids or len(ids) == start:
                raise BadRow(row, side, "has no token of its own", "give it a text that the tokenizer can represent")
        prompt = self._kept_prompt(row, prompt_ids[:start])
        prompt_cut = len(prompt) < len(self._encoding.begin) + start
        room = self.max_length - len(prompt)

        texts = [text.chosen, text.rejected]
        responses: list[list[int]] = []
        for k, ids in enumerate(whole):
            responses.append(self._encoding.ended(ids, rendered[k], str(texts[k]))[start:])
            if len(responses[k]) > room:
                texts[k] = self._kept_response(row, prompt_text, ids, start, room)
        cut = [len(ids) > room for ids in responses]
        responses = [ids[:room] for ids in responses]
        if len(responses) == 2 and responses[0] == responses[1]:
            raise BadRow(row, "chosen", "and rejected are the same after truncation", "raise data.max_length")

        kept = KeptText(
            prompt=self._kept_prompt_text(text.prompt, prompt_text, prompt) if prompt_cut else text.prompt,
            chosen=str(texts[0]),
            rejected=texts[1],
            chosen_complete=not cut[0],
            rejected_complete=not cut[-1],
        )
        pair = PreferencePair(
            id=id,
            prompt=prompt,
            chosen=responses[0],
            rejected=responses[1] if len(responses) == 2 else None,
            margin=text.margin,
            probability=text.probability,
            columns=text.columns,
            group=text.group,
            text=kept,
        )
        rejected_cut = len(cut) == 2 and cut[1]
        return TokenizedPair(pair, prompt_cut, cut[0], rejected_cut, merged=start < len(prompt_ids))

    def _refuse_special_tokens(self, row: Row, text: TextPair) -> None:
        messages = [text.prompt] if isinstance(text.prompt, str) else [m["content"] for m in text.prompt]
        fields = [("prompt", content) for content in messages]
        for field, content in [*fields, ("chosen", text.chosen), ("rejected", text.rejected or "")]:
            if found := self._encoding.special(content):
                raise BadRow(
                    row, field, f"holds {found!r}, a special token of the tokenizer", "take it out of the text"
                )

    def _render(self, row: Row, text: TextPair) -> tuple[str, list[str]]:
        """The whole texts: of the prompt, and of the prompt with each response."""
        responses = [text.chosen, *([] if text.rejected is None else [text.rejected])]
        if isinstance(text.prompt, str):
            return text.prompt, [text.prompt + response for response in responses]
        if self.tokenizer.chat_template is None:
            raise UserError(
                "The prompts are message lists and the tokenizer has no chat template; give it one, or write the "
                "prompts as strings."
            )
        prompt = self._templated(row, "prompt", self._encoding.asked, text.prompt)
        answered = self._encoding.answered
        return prompt, [
            self._templated(row, side, answered, text.prompt, response)
            for side, response in zip(SIDES, responses, strict=False)
        ]

    @staticmethod
    def _templated(row: Row, field: str, write: Callable[..., str], *texts: Any) -> str:
        try:
            return write(*texts)
        except TEMPLATE_ERRORS as error:
            remedy = "write a conversation that it takes, or give the tokenizer another template"
            raise BadRow(row, field, "is refused by the chat template", remedy, f" ({error})") from error

    def _kept_prompt(self, row: Row, ids: list[int]) -> list[int]:
        longest = self.max_prompt_length if self.max_prompt_length is not None else self.max_length - 1
        begin = self._encoding.begin
        tokens = len(begin) + len(ids)
        if tokens == 0:
            raise BadRow(row, "prompt", "has no token before the response", "give it a text of its own")
        if tokens <= longest:
            return [*begin, *ids]
        if self.max_prompt_length is None:
            raise BadRow(
                row,
                "prompt",
                "leaves no room for a response",
                "raise data.max_length, or set data.max_prompt_length to cut prompts from the left",
                f" ({tokens} tokens of data.max_length {self.max_length})",
            )
        return [*begin, *ids[len(ids) - (longest - len(begin)) :]]

    def _kept_response(self, row: Row, prompt_text: str, ids: list[int], start: int, room: int) -> str:
        """The text of a cut response, in whole characters."""
        # Decoded with its prompt, because a boundary token may hold the prompt's last characters.
        whole = self._text(ids[: start + room])
        if whole.startswith(prompt := self._without_bos(prompt_text)):
            text = whole[len(prompt) :]
        else:
            text = self._text(ids[start : start + room])
        text = text.rstrip("\ufffd")
        if not text.strip():
            raise BadRow(row, "prompt", "leaves no room for a response", "raise data.max_length")
        return text

    def _text(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, clean_up_tokenization_spaces=False))

    def _without_bos(self, text: str) -> str:
        return text.removeprefix(str(self.tokenizer.bos_token or ""))

    def _kept_prompt_text(self, prompt: Text, rendered: str, kept: list[int]) -> Text:
        """The right-hand part of a cut prompt, in whole characters; of messages, those that are left of it."""
        ids = kept[len(self._encoding.begin) :]
        text = self._text(ids).lstrip("\ufffd")
        if isinstance(prompt, str):
            return text
        cut = len(rendered) - len(text)
        left: list[Message] = []
        end = len(rendered)
        for message in reversed(prompt):
            content = message["content"].strip()
            start = rendered.rfind(content, 0, end)
            if start < 0 or start + len(content) <= cut:
                break
            left.insert(0, {"role": message["role"], "content": content[max(0, cut - start) :]})
            end = start
        return left or text
