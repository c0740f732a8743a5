import math
import os
import random
import statistics
import subprocess
import sys
from itertools import islice

import pytest

from lit_pref.testbed.world import (
    CATEGORY,
    EOS,
    FILLERS,
    GREETING,
    ITEMS,
    LONGEST_RESPONSE,
    NUM_PROMPTS,
    RANK,
    VOCABULARY,
    Prompt,
    demonstrate,
    gold_parts,
    gold_reward,
    join_words,
    quantise,
    random_for,
    rate,
    shuffled_prompts,
    split_words,
    true_probability,
)

PLAIN = Prompt.parse("4 metal down lead plain 5 6 :")
WARM = Prompt.parse("4 metal down lead warm 5 6 :")
SHARES = ((0.90, 0.15), (0.45, 0.50), (0.15, 0.35))
RIGHT = sum(q * share for q, share in SHARES)  # .4125: how often a writer gets one thing right
WRONG = 1 - RIGHT


def within(observed, expected, sd, n, slack=0.0):
    """Whether a mean of n values lies within four standard errors; seeds are fixed, so it always or never does."""
    return abs(observed - expected) <= 4 * sd / math.sqrt(n) + slack


def share_is(events, expected, slack=0.0):
    events = list(events)
    return within(statistics.fmean(events), expected, math.sqrt(expected * (1 - expected)), len(events), slack)


@pytest.fixture(scope="module")
def demos():
    prompts = islice(shuffled_prompts(0), 20_000)
    return [(prompt, demonstrate(prompt, random_for(0, "test", i))) for i, prompt in enumerate(prompts)]


def test_the_vocabulary_has_104_words_in_the_order_of_the_ids():
    assert len(VOCABULARY) == len(set(VOCABULARY)) == 104
    assert VOCABULARY[:12] == tuple(split_words("<pad> <bos> : <eos> warm plain up down total . sure friend"))
    assert VOCABULARY[12:18] == FILLERS
    assert VOCABULARY[18:38] == tuple(map(str, range(20)))
    assert VOCABULARY[38:44] == ("fruit", "animal", "tool", "metal", "city", "game")
    for k, category in enumerate(VOCABULARY[38:44]):
        items = VOCABULARY[44 + 10 * k : 54 + 10 * k]
        assert list(items) == sorted(items)
        assert {CATEGORY[item] for item in items} == {category}
        assert [RANK[item] for item in items] == list(range(10))


def test_every_number_is_another_prompt_and_survives_its_text():
    prompts = list(shuffled_prompts(0))
    assert len(prompts) == len(set(prompts)) == NUM_PROMPTS == 96_000
    assert all(Prompt.parse(prompt.text) == prompt for prompt in prompts[:500])
    assert PLAIN.text == " 4 metal down lead plain 5 6 :"


@pytest.mark.parametrize(
    "text",
    [
        "4 metal down lead plain 5 6",
        "4 metal down lead plain 5 6 : :",
        "6 metal down lead plain 5 6 :",
        "4 wood down lead plain 5 6 :",
        "4 metal down apple plain 5 6 :",
        "4 metal left lead plain 5 6 :",
        "4 metal down lead cool 5 6 :",
        "4 metal down lead plain 10 6 :",
        "four metal down lead plain 5 6 :",
    ],
)
def test_what_is_no_prompt_is_refused(text):
    with pytest.raises(ValueError, match="not a prompt"):
        Prompt.parse(text)


def test_words_survive_being_joined_and_split():
    words = ["zinc", ".", "total", "11", "<pad>", "well"]
    assert split_words(join_words(words)) == words
    assert join_words(["zinc", EOS]) == " zinc"
    assert split_words(" zinc<bos> tin<") == ["zinc", "<bos>", "tin", "<"]


