"""The settings of a resumed run that differ from its checkpoint's: applied, refused, or free."""

import json
import re
from enum import StrEnum
from typing import Any, NoReturn

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping

from lit_pref.errors import UserError
from lit_pref.modules.optimizers import build_optimizer, set_fused
from lit_pref.printing import say


class OnResume(StrEnum):
    """The treatment of a changed setting."""

    APPLIED = "applied, printed, and recorded in later checkpoints and the model card"
    REFUSED = "refused"
    CONTENT = "refused where it changes the data, the references or the layout; else without effect"
    LENGTH = "free to change: it decides where the run ends; a run with nothing left to train says so"
    FREE = "free to change: it does not decide what the rest of the run trains"


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


TABLE: dict[OnResume, tuple[str, ...]] = {
    OnResume.APPLIED: _names(
        "model.optimizer.lr model.optimizer.weight_decay model.optimizer.fused model.objective model.policy.dropout "
        "model.policy.router_loss "
        "model.policy.attention model.policy.gradient_checkpointing model.policy.compile trainer.max_epochs "
        "trainer.max_steps trainer.gradient_clip_val trainer.gradient_clip_algorithm trainer.accelerator "
        "trainer.strategy trainer.devices trainer.num_nodes data.val data.val_fraction"
    ),
    OnResume.REFUSED: _names(
        "model.optimizer model.schedule model.policy.path model.policy.config model.policy.dtype model.policy.lora "
        "model.policy.head model.policy.embedding model.policy.merge_adapter "
        "trainer.precision trainer.limit_train_batches trainer.overfit_batches seed_everything data.seed "
        "data.global_batch"
    ),
    OnResume.CONTENT: _names(
        "model.references model.layout model.policy.base_model model.policy.tokenizer model.policy.vocabulary "
        "model.policy.revision model.policy.trust_remote_code model.policy.seed testbed data.train data.mapping "
        "data.selection data.split_seed data.micro_batch data.max_tokens data.max_length data.max_prompt_length "
        "data.special_text data.columns data.token_columns data.on_swap data.lost_text data.ignore_columns "
        "data.group_column data.ties data.bad_rows"
    ),
    OnResume.LENGTH: _names(
        "trainer.callbacks trainer.fast_dev_run trainer.min_epochs trainer.min_steps trainer.max_time stop_at_step"
    ),
    OnResume.FREE: _names(
        "model.margin_bins model.reference_store data.val_batch data.max_refused data.workers trainer.logger "
        "trainer.limit_val_batches trainer.limit_test_batches trainer.limit_predict_batches "
        "trainer.val_check_interval trainer.check_val_every_n_epoch trainer.num_sanity_val_steps "
        "trainer.log_every_n_steps trainer.enable_checkpointing trainer.enable_progress_bar "
        "trainer.enable_model_summary trainer.accumulate_grad_batches trainer.deterministic trainer.benchmark "
        "trainer.inference_mode trainer.use_distributed_sampler trainer.profiler trainer.detect_anomaly "
        "trainer.barebones trainer.plugins trainer.sync_batchnorm trainer.reload_dataloaders_every_n_epochs "
        "trainer.default_root_dir trainer.enable_autolog_hparams trainer.model_registry run_dir "
        "print_summary ckpt_path weights_only"
    ),
}
"""Every setting of a run.

`trainer.max_epochs` and `max_steps` are refused where they change a schedule's rates,
and an optimizer's `foreach` is free: the checkpoint's is kept.
"""

NOTHING_LEFT = (
    "note        nothing was left to train: the run ends at the step of its checkpoint; raise trainer.max_epochs, "
    "max_steps, max_time or stop_at_step to train on, as far as its schedule allows"
)
TOTAL = "trainer.max_epochs and max_steps (optimizer steps in all)"
ARCHITECTURE = "model.policy (its config.json)."
WEIGHTS = "model.policy (its weights before training; model.policy.path, config or seed)"
RATES = ("lr", "weight_decay")
FUSED = "model.optimizer.fused"
OF_THE_SPEC = ("dtype", "dropout", "router_loss", "attention", "gradient_checkpointing", "compile", "head")
NOT_ARCHITECTURE = ("dropout", "pdrop", "layerdrop", "name_or_path", "version", "dtype", "attn_impl", "use_cache")


