import math

import pytest
import torch

from lit_pref.errors import UsageError
from lit_pref.objectives import DPO, DiscoPOP, LogRatioModulated


def loss(x, tau=0.05):
    """The equation with sigmoid and exponential apart, which is exact for small logits."""
    g = 1 / (1 + math.exp(-x / tau))
    return (1 - g) * math.log1p(math.exp(-x)) + g * math.exp(-x)


def test_discopop_has_the_golden_value_and_gradient(make):
    assert make.g0().into(DiscoPOP(beta=0.1)).losses.item() == pytest.approx(loss(0.15), abs=1e-14)
    assert loss(0.15) == pytest.approx(0.8493375792893855, abs=1e-15)
    g, q = 1 / (1 + math.exp(-3)), 1 / (1 + math.exp(-0.15))
    turn = g * (1 - g) / 0.05 * (math.exp(-0.15) - math.log1p(math.exp(-0.15)))
    slope = turn - (1 - g) * (1 - q) - g * math.exp(-0.15)
    chosen, rejected = make.g0().gradients(DiscoPOP(beta=0.1))
    assert chosen == pytest.approx([0.1 * slope], abs=1e-13) and rejected == pytest.approx([-0.1 * slope], abs=1e-13)


def test_it_rises_at_zero_between_a_minimum_below_and_a_maximum_above():
    x = torch.linspace(-0.5, 0.5, 101, dtype=torch.float64)
    values = LogRatioModulated()(x, torch.ones_like(x), x)
    assert values.tolist() == pytest.approx([loss(value) for value in x.tolist()], abs=1e-13)
    falls = (values.diff() < 0).tolist()
    # Falls to a minimum near -0.13, rises through 0, and falls again from near 0.1 on.
    changes = [k for k in range(1, len(falls)) if falls[k] != falls[k - 1]]
    assert len(changes) == 2 and falls[0] and not falls[50] and falls[-1]
    assert -0.2 < x[changes[0]].item() < 0 < x[changes[1]].item() < 0.2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_far_from_zero_it_is_dpos_loss_without_overflow(dtype):
    x = torch.tensor([-1e4, -100.0, -90.0, 30.0, 1e4], dtype=dtype, requires_grad=True)
    link = LogRatioModulated(tau=0.05)
    values = link(x, torch.ones_like(x), x)
    torch.testing.assert_close(values, -torch.nn.functional.logsigmoid(x), rtol=1e-2, atol=1e-12)
    (slope,) = torch.autograd.grad(values.sum(), x)
    assert slope.tolist() == pytest.approx([-1.0, -1.0, -1.0, 0.0, 0.0], abs=1e-12)


def test_a_soft_target_mixes_the_losses_of_both_orders(make):
    output = make.g0(probability=0.3).into(DiscoPOP(beta=0.1))
    assert output.logged["target"].item() == 1.0
    half = LogRatioModulated()
    x, p = torch.tensor([0.15], dtype=torch.float64), torch.tensor([0.3], dtype=torch.float64)
    assert half(x, p, p).item() == pytest.approx(0.3 * loss(0.15) + 0.7 * loss(-0.15), abs=1e-13)
    assert "kl_to_target" not in output.logged and "kl_to_target" in make.g0().into(DPO()).logged


@pytest.mark.parametrize("tau", [0.0, -1.0, 1.5, math.nan])
def test_a_tau_that_overflows_is_refused(tau):
    with pytest.raises(UsageError, match=r"DiscoPOP: tau must be in \(0, 1\]"):
        DiscoPOP(tau=tau)
