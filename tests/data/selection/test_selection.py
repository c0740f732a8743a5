"""Choosing pairs: golden numbers, what does not change a choice, how many are kept, and what is refused."""

import inspect
import math
import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from conftest import ROOT

from lit_pref.commands.select import select
from lit_pref.data.selection import criteria
from lit_pref.data.selection.criteria import (
    AlignmentPotential,
    Certainty,
    ExplicitMargin,
    ImplicitMargin,
    PredictiveEntropy,
    Random,
    zscores,
)
from lit_pref.data.selection.selection import Logps, Pool, Selection
from lit_pref.errors import UsageError, UserError

# Five pairs: margins, sums of log-probs and lengths of both responses.
MARGINS = [4, 1, 0.5, 3, 2]
CHOSEN, REJECTED = [-30, -40, -12, -50, -24], [-45, -42, -14, -52, -30]
CHOSEN_TOKENS, REJECTED_TOKENS = [20, 25, 10, 40, 16], [25, 20, 10, 40, 15]
# Mean log-probs: -1.5/-1.8, -1.6/-2.1, -1.2/-1.4, -1.25/-1.3, -1.5/-2.0.
IMPLICIT = [0.3, 0.5, 0.2, 0.05, 0.5]
POTENTIAL = [1.5410046714093977, -1.948680426272502, -0.6184968269648035, 2.1939841986573785, -1.1678116168294717]
POTENTIAL_2_5 = [1.6270355716108578, -3.5832675301002546, 0.3278430752512642, 4.4307876038953555, -2.8023987206572243]


def logps(chosen: list[float], rejected: list[float], tokens: Any = ((10,), (10,))) -> Logps:
    sums = np.stack([chosen, rejected], axis=1).astype(float)
    return Logps(sums, np.broadcast_to(np.stack(tokens, axis=1), sums.shape))


def pool_of(margins: list[float], **known: Any) -> Pool:
    pairs = len(margins)
    return Pool(
        ids=[f"pair {k}" for k in range(pairs)],
        prompts=known.pop("prompts", np.array([f"prompt {k}" for k in range(pairs)], dtype=object)),
        places=np.array([f"pairs.jsonl, line {k + 1}" for k in range(pairs)], dtype=object),
        columns={"margin": np.array(margins, float)},
        lengths=known.pop("lengths", np.full((pairs, 2), 10)),
        **known,
    )


def turned(pool: Pool, order: list[int]) -> Pool:
    """The same pairs in another order of the file."""
    at = np.array(order)
    parts = {name: None if (p := getattr(pool, name)) is None else Logps(*(a[at] for a in p)) for name in SCORED}
    columns = {name: values[at] for name, values in pool.columns.items()}
    ids = [pool.ids[k] for k in order]
    return replace(
        pool,
        ids=ids,
        prompts=pool.prompts[at],
        places=pool.places[at],
        columns=columns,
        lengths=pool.lengths[at],
        **parts,
    )


SCORED = ("policy", "reference")
GOLDEN = pool_of(MARGINS, policy=logps(CHOSEN, REJECTED, (CHOSEN_TOKENS, REJECTED_TOKENS)))


def large(pairs: int = 200, seed: int = 0) -> Pool:
    rng = np.random.default_rng(seed)
    tokens = tuple(rng.integers(3, 60, pairs) for _ in range(2))
    says = [logps(*(-rng.gamma(4, 8, pairs) for _ in range(2)), tokens) for _ in SCORED]
    prompts = np.array([f"prompt {k}" for k in rng.integers(0, 20, pairs)], dtype=object)
    return pool_of(list(rng.integers(0, 7, pairs)), policy=says[0], reference=says[1], prompts=prompts)


CRITERIA = [cls for cls in vars(criteria).values() if isinstance(cls, type) and issubclass(cls, Selection)]
CRITERIA.remove(Selection)
MEMBERS: list[Selection] = [
    *(cls() for cls in CRITERIA),
    AlignmentPotential(weight=2.5, reference=True, signed=True),
    AlignmentPotential(normalise=False, beta=0.3),
]


@pytest.mark.parametrize("criterion", CRITERIA, ids=lambda cls: cls.__name__)
def test_a_criterion_is_named_in_the_readme_and_in_the_help_of_select(criterion: type[Selection]):
    assert criterion.__name__ in (ROOT / "README.md").read_text(encoding="utf-8")
    assert criterion.__name__ in (inspect.getdoc(select) or "")


