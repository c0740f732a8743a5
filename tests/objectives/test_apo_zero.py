import math

import pytest
import torch

from lit_pref.objectives import APOZero


def sigmoid(z):
    return 1 / (1 + math.exp(-z))


def test_apo_zero_on_the_golden_pair_has_the_golden_loss_and_gradients(make):
    inputs = make.g0()
    for side in (inputs.policy.chosen, inputs.policy.rejected):
        side.scores.requires_grad_()
    output = inputs.into(APOZero(beta=0.1))
    # h_w = 1 and h_l = -0.5
    assert output.losses.item() == pytest.approx(1 - sigmoid(0.1) + sigmoid(-0.05), abs=1e-15)
    assert output.losses.item() == pytest.approx(0.9625234160368497, abs=1e-15)
    output.losses.sum().backward()
    chosen, rejected = sigmoid(0.1) * sigmoid(-0.1), sigmoid(-0.05) * sigmoid(0.05)
    assert inputs.policy.chosen.scores.grad.item() == pytest.approx(-0.1 * chosen, abs=1e-16)
    assert inputs.policy.rejected.scores.grad.item() == pytest.approx(0.1 * rejected, abs=1e-16)


def test_the_loss_is_one_at_the_reference_and_lies_between_zero_and_two(make):
    inputs = make.inputs(
        make.pair([0.0, 40.0, -40.0], [0.0, -40.0, 40.0]), [make.pair([0] * 3, [0] * 3)], make.batch(3)
    )
    losses = inputs.into(APOZero(beta=1.0)).losses.tolist()
    assert losses == pytest.approx([1.0, 0.0, 2.0], abs=1e-15)


def test_a_small_loss_keeps_its_digits(make):
    inputs = make.inputs(make.pair([40.0], [-100.0]), [make.pair([0.0], [0.0])], make.batch(1))
    inputs.policy.chosen.scores = inputs.policy.chosen.scores.to(torch.float32)
    # 1 - sigmoid(40) is exactly 0 in single and in double precision.
    assert inputs.into(APOZero(beta=1.0)).losses.item() == pytest.approx(math.exp(-40), rel=1e-6)
