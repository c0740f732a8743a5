"""Encodes texts as token ids, with one bos token, an end token, and special tokens in texts as plain text."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from lit_pref.models.chat import TEMPLATE_ERRORS as TEMPLATE_ERRORS
from lit_pref.models.chat import Chat
from lit_pref.models.special_text import EncodableText, PlainReader, Span, SpecialNames, unused

TOGETHER = 2**20
"""Characters that are encoded in one call: an encoding takes about 40 times their memory."""


class Unreadable(Exception):
    """The tokenizer cannot encode a text; the message says why."""


@contextmanager
def _as_unreadable() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # because the tokenizers library raises nothing more specific
        raise Unreadable(str(error)) from error


@dataclass(frozen=True)
class Encoded:
    """The ids of a text, and on request the span of each."""

    ids: list[int]
    spans: list[Span] | None = None


class Encoding:
    """Encodes texts with one tokenizer.

    `bos` is a list with the id of the bos token, or empty if there is none; `eos` is the id of the eos token.

    Args:
        tokenizer: a tokenizer that has an eos token.
        plain: encode the names of special tokens inside texts and messages as plain text.
    """

    def __init__(self, tokenizer: Any, plain: bool = True) -> None:
        self.tokenizer = tokenizer
        self.plain = plain
        self.bos: list[int] = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        self.eos: int = tokenizer.eos_token_id
        self.names = SpecialNames(tokenizer)
        self._reader: tuple[str, PlainReader] | None = None

    @cached_property
    def chat(self) -> Chat:
        """The tokenizer's chat template; only for a tokenizer that has one."""
        return Chat(self.tokenizer, self.names, self.plain)

    def encodable(self, text: str) -> EncodableText:
        """Return a text that was not rendered by a chat template."""
        return EncodableText(text, () if self.plain else None)

    def extended(self, encodable: EncodableText, text: str) -> EncodableText:
        """Append `text`, in which names of special tokens are plain text."""
        special = encodable.special
        if special is None and self.names.first(text):
            special = self.names.spans(encodable.text)
        return EncodableText(encodable.text + text, special)

    def encode(self, texts: Sequence[EncodableText], spans: bool = False) -> list[Encoded]:
        """Encode texts without a leading bos token, even if the tokenizer or the template would add one.

        Args:
            texts: encoded in one call, which is much faster than one by one.
            spans: also return the span of each token; needs a fast tokenizer.

        Raises:
            Unreadable: the tokenizer cannot encode one of them.
        """
        encoded: dict[int, Encoded] = {}
        for plain in (False, True):
            indices = [k for k, text in enumerate(texts) if text.special == (() if plain else None)]
            alike = self._encode_alike([texts[k].text for k in indices], plain, spans)
            encoded.update(zip(indices, alike, strict=True))
        return [self._without_bos(text, encoded.get(k) or self._encode_mixed(text)) for k, text in enumerate(texts)]

    def ids(self, text: EncodableText) -> list[int]:
        """Encode one text, without a leading bos token.

        Raises:
            Unreadable: the tokenizer cannot encode it.
        """
        return self.encode([text])[0].ids

    def with_end(self, ids: list[int], text: str, response: str, span: Span | None = None) -> list[int]:
        """Append eos to the ids of a response, unless they already end with the template's end-of-turn token.

        Args:
            ids: the ids of `text`, or the last part of them.
            text: prompt and response.
            response: the response as in the data.
            span: the response in `text`, if known.
        """
        # An end-of-turn token is an added token that follows the response, not the response's own last token.
        is_own = text.rstrip().endswith(response.rstrip()) if span is None else len(text.rstrip()) <= span[1]
        return ids if ids[-1] in self._added and not is_own else [*ids, self.eos]

    def turn_end(self) -> int:
        """Return the token with which complete responses end in training: the template's end of turn, or else eos."""
        if self.tokenizer.chat_template is None:
            return self.eos
        response = "Yes"
        try:
            answer = self.chat.render_answer([{"role": "user", "content": "Hello"}], response)
            return self.with_end(self.ids(answer.whole), answer.whole.text, response, answer.span)[-1]
        except (*TEMPLATE_ERRORS, Unreadable):  # a template for other conversations
            return self.eos

    def _encode_alike(self, texts: list[str], plain: bool, spans: bool) -> list[Encoded]:
        return [encoded for part in _parts_of(texts) for encoded in self._encode_part(part, plain, spans)]

    def _encode_part(self, texts: list[str], plain: bool, spans: bool) -> list[Encoded]:
        if plain and not self.tokenizer.is_fast:
            # With `split_special_tokens`, tokenizers written in Python would also split ordinary added words.
            return [self._encode_slow(EncodableText(text, ())) for text in texts]
        if self.tokenizer.is_fast and not spans:
            return [Encoded(ids, None) for ids in self._encode_fast(texts, plain)]
        with _as_unreadable():
            encoded = self.tokenizer(
                texts,
                add_special_tokens=False,
                split_special_tokens=plain,
                return_attention_mask=False,
                return_token_type_ids=False,
                return_offsets_mapping=spans,
                verbose=False,
            )
        offsets = encoded["offset_mapping"] if spans else [None] * len(texts)
        return [Encoded(ids, offset) for ids, offset in zip(encoded["input_ids"], offsets, strict=True)]

    def _encode_fast(self, texts: list[str], plain: bool) -> list[list[int]]:
        """Return the ids of `tokenizer(texts)`, without the cost of its masks."""
        backend = self.tokenizer.backend_tokenizer
        # Reset the settings that an earlier call may have left behind.
        backend.no_padding()
        backend.no_truncation()
        # The fast version does not compute the places of tokens; older versions of tokenizers lack it.
        encode_batch = getattr(backend, "encode_batch_fast", backend.encode_batch)
        before, backend.encode_special_tokens = backend.encode_special_tokens, plain
        try:
            with _as_unreadable():
                return [encoded.ids for encoded in encode_batch(texts, add_special_tokens=False)]
        finally:
            backend.encode_special_tokens = before

    def _encode_mixed(self, encodable: EncodableText) -> Encoded:
        if not self.tokenizer.is_fast:
            return self._encode_slow(encodable)
        with _as_unreadable():
            if self._reader is None or not set(self._reader[0]).isdisjoint(encodable.text):
                characters = unused([encodable.text], len(self.names.names))
                self._reader = characters, PlainReader(self.tokenizer, self.names.names, characters)
            return Encoded(*self._reader[1].read(encodable))

    def _encode_slow(self, encodable: EncodableText) -> Encoded:
        ids: list[int] = []
        end, trims = 0, False
        added = {token.content: token for token in self.tokenizer.added_tokens_decoder.values()}
        for start, stop in (*(encodable.special or ()), (len(encodable.text), len(encodable.text))):
            token = added.get(encodable.text[start:stop])
            piece = encodable.text[end:start].lstrip() if trims else encodable.text[end:start]
            trims = token is not None and token.rstrip
            if piece := piece.rstrip() if token is not None and token.lstrip else piece:
                plain = self.names.first(piece) is not None
                with _as_unreadable():
                    encoded = self.tokenizer(piece, add_special_tokens=False, split_special_tokens=plain, verbose=False)
                ids += encoded["input_ids"]
            if stop > start:
                ids.append(self.tokenizer.convert_tokens_to_ids(encodable.text[start:stop]))
            end = stop
        return Encoded(ids)

    def _without_bos(self, text: EncodableText, encoded: Encoded) -> Encoded:
        ids, spans = encoded.ids, encoded.spans
        if text.special is not None and not self._special.isdisjoint(ids):
            self._refuse_name_as_token(text, ids)
        start = 0
        while ids[start : start + 1] == self.bos != []:
            start += 1
        return Encoded(ids[start:], spans and spans[start:]) if start else encoded

    def _refuse_name_as_token(self, text: EncodableText, ids: list[int]) -> None:
        """Refuse a text if the name of a special token is also an ordinary word of the tokenizer."""
        named = Counter(text.text[start:end] for start, end in self.names.spans(text.text))
        named.subtract(text.text[start:end] for start, end in text.special or ())
        for name in (name for name, count in named.items() if count > 0):
            tokens = sum(text.text[start:end] == name for start, end in text.special or ())
            if ids.count(self.tokenizer.convert_tokens_to_ids(name)) > tokens and name != self.tokenizer.unk_token:
                raise Unreadable(f"it encodes {name!r} as a special token in every text")

    @cached_property
    def _added(self) -> set[int]:
        return {*self.tokenizer.added_tokens_decoder, *self.tokenizer.all_special_ids}

    @cached_property
    def _special(self) -> set[int]:
        return set(self.tokenizer.convert_tokens_to_ids(self.names.names))


