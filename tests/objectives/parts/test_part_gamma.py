"""Gamma given as a probability, or fitted: values and intervals worked out by hand, and coverage of the intervals."""

import contextlib
import math

import numpy as np
import pytest
import torch

from lit_pref.errors import UsageError, UserError
from lit_pref.objectives import DPO, MMPO, Fitted, MarginTarget, UnitMargin
from lit_pref.objectives.parts.estimation import by_likelihood, by_mean_probability, labels_of_repeats, student_975
from lit_pref.pairs import Strengths


def strengths(margin, probability=None, prompts=None, **columns) -> Strengths:
    def numbers(values):
        return None if values is None else np.array(values, np.float64)

    prompts = np.array([str(k) for k in range(len(margin))] if prompts is None else prompts, dtype=object)
    return Strengths(numbers(margin), numbers(probability), {k: numbers(v) for k, v in columns.items()}, prompts)


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def names(count):
    return [str(k) for k in range(count)]


# Given as a probability


def test_the_probability_at_a_margin_of_one_is_the_given_one(make):
    inputs = make.g0(margin=1.0)
    assert inputs.into(MMPO(gamma=UnitMargin(0.9))).logged["target"].item() == pytest.approx(0.9, abs=1e-15)
    assert MarginTarget(UnitMargin(0.75)).strength == pytest.approx(math.log(3), abs=1e-15)
    assert MarginTarget(UnitMargin(0.5)).strength == 0
    assert torch.equal(
        make.g0(margin=2.0).into(MMPO(gamma=UnitMargin(0.75))).losses,
        make.g0(margin=2.0).into(MMPO(gamma=MarginTarget(UnitMargin(0.75)).strength)).losses,
    )


@pytest.mark.parametrize("p", [0.49, 1.0, math.nan])
def test_a_probability_at_a_margin_of_one_that_is_none_is_refused(p):
    with pytest.raises(UsageError, match="UnitMargin: p is the probability at a margin of one"):
        UnitMargin(p)


# By hand

LEVEL = "95 % by Student's t over prompts"
T1, T3 = 12.706204736174694, 3.1824463052837073  # 97.5 % of Student's distributions of 1 and 3 degrees of freedom


def test_the_quantiles_of_student_are_those_of_the_tables():
    tables = {1: T1, 2: 4.302652729749462, 3: T3, 4: 2.7764451051977934, 30: 2.0422724563012378}
    for freedom, quantile in tables.items():
        assert student_975(freedom) == pytest.approx(quantile, abs=1e-9)
    assert student_975(500) > student_975(501) > student_975(10**9) == pytest.approx(1.959963984540054, abs=1e-8)
    assert student_975(0) == math.inf


def test_three_of_four_labels_at_one_margin_give_the_log_odds_per_unit():
    for unit in (1.0, 2.0, 0.01):
        found = by_likelihood(tensor([unit] * 4), tensor([1, 1, 1, 0]), names(4))
        assert found.gamma == pytest.approx(math.log(3) / unit, rel=1e-12)
        # psi = -1/4 three times and 3/4: squares 3/4, times C / (C - 1) = 4/3; derivatives 4 x 3/16: se = 1 / (3/4)
        error = 4 / 3
        assert found.high == pytest.approx(math.log(3) / unit * math.exp(T3 * error / math.log(3)))
        assert found.low * found.high == pytest.approx(found.gamma**2)


def test_the_same_labels_in_two_prompts_have_another_interval():
    found = by_likelihood(tensor([1.0] * 6), tensor([1, 1, 1, 1, 0, 0]), ["a", "a", "b", "b", "a", "b"])
    # p = 2/3; both prompts sum to 2 (-1/3) + 2/3 = 0: nothing differs between them
    assert (found.low, found.high) == pytest.approx((math.log(2), math.log(2)))
    found = by_likelihood(tensor([1.0] * 6), tensor([1, 1, 1, 1, 0, 0]), ["a", "a", "a", "a", "b", "b"])
    # sums -4/3 and 4/3: (32/9) x 2 = 64/9; derivatives 6 x 2/9 = 4/3; se = (8/3) / (4/3) = 2
    assert found.high == pytest.approx(math.log(2) * math.exp(T1 * 2 / math.log(2)))


