import math

import pytest
import torch

from lit_pref.errors import UsageError
from lit_pref.objectives import DPO, WPO, ChosenNLL, OnPolicyWeight, Squared
from lit_pref.scores import LogSumSquares

# Next-token probabilities of a chosen response of two tokens and a rejected one of one, and which token came.
CHOSEN, REJECTED = [([0.5, 0.25, 0.25], 0), ([0.2, 0.2, 0.6], 1)], [([0.9, 0.05, 0.05], 2)]


def alignment(tokens):
    """The mean over tokens of log p_y - log sum_v p_v^2."""
    return sum(math.log(p[y]) - math.log(sum(v * v for v in p)) for p, y in tokens) / len(tokens)


OMEGA = math.exp(alignment(CHOSEN) + alignment(REJECTED))


def inputs_of(make, *pairs):
    """Pairs of a chosen and a rejected response, given as CHOSEN and REJECTED; all reference log-probs are -1."""

    def side(k):
        scores = [sum(math.log(p[y]) for p, y in pair[k]) for pair in pairs]
        made = make.side(scores, [len(pair[k]) for pair in pairs])
        squares = [sum(math.log(sum(v * v for v in p)) for p, _ in pair[k]) for pair in pairs]
        made.statistics = {LogSumSquares(): torch.tensor(squares, dtype=torch.float64)}
        made.scores.requires_grad_()
        return made

    policy = make.pair([0.0], [0.0])
    policy.chosen, policy.rejected = side(0), side(1)
    ones = [-1.0] * len(pairs)
    return make.inputs(policy, [make.pair(ones, ones)], make.batch(len(pairs)))


def test_wpo_is_dpo_s_loss_times_the_alignment_of_both_responses(make):
    inputs = inputs_of(make, (CHOSEN, REJECTED))
    output = inputs.into(WPO(beta=0.1))
    x = 0.1 * (math.log(0.5) + math.log(0.2) - math.log(0.05))
    assert output.logged["weight"].item() == pytest.approx(OMEGA, rel=1e-14)
    # sum_v p_v^2 is 0.375, 0.44 and 0.815
    assert pytest.approx(OMEGA, rel=1e-14) == math.sqrt(0.5 * 0.2 / 0.375 / 0.44) * 0.05 / 0.815
    assert output.losses.item() == pytest.approx(OMEGA * math.log1p(math.exp(-x)), rel=1e-14)
    output.losses.sum().backward()
    # The weight is a constant: the slope is DPO's times omega.
    slope = OMEGA * 0.1 / (1 + math.exp(x))
    assert inputs.policy.chosen.scores.grad.item() == pytest.approx(-slope, rel=1e-14)
    assert inputs.policy.rejected.scores.grad.item() == pytest.approx(slope, rel=1e-14)


def test_a_weight_above_one_is_cut_by_the_cap_alone(make):
    likely = [([0.6, 0.2, 0.2], 0)]  # 0.6 / 0.44 > 1
    inputs = inputs_of(make, (likely, likely), (CHOSEN, REJECTED))
    free, capped = inputs.into(WPO()).logged["weight"].tolist(), inputs.into(WPO(cap=1.0)).logged["weight"].tolist()
    assert free == pytest.approx([(0.6 / 0.44) ** 2, OMEGA], rel=1e-14)
    assert capped == pytest.approx([1.0, OMEGA], rel=1e-14)


def test_uniform_distributions_have_the_weight_one_and_are_dpo(make):
    uniform = [([0.25] * 4, 2)] * 3
    inputs = inputs_of(make, (uniform, uniform[:1]))
    ours, dpo = inputs.into(WPO(beta=0.3)).losses, inputs.into(DPO(beta=0.3)).losses
    torch.testing.assert_close(ours, dpo, rtol=1e-14, atol=0)


def test_it_multiplies_any_loss_of_a_pair_but_not_the_terms(make):
    inputs = inputs_of(make, (CHOSEN, REJECTED))
    plain, weighed = (inputs.into(DPO(link=Squared(), **part)).losses for part in ({}, {"weight": OnPolicyWeight()}))
    torch.testing.assert_close(weighed, OMEGA * plain, rtol=1e-14, atol=0)
    added = inputs.into(WPO(terms=[ChosenNLL()])).losses - inputs.into(WPO()).losses
    assert added.item() == pytest.approx(-(math.log(0.5) + math.log(0.2)) / 2, abs=1e-15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_response_that_the_policy_would_never_write_has_weight_zero_and_a_finite_loss(make, dtype):
    inputs = inputs_of(make, (CHOSEN, REJECTED))
    chosen, rejected = inputs.policy.chosen, inputs.policy.rejected
    chosen.scores = torch.tensor([-1e4], dtype=dtype, requires_grad=True)
    rejected.scores = torch.tensor([-1e4], dtype=dtype, requires_grad=True)
    for side in (chosen, rejected):
        side.lengths = torch.tensor([1])
        side.statistics[LogSumSquares()] = side.statistics[LogSumSquares()].to(dtype)
    output = inputs.into(WPO(beta=1.0))
    output.losses.sum().backward()
    assert output.losses.item() == 0.0
    assert chosen.scores.grad.item() == rejected.scores.grad.item() == 0.0


def test_it_asks_for_one_statistic_of_the_policy_and_is_for_policies_alone():
    assert WPO().requirements.statistics == {LogSumSquares()}
    assert WPO().requirements.reference_statistics == frozenset()
    assert WPO().log_prob_parts() == ["OnPolicyWeight"]


def test_only_weights_that_can_differ_from_one_are_logged(make):
    assert "weight" not in make.g0().into(DPO()).logged
    assert "weight" in inputs_of(make, (CHOSEN, REJECTED)).into(WPO()).logged


@pytest.mark.parametrize("cap", [0.0, -1.0, math.nan])
def test_a_cap_that_leaves_no_weight_is_refused(cap):
    with pytest.raises(UsageError, match=f"WPO: cap is the largest weight and must be > 0, got {cap}"):
        WPO(cap=cap)
