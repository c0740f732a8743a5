"""DPO by lit_pref and by TRL's own trainer: the same batches, the same losses, the same weights."""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from conftest import make_policy, write_pairs
from lightning.pytorch import Trainer
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer
from trl_runs import (
    ADAMW,
    EPOCHS,
    LOSS_LIMIT,
    PAIRS,
    SEED,
    STEPS,
    UPDATE_LIMIT,
    WINDOW,
    Recorder,
    Row,
    Run,
    differences,
    no_progress_bars,
    trl_arguments,
    weights_of,
)

from lit_pref.data.batching.sampling import epoch_order
from lit_pref.data.datamodule import PreferenceDataModule
from lit_pref.models.spec import ModelSpec
from lit_pref.modules.preference import PreferenceModule
from lit_pref.objectives.dpo import DPO
from lit_pref.references.moving import MovingReference
from lit_pref.references.reference import Reference
from lit_pref.scores import PairScores

pytestmark = pytest.mark.filterwarnings("ignore")
BETA = 0.1


@pytest.fixture(scope="module", autouse=True)
def _no_progress_bars() -> Iterator[None]:
    with no_progress_bars():
        yield


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
    return trl_run(folder)


def trl_run(folder: Path, **options: Any) -> Run:
    """TRL over one epoch of a dataset that holds lit_pref's epochs one after the other."""
    pairs = [json.loads(line) for line in (folder / "pairs.jsonl").read_text(encoding="utf-8").splitlines()]
    order = [k for epoch in range(EPOCHS) for k in epoch_order(PAIRS, SEED, epoch)]
    trainer = Recording(
        model=AutoModelForCausalLM.from_pretrained(folder / "policy", dtype=torch.float32),
        processing_class=AutoTokenizer.from_pretrained(folder / "policy"),
        train_dataset=datasets.Dataset.from_list(
            [{name: pairs[k][name] for name in ("prompt", "chosen", "rejected")} for k in order]
        ),
        args=DPOConfig(**trl_arguments(folder), beta=BETA, max_grad_norm=0.0, **options),  # no clipping
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
    """A fit of lit_pref."""

    def run(
        objective: DPO,
        micro_batch: int | None = None,
        layout: Any = "auto",
        references: list[Reference] | None = None,
    ) -> Run:
        module = PreferenceModule(
            ModelSpec(path=str(folder / "policy")),
            objective,
            references,
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
            callbacks=[recorder := Recorder()],
        )
        trainer.fit(module, data)
        assert module.scorer is not None
        return recorder.run(module.scorer.model)

    return run


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


def test_a_moving_reference_is_trls(train: Callable[..., Run], folder: Path, theirs: Run, initial: dict[str, Tensor]):
    moved = trl_run(folder, sync_ref_model=True, ref_model_mixup_alpha=0.6, ref_model_sync_steps=3)
    loss, update = differences(train(DPO(beta=BETA), references=[MovingReference(alpha=0.6, every=3)]), moved, initial)
    assert loss <= LOSS_LIMIT
    assert update <= UPDATE_LIMIT
    assert differences(theirs, moved, initial)[0] > 100 * LOSS_LIMIT  # a still reference gives other losses


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
