"""Scores of a checkpoint's model and of the folder that was made from it, and how far they may be apart."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lit_pref.data.batching.collation import collate
from lit_pref.errors import UserError
from lit_pref.models.embedding_reader import PreferenceModel
from lit_pref.models.reward import reward_scorer
from lit_pref.models.spec import ModelSpec
from lit_pref.pairs import PreferencePair
from lit_pref.run.checkpoint_model import AFTER_A_BREAK
from lit_pref.scoring.scorer import Scorer

PER_TOKEN = {"float64": 1e-8, "float32": 1e-3, "bfloat16": 0.05, "float16": 0.05}
"""How far a token's log-prob in the folder may be from the checkpoint's at most, in nats."""
UNITS = 2
"""A merge in 16 bits may change it by so many times what a unit in the last place of every merged weight changes."""

REWARD = {"float64": 1e-8, "float32": 1e-3, "bfloat16": 0.1, "float16": 0.1}
"""How far a reward in the folder may be from the checkpoint's."""


def scorer_of(policy: ModelSpec, model: nn.Module, gate: Tensor | None) -> Any:
    """The scorer of a model, with the gate of its preference embedding, if there is one."""
    if policy.outputs is None:
        return Scorer(model.eval())
    scorer = reward_scorer(model.eval(), policy.embedding)
    if gate is not None:
        scorer.gate.weight.data.copy_(gate)  # type: ignore[union-attr, operator]
    return scorer


@torch.no_grad()
def scores_of_folder(
    opened: Any, policy: ModelSpec, folder: Path, sample: list[PreferencePair], pad: int, where: Path
) -> list[Tensor]:
    """The scores that a user of the folder gets: those of a reward model are computed by transformers alone."""
    if policy.outputs is None:
        return [scores_of(Scorer(opened.eval()), pair, pad, where) for pair in sample]
    if policy.embedding is not None:
        reader = PreferenceModel(folder, dtype=policy.dtype) if (folder / "config.json").exists() else None
        if reader is None:
            return [scores_of(scorer_of(policy, opened, None), pair, pad, where) for pair in sample]
        halves = [reader.score(pair.prompt, pair.chosen, pair.rejected or []) / 2 for pair in sample]
        return [torch.tensor([half, -half]) for half in halves]
    opened.eval()
    scores = []
    for pair in sample:
        rows = [pair.prompt + ids for ids in (pair.chosen, pair.rejected) if ids is not None]
        if opened.config.pad_token_id is None:  # an adapter takes this from its base model
            scores.append(torch.cat([opened(input_ids=torch.tensor([row])).logits.float().flatten() for row in rows]))
            continue
        width = max(map(len, rows))
        ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
        scores.append(opened(input_ids=ids, attention_mask=mask).logits.float().flatten())
    return scores


@torch.no_grad()
def scores_of(scorer: nn.Module, pair: PreferencePair, pad: int, where: Path) -> Tensor:
    scores = scorer(collate([pair], pad))
    sides = [scores.chosen] + ([scores.rejected] if scores.rejected is not None else [])
    found = torch.cat([side.scores for side in sides])
    if not torch.isfinite(found).all():
        raise UserError(
            f"{where}: the score of a training pair is not finite, though the weights are: training made them too "
            f"large; {AFTER_A_BREAK}"
        )
    return found


@torch.no_grad()
def move_by_a_unit(model: nn.Module, names: set[str]) -> None:
    """Move each number of these weights by one or two units in the last place, up or down by chance.

    Merging rounds each of them by at most half a unit.
    """
    generator = torch.Generator().manual_seed(0)
    for name, weight in model.named_parameters():
        if name in names:
            signs = torch.randint(0, 2, weight.shape, generator=generator) * 2 - 1
            weight.mul_((1 + signs * torch.finfo(weight.dtype).eps).to(weight))


def explained_by_rounding(moved: tuple[float, float], policy: ModelSpec) -> float:
    """Return the difference that a merge in 16 bits may show, of a reward or in nats a token.

    Args:
        moved: what `apart` finds after `move_by_a_unit`.
        policy: the spec of the model.
    """
    table, change = (PER_TOKEN, moved[1]) if policy.outputs is None else (REWARD, moved[0])
    return min(table[policy.dtype], max(UNITS * change, table["float32"]))


def apart(before: list[Tensor], after: list[Tensor], pairs: list[PreferencePair]) -> tuple[float, float]:
    """The largest difference of the scores of a response, and of a response divided by its tokens."""
    largest = per_token = 0.0
    for old, new, pair in zip(before, after, pairs, strict=True):
        differences = (old - new).abs().double()
        tokens = torch.tensor([len(ids) for ids in (pair.chosen, pair.rejected) if ids is not None])
        largest = max(largest, float(differences.max()))
        per_token = max(per_token, float((differences / tokens.to(differences)).max()))
    return largest, per_token