def test_labels_between_zero_and_one_are_shares_of_labels():
    """At margin 1 a share of 3/4 and at margin 2 one of 9/10: both are gamma = ln 3; ties say nothing."""
    found = by_likelihood(tensor([1.0, 2.0, 0.0]), tensor([0.75, 0.9, 0.1]), names(3))
    assert found.gamma == pytest.approx(math.log(3), rel=1e-12)
    assert (found.low, found.high) == pytest.approx((math.log(3), math.log(3)))


def test_the_likelihood_has_its_maximum_at_the_fit():
    generator = np.random.default_rng(0)
    margin, labels = generator.normal(1, 1, 50), generator.random(50)

    def likelihood(gamma):
        return sum(y * -math.log1p(math.exp(-gamma * m)) + (1 - y) * -math.log1p(math.exp(gamma * m)) for m, y in pairs)

    labels = np.where(generator.random(50) < 1 / (1 + np.exp(-0.8 * margin)), 1.0, 0.0) * 0.9 + 0.1 * labels
    pairs = list(zip(margin.tolist(), labels.tolist(), strict=True))
    best = by_likelihood(tensor(margin), tensor(labels), names(50)).gamma
    assert likelihood(best) > max(likelihood(best * 1.001), likelihood(best * 0.999))


def test_the_mean_probability_is_the_one_that_was_asked_for():
    found = by_mean_probability(tensor([0.0, 1.0]), 0.7, names(2))
    # (1/2 + sigmoid(gamma)) / 2 = 0.7, so sigmoid(gamma) = 0.9
    assert found.gamma == pytest.approx(math.log(9), rel=1e-12)
    # psi = -0.2 and 0.2: squares 0.08, times 2; derivative 0.9 x 0.1: se = 0.4 / 0.09
    assert found.high == pytest.approx(math.log(9) * math.exp(T1 * 0.4 / 0.09 / math.log(9)))


def test_one_prompt_alone_has_an_interval_without_end():
    found = by_mean_probability(tensor([0.5, 1.0]), 0.7, ["a", "a"])
    assert (found.low, found.high) == (0.0, math.inf)


# Against repetitions: labels and margins of one prompt depend on each other as strongly as they can


def draws(seed, prompts=60, pairs=3):
    generator = np.random.default_rng(seed)
    margin = generator.gamma(2.0, 0.6, prompts).repeat(pairs)
    labels = generator.random(prompts).repeat(pairs) < 1 / (1 + np.exp(-1.3 * margin))
    return tensor(margin), tensor(labels.astype(float)), np.arange(prompts).repeat(pairs).astype(str).tolist()


def share_of_intervals_that_hold(estimate, truth, size=150):
    found = [estimate(*draws(seed)) for seed in range(size)]
    return np.mean([one.low <= truth <= one.high for one in found])


def test_nineteen_of_twenty_intervals_hold_the_gamma_that_made_the_labels():
    # The bound is four standard errors of a share of 150 below 0.95.
    assert 0.88 <= share_of_intervals_that_hold(by_likelihood, 1.3) < 1
    as_if_independent = share_of_intervals_that_hold(lambda m, y, _: by_likelihood(m, y, names(len(m))), 1.3)
    assert as_if_independent < 0.85  # sqrt(3) too narrow: 1.96 / sqrt(3) standard errors hold 74 %


def test_nineteen_of_twenty_intervals_hold_the_gamma_of_the_mean_probability():
    large = torch.from_numpy(np.random.default_rng(1).gamma(2.0, 0.6, 400_000))
    mean = float(torch.sigmoid(1.3 * large).mean())
    assert 0.88 <= share_of_intervals_that_hold(lambda m, _, c: by_mean_probability(m, mean, c), 1.3) < 1


def test_the_intervals_of_few_prompts_are_wider_than_the_normal_distribution_s():
    found = []
    for seed in range(600):
        with contextlib.suppress(UserError):  # no label contradicts a margin, or most do
            found.append(by_likelihood(*draws(seed, prompts=10)))
    # 0.92 with Student's t, where 1.96 standard errors hold 0.89
    assert np.mean([one.low <= 1.3 <= one.high for one in found]) > 0.91 and len(found) > 500


# The same two texts, compared more than once


