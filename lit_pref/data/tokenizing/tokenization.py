"""Tokenization of checked texts: one bos token at the start, and an end token after every complete response."""

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from lit_pref.data.checking.text_pair import TextPair
from lit_pref.data.sources.row import BadRow, Row
from lit_pref.data.tokenizing.rendering import RenderedPair, render
from lit_pref.data.tokenizing.truncation import Response, cut_response, kept_prompt
from lit_pref.errors import UsageError, UserError
from lit_pref.models.beginnings import Beginnings
from lit_pref.models.encoding import Encoded, Encoding, Unreadable, common_prefix_length, tokenizer_state
from lit_pref.models.special_text import EncodableText
from lit_pref.pairs import Text, TokenValues, TruncatedText

SpecialText = Literal["plain", "token"]
REMEMBERED = 1024
"""Number of prompts whose ids are kept in memory, because many pairs share a prompt."""
REMEDY = "give it a text that the tokenizer can represent"


@dataclass(frozen=True)
class TokenizedPair:
    """The ids and kept texts of a pair, and facts about its tokenization for the report.

    `prompt` has the ids up to the prompt end, the others the ids after it. `merged` means that one token spans the
    prompt end. `special_texts` counts names of special tokens in the texts. `unasked` means that the assistant's turn
    does not begin with the chat template's generation prompt. `unread` names keys of messages that the template does
    not write; `lost` says in words which texts it leaves out or rewrites.
    """

    prompt: list[int]
    chosen: list[int]
    rejected: list[int] | None
    text: TruncatedText
    prompt_cut: bool
    chosen_cut: bool
    rejected_cut: bool
    merged: bool
    extra_response: list[int] | None = None
    extra_response_cut: bool = False
    token_columns: Mapping[str, TokenValues] = field(default_factory=dict)
    special_texts: int = 0
    unasked: bool = False
    unread: frozenset[str] = frozenset()
    lost: tuple[str, ...] = ()


