import math

import pytest
import torch

from lit_pref.errors import UsageError
from lit_pref.objectives import DPO, AlphaDivergence, ForwardKL, Identity, JensenShannon, OneSided


def softplus(x):
    return math.log1p(math.exp(x))


@pytest.mark.parametrize(
    ("score", "phi", "golden"),
    [
        (ForwardKL(), lambda h: 1 - math.exp(-h), 0.6311543835721054),
        (JensenShannon(), lambda h: math.log(2) - softplus(-h), 0.6606521625101546),
        (AlphaDivergence(0.5), lambda h: (1 - math.exp(-0.5 * h)) / 0.5, 0.6276909470685579),
    ],
)
def test_divergences_on_the_golden_pair(make, score, phi, golden):
    output = make.g0().into(DPO(score=score))
    # phi(h_w) - phi(h_l) at h_w = 1, h_l = -0.5
    assert output.losses.item() == pytest.approx(softplus(-0.1 * (phi(1.0) - phi(-0.5))), abs=1e-15)
    assert output.losses.item() == pytest.approx(golden, abs=1e-15)
    assert output.chosen_rewards.item() == pytest.approx(0.1 * phi(1.0), abs=1e-15)


def test_alpha_runs_from_the_reverse_to_the_forward_kl():
    ratios = (torch.tensor([1.0, -3.0], dtype=torch.float64), torch.tensor([-0.5, 2.0], dtype=torch.float64))
    for alpha, limit in ((1e-9, Identity()), (1.0, ForwardKL())):
        for value, expected in zip(AlphaDivergence(alpha)(ratios), limit(ratios), strict=True):
            torch.testing.assert_close(value, expected, rtol=1e-7, atol=0)


@pytest.mark.parametrize("score", [Identity(), ForwardKL(), JensenShannon(), AlphaDivergence(0.3)])
def test_every_divergence_is_zero_at_the_reference_and_rises_with_slope_u_f_second_of_one(score):
    h = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    value = score((h, h))[0]
    assert value.item() == pytest.approx(0, abs=1e-16)
    # d phi / d h = u f''(u) at u = 1: f'' is 1 for the KLs and every alpha, 1/2 for Jensen-Shannon
    (slope,) = torch.autograd.grad(value, h)
    assert slope.item() == pytest.approx(0.5 if isinstance(score, JensenShannon) else 1.0, abs=1e-15)


@pytest.mark.parametrize("score", [ForwardKL(), AlphaDivergence(1.0)])
def test_exponentials_of_hundreds_of_nats_stay_finite_in_fp32(make, score):
    inputs = make.inputs(make.pair([-900.0], [-900.0]), [make.pair([-100.0], [-1700.0])], make.batch(1))
    for pair in (inputs.policy, inputs.references[0]):
        pair.chosen.scores, pair.rejected.scores = pair.chosen.scores.float(), pair.rejected.scores.float()
    assert bool(inputs.into(DPO(score=score)).losses.isfinite())


def test_minor_dpo_ignores_a_rejected_response_below_the_reference(make):
    inputs = make.g0()
    rejected = inputs.policy.rejected.scores.requires_grad_()
    output = inputs.into(DPO(score=OneSided()))
    assert output.losses.item() == pytest.approx(softplus(-0.1), abs=1e-15)  # h_l = -0.5 counts as 0
    assert output.losses.item() == pytest.approx(0.6443966600735709, abs=1e-15)
    output.losses.sum().backward()
    assert rejected.grad.item() == 0.0


def test_minor_dpo_above_the_reference_is_dpo(make):
    inputs = make.g0()
    inputs.references = [make.pair([-13.0], [-15.5])]  # h_l = 0.5
    assert inputs.into(DPO(score=OneSided())).losses.item() == pytest.approx(softplus(-0.05), abs=1e-15)
    assert inputs.into(DPO(score=OneSided())).losses.item() == pytest.approx(0.6684596480132863, abs=1e-15)


def test_minor_dpo_pushes_the_rejected_response_in_the_first_step(make):
    inputs = make.g0()
    inputs.references = [make.pair([-12.0], [-15.0])]
    rejected = inputs.policy.rejected.scores.requires_grad_()
    inputs.into(DPO(score=OneSided())).losses.sum().backward()
    assert rejected.grad.item() == pytest.approx(0.1 / 2, abs=1e-16)


def test_the_gradient_at_the_bound_of_the_exponent_is_that_from_below():
    bound = math.log(torch.finfo(torch.float64).max) / 2
    h = torch.tensor([-bound, -bound - 1, 0.0], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(ForwardKL()((h, h))[0].sum(), h)
    assert slope.tolist() == pytest.approx([math.exp(bound), 0.0, 1.0], rel=1e-12)


def test_one_sided_keeps_a_score_that_is_not_a_number():
    h = torch.tensor([math.nan, -1.0, 0.0, 2.0])
    assert OneSided()((h, h))[1].isnan().tolist() == [True, False, False, False]


@pytest.mark.parametrize("alpha", [0.0, -0.5, 1.5, math.nan])
def test_an_alpha_out_of_range_is_refused(alpha):
    with pytest.raises(UsageError, match=r"alpha must be in \(0, 1\]"):
        AlphaDivergence(alpha)