def test_a_row_is_labelled_by_the_other_comparisons_of_its_two_texts():
    a, b, c = b"a", b"b", b"c"
    rows = [(a, b), (a, b), (b, a), (a, b), (a, c), (b, c), (b, c)]
    margin = tensor([2.0, 1.0, 0.5, 0.0, 1.0, 1.0, -1.0])
    # Of a over b: three say yes, no, yes beside the tie; the second of b over c says no.
    expected = [(1 + 0 + 0.5) / 3, (1 + 0 + 0.5) / 3, 1 - (1 + 1 + 0.5) / 3, 2 / 3, math.nan, 0.0, 1.0]
    assert labels_of_repeats(rows, margin).tolist() == pytest.approx(expected, nan_ok=True)


def test_comparisons_repeated_by_annotators_who_follow_gamma_give_it_back():
    """Two texts at a true margin m: annotators prefer the better one with sigmoid(1.3 m), and all state the size m."""
    generator = np.random.default_rng(3)
    size = generator.gamma(2.0, 0.6, 4000).repeat(3)
    better = generator.random(12_000) < 1 / (1 + np.exp(-1.3 * size))
    texts = [(f"{k}+".encode(), f"{k}-".encode()) for k in range(4000) for _ in range(3)]
    rows = [pair if first else pair[::-1] for pair, first in zip(texts, better, strict=True)]
    made = strengths(size, prompts=[str(k) for k in range(4000) for _ in range(3)])
    made.responses = np.array(rows, dtype=object)
    objective = MMPO(gamma=Fitted(repeats=True))
    (line,) = objective.fit(made)
    assert "maximum likelihood of repeated comparisons over 12,000 pairs of 4,000 prompts" in line
    # What another annotator says of a row's chosen text: sigmoid(1.3 m) where the row chose the better one, which it
    # did with the same probability p, so p p + (1 - p) (1 - p). Two who agree tell less than one and the truth.
    p = 1 / (1 + np.exp(-1.3 * size))
    agree = torch.from_numpy(p * p + (1 - p) * (1 - p))
    expected = by_likelihood(tensor(size), agree, names(12_000)).gamma
    assert objective.target.strength == pytest.approx(expected, rel=0.05)
    with pytest.raises(UserError, match="no two texts were compared more than once"):
        made.responses = np.array([(f"{k}".encode(), b"-") for k in range(12_000)], dtype=object)
        objective.fit(made)
    with pytest.raises(UsageError, match="repeats takes the rows' own labels, and labels the column `votes`"):
        Fitted(labels="votes", repeats=True)


# What cannot be fitted


@pytest.mark.parametrize(
    ("margin", "labels", "sentence"),
    [
        ([1.0, 2.0], [1.0, 1.0], "contradicts no margin, so that every gamma is too small"),
        ([1.0, -2.0, 0.0], [1.0, 0.0, 0.3], "contradicts no margin"),
        ([1.0, 2.0], [1.0, 0.0], "larger margins do not make the chosen response likelier"),
        ([0.0, 0.0], [1.0, 0.0], "larger margins do not make the chosen response likelier"),
        ([1.0, 2.0], [1.5, 0.0], r"the labels, which has values outside of \[0, 1\]"),
    ],
)
def test_labels_to_which_no_gamma_fits_are_refused(margin, labels, sentence):
    with pytest.raises(UserError, match=sentence):
        by_likelihood(tensor(margin), tensor(labels), names(len(margin)))


def test_a_mean_that_ties_keep_out_of_reach_is_refused():
    with pytest.raises(UserError, match=r"mean probability is 0\.75: 2 of 4 pairs are ties, .* stays below 0\.75;"):
        by_mean_probability(tensor([0.0, 0.0, 1.0, 3.0]), 0.75, names(4))
    assert by_mean_probability(tensor([0.0, 0.0, 1.0, 3.0]), 0.74, names(4)).gamma > 1
    with pytest.raises(UsageError, match=r"mean_probability must be in \(0\.5, 1\), got 0\.5"):
        Fitted(mean_probability=0.5)


# In an objective


