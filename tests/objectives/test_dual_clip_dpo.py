import math

import pytest
import torch

from lit_pref.errors import UsageError
from lit_pref.objectives import DPO, DualClipDPO, NoReference, Smoothed


def rewarded(make, chosen, rejected):
    """Rewards at beta = 1: the policy's log-probs over a reference of 0."""
    size = len(chosen)
    return make.inputs(make.pair(chosen, rejected), [make.pair([0.0] * size, [0.0] * size)], make.batch(size))


def test_it_has_the_golden_values_and_no_gradient_beyond_a_bound(make):
    inputs = rewarded(make, [2.0, 0.3], [-3.5, -0.2])
    objective = DualClipDPO(beta=1.0, c_w=1.0, c_l=2.0)
    output = inputs.into(objective)
    # min(2, 1) - max(-3.5, -2) = 3 and 0.3 + 0.2 = 0.5
    assert output.losses.tolist() == pytest.approx([math.log1p(math.exp(-3)), math.log1p(math.exp(-0.5))], abs=1e-15)
    assert output.losses.mean().item() == pytest.approx(0.26133216787692437, abs=1e-15)
    chosen, rejected = inputs.gradients(objective)
    slope = -1 / (1 + math.exp(0.5))
    assert chosen == pytest.approx([0.0, slope], abs=1e-15) and rejected == pytest.approx([0.0, -slope], abs=1e-15)


def test_it_logs_which_responses_are_clipped(make):
    logged = rewarded(make, [2.0, 0.3, 1.0], [-0.1, -9.0, -1.9]).into(DualClipDPO(1.0, c_w=1.0, c_l=2.0)).logged
    assert logged["clipped_chosen"].tolist() == [1.0, 0.0, 1.0]  # at the bound too
    assert logged["clipped_rejected"].tolist() == [0.0, 1.0, 0.0]


def test_the_bounds_are_in_units_of_the_reward(make):
    # R_w = 0.1 * 30 = 3, bound 2; R_l = 0.1 * (-10)
    output = rewarded(make, [30.0], [-10.0]).into(DualClipDPO(beta=0.1, c_w=2.0, c_l=2.0))
    assert output.chosen_rewards.item() == pytest.approx(2.0) and output.rejected_rewards.item() == pytest.approx(-1.0)
    assert output.losses.item() == pytest.approx(math.log1p(math.exp(-3.0)), abs=1e-14)


def test_infinite_bounds_are_dpo(make):
    inputs = make.random(DPO())
    objective = DualClipDPO(beta=0.1, c_w=math.inf, c_l=math.inf)
    assert torch.equal(inputs.into(objective).losses, inputs.into(DPO(beta=0.1)).losses)
    assert inputs.gradients(objective) == inputs.gradients(DPO(beta=0.1))


def test_soft_targets_a_missing_reference_and_bounds_below_zero_are_refused():
    with pytest.raises(UsageError, match="DualClip treats chosen and rejected differently"):
        DualClipDPO(target=Smoothed(0.1))
    with pytest.raises(UsageError, match="DualClip is a function of the ratio"):
        DualClipDPO(reference=NoReference())
    with pytest.raises(UsageError, match=r"DualClipDPO: c_w and c_l must be positive, got -1\.0 and 5\.0"):
        DualClipDPO(c_w=-1.0)
    with pytest.raises(UsageError, match="DualClipDPO: beta must be positive and finite, got 0"):
        DualClipDPO(beta=0.0)
