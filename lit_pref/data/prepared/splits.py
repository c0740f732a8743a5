"""The training and validation pairs of a run, from the sources of its configuration."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lit_pref.data.checking.text_pair import CheckedPair, pair_key
from lit_pref.data.prepared.arrow import LIST
from lit_pref.data.prepared.lists import Lists
from lit_pref.data.prepared.normalisation import Normaliser, constants_for
from lit_pref.data.prepared.pair_view import PairView, PreparedPairs, SourcePairs
from lit_pref.data.prepared.preparation import Preparation
from lit_pref.data.sources.source import Source, check_source
from lit_pref.data.tokenizing.tokenization import Tokenization
from lit_pref.errors import UsageError, UserError
from lit_pref.pairs import PreferencePair


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
    """Refuse validation pairs most of which are training pairs, in any order, in any form and in any file."""
    for source, pairs in zip(val, held, strict=True):
        same = int(training_pairs_among(pairs, trained).sum())
        if 2 * same > len(pairs):
            names = ", ".join(one.path for one in train)
            what = f"every pair of {source.path} is a training pair"
            if same < len(pairs):
                what = f"{same} of the {len(pairs)} pairs of {source.path} are training pairs"
            raise UserError(
                f"data.val: {what} of {names}, so validation would measure training; name other pairs, or leave "
                "data.val out and hold some out by data.val_fraction."
            )


def training_pairs_among(pairs: Any, trained: Sequence[Any]) -> NDArray[np.bool_]:
    """Return (pairs,): whether a pair is a training pair, whatever the forms of its texts.

    Args:
        pairs: prepared pairs or a view of some.
        trained: the training pairs, of one or more sources.
    """
    groups = pairs.column("prompt_group").astype(str)
    wanted = np.isin(groups, np.concatenate([one.column("prompt_group").astype(str) for one in trained]))
    shared = np.unique(groups[wanted])
    keys = {
        _pair_key(one[int(k)])
        for one in trained
        for k in np.flatnonzero(np.isin(one.column("prompt_group").astype(str), shared))
    }
    found = np.zeros(len(groups), bool)  # the texts of other prompts are not read
    found[wanted] = [_pair_key(pairs[int(k)]) in keys for k in np.flatnonzero(wanted)]
    return found


def _pair_key(pair: PreferencePair) -> str:
    return pair_key(pair.text.prompt, pair.text.chosen, pair.text.rejected)


def _shares(sources: list[Source], prepared: list[PreparedPairs], seed: int) -> list[NDArray[np.int64]]:
    every = [_lists(pairs) for pairs in prepared]
    sizes = [len(pairs) if lists is None else len(lists) for pairs, lists in zip(prepared, every, strict=True)]
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
                if every[0] is None
                else f"{source.path} has {size} lists and its `count` is {count}; no list is taken twice: lower it."
            )
    return [_some(pairs, lists, n, seed) for pairs, lists, n in zip(prepared, every, counts, strict=True)]


def _lists(pairs: PreparedPairs) -> Lists | None:
    return Lists([pairs.column(LIST)]) if pairs.has_lists else None


def _some(pairs: PreparedPairs, lists: Lists | None, count: int, seed: int) -> NDArray[np.int64]:
    """Return the indices of `count` pairs, or of the records of `count` lists, in order.

    They are drawn by hash, so that additional rows change few of them.
    """
    if count == len(pairs if lists is None else lists):
        return np.arange(len(pairs))
    ids = pairs.ids if lists is None else np.array(pairs.ids)[lists.starts]
    lots = [hashlib.sha256(f"{seed} {id}".encode()).digest()[:8] for id in ids]
    drawn = np.sort(np.argsort(np.array(lots, "S8"), kind="stable")[:count])
    return drawn if lists is None else lists.records(drawn)


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
