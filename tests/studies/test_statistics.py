"""Intervals over seeds cover the truth as often as they say; corrections and rank correlations against known values."""

import math

import numpy as np
import pytest

from lit_pref.studies.statistics import holm, paired, spearman, t_interval, t_probability


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_intervals_of_paired_differences_cover_the_true_one_in_95_percent(seeds: int):
    rng = np.random.default_rng(seeds)
    draws, truth = 1000, 0.3
    of_seed = rng.normal(0, 2.0, (draws, seeds))  # what a seed adds to both cells, which pairing removes
    first = of_seed + truth + rng.normal(0, 0.2, (draws, seeds))
    second = of_seed + rng.normal(0, 0.1, (draws, seeds))
    covered, significant = 0, 0
    for a, b in zip(first, second, strict=True):
        found = paired(dict(enumerate(a)), dict(enumerate(b)), "max")
        assert found is not None
        covered += found.difference.low <= truth <= found.difference.high
        excludes = not found.difference.low <= 0 <= found.difference.high
        significant += excludes == (found.probability < 0.05)
    assert 930 <= covered <= 970
    assert significant == draws, "the interval leaves out 0 exactly where p is below 5 %"


def test_known_values():
    values = [0.12, 0.35, 0.21, 0.40, 0.29]  # t = 5.4954 with 4 degrees of freedom
    assert t_interval(values) == pytest.approx((0.274, 0.13557, 0.41243), abs=1e-5)
    assert t_probability(values) == pytest.approx(0.00535, abs=1e-5)
    assert math.isinf(t_interval([1.0]).low) and math.isnan(t_probability([1.0]))
    assert t_probability([0.0, 0.0]) == 1 and t_probability([0.1, 0.1]) == 0
    assert holm([0.01, math.nan, 0.5, 0.02]) == pytest.approx([0.03, math.nan, 0.5, 0.04], nan_ok=True)
    assert spearman([1, 2, 3, 4], [10, 20, 40, 30]) == pytest.approx(0.8)
    assert math.isnan(spearman([1, 2], [1, 2])) and math.isnan(spearman([1, 1, 1], [1, 2, 3]))


def test_cells_are_compared_on_the_seeds_that_both_have():
    found = paired({0: 1.0, 1: 2.0, 2: 9.0}, {0: 0.5, 1: 2.5}, "min")
    assert found is not None and (found.seeds, found.better, found.difference.value) == (2, 1, 0.0)
    assert not found.identical and paired({0: 1.0}, {1: 1.0}, "max") is None
    same = paired({0: 1.0, 1: 2.0}, {0: 1.0, 1: 2.0}, "max")
    assert same is not None and same.identical
