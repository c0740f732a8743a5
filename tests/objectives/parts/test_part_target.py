import math

import pytest
import torch

from lit_pref.errors import UsageError, UserError
from lit_pref.objectives import DPO, Hard, MarginTarget, ProbabilityColumn, Smoothed, Unbiased


def softplus(x):
    return math.log1p(math.exp(x))


def test_smoothed_labels_on_the_golden_pair(make):
    output = make.g0().into(DPO(target=Smoothed(0.1)))
    assert output.losses.item() == pytest.approx(0.9 * softplus(-0.15) + 0.1 * softplus(0.15), abs=1e-15)
    assert output.losses.item() == pytest.approx(0.6359570477895321, abs=1e-15)
    assert output.logged["target"].item() == 0.9


def test_unbiased_labels_on_the_golden_pair(make):
    output = make.g0().into(DPO(target=Unbiased(0.1)))
    assert output.losses.item() == pytest.approx((0.9 * softplus(-0.15) - 0.1 * softplus(0.15)) / 0.8, abs=1e-15)
    assert output.losses.item() == pytest.approx(0.602207047789532, abs=1e-15)
    # The best fit is certainty, and a loss without lower bound has no divergence to report.
    assert (output.logged["target"].item(), output.logged["target_entropy"].item()) == (1.0, 0.0)
    assert "kl_to_target" not in output.logged


def test_unbiased_losses_average_over_flipped_labels_to_the_clean_loss(make):
    straight, flipped = make.g0(), make.g0()
    for pair in (flipped.policy, flipped.references[0]):
        pair.chosen, pair.rejected = pair.rejected, pair.chosen
    objective = DPO(target=Unbiased(0.3))
    mean = 0.7 * straight.into(objective).losses + 0.3 * flipped.into(objective).losses
    assert mean.item() == pytest.approx(0.6209570477895321, abs=1e-14)


@pytest.mark.parametrize("target", [Smoothed(0.0), Unbiased(0.0), ProbabilityColumn()])
def test_targets_without_doubt_are_hard(make, target):
    inputs = make.g0(probability=1.0)
    assert torch.equal(inputs.into(DPO(target=target)).losses, inputs.into(DPO()).losses)


def test_the_probability_column_is_the_target(make):
    output = make.g0(probability=0.3).into(DPO(target=ProbabilityColumn()))
    assert output.losses.item() == pytest.approx(0.3 * softplus(-0.15) + 0.7 * softplus(0.15), abs=1e-15)
    assert output.logged["target_entropy"].item() == pytest.approx(-0.3 * math.log(0.3) - 0.7 * math.log(0.7))
    assert ProbabilityColumn().requirements.columns == {"probability"}
    with pytest.raises(UserError, match="ProbabilityColumn needs the field `probability`"):
        make.g0().into(DPO(target=ProbabilityColumn()))


def test_a_tie_is_one_half_for_every_gamma_and_saturation_keeps_the_sign(make):
    policy, batch = make.pair([0.0] * 3, [0.0] * 3), make.batch(3, margin=[0.0, 3.0, -3.0])
    assert MarginTarget(math.inf)(policy, batch).tolist() == [0.5, 1.0, 0.0]
    assert MarginTarget(0.0)(policy, batch).tolist() == [0.5, 0.5, 0.5]


def test_the_margin_target_is_computed_in_the_precision_of_the_scores(make):
    policy, batch = make.pair([0.0], [0.0]), make.batch(1, margin=[6.5])
    assert MarginTarget(1.0)(policy, batch).item() == pytest.approx(1 / (1 + math.exp(-6.5)), abs=1e-16)
    policy.chosen.scores = policy.chosen.scores.float()
    target = MarginTarget(1.0)(policy, batch)
    assert target.dtype == torch.float32
    assert target.item() == pytest.approx(1 / (1 + math.exp(-6.5)), abs=1e-7)  # bf16 would give 1


def test_the_flags_of_each_target():
    assert Hard().hard and Smoothed(0.0).hard and Unbiased(0.0).hard
    assert not (Smoothed(0.1).hard or Unbiased(0.1).hard or MarginTarget().hard or ProbabilityColumn().hard)
    assert not Unbiased(0.1).proper and Smoothed(0.1).proper and MarginTarget().proper


@pytest.mark.parametrize("gamma", [-1.0, math.nan])
def test_a_negative_gamma_is_refused(gamma):
    with pytest.raises(UsageError, match="gamma must be >= 0"):
        MarginTarget(gamma)


@pytest.mark.parametrize("epsilon", [-0.1, 0.6, math.nan])
def test_noise_rates_out_of_range_are_refused(epsilon):
    with pytest.raises(UsageError, match=r"must be in \[0, 0.5\], got"):
        Smoothed(epsilon)
    with pytest.raises(UsageError, match=r"must be in \[0, 0.5\), got"):
        Unbiased(epsilon)


def test_one_half_flipped_labels_say_nothing():
    with pytest.raises(UsageError, match="at one half the labels say nothing"):
        Unbiased(0.5)
