"""A corruption of prompts, for objectives that compare a response under two prompts."""

import random
from dataclasses import dataclass

from lit_pref.pairs import PreferencePair


@dataclass(frozen=True)
class PromptCrop:
    """Keeps one contiguous piece of a prompt's tokens, drawn from the seed and the pair's id, and all special tokens.

    >>> from lit_pref.pairs import TruncatedText
    >>> text = TruncatedText("", "", "", True, True)
    >>> pair = PreferencePair("7", [1, *range(10, 30), 2], [5], [6], None, None, {}, None, text)
    >>> PromptCrop(0.2, 0.2, seed=0)(pair, special=frozenset({1, 2}))
    [1, 15, 16, 17, 18, 2]

    Args:
        smallest: the smallest share of the other tokens that is kept; at least one is.
        largest: the largest share.
        seed: of the draws.
    """

    smallest: float
    largest: float
    seed: int

    def __call__(self, pair: PreferencePair, special: frozenset[int]) -> list[int]:
        ordinary = [k for k, token in enumerate(pair.prompt) if token not in special]
        draw = random.Random(f"{self.seed}/{pair.id}")
        size = min(len(ordinary), max(1, round(draw.uniform(self.smallest, self.largest) * len(ordinary))))
        start = draw.randint(0, len(ordinary) - size)
        kept = {*range(len(pair.prompt))} - {*ordinary} | {*ordinary[start : start + size]}
        return [pair.prompt[k] for k in sorted(kept)]
