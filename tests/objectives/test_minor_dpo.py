import math

import pytest
import torch

from lit_pref.errors import UsageError
from lit_pref.objectives import DPO, EpsilonStep, Harmonic, MarginTarget, MinorDPO, OneSided


def softplus(x):
    return math.log1p(math.exp(x))


@pytest.mark.parametrize(
    ("reference", "h_l", "golden"), [(-14.5, -0.5, 0.6443966600735709), (-15.5, 0.5, 0.6684596480132863)]
)
def test_the_golden_pair_with_the_rejected_response_below_and_above_its_reference(make, reference, h_l, golden):
    inputs = make.g0()
    inputs.references = [make.pair([-13.0], [reference])]
    scores = [side.scores.requires_grad_() for side in (inputs.policy.chosen, inputs.policy.rejected)]
    loss = inputs.into(MinorDPO(beta=0.1)).losses
    x = 0.1 * (1 - max(0.0, h_l))
    assert loss.item() == pytest.approx(softplus(-x), abs=1e-15)
    assert loss.item() == pytest.approx(golden, abs=1e-15)
    loss.sum().backward()
    slope = 0.1 / (1 + math.exp(x))
    assert [score.grad.item() for score in scores] == pytest.approx([-slope, slope if h_l > 0 else 0.0], abs=1e-15)


def test_it_is_dpo_where_the_rejected_response_is_above_its_reference(make):
    inputs = make.random(MinorDPO())
    inputs.references[0].rejected.scores = inputs.policy.rejected.scores.detach() - 1
    assert torch.equal(inputs.into(MinorDPO()).losses, inputs.into(DPO()).losses)
    # and the gradient at its reference is DPO's, so that the first step sees the rejected responses
    inputs.references[0].rejected.scores = inputs.policy.rejected.scores.detach()
    gradients = []
    for objective in (MinorDPO(), DPO()):
        (gradient,) = torch.autograd.grad(inputs.into(objective).losses.sum(), inputs.policy.rejected.scores)
        gradients.append(gradient)
    assert torch.equal(*gradients)


def test_soft_targets_are_refused_and_other_parts_are_open():
    with pytest.raises(
        UsageError, match=r"MinorDPO: OneSided treats chosen and rejected differently, .*`target: Hard`"
    ):
        MinorDPO(target=MarginTarget())
    built = MinorDPO(reference=Harmonic(), temperature=EpsilonStep())
    assert repr(built) == repr(DPO(score=OneSided(), reference=Harmonic(), temperature=EpsilonStep())).replace(
        "DPO(", "MinorDPO(", 1
    )
