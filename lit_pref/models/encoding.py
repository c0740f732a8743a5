"""What every tokenisation of a pair shares: one begin token, the boundary before the responses, the end of a turn."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from lit_pref.models.chat import TEMPLATE_ERRORS as TEMPLATE_ERRORS
from lit_pref.models.chat import Chat
from lit_pref.models.special_text import EncodableText, Place, PlainReader, SpecialNames, unused


class Unreadable(Exception):
    """A text that the tokenizer cannot read; says why."""


@contextmanager
def _readable() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # the tokenizers library raises nothing more particular
        raise Unreadable(str(error)) from error


@dataclass(frozen=True)
class Encoded:
    """Ids of a text, and where in it each stands, where that was asked for."""

    ids: list[int]
    places: list[Place] | None = None


class Encoding:
    """How texts become ids under one tokenizer.

    Args:
        tokenizer: with an end token.
        plain: read the names of special tokens inside texts and messages as the characters that they are.
    """

    def __init__(self, tokenizer: Any, plain: bool = True) -> None:
        self.tokenizer = tokenizer
        self.plain = plain
        self.begin: list[int] = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        self.end: int = tokenizer.eos_token_id
        self.names = SpecialNames(tokenizer)
        self._reader: tuple[str, PlainReader] | None = None

    @cached_property
    def chat(self) -> Chat:
        """The tokenizer's chat template; only where it has one."""
        return Chat(self.tokenizer, self.names, self.plain)

    def written(self, text: str) -> EncodableText:
        """A text without a chat template."""
        return EncodableText(text, () if self.plain else None)

    def followed(self, written: EncodableText, text: str) -> EncodableText:
        """A text and more of it, in which no name is a special token."""
        special = written.special
        if special is None and self.names.first(text):
            special = self.names.places(written.text)
        return EncodableText(written.text + text, special)

    def encode(self, texts: Sequence[EncodableText], places: bool = False) -> list[Encoded]:
        """Ids without a begin token, whoever would have written it: tokenizer or template.

        Args:
            texts: read in one go, which is much faster than one by one.
            places: say where in its text each token stands; takes a fast tokenizer.

        Raises:
            Unreadable: one of them cannot be read.
        """
        found: dict[int, Encoded] = {}
        for plain in (False, True):
            which = [k for k, text in enumerate(texts) if text.special == (() if plain else None)]
            read = self._read([texts[k].text for k in which], plain, places)
            found.update(zip(which, read, strict=True))
        return [self._begun(text, found.get(k) or self._read_mixed(text)) for k, text in enumerate(texts)]

    def ids(self, text: EncodableText) -> list[int]:
        """Ids of one text, without a begin token.

        Raises:
            Unreadable: the tokenizer cannot read it.
        """
        return self.encode([text])[0].ids

    def ended(self, ids: list[int], text: str, response: str, place: Place | None = None) -> list[int]:
        """The ids of a response with an end: the template's own, else the tokenizer's end token.

        Args:
            ids: of `text`, or the last of them.
            text: prompt and response.
            response: as it was given.
            place: of the response in `text`, where that is known.
        """
        # The template's own end is a token that a model can learn to stop at, and not the response's last word.
        own = text.rstrip().endswith(response.rstrip()) if place is None else len(text.rstrip()) <= place[1]
        return ids if ids[-1] in self._added and not own else [*ids, self.end]

    def _read(self, texts: list[str], plain: bool, places: bool) -> list[Encoded]:
        if not texts:
            return []
        if plain and not self.tokenizer.is_fast:
            # Tokenizers written in Python would leave ordinary added words apart too.
            return [self._read_slow(EncodableText(text, ())) for text in texts]
        if self.tokenizer.is_fast and not places:
            return [Encoded(ids, None) for ids in self._read_fast(texts, plain)]
        with _readable():
            read = self.tokenizer(
                texts,
                add_special_tokens=False,
                split_special_tokens=plain,
                return_attention_mask=False,
                return_token_type_ids=False,
                return_offsets_mapping=places,
                verbose=False,
            )
        offsets = read["offset_mapping"] if places else [None] * len(texts)
        return [Encoded(ids, where) for ids, where in zip(read["input_ids"], offsets, strict=True)]

    def _read_fast(self, texts: list[str], plain: bool) -> list[list[int]]:
        """What `tokenizer(texts)` gives, without the masks that it makes beside the ids."""
        backend = self.tokenizer.backend_tokenizer
        # Left behind by whoever padded or truncated last.
        backend.no_padding()
        backend.no_truncation()
        before, backend.encode_special_tokens = backend.encode_special_tokens, plain
        try:
            with _readable():
                return [read.ids for read in backend.encode_batch(texts, add_special_tokens=False)]
        finally:
            backend.encode_special_tokens = before

    def _read_mixed(self, written: EncodableText) -> Encoded:
        if not self.tokenizer.is_fast:
            return self._read_slow(written)
        with _readable():
            if self._reader is None or not set(self._reader[0]).isdisjoint(written.text):
                characters = unused([written.text], len(self.names.names))
                self._reader = characters, PlainReader(self.tokenizer, self.names.names, characters)
            return Encoded(*self._reader[1].read(written))

    def _read_slow(self, written: EncodableText) -> Encoded:
        ids: list[int] = []
        end, trims = 0, False
        added = {token.content: token for token in self.tokenizer.added_tokens_decoder.values()}
        for start, stop in (*(written.special or ()), (len(written.text), len(written.text))):
            token = added.get(written.text[start:stop])
            piece = written.text[end:start].lstrip() if trims else written.text[end:start]
            trims = token is not None and token.rstrip
            if piece := piece.rstrip() if token is not None and token.lstrip else piece:
                plain = self.names.first(piece) is not None
                with _readable():
                    read = self.tokenizer(piece, add_special_tokens=False, split_special_tokens=plain, verbose=False)
                ids += read["input_ids"]
            if stop > start:
                ids.append(self.tokenizer.convert_tokens_to_ids(written.text[start:stop]))
            end = stop
        return Encoded(ids)

    def _begun(self, text: EncodableText, encoded: Encoded) -> Encoded:
        ids, places = encoded.ids, encoded.places
        if text.special is not None and not self._special.isdisjoint(ids):
            self._refuse_read_as_token(text, ids)
        start = 0
        while ids[start : start + 1] == self.begin != []:
            start += 1
        return Encoded(ids[start:], places and places[start:]) if start else encoded

    def _refuse_read_as_token(self, text: EncodableText, ids: list[int]) -> None:
        """A vocabulary of words can hold the name of a special token as a word."""
        named = Counter(text.text[start:end] for start, end in self.names.places(text.text))
        named.subtract(text.text[start:end] for start, end in text.special or ())
        for name in (name for name, count in named.items() if count > 0):
            tokens = sum(text.text[start:end] == name for start, end in text.special or ())
            if ids.count(self.tokenizer.convert_tokens_to_ids(name)) > tokens and name != self.tokenizer.unk_token:
                raise Unreadable(f"it reads {name!r} as its special token wherever it stands")

    @cached_property
    def _added(self) -> set[int]:
        return {*self.tokenizer.added_tokens_decoder, *self.tokenizer.all_special_ids}

    @cached_property
    def _special(self) -> set[int]:
        return set(self.tokenizer.convert_tokens_to_ids(self.names.names))


def boundary(lists: Sequence[list[int]]) -> int:
    """The length of the longest common prefix of ids: of a prompt, and of the prompt with each of its responses.

    No token that depends on a response then counts as prompt.

    >>> boundary([[5, 6, 7], [5, 6, 8, 9], [5, 6, 7, 9]])
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
    """All that decides how a tokenizer reads a text, as JSON values; its chat template is not part of it."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        added = sorted((id, repr(token)) for id, token in tokenizer.added_tokens_decoder.items())
        plain = {name: value for name, value in tokenizer.init_kwargs.items() if isinstance(value, bool | int | None)}
        merges = sorted(map(str, getattr(tokenizer, "bpe_ranks", {}).items()))
        return [type(tokenizer).__name__, sorted(tokenizer.get_vocab().items()), added, sorted(plain.items()), merges]
    # Left behind by whoever padded or truncated last.
    return {**json.loads(backend.to_str()), "truncation": None, "padding": None}
