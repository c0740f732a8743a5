import math

import pytest
import torch

from lit_pref.errors import UsageError
from lit_pref.objectives import DPO, RobustDPO

Q = 1 / (1 + math.exp(-0.15))  # sigmoid(x) of the golden pair


def test_robust_dpo_has_the_golden_value_and_gradient(make):
    right, wrong = math.log1p(math.exp(-0.15)), math.log1p(math.exp(0.15))
    loss = make.g0().into(RobustDPO(epsilon=0.1)).losses.item()
    assert loss == pytest.approx((0.9 * right - 0.1 * wrong) / 0.8, abs=1e-15)
    assert loss == pytest.approx(0.602207047789532, abs=1e-15)
    chosen, rejected = make.g0().gradients(RobustDPO(epsilon=0.1))
    # (0.9 (Q - 1) - 0.1 Q) / 0.8 = Q - 9/8
    assert chosen == pytest.approx([0.1 * (Q - 9 / 8)], abs=1e-15)
    assert rejected == pytest.approx([-0.1 * (Q - 9 / 8)], abs=1e-15)


def test_the_mean_over_flipped_labels_is_the_clean_loss_of_dpo(make):
    straight, flipped = make.g0(), make.g0()
    for pair in (flipped.policy, flipped.references[0]):
        pair.chosen, pair.rejected = pair.rejected, pair.chosen
    mean = 0.7 * straight.into(RobustDPO(epsilon=0.3)).losses + 0.3 * flipped.into(RobustDPO(epsilon=0.3)).losses
    torch.testing.assert_close(mean, straight.into(DPO()).losses, rtol=0, atol=1e-14)
    assert torch.equal(straight.into(RobustDPO(epsilon=0.0)).losses, straight.into(DPO()).losses)


def test_it_falls_without_bound_and_logs_the_logit_that_runs_away(make):
    inputs = make.inputs(make.pair([0.0], [-1e4]), [make.pair([0.0], [0.0])], make.batch(1))
    output = inputs.into(RobustDPO(epsilon=0.1))
    assert output.losses.item() == pytest.approx(-0.1 / 0.8 * 1e3)
    assert output.logged["logits"].item() == 1e3


def test_one_half_of_flipped_labels_is_refused():
    with pytest.raises(UsageError, match="at one half the labels say nothing"):
        RobustDPO(epsilon=0.5)
