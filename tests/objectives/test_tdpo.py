import math

import pytest
import torch

from lit_pref.errors import UsageError
from lit_pref.objectives import DPO, MMPO, TDPO, KlOffset, Mean, NoReference
from lit_pref.scores import ReferenceKl


def golden(make, chosen=0.4, rejected=0.6):
    """The golden pair with K_w and K_l."""
    inputs = make.g0()
    for side, kl in ((inputs.policy.chosen, chosen), (inputs.policy.rejected, rejected)):
        side.scores.requires_grad_()
        side.statistics = {ReferenceKl(): torch.tensor([kl], dtype=torch.float64, requires_grad=True)}
    return inputs


def gradients(inputs, losses):
    sides = inputs.policy.chosen, inputs.policy.rejected
    leaves = [side.scores for side in sides] + [side.statistics[ReferenceKl()] for side in sides]
    found = torch.autograd.grad(losses.sum(), leaves, allow_unused=True)
    return [None if gradient is None else gradient.item() for gradient in found]


def test_tdpo2_on_the_golden_pair_has_the_golden_loss_and_takes_the_chosen_divergence_as_constant(make):
    inputs = golden(make)
    output = inputs.into(TDPO(beta=0.1, alpha=0.5))
    x = 0.1 * (1.5 - 0.5 * (0.6 - 0.4))
    assert output.losses.item() == pytest.approx(math.log1p(math.exp(-x)), abs=1e-15)
    assert output.losses.item() == pytest.approx(0.6255951823371514, abs=1e-15)
    slope = 0.1 / (1 + math.exp(x))
    found = gradients(inputs, output.losses)
    assert found[2] is None
    assert [found[0], found[1], found[3]] == pytest.approx([-slope, slope, 0.5 * slope], abs=1e-15)


def test_tdpo1_has_alpha_one_and_a_gradient_of_both_divergences(make):
    inputs = golden(make)
    output = inputs.into(TDPO(beta=0.1, alpha=1.0, detach_chosen=False))
    x = 0.1 * (1.5 - (0.6 - 0.4))
    assert output.losses.item() == pytest.approx(math.log1p(math.exp(-x)), abs=1e-15)
    slope = 0.1 / (1 + math.exp(x))
    assert gradients(inputs, output.losses) == pytest.approx([-slope, slope, -slope, slope], abs=1e-15)


def test_alpha_zero_and_equal_divergences_are_dpo(make):
    expected = make.g0().into(DPO(beta=0.1)).losses.item()
    assert golden(make).into(TDPO(beta=0.1, alpha=0.0)).losses.item() == expected
    assert golden(make, 0.7, 0.7).into(TDPO(beta=0.1, alpha=3.0)).losses.item() == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_divergences_and_log_ratios_of_ten_thousand_nats_stay_finite(make, dtype):
    inputs = golden(make, 0.0, 1e4)
    for side in (inputs.policy.chosen, inputs.policy.rejected):
        side.scores = torch.tensor([-1e4], dtype=dtype, requires_grad=True)
        side.statistics = {need: value.detach().to(dtype).requires_grad_() for need, value in side.statistics.items()}
    output = inputs.into(TDPO(beta=1.0))
    assert output.losses.item() == pytest.approx(5e3, rel=1e-2)
    assert all(math.isfinite(gradient) for gradient in gradients(inputs, output.losses) if gradient is not None)


def test_it_compares_with_a_live_reference_by_sums_and_the_other_parts_stay_open(make):
    asked = TDPO().requirements
    assert (asked.statistics, asked.min_references, asked.reference_statistics) == ({ReferenceKl()}, 1, frozenset())
    with pytest.raises(UsageError, match="TDPO: KlOffset needs a reference and NoReference takes none"):
        TDPO(reference=NoReference())
    with pytest.raises(UsageError, match=r"TDPO: KlOffset is a sum over tokens.*`tokens: Sum`"):
        TDPO(tokens=Mean())
    inputs = golden(make)
    expected = inputs.into(MMPO(beta=0.1, gamma=0.5, offset=KlOffset(0.05))).losses
    assert torch.equal(inputs.into(TDPO(beta=0.1, target=MMPO(gamma=0.5).target)).losses, expected)


@pytest.mark.parametrize("alpha", [-0.1, math.inf, math.nan])
def test_an_alpha_that_is_no_weight_is_refused(alpha):
    with pytest.raises(UsageError, match=f"TDPO: alpha weighs the divergences .*, got {alpha}"):
        TDPO(alpha=alpha)
