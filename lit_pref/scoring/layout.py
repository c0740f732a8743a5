"""Pairs of token ids laid out as rows for a model. Pure: knows only torch.

Which hidden state predicts which token is part of the layout (`PreferenceBatch`), so scoring never asks how the rows
were made.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

import numpy
import torch
from torch import Tensor

from lit_pref.types import PreferenceBatch

Layout = Literal["shared", "padded"]


class Rows(NamedTuple):
    """What a layout decides of a `PreferenceBatch`, under the names that it has there. All tensors are int64."""

    input_ids: Tensor  # (R, T)
    attention_mask: Tensor | None  # (R, T)
    predictors: Tensor  # (N,)
    targets: Tensor  # (N,)
    sequences: Tensor  # (N,)
    position_ids: Tensor | None = None  # (R, T)
    segments: tuple[tuple[int, int, int], ...] | None = None


Ids = Sequence[Sequence[int]]


def padded(prompts: Ids, chosen: Ids, rejected: Ids | None, pad_id: int) -> Rows:
    """The plain layout: one row a response, `[prompt | response]`, right-padded to the longest row.

    Rows 0..B-1 hold the chosen responses, rows B..2B-1 the rejected ones. Position t of a row predicts the token at
    t + 1, so a response that starts at position p is predicted from p - 1, the last token of its prompt. N runs through
    the rows in order, each response from its first token to its last.

    Args:
        prompts: B lists of ids, each at least one token long.
        chosen: B lists of ids, the responses without their prompts.
        rejected: the same, or None for one-sided data.
        pad_id: the id that fills a row; it is masked out and never predicted.

    Raises:
        ValueError: for an empty batch, lists of different lengths, or a prompt without a token.

    >>> rows = padded([[5, 6]], [[7]], [[8, 9]], pad_id=0)
    >>> rows.input_ids.tolist(), rows.predictors.tolist(), rows.targets.tolist(), rows.sequences.tolist()
    ([[5, 6, 7, 0], [5, 6, 8, 9]], [1, 5, 6], [7, 8, 9], [0, 1, 1])
    """
    _check(prompts, chosen, rejected)
    sides = [side for side in (chosen, rejected) if side is not None]
    rows = [pair for side in sides for pair in zip(prompts, side, strict=True)]
    width = max(len(p) + len(r) for p, r in rows)  # T
    input_ids = torch.full((len(rows), width), pad_id, dtype=torch.int64)  # (R, T)
    attention_mask = torch.zeros((len(rows), width), dtype=torch.int64)  # (R, T)
    predictors: list[int] = []
    targets: list[int] = []
    sequences: list[int] = []
    for row, (prompt, response) in enumerate(rows):
        length = len(prompt) + len(response)
        input_ids[row, :length] = torch.tensor([*prompt, *response])
        attention_mask[row, :length] = 1
        start = row * width + len(prompt) - 1
        predictors.extend(range(start, start + len(response)))
        targets.extend(response)
        sequences.extend([row] * len(response))
    return Rows(input_ids, attention_mask, _int64(predictors), _int64(targets), _int64(sequences))


def shared(prompts: Ids, chosen: Ids, rejected: Ids | None) -> Rows:
    """One row without padding, `[prompt | chosen | rejected]` pair after pair: a prompt is read once.

    The last position of a prompt predicts the first token of both responses, so it is named twice. Positions restart at
    the prompt's end for the rejected response. N runs pair by pair, chosen before rejected. Needs an attention that
    keeps pairs, and the two responses of a pair, apart (`scoring/sharing.py`).

    Raises:
        ValueError: as `padded`.

    >>> rows = shared([[5, 6]], [[7]], [[8, 9]])
    >>> rows.input_ids.tolist(), rows.predictors.tolist(), rows.position_ids.tolist(), rows.segments
    ([[5, 6, 7, 8, 9]], [1, 1, 3], [[0, 1, 2, 2, 3]], ((2, 1, 2),))
    """
    _check(prompts, chosen, rejected)
    pairs = len(prompts)
    ids: list[int] = []
    positions: list[int] = []
    predictors: list[int] = []
    targets: list[int] = []
    sequences: list[int] = []
    segments: list[tuple[int, int, int]] = []
    for k, (prompt, first) in enumerate(zip(prompts, chosen, strict=True)):
        second = () if rejected is None else rejected[k]
        last, p, c, r = len(ids) + len(prompt) - 1, len(prompt), len(first), len(second)
        ids += [*prompt, *first, *second]
        positions += [*range(p + c), *range(p, p + r)]
        predictors += range(last, last + c)
        targets += first
        sequences += [k] * c
        if r:
            predictors += [last, *range(last + c + 1, last + c + r)]
            targets += second
            sequences += [pairs + k] * r
        segments.append((p, c, r))
    named = (_int64(predictors), _int64(targets), _int64(sequences))
    return Rows(_int64(ids)[None], None, *named, _int64(positions)[None], tuple(segments))


def as_padded(batch: PreferenceBatch, pad_id: int = 0) -> PreferenceBatch:
    """The same pairs in the padded layout, for a model that cannot read the shared one."""
    if batch.segments is None:
        return batch
    ids = batch.input_ids[0].tolist()
    prompts: list[list[int]] = []
    chosen: list[list[int]] = []
    rejected: list[list[int]] = []
    end = 0
    for lengths in batch.segments:
        for part, length in zip((prompts, chosen, rejected), lengths, strict=True):
            part.append(ids[end : end + length])
            end += length
    rows = padded(prompts, chosen, None if batch.rejected_lengths is None else rejected, pad_id)
    moved = {name: value.to(batch.input_ids.device) for name, value in rows._asdict().items() if value is not None}
    order = torch.argsort(batch.sequences, stable=True)  # rows run through one response after another
    return replace(
        batch,
        **{**dict.fromkeys(Rows._fields), **moved},
        token_columns={name: values[order] for name, values in batch.token_columns.items()},
        third=None if batch.third is None else as_padded(batch.third, pad_id),
    )


def tokens_of_pairs(batch: PreferenceBatch) -> list[int]:
    """Of each pair, the tokens of its prompt and its longer response: what a model must be able to read."""
    if batch.segments is not None:
        return [p + max(c, r) for p, c, r in batch.segments]
    assert batch.attention_mask is not None
    return batch.attention_mask.sum(1).view(-1, len(batch)).amax(0).tolist()


def address(prompt: Sequence[int], response: Sequence[int]) -> bytes:
    """16 bytes that name a response after a prompt, by nothing but their ids: where the reference store keeps it.

    >>> address([5, 6], [7]) == address([5, 6], [7]), address([5, 6], [7]) == address([5], [6, 7])
    (True, False)
    """
    ids = numpy.array([len(prompt), *prompt, *response], dtype="<i4")
    return hashlib.sha256(ids.tobytes()).digest()[:16]


def _int64(numbers: list[int]) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int64)


def _check(prompts: Ids, chosen: Ids, rejected: Ids | None) -> None:
    if not prompts:
        raise ValueError("a batch needs at least one pair")
    if len(chosen) != len(prompts) or (rejected is not None and len(rejected) != len(prompts)):
        raise ValueError(
            f"{len(prompts)} prompts, but {len(chosen)} chosen and "
            f"{'no' if rejected is None else len(rejected)} rejected responses"
        )
    if not all(prompts):
        raise ValueError("a prompt without a token has no position that predicts the response's first token")
