"""From scores, signed numbers, probabilities and labels to margins: by hand-computed values."""

import math

import pytest

from lit_pref.data.checking.row_reader import RowReader
from lit_pref.data.formats.convert import Conversion
from lit_pref.data.formats.load import mapping_of
from lit_pref.data.sources.row import BadRow, Row

AB = {"kind": "ab", "prompt": "q", "a": "x", "b": "y"}
TEXTS = {"q": "2+2=", "x": "4", "y": "5"}
SCORES = {"score": {"a": "sx", "b": "sy"}}


def canonical(values, file="some.jsonl", **mapping):
    row = Row(file, 3, TEXTS | values)
    (found,) = Conversion(mapping_of(AB | mapping, lambda: [row])).canonical_rows([row])
    return found


def pair(values, **mapping):
    found = canonical(values, **mapping)
    if isinstance(found, BadRow):
        raise found
    return RowReader().read(found)


def test_the_golden_rows_of_the_published_layouts():
    # HelpSteer3: -2 prefers the first response. SHP: 12 and 40 prefer B by 28, or by log(40/12).
    helpsteer = pair({"s": -2}, kind="ab_signed", signed={"column": "s", "positive_means": "b"})
    assert (helpsteer.chosen, helpsteer.margin) == ("4", 2.0)
    shp = {"sx": 12, "sy": 40}
    by_gap, by_ratio = (pair(shp, **SCORES, margin={"transform": how}) for how in ("diff", "log_ratio"))
    assert (by_gap.chosen, by_gap.margin, by_ratio.chosen) == ("5", 28.0, "5")
    assert by_ratio.margin == pytest.approx(1.2039728043259361, abs=1e-14)
    assert 1 / (1 + math.exp(-1.1 * by_ratio.margin)) == pytest.approx(0.7899078559184375, abs=1e-14)
    assert 1 / (1 + math.exp(-1.1 * by_gap.margin)) == pytest.approx(0.999999999999958, abs=1e-15)


@pytest.mark.parametrize(
    "margin, scores, expected",
    [
        ({}, (7, 4.5), 2.5),
        ({"transform": "diff", "scale": 2}, (1, 4), -6.0),
        ({"transform": "rank_gap"}, (1, 4), 3.0),
        ({"transform": "rank_gap"}, (2, 0), -2.0),
        ({"transform": "const"}, (7, 4.5), 1.0),
        ({"transform": "const", "scale": 3}, (1, 2), -3.0),
        ({"transform": "const"}, (2, 2), 0.0),
        ({"transform": "log_ratio"}, (8, 2), math.log(4)),
    ],
)
def test_transforms_of_scores_are_of_the_first_text_less_the_second(margin, scores, expected):
    found = canonical({"sx": scores[0], "sy": scores[1]}, **SCORES, margin=margin)
    assert found.values["margin"] == pytest.approx(expected, abs=1e-15)
    assert (found.values["score_chosen"], found.values["score_rejected"]) == scores


@pytest.mark.parametrize("sx, margin, clipped", [(9, 4.0, True), (2, -4.0, True), (5, 0.0, False), (7, 4.0, False)])
def test_a_margin_is_cut_to_the_clip_after_scaling_and_says_so(sx, margin, clipped):
    found = canonical({"sx": sx, "sy": 5}, **SCORES, margin={"scale": 2, "clip": 4})
    assert (found.values["margin"], found.clipped) == (margin, clipped)
    assert RowReader().read(found).clipped is clipped


def test_smaller_scores_may_be_the_better_ones():
    assert pair({"sx": 1, "sy": 4}, score={**SCORES["score"], "order": "asc"}).chosen == "4"


@pytest.mark.parametrize("of, value, p", [("a", 0.75, 0.75), ("b", 0.75, 0.25), ("b", 1.0, 0.0)])
def test_a_probability_is_of_the_text_that_the_mapping_says_and_turns_with_it(of, value, p):
    found = canonical({"p": value}, probability={"column": "p", "of": of})
    assert found.values["probability"] == p and "margin" not in found.values
    turned = RowReader().read(found)
    assert (turned.probability, turned.chosen) == ((p, "4") if p > 0.5 else (1 - p, "5"))


def test_a_probability_may_be_written_in_another_range():
    alpaca = {"column": "p", "of": "b", "range": [1, 2]}
    assert [canonical({"p": p}, probability=alpaca).values["probability"] for p in (1, 1.5, 1.75)] == [1.0, 0.5, 0.25]
    with pytest.raises(BadRow, match=r"line 3: p is not between 1 and 2 \(0.5\); fix it, or give its smallest"):
        pair({"p": 0.5}, probability=alpaca)


def test_log_odds_of_a_certain_judge_need_a_clip():
    certain = {"probability": {"column": "p", "of": "a"}, "margin": {"transform": "probability"}}
    assert canonical({"p": 0.75}, **certain).values["margin"] == pytest.approx(math.log(3), abs=1e-15)
    with pytest.raises(BadRow, match=r"p is certain, and its log-odds are infinite; set the mapping's margin.clip, to"):
        pair({"p": 1.0}, **certain)
    certain["margin"] = {"transform": "probability", "clip": 6, "scale": 0.5}
    cut = [canonical({"p": p}, **certain) for p in (1, 0, 0.5)]
    assert [(row.values["margin"], row.clipped) for row in cut] == [(6.0, True), (-6.0, True), (0.0, False)]


