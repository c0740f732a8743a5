"""A setting that differs from the checkpoint's is applied and recorded, or refused, and never ignored."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, make_policy, write_pairs
from training_runs import Ran, Run, differences, fit, trained

from lit_pref.errors import UserError
from lit_pref.models.reward import Embedding
from lit_pref.models.spec import Lora, ModelSpec
from lit_pref.modules.checkpoint_info import KEY
from lit_pref.modules.effective_settings import ARCHITECTURE, TOTAL
from lit_pref.modules.resumption import TABLE, OnResume
from lit_pref.modules.schedules import Cosine, Flat, Linear
from lit_pref.objectives.dpo import DPO
from lit_pref.references.pretrained import Pretrained
from lit_pref.run.checkpoint_model import read_checkpoint
from lit_pref.run.config import run_parser
from lit_pref.run.export import export

pytestmark = pytest.mark.filterwarnings("ignore")


def adamw(**more: Any) -> Callable[[Any], torch.optim.Optimizer]:
    return lambda parameters: torch.optim.AdamW(parameters, **{"lr": 0.01, "weight_decay": 0.1, **more})


@pytest.fixture(scope="module")
def run(policy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    train = write_pairs(tmp_path_factory.mktemp("pairs") / "train.jsonl", 32)
    return Run(
        policy={"path": str(policy_folder)},
        data={"train": str(train), "val_fraction": 0.0, "global_batch": 8},
        references=lambda: [Pretrained(str(policy_folder))],
        optimizer=adamw(),
        schedule=Cosine(warmup=1),
        trainer={"gradient_clip_val": 1.0},
    )


@pytest.fixture(scope="module")
def part(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    return fit(run, tmp_path_factory.mktemp("part"), stop_at_step=2, every=1)


@pytest.fixture(scope="module")
def constant(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    return fit(replace(run, schedule=None), tmp_path_factory.mktemp("constant"), stop_at_step=2)


def weights(ran: Ran) -> dict[str, Any]:
    return trained(read_checkpoint(sorted((ran.folder / "checkpoints").glob("*.ckpt"))[-1]))["state_dict"]


def test_a_new_rate_and_weight_decay_are_applied_from_the_next_step_on_under_the_schedule(
    run: Run, part: Ran, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    same = fit(run, tmp_path / "same", ckpt=part.checkpoint(2))
    assert "resumed" not in capsys.readouterr().out and same.module.resumption.changes == []
    rate = fit(replace(run, optimizer=adamw(lr=0.001)), tmp_path / "rate", ckpt=part.checkpoint(2))
    assert "resumed     from step 2 with model.optimizer.lr 0.001 instead of 0.01" in capsys.readouterr().out
    factors = [Cosine(warmup=1).factor(step, 4) for step in (2, 3)]
    assert rate.logged.column("train/learning_rate") == pytest.approx([0.001 * factor for factor in factors])
    decay = fit(replace(run, optimizer=adamw(weight_decay=0.5)), tmp_path / "decay", ckpt=part.checkpoint(2))
    for other in (rate, decay):
        assert differences(weights(other), weights(same))
    # It is recorded, in every later checkpoint and in the model card.
    half = fit(replace(run, optimizer=adamw(lr=0.001)), tmp_path / "half", ckpt=part.checkpoint(2), stop_at_step=3)
    again = fit(replace(run, optimizer=adamw(lr=0.002)), tmp_path / "again", ckpt=half.checkpoint(3))
    assert [change.partition(" with")[0] for change in again.module.resumption.changes] == [
        "from step 2",
        "from step 3",
    ]
    card = (export(rate.checkpoint(4), tmp_path / "hf").folder / "README.md").read_text()
    assert "- resumed from step 2 with model.optimizer.lr 0.001 instead of 0.01" in card


def test_a_constant_rate_is_applied_too(run: Run, constant: Ran, tmp_path: Path):
    other = replace(run, schedule=None, optimizer=adamw(lr=0.003))
    assert set(fit(other, tmp_path, ckpt=constant.checkpoint(2)).logged.column("train/learning_rate")) == {0.003}


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "optimizer": (
        {"optimizer": lambda p: torch.optim.SGD(p, lr=0.01)},
        r"model.optimizer torch.optim.adamw.AdamW and this run has torch.optim.sgd.SGD",
    ),
    "betas": (
        {"optimizer": adamw(betas=(0.8, 0.9))},
        r"model.optimizer.betas \[0.9, 0.999\] and this run has \[0.8, 0.9\]",
    ),
    "amsgrad": ({"optimizer": adamw(amsgrad=True)}, "model.optimizer.amsgrad false and this run has true"),
    "schedule": (
        {"schedule": Linear(warmup=1)},
        r"model.schedule \{class_path: Cosine, init_args: \{warmup: 1, floor: 0.0\}\} .* has \{class_path: Linear",
    ),
    "floor": ({"schedule": Cosine(warmup=1, floor=0.1)}, "model.schedule .*Cosine"),
    "no schedule": ({"schedule": None}, "model.schedule .*Cosine.* and this run has null"),
    "seed": ({"seed": 3}, "seed_everything 0 and this run has 3"),
    "precision": ({"trainer": {"precision": "bf16-mixed", "gradient_clip_val": 1.0}}, "trainer.precision 32-true"),
    "stretched": ({"trainer": {"max_epochs": 2, "gradient_clip_val": 1.0}}, r"in all\) 4 and this run has 8"),
    "shortened": ({"trainer": {"max_steps": 3, "gradient_clip_val": 1.0}}, r"in all\) 4 and this run has 3"),
    "part of an epoch": ({"trainer": {"limit_train_batches": 3, "gradient_clip_val": 1.0}}, "limit_train_batches"),
}


@pytest.mark.parametrize("change", REFUSED)
def test_what_cannot_change_is_refused_before_training(run: Run, part: Ran, tmp_path: Path, change: str):
    changed, says = REFUSED[change]
    with pytest.raises(UserError, match=rf"trained with .*{says}.* cannot change .*: set it to .*, or export"):
        fit(replace(run, **changed), tmp_path / "rest", ckpt=part.checkpoint(2))
    assert not (tmp_path / "rest" / "checkpoints").exists()


def test_weights_in_another_dtype_and_another_architecture_of_the_same_shapes_are_refused(
    run: Run, part: Ran, tmp_path: Path
):
    with pytest.raises(UserError, match=r"model.policy.dtype float32 and this run has bfloat16"):
        fit(replace(run, policy={**run.policy, "dtype": "bfloat16"}), tmp_path, ckpt=part.checkpoint(2))
    other = make_policy(tmp_path / "other", seed=0, rms_norm_eps=1e-3)
    with pytest.raises(UserError, match=r"config.json.*rms_norm_eps 1e-06 and this run has 0.001"):
        fit(replace(run, policy={"path": str(other)}), tmp_path, ckpt=part.checkpoint(2))


def test_clipping_dropout_and_the_objective_are_applied_and_said(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run = replace(run, layout="padded")
    part = fit(run, tmp_path / "part", stop_at_step=2)
    policy, objective = {**run.policy, "dropout": 0.2}, lambda: DPO(beta=0.3)
    changed = replace(run, policy=policy, objective=objective, trainer={"gradient_clip_val": 0.5})
    fit(changed, tmp_path / "rest", ckpt=part.checkpoint(2))
    said = capsys.readouterr().out
    for line in (
        "trainer.gradient_clip_val 0.5 instead of 1.0",
        "model.policy.dropout 0.2 instead of 0.0",
        "model.objective DPO(beta=0.3",
    ):
        assert f"resumed     from step 2 with {line}" in said


def test_a_longer_run_is_resumed_where_no_rate_depends_on_its_length(
    run: Run, constant: Ran, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    longer = fit(replace(run, schedule=None), tmp_path / "a", ckpt=constant.checkpoint(2), max_epochs=2)
    assert longer.trainer.global_step == 8
    assert "(optimizer steps in all) 8 instead of 4" in capsys.readouterr().out
    flat = replace(run, schedule=Flat(warmup=1))
    begun = fit(flat, tmp_path / "b", stop_at_step=2)
    assert fit(flat, tmp_path / "c", ckpt=begun.checkpoint(2), max_epochs=2).trainer.global_step == 8


def test_a_finished_run_under_a_decaying_schedule_cannot_be_made_longer(run: Run, tmp_path: Path):
    # A rate of 0 at the end of the old curve would become one in the middle of the new curve.
    finished = fit(run, tmp_path / "finished")
    longer = replace(run, trainer={"max_epochs": 3, "gradient_clip_val": 1.0})
    with pytest.raises(UserError, match=r"in all\) 4 and this run has 12"):
        fit(longer, tmp_path / "rest", ckpt=finished.checkpoint(4))
    flat = replace(run, schedule=Flat(warmup=1))
    finished = fit(flat, tmp_path / "flat")
    assert fit(flat, tmp_path / "more", ckpt=finished.checkpoint(4), max_epochs=2).trainer.global_step == 8


@pytest.mark.parametrize("implementation", [{"foreach": False}, {"fused": True}])
def test_the_optimizers_implementation_may_change(run: Run, part: Ran, tmp_path: Path, implementation: dict[str, Any]):
    ran = fit(replace(run, optimizer=adamw(**implementation)), tmp_path, ckpt=part.checkpoint(2))
    assert ran.trainer.global_step == 4 and ran.module.resumption.changes == []


def test_a_change_is_not_announced_by_a_run_that_is_then_refused(
    run: Run, part: Ran, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    rate = replace(run, optimizer=adamw(lr=0.001))
    for changed in (
        replace(rate, data={**run.data, "global_batch": 4}),
        replace(rate, optimizer=adamw(lr=0.001, betas=(0.8, 0.9))),
    ):
        with pytest.raises(UserError):
            fit(changed, tmp_path, ckpt=part.checkpoint(2))
    assert "resumed" not in capsys.readouterr().out


def test_dropout_that_needs_another_layout_is_refused_with_a_remedy_that_works(run: Run, tmp_path: Path):
    shared = replace(run, layout="prefix_shared")
    part = fit(shared, tmp_path / "part", stop_at_step=2)
    wet = replace(run, policy={**run.policy, "dropout": 0.2})
    with pytest.raises(UserError, match=r"padded layout \(dropout .*trained in prefix_shared.*checkpoint's settings"):
        fit(wet, tmp_path / "rest", ckpt=part.checkpoint(2))


@pytest.fixture(scope="module")
def changes_refused(run: Run, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """A changed run for every name that the table calls refused."""
    other = make_policy(tmp_path_factory.mktemp("other") / "policy", seed=7)
    clip = {"gradient_clip_val": 1.0}
    changes: dict[str, dict[str, Any]] = {
        "model.optimizer": {"optimizer": lambda p: torch.optim.SGD(p, lr=0.01)},
        "model.schedule": {"schedule": None},
        "model.policy.path": {"policy": {"path": str(other)}},
        "model.policy.config": {
            "policy": {
                "config": json.loads((other / "config.json").read_text()),
                "tokenizer": str(other),
            }
        },
        "model.policy.dtype": {"policy": {**run.policy, "dtype": "bfloat16"}},
        "model.policy.lora": {"policy": {**run.policy, "lora": Lora(r=2)}},
        "model.policy.merge_adapter": {"policy": {**run.policy, "merge_adapter": True}},
        "model.policy.head": {"policy": {**run.policy, "head": "scalar"}},
        "model.policy.embedding": {"policy": {**run.policy, "embedding": Embedding()}},
        "trainer.precision": {"trainer": {**clip, "precision": "bf16-mixed"}},
        "trainer.limit_train_batches": {"trainer": {**clip, "limit_train_batches": 3}},
        "trainer.overfit_batches": {"trainer": {**clip, "overfit_batches": 2}},
        "seed_everything": {"seed": 3},
        "data.seed": {"data": {**run.data, "seed": 3}},
        "data.global_batch": {"data": {**run.data, "global_batch": 4}},
    }
    return {name: replace(run, **change) for name, change in changes.items()}


@pytest.mark.parametrize("name", TABLE[OnResume.REFUSED])
def test_every_setting_that_the_table_calls_refused_is_refused(
    changes_refused: dict[str, Run], part: Ran, tmp_path: Path, name: str
):
    with pytest.raises(UserError):
        fit(changes_refused[name], tmp_path, ckpt=part.checkpoint(2))
    assert not (tmp_path / "checkpoints").exists()


def test_another_policy_of_the_same_architecture_is_refused_and_a_moved_one_is_taken(
    run: Run, part: Ran, changes_refused: dict[str, Run], tmp_path: Path
):
    with pytest.raises(
        UserError, match=r"weights before training.* are not those that the checkpoint was trained from"
    ):
        fit(changes_refused["model.policy.path"], tmp_path / "rest", ckpt=part.checkpoint(2))
    moved = shutil.copytree(run.policy["path"], tmp_path / "moved")
    assert fit(replace(run, policy={"path": str(moved)}), tmp_path / "r", ckpt=part.checkpoint(2)).trainer.global_step


def test_every_recorded_setting_is_one_that_the_table_calls_applied_or_refused(part: Ran):
    decided = {*TABLE[OnResume.APPLIED], *TABLE[OnResume.REFUSED], TOTAL}
    names = set(read_checkpoint(part.checkpoint(2))[KEY]["settings"])
    names = {name for name in names if not name.startswith(ARCHITECTURE)}
    assert {name for name in names if name not in decided and name.rpartition(".")[0] != "model.optimizer"} == set()


def test_every_setting_of_a_run_stands_in_the_table_once_and_in_the_documentation():
    listed = [name for names in TABLE.values() for name in names]
    assert len(listed) == len(set(listed))
    options = {action.dest for action in run_parser()._actions} - {"help", "config", "print_config"}
    known = {".".join(name.split(".")[:2]) for name in options if not name.endswith(".help")}
    known -= {"model.policy", "trainer", "model", "data"}
    known |= {f"model.policy.{field.name}" for field in dataclasses.fields(ModelSpec)}
    assert known - set(listed) == set()
    assert {".".join(name.split(".")[:2]) for name in listed} - {"model.policy"} - known == set()
    page = (ROOT / "docs" / "lightning.md").read_text()
    for outcome, names in TABLE.items():
        assert f"| {outcome} | {', '.join(f'`{name}`' for name in names)} |" in page


def test_a_setting_that_an_older_checkpoint_does_not_record_has_the_value_that_it_had(
    run: Run, part: Ran, tmp_path: Path
):
    content = torch.load(part.checkpoint(2), weights_only=False)
    assert content[KEY]["settings"].pop("model.policy.head_precision") == "auto"
    torch.save(content, tmp_path / "older.ckpt")
    resumed = fit(run, tmp_path / "rest", ckpt=tmp_path / "older.ckpt", stop_at_step=3)
    assert resumed.module.resumption.changes == []
    changed = replace(run, policy={**run.policy, "head_precision": "bf16"})
    resumed = fit(changed, tmp_path / "changed", ckpt=tmp_path / "older.ckpt", stop_at_step=3)
    assert resumed.module.resumption.changes == ["from step 2 with model.policy.head_precision bf16 instead of auto"]
