"""Margins on one scale: odd maps whose constants follow from the training pairs, by hand and by definition."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_pref.data.prepared.normalisation import POINTS, Normaliser
from lit_pref.errors import UserError

MARGINS = np.array([0.0, 1.0, 1.0, 2.0, 4.0])


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("none", [0, 1, 1, 2, 4]),
        # sqrt((0 + 1 + 1 + 4 + 16) / 5) = sqrt(4.4)
        ("zscore", [0, 1 / 4.4**0.5, 1 / 4.4**0.5, 2 / 4.4**0.5, 4 / 4.4**0.5]),
        ("minmax", [0, 0.25, 0.25, 0.5, 1]),
        # Below 1: one of five; equal to 1: two, half of them: (1 + 1) / 5. Below 2: three, itself half: 3.5 / 5.
        ("quantile", [0, 0.4, 0.4, 0.7, 0.9]),
    ],
)
def test_constants_by_hand(how, expected):
    assert Normaliser.fit(how, MARGINS, "f").apply(MARGINS) == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("how", ["zscore", "minmax", "quantile"])
@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=40).filter(lambda values: max(values) > 1e-6))
def test_no_pair_changes_sides_and_ties_stay_ties(how, margins):
    margins = np.array(margins)
    normaliser = Normaliser.fit(how, margins, "f")
    normalised = normaliser.apply(margins)
    assert np.isfinite(normalised).all() and (normalised >= 0).all()
    assert (normalised[margins == 0] == 0).all()
    assert normaliser.apply(-margins) == pytest.approx(-normalised)
    order = np.argsort(margins)
    assert (np.diff(normalised[order]) >= -1e-12).all()


def test_the_second_moment_over_both_orders_is_one_after_zscore():
    normalised = Normaliser.fit("zscore", MARGINS, "f").apply(np.concatenate([MARGINS, -MARGINS]))
    assert (normalised.mean(), normalised.std()) == pytest.approx((0, 1))


def test_quantiles_of_many_margins_are_kept_as_points():
    margins = np.random.default_rng(0).exponential(size=20_000)
    normaliser = Normaliser.fit("quantile", margins, "f")
    assert len(normaliser.margins) == POINTS + 1  # and 0
    exact = (np.argsort(np.argsort(margins)) + 0.5) / len(margins)
    assert np.abs(normaliser.apply(margins) - exact).max() < 1e-3


@pytest.mark.parametrize("margins", [[], [0.0, 0.0], [1.0, float("nan")]])
def test_what_has_no_scale_is_refused(margins):
    with pytest.raises(UserError, match=r"a\.jsonl: the margins are to be normalised \(zscore\), but no training pair"):
        Normaliser.fit("zscore", np.array(margins), "a.jsonl")
