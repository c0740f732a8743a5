"""Pairs to a batch: laid out as rows, numbers as tensors, the stamps of the sampler."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from lit_pref.data.sampling import MicroBatch
from lit_pref.scoring.layout import Layout, address, padded, shared
from lit_pref.types import PreferenceBatch, PreferencePair


def collate(
    pairs: Sequence[PreferencePair],
    pad_id: int,
    real: Sequence[bool] | None = None,
    window_pairs: int | None = None,
    layout: Layout = "padded",
) -> PreferenceBatch:
    """B pairs laid out for a model.

    Args:
        pairs: all with or all without rejected responses, and with the same columns.
        pad_id: the id that fills rows; it is masked out.
        real: (B,), False for fillers; None means that all are real.
        window_pairs: real pairs of the optimiser window; None means those of this batch.
        layout: shared rows read a prompt once and hold no padding; padded rows suit every model.

    Raises:
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
    """

    def __init__(self, pairs: Pairs, pad_id: int, layout: Layout = "padded") -> None:
        self.pairs, self.pad_id, self.layout = pairs, pad_id, layout

    def __getitem__(self, cell: MicroBatch) -> SealedBatch:
        pairs = [self.pairs[k] for k in cell.indices]
        return SealedBatch(collate(pairs, self.pad_id, cell.real, cell.window_pairs, self.layout))
