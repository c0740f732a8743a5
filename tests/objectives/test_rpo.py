import math

import pytest
import torch

from lit_pref.errors import UsageError
from lit_pref.objectives import DPO, RPO, Anchor, ChosenNLL, NoReference


def test_rpo_on_the_golden_pair_adds_the_chosen_response_s_nats_per_token(make):
    inputs = make.g0()
    for side in (inputs.policy.chosen, inputs.policy.rejected):
        side.scores.requires_grad_()
    output = inputs.into(RPO(beta=0.1, alpha=0.5))
    # -log sigmoid(0.15) + 0.5 x 12 nats / 10 tokens
    assert output.losses.item() == pytest.approx(math.log1p(math.exp(-0.15)) + 0.6, abs=1e-15)
    output.losses.sum().backward()
    slope = 0.1 / (1 + math.exp(0.15))
    assert inputs.policy.chosen.scores.grad.item() == pytest.approx(-slope - 0.05, abs=1e-15)
    assert inputs.policy.rejected.scores.grad.item() == pytest.approx(slope, abs=1e-15)


def test_alpha_zero_is_dpo_and_further_terms_are_added(make):
    inputs = make.random(RPO())
    assert torch.equal(inputs.into(RPO(beta=0.3, alpha=0.0)).losses, inputs.into(DPO(beta=0.3)).losses)
    both, one = inputs.into(RPO(terms=[Anchor(0.2)])), inputs.into(DPO(terms=[ChosenNLL(1.0), Anchor(0.2)]))
    assert torch.equal(both.losses, one.losses)


def test_the_other_parts_stay_open(make):
    inputs = make.random(RPO(), references=0)
    expected = inputs.into(DPO(reference=NoReference(), terms=[ChosenNLL(2.0)])).losses
    assert torch.equal(inputs.into(RPO(alpha=2.0, reference=NoReference())).losses, expected)


def test_ten_thousand_nats_and_a_response_of_one_token_stay_finite(make):
    inputs = make.inputs(make.pair([-1e4], [-1.0], [1], [1]), [make.pair([-1.0], [-1e4], [1], [1])], make.batch(1))
    inputs.policy.chosen.scores = inputs.policy.chosen.scores.to(torch.float32).requires_grad_()
    losses = inputs.into(RPO(beta=1.0)).losses
    losses.sum().backward()
    assert losses.item() == pytest.approx(2 * 9999 + 1e4)
    assert inputs.policy.chosen.scores.grad.item() == pytest.approx(-2.0)


@pytest.mark.parametrize("alpha", [-0.1, math.inf, math.nan])
def test_an_alpha_that_would_lower_the_chosen_response_is_refused(alpha):
    with pytest.raises(UsageError, match=f"RPO: alpha must be finite and >= 0, got {alpha}"):
        RPO(alpha=alpha)
