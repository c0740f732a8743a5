"""Training is exact in one process: windows, schedules, validation, early stopping, references, LoRA."""

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import write_pairs
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping
from training_runs import Explosive, Ran, Run, fit
from transformers import AutoModelForCausalLM, AutoTokenizer

from lit_pref.data.batching.token_budget import TokenBudget
from lit_pref.errors import UserError
from lit_pref.models.spec import Lora
from lit_pref.modules.schedules import Cosine
from lit_pref.objectives.bco import BCO
from lit_pref.objectives.dpo import DPO
from lit_pref.objectives.epsilon_dpo import EpsilonDPO
from lit_pref.objectives.mmpo import MMPO
from lit_pref.references.pretrained import Pretrained

pytestmark = pytest.mark.filterwarnings("ignore")
PAIRS, GLOBAL = 20, 8  # windows of 8, 8 and 4 pairs


@pytest.fixture(scope="module")
def run(policy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("pairs")
    train, val = write_pairs(folder / "train.jsonl", PAIRS), write_pairs(folder / "val.jsonl", 5, seed=1)
    return Run(
        policy={"path": str(policy_folder), "dtype": "float64"},
        data={"train": str(train), "val": str(val), "global_batch": GLOBAL},
    )


def weights(ran: Ran) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in ran.module.scorer.parameters()])


def micro(run: Run, size: int) -> Run:
    return replace(run, data={**run.data, "micro_batch": size})


# Accumulation


@pytest.mark.parametrize("clip", [None, 0.05])
@pytest.mark.parametrize(
    "objective", [MMPO, lambda: EpsilonDPO(beta=0.1, epsilon=0.05), BCO], ids=["mmpo", "epsilon", "bco"]
)
def test_k_micro_batches_of_b_are_one_of_k_times_b(run: Run, tmp_path: Path, objective, clip):
    run = replace(run, objective=objective, trainer={"gradient_clip_val": clip})
    whole = fit(micro(run, GLOBAL), tmp_path / "whole")
    start = fit(micro(run, GLOBAL), tmp_path / "start", max_epochs=0)
    moved = (weights(whole) - weights(start)).norm()
    assert moved > 1e-3
    if clip is not None:
        assert max(whole.logged.column("train/gradient_norm")) > clip
    for size in (1, 3, 4):
        parts = fit(micro(run, size), tmp_path / str(size))
        assert parts.trainer.accumulate_grad_batches == math.ceil(GLOBAL / size)
        assert (weights(parts) - weights(whole)).norm() < 1e-12 * moved
        for name in ("train/loss", "train/gradient_norm", "train/pairs"):
            assert parts.logged.column(name) == pytest.approx(whole.logged.column(name), rel=1e-12)
        if whole.module.objective.progress:
            assert parts.module.objective.progress == pytest.approx(whole.module.objective.progress, rel=1e-12)
    assert whole.logged.column("train/pairs") == [8, 8, 4]


@pytest.mark.parametrize("layout", ["prefix_shared", "padded"])
def test_micro_batches_by_tokens_are_one_of_all_pairs(run: Run, tmp_path: Path, layout):
    run = replace(run, objective=lambda: EpsilonDPO(beta=0.1, epsilon=0.05), layout=layout)
    whole, start = fit(micro(run, GLOBAL), tmp_path / "whole"), fit(run, tmp_path / "start", max_epochs=0)
    moved = (weights(whole) - weights(start)).norm()
    assert moved > 1e-3
    pairs = whole.trainer.datamodule.train_pairs
    tokens = int(TokenBudget(0, pairs.lengths, layout).costs.max()) + 40
    parts = fit(replace(run, data={**run.data, "max_tokens": tokens}), tmp_path / "parts")
    sizes = [len(ids) for _, ids in parts.given]
    assert sum(sizes) == PAIRS and len(set(sizes)) > 1
    assert parts.trainer.accumulate_grad_batches > 1
    assert (weights(parts) - weights(whole)).norm() < 1e-12 * moved
    for name in ("train/loss", "train/gradient_norm", "train/pairs", "val/loss"):
        assert parts.logged.column(name) == pytest.approx(whole.logged.column(name), rel=1e-12)
    assert parts.module.objective.progress == pytest.approx(whole.module.objective.progress, rel=1e-12)


def test_a_step_is_the_gradient_of_the_mean_over_the_window_also_a_ragged_one(run: Run, tmp_path: Path):
    class Gradients(Callback):
        def __init__(self):
            self.taken = []

        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            if trainer.accumulate_grad_batches == 1:
                scores = module.scorer(batch)
                first = module.references[0].score(batch)
                ratio = scores.chosen.scores - scores.rejected.scores - (first.chosen.scores - first.rejected.scores)
                loss = torch.nn.functional.softplus(-0.1 * ratio).sum() / len(batch)
                self.taken.append(torch.autograd.grad(loss, list(module.scorer.parameters())))

    gradients = Gradients()
    run = replace(run, objective=lambda: DPO(beta=0.1))
    whole = fit(micro(run, GLOBAL), tmp_path / "whole", callbacks=[gradients])
    start = fit(run, tmp_path / "start", max_epochs=0)
    by_hand = weights(start)
    for gradient in gradients.taken:
        by_hand = by_hand - 0.05 * torch.cat([g.flatten() for g in gradient])
    for ran in (whole, fit(micro(run, 3), tmp_path / "parts")):
        assert (weights(ran) - by_hand).norm() < 1e-12 * (by_hand - weights(start)).norm()


