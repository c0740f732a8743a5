import math

import pytest
import torch

from lit_pref.errors import UsageError
from lit_pref.objectives import DPO, MODPO, ImplicitRewards, SequentialSPO

FIRST, SECOND = (-11.5, -17.0), (-14.0, -13.0)  # log-probs of chosen and rejected after rounds 1 and 2


def softplus(x):
    return math.log1p(math.exp(x))


def rounds(make, *policies):
    """The golden pair (D = 1.5 against the first reference) with the policies of earlier rounds."""
    inputs = make.g0()
    inputs.references += [make.pair([chosen], [rejected]) for chosen, rejected in policies]
    return inputs


def test_round_two_subtracts_the_reward_of_round_one(make):
    inputs = rounds(make, FIRST)
    chosen = inputs.policy.chosen.scores.requires_grad_()
    loss = inputs.into(SequentialSPO([0.5], beta=0.1)).losses
    # R_1 = 0.1 (1.5, -2.5), and x = 0.15 - 0.5 * 0.4
    assert loss.item() == pytest.approx(softplus(0.05), abs=1e-14)
    loss.sum().backward()
    assert chosen.grad.item() == pytest.approx(-0.1 / (1 + math.exp(-0.05)), abs=1e-14)


def test_round_three_subtracts_each_round_s_own_reward(make):
    loss = rounds(make, FIRST, SECOND).into(SequentialSPO([0.5, 0.2], beta=0.1)).losses
    # log pi_2 - log pi_ref = (-1, 1.5), of which R_2 is what R_1 does not explain: 0.1 * -2.5 - 0.5 * 0.4 = -0.45
    first, second = 0.1 * 4, 0.1 * -2.5 - 0.5 * 0.1 * 4
    assert loss.item() == pytest.approx(softplus(-(0.15 - 0.5 * first - 0.2 * second)), abs=1e-14)


def test_a_policy_that_has_learned_all_of_it_is_at_a_logit_of_its_own_reward(make):
    # pi_3 = pi_ref exp((R_3 + 0.5 R_1 + 0.2 R_2) / beta) has the logit R_3,w - R_3,l, here 0.7
    inputs = rounds(make, FIRST, SECOND)
    gap = (0.7 + 0.5 * 0.4 + 0.2 * -0.45) / 0.1
    inputs.policy = make.pair([-13.0 + gap], [-14.5])
    assert inputs.into(SequentialSPO([0.5, 0.2])).logged["logits"].item() == pytest.approx(0.7, abs=1e-14)


def test_multipliers_of_zero_are_dpo_and_one_round_is_modpo_with_an_implicit_reward(make):
    inputs = rounds(make, FIRST)
    modpo = inputs.into(MODPO({}, w0=1.0, reference=ImplicitRewards([0.3]))).losses
    assert torch.equal(inputs.into(SequentialSPO([0.3])).losses, modpo)
    none = inputs.into(SequentialSPO([0.0])).losses
    inputs.references = inputs.references[:1]
    assert torch.equal(none, inputs.into(DPO()).losses)


def test_it_takes_the_first_model_and_one_policy_for_each_round():
    asked = SequentialSPO([0.5, 0.2]).requirements
    assert (asked.min_references, asked.max_references) == (3, 3)
    for multipliers in ([], [math.inf]):
        with pytest.raises(UsageError, match="SequentialSPO: multipliers are finite numbers, one for each"):
            SequentialSPO(multipliers)
