import math

import pytest
import torch

from lit_pref.errors import UserError
from lit_pref.objectives import DPO, MMPO, Harmonic, NoReference, ReverseKL, Squared

SIGMOID_1 = 1 / (1 + math.exp(-1))  # p at gamma 0.5, m 2: 0.7310585786300049


def three_pairs(make):
    """h = 0.1 [(l_w - l_l) - (r_w - r_l)] = (0.15, -0.05, 0.30); margins 9 - 5, 6 - 6, 8 - 7.5."""
    return make.inputs(
        make.pair([-10, -20, -5], [-12, -19, -9]),
        [make.pair([-11, -20.5, -5], [-11.5, -20, -6])],
        make.batch(3, margin=[4.0, 0.0, 0.5]),
    )


def test_mmpo_on_the_golden_pair_is_the_cross_entropy_with_the_margin_s_probability(make):
    output = make.g0(margin=2.0).into(MMPO(beta=0.1, gamma=0.5))
    # p log(1 + e^-x) + (1 - p) log(1 + e^x) at x = 0.15
    expected = SIGMOID_1 * math.log1p(math.exp(-0.15)) + (1 - SIGMOID_1) * math.log1p(math.exp(0.15))
    assert output.losses.item() == pytest.approx(expected, abs=1e-15)
    assert output.losses.item() == pytest.approx(0.6612982609950314, abs=1e-15)
    assert output.logged["target"].item() == pytest.approx(0.7310585786300049, abs=1e-15)
    assert output.logged["kl_to_target"].item() == pytest.approx(0.0790951521068135, abs=1e-15)


def test_mmpo_on_three_pairs_has_the_golden_losses_and_gradient_sigmoid_x_minus_p(make):
    inputs = three_pairs(make)
    chosen = inputs.policy.chosen.scores.requires_grad_()
    output = inputs.into(MMPO(beta=0.1, gamma=0.5))
    # p = sigmoid(0.5 m) = sigmoid(2), 1/2, sigmoid(0.25)
    assert output.logged["target"].tolist() == pytest.approx([0.8807970779778823, 0.5, 0.5621765008857981], abs=1e-15)
    golden = [0.6388374860928497, 0.6934596480132863, 0.6857022942027877]
    assert output.losses.tolist() == pytest.approx(golden, abs=1e-15)
    assert output.losses.mean().item() == pytest.approx(0.6726664761029747, abs=1e-15)
    output.losses.sum().backward()
    golden = [-0.3433672326341327, -0.012497396484210388, 0.012266015925860962]
    assert (chosen.grad / 0.1).tolist() == pytest.approx(golden, abs=1e-14)


def test_mmpo_with_infinite_gamma_is_dpo(make):
    inputs = make.random(MMPO())
    hard, soft = inputs.into(DPO(beta=0.1)), inputs.into(MMPO(beta=0.1, gamma=math.inf))
    assert torch.equal(hard.losses, soft.losses)
    assert torch.equal(hard.logged["target"], soft.logged["target"])
    # -log sigmoid of (0.15, 0.30) and, the tie, p = 1/2 at x = -0.05: hard labels there would give 0.7184596480132863
    losses = three_pairs(make).into(MMPO(beta=0.1, gamma=math.inf)).losses.tolist()
    tie = 0.5 * math.log1p(math.exp(0.05)) + 0.5 * math.log1p(math.exp(-0.05))
    assert losses == pytest.approx([0.6209570477895321, tie, math.log1p(math.exp(-0.3))], abs=1e-15)


def test_mmpo_with_zero_gamma_fits_one_half_and_not_hard_labels(make):
    output = make.random(MMPO()).into(MMPO(gamma=0.0))
    assert output.logged["target"].tolist() == [0.5] * 5
    assert output.logged["target_entropy"].tolist() == pytest.approx([math.log(2)] * 5)


def test_the_minimum_is_at_a_logit_of_gamma_times_the_margin_with_the_entropy_as_loss(make):
    gamma, beta, margin = 0.7, 0.1, 2.0
    gap = gamma * margin / beta  # nats
    policy, reference = make.pair([-10.0], [-10.0 - gap]), make.pair([-3.0], [-3.0])
    policy.chosen.scores.requires_grad_()
    output = make.inputs(policy, [reference], make.batch(1, margin=[margin])).into(MMPO(beta=beta, gamma=gamma))
    output.losses.sum().backward()
    assert policy.chosen.scores.grad.item() == pytest.approx(0.0, abs=1e-15)
    assert output.logged["kl_to_target"].item() == pytest.approx(0.0, abs=1e-15)


def test_a_negative_margin_prefers_the_rejected_response_and_a_huge_one_overflows_nowhere(make):
    inputs = make.random(MMPO(), size=3)
    inputs.pairs.margin = torch.tensor([-2.0, -1e6, 1e6], dtype=torch.float64)
    output = inputs.into(MMPO(gamma=1.1))
    assert output.logged["target"].tolist() == pytest.approx([1 / (1 + math.exp(2.2)), 0.0, 1.0])
    assert bool(output.losses.isfinite().all())


def test_a_reward_model_is_trained_by_the_same_class_and_each_pair_meets_its_own_target(make):
    inputs = make.inputs(make.pair([1.2, -0.3], [0.2, 0.1]), [], make.batch(2, margin=[1.0, 0.25]))
    output = inputs.into(MMPO(beta=1.0, gamma=2.2, reference=NoReference()))
    assert output.logged["target"].tolist() == pytest.approx([0.9002495108803148, 0.6341355910108007], abs=1e-15)
    assert output.losses.tolist() == pytest.approx([0.413012176637908, 0.766669488804273], abs=1e-15)
    # The (B, 1) x (B,) broadcast of the official code would make the mean 0.6829807046754204.
    assert output.losses.mean().item() == pytest.approx(0.5898408327210904, abs=1e-15)


def test_missing_margins_are_refused_with_the_field_named(make):
    with pytest.raises(UserError, match="MarginTarget needs the field `margin` of every pair"):
        make.g0(margin=None).into(MMPO())


def test_mmpo_requires_the_margin_and_dpo_nothing():
    assert MMPO().requirements.columns == {"margin"}
    assert DPO().requirements.columns == frozenset()


def test_mmpo_under_the_reverse_kl_link_is_the_kl_from_sigmoid_x_to_p(make):
    output = make.g0(margin=2.0).into(MMPO(beta=0.1, gamma=0.5, link=ReverseKL()))
    q = 1 / (1 + math.exp(-0.15))
    expected = q * math.log(q / SIGMOID_1) + (1 - q) * math.log((1 - q) / (1 - SIGMOID_1))
    assert output.losses.item() == pytest.approx(expected, abs=1e-14)
    assert output.losses.item() == pytest.approx(0.08548927118650354, abs=1e-14)


def test_mmpo_under_the_squared_link_regresses_on_a_graded_gap(make):
    output = make.g0(margin=2.0).into(MMPO(beta=0.1, gamma=0.5, link=Squared()))
    # (D - (2p - 1) / (2 beta))^2 with D = 1.5
    assert output.losses.item() == pytest.approx((1.5 - (2 * SIGMOID_1 - 1) / 0.2) ** 2, abs=1e-14)
    assert output.losses.item() == pytest.approx(0.6570493169516682, abs=1e-14)


def test_mmpo_takes_the_references_of_mrpo(make):
    output = make.random(MMPO(), references=3).into(MMPO(reference=Harmonic()))
    assert {"reference_weights/0", "reference_weights/2", "kl_to_target"} <= set(output.logged)