class Tokenization:
    """Converts checked texts to token ids.

    - A sequence starts with exactly one bos token if the tokenizer has one.
    - The prompt end is the end of the longest common prefix of the ids of the prompt and of the prompt with each
      response, so that no token that depends on a response counts as prompt.
    - Message lists are rendered by the tokenizer's chat template. A complete response ends with the template's own end
      of turn (without the whitespace after it), or else with the tokenizer's eos token. If the template marks the
      assistant's turns by `{% generation %}`, everything before the last such turn is prompt, and nothing after its end
      is read.
    - A prompt is cut from the left, equally for all responses; responses are cut from the right.
    - A token takes the value of the character span that covers most of it; the value of the eos token is 0.

    Args:
        tokenizer: tokenizer of the policy.
        max_length: the most tokens of prompt and response together.
        max_prompt_length: the most tokens of a prompt; None refuses prompts that leave no room for a response.
        special_text: encode the name of a special token inside a text as its characters (`plain`), or as that token
            (`token`).

    Raises:
        UsageError: the lengths leave no room.
        UserError: the tokenizer has no eos token.
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
        self._beginnings = Beginnings(self._encoding)
        self._bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
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
        """Return a sha256 of everything that affects the ids: tokenizer, special tokens, template, settings, libraries.

        A date that a template takes from the clock is not included: pairs keep the date of their preparation.
        """
        tokenizer = self.tokenizer
        state: Any = tokenizer_state(tokenizer)
        parts = (state, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.chat_template)
        names = (tokenizer.special_tokens_map, self._encoding.names.names)
        settings = (self.max_length, self.max_prompt_length, self.special_text)
        libraries = [importlib.metadata.version(name) for name in ("tokenizers", "transformers", "jinja2")]
        content = json.dumps([parts, names, settings, libraries], sort_keys=True, default=str)
        return hashlib.sha256(content.encode()).hexdigest()

    def tokenize(self, row: Row, text: TextPair) -> TokenizedPair:
        """Return the ids of a checked row.

        Raises:
            BadRow: the tokenizer cannot encode a text, the chat template refuses the conversation, the prompt leaves no
                room, a response has no token, the responses are the same in tokens, or the template has changed
                a response that has spans.
            UserError: there is no chat template, or the tokenizer cannot map tokens to characters and there are spans.
        """
        tokenized = self.tokenize_all([(row, text)])[0]
        if isinstance(tokenized, BadRow):
            raise tokenized
        return tokenized

    def tokenize_all(self, items: Sequence[tuple[Row, TextPair]]) -> list[TokenizedPair | BadRow]:
        """Return the ids of checked rows, or the error of a row, in the order of `items`.

        The texts of all items are encoded together, because this is much faster than one by one.

        Raises:
            UserError: see `tokenize`.
        """
        rendered: list[RenderedPair | BadRow] = []
        for item in items:
            try:
                rendered.append(render(self._encoding, *item))
            except BadRow as bad:
                rendered.append(bad)
        good = [pair for pair in rendered if isinstance(pair, RenderedPair)]
        try:
            prompts, responses = self._encode(good)
        except Unreadable as error:
            if len(items) == 1:
                return [self._unreadable(good[0], error)]
            return [result for item in items for result in self.tokenize_all([item])]
        encoded = iter(responses)
        results: list[TokenizedPair | BadRow] = []
        for pair in rendered:
            if isinstance(pair, BadRow):
                results.append(pair)
                continue
            try:
                whole_texts = [next(encoded) for _ in pair.responses]
                results.append(self._pair(pair, [prompts[prompt] for prompt in pair.prompts], whole_texts))
            except BadRow as bad:
                results.append(bad)
        return results

    def _encode(self, pairs: list[RenderedPair]) -> tuple[dict[EncodableText, list[int]], list[Encoded]]:
        """Return the ids of all prompts, and those of all responses with their prompts, in order."""
        spans = any(pair.text.spans for pair in pairs)
        if spans and not self.tokenizer.is_fast:
            raise UserError(
                "data.token_columns are values of characters, and this tokenizer cannot map its tokens to characters; "
                "use one that comes with a tokenizer.json, or leave the token columns out."
            )
        prompts = {prompt: self._prompts.get(prompt) for pair in pairs for prompt in pair.prompts}
        unread = [prompt for prompt, ids in prompts.items() if ids is None]
        fresh = dict(zip(unread, (encoded.ids for encoded in self._encoding.encode(unread)), strict=True))
        for old in list(self._prompts)[: max(0, len(self._prompts) + len(fresh) - REMEMBERED)]:
            del self._prompts[old]
        self._prompts.update(fresh)
        known = {prompt: ids for prompt, ids in prompts.items() if ids is not None} | fresh
        texts = [response.written for pair in pairs for response in pair.responses]
        if spans:
            return known, self._encoding.encode(texts, spans=True)
        # With one more id than are kept, a response counts as cut.
        longest = [self.max_length + 1 + max(len(known[prompt]) for prompt in pair.prompts) for pair in pairs]
        needed = [most for pair, most in zip(pairs, longest, strict=True) for _ in pair.responses]
        return known, self._beginnings.encode(texts, needed)

    def _unreadable(self, pair: RenderedPair, error: Unreadable) -> BadRow:
        field = "prompt"
        for response in pair.responses:
            try:
                self._encoding.ids(pair.prompts[0])
                field = response.side
                self._encoding.ids(response.written)
            except Unreadable:
                break
        return BadRow(pair.row, field, "cannot be read by the tokenizer", REMEDY, f" ({error})")

    def _pair(self, pair: RenderedPair, prompts: list[list[int]], encoded: list[Encoded]) -> TokenizedPair:
        prompt_end = common_prefix_length([*prompts, *(response.ids for response in encoded)])
        prompt = self._prompt(pair.row, prompts[0][:prompt_end])
        responses = self._responses(pair, prompts, encoded, prompt_end, self.max_length - len(prompt))
        chosen, rejected, extra = (responses.get(side) for side in ("chosen", "rejected", "extra_response"))
        assert chosen is not None
        if rejected is not None and chosen.ids == rejected.ids:
            raise _same(pair, chosen.cut or rejected.cut)
        dropped = len(self._bos) + prompt_end - len(prompt)
        return TokenizedPair(
            prompt=prompt,
            chosen=chosen.ids,
            rejected=None if rejected is None else rejected.ids,
            extra_response=None if extra is None else extra.ids,
            text=TruncatedText(
                prompt=self._prompt_text(pair, prompts[0], dropped),
                chosen=chosen.text,
                rejected=None if rejected is None else rejected.text,
                chosen_complete=not chosen.cut,
                rejected_complete=rejected is None or not rejected.cut,
                extra_response=None if extra is None else extra.text,
                extra_response_complete=extra is None or not extra.cut,
                further={
                    side: own
                    for side, further in pair.text.further.items()
                    if (own := {key: part for key, part in further.items() if key not in pair.unread})
                },
            ),
            token_columns={
                name: (chosen.columns[name], None if rejected is None else rejected.columns[name])
                for name in pair.text.spans
            },
            prompt_cut=dropped > 0,
            chosen_cut=chosen.cut,
            rejected_cut=rejected is not None and rejected.cut,
            extra_response_cut=extra is not None and extra.cut,
            merged=prompt_end < len(prompts[0]),
            special_texts=pair.special_texts,
            unasked=pair.unasked,
            unread=pair.unread,
            lost=pair.lost,
        )

    def _responses(
        self, pair: RenderedPair, prompts: list[list[int]], encoded: list[Encoded], prompt_end: int, room: int
    ) -> dict[str, Response]:
        responses = {}
        for response, whole in zip(pair.responses, encoded, strict=True):
            if len(whole.ids) == prompt_end or whole.ids in prompts:
                raise BadRow(pair.row, response.side, "has no token of its own", REMEDY)
            responses[response.side] = cut_response(self._encoding, pair, response, whole, prompt_end, room)
        return responses

    def _prompt(self, row: Row, ids: list[int]) -> list[int]:
        """Return the kept ids of a prompt, after a bos token."""
        longest = self.max_prompt_length if self.max_prompt_length is not None else self.max_length - 1
        tokens = len(self._bos) + len(ids)
        if tokens == 0:
            raise BadRow(row, "prompt", "has no token before the response", "give it a text of its own")
        if tokens <= longest:
            return [*self._bos, *ids]
        if self.max_prompt_length is None:
            raise BadRow(
                row,
                "prompt",
                "leaves no room for a response",
                "raise data.max_length, or set data.max_prompt_length to cut prompts from the left",
                f" ({tokens} tokens of data.max_length {self.max_length})",
            )
        return [*self._bos, *ids[len(ids) - (longest - len(self._bos)) :]]

    def _prompt_text(self, pair: RenderedPair, ids: list[int], dropped: int) -> Text:
        if not dropped:
            prompt = pair.text.prompt
            if isinstance(prompt, str) or not pair.unread:
                return prompt
            return [{key: part for key, part in message.items() if key not in pair.unread} for message in prompt]
        # The prompt's text ends at its own end, even if its last token also contains a response's first characters.
        return kept_prompt(self._encoding, pair.text.prompt, pair.prompts[0].text, ids[dropped:])


def _same(pair: RenderedPair, cut: bool) -> BadRow:
    """Return the error of a pair whose responses have the same ids."""
    if cut:
        return BadRow(pair.row, "chosen", "and rejected are the same after truncation", "raise data.max_length")
    sides = [pair.text.further.get(side, {}) for side in ("chosen", "rejected")]
    keys = sorted(key for key in {*sides[0], *sides[1]} if sides[0].get(key) != sides[1].get(key))
    if keys and pair.text.chosen == pair.text.rejected:
        names = " and ".join(f"`{key}`" for key in keys)
        remedy = "give the tokenizer a template that writes it"
        return BadRow(
            pair.row, "chosen", f"and rejected differ only in {names}, which the chat template does not write", remedy
        )
    remedy = "leave the row out, or give the tokenizer a template that keeps the difference"
    return BadRow(pair.row, "chosen", "and rejected are the same once the chat template has written them", remedy)
