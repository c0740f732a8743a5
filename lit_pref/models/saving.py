"""Saves a policy as a Hugging Face folder, atomically, and opens it again."""

import copy
import dataclasses
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from lit_pref.errors import UsageError, UserError
from lit_pref.models import embedding_reader
from lit_pref.models.experts import use_eager_experts_in_float64
from lit_pref.models.loading import building, draw_weights, first_line, without_bars
from lit_pref.models.lora import merged
from lit_pref.models.reward import Embedding, draw_reward_model
from lit_pref.models.setting_names import DTYPES
from lit_pref.models.spec import ModelSpec

MARKER = "lit_pref.json"
"""The file that marks a folder as an export; it records the origin and the files that were written."""


def save_folder(model: nn.Module, tokenizer: Any, folder: Path, card: str, merge: bool) -> nn.Module:
    """Write weights (safetensors), configuration, tokenizer and model card, and return the model that was written.

    A LoRA policy is merged into plain weights; with `merge=False` only the adapter is written.
    """
    whole: Any = model
    if isinstance(model, PeftModel) and merge:
        # A copy, because merging changes the base weights of a model that the caller still uses.
        whole = merged(copy.deepcopy(model))
    try:
        with without_bars():
            whole.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        (folder / "README.md").write_text(card, encoding="utf-8")
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"the export cannot be written ({first_line(error)}): make room on the disk, or export to another "
            "folder (export --out); nothing half-finished is left"
        ) from error
    return whole


def save_embedding(folder: Path, embedding: Embedding, gate: Tensor | None) -> None:
    """Write the settings and the gate of a preference embedding, and the module that reads them."""
    settings = json.dumps(dataclasses.asdict(embedding), indent=2) + "\n"
    (folder / embedding_reader.SETTINGS).write_text(settings, encoding="utf-8")
    if gate is not None:
        save_file({"weight": gate.detach().cpu().contiguous()}, folder / embedding_reader.GATE)
    shutil.copyfile(embedding_reader.__file__, folder / "embedding_reader.py")


def reopen(folder: Path, policy: ModelSpec) -> nn.Module:
    """Open the model in a folder that `save_folder` wrote, as a user would."""
    trusted = policy.trust_remote_code
    AutoTokenizer.from_pretrained(folder, trust_remote_code=trusted)
    if (folder / "config.json").exists():
        task = AutoModelForCausalLM if policy.outputs is None else AutoModelForSequenceClassification
        with without_bars():
            model = task.from_pretrained(folder, dtype=policy.dtype, use_safetensors=True, trust_remote_code=trusted)
        use_eager_experts_in_float64(model)
        return model
    plain = dataclasses.replace(policy.without_adapters(), tokenizer=str(folder)).build()
    return PeftModel.from_pretrained(plain, folder)


def from_architecture(architecture: dict[str, Any], policy: ModelSpec) -> nn.Module:
    """Build the policy's model with random weights, from the `config.json` that a checkpoint contains.

    Raises:
        UserError: The architecture is not one of transformers' own.
    """
    try:
        config = type(AutoConfig.for_model(architecture["model_type"])).from_dict(architecture)
    except (ValueError, TypeError) as error:
        raise UserError(
            f"the policy ({policy.describe()}) is missing or has changed, and its architecture cannot be built without "
            f"it ({first_line(error)}); restore the model"
        ) from error
    form = {} if policy.attention is None else {"attn_implementation": policy.attention}
    with building(policy.seed or 0):
        if policy.outputs is None:
            return draw_weights(config, DTYPES[policy.dtype], form)
        return draw_reward_model(config, policy.outputs, DTYPES[policy.dtype], form)


def refuse_foreign(folder: Path) -> None:
    """Refuse to overwrite a folder that is not an export.

    Raises:
        UsageError: `folder` exists, and is neither empty nor an earlier export without added files.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UsageError(f"{folder} is a file: move it away, or export to another place (export --out)")
    present = {path.name for path in folder.iterdir()}
    if not present:
        return
    if MARKER not in present:
        raise UsageError(
            f"{folder} is not empty and was not written by an export: move it away, or export to another folder "
            "(export --out)"
        )
    try:
        written = json.loads((folder / MARKER).read_text(encoding="utf-8"))["files"]
    except (ValueError, LookupError, TypeError) as error:
        raise UsageError(
            f"{folder / MARKER} was not written by an export, or is damaged: move {folder} away, or export to another "
            "folder (export --out)"
        ) from error
    if added := sorted(present - {MARKER, *written}):
        raise UsageError(
            f"{folder} is an earlier export with files added to it, which would be lost: {', '.join(added[:4])}; move "
            "them away, or export to another folder (export --out)"
        )


@contextmanager
def replacing(folder: Path, origin: dict[str, Any]) -> Iterator[Path]:
    """Yield a new folder that replaces `folder` at the end, marked with `origin`; on an error it is removed."""
    target = folder.resolve()
    unfinished, old = (target.with_name(f".{target.name}.{state}") for state in ("unfinished", "old"))
    if old.exists() and not target.exists():
        old.rename(target)  # an earlier run was killed between the two renames below
    for leftover in (unfinished, old):
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        unfinished.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"{target} cannot be made ({error.strerror}): name another folder") from error
    try:
        yield unfinished
        marker = {**origin, "files": sorted(path.name for path in unfinished.iterdir())}
        (unfinished / MARKER).write_text(json.dumps(marker, indent=2) + "\n", encoding="utf-8")
        if target.exists():
            target.rename(old)
        unfinished.rename(target)
    finally:
        if old.exists() and not target.exists():
            old.rename(target)  # ended between the two renames
        shutil.rmtree(unfinished, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