# What is computed


def test_alignment_potential_is_that_of_the_authors_code():
    for weight, expected in ((1.0, POTENTIAL), (2.5, POTENTIAL_2_5)):
        choice = AlignmentPotential(weight=weight).choose(GOLDEN)
        assert choice.scores == pytest.approx(expected, rel=1e-13)
        assert choice.indices.tolist() == [0, 3] and choice.tied == 0
    z = zscores(np.array(MARGINS, float))
    expected = [1.4836507379417574, -0.8589556903873334, -1.2493900951088486, 0.7027819284987272, -0.0780868809443031]
    assert z == pytest.approx(expected, rel=1e-13)


def test_the_raw_form_is_margin_minus_beta_times_implicit_margin():
    choice = AlignmentPotential(normalise=False, beta=2.5).choose(GOLDEN)
    assert choice.scores == pytest.approx([3.25, -0.25, 0, 2.875, 0.75], abs=1e-14)
    assert choice.indices.tolist() == [0, 3]


def test_with_a_reference_the_implicit_margin_is_that_of_dpo():
    # h_w - h_l of five pairs with reference sums below: (-30+33)-(-45+46)=2, (-40+41)-(-42+44)=-1, 0, 1, -3.
    reference = logps([-33, -41, -12, -51, -26], [-46, -44, -14, -52, -35], (CHOSEN_TOKENS, REJECTED_TOKENS))
    pool = replace(GOLDEN, reference=reference)
    raw = {"normalise": False, "beta": 0.5, "reference": True}
    assert AlignmentPotential(**raw).scores(pool).tolist() == [3, 0.5, 0.5, 2.5, 0.5]
    assert AlignmentPotential(signed=True, **raw).scores(pool).tolist() == [3, 1.5, 0.5, 2.5, 3.5]
    assert Certainty(beta=0.1).scores(pool) == pytest.approx([0.2, 0.1, 0, 0.1, 0.3])
    assert ImplicitMargin(reference=True, signed=True).scores(pool).tolist() == [2, -1, 0, 1, -3]
    assert Certainty(keep=0.4).choose(pool).indices.tolist() == [0, 4]


def test_the_single_margins_are_the_authors_baselines():
    assert ImplicitMargin().scores(GOLDEN) == pytest.approx(IMPLICIT)
    # Two pairs have 0.5: both are left out of the 60 % that are least decided, and the smallest is 0.05.
    assert ImplicitMargin(keep=0.6).choose(GOLDEN).indices.tolist() == [0, 2, 3]
    top_of_minus_z = np.sort(np.argsort(-zscores(np.array(IMPLICIT)))[-3:])
    assert ImplicitMargin(keep=0.6).choose(GOLDEN).indices.tolist() == top_of_minus_z.tolist()
    assert ExplicitMargin(count=2).choose(GOLDEN).indices.tolist() == [0, 3]
    assert ExplicitMargin(count=2, which="bottom").choose(GOLDEN).indices.tolist() == [1, 2]


def test_entropy_is_minus_the_mean_log_prob_of_the_two_responses():
    pool = pool_of([1.0], policy=logps([-20], [-24], ((10,), (6,))))
    assert PredictiveEntropy().scores(pool).tolist() == [22]
    assert PredictiveEntropy(per_token=True).scores(pool).tolist() == [(2 + 4) / 2]


def test_another_column_can_be_the_margin_and_its_sign_can_count():
    pool = replace(GOLDEN, columns={**GOLDEN.columns, "gap": np.array([-5.0, 1, 2, 3, 4])})
    assert ExplicitMargin(margin_column="gap", count=1).choose(pool).indices.tolist() == [0]
    assert ExplicitMargin(margin_column="gap", signed=True, count=1).choose(pool).indices.tolist() == [4]
    potential = AlignmentPotential(margin_column="gap", weight=0)
    assert potential.scores(pool) == pytest.approx(zscores(np.array([5.0, 1, 2, 3, 4])))


# What does not change a choice


def test_the_scale_of_the_margins_changes_nothing_in_z_scores_and_something_in_the_raw_form():
    pool = large()
    rescaled = replace(pool, columns={"margin": 250 * pool.columns["margin"] + 3})
    before, after = AlignmentPotential().choose(pool), AlignmentPotential().choose(rescaled)
    assert after.scores == pytest.approx(before.scores, abs=1e-12)
    assert after.indices.tolist() == before.indices.tolist()
    raw = AlignmentPotential(normalise=False, beta=2.0)
    assert raw.choose(rescaled).indices.tolist() != raw.choose(pool).indices.tolist()


