"""Counts over prepared pairs: prompts, repeated pairs, overlap of the splits, and bos and eos tokens."""

import math
from collections import Counter
from collections.abc import Container
from dataclasses import dataclass
from typing import Any

import numpy as np

from lit_pref.check.statistics import Array, Pairs, evenly, share
from lit_pref.data.prepared.splits import training_pairs_among
from lit_pref.pairs import PreferencePair

CANDIDATES = 5000
"""The most pairs whose tokens are compared in the search for repeated pairs."""


@dataclass(frozen=True)
class Prompts:
    """The number of `prompts`, the `most` pairs of one prompt, and the share of pairs whose prompt is `repeated`."""

    prompts: int
    most: int
    repeated: float


def prompts(ids: Array) -> Prompts:
    """Count how the pairs are distributed over prompts.

    >>> prompts(np.array(["a", "a", "b", "c"]))
    Prompts(prompts=3, most=2, repeated=0.5)
    """
    if not len(ids):
        return Prompts(0, 0, 0.0)
    counts = np.unique(ids.astype(str), return_counts=True)[1]
    return Prompts(len(counts), int(counts.max()), float(counts[counts > 1].sum() / len(ids)))


@dataclass(frozen=True)
class Repeated:
    """Counts of repeated pairs.

    Args:
        same: pairs that repeat an earlier pair.
        swapped: pairs that repeat an earlier pair with chosen and rejected swapped, so that the labels contradict.
        complete: whether all candidates were compared.
    """

    same: int
    swapped: int
    complete: bool


def repeated(pairs: Pairs) -> Repeated:
    """Count pairs with the same tokens; only pairs with the same prompt and lengths are loaded and compared."""
    lengths = pairs.lengths.astype(np.int64)
    prompt = np.unique(pairs.column("prompt_id").astype(str), return_inverse=True)[1].astype(np.int64)
    sides = np.sort(lengths[:, 1:], axis=1)
    keys = np.column_stack([prompt, sides])
    _, group, counts = np.unique(keys, axis=0, return_inverse=True, return_counts=True)
    candidates = np.flatnonzero(counts[group.reshape(-1)] > 1)
    seen: set[tuple[Any, ...]] = set()
    same = swapped = 0
    for k in candidates[:CANDIDATES].tolist():
        pair = pairs[k]
        chosen, rejected = tuple(pair.chosen), tuple(pair.rejected or ())
        same += (prompt[k], chosen, rejected) in seen
        swapped += (prompt[k], rejected, chosen) in seen
        seen.add((prompt[k], chosen, rejected))
    return Repeated(same, swapped, len(candidates) <= CANDIDATES)


@dataclass(frozen=True)
class Overlap:
    """Counts of validation pairs: `shared` have a training prompt, `same` are a training pair."""

    shared: int
    same: int
    pairs: int


def overlap(train: Pairs, val: Pairs) -> Overlap:
    """Count the validation pairs that share their prompt or all their texts with a training pair."""
    known = np.unique(train.column("prompt_group").astype(str))
    shared = np.isin(val.column("prompt_group").astype(str), known)
    return Overlap(int(shared.sum()), int(training_pairs_among(val, [train]).sum()), len(val))


@dataclass(frozen=True)
class Tokens:
    """Counts of bos and eos tokens in a sample of pairs.

    Args:
        pairs: the size of the sample.
        begins_once: the share of pairs whose prompt starts with the bos token; None if the tokenizer has none.
        further_begins: the number of bos tokens that double the first one or open a response. Others are the
            template's own: some write one before every turn.
        ended: the share of complete responses that end with an eos or end-of-turn token.
        ends: the shares of complete responses by the id of that token, the largest first.
        cut_ended: the number of truncated responses that end with one.
    """

    pairs: int
    begins_once: float | None
    further_begins: int
    ended: float
    ends: dict[int, float]
    cut_ended: int


def tokens(pairs: Pairs, bos: int | None, ends: Container[int], most: int = 1000) -> Tokens:
    """Count bos and eos tokens in up to `most` evenly spaced pairs.

    Args:
        pairs: the pairs of one split.
        bos: id of the bos token; None if the tokenizer has none.
        ends: ids of eos and end-of-turn tokens.
        most: the largest sample.
    """
    sample: list[PreferencePair] = [pairs[k] for k in evenly(len(pairs), most)]
    starts = [pair.prompt[:1] == [bos] for pair in sample]
    openings = [[*pair.prompt[1:2], *pair.chosen[:1], *(pair.rejected or ())[:1]] for pair in sample]
    sides = [(pair.chosen, pair.text.chosen_complete) for pair in sample]
    sides += [(pair.rejected, pair.text.rejected_complete) for pair in sample if pair.rejected is not None]
    last = Counter(response[-1] for response, complete in sides if complete)
    seen = {end: count for end, count in last.most_common() if end in ends}
    ended = sum(seen.values()) / last.total() if last else math.nan
    cut = sum(response[-1] in ends for response, complete in sides if not complete)
    begun = None if bos is None else share(np.array(starts))
    further = 0 if bos is None else sum(opening.count(bos) for opening in openings)
    return Tokens(len(sample), begun, further, ended, {end: n / last.total() for end, n in seen.items()}, cut)
