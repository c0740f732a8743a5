"""Calibration, rank correlations and accuracy tables of a judge, against independent calculations."""

import math

import numpy as np
import pytest
import torch
from torchmetrics.classification import MulticlassCalibrationError
from torchmetrics.functional.regression import kendall_rank_corrcoef, spearman_corrcoef

from lit_pref.judging.accuracy_tables import accuracy_by, accuracy_by_quantile
from lit_pref.judging.calibration import agreement, calibration, cross_entropy, entropy, equal_width_error, sigmoid
from lit_pref.judging.comparison import PromptBootstrap
from lit_pref.judging.rank_correlation import kendall_of, spearman_of


def pairs(size: int = 400, scale: float = 1.5, seed: int = 0) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Scores z of a calibrated judge, labels that are drawn from it, and prompts of two pairs each."""
    generator = np.random.default_rng(seed)
    z = scale * generator.normal(size=size)
    label = (generator.random(size) < sigmoid(z)).astype(float)
    return z, label, [f"prompt {k // 2}" for k in range(size)]


@pytest.mark.parametrize("bins", [5, 10, 15])
def test_the_equal_width_error_is_that_of_torchmetrics(bins: int):
    z, label, _ = pairs()
    q = torch.from_numpy(sigmoid(z))
    oracle = MulticlassCalibrationError(num_classes=2, n_bins=2 * bins, norm="l1")  # those below 1/2 stay empty
    expected = oracle(torch.stack([1 - q, q], dim=1), torch.from_numpy(label).long())
    assert equal_width_error(z, label, bins=bins).value == pytest.approx(expected.item(), abs=1e-6)


def test_the_equal_width_error_against_vote_shares_by_hand():
    z = np.log([9.0, 9.0, 1 / 9, 1.5])  # q = 0.9, 0.9, 0.1, 0.6
    label = np.array([1.0, 2 / 3, 1 / 3, 0.5])
    # bin of 0.9: agreements 1, 2/3, 2/3 against 0.9; bin of 0.6: 0.5 against 0.6
    expected = 3 / 4 * abs((1 + 2 / 3 + 2 / 3) / 3 - 0.9) + 1 / 4 * 0.1
    assert equal_width_error(z, label).value == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("votes", [1, 3])
def test_the_error_to_expect_of_a_calibrated_judge_is_that_of_votes_drawn_from_it(votes: int):
    z, _, prompts = pairs(size=600)
    generator = np.random.default_rng(1)
    drawn = [generator.binomial(votes, sigmoid(z)) / votes for _ in range(150)]
    width = np.mean([equal_width_error(z, label).value for label in drawn])
    mass = np.mean([calibration(z, label, prompts, votes).equal_mass.value for label in drawn[:20]])
    found = calibration(z, drawn[0], prompts, votes)
    assert found.equal_width.if_calibrated == pytest.approx(width, rel=0.1)
    assert found.equal_mass.if_calibrated == pytest.approx(mass, rel=0.2)


def test_the_numbers_of_a_judge_are_their_formulas():
    z, label, prompts = pairs(size=60)
    label = 0.2 + 0.6 * label
    label[:4], z[4] = 0.5, 0.0
    found = calibration(z, label, prompts)
    q = 1 / (1 + np.exp(-z))
    assert found.brier.value == pytest.approx(np.mean((q - label) ** 2))
    assert found.log_loss.value == pytest.approx(-np.mean(label * np.log(q) + (1 - label) * np.log(1 - q)))
    assert found.entropy == pytest.approx(-(0.8 * math.log(0.8) + 0.2 * math.log(0.2)) * 56 / 60 + math.log(2) * 4 / 60)
    assert found.kl.value == pytest.approx(found.log_loss.value - found.entropy) and found.kl.low > 0
    right = [0.5 if a == 0 else float((a > 0) == (p > 0.5)) for a, p in zip(z, label, strict=True) if p != 0.5]
    assert found.accuracy.value == pytest.approx(np.mean(right)) and len(right) == 56
    assert (found.pairs, found.prompts) == (60, 30)
    grid = np.linspace(0.2, 8, 40_000)
    losses = (label * np.logaddexp(0, -z / grid[:, None]) + (1 - label) * np.logaddexp(0, z / grid[:, None])).mean(1)
    assert found.temperature.value == pytest.approx(grid[losses.argmin()], abs=3e-4)


def test_the_interval_of_the_temperature_covers_the_true_one():
    covered = 0
    for seed in range(200):
        z, label, prompts = pairs(size=300, seed=seed)
        low, high = calibration(2 * z, label, prompts, bins=2).temperature[1:]  # twice too sure
        covered += low <= 2 <= high
    assert 0.92 <= covered / 200 <= 0.98


def test_temperatures_without_an_optimum_have_no_interval():
    z = np.array([1.0, 2.0])
    separable = calibration(z, None, ["a", "b"])
    assert (separable.temperature.value, separable.boundary) == (0.0, "separable")
    assert math.isnan(separable.temperature.low)
    assert calibration(-z, None, ["a", "b"]).boundary == "no better than chance"


def test_known_probabilities_have_no_noise_to_expect():
    z = np.linspace(-2, 2, 41)
    found = calibration(z, sigmoid(z), [str(k) for k in range(41)], votes=math.inf)
    assert found.equal_mass.if_calibrated == found.equal_width.if_calibrated == 0
    assert found.equal_width.value == pytest.approx(0, abs=1e-12)
    assert found.log_loss.value == pytest.approx(found.entropy)


def test_ties_and_extremes():
    assert np.array_equal(agreement(np.zeros(2), np.array([1.0, 0.0])), [0.5, 0.5])
    assert np.array_equal(entropy(np.array([0.0, 1.0])), [0.0, 0.0])
    assert cross_entropy(np.array([1000.0, -1000.0]), np.array([1.0, 1.0])).tolist() == [0.0, 1000.0]


@pytest.mark.parametrize("rounded", [False, True])
def test_rank_correlations_are_those_of_torchmetrics_on_the_resampled_items(rounded: bool):
    generator = np.random.default_rng(2)
    x = generator.normal(size=40)
    y = x + generator.normal(size=40)
    if rounded:
        x, y = x.round(), y.round()
    weights = generator.multinomial(40, np.full(40, 1 / 40), size=5).astype(float)
    for row, s, k in zip(weights, spearman_of(x, y)(weights), kendall_of(x, y)(weights), strict=True):
        drawn = np.repeat(np.arange(40), row.astype(int))
        a, b = torch.from_numpy(x[drawn]), torch.from_numpy(y[drawn])
        assert s == pytest.approx(spearman_corrcoef(a, b).item(), abs=1e-5)
        assert k == pytest.approx(kendall_rank_corrcoef(a, b, variant="b").item(), abs=1e-6)


def test_kendall_does_not_depend_on_how_much_is_in_memory(monkeypatch: pytest.MonkeyPatch):
    x, y, weights = np.arange(30.0), np.sin(np.arange(30.0)), np.ones((2, 30))
    once = kendall_of(x, y)(weights)
    monkeypatch.setattr("lit_pref.judging.rank_correlation._BLOCK", 30 * 7)
    assert np.array_equal(kendall_of(x, y)(weights), once)


def test_constant_margins_have_no_rank_correlation():
    bootstrap = PromptBootstrap(["a", "b", "c"])
    for statistic in (spearman_of([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]), kendall_of([1.0, 1.0, 1.0], [1.0, 2.0, 3.0])):
        assert all(math.isnan(number) for number in bootstrap.interval(statistic))


def test_accuracy_by_group_counts_each_pair_once():
    right = [1.0, 0.0, 1.0, math.nan, 0.5]
    groups = accuracy_by(["b", "a", "b", "a", None], right, [0.9, 0.8, 0.7, 0.6, 0.5], ["p", "p", "q", "q", "r"])
    assert [(g.name, g.pairs, g.prompts, g.accuracy.value) for g in groups] == [
        ("a", 2, 2, 0.0),
        ("b", 2, 2, 1.0),
        ("none", 1, 1, 0.5),
    ]
    assert [g.confidence for g in groups] == pytest.approx([0.7, 0.8, 0.5])


def test_accuracy_by_quantile_keeps_equal_values_together():
    values = [3.0, 1.0, 1.0, 1.0, 2.0, math.nan]
    groups = accuracy_by_quantile(values, 2, [1, 0, 0, 1, 1, 1], [0.5] * 6, list("abcdef"))
    assert [(g.name, g.pairs) for g in groups] == [("1", 3), ("2 to 3", 2), ("none", 1)]
    assert groups[0].accuracy.value == pytest.approx(1 / 3)
    assert [g.name for g in accuracy_by_quantile([math.nan], 4, [1], [0.5], ["a"])] == ["none"]
