"""Stores information about a run in its checkpoints, and refuses to resume a run that would silently change."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from lit_pref.errors import UserError
from lit_pref.models.generation import stops
from lit_pref.models.prefix_sharing import prefix_sharing_obstacle
from lit_pref.models.setting_names import DTYPES
from lit_pref.models.spec import Lora, ModelSpec
from lit_pref.objectives.base import Objective
from lit_pref.objectives.parts.gamma import Gamma
from lit_pref.scores import PromptValue
from lit_pref.scoring.layout import Layout

KEY = "lit_pref"
"""The key of this information in a checkpoint."""
FORMAT = 2  # raise it when older checkpoints can no longer be resumed or exported
SAMPLE = 8
"""Pairs kept in a checkpoint, as ids.

They do not show that a checkpoint contains the trained weights, because no scores are kept. An export scores them with
the weights of the checkpoint and with the folder it wrote, which shows that both give the same scores.
"""


class FrozenModel(Protocol):
    """A model other than the trained one, which a resumed run must have again."""

    def describe(self) -> str: ...

    def fingerprint(self) -> str: ...


def class_path(instance: Any) -> str:
    """The import path of an object's class.

    >>> class_path(Lora())
    'lit_pref.models.lora.Lora'
    """
    return f"{type(instance).__module__}.{type(instance).__qualname__}"


def model_info(spec: ModelSpec, model: Any) -> dict[str, Any]:
    """Describe the trained model in plain data, so that the checkpoint loads with `weights_only`.

    If the checkpoint contains all weights, the architecture is the content of config.json, and the model's folder is
    not needed.
    """
    whole = spec.adapters is None
    return {
        "model": asdict(spec) | {name: _absolute(getattr(spec, name)) for name in ("path", "tokenizer", "base_model")},
        "policy": spec.fingerprint(),
        "policy_text": spec.describe(),
        "lora": _settings(spec.adapters),
        "end_tokens": stops(model),
        "architecture": json.loads(model.config.to_json_string(use_diff=False)) if whole else None,
    }


def objective_info(objective: Objective, fitted: list[str]) -> dict[str, Any]:
    """Describe the objective in plain data; `fitted` are the lines about values fitted to the training pairs."""
    return {
        "objective": repr(objective),
        "objective_class": class_path(objective),
        "objective_state": sorted(objective.state_dict()),
        "fitted": fitted,
        "fitted_by": _fitted_by(objective),
    }


def reference_info(references: Sequence[FrozenModel]) -> dict[str, Any]:
    """Describe the references in plain data."""
    return {
        "references": [reference.fingerprint() for reference in references],
        "reference_texts": [reference.describe() for reference in references],
    }


def without_frozen(state: dict[str, Any], module: nn.Module) -> dict[str, Any]:
    """Return a state dict without the parameters that are not trained, such as the base weights under LoRA."""
    # Tied weights are listed under both of their names.
    everything = module.named_parameters(remove_duplicate=False)
    frozen = {name for name, parameter in everything if not parameter.requires_grad}
    return {name: value for name, value in state.items() if name not in frozen}


def content_of(checkpoint: Path) -> dict[str, Any]:
    """Return the content of a checkpoint; tensors stay on disk until they are used."""
    file = checkpoint if checkpoint.is_file() else checkpoint / "meta.pt"
    content: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    return content


def format_problem(checkpoint: dict[str, Any]) -> str | None:
    """Return the reason why this version cannot read a checkpoint, to end a sentence with; None if it can."""
    saved = checkpoint.get(KEY)
    if saved is None:
        return "is not a checkpoint of lit_pref"
    if saved["format"] != FORMAT:
        return (
            f"was written by another version of lit_pref (format {saved['format']}, this version reads {FORMAT}): use "
            "the version that wrote it"
        )
    return None


def read_info(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Return the information in a checkpoint.

    Raises:
        UserError: This version cannot read it.
    """
    if problem := format_problem(checkpoint):
        raise UserError(f"this checkpoint {problem}")
    return checkpoint[KEY]


