"""The two layouts of pairs of token ids as rows for a model. Depends on torch only.

`Rows` says which hidden state predicts which token, so that scoring is the same for every layout.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from lit_pref.batch import PreferenceBatch, Rows

Layout = Literal["prefix_shared", "padded"]
Ids = Sequence[Sequence[int]]

_BEING_READ: ContextVar[Layout | None] = ContextVar("the layout of the rows that a model reads", default=None)


@contextmanager
def reading_rows(layout: Layout) -> Iterator[None]:
    """Context in which a model reads rows of this layout, and builds the masks that they need (`models/masks`)."""
    token = _BEING_READ.set(layout)
    try:
        yield
    finally:
        _BEING_READ.reset(token)


def layout_being_read() -> Layout | None:
    """Return the layout of the rows that are being read; None in the recomputation of gradient checkpointing."""
    return _BEING_READ.get()


def padded(prompts: Ids, chosen: Ids, rejected: Ids | None, pad_id: int) -> Rows:
    """Return one row per response, `[prompt | response]`, right-padded to the longest row.

    Rows 0..B-1 contain the chosen responses, rows B..2B-1 the rejected ones. Position t of a row predicts the token at
    t + 1, so a response that starts at position p is predicted from p - 1, the last token of its prompt. The N response
    tokens are in the order of the rows, each response from its first token to its last.

    Args:
        prompts: B lists of ids, each at least one token long.
        chosen: B lists of ids, the responses without their prompts.
        rejected: the same, or None for one-sided data.
        pad_id: the padding id; it is masked out and never predicted.

    Raises:
        ValueError: an empty batch, lists of different lengths, or a prompt without a token.

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
    ends: list[int] = []
    for row, (prompt, response) in enumerate(rows):
        length = len(prompt) + len(response)
        input_ids[row, :length] = torch.tensor([*prompt, *response])
        attention_mask[row, :length] = 1
        start = row * width + len(prompt) - 1
        predictors.extend(range(start, start + len(response)))
        targets.extend(response)
        sequences.extend([row] * len(response))
        ends.append(row * width + length - 1)
    return Rows(input_ids, attention_mask, _int64(predictors), _int64(targets), _int64(sequences), _int64(ends))


def prefix_shared(prompts: Ids, chosen: Ids, rejected: Ids | None) -> Rows:
    """Return a single row without padding, `[prompt | chosen | rejected]` pair after pair; a prompt is read once.

    The last position of a prompt predicts the first token of both responses, so it appears twice in `predictors`.
    Positions restart at the prompt end for the rejected response. The N response tokens are ordered by pair, chosen
    before rejected. Needs an attention that separates pairs, and the two responses of a pair (`prefix_attention`).

    Raises:
        ValueError: as `padded`.

    >>> rows = prefix_shared([[5, 6]], [[7]], [[8, 9]])
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
    ends: tuple[list[int], list[int]] = ([], [])  # of the chosen, then of the rejected responses
    for k, (prompt, first) in enumerate(zip(prompts, chosen, strict=True)):
        second = () if rejected is None else rejected[k]
        last, p, c, r = len(ids) + len(prompt) - 1, len(prompt), len(first), len(second)
        ids += [*prompt, *first, *second]
        positions += [*range(p + c), *range(p, p + r)]
        predictors += range(last, last + c)
        targets += first
        sequences += [k] * c
        ends[0].append(last + c)
        if r:
            predictors += [last, *range(last + c + 1, last + c + r)]
            targets += second
            sequences += [pairs + k] * r
            ends[1].append(last + c + r)
        segments.append((p, c, r))
    named = (_int64(predictors), _int64(targets), _int64(sequences), _int64([*ends[0], *ends[1]]))
    return Rows(_int64(ids)[None], None, *named, _int64(positions)[None], tuple(segments))


def as_padded(batch: PreferenceBatch, pad_id: int = 0) -> PreferenceBatch:
    """Return the same pairs in the padded layout, for a model that cannot read prefix-shared rows."""
    rows = batch.rows
    if rows.segments is None:
        return batch
    ids = rows.host.input_ids[0].tolist()
    prompts: list[list[int]] = []
    chosen: list[list[int]] = []
    rejected: list[list[int]] = []
    end = 0
    for lengths in rows.segments:
        for part, length in zip((prompts, chosen, rejected), lengths, strict=True):
            part.append(ids[end : end + length])
            end += length
    one_sided = batch.pairs.rejected_lengths is None
    return replace(
        batch,
        rows=padded(prompts, chosen, None if one_sided else rejected, pad_id).to(rows.input_ids.device),
        extra_response=None if batch.extra_response is None else as_padded(batch.extra_response, pad_id),
    )


def tokens_of_pairs(batch: PreferenceBatch) -> list[int]:
    """Return, for each pair, the tokens of its prompt and its longer response: the length that a model must support."""
    if batch.rows.segments is not None:
        return [p + max(c, r) for p, c, r in batch.rows.segments]
    mask = batch.rows.host.attention_mask
    assert mask is not None
    return mask.sum(1).view(-1, len(batch)).amax(0).tolist()


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
        raise ValueError("a prompt without a token has no position that predicts the first token of the response")
