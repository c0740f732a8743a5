import math

import pytest

from lit_pref.errors import UsageError
from lit_pref.objectives import DPO, EpsilonStep, MarginTarget, SquaredMargin, SquaredResidual

GAPS = [1.5, -0.5, 3.0]  # h_w - h_l


def three_pairs(make, margin):
    return make.inputs(
        make.pair([-10, -20, -5], [-12, -19, -9]),
        [make.pair([-11, -20.5, -5], [-11.5, -20, -6])],
        make.batch(3, margin=margin),
    )


def test_it_has_the_golden_values_and_gradient(make):
    inputs = three_pairs(make, [4.0, 0.0, 0.5])
    targets = [0.5 * m / 0.1 for m in (4.0, 0.0, 0.5)]
    losses = inputs.into(SquaredMargin(beta=0.1, gamma=0.5)).losses
    residuals = [gap - target for gap, target in zip(GAPS, targets, strict=True)]
    assert losses.tolist() == pytest.approx([r**2 for r in residuals], abs=1e-11)
    assert losses.mean().item() == pytest.approx(114.25, abs=1e-11)
    chosen, rejected = inputs.gradients(SquaredMargin(beta=0.1, gamma=0.5))
    assert chosen == pytest.approx([2 * r for r in residuals], abs=1e-11)
    assert rejected == pytest.approx([-2 * r for r in residuals], abs=1e-11)


def test_its_minimum_is_that_of_mmpo_for_margins_of_any_size(make):
    for margin in (0.0, -2.0, 1e3):
        gap = 0.7 * margin / 0.1
        inputs = make.inputs(make.pair([gap], [0.0]), [make.pair([0.0], [0.0])], make.batch(1, margin=[margin]))
        assert inputs.into(SquaredMargin(beta=0.1, gamma=0.7)).losses.item() == pytest.approx(0.0, abs=1e-18)


def test_without_strength_it_holds_the_policy_at_its_reference(make):
    losses = three_pairs(make, [4.0, 0.0, 0.5]).into(SquaredMargin(gamma=0.0)).losses
    assert losses.tolist() == pytest.approx([gap**2 for gap in GAPS], abs=1e-12)


def test_targets_that_it_would_not_read_and_temperatures_that_would_weigh_are_refused():
    with pytest.raises(UsageError, match="SquaredResidual fits the offset and does not read the target"):
        SquaredMargin(target=MarginTarget())
    with pytest.raises(UsageError, match="SquaredResidual divides by beta squared"):
        SquaredMargin(temperature=EpsilonStep())
    with pytest.raises(UsageError, match="SquaredMargin: gamma must be a finite number"):
        SquaredMargin(gamma=math.inf)
    assert DPO(link=SquaredResidual()).target.hard
