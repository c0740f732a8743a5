import math

import pytest

from lit_pref.errors import UsageError
from lit_pref.objectives import DPO, Anchor, ChosenNLL, ColumnWeight, Mean, NoReference


def test_terms_are_added_with_their_coefficients_after_the_weight(make):
    objective = DPO(weight=ColumnWeight("trust"), terms=[ChosenNLL(0.5), Anchor(2.0)])
    output = make.g0(trust=3.0).into(objective)
    # 3 * 0.62096 + 0.5 * 12 / 10 + 2 log(1 + exp(-0.1 * 1))
    expected = 3 * 0.6209570477895321 + 0.5 * 1.2 + 2 * math.log1p(math.exp(-0.1))
    assert output.losses.item() == pytest.approx(expected, abs=1e-14)


def test_terms_carry_gradient_to_the_chosen_response(make):
    inputs = make.g0()
    inputs.policy.chosen.scores.requires_grad_()
    inputs.policy.rejected.scores.requires_grad_()
    inputs.into(DPO(terms=[ChosenNLL(1.0), Anchor(1.0)])).losses.sum().backward()
    preference, anchor = 0.1 / (1 + math.exp(0.15)), 0.1 / (1 + math.exp(0.1))
    assert inputs.policy.chosen.scores.grad.item() == pytest.approx(-preference - 0.1 - anchor, abs=1e-15)
    assert inputs.policy.rejected.scores.grad.item() == pytest.approx(preference, abs=1e-15)


def test_cpo_is_the_policy_s_own_gap_with_the_chosen_nll(make):
    inputs = make.g0()
    inputs.references = []
    # x = 0.1 (-12 + 15)
    preference = inputs.into(DPO(reference=NoReference())).losses.item()
    assert preference == pytest.approx(0.5543552444685271, abs=1e-15)
    both = inputs.into(DPO(reference=NoReference(), terms=[ChosenNLL()])).losses.item()
    assert both == pytest.approx(0.5543552444685271 + 1.2, abs=1e-14)


def test_means_divide_each_log_ratio_by_the_policy_s_tokens(make):
    # 0.1 (1 / 10 + 0.5 / 12); the reference counts other tokens in the same text
    inputs = make.g0()
    inputs.references = [make.pair([-13.0], [-14.5], [7], [9])]
    assert inputs.into(DPO(tokens=Mean())).losses.item() == pytest.approx(0.6860889338223877, abs=1e-15)


@pytest.mark.parametrize("coefficient", [-1.0, math.inf, math.nan])
def test_a_coefficient_that_rewards_the_term_is_refused(coefficient):
    with pytest.raises(UsageError, match="Anchor: coefficient must be finite and >= 0"):
        Anchor(coefficient)