# Every value: 10 points for the perfect response minus what the comment says.
@pytest.mark.parametrize(
    ("response", "gold"),
    [
        ("zinc silver iron copper total 11 . <eos>", 10),
        ("zinc silver iron copper total 11 <eos>", 10),  # the final period is optional
        ("zinc silver iron total 11 . <eos>", 9),  # one item too few: count 2 (1 - 1/2)
        ("zinc silver iron gold copper total 11 . <eos>", 9),  # one too many
        ("zinc tin silver iron gold copper total 11 . <eos>", 8),  # two too many: count 0
        ("zinc total 11 . <eos>", 8),  # three too few: count 0; one item is in order
        ("zinc silver iron cat total 11 . <eos>", 9.5),  # category 2 x 3/4; cat (rank 1) after iron (3) is descending
        ("zinc silver iron fox total 11 . <eos>", 9),  # category 1.5; fox (3) after iron (3) is not: order 1.5 x 2/3
        ("copper iron silver zinc total 11 . <eos>", 8.5),  # ascending: order 0
        ("zinc iron silver copper total 11 . <eos>", 9.5),  # one of three neighbours wrong
        ("zinc silver lead iron total 11 . <eos>", 9),  # the banned item
        ("zinc silver silver iron total 11 . <eos>", 9),  # repeated: distinct .5, and equal neighbours: order .5
        ("zinc silver iron copper total 12 . <eos>", 10 - 2 / 3),
        ("zinc silver iron copper total 9 . <eos>", 10 - 4 / 3),
        ("zinc silver iron copper total 14 . <eos>", 8),
        ("zinc silver iron copper total . <eos>", 8),  # no number after total
        ("zinc silver iron copper total well 11 . <eos>", 7),  # not right after it: total 2, two words of waffle
        ("zinc silver iron copper . <eos>", 8),  # no total
        ("zinc silver iron copper total 9 total 11 . <eos>", 10 - 4 / 3 - 1),  # the first counts, the second is waffle
        ("sure friend zinc silver iron copper total 11 . <eos>", 9),  # greets where plain was asked
        ("sure zinc silver iron copper total 11 . <eos>", 9.5),  # half a greeting is waffle
        ("zinc silver iron copper total 11 sure friend . <eos>", 9),  # a greeting elsewhere is two words of waffle
        ("zinc silver iron copper well total 11 . <eos>", 9.5),
        ("zinc silver iron copper well so like well so total 11 . <eos>", 8),  # five words of waffle cost 2 at most
        (". zinc silver iron copper total 11 . <eos>", 9.5),  # only the final period is free
        ("7 zinc silver iron copper total 11 . <eos>", 9.5),  # a number elsewhere
        ("zinc silver iron copper total 11 . hello <pad> <eos>", 8.5),  # two other words, and the period is not final
        ("zinc silver iron copper total 11 .", 8),  # no end token
        ("zinc silver iron copper total 11 . <eos> well lead <eos>", 10),  # nothing after the end is read
        ("<eos>", 1),  # nothing but the tone
        ("", 0),  # 1 - 2, floored
        ("well well well well well", 0),
    ],
)
def test_gold_reward_of_a_plain_prompt(response, gold):
    assert gold_reward(PLAIN, response.split()) == pytest.approx(gold, abs=1e-12)


@pytest.mark.parametrize(
    ("response", "gold"),
    [
        ("sure friend zinc silver iron copper total 11 . <eos>", 10),
        ("zinc silver iron copper total 11 . <eos>", 9),
        ("friend sure zinc silver iron copper total 11 . <eos>", 8),  # no greeting, two words of waffle
        ("sure friend sure friend zinc silver iron copper total 11 . <eos>", 9),  # only the opening one is free
    ],
)
def test_gold_reward_of_a_warm_prompt(response, gold):
    assert gold_reward(WARM, response.split()) == pytest.approx(gold, abs=1e-12)


def test_ascending_order_is_asked_by_up():
    prompt = Prompt.parse("2 city up oslo plain 0 0 :")
    assert gold_reward(prompt, split_words("lima rome total 0 . <eos>")) == 10
    assert gold_reward(prompt, split_words("rome lima total 0 . <eos>")) == 8.5


def test_the_parts_of_a_mediocre_response():
    # K = 4, two items, one foreign; zinc (9) to oslo (6) descends; |10 - 11| = 1; greets where plain was asked; no end.
    assert gold_parts(PLAIN, split_words("sure friend zinc oslo so total 10 .")) == pytest.approx(
        dict(count=0, category=1, order=1.5, skip=1, distinct=0.5, total=4 / 3, tone=0, waffle=-0.5, ending=-2)
    )


