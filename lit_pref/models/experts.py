"""Mixture-of-experts models, whose routers have a loss of their own."""

from typing import Any

ROUTERS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
"""The names that configurations give to the number of experts."""


def has_experts(config: Any) -> bool:
    """Return whether a model with this configuration routes tokens to experts."""
    text = config.get_text_config()
    return any(getattr(text, name, None) for name in ROUTERS)


def router_note(config: Any) -> str | None:
    """Return a sentence about the router loss of a mixture-of-experts model, which is never added; None for others."""
    if not has_experts(config):
        return None
    text = config.get_text_config()
    asked = [
        f"{name} {value:g}"
        for name in ("router_aux_loss_coef", "aux_loss_alpha", "router_z_loss_coef")
        if (value := getattr(text, name, None))
    ]
    of_config = f" (its configuration has {', '.join(asked)})" if asked else ""
    return (
        f"the policy routes tokens to experts, and its router loss is off{of_config}: the loss is the objective's "
        "alone, so nothing keeps the experts equally used; watch their balance, or train few steps"
    )