def _parts_of(texts: list[str]) -> Iterator[list[str]]:
    """Yield the texts in order, as many at a time as have `TOGETHER` characters, or one that is longer."""
    part: list[str] = []
    size = 0
    for text in texts:
        if part and size + len(text) > TOGETHER:
            yield part
            part, size = [], 0
        part.append(text)
        size += len(text)
    if part:
        yield part


def common_prefix_length(lists: Sequence[Sequence[Any]]) -> int:
    """Return the length of the longest common prefix of lists of ids, or of texts.

    Applied to a prompt, and to the prompt with each of its responses, it is the prompt end: no token that depends on a
    response counts as prompt.

    >>> common_prefix_length([[5, 6, 7], [5, 6, 8, 9], [5, 6, 7, 9]])
    2
    """
    first, end = lists[0], min(map(len, lists))

    def agree(length: int) -> bool:
        return all(ids[:length] == first[:length] for ids in lists[1:])

    if agree(end):
        return end
    same = 0
    while end - same > 1:
        middle = (same + end) // 2
        same, end = (middle, end) if agree(middle) else (same, middle)
    return same


def tokenizer_state(tokenizer: Any) -> Any:
    """Return everything that affects how a tokenizer encodes a text, except its chat template, as JSON values."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        added = sorted((id, repr(token)) for id, token in tokenizer.added_tokens_decoder.items())
        plain = {name: value for name, value in tokenizer.init_kwargs.items() if isinstance(value, bool | int | None)}
        merges = sorted(map(str, getattr(tokenizer, "bpe_ranks", {}).items()))
        return [type(tokenizer).__name__, sorted(tokenizer.get_vocab().items()), added, sorted(plain.items()), merges]
    # The padding and truncation settings that an earlier call may have left behind are not included.
    return {**json.loads(backend.to_str()), "truncation": None, "padding": None}
