"""The training and validation pairs of a run, from the sources of its configuration."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lit_pref.data.checking.text_pair import CheckedPair
from lit_pref.data.prepared.normalisation import Normaliser, constants_for
from lit_pref.data.prepared.pair_view import PairView, PreparedPairs, SourcePairs
from lit_pref.data.prepared.preparation import Preparation
from lit_pref.data.sources.source import Source, check_source
from lit_pref.data.tokenizing.tokenization import Tokenization
from lit_pref.errors import UsageError, UserError
from lit_pref.pairs import PreferencePair
from lit_pref.response_key import response_key


def sources_of(given: str | Source | Sequence[str | Source], option: str) -> list[Source]:
    """Return the sources of `data.train` or `data.val`; their names are unique.

    Raises:
        UsageError: only some sources have a weight, or two sources have one name.
        UserError: a path does not exist.
    """
    listed = [given] if isinstance(given, str | Source) else list(given)
    sources = [Source(one) if isinstance(one, str) else one for one in listed]
    if not sources:
        raise UsageError(f"{option} is an empty list; name a file, a folder or a hub dataset.")
    for source in sources:
        check_source(source)
    twice = [name for name, count in Counter(source.label for source in sources).items() if count > 1]
    if twice:
        raise UsageError(
            f"{option}: two sources are called {twice[0]!r}, and names must be unique; give each a `name`."
        )
    _check_shares(sources, option)
    return sources


def _check_shares(sources: list[Source], option: str) -> None:
    weights = [source.weight for source in sources if source.weight is not None]
    if weights and len(weights) != len(sources):
        raise UsageError(f"{option}: only some sources have a `weight`; give it to all of them, or to none.")


class Splits(NamedTuple):
    """The training and validation pairs of a run."""

    train: PairView
    val: PairView


def open_splits(
    train: list[Source], val: list[Source] | None, preparation: Preparation, tokenization: Tokenization
) -> Splits:
    """Prepare the sources that are not yet prepared, and combine them.

    From a mixture, as many pairs are taken as the `weight`s allow without taking any twice, or `count` from each
    source; this applies to the training split and to a mixture of validation files. `split_seed` decides which pairs
    are taken. Normalisers are fitted on each source's training pairs; a validation file takes the normaliser of the
    training source of the same name, or of the only one.

    Raises:
        UserError: a source cannot be used or has fewer pairs than its `count`, or there is nothing to train on.
    """
    folders = [preparation.prepare(source, tokenization) for source in train]
    whole = [PreparedPairs(folder, "train") for folder in folders]
    as_group = len(train) > 1 and preparation.group_column is None
    normalisers = {}
    for source, pairs in zip(train, whole, strict=True):
        how = preparation.mapping_of(source).normalise
        margins = np.zeros(0) if how == "none" else pairs.column("margin")
        normalisers[source.label] = Normaliser.fit(how, margins, source.path)
    for source, pairs in zip(train, whole, strict=True):
        if not len(pairs):
            raise UserError(
                f"{source.path}: all pairs went to validation; lower data.val_fraction ({preparation.val_fraction:g})."
            )
    taken = _shares(train, whole, preparation.split_seed)

    def view(sources: list[Source], prepared: list[PreparedPairs], indices: list[NDArray[Any]]) -> PairView:
        parts = []
        for source, pairs, which in zip(sources, prepared, indices, strict=True):
            parts.append(SourcePairs(source.label, pairs, which, constants_for(source.label, normalisers), as_group))
        return PairView(parts)

    if val is None:
        held_out = [PreparedPairs(folder, "validation") for folder in folders]
        sources = train
    else:
        everything = replace(preparation, val_fraction=0.0)
        held_out = [PreparedPairs(everything.prepare(source, tokenization), "train") for source in val]
        _refuse_same(train, whole, val, held_out)
        sources = val
        as_group = as_group or (len(val) > 1 and preparation.group_column is None)
    kept = [np.arange(len(p)) for p in held_out] if val is None else _shares(val, held_out, preparation.split_seed)
    return Splits(view(train, whole, taken), view(sources, held_out, kept))


def _refuse_same(
    train: list[Source], trained: list[PreparedPairs], val: list[Source], held: list[PreparedPairs]
) -> None:
    """Refuse validation pairs that are all of them training pairs, in any order and in any file."""
    known = np.concatenate([_prompts_and_lengths(pairs) for pairs in trained])
    for source, pairs in zip(val, held, strict=True):
        wanted = _prompts_and_lengths(pairs)
        if not len(pairs) or not np.isin(wanted, known).all():  # the usual case, in which no token is read
            continue
        keys = {
            _pair_key(one[int(k)])
            for one in trained
            for k in np.flatnonzero(np.isin(_prompts_and_lengths(one), wanted))
        }
        if all(_pair_key(pair) in keys for pair in pairs):
            names = ", ".join(one.path for one in train)
            raise UserError(
                f"data.val: every pair of {source.path} is a training pair of {names}, so validation would measure "
                "training; name other pairs, or leave data.val out and hold some out by data.val_fraction."
            )


def _prompts_and_lengths(pairs: PreparedPairs) -> NDArray[Any]:
    """Return (pairs,) texts that equal pairs share: the prompt's id, and the lengths of the responses in order."""
    lengths = np.sort(pairs.lengths[:, 1:], axis=1).tolist()
    return np.array(
        [f"{id} {one} {two}" for id, (one, two) in zip(pairs.column("prompt_id"), lengths, strict=True)], str
    )


