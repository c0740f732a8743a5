import math

import pytest
import torch

from lit_pref.errors import UsageError, UserError
from lit_pref.objectives import DPO, MADPO, MarginAdaptive


def weight(m, c_max=2.0, c_min=0.5, lambd=1.0, tau=2.0):
    """The weight of a margin, written out with sigmoids."""
    c = c_min + (c_max - c_min) / (1 + (c_max - 1) / (1 - c_min) * math.exp(lambd * (abs(m) - tau)))
    return (1 + math.exp(-m)) / (1 + math.exp(-c * m)) if m > -tau else 1.0


def test_madpo_weighs_dpos_loss_and_gradient_by_the_margin(make):
    # At |m| = tau, c is 1 and so is the weight.
    assert make.g0(margin=2.0).into(MADPO()).losses.item() == pytest.approx(0.6209570477895321, abs=1e-15)
    loss = make.g0(margin=1.0).into(MADPO()).losses.item()
    # growth = 2 e^-1, c = 0.5 + 1.5 / (1 + 2 / e)
    c = 0.5 + 1.5 / (1 + 2 / math.e)
    omega = (1 + math.exp(-1)) / (1 + math.exp(-c))
    assert loss == pytest.approx(omega * math.log1p(math.exp(-0.15)), abs=1e-15)
    chosen, rejected = make.g0(margin=1.0).gradients(MADPO())
    slope = -0.1 * omega / (1 + math.exp(0.15))
    assert chosen == pytest.approx([slope], abs=1e-15) and rejected == pytest.approx([-slope], abs=1e-15)


def test_close_pairs_weigh_more_clear_ones_less_and_the_ends_one(make):
    margins = [-1e3, -2.0, -1.9, -0.5, 0.0, 0.5, 2.0, 3.0, 12.0, 1e3]
    policy, batch = make.pair([0.0] * 10, [0.0] * 10), make.batch(10, margin=margins)
    found = MarginAdaptive()(policy, batch).tolist()
    assert found[1:-1] == pytest.approx([weight(m) for m in margins[1:-1]], abs=1e-14)
    assert (found[0], found[-1]) == (1.0, 1.0)
    assert found[5] > 1.05 and found[6] == pytest.approx(1.0, abs=1e-15) and found[7] < 0.95
    assert found[3] < 1 < found[5], "a margin below 0, whose label the reward model doubts, weighs less"


def test_a_narrow_range_of_c_is_dpo(make):
    inputs = make.random(MADPO())
    nearly = inputs.into(MADPO(c_max=1 + 1e-12, c_min=1 - 1e-12)).losses
    torch.testing.assert_close(nearly, inputs.into(DPO()).losses, rtol=1e-10, atol=0)


def test_a_missing_margin_and_numbers_out_of_range_are_refused(make):
    with pytest.raises(UserError, match="MarginAdaptive needs the field `margin`"):
        make.g0(margin=None).into(MADPO())
    for wrong in ({"c_max": 1.0}, {"c_min": 1.0}, {"c_min": -0.1}, {"lambd": 0.0}, {"tau": -1.0}, {"c_max": math.inf}):
        with pytest.raises(UsageError, match="0 <= c_min < 1 < c_max"):
            MADPO(**wrong)