LABEL = {"column": "l", "a": ["A", "first"], "b": "B"}


def test_a_label_alone_turns_the_pair_and_gives_no_strength():
    pairs = [pair({"l": label}, label=LABEL) for label in ("first", "B")]
    assert [(p.chosen, p.margin, p.probability, p.chosen_first) for p in pairs] == [
        ("4", None, None, True),
        ("5", None, None, False),
    ]
    assert not any(p.swapped or p.disagrees or p.tie for p in pairs)


def test_a_label_that_knows_ties_gives_the_probabilities_one_zero_and_one_half():
    label = LABEL | {"tie": ["tie", None]}
    assert [canonical({"l": v}, label=label).values["probability"] for v in ("A", "B", "tie", None)] == [1, 0, 0.5, 0.5]
    assert pair({"l": "tie"}, label=label).tie


def test_a_label_with_a_constant_margin_turns_its_sign():
    const = {"label": LABEL | {"tie": "tie"}, "margin": {"transform": "const"}}
    assert [canonical({"l": v}, **const).values["margin"] for v in ("A", "B", "tie")] == [1.0, -1.0, 0.0]


def test_a_constant_margin_takes_the_sign_of_whatever_tells_which_text_is_better():
    const = {"margin": {"transform": "const", "scale": 2}}
    by_p = [
        canonical({"p": p}, probability={"column": "p", "of": "b"}, **const).values["margin"] for p in (0.1, 0.5, 0.9)
    ]
    signed = {"kind": "ab_signed", "signed": {"column": "s", "positive_means": "b"}}
    by_sign = [canonical({"s": s}, **signed, **const).values["margin"] for s in (-3, 0, 2)]
    assert by_p == by_sign == [2.0, 0.0, -2.0]


def test_a_strength_without_a_sign_takes_that_of_the_label():
    signed = {"label": LABEL, "signed": {"column": "s", "positive_means": "label"}}
    assert [canonical({"l": v, "s": 5}, **signed).values["margin"] for v in ("A", "B")] == [5.0, -5.0]
    with pytest.raises(BadRow, match=r"s is negative \(-5\); the label says who wins"):
        pair({"l": "A", "s": -5}, **signed)


@pytest.mark.parametrize(
    "label, scores, disagrees", [("A", (1, 2), True), ("B", (1, 2), False), ("A", (2, 2), False), ("B", (2, 1), True)]
)
def test_a_label_beside_scores_only_tells_whether_they_disagree(label, scores, disagrees):
    found = pair({"l": label, "sx": scores[0], "sy": scores[1]}, **SCORES, label=LABEL)
    assert found.disagrees is disagrees
    assert found.chosen == ("5" if scores[1] > scores[0] else "4")


def test_scores_that_a_mapping_turned_into_a_margin_of_another_scale_do_not_disagree_with_it():
    assert not pair({"sx": 100, "sy": 10}, **SCORES, margin={"transform": "log_ratio"}).disagrees


@pytest.mark.parametrize(
    "values, mapping, sentence",
    [
        (
            {"sx": 0, "sy": 2},
            {"margin": {"transform": "log_ratio"}},
            r"sx is not above 0 \(0\); give a score with a log",
        ),
        ({"sx": 3, "sy": -2}, {"margin": {"transform": "log_ratio"}}, r"sy is not above 0 \(-2\)"),
        ({"sx": None, "sy": 2}, {}, r"sx is not a finite number \(null\); give it a number"),
        ({"sx": 1, "sy": "2"}, {}, r"sy is not a finite number \('2'\)"),
        ({"sx": True, "sy": 2}, {}, r"sx is not a finite number \(True\)"),
        ({"sx": 10**400, "sy": 2}, {}, r"sx is not a finite number \(1000"),
        ({"sx": float("nan"), "sy": 2}, {}, r"sx is not a finite number \(nan\)"),
        ({"sx": 1e300, "sy": 2}, {}, r"sx is too large for single precision \(1e\+300\)"),
        ({"sx": 3e38, "sy": -3e38}, {}, "sx gives a margin that is not finite in single precision; set the mapping's"),
        ({"sx": 3, "sy": 1}, {"margin": {"scale": 1e39}}, "sx gives a margin that is not finite in single precision"),
        (
            {"sx": 1, "sy": 2, "l": "C"},
            {"label": LABEL},
            r"l is not one of the labels 'A', 'first', 'B' \('C'\); give its",
        ),
        ({"sx": 1, "sy": 2, "l": ["A"]}, {"label": LABEL}, r"l is not one of the labels .* \(\['A'\]\)"),
        ({"sx": 1, "sy": 2, "l": True}, {"label": {"column": "l", "a": 1, "b": 0}}, r"l is not one of the labels 1, 0"),
    ],
)
def test_strength_that_is_no_number_is_refused_by_its_own_name(values, mapping, sentence):
    with pytest.raises(BadRow, match=rf"^some.jsonl, line 3: {sentence}"):
        pair(values, **SCORES, **mapping)


def test_a_table_of_texts_writes_its_numbers_and_labels_out():
    row = canonical({"sx": "1.5", "sy": " 4", "l": "0"}, "some.csv", **SCORES, label={"column": "l", "a": 1, "b": 0})
    assert (row.values["margin"], row.prefers) == (-2.5, "rejected")
    for faulty in ("1_0", "nan", "", "four"):
        assert isinstance(canonical({"sx": faulty, "sy": "4"}, "some.csv", **SCORES), BadRow)
