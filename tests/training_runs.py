"""Small training runs of the real modules, in this process or as one of two, with every number they log."""

import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers.logger import DummyLogger

from lit_pref.callbacks.checkpointing import AtomicCheckpointIO, Checkpoints
from lit_pref.data.datamodule import PreferenceDataModule
from lit_pref.models.spec import ModelSpec
from lit_pref.modules.preference import PreferenceModule
from lit_pref.objectives.base import Objective
from lit_pref.objectives.bco import BCO
from lit_pref.objectives.dpo import DPO
from lit_pref.references.reference import Reference

sys.path.append(str(Path(__file__).parents[1] / "tools"))
from kill_compare import differences

__all__ = ["Explosive", "History", "Memory", "Ran", "Run", "differences", "environment", "fit", "logps", "trained"]
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


class Memory(DummyLogger):
    """A logger that keeps its metrics: `steps[k]` maps names to the values logged at optimizer step k."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: dict[int, dict[str, float]] = {}

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        assert step is not None
        self.steps.setdefault(step, {}).update({k: float(v) for k, v in metrics.items()})

    def column(self, name: str) -> list[float]:
        """One number over the steps that have it, in their order."""
        return [numbers[name] for _, numbers in sorted(self.steps.items()) if name in numbers]


class History(Callback):
    """Keeps (epoch, ids of real pairs) of every micro-batch of this process."""

    def __init__(self) -> None:
        self.given: list[tuple[int, list[str]]] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        ids = [name for name, real in zip(batch.pairs.ids, batch.pairs.host.is_real.tolist(), strict=True) if real]
        self.given.append((trainer.current_epoch, ids))


class Explosive(BCO):
    """Gives the pair `bad` an infinite loss, and the step with the pair `faulty` NaN gradients."""

    bad = faulty = ""

    def forward(self, policy: Any, references: Any, pairs: Any) -> Any:
        output = super().forward(policy, references, pairs)
        output.losses = output.losses / torch.tensor([float(name != self.bad) for name in pairs.ids])
        if self.faulty in pairs.ids and output.losses.requires_grad:
            output.losses.register_hook(lambda gradient: gradient * torch.nan)
        return output


@dataclass
class Run:
    """The settings of a small training run; `fit` trains it."""

    policy: dict[str, Any]
    data: dict[str, Any]
    objective: Callable[[], Objective] = DPO
    references: Callable[[], list[Reference] | None] = lambda: None
    optimizer: Callable[[Any], torch.optim.Optimizer] = lambda p: torch.optim.SGD(p, lr=0.05)
    schedule: Any = None
    trainer: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    layout: str = "auto"
    reference_store: bool | None = None


@dataclass
class Ran:
    """A finished run."""

    module: PreferenceModule
    trainer: Trainer
    logged: Memory
    given: list[tuple[int, list[str]]]
    folder: Path

    def checkpoint(self, step: int) -> Path:
        return self.folder / "checkpoints" / f"step={step:08d}.ckpt"


def fit(
    run: Run,
    folder: Path,
    ckpt: Path | None = None,
    every: int = 1000,
    stop_at_step: int | None = None,
    callbacks: Sequence[Callback] = (),
    plugins: Sequence[Any] = (),
    **trainer: Any,
) -> Ran:
    """Train, with a checkpoint every `every` steps and at the end, all of them kept."""
    policy, objective = ModelSpec(**run.policy), run.objective()
    arguments: Any = {"optimizer": run.optimizer, "schedule": run.schedule, "layout": run.layout}
    arguments["reference_store"] = run.reference_store
    module = PreferenceModule(policy, objective, run.references(), **arguments)
    module.seed, module.stop_at_step = run.seed, stop_at_step
    logged, history = Memory(), History()
    options = {"accelerator": "cpu", "devices": 1, "max_epochs": 1, "log_every_n_steps": 1, "num_sanity_val_steps": 0}
    options |= {"enable_progress_bar": False, "enable_model_summary": False, "use_distributed_sampler": False}
    built = Trainer(
        **{**options, **run.trainer, **trainer},
        default_root_dir=str(folder),
        logger=logged,
        plugins=[AtomicCheckpointIO(), *plugins],
        callbacks=[history, Checkpoints(every=every, keep=None), *callbacks],
    )
    # A resumed process starts with another random state than the one that was killed had.
    torch.manual_seed(int.from_bytes(os.urandom(4), "little"))
    built.fit(module, datamodule=PreferenceDataModule(**run.data), ckpt_path=None if ckpt is None else str(ckpt))
    return Ran(module, built, logged, history.given, folder)


def trained(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Return the parts of a checkpoint that must be bit-identical: weights, optimizer, schedule, position."""
    position = next(value for name, value in checkpoint.items() if name.endswith("PreferenceDataModule"))
    optimizers = [value for name, value in sorted(checkpoint.items()) if name.startswith("optimizer")]
    names = ("state_dict", "lr_schedulers", "global_step")
    return {"position": position, "optimizers": optimizers, **{name: checkpoint[name] for name in names}}


@torch.no_grad()
def logps(model: Any, pairs: Any) -> dict[str, list[float]]:
    """Log-probs of the responses by nothing but the model's own logits, as the records name them."""
    model.eval()

    def logp(prompt: list[int], response: list[int]) -> float:
        logits = model(input_ids=torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1].double()
        return float(logits.log_softmax(-1)[range(len(response)), response].sum())

    rows = [(pair.id, logp(pair.prompt, pair.chosen), logp(pair.prompt, pair.rejected)) for pair in pairs]
    ids, chosen, rejected = zip(*sorted(rows), strict=True)
    return {"id": list(ids), "chosen_logp": list(chosen), "rejected_logp": list(rejected)}


def environment(rank: int, port: int) -> dict[str, str]:
    """The environment of one of two processes, as a cluster gives it (Lightning then launches none)."""
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "GROUP_RANK": 0}
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test"}
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, **{name: str(value) for name, value in {**ranks, **meeting}.items()}, "PYTHONPATH": path}
