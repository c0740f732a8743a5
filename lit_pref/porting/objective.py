"""The objective that the loss of a TRL trainer is here, with its remarks."""

from typing import Any

from lit_pref.errors import UsageError
from lit_pref.hints import did_you_mean
from lit_pref.porting.losses import LOSSES, Settings, loss_named, part

OF_LOSS = frozenset(
    {
        *("loss_type", "loss_weights", "beta", "label_smoothing", "ld_alpha", "f_divergence_type"),
        *("f_alpha_divergence_coef", "use_weighting", "discopop_tau", "sync_ref_model", "ref_model_mixup_alpha"),
        *("ref_model_sync_steps", "cpo_alpha", "simpo_gamma", "alpha", "center_rewards_coefficient", "rpo_alpha"),
    }
)
"""Settings of TRL's trainers that belong to the objective."""


def objective_of(trainer: str, settings: Settings, given: Settings) -> tuple[Any, list[str]]:
    """Return the objective as a configuration has it, and remarks.

    Raises:
        UsageError: a loss is unknown or has no counterpart.
    """
    names = settings.get("loss_type", "")
    names = names if isinstance(names, list) else [names]
    weights = settings.get("loss_weights")
    if trainer == "dpo" and given.get("rpo_alpha"):  # of earlier releases, now the loss type sft
        weights = [*(weights or [1.0] * len(names)), given["rpo_alpha"]]
        names = [*names, "sft"]
    specs, remarks = [], []
    for name in names:
        spec, said = _one(trainer, name, settings, given)
        specs.append(spec)
        remarks += said
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
    settable = given.keys() & {"label_smoothing", "discopop_tau", "simpo_gamma", "alpha", "cpo_alpha"}
    remarks += [f"{what}: TRL does not read {unread} in this loss." for unread in sorted(settable - {*loss.reads})]
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