# Schedules


def test_the_schedule_counts_optimiser_steps_and_the_logged_rate_is_the_one_used(run: Run, tmp_path: Path):
    class Rates(Callback):
        def __init__(self):
            self.used = []

        def on_before_optimizer_step(self, trainer, module, optimizer):
            self.used.append(optimizer.param_groups[0]["lr"])

    rates = Rates()
    run = replace(micro(run, 3), schedule=Cosine(warmup=2), data={**run.data, "micro_batch": 3})
    ran = fit(run, tmp_path, max_epochs=2, callbacks=[rates])
    assert ran.trainer.accumulate_grad_batches == 3
    # Six steps in two epochs: 1/2 and 2/2 of the peak, then half a cosine over the other four.
    by_hand = [
        0.05 * f for f in (0.5, 1.0, 1.0, (1 + math.cos(math.pi / 4)) / 2, 0.5, (1 + math.cos(3 * math.pi / 4)) / 2)
    ]
    assert rates.used == pytest.approx(by_hand, rel=1e-12)
    assert ran.logged.column("train/learning_rate") == pytest.approx(by_hand, rel=1e-12)
    assert fit(run, tmp_path / "steps", max_epochs=None, max_steps=4).module.total_steps == 4


# Validation and stopping


class Validations(Callback):
    def __init__(self):
        self.at = []

    def on_validation_start(self, trainer, module):
        self.at.append((trainer.global_step, len([p for p in module.scorer.parameters() if p.grad is not None])))


@pytest.mark.parametrize(
    "interval, steps", [(1.0, [3, 6]), (0.5, [1, 2, 3, 4, 5, 6]), (1, [1, 2, 3, 4, 5, 6]), (2, [2, 5]), (3, [3, 6])]
)
@pytest.mark.parametrize(
    "cut", [{"micro_batch": 8}, {"micro_batch": 3}, {"micro_batch": None, "max_tokens": 120}], ids=str
)
def test_validation_interval_counts_optimizer_steps(run: Run, tmp_path: Path, interval, steps, cut):
    # 1, or 3 + 3 + 2, or by tokens some other number of micro-batches an epoch
    seen = Validations()
    cut_run = replace(run, data={**run.data, **cut})
    ran = fit(cut_run, tmp_path, max_epochs=2, val_check_interval=interval, callbacks=[seen])
    assert (ran.trainer.accumulate_grad_batches > 1) == (cut["micro_batch"] != 8)
    assert [step for step, _ in seen.at] == steps
    assert all(gradients == 0 for _, gradients in seen.at)


@pytest.mark.parametrize("micro_batch", [8, 3])
def test_validation_interval_counts_steps_across_epochs_also_after_a_resume(run: Run, tmp_path: Path, micro_batch):
    options = {"max_epochs": 4, "val_check_interval": 4, "check_val_every_n_epoch": None}
    seen, rest = Validations(), Validations()
    whole = fit(micro(run, micro_batch), tmp_path / "whole", every=1, callbacks=[seen], **options)
    assert [step for step, _ in seen.at] == [4, 8, 12]
    fit(micro(run, micro_batch), tmp_path / "rest", ckpt=whole.checkpoint(5), callbacks=[rest], **options)
    assert [step for step, _ in rest.at] == [8, 12]


def test_validation_in_mid_epoch_changes_nothing(run: Run, tmp_path: Path):
    run = replace(run, policy={**run.policy, "dropout": 0.1}, objective=lambda: EpsilonDPO(beta=0.1, epsilon=0.05))
    without = fit(micro(run, 3), tmp_path / "a", max_epochs=2, limit_val_batches=0)
    often = fit(micro(run, 3), tmp_path / "b", max_epochs=2, val_check_interval=1)
    assert torch.equal(weights(without), weights(often))
    assert without.module.objective.progress == often.module.objective.progress


def test_early_stopping_watches_the_validation_loss(run: Run, tmp_path: Path):
    # Every loss of an epoch is worse than half the one before it, so that patience 1 ends after the extra_response.
    stop = EarlyStopping("val/loss", patience=2, min_delta=10.0)
    ran = fit(run, tmp_path, max_epochs=9, callbacks=[stop])
    assert ran.trainer.current_epoch == 3
    assert stop.best_score.item() == pytest.approx(ran.logged.column("val/loss")[0], rel=1e-6)


# References and LoRA


