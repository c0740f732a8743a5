"""Checkpoints that a run refuses to resume from, because it would silently become another run."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import make_policy, write_pairs
from training_runs import Ran, Run, fit

from lit_pref.errors import UserError
from lit_pref.models.spec import Lora
from lit_pref.objectives.dpo import DPO
from lit_pref.objectives.epsilon_dpo import EpsilonDPO
from lit_pref.references.pretrained import Pretrained

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    return make_policy(tmp_path_factory.mktemp("models") / "other", seed=5)


@pytest.fixture(scope="module")
def run(policy_folder: Path, other: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    train = write_pairs(tmp_path_factory.mktemp("pairs") / "train.jsonl", 12)
    return Run(
        policy={"path": str(policy_folder), "lora": Lora(r=2, alpha=999)},
        data={"train": str(train), "val_fraction": 0.0, "global_batch": 8},
        references=lambda: [Pretrained(str(other))],
    )


@pytest.fixture(scope="module")
def part(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    return fit(run, tmp_path_factory.mktemp("part"), stop_at_step=1)


def test_other_adapter_settings_are_refused(run: Run, part: Ran, tmp_path: Path, policy_folder: Path):
    for lora in (Lora(r=2, alpha=1), Lora(r=2, alpha=999, dropout=0.1)):
        with pytest.raises(UserError, match=r"'alpha': 999.* and model.policy.lora of this run is \{'r': 2"):
            fit(replace(run, policy={**run.policy, "lora": lora}), tmp_path, ckpt=part.checkpoint(1))
    with pytest.raises(UserError, match=r"and model.policy.lora of this run is None"):
        fit(replace(run, policy={"path": str(policy_folder)}), tmp_path, ckpt=part.checkpoint(1))


def test_adapters_are_not_put_on_whole_weights(run: Run, tmp_path: Path, policy_folder: Path):
    whole = fit(replace(run, policy={"path": str(policy_folder)}), tmp_path / "whole", stop_at_step=1)
    with pytest.raises(UserError, match=r"the checkpoint have the settings None and model.policy.lora .* \{'r': 2"):
        fit(run, tmp_path / "rest", ckpt=whole.checkpoint(1))


def test_other_adapter_settings_are_refused_in_validation_too(run: Run, part: Ran):
    part_checkpoint = torch.load(part.checkpoint(1), weights_only=True)
    module, before = part.module, part.module.policy.lora
    module.on_load_checkpoint(part_checkpoint)
    try:
        module.policy.lora = Lora(r=2, alpha=1)
        module.trainer.state.fn = "validate"
        with pytest.raises(UserError, match="'alpha': 999"):
            module.on_load_checkpoint(part_checkpoint)
    finally:
        module.policy.lora, module.trainer.state.fn = before, "fit"


def test_a_reference_in_another_dtype_is_refused_and_one_that_moved_is_not(
    run: Run, part: Ran, other: Path, tmp_path: Path
):
    rounded = replace(run, references=lambda: [Pretrained(str(other), dtype="bfloat16")])
    with pytest.raises(UserError, match=r"references are not those .*other, float32.*other, bfloat16"):
        fit(rounded, tmp_path / "rounded", ckpt=part.checkpoint(1))
    shutil.copytree(other, tmp_path / "elsewhere, float16")
    moved = replace(run, references=lambda: [Pretrained(str(tmp_path / "elsewhere, float16"))])
    assert fit(moved, tmp_path / "moved", ckpt=part.checkpoint(1)).trainer.global_step == 2


@pytest.mark.parametrize("adapters", [True, False])
@pytest.mark.parametrize("first, then", [(DPO, EpsilonDPO), (EpsilonDPO, DPO)])
def test_an_objective_with_other_state_is_refused(
    run: Run, tmp_path: Path, policy_folder: Path, adapters: bool, first: type, then: type
):
    policy = run.policy if adapters else {"path": str(policy_folder)}
    one = replace(run, policy=policy, references=lambda: None)
    begun = fit(replace(one, objective=first), tmp_path / "begun", stop_at_step=1)
    message = rf"the objective of this run \({then.__name__}.*temperature.scale.* use the checkpoint's objective"
    with pytest.raises(UserError, match=message):
        fit(replace(one, objective=then), tmp_path / "rest", ckpt=begun.checkpoint(1))
