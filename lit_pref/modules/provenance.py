"""What a checkpoint says about the run that wrote it, and what a run refuses to go on from."""

import warnings
from typing import TYPE_CHECKING, Any

from lit_pref.errors import UserError

if TYPE_CHECKING:
    from lit_pref.modules.preference import PreferenceModule

FORMAT = 1
SAMPLE = 8
"""Pairs kept in a checkpoint, by which an exported model proves that it is the one that was trained."""


def provenance(module: "PreferenceModule") -> dict[str, Any]:
    """Plain data only, so that the checkpoint loads with weights_only and the command line wins over it."""
    return {
        "format": FORMAT,
        "config": module.plain_config,
        "objective": repr(module.objective),
        "policy": module.policy.fingerprint(),
        "policy_text": module.policy.describe(),
        "references": [reference.fingerprint() for reference in module.references],
        "reference_texts": [reference.describe() for reference in module.references],
        "sample": module.trainer.datamodule.sample(SAMPLE),  # type: ignore[attr-defined]
        "trainable": [name for name, parameter in module.named_parameters() if parameter.requires_grad],
    }


def check_provenance(module: "PreferenceModule", checkpoint: dict[str, Any]) -> None:
    """Refuse a checkpoint that this run would silently make something else of; name what was changed on purpose.

    Raises:
        UserError: Another version's checkpoint, another base model or other references, or tensors that are missing.
    """
    saved = checkpoint.get("lit_pref")
    if saved is None or saved["format"] != FORMAT:
        raise UserError(
            "this checkpoint was not written by this version of lit_pref; resume with the one that wrote it"
        )
    if module.policy.lora is not None and saved["policy"] != module.policy.fingerprint():
        raise UserError(
            f"the policy ({module.policy.describe()}) is not the model of the checkpoint ({saved['policy_text']}), "
            "which holds adapters only; give the run its base model back"
        )
    if module.trainer.state.fn == "fit":
        if saved["references"] != [reference.fingerprint() for reference in module.references]:
            described = [reference.describe() for reference in module.references]
            raise UserError(
                f"the references are not those of the checkpoint: it has {saved['reference_texts']}, this run has "
                f"{described}; give the run its references back, or start a new run from an exported folder"
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
