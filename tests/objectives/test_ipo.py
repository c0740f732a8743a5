import pytest

from lit_pref.errors import UsageError
from lit_pref.objectives import IPO, EpsilonStep, ProbabilityColumn


def test_ipo_has_the_golden_value_and_gradient_on_summed_log_probs(make):
    # h_w - h_l = 1.5 and 1 / (2 tau) = 5
    assert make.g0().into(IPO(tau=0.1)).losses.item() == pytest.approx((1.5 - 5) ** 2, abs=1e-12)
    assert make.g0().into(IPO(tau=0.1)).losses.item() == pytest.approx(12.25, abs=1e-12)
    chosen, rejected = make.g0().gradients(IPO(tau=0.1))
    assert chosen == pytest.approx([2 * (1.5 - 5)], abs=1e-12) and rejected == pytest.approx([2 * 3.5], abs=1e-12)


def test_the_gap_is_one_over_two_tau_and_a_probability_scales_it(make):
    at = make.inputs(make.pair([-1.0], [-1.0 - 2.5]), [make.pair([0.0], [0.0])], make.batch(1, probability=[0.75]))
    assert at.into(IPO(tau=0.2)).losses.item() == pytest.approx(0.0, abs=1e-20)
    # (2 * 0.75 - 1) / (2 * 0.2) = 1.25
    assert at.into(IPO(tau=0.2, target=ProbabilityColumn())).losses.item() == pytest.approx(1.25**2, abs=1e-12)


def test_the_papers_tau_is_shown_and_beta_is_not():
    assert repr(IPO(tau=0.25)).startswith("IPO(tau=0.25, reference=") and "beta" not in repr(IPO())
    assert IPO(tau=0.25).beta == 0.25


def test_a_temperature_that_varies_and_a_tau_of_zero_are_refused():
    with pytest.raises(UsageError, match="Squared divides by beta squared"):
        IPO(temperature=EpsilonStep())
    with pytest.raises(UsageError, match="IPO: tau must be a positive, finite number, got 0"):
        IPO(tau=0.0)
