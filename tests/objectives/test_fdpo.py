import math

import pytest
import torch

from lit_pref.objectives import DPO, FDPO, AlphaDivergence, ForwardKL, Identity, JensenShannon


@pytest.mark.parametrize(
    ("divergence", "phi", "golden"),
    [
        (ForwardKL(), lambda h: -math.exp(-h), 0.6311543835721054),
        (JensenShannon(), lambda h: -math.log1p(math.exp(-h)), 0.6606521625101546),
        (AlphaDivergence(0.5), lambda h: -2 * math.exp(-0.5 * h), 0.6276909470685579),
        (Identity(), lambda h: h, 0.6209570477895321),
    ],
)
def test_every_divergence_on_the_golden_pair(make, divergence, phi, golden):
    inputs = make.g0()
    chosen = inputs.policy.chosen.scores.requires_grad_()
    loss = inputs.into(FDPO(beta=0.1, divergence=divergence)).losses
    x = 0.1 * (phi(1.0) - phi(-0.5))
    assert loss.item() == pytest.approx(math.log1p(math.exp(-x)), abs=1e-15)
    assert loss.item() == pytest.approx(golden, abs=1e-15)
    loss.sum().backward()
    step = 1e-6
    slope = (phi(1.0 + step) - phi(1.0 - step)) / (2 * step)
    assert chosen.grad.item() == pytest.approx(-0.1 * slope / (1 + math.exp(x)), abs=1e-10)


def test_the_reverse_kl_is_dpo_and_jensen_shannon_the_default(make):
    inputs = make.random(FDPO())
    assert torch.equal(inputs.into(FDPO(divergence=Identity())).losses, inputs.into(DPO()).losses)
    assert torch.equal(inputs.into(FDPO()).losses, inputs.into(DPO(score=JensenShannon())).losses)
