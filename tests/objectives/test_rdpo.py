import math

import pytest
import torch

from lit_pref.objectives import DPO, RDPO


def test_rdpo_has_the_golden_value_and_gradient(make):
    x = 0.1 * 1.5 + 0.01 * (10 - 12)
    assert make.g0().into(RDPO(alpha=0.01)).losses.item() == pytest.approx(math.log1p(math.exp(-x)), abs=1e-15)
    assert make.g0().into(RDPO(alpha=0.01)).losses.item() == pytest.approx(0.6302581946816906, abs=1e-15)
    chosen, rejected = make.g0().gradients(RDPO(alpha=0.01))
    slope = -0.1 / (1 + math.exp(x))
    assert chosen == pytest.approx([slope], abs=1e-15) and rejected == pytest.approx([-slope], abs=1e-15)


def test_a_longer_chosen_response_is_pushed_less_and_a_longer_rejected_one_more(make):
    def slope(lengths):
        pair = make.pair([-5.0], [-5.0], [lengths[0]], [lengths[1]])
        inputs = make.inputs(pair, [make.pair([-5.0], [-5.0], [lengths[0]], [lengths[1]])], make.batch(1))
        return -inputs.gradients(RDPO(alpha=0.1))[0][0]

    assert slope((20, 10)) < slope((10, 10)) < slope((10, 20))


def test_without_strength_or_for_equal_lengths_it_is_dpo(make):
    inputs = make.random(DPO())
    assert torch.equal(inputs.into(RDPO(alpha=0.0)).losses, inputs.into(DPO()).losses)
    inputs.policy.rejected.lengths = inputs.policy.chosen.lengths
    assert torch.equal(inputs.into(RDPO(alpha=0.5)).losses, inputs.into(DPO()).losses)