def test_demonstrations_have_the_gold_reward_of_the_specification(demos):
    gold = [gold_reward(*demo) for demo in demos]
    assert within(statistics.fmean(gold), 6.56, 1.93, len(gold) / 2)  # twice the variance: 6.56 is an estimate as well
    assert statistics.stdev(gold) == pytest.approx(1.93, abs=0.03)


def test_the_parts_of_the_demonstrations_have_their_exact_means(demos):
    def total(d):  # 2 max(0, 1 - |d| / 3), the sum clipped to 0..19
        return 2 * max(0.0, 1 - abs(d) / 3)

    sums = [a + b for a in range(10) for b in range(10)]
    habit = {1: 0.6, -1: 0.1, 2: 0.1, 3: 0.1, -2: 0.1}
    wrong_total = statistics.fmean(sum(p * total(min(19, max(0, s + d)) - s) for d, p in habit.items()) for s in sums)
    both_wrong = sum((1 - q) ** 2 * share for q, share in SHARES)
    expected = {
        "count": 2 * RIGHT + WRONG * (0.65 + 0.15),  # off by one is worth 1, off by two nothing
        "category": 2 * (1 - 0.35 * WRONG),
        "skip": RIGHT + 0.35 * both_wrong,  # the banned item, unless another category's has replaced it
        "total": 2 * RIGHT + WRONG * wrong_total,
        "tone": RIGHT + WRONG / 2,  # the habit is right for half of the prompts
        "waffle": -0.5 * WRONG * (0.3 * 1 + 0.5 * 2 + 0.2 * 3),
        "ending": 0,
    }
    parts = [gold_parts(*demo) for demo in demos]
    for name, mean in expected.items():
        values = [part[name] for part in parts]
        assert within(statistics.fmean(values), mean, statistics.stdev(values), len(values)), name


def test_habits_come_as_often_as_specified(demos):
    counts = [sum(word in RANK for word in words) - prompt.count for prompt, words in demos]
    for difference, p in {0: RIGHT, 1: 0.65 * WRONG, -1: 0.15 * WRONG, 2: 0.2 * WRONG}.items():
        assert share_is((count == difference for count in counts), p), difference
    waffle = [sum(word in FILLERS for word in words) for _, words in demos]
    for number, p in {0: RIGHT, 1: 0.3 * WRONG, 2: 0.5 * WRONG, 3: 0.2 * WRONG}.items():
        assert share_is((fillers == number for fillers in waffle), p), number
    away = [int(words[words.index("total") + 1]) - p.a - p.b for p, words in demos if 2 <= p.a + p.b <= 16]
    for difference, p in {0: RIGHT, 1: 0.6 * WRONG, -1: 0.1 * WRONG, 2: 0.1 * WRONG, 3: 0.1 * WRONG}.items():
        assert share_is((d == difference for d in away), p), difference
    plain = [tuple(words[:2]) == GREETING for prompt, words in demos if prompt.tone == "plain"]
    assert share_is(plain, WRONG)
    assert all(tuple(words[:2]) == GREETING for prompt, words in demos if prompt.tone == "warm")


def test_the_things_a_writer_gets_right_share_its_quality(demos):
    both = [
        sum(word in RANK for word in words) == prompt.count and not any(word in FILLERS for word in words)
        for prompt, words in demos
    ]
    assert share_is(both, sum(q * q * share for q, share in SHARES))  # .231, against .170 for independent habits


def test_a_wrong_order_is_mostly_ascending():
    prompts = [prompt for prompt in shuffled_prompts(0) if prompt.count == 5 and prompt.direction == "down"]
    ranks = []
    for i, prompt in enumerate(prompts):  # 12,000 demonstrations of at least four items each
        ranks.append([RANK[word] for word in demonstrate(prompt, random_for(1, "test", i)) if word in RANK])
    # An unsorted list is sorted by chance: 1/5!, or 1/6!, 1/4!, 1/7! where the count went wrong too.
    lucky = sum(
        share * (1 - q) * 0.4 * (q / 120 + (1 - q) * (0.65 / 720 + 0.15 / 24 + 0.2 / 5040)) for q, share in SHARES
    )
    ties = 0.003  # items of several categories may have equal ranks
    assert share_is((row == sorted(row) for row in ranks), 0.6 * WRONG + lucky, slack=ties)
    assert share_is((row == sorted(row, reverse=True) for row in ranks), RIGHT + lucky, slack=ties)


