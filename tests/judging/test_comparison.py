"""Intervals over prompts cover what they claim to, and comparisons find what is there."""

import math

import numpy as np
import pytest

from lit_pref.errors import UserError
from lit_pref.judging.comparison import Interval, PromptBootstrap, compare, matched, mean_of

DRAWS = 1000


def clustered(prompts: int, kind: str, seed: int, draws: int = DRAWS) -> tuple[np.ndarray, np.ndarray, float]:
    """(n, draws) values of items of prompts with 1 to 5 items each, their prompts, and the true mean."""
    generator = np.random.default_rng(seed)
    prompt_of = np.repeat(np.arange(prompts), generator.integers(1, 6, size=prompts))
    effect = generator.normal(size=(prompts, draws))[prompt_of]
    if kind == "normal":
        return effect + generator.normal(size=effect.shape), prompt_of, 0.0
    share = 1 / (1 + np.exp(-effect))  # mean 1/2 over prompts; items of a prompt are alike
    if kind == "skewed":
        return -np.log(share), prompt_of, 0.8060  # E log(1 + exp(-x)) over x normal
    return (generator.random(share.shape) < share).astype(float), prompt_of, 0.5


@pytest.mark.parametrize("kind", ["normal", "right or wrong", "skewed"])
@pytest.mark.parametrize("prompts", [20, 60, 500])
def test_the_interval_covers_the_true_mean_in_93_to_97_percent_of_1000_draws(prompts: int, kind: str):
    values, prompt_of, truth = clustered(prompts, kind, seed=prompts)
    intervals = PromptBootstrap(prompt_of.tolist(), resamples=1000).intervals(mean_of(values))
    assert len(intervals) == DRAWS
    covered = np.mean([low <= truth <= high for _, low, high in intervals])
    assert 0.93 <= covered <= 0.97, covered


def test_the_true_mean_of_the_skewed_draws():
    x = np.linspace(-9, 9, 200_001)
    weights = np.exp(-(x**2) / 2)
    assert (np.logaddexp(0, -x) * weights).sum() / weights.sum() == pytest.approx(0.8060, abs=1e-4)


def test_items_that_are_taken_for_independent_prompts_give_too_narrow_an_interval():
    values, prompt_of, truth = clustered(60, "normal", seed=1)
    alone = PromptBootstrap(range(len(prompt_of)), resamples=500).intervals(mean_of(values))
    assert np.mean([low <= truth <= high for _, low, high in alone]) < 0.88


def differences(effect: float, prompts: int = 80) -> list[bool | None]:
    """For 1000 pairs of models on the same prompts: True where A is found better, False where B is, else None."""
    generator = np.random.default_rng(3)
    hardness = generator.normal(size=(prompts, DRAWS))
    right = [hardness + gain + generator.normal(size=hardness.shape) > 0 for gain in (effect, 0.0)]
    found: list[bool | None] = []
    bootstrap = PromptBootstrap(range(prompts), resamples=500)
    intervals = bootstrap.intervals(lambda w: mean_of(right[0])(w) - mean_of(right[1])(w))
    for _, low, high in intervals:
        found.append(None if low <= 0 <= high else low > 0)
    return found


def test_no_difference_is_found_falsely_in_more_than_seven_of_a_hundred_comparisons():
    found = differences(effect=0.0)
    assert 0.03 <= sum(answer is not None for answer in found) / DRAWS <= 0.07


def test_a_true_difference_is_found_and_never_the_other_way_round():
    found = differences(effect=0.9)
    assert sum(answer is True for answer in found) / DRAWS > 0.95
    assert not any(answer is False for answer in found)


def test_compare_pairs_the_items_and_says_who_is_better():
    generator = np.random.default_rng(0)
    hardness = generator.normal(size=300)
    a = hardness + 0.1 + 0.05 * generator.normal(size=300)
    bootstrap = PromptBootstrap(range(300))
    found = compare(mean_of(a), mean_of(hardness), bootstrap, "reward", ("new", "old"))
    assert found.a.low < found.b.high, "each interval alone overlaps the other"
    assert found.difference.value == pytest.approx(np.mean(a - hardness), abs=1e-12)
    assert found.winner == "new" and 0 < found.difference.low < found.difference.high
    assert found.sentence.startswith("new is better than old: reward ") and "difference +0.0995" in found.sentence
    swapped = compare(mean_of(hardness), mean_of(a), bootstrap, "reward", ("old", "new"))
    assert swapped.sentence == found.sentence and swapped.difference.value < 0
    loss = compare(mean_of(a), mean_of(hardness), bootstrap, "loss", ("new", "old"), higher_is_better=False)
    assert loss.winner == "old"
    same = compare(mean_of(a), mean_of(a[::-1]), bootstrap, "reward")
    assert same.winner is None and same.sentence.startswith("A and B do not differ clearly")


def test_the_interval_is_that_of_the_t_test_where_the_mean_is_normal():
    values = np.random.default_rng(5).normal(size=25)
    low, high = PromptBootstrap(range(25), resamples=40_000).interval(mean_of(values))[1:]
    half = 2.0639 * values.std(ddof=1) / 5
    assert (high - low) / 2 == pytest.approx(half, rel=0.03)
    assert (high + low) / 2 == pytest.approx(values.mean(), abs=0.05 * half)


def test_an_interval_does_not_depend_on_how_many_resamples_are_in_memory_at_a_time(monkeypatch: pytest.MonkeyPatch):
    values = np.random.default_rng(6).normal(size=50)
    once = PromptBootstrap(range(50)).interval(mean_of(values))
    monkeypatch.setattr("lit_pref.judging.comparison._BLOCK", 50 * 7)
    assert PromptBootstrap(range(50)).interval(mean_of(values)) == pytest.approx(once, rel=1e-12)
    assert PromptBootstrap(range(50), seed=1).interval(mean_of(values)) != once


def test_what_cannot_have_an_interval():
    value, low, high = PromptBootstrap(["a", "a"]).interval(mean_of([0.0, 1.0]))
    assert (value, low, high) == (0.5, -math.inf, math.inf)
    assert all(math.isnan(end) for end in PromptBootstrap(["a", "b"]).interval(mean_of([math.nan, math.nan])))
    with pytest.raises(ValueError, match="no items"):
        PromptBootstrap([])
    one = compare(mean_of([1.0]), mean_of([0.0]), PromptBootstrap(["a"]), "accuracy")
    assert one.winner is None


def test_records_of_two_models_are_matched_by_id():
    a = {"id": ["x", "y", "z"], "z": [1.0, 2.0, 3.0]}
    b = {"id": ["z", "w", "x"], "z": [30.0, 9.0, 10.0]}
    first, second, left_out = matched(a, b)
    assert first == {"id": ["x", "z"], "z": [1.0, 3.0]} and second == {"id": ["x", "z"], "z": [10.0, 30.0]}
    assert left_out == 2
    with pytest.raises(UserError, match=r"no item in common.*'x'.*'q'.*same file"):
        matched(a, {"id": ["q"], "z": [0.0]})
    with pytest.raises(UserError, match="'x' occurs twice"):
        matched({"id": ["x", "x"], "z": [0.0, 1.0]}, b)


def test_an_interval_is_printed_with_four_digits():
    assert str(Interval(0.123456, 0.1, 0.15)) == "0.1235 (0.1 to 0.15)"