def test_the_reference_is_outside_and_stays_the_same_to_the_last_bit(run: Run, tmp_path: Path, policy_folder: Path):
    from safetensors.torch import load_file

    live = replace(run, optimizer=lambda p: torch.optim.AdamW(p, lr=1e-2), reference_store=False)
    ran = fit(live, tmp_path, max_epochs=2)
    written = load_file(policy_folder / "model.safetensors")
    reference = dict(ran.module.references[0].scorer.model.named_parameters())
    assert all(torch.equal(reference[name], tensor.double()) for name, tensor in written.items())
    assert not torch.equal(ran.module.scorer.model.state_dict()["lm_head.weight"], written["lm_head.weight"].double())
    assert not any(p.requires_grad or p.grad is not None for p in reference.values())
    checkpoint = torch.load(ran.checkpoint(6), weights_only=True)
    names = {f"scorer.model.{name}" for name in ran.module.scorer.model.state_dict()}
    assert set(checkpoint["state_dict"]) == names
    assert len(checkpoint["optimizer_states"][0]["state"]) == len(list(ran.module.scorer.parameters()))


def test_a_lora_checkpoint_holds_adapters_only_and_resumes(run: Run, tmp_path: Path, policy_folder: Path):
    run = replace(
        run, policy={**run.policy, "lora": Lora(r=2, dropout=0.1)}, optimizer=lambda p: torch.optim.AdamW(p, lr=1e-2)
    )
    whole = fit(run, tmp_path / "whole", max_epochs=2)
    checkpoint = torch.load(whole.checkpoint(6), weights_only=True)
    assert checkpoint["state_dict"] and all("lora_" in name for name in checkpoint["state_dict"])
    assert len(checkpoint["optimizer_states"][0]["state"]) == len(checkpoint["state_dict"])
    part = fit(run, tmp_path / "part", max_epochs=2, stop_at_step=2)
    rest = fit(run, tmp_path / "part", ckpt=part.checkpoint(2), max_epochs=2)
    assert torch.equal(weights(rest), weights(whole))
    assert rest.logged.steps[6]["train/loss"] == whole.logged.steps[6]["train/loss"]


def test_a_lora_checkpoint_over_another_base_is_refused(run: Run, tmp_path: Path):
    from conftest import make_policy

    from lit_pref.objectives.sft import SFT

    lora = {**run.policy, "lora": Lora(r=2)}
    part = fit(replace(run, policy=lora, objective=SFT), tmp_path, stop_at_step=1)
    other = {**lora, "path": str(make_policy(tmp_path / "other", seed=5))}
    with pytest.raises(UserError, match="not the model of the checkpoint"):
        fit(replace(run, policy=other, objective=SFT), tmp_path, ckpt=part.checkpoint(1))


# Numbers that are none


@pytest.mark.parametrize("micro_batch", [8, 3])
def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_pairs(
    run: Run, tmp_path: Path, micro_batch, monkeypatch
):
    first = fit(run, tmp_path / "first")
    monkeypatch.setattr(Explosive, "bad", first.given[1][1][4])
    pairs = first.trainer.datamodule.train_pairs
    line = pairs[pairs.ids.index(Explosive.bad)].place
    assert re.fullmatch(r".*train\.jsonl, line \d+", line)
    with pytest.raises(
        UserError, match=f"the loss of 1 pair\\(s\\) is not finite at step 1: {re.escape(line)}; lower the learning"
    ):
        fit(replace(micro(run, micro_batch), objective=Explosive), tmp_path)
    assert not (tmp_path / "checkpoints").exists()


def test_weights_that_explode_in_the_last_step_are_found_by_validation(run: Run, tmp_path: Path):
    run = replace(run, optimizer=lambda p: torch.optim.SGD(p, lr=math.inf))
    with pytest.raises(UserError, match="is not finite"):
        fit(run, tmp_path, max_steps=1)


@pytest.mark.parametrize("padded", ["policy", "reference"])
def test_a_padded_vocabulary_serves_epsilon_dpo(run: Run, padded: str, policy_folder: Path, tmp_path: Path, capsys):
    wide: Any = AutoModelForCausalLM.from_pretrained(policy_folder)
    wide.resize_token_embeddings(wide.config.vocab_size + 8, mean_resizing=False)
    wide.save_pretrained(tmp_path / "wide")
    AutoTokenizer.from_pretrained(policy_folder).save_pretrained(tmp_path / "wide")
    policy, other = (policy_folder, tmp_path / "wide") if padded == "reference" else (tmp_path / "wide", policy_folder)
    run = replace(
        run,
        policy={"path": str(policy), "dtype": "float64"},
        objective=lambda: EpsilonDPO(beta=0.1, epsilon=0.05),
        references=lambda: [Pretrained(str(other), dtype="float64")],
    )
    ran = fit(run, tmp_path / "run")
    steps = ran.logged.column("train/epsilon_step")
    assert steps and all(math.isfinite(step) for step in steps)
    assert "next-token distributions are compared over the first" in capsys.readouterr().out
