"""Pairs as the policy reads them, with the trained tokens marked."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from lit_pref.check.statistics import Pairs, evenly
from lit_pref.pairs import PreferencePair

Kind = Literal["prompt", "boundary", "trained", "end", "left out"]
PROMPT_HEAD, PROMPT_TAIL, RESPONSE_HEAD, RESPONSE_TAIL = 8, 24, 48, 8
"""The number of tokens that are shown of a long prompt or response, at its start and its end."""


@dataclass(frozen=True)
class PairPieces:
    """A pair whose `chosen` and `rejected` are pieces of text, each with its kind.

    The piece of kind `boundary` is the first trained token, `end` is the last one if it is an eos or end-of-turn token,
    and `left out` gives the number of tokens that are not shown.
    """

    id: str
    place: str
    margin: float | None
    chosen: Sequence[tuple[Kind, str]]
    rejected: Sequence[tuple[Kind, str]]


def render(pair: PreferencePair, tokenizer: Any, ends: set[int]) -> PairPieces:
    """Split both sides of a pair into pieces.

    Args:
        pair: the token ids.
        tokenizer: decodes them.
        ends: ids of eos and end-of-turn tokens.
    """
    sides = [_side(pair.prompt, ids, tokenizer, ends) if ids else [] for ids in (pair.chosen, pair.rejected)]
    return PairPieces(pair.id, pair.place, pair.margin, *sides)


def examples(pairs: Pairs, number: int = 3) -> list[PreferencePair]:
    """Choose pairs from the smallest to the largest margin, among the shorter half of all pairs."""
    if not len(pairs):
        return []
    total = pairs.lengths.sum(1)
    short = np.flatnonzero(total <= np.median(total))
    margin = pairs.column("margin").astype(float)[short]
    order = np.argsort(np.nan_to_num(margin), kind="stable")
    return [pairs[int(short[order[k]])] for k in evenly(len(order), number)]


def _side(prompt: list[int], response: list[int], tokenizer: Any, ends: set[int]) -> list[tuple[Kind, str]]:
    def text(ids: Sequence[int]) -> str:
        return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))

    # Both ends of the prompt are shown: users look for the bos token and for the template's generation prompt.
    shortened = len(prompt) > PROMPT_HEAD + PROMPT_TAIL
    before, shown = (prompt[:-PROMPT_TAIL], prompt[-PROMPT_TAIL:]) if shortened else ([], prompt)
    pieces: list[tuple[Kind, str]] = []
    if before:
        pieces.append(("prompt", text(before[:PROMPT_HEAD])))
        pieces += [("left out", f"[{len(before) - PROMPT_HEAD} tokens]")] if len(before) > PROMPT_HEAD else []
    pieces.append(("prompt", text(shown)))
    ended = response[-1] in ends
    body = response[: len(response) - ended]
    pieces += [("boundary", text(body[:1]))] if body else []
    body = body[1:]
    if len(body) > RESPONSE_HEAD + RESPONSE_TAIL:
        hidden = f"[{len(body) - RESPONSE_HEAD - RESPONSE_TAIL} tokens]"
        pieces += [("trained", text(body[:RESPONSE_HEAD])), ("left out", hidden)]
        pieces.append(("trained", text(body[-RESPONSE_TAIL:])))
    elif body:
        pieces.append(("trained", text(body)))
    return [*pieces, ("end", text(response[-1:]))] if ended else pieces