@pytest.mark.parametrize("selection", MEMBERS, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("per_prompt", [False, True])
def test_the_order_of_the_file_changes_neither_scores_nor_choice(selection: Selection, per_prompt: bool):
    selection.per_prompt = per_prompt
    pool = large()
    choice = selection.choose(pool)
    assert 0 < len(choice.indices) < 200
    for seed in range(3):
        order = random.Random(seed).sample(range(200), 200)
        again = selection.choose(turned(pool, order))
        assert again.scores.tolist() == choice.scores[order].tolist()  # to the last bit
        assert {order[k] for k in again.indices} == set(choice.indices)
        assert again.tied == choice.tied and again.indices.tolist() == sorted(again.indices)


def test_chance_takes_another_choice_for_another_seed_and_a_larger_one_contains_the_smaller():
    pool = large()
    small, more = (set(Random(count=count).choose(pool).indices) for count in (40, 80))
    assert small < more and small != set(Random(seed=1, count=40).choose(pool).indices)
    scores = Random().scores(large(2000))
    assert len(set(scores)) == 2000 and scores.min() >= 0 and scores.max() < 1
    # Uniform: the mean of 2000 lies within four standard errors of 1/2.
    assert abs(scores.mean() - 0.5) < 4 / math.sqrt(12 * 2000)


# How many


def test_a_share_is_rounded_down_as_in_the_authors_code_and_never_to_nothing():
    for pairs, keep in ((5, 0.4), (7, 0.4), (9, 0.99), (3, 0.01), (4, 1.0)):
        expected = max(1, int(keep * pairs))
        assert len(Random(keep=keep).choose(large(pairs)).indices) == expected
    assert len(AlignmentPotential().choose(large(11)).indices) == 4  # without a word: 0.4, theirs


def test_a_threshold_keeps_what_has_it():
    pool = pool_of([1, 2, 2, 3])
    assert ExplicitMargin(threshold=2).choose(pool).indices.tolist() == [1, 2, 3]
    assert ExplicitMargin(threshold=2, which="bottom").choose(pool).indices.tolist() == [0, 1, 2]
    with pytest.raises(UserError, match=r"keeps no pair: threshold is 4 and the scores range from 1 to 3; choose one"):
        ExplicitMargin(threshold=4).choose(pool)


def test_per_prompt_the_share_is_of_each_prompts_pairs():
    prompts = np.array(["a"] * 5 + ["b"] * 2 + ["c"], dtype=object)
    pool = pool_of([1, 2, 3, 4, 5, 9, 8, 0], prompts=prompts)
    assert ExplicitMargin(keep=0.4, per_prompt=True).choose(pool).indices.tolist() == [3, 4, 5, 7]
    assert ExplicitMargin(count=2, per_prompt=True).choose(pool).indices.tolist() == [3, 4, 5, 6, 7]
    assert ExplicitMargin(keep=0.4).choose(pool).indices.tolist() == [4, 5, 6]
    pool = large()
    chosen = PredictiveEntropy(keep=0.5, per_prompt=True, which="bottom").choose(pool)
    for prompt in set(pool.prompts):
        own = np.flatnonzero(pool.prompts == prompt)
        best = own[np.argsort(chosen.scores[own])][: max(1, len(own) // 2)]
        assert set(best) == set(own) & set(chosen.indices)


def test_ties_are_broken_by_chance_that_knows_only_the_ids_and_are_counted():
    pool = pool_of([6.0] * 300 + [1.0] * 100)
    choice = ExplicitMargin(keep=0.25).choose(pool)
    assert len(choice.indices) == 100 and choice.tied == 200 and choice.indices.max() < 300
    # Not the first of the file: of 100 out of 300 about a third are among its first 100 (standard deviation 3.9).
    assert 15 < (choice.indices < 100).sum() < 52
    assert ExplicitMargin(count=300).choose(pool).tied == 0


# What is warned of


def test_z_scores_without_a_reference_say_what_they_compare():
    scale, ordinary = AlignmentPotential(weight=2.0).notes(GOLDEN)
    # std of the margins sqrt(1.64) = 1.28, of the implicit margins sqrt(0.0304) = 0.174, over the weight.
    assert "1.28 of `margin` counts as much as 0.0872 nats per token of the policy's" in scale
    assert "must be on one scale" in scale and "mean log-probs" in ordinary
    with_reference = replace(GOLDEN, reference=logps([-30] * 5, [-30] * 5))
    assert len(AlignmentPotential(reference=True).notes(with_reference)) == 1
    assert AlignmentPotential(normalise=False, beta=1.0).notes(GOLDEN) == []


def test_what_is_the_same_in_every_pair_does_not_count_and_is_no_nan():
    for margins, policy in (([0.1] * 5, GOLDEN.policy), (MARGINS, logps([-3] * 5, [-4] * 5))):
        pool = pool_of(margins, policy=policy)
        scores = AlignmentPotential().scores(pool)
        alone = -zscores(np.array(IMPLICIT)) if margins == [0.1] * 5 else zscores(np.array(MARGINS, float))
        assert scores == pytest.approx(alone)
        (note,) = AlignmentPotential().notes(pool)
        assert "in every pair and does not affect the selection" in note


# What is refused


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Random(keep=0.4, count=3), "keep and count both decide how many pairs are kept"),
        (lambda: Random(keep=0.0), "keep is 0; it is a share, above 0 and at most 1"),
        (lambda: Random(keep=1.5), "keep is 1.5"),
        (lambda: Random(count=0), "count is 0; it must be at least 1"),
        (lambda: Random(threshold=math.nan), "threshold is nan"),
        (lambda: Random(threshold=1.0, per_prompt=True), "per_prompt counts pairs and threshold does not"),
        (lambda: Random(which="best"), "which is 'best'; it must be top or bottom"),
        (lambda: AlignmentPotential(beta=1.0), "z-scores .* have no beta"),
        (lambda: AlignmentPotential(normalise=False), "the raw form .* needs one above 0"),
        (lambda: AlignmentPotential(normalise=False, beta=-1.0), "needs one above 0"),
        (lambda: AlignmentPotential(normalise=False, beta=1.0, weight=2.0), "beta is the weight of the raw form"),
        (lambda: AlignmentPotential(weight=-1.0), "weight is -1; it must be at least 0"),
        (lambda: Certainty(beta=0.0), "beta is 0; it must be above 0"),
        (lambda: Certainty(reference=False), "Certainty compares with a reference"),
    ],
)
def test_arguments_that_cannot_be(make: Any, sentence: str):
    with pytest.raises(UsageError, match=sentence):
        make()