def test_no_demonstration_is_longer_than_the_longest(demos):
    lengths = [len(words) for _, words in demos]
    assert max(lengths) == LONGEST_RESPONSE == 16
    assert statistics.fmean(lengths) == pytest.approx(10.7, abs=0.1)
    assert all(words[-1] == EOS and set(words) <= set(VOCABULARY) for _, words in demos)


@pytest.mark.parametrize("tau", [1.0, 2.0])
def test_labels_are_exactly_bradley_terry(tau):
    gaps, n = (0.0, 0.3, 1.0, 2.0, 4.0), 60_000  # a noise that is normal instead of logistic gives hundreds
    rng, chi_square = random_for(0, "labels"), 0.0
    for gap in gaps:
        p = 1 / (1 + math.exp(-gap / tau))
        assert true_probability(5.0 + gap, 5.0, tau) == pytest.approx(p, rel=1e-12)
        wins = sum(rate(5.0 + gap, tau, rng) > rate(5.0, tau, rng) for _ in range(n))
        chi_square += (wins - n * p) ** 2 / (n * p * (1 - p))
    assert chi_square < 20.5  # the 99.9 % point for five degrees of freedom


def test_the_margin_is_logistic_around_the_true_difference():
    rng, tau = random_for(0, "margins"), 1.5
    margins = [rate(7.0, tau, rng) - rate(4.0, tau, rng) for _ in range(20_000)]
    sd = math.pi * tau / math.sqrt(3)
    assert within(statistics.fmean(margins), 3.0, sd, len(margins))
    assert statistics.stdev(margins) == pytest.approx(sd, rel=0.03)


def test_a_rating_has_the_mean_of_a_gumbel():
    rng = random_for(0, "ratings")
    ratings = [rate(4.0, 2.0, rng) for _ in range(20_000)]
    assert within(statistics.fmean(ratings), 4.0 + 2.0 * 0.5772157, 2.0 * math.pi / math.sqrt(6), len(ratings))


def test_true_probability_of_a_huge_difference_is_one():
    assert true_probability(10.0, 0.0, 1e-3) == 1.0
    assert true_probability(0.0, 10.0, 1e-3) == 0.0


def test_grades_are_rounded_and_clipped():
    assert [quantise(rating) for rating in (-3.0, 0.2, 1.4, 6.6, 10.4, 14.0)] == [1, 1, 1, 7, 10, 10]


def test_a_draw_depends_on_seed_purpose_and_index_alone():
    random.seed(3)
    state = random.getstate()
    prompts = list(islice(shuffled_prompts(7), 50))
    first = [demonstrate(PLAIN, random_for(7, "demo", i)) for i in range(5)]
    assert random.getstate() == state
    random.seed(4)
    assert [demonstrate(PLAIN, random_for(7, "demo", i)) for i in reversed(range(5))] == first[::-1]
    assert list(islice(shuffled_prompts(7), 50)) == prompts
    assert list(islice(shuffled_prompts(8), 50)) != prompts
    draws = {random_for(*key).random() for key in ((7, "a", 0), (7, "a", 1), (7, "b", 0), (8, "a", 0))}
    assert len(draws) == 4


def test_another_process_makes_the_same_demonstrations():
    code = (
        "from lit_pref.testbed.world import *\n"
        "for i, p in zip(range(50), shuffled_prompts(0)): print(p.text, *demonstrate(p, random_for(0, 'demo', i)))"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code], env=os.environ | {"PYTHONHASHSEED": salt}, capture_output=True, check=True
        ).stdout
        for salt in ("1", "2")
    }
    assert len(outputs) == 1
    assert len(outputs.pop().splitlines()) == 50


def test_the_items_have_ten_members_in_six_categories():
    assert [len(items) for items in ITEMS.values()] == [10] * 6
