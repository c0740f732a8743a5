"""Pairs of token ids laid out as rows for a model. Pure: knows only torch.

Which hidden state predicts which token is part of the layout (`PreferenceBatch`), so scoring never asks how the rows
were made.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def padded(
    prompts: Sequence[Sequence[int]],
    chosen: Sequence[Sequence[int]],
    rejected: Sequence[Sequence[int]] | None,
    pad_id: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The plain layout: one row a response, `[prompt | response]`, right-padded to the longest row.

    Rows 0..B-1 hold the chosen responses, rows B..2B-1 the rejected ones. Position t of a row predicts the token at
    t + 1, so a response that starts at position p is predicted from p - 1, the last token of its prompt.

    Args:
        prompts: B lists of ids, each at least one token long.
        chosen: B lists of ids, the responses without their prompts.
        rejected: the same, or None for one-sided data.
        pad_id: the id that fills a row; it is masked out and never predicted.

    Returns:
        `input_ids` (R, T), `attention_mask` (R, T), and (N,) each: `predictors`, indices into the R x T positions,
        flattened; `targets`, the ids predicted there; `sequences`, the response each belongs to. All int64. N runs
        through the rows in order, each response from its first token to its last.

    Raises:
        ValueError: for an empty batch, lists of different lengths, or a prompt without a token.

    >>> ids, mask, predictors, targets, sequences = padded([[5, 6]], [[7]], [[8, 9]], pad_id=0)
    >>> ids.tolist(), predictors.tolist(), targets.tolist(), sequences.tolist()
    ([[5, 6, 7, 0], [5, 6, 8, 9]], [1, 5, 6], [7, 8, 9], [0, 1, 1])
    """
    if not prompts:
        raise ValueError("a batch needs at least one pair")
    if len(chosen) != len(prompts) or (rejected is not None and len(rejected) != len(prompts)):
        raise ValueError(
            f"{len(prompts)} prompts, but {len(chosen)} chosen and "
            f"{'no' if rejected is None else len(rejected)} rejected responses"
        )
    if not all(prompts):
        raise ValueError("a prompt without a token has no position that predicts the response's first token")

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
    return (
        input_ids,
        attention_mask,
        torch.tensor(predictors, dtype=torch.int64),  # (N,)
        torch.tensor(targets, dtype=torch.int64),  # (N,)
        torch.tensor(sequences, dtype=torch.int64),  # (N,)
    )