class Resumption:
    """The settings of a run as its checkpoints record them, and what a resumed run changed."""

    def __init__(self) -> None:
        self.changes: list[str] = []
        """One line per change since the first step, with the optimizer step at which the run was resumed with it."""
        self._optimizer: dict[str, Any] = {}
        self._notes: list[str] = []
        self._reset: set[str] = set()

    def configured(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """Record the settings of an optimizer before a schedule or a checkpoint changes them, and return it."""
        self._optimizer = optimizer_settings(optimizer)
        return optimizer

    def info(self, module: Any) -> dict[str, Any]:
        """Return what a checkpoint records."""
        return {"settings": self._settings(module), "changes": self.changes}

    def check(self, module: Any, saved: dict[str, Any], step: int) -> None:
        """Compare the settings of a training with those of the checkpoint that it resumes; `apply` prints what changed.

        Args:
            module: of the run; its model is built.
            saved: the information in the checkpoint.
            step: the optimizer step of the checkpoint.

        Raises:
            UserError: a setting differs that decides what the rest of the run trains.
        """
        if module.trainer.state.fn != "fit":
            return
        self.changes = list(saved.get("changes", []))
        if "settings" not in saved:
            self._notes.append("note        the checkpoint does not record its settings: changed ones are not noticed")
            return
        self.configured(build_optimizer(module))
        before, now = saved["settings"], self._settings(module)
        # Last, because it differs wherever the architecture does, which says more. Older checkpoints have it elsewhere.
        before, now = {**before, WEIGHTS: saved["policy"]}, {**now, WEIGHTS: module.spec.fingerprint()}
        applied = []
        for name in [*before, *(name for name in now if name not in before)]:
            old, new = before.get(name), now.get(name)
            if old == new or name == "model.optimizer.foreach":
                continue
            if not _is_applied(name, old, new, module, step):
                _refuse(name, old, new, f"{saved['policy_text']} of the checkpoint")
            applied.append(name)
            change = f"from step {step} with {name} {_typed(name, new)} instead of {_typed(name, old)}"
            self._notes.append(f"resumed     {change}")
            self.changes.append(change)
        self._reset = {FUSED, *(f"model.optimizer.{name}" for name in RATES)}.intersection(applied)

    def apply(self, module: Any) -> None:
        """Print what changed, give the restored optimizer the run's own rates, and end an early-stopped run again."""
        for note in self._notes:  # not earlier: until here the checkpoint may still be refused
            say(note)
        self._notes = []
        if FUSED in self._reset:
            set_fused(module.trainer.optimizers[0], self._optimizer[FUSED])
        if self._reset - {FUSED}:
            self._set_rates(module.trainer)
        end_if_stopped_early(module.trainer)

    def _set_rates(self, trainer: Trainer) -> None:
        optimizer = trainer.optimizers[0]
        for name in RATES:
            for group, value in zip(optimizer.param_groups, self._optimizer[f"model.optimizer.{name}"], strict=True):
                group[name] = value
        for config in trainer.lr_scheduler_configs:
            schedule: Any = config.scheduler
            schedule.base_lrs = [group["lr"] for group in optimizer.param_groups]
            for group in optimizer.param_groups:
                group["initial_lr"] = group["lr"]
            for group, rate in zip(optimizer.param_groups, schedule.get_lr(), strict=True):
                group["lr"] = rate
            schedule._last_lr = schedule.get_lr()

    def _settings(self, module: Any) -> dict[str, Any]:
        """Return the settings in effect, which may be written in several ways in a configuration."""
        trainer = module.trainer
        names = ("precision", "gradient_clip_val", "gradient_clip_algorithm", "limit_train_batches", "overfit_batches")
        settings = {f"trainer.{name}": _plain(getattr(trainer, name)) for name in names}
        settings |= {f"trainer.{name}": type(getattr(trainer, name)).__name__ for name in ("accelerator", "strategy")}
        settings |= {f"model.policy.{name}": getattr(module.spec, name) for name in OF_THE_SPEC}
        settings |= {
            "model.policy.embedding": None if module.spec.embedding is None else repr(module.spec.embedding),
            "trainer.devices": trainer.world_size,
            "seed_everything": module.seed,
            "data.val": module.trainer.datamodule.val_pairs.fingerprint,
            "model.objective": repr(module.objective),
            "model.schedule": None if module.schedule is None else repr(module.schedule),
            TOTAL: module.total_steps,
        }
        if module.spec.adapters is None:
            config = json.loads(module.scorer.model.config.to_json_string(use_diff=False))
            kept = {k: v for k, v in config.items() if not any(part in k for part in NOT_ARCHITECTURE)}
            settings |= {f"{ARCHITECTURE}{name}": value for name, value in kept.items()}
        return settings | self._optimizer


def optimizer_settings(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return the class of an optimizer, and the values of each setting in its groups of parameters."""
    settings: dict[str, Any] = {"model.optimizer": f"{type(optimizer).__module__}.{type(optimizer).__qualname__}"}
    names = {name: None for group in optimizer.param_groups for name in group}
    for name in names.keys() - {"params", "param_names", "initial_lr"}:
        settings[f"model.optimizer.{name}"] = [_plain(group.get(name)) for group in optimizer.param_groups]
    return settings


def end_if_stopped_early(trainer: Trainer) -> None:
    """End a resumed run that early stopping had ended."""
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    stopping = [callback for callback in callbacks if isinstance(callback, EarlyStopping)]
    if any(callback.wait_count >= max(1, callback.patience) for callback in stopping):
        trainer.should_stop = True


def _is_applied(name: str, old: Any, new: Any, module: Any, step: int) -> bool:
    if name == TOTAL and module.schedule is not None:
        # The rates of the steps that are left, also beyond the end of a finished run, where the old curve is flat.
        factor = module.schedule.factor
        return all(factor(k, old) == factor(k, new) for k in range(step, new))
    return name == TOTAL or name in TABLE[OnResume.APPLIED]


def _refuse(name: str, old: Any, new: Any, policy: str) -> NoReturn:
    rest = "export the checkpoint and start a new run from that folder"
    if name == WEIGHTS:
        raise UserError(
            f"{WEIGHTS} are not those that the checkpoint was trained from, and a resumed run would name the wrong "
            f"model: set them to {policy}, or {rest}"
        )
    old, new = _typed(name, old), _typed(name, new)
    raise UserError(
        f"the checkpoint was trained with {name} {old} and this run has {new}, which cannot change when a run resumes: "
        f"set it to {old}, or {rest}"
    )


def _typed(name: str, value: Any) -> str:
    """Return a setting as a user writes it on the command line or in a configuration.

    >>> _typed("model.optimizer.betas", [[0.9, 0.999]]), _typed("model.schedule", "Cosine(warmup=0.1, floor=0.0)")
    ('[0.9, 0.999]', '{class_path: Cosine, init_args: {warmup: 0.1, floor: 0.0}}')
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