def check_state(saved: dict[str, Any], spec: ModelSpec, objective: Objective) -> None:
    """Refuse a checkpoint whose state this run cannot load.

    Raises:
        UserError: It is from other adapters, another base model, or an objective with other state.
    """
    head = saved["model"].get("head", "lm")
    if head != spec.head:
        kinds = {"lm": "a language model", "scalar": "a reward model"}
        raise UserError(
            f"the checkpoint is of {kinds[head]} and this run trains {kinds[spec.head]} (model.policy.head "
            f"{spec.head}): set model.policy.head to {head}, or start a new run from an exported folder"
        )
    # Adapters are checked before the base model: a checkpoint of whole weights has none, whatever its model is.
    lora = _settings(spec.adapters)
    if (saved["lora"] and asdict(Lora(**saved["lora"]))) != lora:
        raise UserError(
            f"the adapters of the checkpoint have the settings {saved['lora']} and model.policy.lora of this run is "
            f"{lora}; give the run the checkpoint's settings, or start a new run from an exported folder"
        )
    if lora is not None and saved["policy"] != spec.fingerprint():
        raise UserError(
            f"the policy ({spec.describe()}) is not the model of the checkpoint ({saved['policy_text']}), "
            "which contains adapters only; set model.policy to that base model"
        )
    valued = any(name.startswith("scorer.value.") for name in saved["trainable"])
    if valued != any(isinstance(need, PromptValue) for need in objective.requirements.statistics):
        raise UserError(
            f"the checkpoint has {'a' if valued else 'no'} value head, and the objective of this run ({objective!r}) "
            f"trains {'none' if valued else 'one'}; use the checkpoint's objective ({saved['objective']}), or start a "
            "new run from an exported folder"
        )
    state = sorted(objective.state_dict())
    if saved["objective_state"] != state:
        raise UserError(
            f"the objective of this run ({objective!r}) stores {', '.join(state) or 'nothing'} in a checkpoint, and "
            f"that of the checkpoint ({saved['objective']}) stores "
            f"{', '.join(saved['objective_state']) or 'nothing'}; use the checkpoint's objective, or start a new run "
            "from an exported folder"
        )


def check_run(saved: dict[str, Any], module: Any) -> None:
    """Refuse a checkpoint whose state a module cannot load, or with which it would resume another training.

    Raises:
        UserError: See `check_state` and `check_resumption`.
    """
    check_state(saved, module.spec, module.objective)
    if module.trainer.state.fn == "fit":
        obstacle = prefix_sharing_obstacle(module.spec) if module.batch_layout == "padded" else None
        check_resumption(saved, module.objective, module.batch_layout, obstacle)


def check_resumption(saved: dict[str, Any], objective: Objective, layout: Layout, obstacle: str | None = None) -> None:
    """Refuse to resume training with another fitting rule or layout.

    Args:
        saved: the information in the checkpoint.
        objective: the objective of this run.
        layout: the layout of this run.
        obstacle: the reason why this run's model cannot read prefix-shared rows; None if it can.

    Raises:
        UserError: The fitting rules or the layouts differ.
    """
    # Fitted values are restored from the checkpoint, so a different rule in the config would be ignored.
    for name, rule in saved["fitted_by"].items():
        if (own := _fitted_by(objective).get(name)) != rule:
            raise UserError(
                f"{name} of the checkpoint was fitted by {rule}, and this run sets {own}, but a resumed run does not "
                "fit it again: give the run the checkpoint's settings, or start a new run from an exported folder"
            )
    if saved["layout"] == layout:
        return
    if saved["layout"] == "prefix_shared" and obstacle is not None:
        raise UserError(
            f"this run needs the {layout} layout ({obstacle}), and the checkpoint was trained in prefix_shared, which "
            "gives other last bits: give model.policy the checkpoint's settings (dropout, attention), or start a new "
            "run from an exported folder"
        )
    raise UserError(
        f"the checkpoint was trained in the {saved['layout']} layout and this run would resume in the {layout} one, "
        f"which gives other last bits: set model.layout to {saved['layout']}"
    )


def check_trained_tensors(saved: dict[str, Any], state: dict[str, Any] | None) -> None:
    """Refuse a checkpoint that lacks trained tensors; `state` is None if tensors are loaded separately.

    Raises:
        UserError: Tensors are missing.
    """
    missing = set() if state is None else set(saved["trainable"]) - set(state)
    if missing:
        raise UserError(f"the checkpoint lacks trained tensors: {', '.join(sorted(missing)[:4])}; it is not complete")


def check_references(saved: dict[str, Any], references: Sequence[FrozenModel]) -> None:
    """Refuse to resume against other references.

    Raises:
        UserError: A reference is another model, or has another dtype.
    """
    own = reference_info(references)
    # Only the dtype of a description is compared, because a folder may move.
    same_dtypes = _dtypes(saved["reference_texts"]) == _dtypes(own["reference_texts"])
    if saved["references"] != own["references"] or not same_dtypes:
        raise UserError(
            f"the references are not those of the checkpoint: it has {saved['reference_texts']}, this run has "
            f"{own['reference_texts']}; set model.references to those of the checkpoint, or start a new run from an "
            "exported folder"
        )


def _fitted_by(objective: Objective) -> dict[str, str]:
    """The parts of the objective that are fitted to the training pairs, with their settings."""
    parts = objective.named_modules()
    return {name: repr(part) for name, part in parts if isinstance(part, Gamma) and part.requirements.fit_inputs}


def _settings(lora: Lora | None) -> dict[str, Any] | None:
    return None if lora is None else asdict(lora)


def _absolute(name: str | None) -> str | None:
    """The absolute path of a local folder, as an export may be made elsewhere; any other name as it is."""
    path = os.path.expanduser(name or "")
    return os.path.abspath(path) if os.path.isdir(path) else name


def _dtypes(descriptions: list[str]) -> list[list[str]]:
    return [[part for part in text.split(", ") if part in DTYPES][-1:] for text in descriptions]
