"""Rebuilds the trained model of a checkpoint, with the tokenizer of its run."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lit_pref.callbacks.checkpointing import check_complete
from lit_pref.errors import UserError
from lit_pref.models.reward import Embedding
from lit_pref.models.saving import from_architecture
from lit_pref.models.spec import Lora, ModelSpec
from lit_pref.modules.checkpoint_info import format_problem

PREFIX = "scorer.model."
"""The names of the trained model's tensors in a checkpoint begin with this."""
AFTER_A_BREAK = (
    "take an earlier checkpoint, or train with a lower learning rate or clipped gradients (trainer.gradient_clip_val)"
)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a checkpoint file or of a folder of shards, on the CPU.

    Raises:
        UserError: It does not exist, is not complete, or is not from this project.
    """
    check_complete(path)
    if path.is_file():
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    else:
        checkpoint = read_shards(path)
        checkpoint |= torch.load(path / "meta.pt", map_location="cpu", weights_only=True)
    if problem := format_problem(checkpoint):
        raise UserError(f"{path} {problem}")
    return checkpoint


def read_shards(folder: Path) -> dict[str, Any]:
    """The content of a verified folder of shards, each tensor whole.

    Nothing is written: torch's `dcp_to_torch_save` needs a file, which stays where a run is killed meanwhile.
    """
    from torch.distributed.checkpoint import FileSystemReader
    from torch.distributed.checkpoint.default_planner import _EmptyStateDictLoadPlanner
    from torch.distributed.checkpoint.state_dict_loader import _load_state_dict

    content: dict[str, Any] = {}
    reader = FileSystemReader(folder)
    _load_state_dict(content, storage_reader=reader, planner=_EmptyStateDictLoadPlanner(), no_dist=True)
    return content


def policy_of(model: dict[str, Any], checkpoint_path: Path, trust_remote_code: bool) -> ModelSpec:
    """The policy of a checkpoint, with the tokenizer in its run folder if there is one.

    Args:
        model: the fields of its `ModelSpec`.
        checkpoint_path: of the checkpoint.
        trust_remote_code: whether the caller trusts code that comes with the model.

    Raises:
        UserError: the model comes with code, and the caller does not trust it; or the tokenizer has changed.
    """
    if model.get("trust_remote_code") and not trust_remote_code:
        raise UserError(
            f"{checkpoint_path}: its model comes with code of its own, which is not run on the word of a checkpoint: "
            "add --trust_remote_code if you trust it"
        )
    fields = {**model, "trust_remote_code": trust_remote_code}
    if fields.get("lora"):
        fields["lora"] = Lora(**fields["lora"])
    if fields.get("embedding"):
        fields["embedding"] = Embedding(**fields["embedding"])
    kept = checkpoint_path.parent.parent / "tokenizer"
    if kept.is_dir():
        refuse_changed(kept)
        fields["tokenizer"] = str(kept)
    return ModelSpec(**fields)


def refuse_changed(tokenizer: Path) -> None:
    """Refuse the tokenizer of a run folder if a file of it is not as the run wrote it.

    Raises:
        UserError: a file is missing or has other content.
    """
    try:
        manifest = json.loads((tokenizer.parent / "manifest.json").read_text(encoding="utf-8"))
        digests = dict(manifest["tokenizer_files"])
    except (OSError, ValueError, LookupError, TypeError):
        return  # of an earlier version, or moved without its manifest
    for name, digest in digests.items():
        file = tokenizer / name
        if not file.is_file() or hashlib.sha256(file.read_bytes()).hexdigest() != digest:
            raise UserError(
                f"{file} is {'not as the run wrote it' if file.is_file() else 'missing'}, and a model with another "
                "tokenizer reads other text: restore the file, or move the folder away to take the tokenizer of "
                "model.policy"
            )


def tokenizer_of(policy: ModelSpec, checkpoint_path: Path) -> Any:
    """The policy's tokenizer.

    Raises:
        UserError: It is neither in the run folder nor in its original place.
    """
    try:
        return policy.load_tokenizer()
    except UserError as error:
        if policy.tokenizer == str(checkpoint_path.parent.parent / "tokenizer"):
            raise UserError(f"{checkpoint_path}: the tokenizer in its run folder cannot be used: {error}") from error
        raise UserError(
            f"{checkpoint_path}: the tokenizer of its run is not in {checkpoint_path.parent.parent / 'tokenizer'}, and "
            f"cannot be loaded from the policy either: {error}"
        ) from error


def trained(policy: ModelSpec, saved: dict[str, Any], weights: dict[str, Tensor], checkpoint_path: Path) -> nn.Module:
    """The model with the weights of the checkpoint.

    Raises:
        UserError: They do not fit, or are not finite.
    """
    model = untrained(policy, saved)
    missing, unexpected = model.load_state_dict(weights, strict=False)
    names = {name.removeprefix(PREFIX) for name in saved["trainable"] if name.startswith(PREFIX)}
    if unexpected or names & set(missing):
        raise UserError(
            f"{checkpoint_path}: its tensors do not fit the policy in its configuration: {[*unexpected, *missing][:4]}"
        )
    broken = [name for name in sorted(names) if not torch.isfinite(weights[name]).all()]
    if broken:
        raise UserError(
            f"{checkpoint_path}: {broken[0]} contains numbers that are not finite (so do {len(broken) - 1} other "
            f"tensors): training broke the weights; {AFTER_A_BREAK}"
        )
    return model


def untrained(policy: ModelSpec, saved: dict[str, Any]) -> nn.Module:
    """The model into which to load the checkpoint's tensors; its other parameters are as at the start of the run.

    Raises:
        UserError: The checkpoint needs the model that the run started from, which is missing or has changed.
    """
    if policy.path is not None and saved["lora"] is None:
        # The checkpoint contains all weights and the architecture: the folder may be missing, or contain another model.
        try:
            unchanged = policy.fingerprint() == saved["policy"]
        except UserError:
            unchanged = False
        return policy.build() if unchanged else from_architecture(saved["architecture"], policy)
    if policy.fingerprint() != saved["policy"]:
        raise UserError(
            f"the policy ({policy.describe()}) is not the one that the run started from: its weights, configuration "
            "or tokenizer have changed, and the checkpoint does not contain them; restore them"
        )
    return policy.build()
