"""Collation of pairs into a batch: rows for the model, numbers as tensors, and the sampler's marks."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lit_pref.batch import PairData, PreferenceBatch, TokenTable
from lit_pref.data.batching.sampling import MicroBatch
from lit_pref.data.prepared.lists import Lists
from lit_pref.errors import UsageError
from lit_pref.pairs import PreferencePair, TokenFunction, TokenValues
from lit_pref.response_key import response_key
from lit_pref.scoring.layout import Layout, padded, prefix_shared


def collate(
    pairs: Sequence[PreferencePair],
    pad_id: int,
    is_real: Sequence[bool] | None = None,
    window_pairs: int | None = None,
    layout: Layout = "padded",
    token_functions: Mapping[str, TokenFunction] | None = None,
    extra_response: bool = False,
    lists: Sequence[int] | None = None,
) -> PreferenceBatch:
    """Return a batch of B pairs laid out for a model.

    Args:
        pairs: all with or all without rejected responses, and with the same columns.
        pad_id: the id that fills rows; it is masked out.
        is_real: (B,), False for fillers; None means that all are real.
        window_pairs: real pairs of the optimizer step; None means those of this batch.
        layout: `prefix_shared` reads a prompt once and has no padding; `padded` works for every model.
        token_functions: further token columns, by name, each a function of the ids of a pair.
        extra_response: whether to lay out the extra responses too.
        lists: (B,), the number of each pair's list, if every pair is one response of a list.

    Raises:
        UsageError: a token function has the name of a token column of the data.
        ValueError: no pairs, or pairs of different kinds.

    >>> from lit_pref.pairs import TruncatedText
    >>> text = TruncatedText("a", "b", "c", True, True)
    >>> batch = collate([PreferencePair("1", [5, 6], [7], [8, 9], 0.5, None, {}, None, text)], pad_id=0)
    >>> batch.rows.input_ids.tolist(), batch.pairs.margin.tolist(), batch.pairs.probability, batch.pairs.window_pairs
    ([[5, 6, 7, 0], [5, 6, 8, 9]], [0.5], None, 1)
    """
    rejected = [pair.rejected for pair in pairs if pair.rejected is not None]
    if rejected and len(rejected) != len(pairs):
        raise ValueError("only some pairs have a rejected response")
    ids = ([pair.prompt for pair in pairs], [pair.chosen for pair in pairs], rejected or None)
    rows = prefix_shared(*ids) if layout == "prefix_shared" else padded(*ids, pad_id)
    is_real = [True] * len(pairs) if is_real is None else list(is_real)
    data = _pair_data(pairs, is_real, window_pairs, token_functions or {}, lists)
    if not extra_response:
        return PreferenceBatch(data, rows)
    extra = [pair.of_extra_response() for pair in pairs]
    return PreferenceBatch(data, rows, collate(extra, pad_id, is_real, window_pairs, layout))


def _pair_data(
    pairs: Sequence[PreferencePair],
    is_real: list[bool],
    window_pairs: int | None,
    token_functions: Mapping[str, TokenFunction],
    lists: Sequence[int] | None,
) -> PairData:
    """Return what objectives and metrics read of the pairs."""
    two_sided = pairs[0].rejected is not None
    groups = [pair.group for pair in pairs if pair.group is not None]
    places = [pair.place for pair in pairs if pair.place]
    return PairData(
        ids=[pair.id for pair in pairs],
        chosen_lengths=torch.tensor([len(pair.chosen) for pair in pairs]),
        rejected_lengths=torch.tensor([len(pair.rejected or ()) for pair in pairs]) if two_sided else None,
        margin=_numbers([pair.margin for pair in pairs], "margin"),
        probability=_numbers([pair.probability for pair in pairs], "probability"),
        is_real=torch.tensor(is_real),
        window_pairs=-1 if window_pairs is None else window_pairs,
        columns={name: torch.tensor([pair.columns[name] for pair in pairs]) for name in pairs[0].columns},
        token_columns=_token_columns(pairs, token_functions),
        groups=groups if len(groups) == len(pairs) else None,
        places=places if len(places) == len(pairs) else [],
        texts=[pair.text for pair in pairs],
        response_keys=[_response_keys(pair) for pair in pairs],
        lists=None if lists is None else torch.tensor(lists),
    )


def _token_columns(pairs: Sequence[PreferencePair], functions: Mapping[str, TokenFunction]) -> dict[str, TokenTable]:
    """Return every token column as one zero-padded row per response."""
    values: dict[str, list[TokenValues]] = {
        name: [pair.token_columns[name] for pair in pairs] for name in pairs[0].token_columns
    }
    if taken := sorted(values.keys() & functions.keys()):
        raise UsageError(
            f"the objective computes the token column `{taken[0]}` from the ids, and the data have a column of "
            "that name: rename the column of the data"
        )
    for name, function in functions.items():
        values[name] = [function(pair.prompt, pair.chosen, pair.rejected) for pair in pairs]
    two_sided = pairs[0].rejected is not None
    columns = {}
    for name, sides in values.items():
        chosen, rejected = ([side[k] or [] for side in sides] for k in range(2))
        _check_lengths(name, pairs, chosen, rejected)
        columns[name] = (_zero_padded(chosen), _zero_padded(rejected) if two_sided else None)
    return columns


def _zero_padded(rows: Sequence[Sequence[float]]) -> Tensor:
    return pad_sequence([torch.tensor(row, dtype=torch.float32) for row in rows], batch_first=True)


def _check_lengths(
    name: str, pairs: Sequence[PreferencePair], chosen: Iterable[list[float]], rejected: Iterable[list[float]]
) -> None:
    for pair, first, second in zip(pairs, chosen, rejected, strict=True):
        if (len(first), len(second)) != (len(pair.chosen), len(pair.rejected or ())):
            raise ValueError(
                f"the token column {name} of {pair.place or pair.id} has {len(first)} and {len(second)} values for "
                f"{len(pair.chosen)} and {len(pair.rejected or ())} tokens"
            )


def _response_keys(pair: PreferencePair) -> tuple[bytes, bytes | None]:
    second = None if pair.rejected is None else response_key(pair.prompt, pair.rejected)
    return response_key(pair.prompt, pair.chosen), second


def _numbers(values: list[float | None], name: str) -> Tensor | None:
    known = [value for value in values if value is not None]
    if known and len(known) != len(values):
        raise ValueError(f"only some pairs have a {name}")
    return torch.tensor(known, dtype=torch.float32) if known else None


class PairsByIndex(Protocol):
    def __getitem__(self, index: int, /) -> PreferencePair: ...


class UncastBatch:
    """Hides a batch from Lightning's precision plugins.

    Under `bf16-true` they would cast every number: a margin of 6.28 became 6.2812 and a probability of 0.999 became 1.
    """

    def __init__(self, batch: PreferenceBatch) -> None:
        self.batch = batch

    def pin_memory(self) -> "UncastBatch":
        """Return the batch in page-locked memory; see `DeviceData.pin_memory`."""
        return UncastBatch(self.batch.pin_memory())


class UncastBatches:
    """Collates micro-batches in a loader or its workers: `batches[micro_batch]`.

    Args:
        pairs: the pairs, accessed by index.
        pad_id: the id that fills rows.
        layout: layout of the rows.
        token_functions: see `collate`.
        extra_response: see `collate`.
        lists: the lists that the pairs form; the indices of a micro-batch are then those of lists.
        add_scores: adds to a batch the scores of stored references, so that no step looks them up.
    """

    def __init__(
        self,
        pairs: PairsByIndex,
        pad_id: int,
        layout: Layout = "padded",
        token_functions: Mapping[str, TokenFunction] | None = None,
        extra_response: bool = False,
        lists: Lists | None = None,
        add_scores: Callable[[PreferenceBatch], None] | None = None,
    ) -> None:
        self.pairs, self.pad_id, self.layout = pairs, pad_id, layout
        self.token_functions, self.extra_response = dict(token_functions or {}), extra_response
        self.lists, self.add_scores = lists, add_scores

    def __getitem__(self, batch: MicroBatch) -> UncastBatch:
        indices, is_real, numbers = list(batch.indices), list(batch.is_real), None
        if self.lists is not None:
            indices = self.lists.records(batch.indices).tolist()
            numbers = self.lists.numbers(batch.indices).tolist()
            is_real = [batch.is_real[number] for number in numbers]
        pairs = [self.pairs[k] for k in indices]
        options = (self.layout, self.token_functions, self.extra_response, numbers)
        collated = collate(pairs, self.pad_id, is_real, batch.window_pairs, *options)
        if self.add_scores is not None:
            self.add_scores(collated)
        return UncastBatch(collated)
