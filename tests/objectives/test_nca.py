import math

import pytest

from lit_pref.objectives import NCA


def softplus(z):
    return math.log1p(math.exp(z))


def sigmoid(z):
    return 1 / (1 + math.exp(-z))


def test_nca_on_the_golden_pair_has_the_golden_loss_and_gradients(make):
    inputs = make.g0()
    for side in (inputs.policy.chosen, inputs.policy.rejected):
        side.scores.requires_grad_()
    output = inputs.into(NCA(beta=0.1))
    # r_w = 0.1 and r_l = -0.05
    assert output.losses.item() == pytest.approx(softplus(-0.1) + softplus(0.1) / 2 + softplus(-0.05) / 2, abs=1e-15)
    assert output.losses.item() == pytest.approx(1.3508248141169994, abs=1e-15)
    output.losses.sum().backward()
    chosen = 0.1 * (-sigmoid(-0.1) + sigmoid(0.1) / 2)
    assert inputs.policy.chosen.scores.grad.item() == pytest.approx(chosen, abs=1e-16)
    assert inputs.policy.rejected.scores.grad.item() == pytest.approx(0.05 * sigmoid(-0.05), abs=1e-16)


def test_the_chosen_reward_has_its_minimum_at_ln_two(make):
    inputs = make.inputs(make.pair([math.log(2) / 0.1], [-3.0]), [make.pair([0.0], [0.0])], make.batch(1))
    inputs.policy.chosen.scores.requires_grad_()
    inputs.into(NCA(beta=0.1)).losses.sum().backward()
    assert inputs.policy.chosen.scores.grad.item() == pytest.approx(0.0, abs=1e-16)
