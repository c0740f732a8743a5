"""The settings in effect in a training run, which a configuration may write in several ways, as plain data."""

import json
import re
from typing import Any

import torch

from lit_pref.modules.sharding import FSDP2

TOTAL = "trainer.max_epochs and max_steps (optimizer steps in all)"
ARCHITECTURE = "model.policy (its config.json)."
OF_THE_SPEC = (
    *("dtype", "dropout", "router_loss", "attention", "gradient_checkpointing", "compile", "head"),
    "head_precision",
)
OF_THE_TRAINER = ("precision", "gradient_clip_val", "gradient_clip_algorithm", "limit_train_batches", "overfit_batches")
NOT_ARCHITECTURE = ("dropout", "pdrop", "layerdrop", "name_or_path", "version", "dtype", "attn_impl", "use_cache")


def settings_of_run(module: Any) -> dict[str, Any]:
    """Return the settings that are known before the data are prepared and the model is built."""
    trainer = module.trainer
    settings = {f"trainer.{name}": _plain(getattr(trainer, name)) for name in OF_THE_TRAINER}
    settings |= {f"trainer.{name}": type(getattr(trainer, name)).__name__ for name in ("accelerator", "strategy")}
    if isinstance(trainer.strategy, FSDP2):
        settings["trainer.strategy"] = trainer.strategy.describe()
    settings |= {f"model.policy.{name}": getattr(module.spec, name) for name in OF_THE_SPEC}
    return settings | {
        "model.policy.embedding": None if module.spec.embedding is None else repr(module.spec.embedding),
        "trainer.devices": trainer.world_size,
        "seed_everything": module.seed,
        "model.objective": repr(module.objective),
        "model.schedule": None if module.schedule is None else repr(module.schedule),
    }


def settings_of_data(module: Any) -> dict[str, Any]:
    """Return the settings that are known once the data are prepared and selected."""
    return {"data.val": module.trainer.datamodule.val_pairs.fingerprint, TOTAL: module.total_steps}


def architecture_of(module: Any) -> dict[str, Any]:
    """Return what the built model's config.json says; empty under LoRA, whose base is compared as a whole."""
    if module.spec.adapters is not None:
        return {}
    config = json.loads(module.scorer.model.config.to_json_string(use_diff=False))
    kept = {k: v for k, v in config.items() if not any(part in k for part in NOT_ARCHITECTURE)}
    return {f"{ARCHITECTURE}{name}": value for name, value in kept.items()}


def optimizer_settings(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return the class of an optimizer, and the values of each setting in its groups of parameters."""
    settings: dict[str, Any] = {"model.optimizer": f"{type(optimizer).__module__}.{type(optimizer).__qualname__}"}
    names = {name: None for group in optimizer.param_groups for name in group}
    for name in names.keys() - {"params", "param_names", "initial_lr"}:
        settings[f"model.optimizer.{name}"] = [_plain(group.get(name)) for group in optimizer.param_groups]
    return settings


def optimizer_settings_without_model(build: Any, before: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of an optimizer, built over one number in place of the model's parameters.

    Args:
        build: a callable from parameters to the optimizer.
        before: the settings of the checkpoint; a value that is the same for all its groups is compared with one value.
    """
    settings = optimizer_settings(build([torch.nn.Parameter(torch.zeros(1))]))
    known: dict[str, Any] = {name: value for name, value in settings.items() if isinstance(value, str)}
    for name, value in settings.items():
        old = before.get(name)
        if isinstance(value, list) and len(value) == 1 and isinstance(old, list) and all(one == old[0] for one in old):
            known[name] = value * len(old)
    return known


def as_written(name: str, value: Any) -> str:
    """Return a setting as a user writes it on the command line or in a configuration.

    >>> as_written("model.optimizer.betas", [[0.9, 0.999]])
    '[0.9, 0.999]'
    >>> as_written("model.schedule", "Cosine(warmup=0.1, floor=0.0)")
    '{class_path: Cosine, init_args: {warmup: 0.1, floor: 0.0}}'
    """
    if name.startswith("model.optimizer.") and isinstance(value, list) and all(one == value[0] for one in value):
        value = value[0]  # one value for all groups of parameters
    if name == "model.schedule" and value is not None and (parts := re.fullmatch(r"(\w+)\((.*)\)", value)):
        return f"{{class_path: {parts[1]}, init_args: {{{parts[2].replace('=', ': ')}}}}}"
    return value if isinstance(value, str) else json.dumps(value)


def _plain(value: Any) -> Any:
    """Convert a value to plain data, which can be loaded without running code."""
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else str(value)
