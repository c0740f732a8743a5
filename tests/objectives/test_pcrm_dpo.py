import math

import pytest
import torch

from lit_pref.errors import UsageError
from lit_pref.objectives import CDPO, DPO, PCRM, PCRMDPO, CosineColumn

DELTA = 20 / (0.8 + 0.001) - 15


def softplus(x):
    return math.log1p(math.exp(x))


def similar(make, similarity=0.8):
    return make.g0(s=similarity)


def build(**arguments):
    return PCRMDPO(similarity=CosineColumn("s", angular=False), **arguments)


def test_it_has_the_golden_loss_and_gradient_of_both_terms(make):
    expected = softplus(-0.15) + softplus(-(DELTA - 0.15))
    assert similar(make).into(build()).losses.item() == pytest.approx(expected, abs=1e-14)
    assert pytest.approx(9.968789013732831, abs=1e-12) == DELTA
    slope = -1 / (1 + math.exp(0.15)) + 1 / (1 + math.exp(DELTA - 0.15))
    chosen, rejected = similar(make).gradients(build())
    assert chosen == pytest.approx([0.1 * slope], abs=1e-15) and rejected == pytest.approx([-0.1 * slope], abs=1e-15)


def test_the_golden_differences_of_rewards_have_the_values_of_the_reward_models_form(make):
    d, s = [1.5, 6.0, -0.5], [0.8, 0.8, 0.5]
    inputs = make.inputs(make.pair(d, [0.0] * 3), [make.pair([0.0] * 3, [0.0] * 3)], make.batch(3, s=s))
    losses = inputs.into(build(beta=1.0)).losses
    golden = [0.2016231749113302, 0.021195670164589918, 0.9740769841892303]
    assert losses.tolist() == pytest.approx(golden, abs=1e-14)
    assert losses.mean().item() == pytest.approx(0.3989652764217168, abs=1e-14)
    form = PCRM(similarity=CosineColumn("s", angular=False))
    assert torch.equal(inputs.into(form).losses, losses)


def test_label_smoothing_acts_on_both_terms(make):
    expected = 0.9 * softplus(-0.15) + 0.1 * softplus(0.15)
    expected += 0.9 * softplus(-(DELTA - 0.15)) + 0.1 * softplus(DELTA - 0.15)
    assert similar(make).into(build(epsilon=0.1)).losses.item() == pytest.approx(expected, abs=1e-14)


def test_the_minimum_is_at_half_of_delta(make):
    gap = DELTA / 2 / 0.1
    at = make.inputs(make.pair([gap], [0.0]), [make.pair([0.0], [0.0])], make.batch(1, s=[0.8]))
    assert at.gradients(build())[0] == pytest.approx([0.0], abs=1e-15)


def test_with_a_large_delta_it_is_dpo_and_label_smoothing_leaves_a_linear_term(make):
    torch.testing.assert_close(similar(make).into(build(b3=1e6)).losses, make.g0().into(DPO()).losses)
    # Responses without any similarity have a bound of 2e4.
    torch.testing.assert_close(similar(make, 0.0).into(build()).losses, make.g0().into(DPO()).losses)
    smoothed = similar(make).into(build(b3=1e6, epsilon=0.2)).losses.item()
    linear = 0.2 * (20 / 0.801 + 1e6 - 0.15)
    assert smoothed - linear == pytest.approx(make.g0().into(CDPO(epsilon=0.2)).losses.item(), abs=1e-6)


def test_numbers_out_of_range_are_refused():
    with pytest.raises(UsageError, match=r"PCRMDPO: epsilon is the share of wrong labels .* in \[0, 0\.5\], got 0\.7"):
        PCRMDPO(epsilon=0.7)
    with pytest.raises(UsageError, match="PCRMDPO: b1 and b2 must be positive"):
        PCRMDPO(b1=0.0)
