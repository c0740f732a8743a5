"""DPO by lit_pref and by TRL's own trainer: the same batches, the same losses, the same weights."""

import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from conftest import make_policy, write_pairs
from lightning.pytorch import Callback, Trainer
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging
from trl import DPOConfig, DPOTrainer

from lit_pref.batch import PreferenceBatch
from lit_pref.data.batching.sampling import epoch_order
from lit_pref.data.datamodule import PreferenceDataModule
from lit_pref.models.spec import ModelSpec
from lit_pref.modules.preference import PreferenceModule
from lit_pref.objectives.dpo import DPO
from lit_pref.scores import ObjectiveOutput, PairScores
from lit_pref.scoring.layout import as_padded

pytestmark = pytest.mark.filterwarnings("ignore")
# Two micro-batches of such a window hold 4 and 5 pairs: their means must not count alike.
WINDOW, PAIRS, EPOCHS, SEED = 9, 45, 4, 3
STEPS = EPOCHS * PAIRS // WINDOW
BETA = 0.1
# With AdamW's usual epsilon (1e-8) a loss of twice the size gives the same updates to 8e-5; with this one to 0.25.
ADAMW: dict[str, Any] = {"lr": 2e-3, "betas": (0.9, 0.98), "eps": 1e-2, "weight_decay": 0.0}
LOSS_LIMIT, UPDATE_LIMIT = 1e-4, 1e-3

Row = tuple[list[int], list[int]]
"""The ids of prompt and response, and those of the response."""


@dataclass
class Run:
    """What a training saw and did: per optimiser step the loss, the rows (all chosen, then all rejected) and the number
    of forward passes; the weights at its end."""

    losses: list[float]
    rows: list[list[Row]]
    passes: list[int]
    weights: dict[str, Tensor]


