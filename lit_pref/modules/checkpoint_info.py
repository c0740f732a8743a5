"""What a checkpoint says about the run that wrote it, and what a run refuses to go on from."""

import json
import warnings
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from lit_pref.errors import UserError
from lit_pref.models.spec import DTYPES, Lora
from lit_pref.objectives.parts.gamma import Gamma

if TYPE_CHECKING:
    from lit_pref.modules.preference import PreferenceModule

FORMAT = 1
SAMPLE = 8
"""Pairs kept in a checkpoint, as ids.

An export scores them with the weights of the checkpoint and again with the folder that it wrote: that shows that the
folder computes what the checkpoint does. It does not show that the checkpoint is what was trained: no scores are kept.
"""


def provenance(module: "PreferenceModule") -> dict[str, Any]:
    """Plain data only, so that the checkpoint loads with weights_only and the command line wins over it."""
    return {
        "format": FORMAT,
        "config": module.plain_config,
        "objective": repr(module.objective),
        "objective_state": sorted(module.objective.state_dict()),
        "fitted": module.fitted,
        "fitted_by": _fitted_by(module),
        "policy": module.policy.fingerprint(),
        "policy_text": module.policy.describe(),
        "lora": _settings(module.policy.lora),
        "architecture": _architecture(module),
        "layout": module.batch_layout,
        "references": [reference.fingerprint() for reference in module.references],
        "reference_texts": [reference.describe() for reference in module.references],
        "sample": module.trainer.datamodule.sample(SAMPLE),  # type: ignore[attr-defined]
        "trainable": [name for name, parameter in module.named_parameters() if parameter.requires_grad],
    }


def _fitted_by(module: "PreferenceModule") -> dict[str, str]:
    """The parts of the objective that were fitted to the training pairs: their settings say how."""
    parts = module.objective.named_modules()
    return {name: repr(part) for name, part in parts if isinstance(part, Gamma) and part.fit_inputs}


def _settings(lora: Lora | None) -> dict[str, Any] | None:
    return None if lora is None else asdict(lora)


def _architecture(module: "PreferenceModule") -> dict[str, Any] | None:
    """config.json of a policy that is wholly in the checkpoint, which then does not need the policy's folder."""
    if module.policy.lora is not None:
        return None
    config: Any = module.scorer.model.config  # type: ignore[union-attr]
    return json.loads(config.to_json_string(use_diff=False))


def check_provenance(module: "PreferenceModule", checkpoint: dict[str, Any]) -> None:
    """Refuse a checkpoint that this run would silently make something else of; name what was changed on purpose.

    Raises:
        UserError: Another version's checkpoint, another base model, other adapters, an objective with other state or
            other references, or tensors that are missing.
    """
    saved = checkpoint.get("lit_pref")
    if saved is None or saved["format"] != FORMAT:
        raise UserError(
            "this checkpoint was not written by this version of lit_pref; resume with the one that wrote it"
        )
    _check_policy(module, saved)
    state = sorted(module.objective.state_dict())
    if saved["objective_state"] != state:
        raise UserError(
            f"the objective of this run ({module.objective!r}) keeps {', '.join(state) or 'nothing'} in a checkpoint, "
            f"and that of the checkpoint ({saved['objective']}) {', '.join(saved['objective_state']) or 'nothing'}; "
            "take the checkpoint's objective, or start a new run from an exported folder"
        )
    if module.trainer.state.fn == "fit":
        _check_references(module, saved)
        _check_fitted(module, saved)
        layout = saved.get("layout", "padded")  # of checkpoints from before there were two
        if layout != module.batch_layout:
            raise UserError(
                f"the checkpoint was trained in the {layout} layout and this run would go on in the "
                f"{module.batch_layout} one ({module.layout_reason}), which gives other last bits: set model.layout to "
                f"{layout}"
            )
        if saved["objective"] != repr(module.objective):
            warnings.warn(
                f"the run goes on with another objective: the checkpoint has {saved['objective']}, this run "
                f"{module.objective!r}",
                stacklevel=2,
            )
    missing = set(saved["trainable"]) - set(checkpoint.get("state_dict", saved["trainable"]))
    if missing:
        raise UserError(f"the checkpoint lacks trained tensors: {', '.join(sorted(missing)[:4])}; it is not whole")


def _check_fitted(module: "PreferenceModule", saved: dict[str, Any]) -> None:
    # What was fitted is state, so that another rule would be printed and not followed.
    for name, rule in saved.get("fitted_by", {}).items():
        if (own := _fitted_by(module).get(name)) != rule:
            raise UserError(
                f"{name} of the checkpoint was fitted by {rule}, and this run says {own}, which a run that goes on "
                "does not fit again: give the run the checkpoint's settings, or start a new run from an exported folder"
            )


def _check_policy(module: "PreferenceModule", saved: dict[str, Any]) -> None:
    # Before the base model: a checkpoint of whole weights has no adapters, whatever the model.
    lora = _settings(module.policy.lora)
    if saved["lora"] != lora:
        raise UserError(
            f"the adapters of the checkpoint have the settings {saved['lora']} and model.policy.lora of this run is "
            f"{lora}; give the run the checkpoint's settings, or start a new run from an exported folder"
        )
    if lora is not None and saved["policy"] != module.policy.fingerprint():
        raise UserError(
            f"the policy ({module.policy.describe()}) is not the model of the checkpoint ({saved['policy_text']}), "
            "which holds adapters only; give the run its base model back"
        )


def _check_references(module: "PreferenceModule", saved: dict[str, Any]) -> None:
    described = [reference.describe() for reference in module.references]
    fingerprints = [reference.fingerprint() for reference in module.references]
    # Of the descriptions only the dtype counts: a folder may move.
    if saved["references"] != fingerprints or _dtypes(saved["reference_texts"]) != _dtypes(described):
        raise UserError(
            f"the references are not those of the checkpoint: it has {saved['reference_texts']}, this run has "
            f"{described}; give the run its references back, or start a new run from an exported folder"
        )


def _dtypes(descriptions: list[str]) -> list[list[str]]:
    return [[part for part in text.split(", ") if part in DTYPES][-1:] for text in descriptions]
