import math

import pytest

from lit_pref.objectives import CPO, DPO, SFT, NoReference, Smoothed


def test_cpo_has_the_golden_value_and_gradient(make):
    x = 0.1 * 3.0
    inputs = make.g0().policy_alone()
    preference = inputs.into(CPO(cpo_alpha=0.0)).losses.item()
    assert preference == pytest.approx(math.log1p(math.exp(-x)), abs=1e-15)
    assert preference == pytest.approx(0.5543552444685271, abs=1e-15)
    assert inputs.into(CPO(cpo_alpha=0.5)).losses.item() == pytest.approx(preference + 0.5 * 12 / 10, abs=1e-15)
    chosen, rejected = inputs.gradients(CPO(cpo_alpha=0.5))
    slope = -0.1 / (1 + math.exp(x))
    assert chosen == pytest.approx([slope - 0.5 / 10], abs=1e-15) and rejected == pytest.approx([-slope], abs=1e-15)


def test_it_is_dpo_without_reference_plus_supervised_fine_tuning(make):
    inputs = make.random(CPO())
    parts = inputs.into(DPO(reference=NoReference())).losses + inputs.into(SFT()).losses
    assert inputs.into(CPO()).losses.tolist() == pytest.approx(parts.tolist(), abs=1e-14)


def test_its_label_smoothing_is_the_target(make):
    loss = make.g0().policy_alone().into(CPO(cpo_alpha=0.0, target=Smoothed(0.1))).losses.item()
    assert loss == pytest.approx(0.9 * math.log1p(math.exp(-0.3)) + 0.1 * math.log1p(math.exp(0.3)), abs=1e-15)
    assert CPO().requirements.max_references == 0
