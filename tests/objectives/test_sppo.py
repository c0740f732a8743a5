import math

import pytest
import torch

from lit_pref.errors import UsageError
from lit_pref.objectives import SPPO, GPORegression, Hard, MarginTarget, ProbabilityColumn, Unbiased


def test_sppo_on_the_golden_pair_is_the_hard_form_with_the_golden_loss_and_gradients(make):
    inputs = make.g0()
    for side in (inputs.policy.chosen, inputs.policy.rejected):
        side.scores.requires_grad_()
    output = inputs.into(SPPO(beta=0.1))
    # h_w = 1 and h_l = -0.5, aimed at 5 and -5 nats
    assert output.losses.item() == pytest.approx((1 - 5) ** 2 + (-0.5 + 5) ** 2, abs=1e-12)
    assert output.losses.item() == pytest.approx(36.25, abs=1e-12)
    output.losses.sum().backward()
    assert inputs.policy.chosen.scores.grad.item() == pytest.approx(-8.0, abs=1e-12)
    assert inputs.policy.rejected.scores.grad.item() == pytest.approx(9.0, abs=1e-12)


@pytest.mark.parametrize("p", [0.0, 0.3, 0.5, 1.0])
def test_the_soft_form_aims_at_p_less_a_half_over_beta(make, p):
    output = make.g0(probability=p).into(SPPO(beta=0.1, target=ProbabilityColumn()))
    aim = (p - 0.5) * 10
    assert output.losses.item() == pytest.approx((1 - aim) ** 2 + (-0.5 + aim) ** 2, abs=1e-12)


def test_a_probability_of_one_is_the_hard_form_and_of_one_half_pulls_back_to_the_reference(make):
    sure, even = make.g0(probability=1.0), make.g0(probability=0.5)
    soft = SPPO(beta=0.1, target=ProbabilityColumn())
    assert sure.into(soft).losses.item() == sure.into(SPPO(beta=0.1)).losses.item()
    assert even.into(soft).losses.item() == 1.25


def test_the_probability_of_a_margin_serves_as_well(make):
    output = make.g0(margin=2.0).into(SPPO(beta=0.1, target=MarginTarget(0.5)))
    aim = (1 / (1 + math.exp(-1)) - 0.5) * 10
    assert output.losses.item() == pytest.approx((1 - aim) ** 2 + (-0.5 + aim) ** 2, abs=1e-12)
    assert SPPO(target=MarginTarget(0.5)).requirements.columns == {"margin"}
    assert SPPO(target=ProbabilityColumn()).requirements.columns == {"probability"}


def test_win_rates_that_add_up_to_one_are_the_soft_form_through_the_regression(make):
    inputs = make.random(SPPO(target=ProbabilityColumn()))
    win = inputs.pairs.probability
    inputs.pairs.columns = {"win_rate_chosen": win, "win_rate_rejected": 1 - win}
    soft = inputs.into(SPPO(beta=0.01, target=ProbabilityColumn()))
    regression = inputs.into(GPORegression("win_rate", beta=0.01, center=0.5))
    torch.testing.assert_close(soft.losses, regression.losses, rtol=1e-12, atol=0)


def test_what_is_no_probability_is_refused_with_what_to_choose():
    with pytest.raises(UsageError, match=r"SPPO: Unbiased is no probability.*`target: ProbabilityColumn`"):
        SPPO(target=Unbiased(0.1))
    assert repr(SPPO()) == "SPPO(beta=0.001, target=Hard())"
    assert SPPO().target.hard and isinstance(SPPO(target=Hard()).target, Hard)
