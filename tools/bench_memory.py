"""Compares the memory that `check` predicts for an optimizer step with the memory that real steps take.

    python tools/bench_memory.py                 the whole grid, about 15 minutes of CPU time
    python tools/bench_memory.py a lora          some of its cells

Each line is the predicted total over the measured peak: `VmHWM` of a step after the first, which is set back to `VmRSS`
before the step, above `VmRSS` before the model was built. Each cell runs in a process of its own.
"""

import argparse
import ctypes
import gc
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from bench_steps import MIB, status
from bench_work import BETA, CASES, MODELS, Work, around, bare_trainer, quiet
from lightning.pytorch import Callback, Trainer

from lit_pref.check.memory import largest_micro_batch
from lit_pref.check.step_memory import step_memory
from lit_pref.data.datamodule import PreferenceDataModule
from lit_pref.models.spec import ModelSpec
from lit_pref.modules.base import PairModule
from lit_pref.modules.preference import PreferenceModule
from lit_pref.modules.reward import RewardModule
from lit_pref.objectives.dpo import DPO
from lit_pref.objectives.epsilon_dpo import EpsilonDPO
from lit_pref.objectives.mrpo import MRPO
from lit_pref.objectives.reward.bradley_terry import BradleyTerry
from lit_pref.references.pretrained import Pretrained
from lit_pref.references.reference import AdapterOff, InitialPolicy

STEPS = 3
CASES |= {f"{k}k": (around(k * 512, 0.1), around(k * 256, 0.1)) for k in (1, 2, 4, 8)}
CASES["tiny"] = (around(160, 0.2), around(80, 0.2))
MODELS["wide"] = MODELS["s"] | {"num_hidden_layers": 2}
MODELS["tied"] = MODELS["s"] | {"tie_word_embeddings": True}
MODELS["qwen"] = MODELS["s"] | {"model_type": "qwen2"}


@dataclass(frozen=True)
class Cell:
    """A run whose memory is measured; `policy` is a folder in place of the random model of `work`."""

    work: Work
    layout: str = "prefix_shared"
    policy: str | None = None
    checkpointing: bool = False
    dtype: str = "float32"
    precision: Any = "32-true"
    references: int = 1
    stored: bool = True
    reward: bool = False
    epsilon: bool = False
    fused: bool | None = None
    micro_batch: int | None = None
    max_tokens: int | None = None

    def module(self, folder: Path) -> PairModule:
        given: dict[str, Any] = {"path": self.policy}
        if self.policy is None:
            given = {"config": MODELS[self.work.model], "tokenizer": str(folder / "tokenizer")}
        given |= {"lora": self.work.adapters, "head": "scalar" if self.reward else "lm"}
        spec = ModelSpec(**given, gradient_checkpointing=self.checkpointing, dtype=self.dtype)
        options: dict[str, Any] = {"optimizer": self.optimizer(), "layout": self.layout}
        if self.reward:
            return RewardModule(spec, BradleyTerry(), **options)
        objective = EpsilonDPO(BETA) if self.epsilon else DPO(BETA) if self.references == 1 else MRPO(BETA)
        references = [AdapterOff() if self.work.lora else InitialPolicy()]
        references += [Pretrained(str(folder / f"reference-{k}")) for k in range(1, self.references)]
        store = None if self.epsilon else self.stored
        return PreferenceModule(spec, objective, references, reference_store=store, **options)

    def optimizer(self) -> Callable[[Any], torch.optim.Optimizer]:
        return lambda parameters: torch.optim.AdamW(parameters, lr=1e-5, fused=self.fused)

    def measure(self) -> dict[str, Any]:
        """Return the measured peak, the prediction and its parts, in MiB."""
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            os.environ["LIT_PREF_CACHE"] = str(folder / "cache")
            self.work.write(folder, references=self.references)
            module, peaks = self.module(folder), _Peaks()
            data = PreferenceDataModule(
                str(folder / "pairs.jsonl"),
                val_fraction=0,
                global_batch=self.work.pairs,
                micro_batch=self.micro_batch,
                max_tokens=self.max_tokens,
                max_length=2**16,
            )
            trainer = bare_trainer(Path(name), accelerator="cpu", precision=self.precision, callbacks=[peaks])
            trainer.fit(module, data)
            predicted = step_memory(module, *largest_micro_batch(module))
        measured = max(peaks.seen[trainer.accumulate_grad_batches :]) - peaks.base
        parts = {part: round(size / MIB, 1) for part, size in predicted.parts.items()}
        total = predicted.total / MIB
        return {"measured": round(measured), "predicted": round(total), "ratio": total / measured, "parts": parts}


