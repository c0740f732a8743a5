import math

import pytest
import torch

from lit_pref.errors import UsageError
from lit_pref.objectives import CDPO, DPO, Smoothed

Q = 1 / (1 + math.exp(-0.15))  # sigmoid(x) of the golden pair


def test_cdpo_has_the_golden_value_and_the_gradient_sigmoid_x_minus_p(make):
    expected = 0.9 * math.log1p(math.exp(-0.15)) + 0.1 * math.log1p(math.exp(0.15))
    assert make.g0().into(CDPO(epsilon=0.1)).losses.item() == pytest.approx(expected, abs=1e-15)
    assert expected == pytest.approx(0.6359570477895321, abs=1e-15)
    chosen, rejected = make.g0().gradients(CDPO(epsilon=0.1))
    assert chosen == pytest.approx([0.1 * (Q - 0.9)], abs=1e-15)
    assert rejected == pytest.approx([-0.1 * (Q - 0.9)], abs=1e-15)


def test_without_wrong_labels_it_is_dpo_and_with_half_of_them_wrong_it_fits_equal_rewards(make):
    assert torch.equal(make.g0().into(CDPO(epsilon=0.0)).losses, make.g0().into(DPO()).losses)
    equal = make.inputs(make.pair([-3.0], [-3.0]), [make.pair([-4.0], [-4.0])], make.batch(1))
    chosen, _ = equal.gradients(CDPO(epsilon=0.5))
    assert chosen == [0.0]


def test_its_minimum_is_at_the_log_odds_of_a_right_label(make):
    gap = math.log(0.9 / 0.1) / 0.1
    inputs = make.inputs(make.pair([-10.0], [-10.0 - gap]), [make.pair([-3.0], [-3.0])], make.batch(1))
    assert inputs.gradients(CDPO(epsilon=0.1))[0] == pytest.approx([0.0], abs=1e-15)


def test_epsilon_is_a_share_up_to_one_half():
    assert CDPO(epsilon=0.3).target.arguments == Smoothed(0.3).arguments
    with pytest.raises(UsageError, match=r"CDPO: epsilon .* in \[0, 0\.5\], got 0\.6"):
        CDPO(epsilon=0.6)
