"""Cost of the training loop per step, with a model of negligible size: lit_pref, bare Lightning, Transformers."""

import cProfile
import pstats
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from bench_work import CLIP, LOG_EVERY, bare_trainer
from lightning.pytorch import Callback, LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PrinterCallback, TrainerCallback, TrainingArguments
from transformers import Trainer as HFTrainer

from lit_pref.batch import PairData, PreferenceBatch, Rows
from lit_pref.metrics.accumulator import TrainAccumulator
from lit_pref.models.spec import ModelSpec
from lit_pref.modules.preference import PreferenceModule
from lit_pref.objectives.dpo import DPO
from lit_pref.references.reference import Reference
from lit_pref.scores import PairScores, SequenceScores

FEATURES, PAIRS, STEPS = 16, 4, 600


class Scorer(nn.Module):
    """A model so small that a step is nothing but its loop."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(FEATURES, 1)

    def forward(self, batch: PreferenceBatch, *needs: Any) -> PairScores:
        values = self.linear(batch.pairs.columns["features"]).unflatten(0, (2, PAIRS)).squeeze(-1)  # (2, B)
        return PairScores(*(SequenceScores(side, batch.pairs.chosen_lengths) for side in values))


class Fixed(Reference):
    """Scores that cost nothing."""

    label = "fixed"

    def attach(self, policy: Any, scorer: Any, tokenizer: Any) -> None:
        pass

    @property
    def copies(self) -> list[Any]:
        return []

    def describe(self) -> str:
        return "fixed scores"

    def score(self, batch: PreferenceBatch, needs: Any = frozenset()) -> PairScores:
        return PairScores(*(SequenceScores(torch.zeros(PAIRS), batch.pairs.chosen_lengths) for _ in range(2)))


class TinyModule(PreferenceModule):
    """lit_pref's own module with all its hooks around the small model."""

    def __init__(self) -> None:
        super().__init__(ModelSpec(path="none"), DPO(), [Fixed()], optimizer=adamw, reference_store=False)

    def setup(self, stage: str) -> None:
        """Do nothing: there are no data to fit anything to, and no scores to store."""

    def configure_model(self) -> None:
        self.scorer = Scorer()  # type: ignore[assignment]


