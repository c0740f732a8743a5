"""A value head is trained beside the policy, at its own rate, without a gradient to the policy, and is checkpointed."""

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import write_pairs
from training_runs import Ran, Run, differences, fit, trained

from lit_pref.data.batching.collation import collate
from lit_pref.errors import UserError
from lit_pref.models.spec import Lora
from lit_pref.modules.schedules import Linear
from lit_pref.objectives.dpo import DPO
from lit_pref.objectives.hpo import HPO
from lit_pref.run.checkpoint_model import read_checkpoint
from lit_pref.run.export import export
from lit_pref.scores import PromptValue

pytestmark = pytest.mark.filterwarnings("ignore")
RATE = 0.05
NEEDS = frozenset({PromptValue(RATE)})


def adamw(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-2)


@pytest.fixture(scope="module")
def run(policy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """24 pairs, whose responses are good by about 2, and whose unwanted ones by about 1."""
    path = write_pairs(tmp_path_factory.mktemp("pairs") / "train.jsonl", 24)
    draw, rows = random.Random(0), [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        row |= {"good_chosen": 2 + draw.gauss(0, 0.1), "good_rejected": 1 + draw.gauss(0, 0.1)}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Run(
        policy={"path": str(policy_folder)},
        data={"train": str(path), "val_fraction": 0.0, "global_batch": 8, "micro_batch": 4},
        objective=lambda: HPO({"good": 1.0}, tau=0.5, value_rate=RATE),
        optimizer=adamw,
        trainer={"max_epochs": 2},
    )  # six steps


@pytest.fixture(scope="module")
def whole(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    return fit(run, tmp_path_factory.mktemp("whole"), every=2)


@pytest.mark.parametrize("layout", ["padded", "prefix_shared"])
def test_the_value_is_that_of_the_last_hidden_state_of_the_prompt(whole, layout):
    scorer, pairs = whole.module.scorer.eval(), whole.trainer.datamodule.train_pairs[:5]
    batch = collate(pairs, 0, layout=layout)
    values = scorer(batch, NEEDS).chosen.statistics[PromptValue(RATE)]
    assert values.shape == (5,) and len(values.unique()) == 5
    weight, bias = scorer.value.weight, scorer.value.bias
    for pair, value in zip(pairs, values, strict=True):
        hidden = scorer.model.model(input_ids=torch.tensor([pair.prompt])).last_hidden_state[0, -1]
        assert value.item() == pytest.approx((weight @ hidden / hidden.norm() + bias).item(), abs=1e-5)
    gradients = torch.autograd.grad(values.sum(), list(scorer.parameters()), allow_unused=True)
    names = [name for name, _ in scorer.named_parameters()]
    assert [n for n, g in zip(names, gradients, strict=True) if g is not None] == ["value.weight", "value.bias"]


def test_the_head_learns_the_rewards_at_its_own_rate(run, whole, tmp_path):
    values = whole.logged.column("train/prompt_value")
    assert values[0] == 0 and values == sorted(values)
    longer = fit(run, tmp_path, max_epochs=20)
    # The mean of both responses' rewards is 1.5.
    assert longer.logged.column("train/prompt_value")[-1] == pytest.approx(1.5, abs=0.1)
    assert longer.logged.column("train/value_loss")[-1] < 0.2 * longer.logged.column("train/value_loss")[0]
    assert [group["lr"] for group in whole.trainer.optimizers[0].param_groups] == [1e-2, RATE]


def test_without_likelihood_the_policy_is_dpos_bit_for_bit(run, tmp_path):
    hpo = fit(replace(run, objective=lambda: HPO({"good": 1.0}, gamma=0.0)), tmp_path / "hpo")
    dpo = fit(replace(run, objective=DPO), tmp_path / "dpo")
    for name, weight in dpo.module.scorer.model.state_dict().items():
        assert torch.equal(hpo.module.scorer.model.state_dict()[name], weight)


@pytest.mark.parametrize("lora", [None, Lora(r=2)])
def test_a_resumed_run_ends_with_the_same_policy_and_head_and_the_export_has_no_head(run, tmp_path, lora):
    run = replace(run, policy={**run.policy, "lora": lora}, schedule=Linear(warmup=2))
    whole = fit(run, tmp_path / "whole", every=2)
    resumed = fit(run, tmp_path / "resumed", ckpt=whole.checkpoint(2))
    expected = trained(read_checkpoint(whole.checkpoint(6)))
    assert differences(trained(read_checkpoint(resumed.checkpoint(6))), expected) == []
    assert expected["state_dict"]["scorer.value.weight"].abs().max() > 0
    exported = export(whole.checkpoint(6), tmp_path / "hf")
    assert exported.largest_difference < 1e-4


def test_a_checkpoint_with_a_head_and_one_without_are_not_exchanged(run, whole, tmp_path):
    plain = replace(run, objective=DPO)
    with pytest.raises(UserError, match=r"the checkpoint has a value head, and the objective .*DPO.* trains none; use"):
        fit(plain, tmp_path / "plain", ckpt=whole.checkpoint(2))
    half = fit(plain, tmp_path / "half", stop_at_step=2)
    with pytest.raises(UserError, match=r"the checkpoint has no value head, and the objective .*HPO.* trains one; use"):
        fit(run, tmp_path / "rest", ckpt=half.checkpoint(2))


def test_another_rate_of_the_head_is_applied_on_resume(run, whole, tmp_path, capsys):
    other = replace(run, objective=lambda: HPO({"good": 1.0}, tau=0.5, value_rate=0.001))
    resumed = fit(other, tmp_path, ckpt=whole.checkpoint(2))
    assert [group["lr"] for group in resumed.trainer.optimizers[0].param_groups] == [1e-2, 0.001]
    assert (
        "resumed     from step 2 with model.optimizer.lr [0.01, 0.001] instead of [0.01, 0.05]"
        in capsys.readouterr().out
    )
