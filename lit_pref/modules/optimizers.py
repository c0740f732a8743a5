"""Builds the optimizer of a module; Adam and AdamW are fused where torch supports it."""

from typing import Any

import torch
from torch.optim import Adam, AdamW, Optimizer

from lit_pref.errors import UsageError


def check_optimizer(optimizer: Any) -> None:
    """Build an optimizer over one number, so that its settings are refused before anything takes long.

    Raises:
        UsageError: torch refuses a setting, such as a negative learning rate.
    """
    try:
        optimizer([torch.nn.Parameter(torch.zeros(1))])
    except ValueError as error:
        raise UsageError(f"model.optimizer cannot be built: {error}") from error


def build_optimizer(module: Any) -> Optimizer:
    """Return a module's optimizer over the trainable parameters of its model.

    Adam and AdamW update the weights in one fused kernel if their `fused` is not set (false is obeyed) and
    `fused_obstacle` finds nothing against it.
    """
    optimizer: Optimizer = module.optimizer(_parameters(module.scorer))
    if fused_obstacle(optimizer, module.trainer.strategy.root_device) is None:
        set_fused(optimizer, [True] * len(optimizer.param_groups))
    # Constructed with fused=True, these offer to divide gradients by the loss scale of fp16 within the step. Lightning
    # then refuses to clip gradients; without the offer it divides them before it clips.
    optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
    return optimizer


def _parameters(scorer: Any) -> list[Any]:
    """The trainable parameters of a scorer; a value head is a group with a learning rate of its own."""
    trained = [p for p in scorer.parameters() if p.requires_grad]
    head = getattr(scorer, "value", None)
    if head is None:
        return trained
    own = list(head.parameters())
    policy = [p for p in trained if all(p is not other for other in own)]
    return [{"params": policy}, {"params": own, "lr": head.rate}]


def fused_obstacle(optimizer: Optimizer, device: torch.device) -> str | None:
    """Return the reason why an optimizer is not fused unless the user asks for it; None if it is.

    The weights must be in fp32: in other dtypes, the fused kernel rounds differently.

    Args:
        optimizer: over parameters that may not be on the device yet.
        device: of the training.
    """
    groups = optimizer.param_groups
    if type(optimizer) not in (Adam, AdamW):
        return "only Adam and AdamW are fused by default"
    if any(group["fused"] is False for group in groups):
        return "fused is false"
    for name in ("foreach", "differentiable"):
        if any(group[name] for group in groups):
            return f"{name} is true"
    if device.type not in ("cpu", "cuda"):
        return f"on {device.type} it is not fused by default"
    dtypes = {str(p.dtype).removeprefix("torch.") for group in groups for p in group["params"]} - {"float32"}
    return f"weights are in {', '.join(sorted(dtypes))}" if dtypes else None


def set_fused(optimizer: Optimizer, values: list[Any]) -> None:
    """Set `fused` of each group, and move the counts of steps to where the kernel reads them."""
    for group, fused in zip(optimizer.param_groups, values, strict=True):
        group["fused"] = fused
        for p in group["params"]:
            step = optimizer.state.get(p, {}).get("step")
            if isinstance(step, torch.Tensor):
                optimizer.state[p]["step"] = step.to(p.device if fused else "cpu")


def describe_optimizer(optimizer: Optimizer, device: torch.device) -> str:
    """Describe the class of an optimizer, its rates, and whether it is fused or why not."""
    groups = optimizer.param_groups
    # Before the first step, `lr` is that of the schedule's warm-up.
    values = {"lr": {group.get("initial_lr", group["lr"]) for group in groups}}
    if "weight_decay" in groups[0]:
        values["weight_decay"] = {group["weight_decay"] for group in groups}
    rates = [f"{name} {', '.join(f'{float(v):g}' for v in sorted(own))}" for name, own in values.items()]
    if all(group.get("fused") for group in groups):
        fused = "; fused"
    else:
        fused = f"; not fused: {fused_obstacle(optimizer, device)}" if type(optimizer) in (Adam, AdamW) else ""
    return f"{type(optimizer).__name__}, {', '.join(rates)}{fused}"
