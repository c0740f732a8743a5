import math

import pytest
import torch

from lit_pref.objectives import BMC, DPO, MMPO, EditWeighted
from lit_pref.scores import TokenLogps

POLICY = ([-0.2, -0.5, -0.1, -0.9], [-0.4, -0.6, -0.3])
REFERENCE = ([-0.3, -0.7, -0.2, -0.4], [-0.3, -0.35, -0.4])
EDITS = ([0.0, 1.0, 0.0, 1.0], [0.0, 1.0, 0.0])


def test_bmc_on_the_golden_tokens_has_the_golden_loss_and_gradients(make):
    inputs = make.tokens([POLICY], [[REFERENCE]], edits=[EDITS])
    leaves = [side.statistics[TokenLogps()].requires_grad_() for side in (inputs.policy.chosen, inputs.policy.rejected)]
    output = inputs.into(BMC(beta=0.1, delta=2.0))
    # lambda_w = 1, 1 + e^0.5, 1, 1 + min(e^0.9, 2); lambda_l = 1, 1 + e^0.6, 1
    lambdas = [1.0, 1 + math.exp(0.5), 1.0, 3.0], [1.0, 1 + math.exp(0.6), 1.0]
    h = [
        sum(w * (p - r) for w, p, r in zip(*side, strict=True)) for side in zip(lambdas, POLICY, REFERENCE, strict=True)
    ]
    assert h[0] - h[1] == pytest.approx(-0.0647260457623472, abs=1e-15)
    assert output.losses.item() == pytest.approx(math.log1p(math.exp(-0.1 * (h[0] - h[1]))), abs=1e-15)
    assert output.losses.item() == pytest.approx(0.6963887196651712, abs=1e-15)
    slope = 0.1 / (1 + math.exp(0.1 * (h[0] - h[1])))
    chosen, rejected = torch.autograd.grad(output.losses.sum(), leaves)
    assert chosen[0].tolist() == pytest.approx([-slope * w for w in lambdas[0]], abs=1e-15)
    assert rejected[0].tolist() == pytest.approx([slope * w for w in lambdas[1]], abs=1e-15)


def test_responses_without_edits_are_dpo(make):
    inputs = make.tokens([POLICY], [[REFERENCE]], edits=[([0.0] * 4, [0.0] * 3)])
    torch.testing.assert_close(inputs.into(BMC(beta=0.3)).losses, inputs.into(DPO(beta=0.3)).losses, rtol=0, atol=1e-15)


def test_the_other_parts_stay_open(make):
    inputs = make.tokens([POLICY], [[REFERENCE]], edits=[EDITS])
    expected = inputs.into(MMPO(beta=0.1, gamma=0.5, tokens=EditWeighted(1.5))).losses
    assert torch.equal(inputs.into(BMC(beta=0.1, delta=1.5, target=MMPO(gamma=0.5).target)).losses, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_token_that_the_policy_would_never_write_stays_finite(make, dtype):
    inputs = make.tokens([([-1e4], [-1.0])], [[([-1.0], [-1e4])]], edits=[([1.0], [1.0])])
    for scores in (inputs.policy, *inputs.references):
        for side in (scores.chosen, scores.rejected):
            side.statistics[TokenLogps()] = side.statistics[TokenLogps()].to(dtype)
    leaf = inputs.policy.chosen.statistics[TokenLogps()].requires_grad_()
    losses = inputs.into(BMC(beta=1.0, delta=2.0)).losses
    losses.sum().backward()
    # lambda_w = 1 + min(e^10000, 2) and lambda_l = 1 + min(e, 2), on 10^4 nats each.
    assert losses.item() == pytest.approx(5 * 9999 + 9999, rel=2e-2)
    assert leaf.grad.item() == pytest.approx(-3.0)
    assert not BMC(beta=1.0).requirements.columns