class _Peaks(Callback):
    """The most memory of the process during each micro-batch, and before the model was built."""

    def __init__(self) -> None:
        self.seen: list[float] = []
        self.base = 0.0

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        self.base = status("VmRSS")

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        Path("/proc/self/clear_refs").write_text("5")

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *batch: Any) -> None:
        self.seen.append(status("VmHWM"))
        Path("/proc/self/clear_refs").write_text("5")


def _grid() -> dict[str, Cell]:
    work = Work("a", "s", 32_000, 4, STEPS)
    a, bf16 = Cell(work), {"precision": "bf16-mixed"}
    cells = {
        "a": a,
        "a-padded": replace(a, layout="padded"),
        "a-8": replace(a, work=replace(work, pairs=8)),
        "vocabulary-512": replace(a, work=replace(work, vocabulary=512)),
        "vocabulary-128k": replace(a, work=replace(work, vocabulary=128_256, pairs=2)),
        "tied": replace(a, work=replace(work, model="tied")),
        "qwen2": replace(a, work=replace(work, model="qwen")),
        "medium": replace(a, work=replace(work, model="m", pairs=2)),
        "narrow": replace(a, work=replace(work, case="hh", model="narrow", vocabulary=49_152, pairs=16)),
        "lora": replace(a, work=replace(work, lora=True)),
        "lora-padded": replace(a, work=replace(work, lora=True), layout="padded"),
        "lora-checkpointing": replace(a, work=replace(work, lora=True), checkpointing=True),
        "checkpointing": replace(a, checkpointing=True),
        "medium-checkpointing": replace(a, work=replace(work, model="m", pairs=2), checkpointing=True),
        "checkpointing-padded": replace(a, checkpointing=True, layout="padded"),
        "unfused": replace(a, fused=False),
        "bf16-mixed": replace(a, **bf16),
        "bf16-mixed-padded": replace(a, layout="padded", **bf16),
        "bf16-true": replace(a, dtype="bfloat16", precision="bf16-true"),
        "live-1": replace(a, stored=False),
        "live-2": replace(a, stored=False, references=2),
        "epsilon": replace(a, epsilon=True),
        "micro-batch-2": replace(a, micro_batch=2),
        "max-tokens": replace(a, work=replace(work, case="c", pairs=8), max_tokens=2048),
        "max-tokens-padded": replace(a, work=replace(work, case="c", pairs=8), max_tokens=4096, layout="padded"),
        "reward": replace(a, reward=True),
        "reward-padded": replace(a, reward=True, layout="padded"),
    }
    for case in ("1k", "2k", "4k", "8k"):
        row = replace(work, case=case, vocabulary=512, pairs=1)
        cells |= {f"row-{case}": replace(a, work=row), f"row-{case}-padded": replace(a, work=row, layout="padded")}
    small = Work("tiny", "wide", 8000, 4, STEPS)
    cells["small"], cells["small-padded"] = replace(a, work=small), replace(a, work=small, layout="padded")
    cells["small-lora"] = replace(a, work=replace(small, lora=True))
    return cells


GRID = _grid()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cells", nargs="*", metavar="CELL", help=", ".join(GRID))
    parser.add_argument("--policy", help="one cell: two pairs of case a a step, for the model in this folder")
    parser.add_argument("--here", action="store_true", help="in this process, and print JSON")
    options = parser.parse_args()
    if options.policy:
        GRID["policy"] = replace(GRID["a"], work=replace(GRID["a"].work, pairs=2), policy=options.policy)
    for name in ["policy"] if options.policy else options.cells or GRID:
        if options.here:
            torch.set_num_threads(1)
            quiet()
            print(json.dumps({"cell": name, **GRID[name].measure()}), flush=True)
            continue
        command = [sys.executable, __file__, "--here", *(["--policy", options.policy] if options.policy else [name])]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            print(f"{name}: failed\n{done.stderr[-2000:]}", flush=True)
            continue
        found = json.loads(done.stdout.splitlines()[-1])
        parts = ", ".join(f"{part} {size:g}" for part, size in found["parts"].items())
        print(
            f"{name:22} {found['predicted']:6} / {found['measured']:6} MiB = {found['ratio']:.2f}   {parts}", flush=True
        )


if __name__ == "__main__":
    main()
