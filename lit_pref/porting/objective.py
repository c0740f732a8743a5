"""The objective that the loss of a TRL trainer is here, with its remarks."""

from typing import Any

from lit_pref.errors import UsageError
from lit_pref.hints import did_you_mean
from lit_pref.porting.losses import LOSSES, Settings, loss_named, part

OF_LOSS = frozenset(
    "loss_type loss_weights beta label_smoothing ld_alpha f_divergence_type f_alpha_divergence_coef use_weighting "
    "discopop_tau sync_ref_model ref_model_mixup_alpha ref_model_sync_steps cpo_alpha simpo_gamma alpha "
    "center_rewards_coefficient".split()
)
"""Settings of TRL's trainers that belong to the objective."""


def objective_of(trainer: str, settings: Settings, given: Settings) -> tuple[Any, list[str]]:
    """Return the objective as a configuration has it, and remarks.

    Raises:
        UsageError: a loss is unknown or has no counterpart.
    """
    names = settings.get("loss_type", "")
    names = names if isinstance(names, list) else [names]
    specs, remarks = [], []
    for name in names:
        spec, said = _one(trainer, name, settings, given)
        specs.append(spec)
        remarks += said
    if len(specs) == 1 and not settings.get("loss_weights"):
        return specs[0], remarks
    weights = settings.get("loss_weights") or [1.0] * len(specs)
    if len(weights) != len(specs):
        raise UsageError(f"--from_trl: {len(specs)} losses have {len(weights)} loss_weights")
    return {"class_path": "Weighted", "init_args": {"objectives": specs, "weights": list(weights)}}, remarks


def _one(trainer: str, name: str, settings: Settings, given: Settings) -> tuple[Any, list[str]]:
    loss = loss_named(trainer, name)
    if loss is None:
        known = [loss.name for loss in LOSSES if loss.trainer == trainer]
        raise UsageError(f"--from_trl: loss_type {name!r} is none of {', '.join(known)}{did_you_mean(name, known)}")
    remarks = [f"{name}: {loss.difference}"] if loss.difference else []
    return part(loss.objective, **loss.arguments(settings)), remarks
