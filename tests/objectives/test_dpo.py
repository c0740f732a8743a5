import math

import pytest
import torch

from lit_pref.objectives import DPO


def test_dpo_on_the_golden_pair_is_minus_log_sigmoid_of_beta_times_the_difference(make):
    output = make.g0().into(DPO(beta=0.1))
    # -log sigmoid(0.15) = log(1 + exp(-0.15))
    assert output.losses.item() == pytest.approx(math.log1p(math.exp(-0.15)), abs=1e-15)
    assert output.losses.item() == pytest.approx(0.6209570477895321, abs=1e-15)
    assert output.chosen_rewards.item() == pytest.approx(0.1 * 1.0, abs=1e-15)
    assert output.rejected_rewards.item() == pytest.approx(0.1 * -0.5, abs=1e-15)
    assert output.logged["logits"].item() == pytest.approx(0.15, abs=1e-15)
    assert output.logged["beta"].item() == pytest.approx(0.1, abs=1e-15)


def test_dpo_is_log_two_while_the_policy_is_its_reference(make):
    inputs = make.random(DPO())
    inputs.references = [inputs.policy]
    assert inputs.into(DPO()).losses.tolist() == [math.log(2)] * 5


def test_dpo_gradient_is_minus_beta_sigmoid_of_minus_x_on_the_chosen_side_and_its_opposite_on_the_other(make):
    inputs = make.g0()
    chosen, rejected = inputs.policy.chosen.scores.requires_grad_(), inputs.policy.rejected.scores.requires_grad_()
    inputs.into(DPO(beta=0.1)).losses.sum().backward()
    slope = 0.1 / (1 + math.exp(0.15))
    assert chosen.grad.item() == pytest.approx(-slope, abs=1e-15)
    assert rejected.grad.item() == pytest.approx(slope, abs=1e-15)


def test_loss_falls_when_the_chosen_response_becomes_likelier(make):
    low, high = make.g0(), make.g0()
    high.policy.chosen.scores += 1
    assert high.into(DPO()).losses.item() < low.into(DPO()).losses.item()


@pytest.mark.parametrize("size", [1, 3])
def test_scores_of_shape_b_by_one_are_refused_instead_of_broadcast(make, size):
    inputs = make.random(DPO(), size=size)
    inputs.policy.chosen.scores = inputs.policy.chosen.scores.unsqueeze(1)
    with pytest.raises(ValueError, match=rf"\(B,\) = \({size},\), got \({size}, 1\)"):
        inputs.into(DPO())


def test_a_reference_that_scored_another_number_of_pairs_is_refused(make):
    inputs = make.random(DPO(), size=3)
    inputs.references[0].rejected.scores = torch.zeros(1, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"reference 0 \(rejected\)"):
        inputs.into(DPO())


@pytest.mark.parametrize("count", [0, 2])
def test_a_wrong_number_of_references_is_refused(make, count):
    with pytest.raises(ValueError, match=f"takes 1 to 1 references, got {count}"):
        make.random(DPO(), references=count).into(DPO())


def test_a_missing_rejected_side_is_refused(make):
    inputs = make.random(DPO())
    inputs.policy.rejected = None
    with pytest.raises(ValueError, match="reads the rejected responses, the policy has none"):
        inputs.into(DPO())


def test_fp32_scores_give_fp32_losses_and_fp64_scores_fp64_ones(make):
    inputs = make.random(DPO())
    assert inputs.into(DPO()).losses.dtype == torch.float64
    for pair in [inputs.policy, *inputs.references]:
        pair.chosen.scores, pair.rejected.scores = pair.chosen.scores.float(), pair.rejected.scores.float()
    output = inputs.into(DPO())
    values = [output.losses, output.chosen_rewards, output.rejected_rewards, *output.logged.values()]
    assert {value.dtype for value in values} == {torch.float32}
