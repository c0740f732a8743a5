"""Prompts, repeated pairs, and the tokens at the ends: counted over prepared pairs."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from lit_pref.commands.check.numbers import Array, Pairs, evenly, share
from lit_pref.pairs import PreferencePair
from lit_pref.response_key import response_key

CANDIDATES = 5000
"""The most pairs that are compared text by text when repeated ones are looked for."""


@dataclass(frozen=True)
class Prompts:
    """Counts: `most` pairs share one prompt; `repeated` is the share of pairs whose prompt another pair has too."""

    prompts: int
    most: int
    repeated: float


def prompts(ids: Array) -> Prompts:
    """How pairs are spread over prompts.

    >>> prompts(np.array(["a", "a", "b", "c"]))
    Prompts(prompts=3, most=2, repeated=0.5)
    """
    if not len(ids):
        return Prompts(0, 0, 0.0)
    counts = np.unique(ids.astype(str), return_counts=True)[1]
    return Prompts(len(counts), int(counts.max()), float(counts[counts > 1].sum() / len(ids)))


@dataclass(frozen=True)
class Repeated:
    """`same`: pairs that repeat an earlier one; `turned`: pairs whose two responses stand the other way round in an
    earlier one, so that the labels contradict each other; `complete` is False where not all could be compared."""

    same: int
    turned: int
    complete: bool


def repeated(pairs: Pairs) -> Repeated:
    """Pairs of the same ids; only those that agree in prompt and lengths are read."""
    lengths = pairs.lengths.astype(np.int64)
    prompt = np.unique(pairs.column("prompt_id").astype(str), return_inverse=True)[1].astype(np.int64)
    sides = np.sort(lengths[:, 1:], axis=1)
    keys = np.column_stack([prompt, sides])
    _, group, counts = np.unique(keys, axis=0, return_inverse=True, return_counts=True)
    candidates = np.flatnonzero(counts[group.reshape(-1)] > 1)
    seen: set[tuple[Any, ...]] = set()
    same = turned = 0
    for k in candidates[:CANDIDATES].tolist():
        pair = pairs[k]
        chosen, rejected = tuple(pair.chosen), tuple(pair.rejected or ())
        same += (prompt[k], chosen, rejected) in seen
        turned += (prompt[k], rejected, chosen) in seen
        seen.add((prompt[k], chosen, rejected))
    return Repeated(same, turned, len(candidates) <= CANDIDATES)


@dataclass(frozen=True)
class Overlap:
    """Validation pairs: `shared` have a prompt that is trained on, `same` are trained on as they are."""

    shared: int
    same: int
    pairs: int


def overlap(train: Pairs, val: Pairs) -> Overlap:
    """What validation pairs share with training pairs."""
    known = np.unique(train.column("prompt_id").astype(str))
    shared = np.isin(val.column("prompt_id").astype(str), known)
    # By their tokens: files number their rows as they like, so that an id says nothing.
    alike = [_alike(pairs) for pairs in (train, val)]
    candidates = np.flatnonzero(np.isin(alike[0], alike[1])), np.flatnonzero(np.isin(alike[1], alike[0]))
    trained = {_digests(train[int(k)]) for k in candidates[0]}
    same = sum(_digests(val[int(k)]) in trained for k in candidates[1])
    return Overlap(int(shared.sum()), same, len(val))


def _alike(pairs: Pairs) -> Array:
    """(pairs,) the prompt and the responses' lengths: pairs that are the same have the same."""
    named = zip(pairs.column("prompt_id"), pairs.lengths[:, 1:].tolist(), strict=True)
    return np.array([f"{prompt} {chosen} {rejected}" for prompt, (chosen, rejected) in named], dtype=str)


def _digests(pair: PreferencePair) -> tuple[bytes, bytes]:
    return response_key(pair.prompt, pair.chosen), response_key(pair.prompt, pair.rejected or ())


@dataclass(frozen=True)
class Tokens:
    """Of a sample of pairs.

    Args:
        pairs: looked at.
        begins_once: share whose prompt was not cut and has the begin token at its start and nowhere else; None where
            the tokenizer has none.
        further_begins: begin tokens elsewhere.
        ended: share of the whole responses that end in an end token.
        cut_ended: responses that were cut and end in one all the same.
    """

    pairs: int
    begins_once: float | None
    further_begins: int
    ended: float
    cut_ended: int


def tokens(pairs: Pairs, begin: int | None, ends: set[int], most: int = 1000) -> Tokens:
    """Begin and end tokens in up to `most` pairs, evenly over all."""
    sample: list[PreferencePair] = [pairs[k] for k in evenly(len(pairs), most)]
    starts = [pair.prompt[:1] == [begin] for pair in sample]
    ids = [[*pair.prompt[1:], *pair.chosen, *(pair.rejected or ())] for pair in sample]
    sides = [(pair.chosen, pair.text.chosen_complete) for pair in sample]
    sides += [(pair.rejected, pair.text.rejected_complete) for pair in sample if pair.rejected is not None]
    whole = [response[-1] in ends for response, complete in sides if complete]
    cut = sum(response[-1] in ends for response, complete in sides if not complete)
    begun = None if begin is None else share(np.array(starts))
    further = 0 if begin is None else sum(row.count(begin) for row in ids)
    return Tokens(len(sample), begun, further, share(np.array(whole)) if whole else math.nan, cut)
