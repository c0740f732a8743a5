"""Encodes the beginnings of long texts, with the ids that the whole texts would have there."""

import json
import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from lit_pref.models.encoding import Encoded, Encoding
from lit_pref.models.special_text import EncodableText

CHARACTERS = 8
"""Characters that are encoded for each id that is needed; a text must have twice as many to be cut."""
REACH = 4096
"""Characters in which a safe place is looked for."""
_PLACE = re.compile("[A-Za-z](?= )")
_SPANNING = re.compile("[^ ▁Ġ][ ▁Ġ]")
"""A blank after another character, in the notations of vocabularies."""
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_PATTERNS = {_GPT2, _LLAMA3, _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")}
"""Patterns that end a piece between a letter and a blank, and do not look further there."""


class Beginnings:
    """Encodes texts of which only the first ids are needed; the end of a long text is not encoded.

    A text is cut between an ASCII letter and a blank, where the tokenizer splits it before it merges anything, or where
    no entry of the vocabulary could lie: the ids before such a place do not depend on what follows. Tokenizers other
    than fast BPE, and those with parts that are not known to keep this, encode whole texts.

    Args:
        encoding: encoding of the tokenizer.
    """

    def __init__(self, encoding: Encoding) -> None:
        self._encoding = encoding

    def encode(self, texts: Sequence[EncodableText], needed: Sequence[int]) -> list[Encoded]:
        """Return the ids of texts: all of them, or more than `needed` of them.

        Raises:
            Unreadable: see `Encoding.encode`.
        """
        cut = [self._cut(text, number) for text, number in zip(texts, needed, strict=True)]
        encoded = self._encoding.encode(cut)
        for k, number in enumerate(needed):
            if cut[k] is not texts[k] and len(encoded[k].ids) <= number:  # long tokens: the beginning was too short
                encoded[k] = self._encoding.encode([texts[k]])[0]
        return encoded

    def _cut(self, text: EncodableText, needed: int) -> EncodableText:
        """Return the beginning of a text that is long enough for the needed ids, or the whole text."""
        start = CHARACTERS * needed
        if len(text.text) <= 2 * start or not self._is_safe:
            return text
        place = _PLACE.search(text.text, start, start + REACH)
        if place is None or any(first < place.end() < end for first, end in text.special or ()):
            return text
        names = self._encoding.names.spans(text.text[place.end() :])
        if text.special is not None and any((s + place.end(), e + place.end()) not in text.special for s, e in names):
            return text  # a name of a special token within a text can be refused wherever it stands
        return text.upto(place.end())

    @cached_property
    def _is_safe(self) -> bool:
        """Whether ids never depend on what follows a letter and a blank."""
        tokenizer = self._encoding.tokenizer
        if not tokenizer.is_fast:
            return False
        state = json.loads(tokenizer.backend_tokenizer.to_str())
        model = state["model"]
        if model["type"] != "BPE" or any(
            map(model.get, ("dropout", "continuing_subword_prefix", "end_of_word_suffix"))
        ):
            return False
        added = {*self._encoding.names.names, *(token.content for token in tokenizer.added_tokens_decoder.values())}
        if any(map(_SPANNING.search, added)) or not all(map(_keeps_blanks, _parts(state["normalizer"]))):
            return False
        splits = _splits(_parts(state["pre_tokenizer"]), blank="▁" if state["normalizer"] else " ")
        return splits is True or (splits is False and not any(map(_SPANNING.search, model["vocab"])))


def _parts(component: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Return the parts of a normalizer or pre-tokenizer in order."""
    if component is None or component["type"] != "Sequence":
        return [] if component is None else [component]
    parts = component.get("normalizers") or component.get("pretokenizers") or []
    return [inner for part in parts for inner in _parts(part)]


def _keeps_blanks(normalizer: dict[str, Any]) -> bool:
    """Return whether a normalizer treats the text before a blank as if nothing followed."""
    kind = normalizer["type"]
    if kind == "Replace":
        return normalizer["pattern"] == {"String": " "} and normalizer["content"] == "▁"
    return kind in ("NFC", "NFD", "NFKC", "NFKD", "Lowercase", "Prepend")


def _splits(pre_tokenizers: list[dict[str, Any]], blank: str) -> bool | None:
    """Return whether pre-tokenizers split between a letter and a blank; None if one of them is not known.

    Args:
        pre_tokenizers: the parts in order.
        blank: the character that they may see in place of a blank.
    """
    splits = in_bytes = False
    for part in pre_tokenizers:
        kind = part["type"]
        if kind == "ByteLevel":  # writes a blank as a letter
            splits |= bool(part.get("use_regex", True)) and not in_bytes
            in_bytes = True
        elif kind == "Metaspace":
            splits |= bool(part.get("split", True)) and part["replacement"] == "▁" and not in_bytes
            blank = "▁"
        elif kind == "Split":
            if part["pattern"].get("Regex") not in _PATTERNS or part["behavior"] != "Isolated" or part["invert"]:
                return None
            splits |= not in_bytes
        elif kind in ("WhitespaceSplit", "Whitespace", "BertPreTokenizer"):
            splits |= blank == " " and not in_bytes
        elif kind != "Digits":
            return None
    return splits
