"""Writing a policy as a Hugging Face folder, and opening it again."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from lit_pref.models.loading import without_bars
from lit_pref.models.policy import Policy


def save_folder(model: nn.Module, tokenizer: Any, folder: Path, card: str, merge: bool) -> None:
    """Write weights (safetensors), configuration, tokenizer and model card into `folder`.

    A LoRA policy is merged into plain weights, or with `merge=False` written as the adapter alone.
    """
    folder.mkdir(parents=True, exist_ok=True)
    whole: Any = model
    if isinstance(model, PeftModel) and merge:
        # A copy: merging changes the base weights, and the caller still scores with the model it has.
        whole = copy.deepcopy(model).merge_and_unload()
    with without_bars():
        whole.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text(card, encoding="utf-8")


def reopen(folder: Path, policy: Policy) -> nn.Module:
    """The model in a folder that `save_folder` wrote, as a user would open it."""
    AutoTokenizer.from_pretrained(folder)
    if (folder / "config.json").exists():
        with without_bars():
            return AutoModelForCausalLM.from_pretrained(folder, dtype=policy.dtype, use_safetensors=True)
    plain = dataclasses.replace(policy, lora=None, tokenizer=str(folder)).build()
    return PeftModel.from_pretrained(plain, folder)