def weights_of(model: Any) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def differences(ours: Run, theirs: Run, initial: dict[str, Tensor]) -> tuple[float, float]:
    """The largest relative difference of a step's loss, and ‖Δ_ours - Δ_theirs‖ / ‖Δ_theirs‖ of the updates Δ."""
    assert ours.weights.keys() == theirs.weights.keys() == initial.keys()
    losses = [abs(a - b) / abs(b) for a, b in zip(ours.losses, theirs.losses, strict=True)]

    def norm(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
        return math.sqrt(sum((a[name].double() - b[name].double()).square().sum().item() for name in initial))

    return max(losses), norm(ours.weights, theirs.weights) / norm(theirs.weights, initial)


@pytest.fixture(scope="module", autouse=True)
def _no_progress_bars() -> Iterator[None]:
    datasets.disable_progress_bars()
    logging.disable_progress_bar()
    yield
    datasets.enable_progress_bars()
    logging.enable_progress_bar()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trl")
    write_pairs(folder / "pairs.jsonl", PAIRS)
    make_policy(folder / "policy", seed=1)
    return folder


@pytest.fixture(scope="module")
def initial(folder: Path) -> dict[str, Tensor]:
    return weights_of(AutoModelForCausalLM.from_pretrained(folder / "policy", dtype=torch.float32))


# TRL's side


class Recording(DPOTrainer):
    """TRL's trainer, which keeps the batches that it was given and the losses that it found."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.kept: list[tuple[dict[str, Tensor], float]] = []

    def compute_loss(self, model: Any, inputs: dict[str, Tensor], *args: Any, **kwargs: Any) -> Any:
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        self.kept.append((inputs, loss.item()))
        return loss


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Run:
    """TRL over one epoch of a dataset that holds lit_pref's epochs one after the other."""
    pairs = [json.loads(line) for line in (folder / "pairs.jsonl").read_text(encoding="utf-8").splitlines()]
    order = [k for epoch in range(EPOCHS) for k in epoch_order(PAIRS, SEED, epoch)]
    trainer = Recording(
        model=AutoModelForCausalLM.from_pretrained(folder / "policy", dtype=torch.float32),
        processing_class=AutoTokenizer.from_pretrained(folder / "policy"),
        train_dataset=datasets.Dataset.from_list(
            [{name: pairs[k][name] for name in ("prompt", "chosen", "rejected")} for k in order]
        ),
        args=DPOConfig(
            output_dir=str(folder / "out"),
            beta=BETA,
            per_device_train_batch_size=WINDOW,
            num_train_epochs=1,
            train_sampling_strategy="sequential",
            optim="adamw_torch",
            learning_rate=ADAMW["lr"],
            adam_beta1=ADAMW["betas"][0],
            adam_beta2=ADAMW["betas"][1],
            adam_epsilon=ADAMW["eps"],
            weight_decay=ADAMW["weight_decay"],
            lr_scheduler_type="constant",
            max_grad_norm=0.0,  # no clipping
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=True,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
    )
    trainer.train()
    losses = [loss for _, loss in trainer.kept]
    rows = [_their_rows(inputs) for inputs, _ in trainer.kept]
    return Run(losses, rows, [1] * len(losses), weights_of(trainer.model))


def _their_rows(inputs: dict[str, Tensor]) -> list[Row]:
    columns = (inputs[name] for name in ("input_ids", "attention_mask", "completion_mask"))
    return [(ids[mask == 1].tolist(), ids[own == 1].tolist()) for ids, mask, own in zip(*columns, strict=True)]


# lit_pref's side


@pytest.fixture
def train(folder: Path, tmp_path: Path) -> Callable[..., Run]:
    """A fit of lit_pref; a hook on the objective keeps every batch with its unreduced losses."""

    def run(objective: DPO, micro_batch: int | None = None, layout: Any = "auto") -> Run:
        module = PreferenceModule(
            ModelSpec(path=str(folder / "policy")),
            objective,
            layout=layout,
            optimizer=lambda parameters: torch.optim.AdamW(parameters, **ADAMW),
        )
        data = PreferenceDataModule(
            str(folder / "pairs.jsonl"), val_fraction=0, seed=SEED, global_batch=WINDOW, micro_batch=micro_batch
        )
        trainer = Trainer(
            accelerator="cpu",
            devices=1,
            max_epochs=EPOCHS,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            default_root_dir=tmp_path,
            callbacks=[current := CurrentBatch()],
        )
        steps: defaultdict[int, list[tuple[PreferenceBatch, Tensor]]] = defaultdict(list)

        def keep(objective: nn.Module, inputs: tuple[Any, ...], output: ObjectiveOutput) -> None:
            steps[trainer.global_step].append((current.batch, output.losses.detach()))

        objective.register_forward_hook(keep)
        trainer.fit(module, data)
        losses = [torch.cat([losses for _, losses in step]).mean().item() for step in steps.values()]
        rows = [_our_rows([batch for batch, _ in step]) for step in steps.values()]
        assert module.scorer is not None
        return Run(losses, rows, [len(step) for step in steps.values()], weights_of(module.scorer.model))

    return run


class CurrentBatch(Callback):
    """Keeps the batch of the step that is taken."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.batch: PreferenceBatch = batch


def _our_rows(batches: Sequence[PreferenceBatch]) -> list[Row]:
    chosen, rejected = [], []
    for batch in map(as_padded, batches):
        kept = [
            ids[mask == 1].tolist() for ids, mask in zip(batch.rows.input_ids, batch.rows.attention_mask, strict=True)
        ]
        own = [batch.rows.targets[batch.rows.sequences == k].tolist() for k in range(batch.rows.num_sequences)]
        rows = list(zip(kept, own, strict=True))
        chosen += rows[: len(batch)]
        rejected += rows[len(batch) :]
    return chosen + rejected


# What is compared


def test_trl_itself_learns_the_pairs(theirs: Run):
    assert len(theirs.losses) == STEPS == 20
    assert theirs.losses[0] == pytest.approx(math.log(2), rel=1e-6)
    assert theirs.losses[-1] < 0.4


@pytest.mark.parametrize("layout", ["prefix_shared", "padded"])
@pytest.mark.parametrize(("micro_batch", "passes"), [(None, 1), (5, 2)], ids=["whole windows", "two micro-batches"])
def test_dpo_is_trls(
    layout: str,
    micro_batch: int | None,
    passes: int,
    train: Callable[..., Run],
    theirs: Run,
    initial: dict[str, Tensor],
):
    ours = train(DPO(beta=BETA), micro_batch, layout)
    assert ours.passes == [passes] * STEPS
    assert ours.rows == theirs.rows
    loss, update = differences(ours, theirs, initial)
    assert loss <= LOSS_LIMIT
    assert update <= UPDATE_LIMIT


def swap_sides(objective: nn.Module, inputs: tuple[PairScores, list[PairScores], Any]) -> tuple[Any, ...]:
    policy, references, batch = inputs
    swapped = [PairScores(scores.rejected, scores.chosen) for scores in (policy, *references)]  # type: ignore[arg-type]
    return swapped[0], swapped[1:], batch


@pytest.mark.parametrize("fault", ["beta one per cent larger", "sign flipped"])
def test_the_comparison_sees_another_objective(
    fault: str, train: Callable[..., Run], theirs: Run, initial: dict[str, Tensor]
):
    objective = DPO(beta=BETA)
    if fault == "sign flipped":
        objective.register_forward_pre_hook(swap_sides)
    else:
        objective = DPO(beta=1.01 * BETA)
    loss, update = differences(train(objective), theirs, initial)
    assert loss > 10 * LOSS_LIMIT
    assert update > 2 * UPDATE_LIMIT


def test_the_comparison_sees_a_gradient_of_twice_the_size(
    train: Callable[..., Run], theirs: Run, initial: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
):
    step = PreferenceModule.training_step
    monkeypatch.setattr(PreferenceModule, "training_step", lambda self, *inputs: 2 * step(self, *inputs))
    loss, update = differences(train(DPO(beta=BETA)), theirs, initial)
    assert loss > 10 * LOSS_LIMIT
    assert update > 2 * UPDATE_LIMIT
