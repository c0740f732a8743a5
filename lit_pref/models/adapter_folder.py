"""Folders that hold a LoRA adapter instead of a whole model, as `peft` and `export --merge false` write them."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from lit_pref.cache import file_digest
from lit_pref.errors import UserError
from lit_pref.models.folder import SETTINGS, WEIGHTS, adapter_path
from lit_pref.models.loading import first_line
from lit_pref.models.lora import LANGUAGE, REWARD, Lora

_NOT_WEIGHTS = ("base_model_name_or_path", "revision", "inference_mode", "lora_dropout", "peft_version")
"""Settings of an adapter that do not change what it computes."""


@dataclass(frozen=True)
class AdapterFolder:
    """A folder with an adapter.

    Args:
        name: the user's name for it, for messages.
        folder: the folder.
        settings: the content of its adapter_config.json.
    """

    name: str
    folder: Path
    settings: dict[str, Any]

    def base(self, given: str | None) -> tuple[str, str | None]:
        """Return the name and the revision of the model that the adapter is for.

        Args:
            given: the user's name for it; None takes the one that the adapter names, relative to the current folder or
                to the adapter's.

        Raises:
            UserError: the adapter names none.
        """
        if given is not None:
            return given, None
        named = self.settings.get("base_model_name_or_path")
        if not named:
            raise UserError(
                f"the adapter in '{self.name}' does not name the model that it is for: set base_model beside path"
            )
        beside = self.folder / named
        if not os.path.isdir(os.path.expanduser(named)) and beside.is_dir():
            return str(beside), None
        return named, self.settings.get("revision")

    def lora(self) -> Lora:
        """Return its settings. Its dropout is left out, because `ModelSpec.dropout` decides all dropout."""
        targets = self.settings.get("target_modules")
        whole = self.settings.get("modules_to_save")
        return Lora(
            r=self.settings["r"],
            alpha=self.settings["lora_alpha"],
            target_modules=targets if isinstance(targets, str) else sorted(targets or []),
            modules_to_save=None if whole is None else sorted(whole),
        )

    def content(self) -> dict[str, Any]:
        """Return what identifies the adapter: the digest of its weights, and its settings."""
        settings = {name: value for name, value in self.settings.items() if name not in _NOT_WEIGHTS}
        return {"weights": file_digest(self.folder / WEIGHTS), "settings": settings}

    def put_on(self, model: Any, dropout: float, outputs: int | None = None) -> Any:
        """Return the model with the adapter, a PeftModel with the adapter's parameters trainable.

        Raises:
            UserError: the adapter does not fit the model.
        """
        import peft

        try:
            settings: Any = peft.PeftConfig.from_pretrained(str(self.folder))
            settings.base_model_name_or_path = None  # peft would compare it with the name of the model in memory
            settings.inference_mode, settings.task_type = False, LANGUAGE if outputs is None else REWARD
            settings.lora_dropout = dropout
            model = peft.get_peft_model(model, settings)
            result: Any = peft.set_peft_model_state_dict(model, load_file(self.folder / WEIGHTS))
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"the adapter in '{self.name}' is damaged or was not copied to its end ({first_line(error)}): get it "
                "again"
            ) from error
        except (ValueError, TypeError, KeyError, RuntimeError) as error:
            raise self._misfit(first_line(error)) from error
        trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        if missing := sorted(trained.intersection(result.missing_keys)):
            raise self._misfit(f"it has no weights for {missing[0]}")
        if result.unexpected_keys:
            raise self._misfit(f"the model has no place for {sorted(result.unexpected_keys)[0]}")
        return model

    def _misfit(self, reason: str) -> UserError:
        return UserError(
            f"the adapter in '{self.name}' does not fit its base model ({reason}): set base_model to the model that it "
            "was trained on"
        )


def adapter_folder(name: str, revision: str | None = None) -> AdapterFolder | None:
    """Return the adapter in a folder or on the hub; None if there is a whole model.

    Raises:
        UserError: there is nothing of that name, or an adapter that cannot be used: of another kind than LoRA, for
            another task, or without weights in safetensors.
    """
    folder = adapter_path(name, revision)
    if folder is None:
        return None
    try:
        settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        kind, task = settings.get("peft_type"), settings.get("task_type")
        if kind == "LORA":
            settings["r"], settings["lora_alpha"]
    except (OSError, ValueError, LookupError, AttributeError, TypeError) as error:
        raise UserError(f"the {SETTINGS} of '{name}' cannot be read: {first_line(error)}") from error
    if kind != "LORA":
        raise UserError(f"the adapter in '{name}' is of the kind {kind}: only LoRA adapters can be trained or merged")
    if task not in (None, LANGUAGE, REWARD):
        raise UserError(f"the adapter in '{name}' is for the task {task}, not for a language model or a reward model")
    if not (folder / WEIGHTS).is_file():
        raise UserError(
            f"'{name}' has an {SETTINGS} but no {WEIGHTS}: pickled weights can run code when read, so save the adapter "
            "again with peft's save_pretrained"
        )
    return AdapterFolder(name, folder, settings)


def refuse_contradiction(found: AdapterFolder | None, spec: Any) -> None:
    """Refuse the settings of a `ModelSpec` that contradict what its path holds.

    Args:
        found: the adapter in its path; None for a whole model.
        spec: the settings.

    Raises:
        UserError: they do.
    """
    if found is None:
        if spec.base_model is not None or spec.merge_adapter:
            raise UserError(
                f"policy.base_model and policy.merge_adapter are for a policy.path with an adapter, and '{spec.path}' "
                "has none: leave them out"
            )
        return
    if spec.lora is not None and not spec.merge_adapter:
        raise UserError(
            f"'{spec.path}' has an adapter, and policy.lora asks for a new one: leave policy.lora out to continue that "
            "adapter, or set policy.merge_adapter to train the new one on the merged model"
        )
    if (found.settings.get("task_type") == REWARD) != (spec.head == "scalar"):
        trained = "reward" if spec.head == "lm" else "language"
        raise UserError(
            f"'{spec.path}' has the adapter of a {trained} model, and policy.head is {spec.head}: give a folder in "
            "which it is merged into its base model, or set policy.head to what it is"
        )
