import math

import pytest

from lit_pref.objectives import APODown


def sigmoid(z):
    return 1 / (1 + math.exp(-z))


def test_apo_down_on_the_golden_pair_has_the_golden_loss_and_gradients(make):
    inputs = make.g0()
    for side in (inputs.policy.chosen, inputs.policy.rejected):
        side.scores.requires_grad_()
    output = inputs.into(APODown(beta=0.1))
    # h_w = 1 and h_w - h_l = 1.5
    assert output.losses.item() == pytest.approx(sigmoid(0.1) + 1 - sigmoid(0.15), abs=1e-15)
    assert output.losses.item() == pytest.approx(0.9875493421351904, abs=1e-15)
    output.losses.sum().backward()
    alone, together = sigmoid(0.1) * sigmoid(-0.1), sigmoid(0.15) * sigmoid(-0.15)
    assert inputs.policy.chosen.scores.grad.item() == pytest.approx(0.1 * (alone - together), abs=1e-16)
    assert inputs.policy.rejected.scores.grad.item() == pytest.approx(0.1 * together, abs=1e-16)


def test_lower_log_probs_of_both_responses_lower_the_loss_without_end(make):
    falls = make.inputs(
        make.pair([0.0, -5.0, -10.0, -20.0], [0.0, -10.0, -20.0, -40.0]),
        [make.pair([0] * 4, [0] * 4)],
        make.batch(4),
    )
    losses = falls.into(APODown(beta=1.0)).losses.tolist()
    assert losses == sorted(losses, reverse=True)
    assert losses[0] == 1.0 and losses[-1] == pytest.approx(2 * math.exp(-20), rel=1e-6)
