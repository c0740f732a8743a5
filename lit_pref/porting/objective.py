"""The objective that the loss of a TRL trainer is here, with its remarks."""

from collections.abc import Collection
from typing import Any

from lit_pref.errors import UsageError
from lit_pref.hints import did_you_mean
from lit_pref.porting.losses import LOSSES, Settings, loss_named, part, trainer_title

OF_LOSS = frozenset(
    {
        *("loss_type", "loss_weights", "beta", "label_smoothing", "ld_alpha", "f_divergence_type"),
        *("f_alpha_divergence_coef", "use_weighting", "discopop_tau", "sync_ref_model", "ref_model_mixup_alpha"),
        *("ref_model_sync_steps", "cpo_alpha", "simpo_gamma", "alpha", "center_rewards_coefficient", "rpo_alpha"),
    }
)
"""Settings of TRL's trainers that belong to the objective."""

OF_SOME_LOSSES = frozenset({"label_smoothing", "discopop_tau", "simpo_gamma", "alpha", "cpo_alpha"})
"""Those that only some losses of a trainer read; `objective_of` remarks on each loss that does not."""

READ_ONLY_WITH = {
    "f_alpha_divergence_coef": ("f_divergence_type", "alpha_divergence"),
    "ref_model_mixup_alpha": ("sync_ref_model", True),
    "ref_model_sync_steps": ("sync_ref_model", True),
}
"""Those that are read only if another one has a value."""


def unread(trainer: str, name: str, settings: Settings, known: Collection[str]) -> str:
    """Return why a trainer does not read a setting of the objective; empty if it does, or if its losses decide.

    >>> unread("cpo", "rpo_alpha", {}, {"beta"}), unread("dpo", "rpo_alpha", {}, {"beta"})
    ("TRL's CPO trainer has no such argument", '')

    Args:
        trainer: the name of the trainer.
        name: one of `OF_LOSS`.
        settings: all settings.
        known: the trainer's settings.
    """
    if name in OF_SOME_LOSSES:
        return ""
    if name not in known and (trainer, name) != ("dpo", "rpo_alpha"):
        return f"TRL's {trainer_title(trainer)} trainer has no such argument"
    other, value = READ_ONLY_WITH.get(name, ("", None))
    return f"TRL reads it only with {other}={value}" if other and settings[other] != value else ""


def objective_of(trainer: str, settings: Settings, given: Settings) -> tuple[Any, list[str]]:
    """Return the objective as a configuration has it, and remarks.

    Raises:
        UsageError: a loss is unknown or has no counterpart.
    """
    names = settings.get("loss_type", "")
    names = names if isinstance(names, list) else [names]
    weights = settings.get("loss_weights") if trainer == "dpo" else None
    specs, remarks = [], list[str]()
    if trainer == "dpo" and (alpha := given.get("rpo_alpha")):  # of earlier releases, now the loss type sft
        if "sft" in names:
            remarks.append(f"rpo_alpha={alpha}: it is the loss type sft of earlier releases, on top of the given one.")
        weights = [*(weights or [1.0] * len(names)), alpha]
        names = [*names, "sft"]
    for name in names:
        spec, said = _one(trainer, name, settings, given)
        specs.append(spec)
        remarks += [remark for remark in said if remark not in remarks]
    if len(specs) == 1 and not weights:
        return specs[0], remarks
    weights = weights or [1.0] * len(specs)
    if len(weights) != len(specs):
        raise UsageError(f"--from_trl: {len(specs)} losses have {len(weights)} loss_weights")
    return {"class_path": "Weighted", "init_args": {"objectives": specs, "weights": list(weights)}}, remarks


def _one(trainer: str, name: str, settings: Settings, given: Settings) -> tuple[Any, list[str]]:
    """One loss, with the parts that settings choose."""
    loss = loss_named(trainer, name)
    if loss is None:
        if loss_named(trainer, ""):
            raise UsageError(
                f"--from_trl: TRL's {trainer_title(trainer)} trainer has one loss and no loss_type: leave it out"
            )
        known = [loss.name for loss in LOSSES if loss.trainer == trainer]
        raise UsageError(f"--from_trl: loss_type {name!r} is none of {', '.join(known)}{did_you_mean(name, known)}")
    arguments = loss.arguments(settings)
    for kind, chosen in _parts(trainer, settings).items():
        if kind not in loss.open:
            raise UsageError(
                f"--from_trl: {REASONS[kind]} with loss_type {name} has no counterpart here: leave one of them out"
            )
        arguments[kind] = chosen
    what = loss.title
    remarks = [f"{what}: {loss.difference}."] if loss.difference and loss.differs(settings) else []
    ignored = sorted((given.keys() & OF_SOME_LOSSES) - {*loss.reads})
    remarks += [f"{what}: TRL does not read {setting} in this loss." for setting in ignored]
    return part(loss.objective, **arguments), remarks


REASONS = {"score": "f_divergence_type", "tokens": "ld_alpha", "weight": "use_weighting"}
"""The setting of TRL that chooses each part."""


def _parts(trainer: str, settings: Settings) -> dict[str, Any]:
    """The parts that settings of DPO choose, whatever the loss is."""
    if trainer != "dpo":
        return {}
    found = {}
    if (score := _divergence(settings)) is not None:
        found["score"] = score
    if settings["ld_alpha"] is not None:
        found["tokens"] = part("TailWeighted", alpha=settings["ld_alpha"])
    if settings["use_weighting"]:
        found["weight"] = part("OnPolicyWeight")
    return found


def _divergence(settings: Settings) -> Any:
    name, coefficient = settings["f_divergence_type"], settings["f_alpha_divergence_coef"]
    known = {"reverse_kl": None, "forward_kl": "ForwardKL", "js_divergence": "JensenShannon"}
    if name == "alpha_divergence":
        if coefficient == 1:  # the limit that TRL takes for it
            return None
        if not 0 <= coefficient < 1:
            raise UsageError(
                f"--from_trl: f_alpha_divergence_coef is {coefficient}, and AlphaDivergence has those in [0, 1) only"
            )
        return part("AlphaDivergence", alpha=1 - coefficient)
    if name not in known:
        names = [*known, "alpha_divergence"]
        raise UsageError(f"--from_trl: f_divergence_type {name!r} is none of {', '.join(names)}")
    return known[name]


def references_of(trainer: str, settings: Settings) -> list[Any]:
    """Return the references as a configuration has them, if they are not the default.

    Raises:
        UsageError: the log-probs of a reference that moves are to be computed beforehand.
    """
    if trainer != "dpo" or not settings["sync_ref_model"]:
        return []
    if settings.get("precompute_ref_log_probs"):
        raise UsageError(
            "--from_trl: with sync_ref_model the reference follows the policy, so its log-probs cannot be computed "
            "beforehand (precompute_ref_log_probs): leave one of the two out"
        )
    moves = {"alpha": settings["ref_model_mixup_alpha"], "every": settings["ref_model_sync_steps"]}
    return [{"class_path": "MovingReference", "init_args": moves}]
