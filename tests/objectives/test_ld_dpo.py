import math

import pytest
import torch

from lit_pref.errors import UsageError
from lit_pref.objectives import DPO, LDDPO, MMPO, EpsilonStep, TailWeighted
from lit_pref.scores import TokenLogps

POLICY = ([-0.2, -0.5, -0.1, -0.9], [-0.4, -0.6, -0.3])
REFERENCE = ([-0.3, -0.7, -0.2, -0.4], [-0.3, -0.35, -0.4])
TURNED = tuple(reversed(POLICY)), tuple(reversed(REFERENCE))


def test_ld_dpo_on_the_golden_tokens_has_the_golden_loss_and_gradients(make):
    inputs = make.tokens([POLICY], [[REFERENCE]])
    leaves = [side.statistics[TokenLogps()].requires_grad_() for side in (inputs.policy.chosen, inputs.policy.rejected)]
    output = inputs.into(LDDPO(beta=0.1, alpha=0.5))
    # h_w = 0.1 + 0.2 + 0.1 + 0.5 x -0.5 and h_l = -0.1 - 0.25 + 0.1: the fourth token is beyond the shorter response.
    x = 0.1 * (0.15 + 0.25)
    assert output.losses.item() == pytest.approx(math.log1p(math.exp(-x)), abs=1e-15)
    assert output.losses.item() == pytest.approx(0.673347167228034, abs=1e-15)
    slope = 0.1 / (1 + math.exp(x))
    chosen, rejected = torch.autograd.grad(output.losses.sum(), leaves)
    assert chosen[0].tolist() == pytest.approx([-slope, -slope, -slope, -slope / 2], abs=1e-15)
    assert rejected[0].tolist() == pytest.approx([slope] * 3, abs=1e-15)


def test_every_pair_has_its_own_shorter_length_and_either_side_may_be_the_longer_one(make):
    inputs = make.tokens([POLICY, TURNED[0]], [[REFERENCE, TURNED[1]]])
    x = inputs.into(LDDPO(beta=1.0, alpha=0.0)).logged["logits"].tolist()
    assert x == pytest.approx([0.65, -0.65], abs=1e-15)


def test_alpha_one_is_dpo(make):
    inputs = make.tokens([POLICY, TURNED[0]], [[REFERENCE, TURNED[1]]])
    ours, dpo = inputs.into(LDDPO(beta=0.3, alpha=1.0)).losses, inputs.into(DPO(beta=0.3)).losses
    torch.testing.assert_close(ours, dpo, rtol=0, atol=1e-15)


def test_responses_of_one_length_are_dpo_whatever_alpha_is(make):
    inputs = make.tokens([(POLICY[1], POLICY[1][::-1])], [[(REFERENCE[1], POLICY[1])]])
    ours, dpo = inputs.into(LDDPO(beta=0.3, alpha=0.2)).losses, inputs.into(DPO(beta=0.3)).losses
    torch.testing.assert_close(ours, dpo, rtol=0, atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_responses_of_one_token_and_ten_thousand_nats_stay_finite(make, dtype):
    inputs = make.tokens([([-1e4], [-1.0, -1e4])], [[([-1.0], [-1.0, -1.0])]])
    for scores in (inputs.policy, *inputs.references):
        for side in (scores.chosen, scores.rejected):
            side.statistics[TokenLogps()] = side.statistics[TokenLogps()].to(dtype)
    losses = inputs.into(LDDPO(beta=1.0, alpha=0.5)).losses
    assert losses.item() == pytest.approx(9999 - 9999 / 2, rel=1e-2)


def test_the_other_parts_stay_open_but_for_those_that_need_plain_sums(make):
    inputs = make.tokens([POLICY], [[REFERENCE]])
    expected = inputs.into(MMPO(beta=0.1, gamma=0.5, tokens=TailWeighted(0.3))).losses
    assert torch.equal(inputs.into(LDDPO(beta=0.1, alpha=0.3, target=MMPO(gamma=0.5).target)).losses, expected)
    with pytest.raises(UsageError, match="LDDPO: EpsilonStep compares sums of log-probs"):
        LDDPO(temperature=EpsilonStep())


@pytest.mark.parametrize("alpha", [-0.1, 1.1, math.nan])
def test_an_alpha_out_of_bounds_is_refused(alpha):
    with pytest.raises(UsageError, match=r"LDDPO: alpha .*\[0, 1\], got"):
        LDDPO(alpha=alpha)
