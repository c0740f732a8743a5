"""The one tokenisation: checked texts to a pair of token ids, with one begin token and an end to every whole turn."""

import hashlib
import importlib.metadata
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from lit_pref.data.checking.row_reader import TextPair
from lit_pref.data.sources.row import BadRow, Row
from lit_pref.data.tokenizing.rendering import RenderedPair, draft
from lit_pref.data.tokenizing.truncation import cut_response, kept_prompt
from lit_pref.errors import UsageError, UserError
from lit_pref.models.encoding import Encoded, Encoding, Unreadable, common_prefix_length, tokenizer_state
from lit_pref.models.special_text import EncodableText
from lit_pref.pairs import PreferencePair, Text, TruncatedText

SpecialText = Literal["plain", "token"]
REMEMBERED = 1024  # prompts, many pairs share one
REMEDY = "give it a text that the tokenizer can represent"


@dataclass(frozen=True)
class TokenizedPair:
    """A pair and what its tokenisation did to it: for the report."""

    pair: PreferencePair
    prompt_cut: bool
    chosen_cut: bool
    rejected_cut: bool
    merged: bool
    extra_response_cut: bool = False
    special_texts: int = 0  # names of special tokens in its texts
    unasked: bool = False  # its assistant's turns do not begin as the chat template asks for one


