"""Pairs to a batch: laid out as rows, numbers as tensors, the stamps of the sampler."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from lit_pref.data.sampling import MicroBatch
from lit_pref.errors import UsageError
from lit_pref.scoring.layout import Layout, address, padded, shared
from lit_pref.types import PreferenceBatch, PreferencePair, TokenFunction, TokenValues


def collate(
    pairs: Sequence[PreferencePair],
    pad_id: int,
    real: Sequence[bool] | None = None,
    window_pairs: int | None = None,
    layout: Layout = "padded",
    token_functions: Mapping[str, TokenFunction] | None = None,
    third: bool = False,
) -> PreferenceBatch:
    """B pairs laid out for a model.

    Args:
        pairs: all with or all without rejected responses, and with the same columns.
        pad_id: the id that fills rows; it is masked out.
        real: (B,), False for fillers; None means that all are real.
        window_pairs: real pairs of the optimiser window; None means those of this batch.
        layout: shared rows read a prompt once and hold no padding; padded rows suit every model.
        token_functions: further token columns, by name, each made of the ids of a pair.
        third: whether the third responses are laid out too.

    Raises:
        UsageError: a token function has the name of a token column of the data.
        ValueError: no pairs, or pairs of different kinds.

    >>> from lit_pref.types import KeptText
    >>> text = KeptText("a", "b", "c", True, True)
    >>> batch = collate([PreferencePair("1", [5, 6], [7], [8, 9], 0.5, None, {}, None, text)], pad_id=0)
    >>> batch.input_ids.tolist(), batch.margin.tolist(), batch.probability, batch.window_pairs
    ([[5, 6, 7, 0], [5, 6, 8, 9]], [0.5], None, 1)
    """
    rejected = [pair.rejected for pair in pairs if pair.rejected is not None]
    if rejected and len(rejected) != len(pairs):
        raise ValueError("some pairs have a rejected response and others not")
    ids = ([pair.prompt for pair in pairs], [pair.chosen for pair in pairs], rejected or None)
    rows = shared(*ids) if layout == "shared" else padded(*ids, pad_id)
    real = [True] * len(pairs) if real is None else list(real)
    groups = [pair.group for pair in pairs if pair.group is not None]
    places = [pair.place for pair in pairs if pair.place]
    return PreferenceBatch(
        **rows._asdict(),
        pair_ids=[pair.id for pair in pairs],
        chosen_lengths=torch.tensor([len(pair.chosen) for pair in pairs]),
        rejected_lengths=torch.tensor([len(ids) for ids in rejected]) if rejected else None,
        margin=_numbers([pair.margin for pair in pairs], "margin"),
        probability=_numbers([pair.probability for pair in pairs], "probability"),
        real=torch.tensor(real),
        window_pairs=sum(real) if window_pairs is None else window_pairs,
        columns={name: torch.tensor([pair.columns[name] for pair in pairs]) for name in pairs[0].columns},
        groups=groups if len(groups) == len(pairs) else None,
        texts=[pair.text for pair in pairs],
        addresses=[_addresses(pair) for pair in pairs],
        token_columns=_token_columns(pairs, rows.sequences, token_functions or {}),
        third=collate([pair.of_third() for pair in pairs], pad_id, real, window_pairs, layout) if third else None,
        places=places if len(places) == len(pairs) else [],
    )


def _token_columns(
    pairs: Sequence[PreferencePair], sequences: Tensor, functions: Mapping[str, TokenFunction]
) -> dict[str, Tensor]:
    """Every token column beside `targets`, (N,), whatever the layout: `sequences` says whose each of them is."""
    values: dict[str, list[TokenValues]] = {
        name: [pair.token_columns[name] for pair in pairs] for name in pairs[0].token_columns
    }
    if taken := sorted(values.keys() & functions.keys()):
        raise UsageError(
            f"the objective computes the token column `{taken[0]}` from the ids, and the data bring one of that name: "
            "give that of the data another name"
        )
    for name, function in functions.items():
        values[name] = [function(pair.prompt, pair.chosen, pair.rejected) for pair in pairs]
    order = torch.argsort(sequences, stable=True)
    columns = {}
    for name, sides in values.items():
        chosen, rejected = ([side[k] or [] for side in sides] for k in range(2))
        _check_lengths(name, pairs, chosen, rejected)
        by_response = torch.tensor([value for row in (*chosen, *rejected) for value in row], dtype=torch.float32)
        columns[name] = torch.empty_like(by_response).index_put_((order,), by_response)
    return columns


def _check_lengths(
    name: str, pairs: Sequence[PreferencePair], chosen: Iterable[list[float]], rejected: Iterable[list[float]]
) -> None:
    for pair, first, second in zip(pairs, chosen, rejected, strict=True):
        if (len(first), len(second)) != (len(pair.chosen), len(pair.rejected or ())):
            raise ValueError(
                f"the token column {name} of {pair.place or pair.id} has {len(first)} and {len(second)} values for "
                f"{len(pair.chosen)} and {len(pair.rejected or ())} tokens"
            )


def _addresses(pair: PreferencePair) -> tuple[bytes, bytes | None]:
    second = None if pair.rejected is None else address(pair.prompt, pair.rejected)
    return address(pair.prompt, pair.chosen), second


def _numbers(values: list[float | None], name: str) -> Tensor | None:
    known = [value for value in values if value is not None]
    if known and len(known) != len(values):
        raise ValueError(f"some pairs have a {name} and others not")
    return torch.tensor(known, dtype=torch.float32) if known else None


class Pairs(Protocol):
    def __getitem__(self, index: int, /) -> PreferencePair: ...


class SealedBatch:
    """A batch into which Lightning's precision plugins do not look.

    They would cast every number under `bf16-true`: a margin of 6.28 became 6.2812 and a probability of 0.999 became 1.
    """

    def __init__(self, batch: PreferenceBatch) -> None:
        self.batch = batch


class SealedBatches:
    """`batches[micro_batch]` is the sealed batch of those pairs; what a loader (worker) calls.

    Args:
        pairs: pairs by index.
        pad_id: the id that fills rows.
        layout: of the rows.
        token_functions: see `collate`.
        third: see `collate`.
    """

    def __init__(
        self,
        pairs: Pairs,
        pad_id: int,
        layout: Layout = "padded",
        token_functions: Mapping[str, TokenFunction] | None = None,
        third: bool = False,
    ) -> None:
        self.pairs, self.pad_id, self.layout = pairs, pad_id, layout
        self.token_functions, self.third = dict(token_functions or {}), third

    def __getitem__(self, cell: MicroBatch) -> SealedBatch:
        pairs = [self.pairs[k] for k in cell.indices]
        made = (self.layout, self.token_functions, self.third)
        return SealedBatch(collate(pairs, self.pad_id, cell.real, cell.window_pairs, *made))
