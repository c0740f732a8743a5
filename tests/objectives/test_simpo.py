import math

import pytest
import torch

from lit_pref.errors import UsageError
from lit_pref.objectives import DPO, EpsilonStep, Mean, NoReference, SimPO


def test_simpo_has_the_golden_value_and_gradient(make):
    x = 2.0 * (-12 / 10 + 15 / 12) - 0.5
    loss = make.g0().policy_alone().into(SimPO(beta=2.0, gamma=0.5)).losses.item()
    assert loss == pytest.approx(math.log1p(math.exp(-x)), abs=1e-15)
    assert loss == pytest.approx(0.9130152523999525, abs=1e-15)
    chosen, rejected = make.g0().policy_alone().gradients(SimPO(beta=2.0, gamma=0.5))
    slope = -2.0 / (1 + math.exp(x))
    assert chosen == pytest.approx([slope / 10], abs=1e-15) and rejected == pytest.approx([-slope / 12], abs=1e-15)


def test_the_ratio_of_halos_and_of_the_authors_code_is_gamma_over_beta(make):
    # HALOs: -log sigmoid(10 (a_w - a_l - 0.3)), that is gamma = 3
    loss = make.g0().policy_alone().into(SimPO(beta=10.0, gamma=3.0)).losses.item()
    assert loss == pytest.approx(2.578889734292549, abs=1e-14)


def test_without_a_margin_it_is_dpo_on_means_without_reference(make):
    inputs = make.random(SimPO())
    plain = DPO(beta=2.0, tokens=Mean(), reference=NoReference())
    assert torch.equal(inputs.into(SimPO(gamma=0.0)).losses, inputs.into(plain).losses)
    output = inputs.into(SimPO())
    torch.testing.assert_close(output.chosen_rewards, 2 * inputs.policy.chosen.scores / inputs.policy.chosen.lengths)


def test_it_takes_no_reference_and_refuses_parts_that_need_one():
    assert SimPO().requirements.max_references == 0 and SimPO().log_prob_parts() == ["Mean"]
    with pytest.raises(UsageError, match="EpsilonStep needs a reference and NoReference takes none"):
        SimPO(temperature=EpsilonStep())
