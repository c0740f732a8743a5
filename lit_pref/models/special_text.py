"""Finds names of special tokens inside texts, and encodes them as plain characters."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from tokenizers import AddedToken, Tokenizer

Span = tuple[int, int]
"""A range of characters in a text, the end excluded."""
PRIVATE = range(0xF0000, 0x10FFFD)
"""Private-use code points, which texts rarely contain."""
PRIVATE_CHARACTER = re.compile(f"[{chr(PRIVATE.start)}-{chr(PRIVATE.stop - 1)}]")


@dataclass(frozen=True)
class EncodableText:
    """A text, and which of its characters are special tokens.

    `special`: character spans to encode as special tokens; the same strings elsewhere are encoded as plain text. None:
    every occurrence is a special token.
    """

    text: str
    special: tuple[Span, ...] | None = None

    def upto(self, end: int) -> "EncodableText":
        """Return the text's first `end` characters, with their special tokens."""
        special = None if self.special is None else tuple(span for span in self.special if span[1] <= end)
        return replace(self, text=self.text[:end], special=special)


class SpecialNames:
    """Finds the names of a tokenizer's special tokens in texts."""

    def __init__(self, tokenizer: Any) -> None:
        names = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        self.names = sorted({*names, *tokenizer.all_special_tokens} - {""}, key=lambda name: (-len(name), name))
        self._pattern = re.compile("|".join(map(re.escape, self.names)))
        self._firsts = {name[0] for name in self.names}

    def first(self, text: str) -> str | None:
        """Return the first name in a text, or None."""
        match = self._pattern.search(text) if self._may_hold(text) else None
        return match.group() if match else None

    def spans(self, text: str) -> tuple[Span, ...]:
        """Return the span of every name in a text."""
        return tuple(match.span() for match in self._pattern.finditer(text)) if self._may_hold(text) else ()

    def _may_hold(self, text: str) -> bool:
        # Most texts do not even contain the first character, and looking for that is twenty times as fast.
        return any(first in text for first in self._firsts)

    def marked(self, text: str, marks: str) -> str:
        """Return the text with one mark before and one after every name."""
        return self._pattern.sub(lambda match: marks[0] + match.group() + marks[1], text)

    def unmarked(self, text: str, marks: str) -> EncodableText:
        """Remove the marks from a text: a name between marks becomes plain text, any other is a special token."""
        plain: list[str] = []
        special: list[Span] = []
        length = 0
        # A template that splits texts can leave a mark without its partner; a name also ends at such a mark.
        for piece in re.split(f"({marks[0]}[^{marks}]*{marks[1]})|[{marks}]", text):
            if not piece:
                continue
            if piece[0] == marks[0]:
                piece = piece[1:-1]
            else:
                special += [(length + start, length + end) for start, end in self.spans(piece)]
            plain.append(piece)
            length += len(piece)
        return EncodableText("".join(plain), tuple(special))


def unused(texts: Sequence[str], number: int) -> str:
    """Return `number` consecutive private-use characters that occur in none of the texts.

    Raises:
        ValueError: no such characters are left.

    >>> [hex(ord(character)) for character in unused(["a", "\U000f0001"], 2)]
    ['0xf0002', '0xf0003']
    """
    used = {ord(character) for text in texts for character in PRIVATE_CHARACTER.findall(text)}
    start = PRIVATE.start
    for taken in [*sorted(used), PRIVATE.stop]:
        if taken - start >= number:
            return "".join(map(chr, range(start, start + number)))
        start = taken + 1
    raise ValueError("it contains every private-use character of Unicode")


class PlainReader:
    """A copy of a fast tokenizer in which special tokens have aliases, so that their names in a text are plain text.

    An alias is a private-use character, repeated to the length of the name, so that character offsets stay the same.
    Texts are encoded whole, so that context (the beginning of a text, neighbouring characters) has its usual effect.

    Args:
        tokenizer: a fast tokenizer, which is not changed.
        names: the names of its special tokens.
        characters: one character per name, which no text may contain.
    """

    def __init__(self, tokenizer: Any, names: Sequence[str], characters: str) -> None:
        self._backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self._backend.no_truncation()
        self._backend.no_padding()
        self._backend.encode_special_tokens = True
        self._aliases = {name: character * len(name) for name, character in zip(names, characters, strict=True)}
        flags = {token.content: token for token in tokenizer.added_tokens_decoder.values()}
        self._backend.add_tokens([_renamed(flags.get(name), alias) for name, alias in self._aliases.items()])
        self._ids = {
            self._backend.token_to_id(alias): tokenizer.convert_tokens_to_ids(name)
            for name, alias in self._aliases.items()
        }

    def read(self, encodable: EncodableText) -> tuple[list[int], list[Span]]:
        """Return the ids of a text, and the span of each."""
        text, end, pieces = encodable.text, 0, []
        for start, stop in encodable.special or ():
            pieces += [text[end:start], self._aliases[text[start:stop]]]
            end = stop
        encoding = self._backend.encode("".join([*pieces, text[end:]]), add_special_tokens=False)
        return [self._ids.get(token, token) for token in encoding.ids], encoding.offsets


def _renamed(token: AddedToken | None, name: str) -> AddedToken:
    if token is None:
        return AddedToken(name, special=False, normalized=False)
    return AddedToken(
        name,
        single_word=token.single_word,
        lstrip=token.lstrip,
        rstrip=token.rstrip,
        normalized=False,
        special=False,
    )
