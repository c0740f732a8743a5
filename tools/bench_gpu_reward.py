"""Both sides of the comparison of reward models: lit_pref's RewardModule and TRL's RewardTrainer."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import datasets
import torch
from bench_ours import fit
from bench_steps import Loop
from bench_trl import EndOfStep, OnIds, arguments
from bench_work import ADAMW, Work
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PrinterCallback
from trl import RewardConfig, RewardTrainer

from lit_pref.models.spec import ModelSpec
from lit_pref.modules.reward import RewardModule
from lit_pref.objectives.reward.bradley_terry import BradleyTerry


@dataclass(frozen=True)
class OursReward:
    """lit_pref's `fit` of the reward model in `reward/`."""

    layout: Literal["auto", "prefix_shared", "padded"] = "auto"
    device: Literal["cpu", "gpu"] = "cpu"
    bf16: bool = False

    def train(self, work: Work, folder: Path, loop: Loop) -> None:
        module = RewardModule(
            ModelSpec(path=str(folder / "reward"), head="scalar"),
            BradleyTerry(),
            optimizer=lambda parameters: torch.optim.AdamW(parameters, **ADAMW, fused=True),
            layout=self.layout,
        )
        fit(module, work, folder, loop, self.device, self.bf16)


class _OnIds(OnIds, RewardTrainer):
    pass


@dataclass(frozen=True)
class TrlReward:
    """TRL's trainer of the same reward model, without checkpointing."""

    device: Literal["cpu", "gpu"] = "cpu"
    bf16: bool = False
    attention: str = "sdpa"

    def train(self, work: Work, folder: Path, loop: Loop) -> None:
        model = AutoModelForSequenceClassification.from_pretrained(
            folder / "reward", num_labels=1, dtype=torch.float32, attn_implementation=self.attention
        )
        rows = [{f"{side}_ids": p["prompt"] + p[side] for side in ("chosen", "rejected")} for p in work.in_order()]
        trainer = _OnIds(
            model=model,
            processing_class=AutoTokenizer.from_pretrained(folder / "reward"),
            train_dataset=datasets.Dataset.from_list(rows),
            args=RewardConfig(**arguments(work, folder, self.device, self.bf16)),
        )
        trainer.add_callback(EndOfStep(trainer, loop))
        trainer.remove_callback(PrinterCallback)
        trainer.train()
