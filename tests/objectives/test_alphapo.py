import math

import pytest
import torch

from lit_pref.errors import UsageError
from lit_pref.objectives import DPO, AlphaDivergence, AlphaPO, AlphaReward, SimPO


def reward(a, alpha):
    return (1 - math.exp(-alpha * a)) / alpha


def test_alphapo_has_the_golden_value_and_gradient(make):
    x = 2.0 * (reward(-1.2, 0.25) - reward(-1.25, 0.25)) - 0.5
    inputs = make.g0().policy_alone()
    loss = inputs.into(AlphaPO(beta=2.0, gamma=0.5, alpha=0.25)).losses.item()
    assert loss == pytest.approx(math.log1p(math.exp(-x)), abs=1e-14)
    assert loss == pytest.approx(0.8917170410667831, abs=1e-14)
    chosen, rejected = inputs.gradients(AlphaPO(beta=2.0, gamma=0.5, alpha=0.25))
    slope = -2.0 / (1 + math.exp(x))
    # dr / da = exp(-alpha a)
    assert chosen == pytest.approx([slope * math.exp(0.3) / 10], abs=1e-14)
    assert rejected == pytest.approx([-slope * math.exp(0.3125) / 12], abs=1e-14)


def test_it_tends_to_simpo_and_is_simpo_at_alpha_zero(make):
    inputs = make.random(SimPO())
    simpo = inputs.into(SimPO(beta=2.0, gamma=0.5)).losses
    assert torch.equal(inputs.into(AlphaPO(2.0, 0.5, alpha=0.0)).losses, simpo)
    for alpha in (1e-8, -1e-8):
        torch.testing.assert_close(inputs.into(AlphaPO(2.0, 0.5, alpha)).losses, simpo, rtol=1e-6, atol=0)


def test_a_negative_alpha_makes_unlikely_responses_count_less(make):
    inputs = make.inputs(make.pair([-10.0], [-80.0], [10], [10]), [], make.batch(1))
    slopes = [
        inputs.gradients(AlphaPO(alpha=alpha))[1][0] / inputs.gradients(AlphaPO(alpha=alpha))[0][0]
        for alpha in (-0.25, 0.0, 0.25)
    ]
    # The ratio of the slopes is -exp(-alpha (a_l - a_w)) = -exp(7 alpha).
    assert slopes == pytest.approx([-math.exp(-1.75), -1.0, -math.exp(1.75)], rel=1e-12)


def test_very_unlikely_responses_do_not_overflow(make):
    inputs = make.inputs(make.pair([-1e4], [-1.0], [1], [1]), [], make.batch(1))
    inputs.policy.chosen.scores, inputs.policy.rejected.scores = (
        side.scores.float() for side in (inputs.policy.chosen, inputs.policy.rejected)
    )
    assert math.isfinite(inputs.into(AlphaPO()).losses.item())
    assert inputs.gradients(AlphaPO())[0] == [0.0]


def test_on_ratios_it_is_the_alpha_divergence(make):
    inputs = make.random(DPO())
    found = inputs.into(DPO(score=AlphaReward(0.4))).losses
    assert torch.equal(found, inputs.into(DPO(score=AlphaDivergence(0.4))).losses)
    with pytest.raises(UsageError, match="alpha must be a finite number"):
        AlphaPO(alpha=math.inf)
