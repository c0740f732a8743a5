"""Rules that know nothing of quality, and how often they are right."""

from dataclasses import dataclass

import numpy as np

from lit_pref.commands.check.numbers import ENOUGH, Array, Pairs, share


@dataclass(frozen=True)
class Shortcut:
    """A rule that never reads a text's meaning.

    Args:
        rule: in words.
        accuracy: over the pairs that it applies to, ties in strength left out.
        pairs: that it applies to.
        share: of all pairs without a tie.
        prompts: share of the prompts that it applies to.
    """

    rule: str
    accuracy: float
    pairs: int
    share: float
    prompts: float


def shortcuts(pairs: Pairs) -> list[Shortcut]:
    """The rules that this data has what they need for; of two opposite ones the one that is right more often."""
    decided = ~pairs.column("tie").astype(bool)
    if not decided.any():
        return []
    prompts = np.unique(pairs.column("prompt_id").astype(str), return_inverse=True)[1]
    number = len(np.unique(prompts[decided]))

    def rule(wins: Array, loses: Array, words: str, opposite: str) -> list[Shortcut]:
        applies = decided & (wins | loses)
        count = int(applies.sum())
        if not count:
            return []
        accuracy, reach = share(wins[applies]), len(np.unique(prompts[applies])) / number
        words, accuracy = (words, accuracy) if accuracy >= 0.5 else (opposite, 1 - accuracy)
        return [Shortcut(words, accuracy, count, count / int(decided.sum()), reach)]

    difference = pairs.lengths[:, 1] - pairs.lengths[:, 2]
    two_sided = pairs.lengths[:, 2] > 0
    longer = rule(
        (difference > 0) & two_sided,
        (difference < 0) & two_sided,
        "the longer response wins",
        "the shorter response wins",
    )
    first = pairs.column("chosen_first").astype(float)
    found = longer + rule(first == 1, first == 0, "the first in the source wins", "the second in the source wins")
    for name, wins, loses in _sources(pairs, decided):
        found += rule(wins, loses, f"a response of {name} wins", f"a response of {name} loses")
    return found


def _sources(pairs: Pairs, decided: Array) -> list[tuple[str, Array, Array]]:
    """The most frequent writer of responses, and up to three others that nearly always win or lose."""
    sides = [pairs.column(f"{side}_source") for side in ("chosen", "rejected")]
    known = np.array([a is not None and b is not None for a, b in zip(*sides, strict=True)], bool)
    if not known.any():
        return []
    names, codes = np.unique(np.concatenate([side[known].astype(str) for side in sides]), return_inverse=True)
    won, lost = np.full(len(known), -1), np.full(len(known), -1)
    won[known], lost[known] = np.split(codes, 2)
    counted = decided & known & (won != lost)
    wins, losses = (np.bincount(side[counted], minlength=len(names)) for side in (won, lost))
    total = wins + losses
    sided = np.abs(wins / np.maximum(total, 1) - 0.5) >= 0.15
    order = np.argsort(-total, kind="stable")
    chosen = [order[0], *[k for k in order[1:] if sided[k] and total[k] >= ENOUGH][:3]]
    return [(str(names[k]), (won == k) & (lost != k), (lost == k) & (won != k)) for k in chosen if total[k]]
