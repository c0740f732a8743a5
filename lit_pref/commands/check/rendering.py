"""Pairs as a model reads them, with the tokens marked that are trained on."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from lit_pref.commands.check.numbers import Pairs, evenly
from lit_pref.pairs import PreferencePair

Kind = Literal["prompt", "boundary", "trained", "end", "left out"]
BEGIN, PROMPT, HEAD, TAIL = 8, 24, 48, 8
"""Tokens that are shown: the first and the last of a prompt, the first and the last of a response."""


@dataclass(frozen=True)
class RenderedPair:
    """One pair; `chosen` and `rejected` are pieces of text with what they are.

    The `boundary` is the first token that is trained on, `end` the last one where it is an end token, and `left out`
    says how many tokens are not shown.
    """

    id: str
    place: str
    margin: float | None
    chosen: Sequence[tuple[Kind, str]]
    rejected: Sequence[tuple[Kind, str]]


def render(pair: PreferencePair, tokenizer: Any, ends: set[int]) -> RenderedPair:
    """A pair in pieces, both sides."""
    sides = [_side(pair.prompt, ids, tokenizer, ends) if ids else [] for ids in (pair.chosen, pair.rejected)]
    return RenderedPair(pair.id, pair.place, pair.margin, *sides)


def examples(pairs: Pairs, number: int = 3) -> list[PreferencePair]:
    """Pairs with the smallest, the middle and the largest margin, of the shorter half of all; without margins any."""
    if not len(pairs):
        return []
    total = pairs.lengths.sum(1)
    ordinary = np.flatnonzero(total <= np.median(total))
    margin = pairs.column("margin").astype(float)[ordinary]
    order = np.argsort(np.nan_to_num(margin), kind="stable")
    return [pairs[int(ordinary[order[k]])] for k in evenly(len(order), number)]


def _side(prompt: list[int], response: list[int], tokenizer: Any, ends: set[int]) -> list[tuple[Kind, str]]:
    def text(ids: Sequence[int]) -> str:
        return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))

    # The begin token and the template's head are what one looks for.
    before, shown = (prompt[:-PROMPT], prompt[-PROMPT:]) if len(prompt) > BEGIN + PROMPT else ([], prompt)
    pieces: list[tuple[Kind, str]] = []
    if before:
        pieces.append(("prompt", text(before[:BEGIN])))
        pieces += [("left out", f"[{len(before) - BEGIN} tokens]")] if len(before) > BEGIN else []
    pieces.append(("prompt", text(shown)))
    ended = response[-1] in ends
    body = response[: len(response) - ended]
    pieces += [("boundary", text(body[:1]))] if body else []
    body = body[1:]
    if len(body) > HEAD + TAIL:
        hidden = f"[{len(body) - HEAD - TAIL} tokens]"
        pieces += [("trained", text(body[:HEAD])), ("left out", hidden), ("trained", text(body[-TAIL:]))]
    elif body:
        pieces.append(("trained", text(body)))
    return [*pieces, ("end", text(response[-1:]))] if ended else pieces
