"""The names of special tokens inside texts: found, and read as the characters that they are."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from tokenizers import AddedToken, Tokenizer

Place = tuple[int, int]
"""Where something stands in a text: its first character, and the one after its last."""
PRIVATE = range(0xF0000, 0x10FFFD)
"""Code points that mean nothing to anyone; texts seldom hold them."""
PRIVATE_CHARACTER = re.compile(f"[{chr(PRIVATE.start)}-{chr(PRIVATE.stop - 1)}]")


@dataclass(frozen=True)
class EncodableText:
    """A text as a tokenizer is to read it.

    `special` says where the names of special tokens stand that are those tokens: any other is the characters that it
    is. None: wherever one stands, it is the token.
    """

    text: str
    special: tuple[Place, ...] | None = None

    def upto(self, end: int) -> "EncodableText":
        """Its first `end` characters."""
        special = None if self.special is None else tuple(place for place in self.special if place[1] <= end)
        return replace(self, text=self.text[:end], special=special)


class SpecialNames:
    """The names of a tokenizer's special tokens."""

    def __init__(self, tokenizer: Any) -> None:
        names = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        self.names = sorted({*names, *tokenizer.all_special_tokens} - {""}, key=lambda name: (-len(name), name))
        self._pattern = re.compile("|".join(map(re.escape, self.names)))
        self._firsts = {name[0] for name in self.names}

    def first(self, text: str) -> str | None:
        """The first name in a text."""
        found = self._pattern.search(text) if self._may_hold(text) else None
        return found.group() if found else None

    def places(self, text: str) -> tuple[Place, ...]:
        """Where names stand in a text."""
        return tuple(found.span() for found in self._pattern.finditer(text)) if self._may_hold(text) else ()

    def _may_hold(self, text: str) -> bool:
        # Most texts lack even the first character, which is found twenty times as fast.
        return any(first in text for first in self._firsts)

    def marked(self, text: str, marks: str) -> str:
        """The text with one mark before and one after every name."""
        return self._pattern.sub(lambda found: marks[0] + found.group() + marks[1], text)

    def unmarked(self, text: str, marks: str) -> EncodableText:
        """A marked text without its marks: a name between marks is its characters, any other is the token."""
        plain: list[str] = []
        special: list[Place] = []
        length = 0
        # A template that splits texts can leave a lone mark; names then stop there too.
        for piece in re.split(f"({marks[0]}[^{marks}]*{marks[1]})|[{marks}]", text):
            if not piece:
                continue
            if piece[0] == marks[0]:
                piece = piece[1:-1]
            else:
                special += [(length + start, length + end) for start, end in self.places(piece)]
            plain.append(piece)
            length += len(piece)
        return EncodableText("".join(plain), tuple(special))


def unused(texts: Sequence[str], number: int) -> str:
    """`number` private-use characters in a row that occur in none of the texts.

    Raises:
        ValueError: there are none.

    >>> [hex(ord(character)) for character in unused(["a", "\U000f0001"], 2)]
    ['0xf0002', '0xf0003']
    """
    used = {ord(character) for text in texts for character in PRIVATE_CHARACTER.findall(text)}
    start = PRIVATE.start
    for taken in [*sorted(used), PRIVATE.stop]:
        if taken - start >= number:
            return "".join(map(chr, range(start, start + number)))
        start = taken + 1
    raise ValueError("it holds every private-use character of Unicode")


class PlainReader:
    """A copy of a fast tokenizer in which special tokens have other names, so that a text's own are characters.

    The other names are private-use characters, as many of them as the name has: places in the text stay what they are.
    Texts are read whole, so that what depends on a text's beginning or on neighbours is as it always is.

    Args:
        tokenizer: a fast one; it is left as it is.
        names: of its special tokens.
        characters: one for each name, which no text may hold.
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

    def read(self, written: EncodableText) -> tuple[list[int], list[Place]]:
        """The ids of a text, and where in it each stands."""
        text, end, pieces = written.text, 0, []
        for start, stop in written.special or ():
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
