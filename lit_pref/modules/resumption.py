"""The settings of a resumed run that differ from its checkpoint's: applied, refused, or free."""

import json
import pickle
from enum import StrEnum
from pathlib import Path
from typing import Any, NoReturn

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping

from lit_pref.data.batching.loaders import refuse_other_data
from lit_pref.errors import UserError
from lit_pref.modules.checkpoint_info import check_state, content_of, read_info
from lit_pref.modules.effective_settings import (
    TOTAL,
    architecture_of,
    as_written,
    optimizer_settings,
    optimizer_settings_without_model,
    settings_of_data,
    settings_of_run,
)
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
        "model.policy.router_loss model.policy.head_precision "
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
        "model.policy.head_kernels model.margin_bins model.reference_store data.val_batch data.max_refused "
        "data.workers trainer.logger "
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
UNUSED = "note        not used, because nothing was left to train:"
WEIGHTS = "model.policy (its weights before training; model.policy.path, config or seed)"
UNRECORDED = {"model.policy.head_precision": "auto"}  # what older checkpoints do not record
RATES = ("lr", "weight_decay")
FUSED = "model.optimizer.fused"
OF_THE_PAIRS = _names("testbed model.policy.tokenizer model.policy.vocabulary data.val data.val_fraction")


class Resumption:
    """The settings of a run as its checkpoints record them, and what a resumed run changed."""

    def __init__(self) -> None:
        self.changes: list[str] = []
        """One line per change since the first step, with the optimizer step at which the run was resumed with it."""
        self.checkpoint: str | None = None
        """The checkpoint that a run is about to resume, if that is known before references are scored."""
        self.without_effect: list[str] = []
        """The changes that would have been applied if anything had been left to train."""
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

    def _settings(self, module: Any) -> dict[str, Any]:
        return settings_of_run(module) | settings_of_data(module) | architecture_of(module) | self._optimizer

    def check_early(self, module: Any, selected: bool = True) -> None:
        """Refuse what can be compared before references are scored and the model is built; `check` compares all.

        Args:
            module: of the run.
            selected: whether the training pairs are known, on which the number of steps depends.

        Raises:
            UserError: as in `check`.
        """
        if self.checkpoint is None or module.trainer.state.fn != "fit":
            return
        try:
            content = content_of(Path(self.checkpoint))
        except pickle.UnpicklingError:
            return  # a callback of the user's has stored other objects; `check` reads it, if weights_only is false
        saved = read_info(content)
        check_state(saved, module.spec, module.objective)
        before = saved.get("settings", {})
        now = settings_of_run(module) | optimizer_settings_without_model(module.optimizer, before)
        known = {name: before[name] for name in before if name in now}
        _compare(module, content, known, now, selected=False)  # first: references follow the policy's settings
        module.check_checkpoint(saved)
        if selected:
            later = settings_of_data(module)
            _compare(module, content, {name: before[name] for name in later if name in before}, later)

    def check(self, module: Any, checkpoint: dict[str, Any]) -> None:
        """Compare the settings of a training with those of the checkpoint that it resumes; `apply` prints what changed.

        Args:
            module: of the run; its model is built.
            checkpoint: its content.

        Raises:
            UserError: a setting differs that decides what the rest of the run trains.
        """
        if module.trainer.state.fn != "fit":
            return
        saved, step = read_info(checkpoint), checkpoint["global_step"]
        self.changes = list(saved.get("changes", []))
        if "settings" not in saved:
            refuse_other_pairs(module, checkpoint)
            self._notes.append("note        the checkpoint does not record its settings: changed ones are not noticed")
            return
        self.configured(build_optimizer(module))
        applied = _compare(module, checkpoint, saved["settings"], self._settings(module))
        if step >= min(module.total_steps, module.stop_at_step or module.total_steps):
            self.without_effect = list(applied.values())
            return
        for words in applied.values():
            self._notes.append(f"resumed     from step {step} with {words}")
            self.changes.append(f"from step {step} with {words}")
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


def refuse_other_pairs(module: Any, checkpoint: dict[str, Any]) -> None:
    """Refuse to resume with other training pairs, or in another order, and name the settings that changed.

    Raises:
        UserError: the pairs differ, or their order.
    """
    data = module.data
    names = [name for part in (OnResume.REFUSED, OnResume.CONTENT) for name in TABLE[part] if name[:5] == "data."]
    old, new = read_info(checkpoint)["config"], module.plain_config
    changed = [
        f"{name} is {json.dumps(now)} and was {json.dumps(before)}"
        for name in [*names, *OF_THE_PAIRS]
        if (before := _value(old, name)) != (now := _value(new, name))
    ]
    refuse_other_data(checkpoint.get(type(data).__qualname__), data.identity(), changed if old and new else None)


def _value(config: Any, name: str) -> Any:
    for part in name.split("."):
        config = config.get(part) if isinstance(config, dict) else None
    return config


def _compare(
    module: Any, checkpoint: dict[str, Any], before: dict[str, Any], now: dict[str, Any], selected: bool = True
) -> dict[str, str]:
    """Return the changed settings that are applied, in words, by name; the first one that cannot change is refused.

    The number of steps is compared last, because it follows from others, which say more; it is not where the pairs are
    not `selected` yet.
    """
    saved = read_info(checkpoint)
    # The weights differ wherever the architecture does, which says more. Older checkpoints have them elsewhere.
    first = {**before, WEIGHTS: saved["policy"]}, {**now, WEIGHTS: module.spec.fingerprint()}
    total = first[0].pop(TOTAL, None), first[1].pop(TOTAL, None)
    applied = _differences(*first, module, checkpoint) if before else {}
    if selected:
        refuse_other_pairs(module, checkpoint)
    if selected and before:
        applied |= _differences({TOTAL: total[0]}, {TOTAL: total[1]}, module, checkpoint)
    return applied


def _differences(
    before: dict[str, Any], now: dict[str, Any], module: Any, checkpoint: dict[str, Any]
) -> dict[str, str]:
    saved, step, applied = read_info(checkpoint), checkpoint["global_step"], {}
    for name in [*before, *(name for name in now if name not in before)]:
        old, new = before.get(name, UNRECORDED.get(name)), now.get(name)
        if old == new or name == "model.optimizer.foreach":
            continue
        if not _is_applied(name, old, new, module, step):
            _refuse(name, old, new, f"{saved['policy_text']} of the checkpoint")
        applied[name] = f"{name} {as_written(name, new)} instead of {as_written(name, old)}"
    return applied


def nothing_left(resumption: Resumption) -> str:
    """Return the lines of a resumed run that had nothing left to train, and so did not use its changed settings."""
    return "\n".join([NOTHING_LEFT, *(f"{UNUSED} {words}" for words in resumption.without_effect)])


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
    old, new = as_written(name, old), as_written(name, new)
    raise UserError(
        f"the checkpoint was trained with {name} {old} and this run has {new}, which cannot change when a run resumes: "
        f"set it to {old}, or {rest}"
    )
