"""`python -m lit_pref export`: a Hugging Face folder from any checkpoint that training writes."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser
from torch import Tensor, nn

from lit_pref.callbacks.checkpointing import is_complete
from lit_pref.errors import UsageError, UserError
from lit_pref.models.policy import Lora, Policy
from lit_pref.models.saving import reopen, save_folder
from lit_pref.scoring.layout import padded
from lit_pref.scoring.score import Scorer
from lit_pref.types import PreferenceBatch

PREFIX = "scorer.model."


@dataclass(frozen=True)
class Exported:
    """Where the folder is, and how far its scores are from those of the checkpoint (nats a response)."""

    folder: Path
    largest_difference: float
    pairs: int


def export(ckpt_path: str | Path, out: str | Path, merge: bool = True, pairs: int = 8) -> Exported:
    """Write the policy of a checkpoint as a Hugging Face folder, open it again, and compare the scores of some pairs.

    Args:
        ckpt_path: A checkpoint file, or a folder of shards as FSDP2 writes it.
        out: The folder to write; it must not exist, or be an earlier export.
        merge: Merge a LoRA adapter into the weights; else the folder holds the adapter alone.
        pairs: How many pairs are scored before and after; they are kept in the checkpoint.

    Raises:
        UserError: The checkpoint is not complete, or not one of this project's.
        UsageError: `out` holds something else.
    """
    checkpoint_path, folder = Path(ckpt_path), Path(out)
    if (
        folder.exists()
        and any(folder.iterdir())
        and not (folder / "config.json").exists()
        and not (folder / "adapter_config.json").exists()
    ):
        raise UsageError(f"{folder} is not empty and not an exported model; give another --out")
    checkpoint = read_checkpoint(checkpoint_path)
    saved = checkpoint["lit_pref"]
    policy = policy_of(saved["config"], checkpoint_path)
    tokenizer = policy.load_tokenizer()
    model = policy.build()
    weights = {n.removeprefix(PREFIX): t for n, t in checkpoint["state_dict"].items() if n.startswith(PREFIX)}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    trained = {name.removeprefix(PREFIX) for name in saved["trainable"]}
    if unexpected or trained & set(missing):
        raise UserError(
            f"{checkpoint_path}: its tensors do not fit the policy in its configuration: {[*unexpected, *missing][:4]}"
        )
    save_folder(model, tokenizer, folder, model_card(saved, checkpoint_path), merge)
    sample = saved["sample"][:pairs]
    difference = _largest_difference(model, reopen(folder, policy), sample, tokenizer.pad_token_id)
    return Exported(folder, difference, len(sample))


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a checkpoint file or of a folder of shards, on the CPU.

    Raises:
        UserError: It does not exist, was not written to its end, or is not one of this project's.
    """
    if not path.exists():
        raise UserError(f"checkpoint {path} does not exist")
    if not is_complete(path):
        raise UserError(f"checkpoint {path} was not written to its end; take an earlier one")
    if path.is_file():
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    else:
        from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

        with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
            whole = Path(scratch) / "whole.pt"
            dcp_to_torch_save(path, whole)
            checkpoint = torch.load(whole, map_location="cpu", weights_only=True)
        checkpoint |= torch.load(path / "meta.pt", map_location="cpu", weights_only=True)
    if "lit_pref" not in checkpoint:
        raise UserError(f"{path} is not a checkpoint of lit_pref")
    return checkpoint


def policy_of(config: dict[str, Any], checkpoint_path: Path) -> Policy:
    """The policy that a saved configuration describes, with the tokenizer that its run folder kept."""
    fields = dict(config["model"]["policy"])
    if fields.get("lora"):
        fields["lora"] = Lora(**fields["lora"])
    kept = checkpoint_path.parent.parent / "tokenizer"
    if kept.is_dir():
        fields["tokenizer"] = str(kept)
    return Policy(**fields)


def model_card(saved: dict[str, Any], checkpoint_path: Path) -> str:
    """README.md of the folder: how the model was made."""
    import yaml

    method = saved["config"]["model"]["objective"]["class_path"].rsplit(".", 1)[-1]
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
            *(f"- reference: {text}" for text in saved["reference_texts"]),
            "",
            "The configuration that made it:",
            "",
            "```yaml",
            yaml.safe_dump(saved["config"], sort_keys=False).strip(),
            "```",
            "",
        ]
    )


def _largest_difference(before: nn.Module, after: nn.Module, sample: Sequence[Any], pad: int) -> float:
    differences = [0.0]
    for prompt, chosen, rejected in sample:
        batch = _batch(prompt, chosen, rejected, pad)
        differences.append(float((_scores(before, batch) - _scores(after, batch)).abs().max()))
    return max(differences)


@torch.no_grad()
def _scores(model: nn.Module, batch: PreferenceBatch) -> Tensor:
    scores = Scorer(model.eval())(batch)
    sides = [scores.chosen] + ([scores.rejected] if scores.rejected is not None else [])
    return torch.cat([side.scores for side in sides])


def _batch(prompt: list[int], chosen: list[int], rejected: list[int] | None, pad: int) -> PreferenceBatch:
    ids, mask, predictors, targets, sequences = padded(
        [prompt], [chosen], None if rejected is None else [rejected], pad
    )
    lengths = None if rejected is None else torch.tensor([len(rejected)])
    return PreferenceBatch(
        pair_ids=["sample"],
        input_ids=ids,
        attention_mask=mask,
        predictors=predictors,
        targets=targets,
        sequences=sequences,
        chosen_lengths=torch.tensor([len(chosen)]),
        rejected_lengths=lengths,
        margin=None,
        probability=None,
        real=torch.tensor([True]),
        window_pairs=1,
    )


def main(arguments: list[str]) -> None:
    """The command line of `export`."""
    from lit_pref.parser import Parser

    parser: ArgumentParser = Parser(prog="python -m lit_pref export")
    parser.add_function_arguments(export)
    options = parser.parse_args(arguments[1:])
    done = export(**options.as_dict())
    print(f"wrote {done.folder}")
    print(f"opened again, the scores of {done.pairs} pairs differ by at most {done.largest_difference:.2e} nats")
    print(f"open it with AutoModelForCausalLM and AutoTokenizer: .from_pretrained({str(done.folder)!r})")