def test_a_column_comes_before_the_probability_and_the_probability_before_the_mean():
    margin, half = [1.0] * 4, [0.9, 0.9, np.nan, 0.9]
    by_column = MMPO(gamma=Fitted(labels="votes"))
    assert by_column.requirements.columns == by_column.requirements.fit_inputs == {"margin", "votes"}
    (line,) = by_column.fit(strengths(margin, half, votes=[1, 1, 0.5, 0.5]))
    assert line.startswith("gamma 1.099 (") and "maximum likelihood of `votes` over 4 pairs of 4 prompts" in line
    by_probability = MMPO(gamma=Fitted())
    assert by_probability.requirements.columns == {"margin"}
    assert by_probability.requirements.fit_inputs == {"margin", "probability"}
    (line,) = by_probability.fit(strengths(margin, half, prompts=["a", "a", "b", "c"]))
    rule = "maximum likelihood of `probability` over 3 pairs of 2 prompts"
    assert line == f"gamma 2.197 (2.197 to 2.197, {LEVEL}), {rule}"
    for none in (None, [np.nan] * 4):
        (line,) = MMPO(gamma=Fitted(mean_probability=0.8)).fit(strengths(margin, none))
        rule = "for a mean probability of 0.8 over 4 pairs of 4 prompts"
        assert line == f"gamma 1.386 (1.386 to 1.386, {LEVEL}), {rule}"
    with pytest.raises(UserError, match="without margins"):
        MMPO(gamma=Fitted()).fit(Strengths(None, None, {}, np.array([])))
    assert (MMPO().requirements.fit_inputs, MMPO().fit(strengths(margin))) == (frozenset(), [])


@pytest.mark.parametrize("rounding", [16, 4])
@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_a_probability_computed_from_the_margin_is_no_label(scale, rounding):
    """Log-odds of 0 to 8, written with digits, times a scale and cut at log-odds of 4."""
    odds = np.linspace(0, 8, 40)
    probability = np.round(1 / (1 + np.exp(-odds)), rounding)
    margin = scale * np.minimum(odds, 4)
    (line,) = MMPO(gamma=Fitted()).fit(strengths(margin, probability))
    mean = by_mean_probability(tensor(margin), 0.75, names(40))
    said = (
        f"gamma {mean.gamma:.4g} ({mean.low:.4g} to {mean.high:.4g}, {LEVEL}), for a mean probability of 0.75 "
        "(the default of mean_probability) over 40"
    )
    note = "the margin is computed from `probability`, which is not an independent label: "
    assert line == f"{note}{said} pairs of 40 prompts; gamma {1 / scale:.3g} reproduces `probability`"
    # Who names the column is followed, and told.
    (line,) = MMPO(gamma=Fitted(labels="probability")).fit(strengths(margin, probability))
    assert line.startswith(note) and "maximum likelihood of `probability` over 40 pairs" in line
    (line,) = MMPO(gamma=Fitted(labels="judge")).fit(strengths(margin, judge=probability))
    assert line.startswith("the margin is computed from `judge`, ") and "maximum likelihood of `judge`" in line
    # Normalised margins no longer are the log-odds, and were made of them.
    ranks = strengths(np.arange(40) / 40, probability)
    ranks.own_margin = margin
    assert MMPO(gamma=Fitted()).fit(ranks)[0].startswith(note)
    # One pair that says something else, or shares of five votes, are labels.
    other = np.where(np.arange(40) == 9, 0.5, probability)
    votes = np.round(5 * probability) / 5
    for labels in (other, votes):
        (line,) = MMPO(gamma=Fitted()).fit(strengths(margin, labels))
        assert line.startswith("gamma ") and "maximum likelihood of `probability`" in line


def test_a_fitted_gamma_is_state_and_neither_rounded_nor_printed(make):
    objective, inputs = MMPO(gamma=Fitted()), make.g0(margin=1.0)
    with pytest.raises(UserError, match="gamma is fitted to the training pairs when a run starts"):
        inputs.into(objective)
    before = repr(objective)
    objective.fit(strengths([1.0, 2.0], [0.75, 0.9]))
    objective.to(torch.bfloat16)
    assert inputs.into(objective).logged["target"].item() == pytest.approx(0.75, abs=1e-12)
    assert repr(objective) == before and "gamma=Fitted(labels=None, mean_probability=0.75, repeats=False)" in before
    again = DPO(target=MarginTarget(Fitted()))
    again.fit(strengths([1.0, 2.0], [0.6, 0.7]))
    assert again.target.strength != pytest.approx(math.log(3))
    again.load_state_dict(objective.state_dict())
    assert again.target.strength == objective.target.strength == pytest.approx(math.log(3))