def _pair_key(pair: PreferencePair) -> bytes:
    """Return a hash of a pair's tokens, the same for both orders of its responses."""
    return b"".join(sorted(response_key(pair.prompt, ids) for ids in (pair.chosen, pair.rejected or ())))


def _shares(sources: list[Source], prepared: list[PreparedPairs], seed: int) -> list[NDArray[np.int64]]:
    sizes = [len(pairs) for pairs in prepared]
    if all(source.weight is not None for source in sources):
        weights = np.array([float(source.weight or 0) for source in sources])
        total = min(size / weight for size, weight in zip(sizes, weights, strict=True))
        counts = [min(size, int(total * weight + 1e-9)) for size, weight in zip(sizes, weights, strict=True)]
    else:
        counts = [size if source.count is None else source.count for source, size in zip(sources, sizes, strict=True)]
    for source, size, count in zip(sources, sizes, counts, strict=True):
        if count > size:
            raise UserError(
                f"{source.path} has {size} pairs and its `count` is {count}; no pair is taken twice: lower it."
            )
    return [_some(pairs, count, seed) for pairs, count in zip(prepared, counts, strict=True)]


def _some(pairs: PreparedPairs, count: int, seed: int) -> NDArray[np.int64]:
    """Return the indices of `count` pairs drawn by hash, in order; additional rows change few of them."""
    if count == len(pairs):
        return np.arange(len(pairs))
    lots = [hashlib.sha256(f"{seed} {id}".encode()).digest()[:8] for id in pairs.ids]
    return np.sort(np.argsort(np.array(lots, "S8"), kind="stable")[:count])


def digest_of_split(sources: list[Source], preparation: Preparation) -> str:
    """Return a sha256 that changes with the texts of the training split."""
    keys = [preparation.key(source, preparation.mapping_of(source)) for source in sources]
    return hashlib.sha256(json.dumps(keys).encode()).hexdigest()


def training_pairs(sources: list[Source], preparation: Preparation) -> Iterator[tuple[str, CheckedPair]]:
    """Yield the training pairs with their whole texts, before tokenization, each with its source's name."""
    for source in sources:
        for pair in preparation.checked_pairs(source):
            if pair.split == "train":
                yield source.label, pair


def training_texts(sources: list[Source], preparation: Preparation) -> Iterator[str]:
    """Yield the texts of the training split, for a tokenizer that is trained on them."""
    for _, pair in training_pairs(sources, preparation):
        prompt = pair.text.prompt
        yield from [prompt] if isinstance(prompt, str) else (message["content"] for message in prompt)
        yield from (text for text in (pair.text.chosen, pair.text.rejected) if text is not None)
