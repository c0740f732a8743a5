"""Mixture-of-experts models, whose routers have a loss of their own."""

import inspect
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from lit_pref.errors import UsageError

ROUTERS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
"""The names that configurations give to the number of experts."""


def has_experts(config: Any) -> bool:
    """Return whether a model with this configuration routes tokens to experts."""
    text = config.get_text_config()
    return any(getattr(text, name, None) for name in ROUTERS)


def use_eager_experts_in_float64(model: Any) -> None:
    """Make a model in float64 compute its experts one after the other, because torch's grouped_mm has no float64."""
    if model.dtype == torch.float64 and has_experts(model.config) and hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")


def router_weight(config: Any, asked: float | None) -> float:
    """Return the weight of the model's router loss in the training loss; 0 is off.

    Args:
        config: the configuration of the model.
        asked: `ModelSpec.router_loss`. None takes the configuration's `router_aux_loss_coef` if it sets
            `output_router_logits`, and else 0.

    Raises:
        UsageError: a weight is asked for, and the model has no experts or transformers computes no loss of them.
    """
    if asked is None:
        text = config.get_text_config()
        on = getattr(text, "output_router_logits", False) and _computes_router_loss(config)
        return float(getattr(text, "router_aux_loss_coef", None) or 0.0) if on else 0.0
    if asked and not has_experts(config):
        raise UsageError(
            f"policy.router_loss is {asked:g}, and a {config.model_type} has no experts to balance: leave it out"
        )
    if asked and not _computes_router_loss(config):
        raise UsageError(
            f"policy.router_loss is {asked:g}, and transformers computes no router loss for a {config.model_type}: "
            "set it to 0 to train without one"
        )
    return asked


def router_line(config: Any, asked: float | None) -> str | None:
    """Return a sentence about the router loss of a mixture-of-experts model; None for others.

    Args:
        config: the configuration of the model.
        asked: see `router_weight`.
    """
    if not has_experts(config):
        return None
    if weight := router_weight(config, asked):
        return f"the router loss of the policy's experts is on: the training loss has {weight:g} times it added"
    text = config.get_text_config()
    coefficients = [
        f"{name} {value:g}"
        for name in ("router_aux_loss_coef", "aux_loss_alpha", "router_z_loss_coef")
        if (value := getattr(text, name, None))
    ]
    of_config = f" (its configuration has {', '.join(coefficients)})" if coefficients else ""
    remedy = (
        "policy.router_loss sets its weight"
        if _computes_router_loss(config)
        else f"transformers computes none for a {config.model_type}, so watch their balance, or train few steps"
    )
    return (
        f"the policy routes tokens to experts, and its router loss is off{of_config}: the loss is the objective's "
        f"alone, so nothing keeps the experts equally used; {remedy}"
    )


def _computes_router_loss(config: Any) -> bool:
    """Return whether transformers' class for this configuration computes `aux_loss` for a part of the logits."""
    mapping: Any = AutoModelForCausalLM._model_mapping
    if type(config) not in mapping:
        return False
    arguments = inspect.signature(mapping[type(config)].forward).parameters
    return {"output_router_logits", "logits_to_keep"} <= set(arguments)
