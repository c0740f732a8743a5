import math

import pytest
import torch

from lit_pref.errors import UsageError
from lit_pref.objectives import DPO, DPOP, DropPenalty, MarginTarget


def softplus(x):
    return math.log1p(math.exp(x))


@pytest.mark.parametrize(("reference", "h_w"), [(-13.0, 1.0), (-11.5, -0.5)])
def test_a_fall_of_the_chosen_response_costs_the_penalty_within_the_sigmoid(make, reference, h_w):
    inputs = make.g0()
    inputs.references = [make.pair([reference], [-14.5])]  # h_l = -0.5
    chosen = inputs.policy.chosen.scores.requires_grad_()
    output = inputs.into(DPOP(beta=0.1, penalty=5.0))
    x = 0.1 * (h_w + 0.5 - 5 * max(0.0, -h_w))
    assert output.losses.item() == pytest.approx(softplus(-x), abs=1e-15)
    output.losses.sum().backward()
    assert chosen.grad.item() == pytest.approx(-0.1 * (1 if h_w > 0 else 6) / (1 + math.exp(x)), abs=1e-15)
    assert output.chosen_rewards.item() == pytest.approx(0.1 * (h_w if h_w > 0 else 6 * h_w), abs=1e-15)


def test_no_penalty_is_dpo_and_so_is_a_chosen_response_above_its_reference(make):
    inputs = make.random(DPOP())
    assert torch.equal(inputs.into(DPOP(penalty=0.0)).losses, inputs.into(DPO()).losses)
    inputs.references[0].chosen.scores = inputs.policy.chosen.scores.detach() - 0.5
    assert torch.equal(inputs.into(DPOP()).losses, inputs.into(DPO()).losses)


def test_the_gradient_at_the_reference_is_dpo_s(make):
    inputs = make.g0()
    inputs.references = [make.pair([-12.0], [-15.0])]
    chosen = inputs.policy.chosen.scores.requires_grad_()
    inputs.into(DPOP(penalty=50.0)).losses.sum().backward()
    assert chosen.grad.item() == pytest.approx(-0.05, abs=1e-16)


def test_soft_targets_and_penalties_that_are_none_are_refused():
    with pytest.raises(UsageError, match=r"DropPenalty treats chosen and rejected differently, .*`target: Hard`"):
        DPOP(target=MarginTarget())
    for penalty in (-1.0, math.inf, math.nan):
        with pytest.raises(UsageError, match=f"DPOP: penalty must be finite and >= 0, got {penalty}"):
            DPOP(penalty=penalty)


def test_a_score_that_is_not_a_number_stays_one():
    h = torch.tensor([math.nan, -1.0, 0.0, 2.0])
    chosen, rejected = DropPenalty(1.0)((h, h))
    assert chosen.isnan().tolist() == [True, False, False, False] and chosen[1:].tolist() == [-2.0, 0.0, 2.0]
    assert rejected is h