def test_a_missing_margin_and_a_score_that_is_no_number_are_named_by_their_place():
    pool = replace(GOLDEN, columns={"margin": np.array([1, 2, math.nan, 3, math.nan])})
    for selection in (ExplicitMargin(), AlignmentPotential()):
        with pytest.raises(UserError, match=r"pairs.jsonl, line 3: .* 2 of 5 pairs have no `margin`; add it"):
            selection.choose(pool)
    pool = replace(GOLDEN, policy=logps([-1, -1, -1, -math.inf, -1], [-2] * 5))
    with pytest.raises(UserError, match=r"pairs.jsonl, line 4: the score of this pair by PredictiveEntropy is inf"):
        PredictiveEntropy().choose(pool)

    class Ratio(Selection):
        def scores(self, pool: Pool) -> np.ndarray:
            return np.array([1.0, math.inf, 1.0, 1.0, 1.0])

    with pytest.raises(UserError, match=r"line 2: the score of this pair by Ratio is inf; look at its numbers$"):
        Ratio().choose(GOLDEN)


def test_more_pairs_than_there_are():
    with pytest.raises(UserError, match="count is 6, but there are only 5 pairs; lower it"):
        Random(count=6).choose(GOLDEN)


def test_a_selection_of_ones_own_says_what_it_is():
    class Shortest(Selection):
        def __init__(self, side: int = 0, **common: Any) -> None:
            super().__init__(**common)
            self.side = side

        def scores(self, pool: Pool) -> np.ndarray:
            return -pool.lengths[:, self.side]

    pool = replace(GOLDEN, lengths=np.stack([CHOSEN_TOKENS, REJECTED_TOKENS], axis=1))
    assert Shortest(count=1).choose(pool).indices.tolist() == [2]
    assert repr(Shortest(side=1, count=1)) == "Shortest(side=1, count=1, which='top', per_prompt=False)"
    assert repr(Random(keep=0.5)) == "Random(seed=0, keep=0.5, which='top', per_prompt=False)"