class Tokenization:
    """Turns checked texts into token ids.

    - A sequence starts with exactly one begin token where the tokenizer has one.
    - The boundary between prompt and responses is the longest common prefix of the ids of the prompt and of the prompt
      with each response, so that no token that depends on a response counts as prompt.
    - Message lists go through the tokenizer's chat template. An untruncated response ends with the template's own turn
      end (whitespace after it is cut), or with the tokenizer's end token where there is none. Where the template marks
      by `{% generation %}` what the assistant writes, all before that is prompt, and nothing after the turn's end is
      read.
    - A prompt is cut from the left, equally for all responses; responses from the right.
    - A token takes the value of the character span that covers most of it; the end token's is 0.

    Args:
        tokenizer: of the policy.
        max_length: the most tokens of prompt and response together.
        max_prompt_length: the most tokens of a prompt; None refuses prompts that leave no room for a response.
        special_text: the name of a special token inside a text is read as the characters that it is (`plain`), or as
            that token (`token`).

    Raises:
        UsageError: the lengths leave no room.
        UserError: the tokenizer has no end token.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int = 1024,
        max_prompt_length: int | None = None,
        special_text: SpecialText = "plain",
    ) -> None:
        self.check_lengths(max_length, max_prompt_length)
        if tokenizer.eos_token_id is None:
            raise UserError("The tokenizer has no end token, so a response could never end; give it an `eos_token`.")
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.max_prompt_length = max_prompt_length
        self.special_text: SpecialText = special_text
        self._encoding = Encoding(tokenizer, plain=special_text == "plain")
        self._prompts: dict[EncodableText, list[int]] = {}

    @staticmethod
    def check_lengths(max_length: int, max_prompt_length: int | None) -> None:
        """Refuse lengths that leave no room for a prompt and a response."""
        if max_length < 2 or (max_prompt_length is not None and not 2 <= max_prompt_length < max_length):
            raise UsageError(
                f"data.max_length {max_length} with data.max_prompt_length {max_prompt_length} leaves no room for a "
                "prompt and a response; max_prompt_length must be at least 2 and below max_length."
            )

    @cache  # noqa: B019  a tokenization lives as long as its run
    def fingerprint(self) -> str:
        """sha256 over all that decides the ids: tokenizer, special tokens, template, lengths, settings, libraries.

        What a template takes from the clock is not part of it: pairs keep the date on which they were prepared.
        """
        tokenizer = self.tokenizer
        state: Any = tokenizer_state(tokenizer)
        parts = (state, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.chat_template)
        names = (tokenizer.special_tokens_map, self._encoding.names.names)
        settings = (self.max_length, self.max_prompt_length, self.special_text)
        libraries = [importlib.metadata.version(name) for name in ("tokenizers", "transformers", "jinja2")]
        said = json.dumps([parts, names, settings, libraries], sort_keys=True, default=str)
        return hashlib.sha256(said.encode()).hexdigest()

    def tokenize(self, row: Row, text: TextPair, id: str) -> TokenizedPair:
        """The pair of ids of a checked row.

        Raises:
            BadRow: a text that the tokenizer cannot read, a conversation that the chat template refuses, a prompt
                without room, a response without a token, responses that are the same after truncation, or spans of a
                response that the template rewrites.
            UserError: there is no chat template, or spans and a tokenizer that cannot say where its tokens stand.
        """
        made = self.tokenize_all([(row, text, id)])[0]
        if isinstance(made, BadRow):
            raise made
        return made

    def tokenize_all(self, items: Sequence[tuple[Row, TextPair, str]]) -> list[TokenizedPair | BadRow]:
        """The pairs of ids of checked rows, or what is wrong with a row, in the order of `items`.

        The texts of all items are read in one go: hundreds together are much faster than one by one.

        Raises:
            UserError: as `tokenize` does.
        """
        drafts: list[RenderedPair | BadRow] = []
        for item in items:
            try:
                drafts.append(draft(self._encoding, *item))
            except BadRow as bad:
                drafts.append(bad)
        good = [made for made in drafts if isinstance(made, RenderedPair)]
        try:
            prompts, wholes = self._read(good)
        except Unreadable as error:
            if len(items) == 1:
                return [self._unreadable(good[0], error)]
            return [made for item in items for made in self.tokenize_all([item])]
        read = iter(wholes)
        return [
            made
            if isinstance(made, BadRow)
            else self._pair(made, [prompts[prompt] for prompt in made.prompts], [next(read) for _ in made.wholes])
            for made in drafts
        ]

    def _read(self, drafts: list[RenderedPair]) -> tuple[dict[EncodableText, list[int]], list[Encoded]]:
        """Ids of all prompts, and of all whole texts in order."""
        spans = any(made.text.spans for made in drafts)
        if spans and not self.tokenizer.is_fast:
            raise UserError(
                "data.token_columns are values of characters, and this tokenizer cannot say which characters its "
                "tokens stand for; take one that comes with a tokenizer.json, or leave the token columns out."
            )
        prompts = {prompt: self._prompts.get(prompt) for made in drafts for prompt in made.prompts}
        unread = [prompt for prompt, ids in prompts.items() if ids is None]
        fresh = dict(zip(unread, (read.ids for read in self._encoding.encode(unread)), strict=True))
        for old in list(self._prompts)[: max(0, len(self._prompts) + len(fresh) - REMEMBERED)]:
            del self._prompts[old]
        self._prompts.update(fresh)
        wholes = [whole.written for made in drafts for whole in made.wholes]
        known = {prompt: ids for prompt, ids in prompts.items() if ids is not None}
        return {**known, **fresh}, self._encoding.encode(wholes, spans=spans)

    def _unreadable(self, made: RenderedPair, error: Unreadable) -> BadRow:
        field = "prompt"
        for whole in made.wholes:
            try:
                self._encoding.ids(made.prompts[0])
                field = whole.side
                self._encoding.ids(whole.written)
            except Unreadable:
                break
        return BadRow(made.row, field, "cannot be read by the tokenizer", REMEDY, f" ({error})")

    def _pair(self, made: RenderedPair, prompts: list[list[int]], wholes: list[Encoded]) -> TokenizedPair | BadRow:
        try:
            return self._finished(made, prompts, wholes)
        except BadRow as bad:
            return bad

    def _finished(self, made: RenderedPair, prompts: list[list[int]], wholes: list[Encoded]) -> TokenizedPair:
        row, text = made.row, made.text
        start = common_prefix_length([*prompts, *(read.ids for read in wholes)])
        prompt = self._prompt(row, prompts[0][:start])
        room = self.max_length - len(prompt)
        responses = {}
        for whole, read in zip(made.wholes, wholes, strict=True):
            if len(read.ids) == start or read.ids in prompts:
                raise BadRow(row, whole.side, "has no token of its own", REMEDY)
            responses[whole.side] = cut_response(self._encoding, made, whole, read, start, room)
        chosen, rejected, extra_response = (
            responses["chosen"],
            responses.get("rejected"),
            responses.get("extra_response"),
        )
        if rejected is not None and chosen.ids == rejected.ids:
            raise BadRow(row, "chosen", "and rejected are the same after truncation", "raise data.max_length")
        kept = TruncatedText(
            prompt=self._prompt_text(made, prompts[0], len(self._encoding.bos) + start - len(prompt)),
            chosen=chosen.text,
            rejected=None if rejected is None else rejected.text,
            chosen_complete=not chosen.cut,
            rejected_complete=rejected is None or not rejected.cut,
            extra_response=None if extra_response is None else extra_response.text,
            extra_response_complete=extra_response is None or not extra_response.cut,
        )
        pair = PreferencePair(
            id=made.id,
            prompt=prompt,
            chosen=chosen.ids,
            rejected=None if rejected is None else rejected.ids,
            margin=text.margin,
            probability=text.probability,
            columns=text.columns,
            group=text.group,
            text=kept,
            extra_response=None if extra_response is None else extra_response.ids,
            token_columns={
                name: (chosen.columns[name], None if rejected is None else rejected.columns[name])
                for name in text.spans
            },
            prompt_id=text.prompt_id,
            place=row.place,
        )
        return TokenizedPair(
            pair,
            prompt_cut=len(prompt) < len(self._encoding.bos) + start,
            chosen_cut=chosen.cut,
            rejected_cut=rejected is not None and rejected.cut,
            merged=start < len(prompts[0]),
            extra_response_cut=extra_response is not None and extra_response.cut,
            special_texts=made.special_texts,
            unasked=made.unasked,
        )

    def _prompt(self, row: Row, ids: list[int]) -> list[int]:
        """The ids of a prompt that are kept, behind a begin token."""
        longest = self.max_prompt_length if self.max_prompt_length is not None else self.max_length - 1
        begin = self._encoding.bos
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

    def _prompt_text(self, made: RenderedPair, ids: list[int], gone: int) -> Text:
        if not gone:
            return made.text.prompt
        # To the prompt's own end, also where its last token is one with a response's first characters.
        return kept_prompt(self._encoding, made.text.prompt, made.prompts[0].text, ids[gone:])
