"""lit_pref's side of the benchmark: its own `fit`."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from bench_steps import Loop
from bench_work import ADAMW, BETA, LOG_EVERY, Work, bare_trainer, loader_workers, longest_row
from lightning.pytorch import Callback, Trainer

from lit_pref.data.datamodule import PreferenceDataModule
from lit_pref.modules.base import PairModule
from lit_pref.modules.preference import PreferenceModule
from lit_pref.objectives.dpo import DPO
from lit_pref.objectives.mrpo import MRPO
from lit_pref.references.pretrained import Pretrained
from lit_pref.references.reference import AdapterOff, InitialPolicy, Reference


@dataclass(frozen=True)
class Ours:
    """lit_pref's `fit`.

    `references` are frozen models, the first one the policy as it is before training; `stored` reads their scores from
    the reference store, which is filled before the first step.
    """

    layout: Literal["auto", "prefix_shared", "padded"] = "auto"
    references: int = 1
    stored: bool = True
    epochs: int = 1
    device: Literal["cpu", "gpu"] = "cpu"
    fused: bool | None = None  # None: the default, by which AdamW is fused
    bf16: bool = False
    checkpointing: bool = False
    policy: tuple[tuple[str, Any], ...] = ()  # further settings of the policy

    def train(self, work: Work, folder: Path, loop: Loop) -> None:
        objective = DPO(beta=BETA) if self.references == 1 else MRPO(beta=BETA)
        module = PreferenceModule(
            replace(work.policy(folder), gradient_checkpointing=self.checkpointing, **dict(self.policy)),
            objective,
            self._references(work, folder),
            optimizer=lambda parameters: torch.optim.AdamW(parameters, **ADAMW, fused=self.fused),
            layout=self.layout,
            reference_store=self.stored,
        )
        fit(module, work, folder, loop, self.device, self.bf16, self.epochs)

    def _references(self, work: Work, folder: Path) -> list[Reference]:
        first = AdapterOff() if work.lora else InitialPolicy()
        return [first, *(Pretrained(str(folder / f"reference-{k}")) for k in range(1, self.references))]


def fit(
    module: PairModule, work: Work, folder: Path, loop: Loop, device: str, bf16: bool = False, epochs: int = 1
) -> None:
    """Train a module on the work's pairs, with the settings that all contenders share."""
    data = PreferenceDataModule(
        str(folder / "pairs.jsonl"),
        val_fraction=0,
        seed=work.seed,
        global_batch=work.pairs,
        max_length=max(8192, *map(longest_row, work.draw())),
        workers=loader_workers(device),
    )
    trainer = bare_trainer(
        folder,
        accelerator=device,
        precision="bf16-mixed" if bf16 else "32-true",
        max_epochs=epochs,
        log_every_n_steps=LOG_EVERY,
        callbacks=[_EndStep(loop)],
    )
    trainer.fit(module, data)


class _EndStep(Callback):
    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.loss = torch.zeros(())

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        def keep(objective: Any, inputs: Any, output: Any) -> None:
            self.loss = output.losses.detach().mean()

        pl_module.objective.register_forward_hook(keep)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *batch: Any) -> None:
        self.loop.end_step(pl_module, self.loss)
