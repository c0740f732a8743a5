"""A moving reference follows the policy exactly, is checkpointed, and is refused where it cannot work."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import write_pairs
from lightning.pytorch import Callback
from training_runs import Ran, Run, differences, fit, trained

from lit_pref.errors import UsageError, UserError
from lit_pref.models.spec import Lora, ModelSpec
from lit_pref.modules.preference import MOVED, PreferenceModule
from lit_pref.objectives.beta_dpo import BetaDPO
from lit_pref.objectives.dpo import DPO
from lit_pref.objectives.epsilon_dpo import EpsilonDPO
from lit_pref.objectives.mrpo import MRPO
from lit_pref.objectives.multi_dpo import MultiDPO
from lit_pref.objectives.sequential_spo import SequentialSPO
from lit_pref.references.moving import BEMAReference, MovingReference
from lit_pref.references.pretrained import Pretrained
from lit_pref.references.reference import InitialPolicy
from lit_pref.run.checkpoint_model import read_checkpoint


@pytest.fixture(scope="module")
def run(policy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("pairs")
    train, val = write_pairs(folder / "train.jsonl", 20), write_pairs(folder / "val.jsonl", 5, seed=1)
    return Run(
        policy={"path": str(policy_folder)},
        data={"train": str(train), "val": str(val), "global_batch": 8, "micro_batch": 4},
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-2),
        trainer={"max_epochs": 2},
    )  # six steps


def moving(run: Run, alpha: float, every: int) -> Run:
    return replace(run, references=lambda: [MovingReference(alpha, every)])


def vector(scorer: Any) -> torch.Tensor:
    return torch.cat([p.detach().flatten().clone() for p in scorer.parameters()])


class Weights(Callback):
    """The weights of policy and reference at the start, and after each optimizer step."""

    def __init__(self) -> None:
        self.seen: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def on_train_start(self, trainer: Any, module: Any) -> None:
        self.seen[trainer.global_step] = vector(module.scorer), vector(module.references[0].scorer)

    def on_train_batch_end(self, trainer: Any, module: Any, *rest: Any) -> None:
        self.on_train_start(trainer, module)


@pytest.mark.parametrize(("alpha", "every"), [(0.6, 2), (0.25, 1), (1.0, 4)])
def test_the_reference_is_the_mixture_of_the_policy_and_itself_after_each_update(run, tmp_path, alpha, every):
    weights = Weights()
    fit(moving(run, alpha, every), tmp_path, callbacks=[weights])
    policy, reference = weights.seen[0]
    assert torch.equal(policy, reference) and list(weights.seen) == list(range(7))
    for step in range(1, 7):
        policy, now = weights.seen[step]
        expected = reference if step % every else (1 - alpha) * reference + alpha * policy
        torch.testing.assert_close(now, expected, rtol=2e-7, atol=1e-9)  # one rounding of float32
        assert torch.equal(now, reference) == bool(step % every)
        reference = now
    if alpha == 1:
        assert torch.equal(reference, weights.seen[4][0])


def test_alpha_zero_is_dpo_bit_for_bit(run, tmp_path, capsys):
    still = fit(replace(run, references=lambda: [InitialPolicy()], reference_store=False), tmp_path / "still")
    zero = fit(moving(run, 0.0, 1), tmp_path / "zero")
    assert torch.equal(vector(zero.module.scorer), vector(still.module.scorer))
    assert zero.logged.column("train/loss") == still.logged.column("train/loss")
    assert "warning" not in capsys.readouterr().out


def test_a_run_that_ends_before_the_first_update_says_so(run, tmp_path, capsys):
    fit(moving(run, 0.6, 7), tmp_path, max_steps=1, max_epochs=None)
    assert "reference 0 moves every 7 optimizer steps and the run takes 1: it never moves" in capsys.readouterr().out


@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
def test_a_reference_replaced_after_each_step_makes_each_loss_ln_2(run, tmp_path, precision):
    losses = fit(moving(run, 1.0, 1), tmp_path, precision=precision).logged.column("train/loss")
    assert losses == pytest.approx([math.log(2)] * 6, rel=1e-6)


def test_bema_is_the_average_with_a_share_of_the_policys_move(run, tmp_path):
    weights, every, lag = Weights(), 2, 3
    rule = BEMAReference(every=every, ema_power=0.5, bias_power=0.2, lag=lag)
    fit(replace(run, references=lambda: [rule]), tmp_path, callbacks=[weights])
    start = average = reference = weights.seen[0][0]
    for step in range(1, 7):
        policy, now = weights.seen[step]
        if step % every == 0:
            b = 1 / math.sqrt(lag + step)
            average = (1 - b) * average + b * policy
            reference = average + (policy - start) / (lag + step) ** 0.2
        torch.testing.assert_close(now, reference, rtol=1e-5, atol=1e-7)
    assert not torch.equal(reference, average)


def test_bema_without_correction_and_decay_is_the_policy(run, tmp_path):
    # (lag + t)^-50 is 0 in float32, and b = 1.
    rule = BEMAReference(every=1, ema_power=0.0, bias_power=50.0)
    losses = fit(replace(run, references=lambda: [rule]), tmp_path).logged.column("train/loss")
    assert losses == pytest.approx([math.log(2)] * 6, rel=1e-6)


@pytest.fixture(scope="module")
def whole(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """Updates after the steps 2, 4 and 6; checkpoints of the steps 3 and 6."""
    return fit(moving(run, 0.6, 2), tmp_path_factory.mktemp("whole"), every=3)


def state(path: Path) -> dict[str, Any]:
    checkpoint = read_checkpoint(path)
    return {**trained(checkpoint), "references": checkpoint[MOVED]}


def test_a_resumed_run_ends_with_the_same_policy_and_reference(run, whole, tmp_path):
    resumed = fit(moving(run, 0.6, 2), tmp_path / "rest", ckpt=whole.checkpoint(3))
    assert differences(state(resumed.checkpoint(6)), state(whole.checkpoint(6))) == []
    bema = replace(run, references=lambda: [BEMAReference(every=2)])
    other = fit(bema, tmp_path / "bema", every=3)
    resumed = fit(bema, tmp_path / "bema rest", ckpt=other.checkpoint(3))
    assert differences(state(resumed.checkpoint(6)), state(other.checkpoint(6))) == []
    # Without what the checkpoint holds of it, it would be another one.
    assert differences(state(whole.checkpoint(3))["references"], state(whole.checkpoint(6))["references"])


def test_another_rule_of_updates_cannot_resume(run, whole, tmp_path):
    for other in (moving(run, 0.5, 2), moving(run, 0.6, 3), run):
        with pytest.raises(UserError, match=r"the references are not those of the checkpoint: .* alpha 0.6 every 2 "):
            fit(other, tmp_path / "rest", ckpt=whole.checkpoint(3))


def test_a_checkpoint_is_validated_against_the_reference_of_its_step(run, whole):
    trainer, module = whole.trainer, whole.module
    expected = whole.logged.steps[6]["val/loss"]
    with torch.no_grad():
        for parameter in module.references[0].scorer.parameters():
            parameter.zero_()
    trainer.validate(module, datamodule=trainer.datamodule, ckpt_path=str(whole.checkpoint(6)), verbose=False)
    assert whole.logged.steps[6]["val/loss"] == pytest.approx(expected, rel=1e-6)


PLAIN = ModelSpec(config={"model_type": "llama"}, tokenizer="nowhere")


def test_it_is_refused_where_it_cannot_work():
    with pytest.raises(UsageError, match=r"alpha is the policy's share .* got 1.5"):
        MovingReference(alpha=1.5)
    with pytest.raises(UsageError, match=r"every counts optimizer steps .* got 0"):
        MovingReference(every=0)
    with pytest.raises(UsageError, match=r"BEMAReference: lag must be finite and >= 0, got -1"):
        BEMAReference(lag=-1)
    with pytest.raises(UsageError, match=r"'moving reference' moves, so its scores cannot be stored: leave"):
        PreferenceModule(PLAIN, DPO(), [MovingReference()], reference_store=True)
    with pytest.raises(UsageError, match=r"mixes the policy's whole weights, and with LoRA .*, or use AdapterOff"):
        PreferenceModule(replace(PLAIN, lora=Lora()), DPO(), [MovingReference()])


@pytest.mark.parametrize(
    ("objective", "references", "says"),
    [
        (EpsilonDPO(), [MovingReference()], "EpsilonStep with a moving reference: beta and the reference both"),
        (MRPO(), [InitialPolicy(), MovingReference()], "Harmonic with a moving reference: its clipping and weights"),
        (MultiDPO(), [MovingReference()], "ClippedGeometric with a moving reference: its clipping and weights"),
        (BetaDPO(), [MovingReference()], "BatchAdaptive with a moving reference: its moving mean and deviation"),
    ],
)
def test_two_rules_that_hold_the_policy_near_its_reference_give_a_warning(objective, references, says):
    with pytest.warns(UserWarning, match=says):
        PreferenceModule(PLAIN, objective, references)


def test_implicit_rewards_are_refused_if_their_first_reference_moves(recwarn):
    moving, still = MovingReference(), InitialPolicy()
    with pytest.raises(UsageError, match=r"ImplicitRewards with a moving reference 0: .* make reference 0 `InitialPol"):
        PreferenceModule(PLAIN, SequentialSPO([0.5]), [moving, still])
    PreferenceModule(PLAIN, SequentialSPO([0.5]), [still, moving])
    assert not recwarn.list


def test_other_objectives_and_still_references_give_no_warning(recwarn):
    PreferenceModule(PLAIN, DPO(), [MovingReference()])
    PreferenceModule(PLAIN, MRPO(), [InitialPolicy(), Pretrained("other")])
    assert not recwarn.list
