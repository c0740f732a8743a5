"""Prints the first lines of a run: policy, references, objective, devices, data and layout."""

import os
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lit_pref.data.batching.options import describe_loading
from lit_pref.data.datamodule import PreferenceDataModule
from lit_pref.models.experts import router_line, router_weight
from lit_pref.models.folder import refuse_placeholder
from lit_pref.models.spec import ModelSpec
from lit_pref.modules.base import PairModule
from lit_pref.modules.optimizers import describe_optimizer
from lit_pref.modules.sharding import FSDP2, dtype_in_transit, trained_dtypes
from lit_pref.modules.step_lines import steps_of
from lit_pref.printing import say
from lit_pref.references.store_scorer import computes_in_bf16
from lit_pref.references.stored import Stored
from lit_pref.run.data_lines import data_lines
from lit_pref.run_context import ROUNDED
from lit_pref.scoring.kernel_choice import describe_head
from lit_pref.scoring.products import HeadPrecision


class FirstLines(Callback):
    """Prints how the data were read, the fitted values of the objective, and the layout of batches."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # At this point references are not yet scored, so a wrongly read file is visible before anything takes long.
        if stage == "fit" and trainer.is_global_zero:
            for line in data_lines(trainer.datamodule):  # type: ignore[attr-defined]
                say(line)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        module: Any = pl_module
        if trainer.ckpt_path is not None:
            say(f"checkpoint  {trainer.ckpt_path}, from which this run resumes")
        for line in module.fitted:
            say(f"fitted      {line}")
        config, asked = module.spec.configuration(), module.spec.router_loss
        if line := router_line(config, asked):
            say(f"{'note   ' if router_weight(config, asked) else 'warning'}     {line}")
        say(f"optimizer   {describe_optimizer(trainer.optimizers[0], trainer.strategy.root_device)}")
        say(f"seed        {seeds(module, trainer.datamodule)}")  # type: ignore[attr-defined]
        if line := _head(module, trainer):
            say(f"head        {line}")
        if line := _attention(trainer.strategy.root_device):
            say(f"attention   {line}")
        steps = steps_of(module)
        for line in steps.warnings():
            say(f"warning     {line}")
        say(f"steps       {'; '.join(steps.lines())}")
        say(f"validation  {steps.validation()}")
        if line := describe_loading(module.data.workers, **module.data.loading):
            say(f"loader      {line}")
        parts = trainer.accumulate_grad_batches
        say(f"layout      {module.batch_layout}: {module.layout_reason}; {parts} micro-batch(es) a step")


def first_lines(module: PairModule, trainer: Trainer, run_dir: Path) -> str:
    """Lines with the run folder, the policy, the references, the objective with all its values, and the devices."""
    asked = module.plain_config["trainer"]
    nodes = f" on each of {asked['num_nodes']} nodes" if asked["num_nodes"] > 1 else ""
    devices = f"{asked['devices']} requested{nodes}, {trainer.world_size} used"
    kind = type(trainer.accelerator).__name__.removesuffix("Accelerator").lower()
    lines = [
        f"run folder  {run_dir}",
        f"{'policy' if module.spec.head == 'lm' else 'model':<11} {module.spec.describe()}",
        *(f"reference {k} {_reference(module, k)}" for k in range(len(module.references))),
        f"objective   {module.objective!r}",
        f"devices     {devices} ({kind}, {type(trainer.strategy).__name__}, precision {trainer.precision})",
    ]
    if isinstance(trainer.strategy, FSDP2):
        dtypes = " and ".join(sorted(trained_dtypes(module.spec)))
        lines.append(f"sharding    {trainer.strategy.in_words(dtypes, trainer.world_size)}")
    for k, spec in enumerate(_reference_specs(module)):
        if spec is not None and spec.head_precision != (own := module.spec.head_precision):
            lines.append(
                f"warning     head_precision is {spec.head_precision} for reference {k} and {own} for the policy: "
                "log-ratios contain the difference of their rounding"
            )
    if module.objective.requirements.max_references is None and len(module.references) == 1:
        lines.append("note        a mixture of one reference is that reference alone: list more in model.references")
    if not module.references and module.spec.head == "lm":
        lines.insert(2, "reference   none")
    if trainer.precision == "bf16-true":
        lines.append(
            "warning     precision bf16-true has no fp32 master weights: small updates are lost; bf16-mixed keeps them"
        )
    return "\n".join(lines)


def refuse_other_models(module: PairModule) -> None:
    """Refuse folders of models of another task, such as a reward model as policy, before anything is prepared.

    Raises:
        UserError: the policy or a reference has such a folder, one without a configuration that can be read, or a
            placeholder instead of a folder.
    """
    for spec in (module.spec, *_reference_specs(module)):
        if spec is None or spec.path is None:
            continue
        refuse_placeholder(spec.path)
        if os.path.isdir(os.path.expanduser(spec.path)):
            spec.configuration()


def _reference_specs(module: PairModule) -> list[ModelSpec | None]:
    """The specs of the references' models; None for one that reads the policy's own weights."""
    return [
        reference.spec if isinstance(reference, Stored) else reference.frozen_spec(module.spec)
        for reference in module.references
    ]


def seeds(module: PairModule, data: PreferenceDataModule) -> str:
    """Describe which draws follow the run's seed, and which have a seed of their own."""
    moved = moved_by_seed(module, data)
    apart = [f"{what} by {name} {seed}" for what, name, seed in _draws(module, data) if seed != module.seed]
    apart.append(f"the split by data.split_seed {data.options.split_seed}")
    return f"seed_everything {module.seed} decides {', '.join(moved) or 'nothing here'}; set apart: {', '.join(apart)}"


