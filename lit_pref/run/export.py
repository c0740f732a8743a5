"""Makes a Hugging Face folder from any checkpoint that training writes, and compares the two."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lit_pref.errors import UsageError, UserError
from lit_pref.models.generation import also_stop_at, stops
from lit_pref.models.lora import adapted_weights
from lit_pref.models.reward import set_padding
from lit_pref.models.saving import refuse_foreign, reopen, replacing, save_embedding, save_folder
from lit_pref.modules.checkpoint_info import KEY
from lit_pref.pairs import PreferencePair, TruncatedText
from lit_pref.run.checkpoint_model import PREFIX, policy_of, read_checkpoint, tokenizer_of, trained
from lit_pref.run.export_scores import (
    PER_TOKEN,
    REWARD,
    apart,
    explained_by_rounding,
    move_by_a_unit,
    scorer_of,
    scores_of,
    scores_of_folder,
)

NO_TEXT = TruncatedText("", "", None, True, True)


@dataclass(frozen=True)
class Exported:
    """The result of an export: the folder, and how far its scores differ from the checkpoint's.

    Args:
        folder: the folder.
        largest_difference: over the responses, nats a response.
        per_token: the same, nats a token.
        pairs: how many pairs were scored.
        dtype: of the weights.
        stops: names of the tokens at which its generation settings stop; none for a reward model.
        accepted: the largest difference that rounding explains: of a reward, or in nats a token.
        reward: whether it is a reward model, whose scores have no unit.
    """

    folder: Path
    largest_difference: float
    per_token: float
    pairs: int
    dtype: str
    stops: list[str]
    accepted: float
    reward: bool = False

    @property
    def judgement(self) -> str:
        """How far the scores are apart, and what that means."""
        unit = "" if self.reward else " nats"
        words = f"opened again, the scores of {self.pairs} pairs differ by at most {self.largest_difference:.1e}{unit}"
        if self.largest_difference == 0:
            return words
        accepted = f"rounding in {self.dtype}, of which {self.accepted:.1e} is accepted"
        return f"{words}: {accepted}" if self.reward else f"{words}, {self.per_token:.1e} a token: {accepted}"

    @property
    def excess(self) -> bool:
        """Whether the difference is larger than rounding explains."""
        return not (self.largest_difference if self.reward else self.per_token) <= self.accepted


def export(
    ckpt_path: str | Path, out: str | Path, merge: bool = True, pairs: int = 8, trust_remote_code: bool = False
) -> Exported:
    """Write the policy of a checkpoint as a Hugging Face folder, open it again, and compare weights and scores.

    The folder appears only once it is complete and the comparison has passed: its weights equal those of the checkpoint
    to the last bit (with merged LoRA, those of the merged model), and its scores are compared on some pairs. Embeddings
    and a head that share their weights are separated if an adapter on one of the two is merged. The folder stops
    generating at the tokens that the training responses end with, in addition to those of the base model.

    Args:
        ckpt_path: A checkpoint file, or a folder of shards as FSDP2 writes it.
        out: The folder to write; it must not exist, or be an earlier export, which is replaced.
        merge: Merge a LoRA adapter into the weights; else the folder contains the adapter alone.
        pairs: How many pairs are scored before and after; they are kept in the checkpoint.
        trust_remote_code: Run code that comes with the model; what the checkpoint says about it is not obeyed.

    Raises:
        UserError: The checkpoint is damaged, not from this project, or has weights that are not finite; its base model
            has changed, is missing, or comes with code that is not trusted; or the folder's scores are too far from the
            checkpoint's.
        UsageError: `out` contains something else.
    """
    checkpoint_path, folder = Path(ckpt_path), Path(out)
    refuse_foreign(folder)
    checkpoint = read_checkpoint(checkpoint_path)
    saved = checkpoint[KEY]
    policy = policy_of(saved["model"], checkpoint_path, trust_remote_code)
    if policy.path is not None and Path(os.path.expanduser(policy.path)).resolve() == folder.resolve():
        raise UsageError(f"{folder} is the model that the run started from; export to another folder (export --out)")
    if not merge and policy.lora is not None and policy.merge_adapter:
        raise UsageError(
            "--merge false would write an adapter for a model that is nowhere on the disk, because "
            "model.policy.merge_adapter merged another adapter into it: export with --merge true"
        )
    tokenizer = tokenizer_of(policy, checkpoint_path)
    weights = {n.removeprefix(PREFIX): t for n, t in checkpoint["state_dict"].items() if n.startswith(PREFIX)}
    model = trained(policy, saved, weights, checkpoint_path)
    also_stop_at(model, tokenizer, saved.get("end_tokens", []))
    gate = checkpoint["state_dict"].get("scorer.gate.weight")
    sample = [_pair(*ids) for ids in saved["sample"][:pairs]]
    reading = scorer_of(policy, model, gate)
    before = [scores_of(reading, pair, tokenizer.pad_token_id, checkpoint_path) for pair in sample]
    if policy.outputs is not None:
        set_padding(model, tokenizer, _last_tokens(sample, tokenizer))
    origin = {
        "checkpoint": str(checkpoint_path.resolve()),
        "step": checkpoint["global_step"],
        "objective": saved["objective"],
        "policy_before_training": saved["policy"],
    }
    with replacing(folder, origin) as unfinished:
        written = save_folder(model, tokenizer, unfinished, model_card(saved, checkpoint_path), merge)
        if policy.embedding is not None:
            save_embedding(unfinished, policy.embedding, gate)
        opened = reopen(unfinished, policy)
        refuse_other_weights(opened, weights if written is model else written.state_dict(), folder)
        after = scores_of_folder(opened, policy, unfinished, sample, tokenizer.pad_token_id, folder)
        reward = policy.outputs is not None
        names = [] if reward else tokenizer.convert_ids_to_tokens(stops(model))
        accepted = (REWARD if reward else PER_TOKEN)[policy.dtype]
        if written is not model and policy.dtype in ("bfloat16", "float16"):
            move_by_a_unit(opened, adapted_weights(model))
            moved = scores_of_folder(opened, policy, unfinished, sample, tokenizer.pad_token_id, folder)
            accepted = explained_by_rounding(apart(after, moved, sample), policy)
        exported = Exported(folder, *apart(before, after, sample), len(sample), policy.dtype, names, accepted, reward)
        refuse_other_scores(exported, merged=written is not model)
    return exported


def _pair(prompt: list[int], chosen: list[int], rejected: list[int] | None) -> PreferencePair:
    return PreferencePair("", prompt, chosen, rejected, None, None, {}, None, NO_TEXT)


def refuse_other_weights(opened: nn.Module, expected: dict[str, Tensor], folder: Path) -> None:
    """Refuse a folder whose weights differ from those it was made from, to the last bit of its own dtype.

    Raises:
        UserError: A tensor is missing or differs.
    """
    found = opened.state_dict()
    for name, tensor in expected.items():
        if name not in found or not torch.equal(found[name], tensor.to(found[name].dtype)):
            raise UserError(
                f"{name} in the exported folder is not that of the checkpoint, so {folder} was not written; please "
                "report this with the name of the policy's architecture"
            )


def refuse_other_scores(exported: Exported, merged: bool) -> None:
    """Refuse a folder whose model scores pairs differently from the checkpoint.

    Raises:
        UserError: The scores are further apart than rounding explains.
    """
    if not exported.excess:
        return
    if not merged:
        cause = "the model that transformers opens computes something else than the trained one; report this with the "
        cause += "name of the policy's architecture"
    elif exported.dtype in ("bfloat16", "float16"):
        cause = f"merging the adapter rounds its change of the weights to {exported.dtype}: write the adapter alone "
        cause += "(--merge false), or set policy.dtype to float32 and train again"
    else:
        cause = "the adapter cannot be merged into this model: write it alone (--merge false), and report this with "
        cause += "the name of the policy's architecture"
    words = f"{exported.largest_difference:.1e}"
    if not exported.reward:
        words += f" nats a response, {exported.per_token:.1e} a token"
    raise UserError(
        f"the scores of the model in the folder differ from the checkpoint's by {words} where {exported.accepted:.1e} "
        f"is accepted, so {exported.folder} was not written; {cause}"
    )


def model_card(saved: dict[str, Any], checkpoint_path: Path) -> str:
    """The README.md of the folder, which says how the model was trained."""
    import yaml

    method = saved["objective_class"].rpartition(".")[2]
    config = [
        "The configuration that made it:",
        "",
        "```yaml",
        yaml.safe_dump(saved["config"], sort_keys=False).strip(),
    ]
    return "\n".join(
        [
            "---",
            "library_name: transformers",
            "tags: [lit_pref, preference-optimisation]",
            "---",
            "",
            f"Trained with lit_pref by `{method}`, from checkpoint `{checkpoint_path.name}`.",
            "",
            f"- objective: `{saved['objective']}`",
            f"- policy before training: {saved['policy_text']}",
            *(f"- reference: {text}" for text in saved.get("reference_texts", [])),
            *(f"- resumed {change}" for change in saved.get("changes", [])),
            "",
            *([*config, "```", ""] if saved["config"] else []),
        ]
    )


def _last_tokens(sample: list[PreferencePair], tokenizer: Any) -> set[int]:
    responses = [ids for pair in sample for ids in (pair.chosen, pair.rejected) if ids]
    return {ids[-1] for ids in responses} | {tokenizer.eos_token_id}
