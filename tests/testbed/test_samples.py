import math
import random
from itertools import islice

import pytest
import torch

from lit_pref.models.spec import ModelSpec
from lit_pref.testbed.samples import (
    GoldEvaluation,
    Interval,
    SampledPair,
    compare,
    evaluate,
    sample_pairs,
    write_responses,
)
from lit_pref.testbed.world import Prompt, gold_reward, quantise, random_for, shuffled_prompts, split_words

PROMPT = Prompt.parse("4 metal down lead plain 5 6 :")
PERFECT = split_words("zinc silver iron copper total 11 . <eos>")  # gold 10
SHORT = split_words("zinc silver iron total 11 . <eos>")  # 9
EMPTY = ["<eos>"]  # 1


@pytest.fixture(scope="module")
def policy(tmp_path_factory, write_policy):
    folder = tmp_path_factory.mktemp("policy")
    written = ModelSpec(path=str(write_policy(folder, {"zinc": 0.5, "tin": 0.25, ".": 0.15, "<eos>": 0.1})))
    return written.build(), written.load_tokenizer()


def evaluation(sampled, greedy=None):
    return GoldEvaluation([PROMPT] * len(sampled), sampled if greedy is None else greedy, sampled)


def test_gold_means_are_those_of_the_responses():
    result = evaluation(greedy=[PERFECT, SHORT], sampled=[EMPTY, PERFECT])
    assert result.greedy_gold == [10, 9]
    assert result.sampled_gold == [1, 10]
    assert (result.g0, result.g1) == (9.5, 5.5)


def test_two_policies_are_compared_prompt_by_prompt():
    before = evaluation(sampled=[SHORT, SHORT, EMPTY, PERFECT], greedy=[EMPTY, EMPTY, EMPTY, EMPTY])
    after = evaluation(sampled=[PERFECT, SHORT, SHORT, SHORT], greedy=[PERFECT, PERFECT, SHORT, SHORT])
    change = compare(after, before)
    # Sampled differences 1, 0, 8, -1: mean 2, squared deviations 1 + 4 + 36 + 9 = 50. Wins 1, 1/2, 1, 0: mean .625,
    # squared deviations 9/64 + 1/64 + 9/64 + 25/64 = 44/64. Greedy differences 9, 9, 8, 8.
    assert change.g1.mean == 2
    assert change.g1.half_width == pytest.approx(1.96 * math.sqrt(50 / 3 / 4))
    assert change.win_rate.mean == 0.625
    assert change.win_rate.half_width == pytest.approx(1.96 * math.sqrt(44 / 64 / 3 / 4))
    assert change.g0.mean == 8.5
    assert change.g0.half_width == pytest.approx(1.96 * math.sqrt(1 / 3 / 4))


def test_a_policy_ties_with_itself():
    same = evaluation(sampled=[SHORT, PERFECT, EMPTY])
    change = compare(same, same)
    assert change.win_rate == Interval(0.5, 0.0)
    assert change.g1 == Interval(0.0, 0.0)


def test_other_prompts_are_not_compared():
    other = Prompt.parse("3 metal down lead plain 5 6 :")
    with pytest.raises(ValueError, match="have different prompts"):
        compare(evaluation([PERFECT]), GoldEvaluation([other], [PERFECT], [PERFECT]))


def test_an_interval_covers_the_mean_19_times_in_20():
    rng = random.Random(0)
    covered = 0
    for _ in range(2000):
        interval = Interval.of([rng.gauss(3.0, 2.0) for _ in range(50)])
        covered += abs(interval.mean - 3.0) <= interval.half_width
    assert covered / 2000 == pytest.approx(0.945, abs=0.02)