class PlainModule(LightningModule):
    """The least that Lightning runs: nothing is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.scorer = Scorer()

    def training_step(self, batch: PreferenceBatch, batch_idx: int) -> Tensor:
        return loss_of(self.scorer, batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return adamw(self.parameters())


class HFModule(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scorer = Scorer()

    def forward(self, batch: PreferenceBatch) -> dict[str, Tensor]:
        return {"loss": loss_of(self.scorer, batch)}


def adamw(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-3, fused=True)


def loss_of(scorer: Scorer, batch: PreferenceBatch) -> Tensor:
    policy = scorer(batch)
    return DPO()(policy, [Fixed().score(batch)], batch.pairs).losses.mean()


def tiny_batch(seed: int) -> PreferenceBatch:
    """A batch that is nothing but features."""
    empty, length = torch.zeros(0, dtype=torch.long), torch.full((PAIRS,), 100)
    ids = [f"{seed}/{k}" for k in range(PAIRS)]
    features = torch.randn(2 * PAIRS, FEATURES, generator=torch.Generator().manual_seed(seed))
    rows = Rows(empty, None, empty, empty, empty, empty)
    return PreferenceBatch(PairData(ids, length, length, columns={"features": features}), rows)


class Marks:
    """The process's CPU time at the end of every step."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def add(self) -> None:
        self.times.append(time.process_time())

    @property
    def step_ms(self) -> float:
        """Time of a step in the middle of the run, without set-up and the first steps."""
        times = self.times[len(self.times) // 10 :]
        return 1e3 * (times[-1] - times[0]) / (len(times) - 1)


class MarkInLightning(Callback):
    def __init__(self, marks: Marks) -> None:
        self.marks = marks

    def on_train_batch_end(self, *arguments: Any) -> None:
        self.marks.add()


class MarkInTransformers(TrainerCallback):
    def __init__(self, marks: Marks) -> None:
        self.marks = marks

    def on_step_end(self, *arguments: Any, **options: Any) -> None:
        self.marks.add()


def bare(batches: Any, folder: Path) -> float:
    scorer, marks = Scorer(), Marks()
    optimizer = adamw(scorer.parameters())
    for batch in batches:
        optimizer.zero_grad()
        loss_of(scorer, batch).backward()
        nn.utils.clip_grad_norm_(scorer.parameters(), CLIP)
        optimizer.step()
        marks.add()
    return marks.step_ms


def lightning(module: Callable[[], LightningModule], batches: Any, folder: Path) -> float:
    marks = Marks()
    callbacks = [MarkInLightning(marks)]
    trainer = bare_trainer(folder, accelerator="cpu", log_every_n_steps=LOG_EVERY, callbacks=callbacks)
    trainer.fit(module(), batches)
    return marks.step_ms


def transformers(batches: Any, folder: Path) -> float:
    marks = Marks()
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=1,
        num_train_epochs=1,
        max_grad_norm=CLIP,
        logging_steps=LOG_EVERY,
        use_cpu=True,
        optim="adamw_torch_fused",
        remove_unused_columns=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    data = [{"batch": batch} for batch in batches.dataset]
    trainer = HFTrainer(HFModule(), arguments, train_dataset=data, data_collator=lambda rows: rows[0])
    trainer.add_callback(MarkInTransformers(marks))
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return marks.step_ms


LOOPS: dict[str, Callable[[Any, Path], float]] = {
    "bare": bare,
    "lightning": lambda batches, folder: lightning(PlainModule, batches, folder),
    "lit_pref": lambda batches, folder: lightning(TinyModule, batches, folder),
    "transformers": transformers,
}


def loop_overhead(cell: Any, folder: Path) -> dict[str, Any]:
    """CPU ms of a step of each loop in turn, medians; and what ten metrics take of it."""
    batches = [tiny_batch(seed) for seed in range(STEPS)]
    loader = DataLoader(batches, batch_size=None)  # type: ignore[arg-type]
    taken: dict[str, list[float]] = {name: [] for name in LOOPS}
    for _ in range(cell.timed):
        for name, train in LOOPS.items():
            taken[name].append(train(loader, folder))
    numbers = {f"{name}_ms": statistics.median(values) for name, values in taken.items()}
    numbers |= metrics_overhead(batches)
    return {"numbers": numbers, "calls": calls(lambda: LOOPS["lit_pref"](loader, folder))}


def calls(train: Callable[[], object]) -> dict[str, float]:
    """Which of lit_pref's functions, with all that they call, take most of a run: shares of it, under cProfile."""
    profiler = cProfile.Profile()
    profiler.runcall(train)
    stats: dict[tuple[str, int, str], Any] = pstats.Stats(profiler).stats  # type: ignore[attr-defined]
    whole = max(cumulative for *_, cumulative, _ in stats.values())
    own = {(Path(file).stem, name): numbers[3] for (file, _, name), numbers in stats.items() if "lit_pref/" in file}
    most = sorted(own.items(), key=lambda item: -item[1])[:12]
    return {f"{module}.{name}": seconds / whole for (module, name), seconds in most}


def metrics_overhead(batches: list[PreferenceBatch]) -> dict[str, float]:
    """CPU ms of a step that `TrainAccumulator` takes, its share of the flush every LOG_EVERY steps included."""
    scorer, reference, accumulator = Scorer(), Fixed(), TrainAccumulator()
    policy, references = scorer(batches[0]), [reference.score(batches[0])]
    output = DPO()(policy, references, batches[0])
    start = time.process_time()
    for step, batch in enumerate(batches, start=1):
        accumulator.add(output, policy, references, batch)
        if step % LOG_EVERY == 0:
            metrics = accumulator.flush(lambda tensor: tensor)
    taken = time.process_time() - start
    return {"metrics": len(metrics), "metrics_ms": 1e3 * taken / len(batches)}
