import math

import pytest
import torch

from lit_pref.errors import UsageError
from lit_pref.objectives import DPO, Hinge, Logistic, Mean, ProbabilityColumn, ReverseKL, Smoothed, Squared


def test_hinge_on_the_golden_pair(make):
    assert make.g0().into(DPO(link=Hinge())).losses.item() == pytest.approx(1 - 0.15, abs=1e-15)
    # p l(x) + (1 - p) l(-x) at p = 0.3: 0.3 * 0.85 + 0.7 * 1.15
    soft = make.g0(probability=0.3).into(DPO(link=Hinge(), target=ProbabilityColumn()))
    assert soft.losses.item() == pytest.approx(0.3 * 0.85 + 0.7 * 1.15, abs=1e-15)


def test_hinge_counts_from_its_delta(make):
    assert make.g0().into(DPO(link=Hinge(0.5))).losses.item() == pytest.approx(0.5 - 0.15, abs=1e-15)
    assert make.g0().into(DPO(link=Hinge(0.1))).losses.item() == 0.0
    with pytest.raises(UsageError, match="Hinge: delta is the gap from which on the loss is 0 and must be > 0, got 0"):
        Hinge(0.0)


def test_the_gradient_of_hinge_at_its_corner_is_zero():
    x = torch.tensor([0.5, 1.0, 1.5, math.nan], dtype=torch.float64, requires_grad=True)
    values = Hinge().loss(x)
    assert values[:3].tolist() == [0.5, 0.0, 0.0] and bool(values[3].isnan())
    (slope,) = torch.autograd.grad(values[:3].sum(), x)
    assert slope[:3].tolist() == [-1.0, 0.0, 0.0]


def test_ipo_on_sums_and_on_means(make):
    # (h_w - h_l - 1 / (2 * 0.1))^2 = (1.5 - 5)^2, and with h_w / 10 - h_l / 12 = 0.1 + 0.5 / 12
    assert make.g0().into(DPO(link=Squared())).losses.item() == pytest.approx(12.25, abs=1e-12)
    mean = make.g0().into(DPO(link=Squared(), tokens=Mean()))
    assert mean.losses.item() == pytest.approx((0.1 + 0.5 / 12 - 5) ** 2, abs=1e-12)
    assert mean.losses.item() == pytest.approx(23.603402777777777, abs=1e-12)


def test_ipo_with_a_graded_target_differs_from_the_mixed_form_by_a_constant_only():
    x = torch.linspace(-3, 3, 7, dtype=torch.float64)
    p, beta = torch.full_like(x, 0.8), torch.full_like(x, 0.1)
    mixed = (0.8 * (x - 0.5) ** 2 + 0.2 * (-x - 0.5) ** 2) / 0.01
    torch.testing.assert_close(Squared()(x, p, beta), mixed - 0.8 * 0.2 / 0.01, rtol=0, atol=1e-10)


def test_exo_on_the_golden_pair(make):
    output = make.g0().into(DPO(link=ReverseKL(), target=Smoothed(0.001)))
    q = 1 / (1 + math.exp(-0.15))
    expected = q * (math.log(q) - math.log(0.999)) + (1 - q) * (math.log(1 - q) - math.log(0.001))
    assert output.losses.item() == pytest.approx(expected, abs=1e-14)
    assert output.losses.item() == pytest.approx(2.5055165554778713, abs=1e-14)
    assert "kl_to_target" not in output.logged  # it is the other direction


def test_the_reverse_kl_vanishes_at_its_target_and_stays_finite_where_p_rounds_to_one():
    p = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    torch.testing.assert_close(ReverseKL()(p.logit(), p, p), torch.zeros_like(p), rtol=0, atol=1e-15)
    certain = torch.tensor([0.0, 1.0])
    assert bool(ReverseKL()(torch.tensor([-80.0, 80.0]), certain, certain).isfinite().all())


def test_logistic_is_binary_cross_entropy_and_exact_far_out():
    x = torch.tensor([-800.0, -25.0, -0.3, 0.0, 4.0, 25.0], dtype=torch.float64)
    p = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0, 1.0], dtype=torch.float64)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(x, p, reduction="none")
    torch.testing.assert_close(Logistic()(x, p, p), expected, rtol=1e-14, atol=0)
    assert Logistic()(x, p, p)[-1].item() == pytest.approx(math.log1p(math.exp(-25.0)), rel=1e-12)