def test_a_policy_is_evaluated_greedily_and_at_temperature_one(policy):
    prompts = list(islice(shuffled_prompts(0), 300))
    state = torch.get_rng_state()
    result = evaluate(*policy, prompts, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert result.prompts == prompts
    assert result.greedy == [["zinc"] * 16] * 300  # the most likely word, never ended
    firsts = [words[0] for words in result.sampled]
    for word, p in {"zinc": 0.5, "tin": 0.25, ".": 0.15, "<eos>": 0.1}.items():
        assert abs(firsts.count(word) - 300 * p) <= 4 * math.sqrt(300 * p * (1 - p)), word
    # A response ends at its end token, or is cut after 16 tokens without one.
    assert all("<eos>" not in words[:-1] for words in result.sampled)
    assert all(words[-1] == "<eos>" or len(words) == 16 for words in result.sampled)
    assert result.g1 == pytest.approx(sum(map(gold_reward, prompts, result.sampled)) / 300)


def test_evaluations_with_one_seed_are_equal_and_with_another_are_not(policy):
    prompts = list(islice(shuffled_prompts(0), 20))
    first = evaluate(*policy, prompts, seed=1)
    torch.manual_seed(99)
    assert evaluate(*policy, prompts, seed=1) == first
    assert evaluate(*policy, prompts, seed=2).sampled != first.sampled


def test_a_pair_is_two_responses_to_one_prompt(policy):
    prompts = list(islice(shuffled_prompts(0), 30))
    pairs = sample_pairs(*policy, prompts, seed=5)
    assert [pair.prompt for pair in pairs] == prompts
    twice = write_responses(*policy, [prompt for prompt in prompts for _ in range(2)], 1.0, seed=5)
    assert [words for pair in pairs for words in (pair.first, pair.second)] == twice
    assert sum(pair.first == pair.second for pair in pairs) < 10


@pytest.mark.parametrize("index", range(6))
@pytest.mark.parametrize("quantised", [False, True])
def test_label_and_margin_come_from_the_same_two_ratings(index, quantised):
    tau, draws = 2.0, random_for(0, "row", index)
    gold = {" zinc silver iron copper total 11 .": 10.0, " zinc silver iron total 11 .": 9.0}
    ratings = {text: r - tau * math.log(-math.log(1 - draws.random())) for text, r in gold.items()}
    if quantised:
        ratings = {text: quantise(rating) for text, rating in ratings.items()}
    row = SampledPair(PROMPT, PERFECT, SHORT).row(tau, quantised, random_for(0, "row", index))
    low, high = sorted(ratings, key=lambda text: ratings[text])
    if ratings[low] == ratings[high]:
        assert row is None
        return
    assert row == {
        "prompt": PROMPT.text,
        "chosen": high,
        "rejected": low,
        "margin": pytest.approx(ratings[high] - ratings[low]),
        "score_chosen": pytest.approx(ratings[high]),
        "score_rejected": pytest.approx(ratings[low]),
        "gold_chosen": gold[high],
        "gold_rejected": gold[low],
        "p_true": pytest.approx(1 / (1 + math.exp((gold[low] - gold[high]) / tau))),
    }


def test_the_better_response_is_chosen_as_often_as_its_true_probability_says():
    rows = [SampledPair(PROMPT, SHORT, PERFECT).row(1.0, False, random_for(1, "row", i)) for i in range(4000)]
    p = 1 / (1 + math.exp(-1.0))
    right = [row["p_true"] == pytest.approx(p) for row in rows]
    assert abs(sum(right) - 4000 * p) <= 4 * math.sqrt(4000 * p * (1 - p))
    assert all(row["margin"] > 0 for row in rows)


@pytest.mark.parametrize(
    "words",
    [PERFECT, PERFECT[:-1], EMPTY, ["zinc", "<pad>", "<eos>"]],
    ids=["equal", "unfinished", "empty", "special token"],
)
def test_a_pair_that_a_file_of_texts_cannot_hold_makes_no_row(words):
    assert SampledPair(PROMPT, PERFECT, words).row(1.0, False, random.Random(0)) is None
    assert SampledPair(PROMPT, words, PERFECT).row(1.0, False, random.Random(0)) is None