def moved_by_seed(module: PairModule, data: PreferenceDataModule) -> list[str]:
    """Name the draws of a run that follow its seed."""
    return [what for what, _, seed in _draws(module, data) if seed == module.seed]


def _draws(module: PairModule, data: PreferenceDataModule) -> list[tuple[str, str, int]]:
    """List what a run draws, with the setting that seeds it and its value."""
    spec = module.spec
    drawn = [("the order of pairs", "data.seed", data.seed)]
    if spec.config is not None or spec.lora is not None:
        what = "random weights" if spec.lora is None else "the adapters' first weights"
        drawn.append((what, "model.policy.seed", spec.seed or 0))
    if spec.dropout or (spec.lora is not None and spec.lora.dropout):
        drawn.append(("dropout", "seed_everything", module.seed))
    return drawn


def _head(module: Any, trainer: Trainer) -> str | None:
    """How log-probs are computed from the output head, where that is not in fp32 by torch, as on a CPU by default."""
    spec, device = module.spec, trainer.strategy.root_device
    precision = HeadPrecision(spec.head_precision)
    if spec.outputs is not None or (device.type == "cpu" and precision is HeadPrecision.AUTO):
        return None
    dtype = ROUNDED.get(trainer.precision, spec.dtype)
    in_bf16 = computes_in_bf16(trainer.precision, dtype, dtype_in_transit(trainer.strategy))
    return describe_head(precision, device, in_bf16, spec.head_kernels)


def _attention(device: torch.device) -> str | None:
    """A line on a GPU that cuDNN's attention is off, which torch could choose there; None elsewhere."""
    if device.type != "cuda" or torch.backends.cuda.cudnn_sdp_enabled():
        return None
    return "cuDNN's kernel is off in this process (NaN gradients are reported of it); torch chooses among its others"


def _reference(module: PairModule, k: int) -> str:
    """The name of a reference, and where its scores come from."""
    reference = module.references[k]
    if isinstance(reference, Stored):
        return f"{reference.describe()}; stored: scores are computed once and kept"
    compared = k == 0 and module.objective.requirements.compares
    why = f" ({type(module.objective).__name__} reads more of it than scores)" if compared else ""
    return f"{reference.describe()}; live: computed again in every step{why}"
