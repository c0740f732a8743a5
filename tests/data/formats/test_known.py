"""Every format shipped with the package, on rows of that format: its recognition and the resulting pairs."""

import math
import re
import tomllib
from pathlib import Path

import pytest

from lit_pref.data.checking.row_reader import RowReader
from lit_pref.data.formats.convert import Conversion
from lit_pref.data.formats.field_path import ValuePath
from lit_pref.data.formats.known import recognise, shipped
from lit_pref.data.formats.load import mapping_of
from lit_pref.data.sources.row import BadRow, LeftOut, Row
from lit_pref.errors import UserError

USER = {"role": "user", "content": "2+2="}
FOUR, FIVE, SIX = ({"role": "assistant", "content": text} for text in (" 4", "5", "6"))
ASKED = [USER]
CHAT = {"chosen": [USER, FOUR], "rejected": [USER, FIVE]}
AB = {"response_0": "5", "response_1": " 4"}


def rows_of(*values, file="some.jsonl"):
    return [Row(file, line, row) for line, row in enumerate(values, start=1)]


def read(values, given=None):
    """The canonical rows and pairs of rows with these values, and what was left out."""
    rows = rows_of(*values)
    canonical = list(Conversion(mapping_of(given, lambda: rows)).canonical_rows(rows))
    reader = RowReader()
    good = [row for row in canonical if isinstance(row, Row)]
    return good, [reader.read(row) for row in good], [row for row in canonical if isinstance(row, BadRow)]


def part(text):
    return [{"type": "text", "value": text}]


ONE_PAIR = {
    "pandalm": (
        {
            "idx": 7,
            "cmp_key": "a_b",
            "instruction": "2+2=",
            "input": float("nan"),
            "response1": "5",
            "response2": " 4",
            **{f"annotator{k}": vote for k, vote in ((1, 2), (2, 0), (3, 2))},
        },
        "2+2=",
        math.log(3),  # 2.5 votes and half a one more of 4: 0.75
        0.75,
    ),
    "pairs": ({"prompt": "2+2=", "chosen": "5", "rejected": " 4", "margin": -1.5}, "2+2=", 1.5, None),
    "lists": ({"prompt": "2+2=", "responses": ["6", " 4", "5"], "scores": [3, 4.5, 1]}, "2+2=", 3.5, None),
    "implicit": (CHAT | {"margin": 0.25}, ASKED, 0.25, None),
    "ultrafeedback_binarized": (
        {
            "prompt": "2+2=",
            "prompt_id": "x",
            **CHAT,
            "messages": [USER, FOUR],
            "score_chosen": 8.5,
            "score_rejected": 6,
        },
        ASKED,
        2.5,
        None,
    ),
    "ultrafeedback": (
        {
            "instruction": "2+2=",
            "completions": [
                {"model": "m1", "response": "6", "overall_score": 4.0},
                {"model": "m2", "response": "5", "overall_score": 1.5},
                {"model": "m3", "response": " 4", "overall_score": 9.0},
            ],
        },
        "2+2=",
        7.5,
        None,
    ),
    "armorm": (
        {
            "prompt": "2+2=",
            "chosen": [USER, FOUR],
            "rejected": [USER, FIVE],
            "all_generated_responses": ["6", "5", " 4"],
            "all_rm_scores": [0.125, 0.0625, 0.25],
        },
        ASKED,
        0.1875,
        None,
    ),
    "argilla_ratings": (
        {"prompt": "2+2=", **CHAT, "chosen-rating": 4.75, "rejected-rating": 3.5},
        ASKED,
        1.25,
        None,
    ),
    "argilla_early": (
        {
            "instruction": "2+2=",
            "chosen_response": " 4",
            "rejected_response": "5",
            "chosen_avg_rating": 5,
            "rejected_avg_rating": 2.75,
        },
        "2+2=",
        2.25,
        None,
    ),
    "capybara": (CHAT | {"rating_chosen": 5, "rating_rejected": 4}, ASKED, 1.0, None),
    "orca": ({"system": "", "question": "2+2=", "chosen": " 4", "rejected": "5"}, ASKED, None, None),
    "argilla_orca": (
        {
            "system": "Count.",
            "input": "2+2=",
            "chosen": "5",
            "rejected": " 4",
            "generations": ["5", " 4"],
            "rating": [7.0, 9.0],
            "chosen_score": 9.0,
            "status": "swapped",
        },
        [{"role": "system", "content": "Count."}, USER],
        2.0,
        None,
    ),
    "argilla_distilabel": (
        {"instruction": "2+2=", "generations": ["5", " 4"], "ratings": [1, 4], "chosen_rating": 4},
        "2+2=",
        3.0,
        None,
    ),
    "shp": (
        {
            "history": "2+2=",
            "human_ref_A": "5",
            "human_ref_B": " 4",
            "score_A": 12,
            "score_B": 40,
            "labels": 0,
            "score_ratio": 3.33,
        },
        "2+2=",
        1.2039728043259361,  # log(40 / 12)
        None,
    ),
    "helpsteer2_preference": (
        {"prompt": "2+2=", "response_1": " 4", "response_2": "5", "preference_strength": -3},
        "2+2=",
        3.0,
        None,
    ),
    "helpsteer3": (
        {"context": ASKED, "response1": " 4", "response2": "5", "overall_preference": -2, "domain": "general"},
        ASKED,
        2.0,
        None,
    ),
    "nectar": (
        {
            "prompt": "\n\nHuman: 2+2=\n\nAssistant: ",
            "answers": [
                {"answer": "6", "model": "m1", "rank": 2.0},
                {"answer": "5", "model": "m2", "rank": 7.0},
                {"answer": " 4", "model": "m3", "rank": 1.0},
            ],
        },
        ASKED,
        6.0,
        None,
    ),
    "safe_rlhf": ({"prompt": "2+2=", **AB, "better_response_id": 1}, "2+2=", None, None),
    "safe_rlhf_safety": (
        {
            "prompt": "2+2=",
            **AB,
            "safer_response_id": 1,
            "response_0_severity_level": 3,
            "response_1_severity_level": 1,
        },
        "2+2=",
        2.0,
        None,
    ),
    "hh": (
        {
            "chosen": "\n\nHuman: 2+2=\n\nAssistant:  4",
            "rejected": "\n\nHuman: 2+2=\n\nAssistant: 5",
        },
        ASKED,
        None,
        None,
    ),
    "alpaca_eval": (
        {"instruction": "2+2=", "output_1": "5", "output_2": " 4", "generator_1": "g", "preference": 1.75},
        "2+2=",
        math.log(3),  # log(0.75 / 0.25)
        0.75,
    ),
    "summarize": (
        {
            "info": {"id": "x", "post": "2+2=", "title": None},
            "summaries": [{"text": "5", "policy": "sup"}, {"text": " 4", "policy": "ppo"}],
            "choice": 1,
            "extra": {"confidence": 7},
        },
        "2+2=",
        7.0,
        None,
    ),
    "webgpt": (
        {
            "question": {"full_text": "2+2=", "id": "x"},
            "answer_0": "5",
            "answer_1": " 4",
            "score_0": -0.25,
            "score_1": 0.5,
        },
        "2+2=",
        0.75,
        None,
    ),
    "sharegpt": (
        {
            "conversations": [{"from": "human", "value": "2+2="}],
            "chosen": {"from": "gpt", "value": " 4"},
            "rejected": {"from": "gpt", "value": "5"},
        },
        ASKED,
        None,
        None,
    ),
    "llamafactory_v1": (
        {
            f"{side}_messages": [
                {"role": "user", "content": part("2+2="), "loss_weight": 0.0},
                {"role": "assistant", "content": part(text), "loss_weight": 1.0},
            ]
            for side, text in (("chosen", " 4"), ("rejected", "5"))
        },
        [{**ASKED[0], "loss_weight": 0.0}],
        None,
        None,
    ),
}
NAMED_ONLY = {
    "trl": ({"prompt": "2+2=", "chosen": " 4", "rejected": "5"}, "2+2=", "pairs"),
    "trl_conversational": ({"prompt": ASKED, "chosen": [FOUR], "rejected": [FIVE]}, ASKED, "pairs"),
    "skywork": (CHAT | {"source": "magpie"}, ASKED, "implicit"),
    "reward_bench": (
        {
            "prompt": "2+2=",
            "chosen": " 4",
            "chosen_model": "a",
            "rejected": "5",
            "rejected_model": "b",
            "subset": "math",
        },
        "2+2=",
        "pairs",
    ),
}
ELSEWHERE = {"helpsteer2", "oasst", "rm_bench", "unpaired"}  # several rows make a pair, or none


def test_every_format_has_its_test():
    assert shipped().keys() == ONE_PAIR.keys() | NAMED_ONLY.keys() | ELSEWHERE


@pytest.mark.parametrize("name", ONE_PAIR)
def test_a_row_of_a_known_format_is_recognised_and_becomes_its_pair(name):
    values, prompt, margin, probability = ONE_PAIR[name]
    assert recognise(rows_of(values, values)).name == name
    for given in (None, name):
        _, (pair, _), bad = read([values, values], given)
        assert (pair.prompt, pair.chosen, pair.rejected) == (prompt, " 4", "5")
        assert pair.margin == (None if margin is None else pytest.approx(margin, rel=1e-12))
        assert pair.probability == probability
        assert not bad and not pair.disagrees


def test_the_format_of_recognised_lists_can_be_changed_alone():
    values, _, margin, _ = ONE_PAIR["lists"]
    _, (pair,), _ = read([values], {"format": "messages"})
    assert (pair.prompt, pair.chosen, pair.rejected, pair.margin) == (ASKED, " 4", "5", margin)


@pytest.mark.parametrize("name", NAMED_ONLY)
def test_formats_whose_columns_say_too_little_are_recognised_as_the_general_one_and_read_the_same(name):
    values, prompt, general = NAMED_ONLY[name]
    assert recognise(rows_of(values)).name == general
    _, (named,), _ = read([values], name)
    _, (recognised,), _ = read([values])
    for pair in (named, recognised):
        assert (pair.prompt, pair.chosen, pair.rejected, pair.margin) == (prompt, " 4", "5", None)
    assert named.sources == (("a", "b") if name == "reward_bench" else (None, None))


def test_helpsteer2_pairs_consecutive_rows_by_their_helpfulness():
    def row(prompt, response, helpfulness):
        return {"prompt": prompt, "response": response, "helpfulness": helpfulness, "correctness": 1, "verbosity": 2}

    values = [row("a", "a1", 1), row("a", "a2", 4), row("b", "b1", 3), row("b", "b2", 3)]
    assert recognise(rows_of(*values)).name == "helpsteer2"
    canonical, pairs, bad = read(values)
    assert [(p.prompt, p.chosen, p.rejected, p.margin) for p in pairs] == [
        ("a", "a2", "a1", 3.0),
        ("b", "b1", "b2", 0.0),
    ]
    assert [p.chosen_first for p in pairs] == [False, True] and pairs[1].tie and not bad
    assert canonical[0].values["correctness_chosen"] == canonical[0].values["correctness_rejected"] == 1
    assert (canonical[0].line, canonical[1].line) == (1, 3)


def test_oasst_pairs_siblings_by_rank_below_the_dialogue_that_leads_to_them():
    def row(id, parent, role, text, rank=None, tree="t1"):
        return {
            "message_id": id,
            "parent_id": parent,
            "message_tree_id": tree,
            "role": role,
            "text": text,
            "rank": rank,
        }

    values = [
        row("q", None, "prompter", "2+2="),
        row("a1", "q", "assistant", "5", 2),
        row("a2", "q", "assistant", "4", 0),
        row("a3", "q", "assistant", "6"),
        row("q2", "a2", "prompter", "sure?"),
        row("b1", "q2", "assistant", "yes", 0),
        row("b2", "q2", "assistant", "no", 1),
        row("c1", "gone", "assistant", "?", 1),
        row("u", None, "prompter", "alone", tree="t2"),
        row("u1", "u", "assistant", "?", 0, tree="t2"),
    ]
    assert recognise(rows_of(*values)).name == "oasst"
    _, pairs, bad = read(values)
    one = [{"role": "user", "content": "2+2="}]
    two = [*one, {"role": "assistant", "content": "4"}, {"role": "user", "content": "sure?"}]
    assert [(p.prompt, p.chosen, p.rejected, p.margin) for p in pairs] == [
        (one, "4", "5", 2.0),
        (two, "yes", "no", 1.0),
    ]
    assert [type(row) for row in bad] == [LeftOut, BadRow, LeftOut]
    assert [row.kind for row in bad] == [
        "rank is null, so that this answer cannot be ranked",
        "parent_id leads to no root",
        "text has fewer than two answers with a score",
    ]
    assert str(bad[0]).startswith("some.jsonl, line 4: ")


@pytest.mark.parametrize(
    "values",
    [
        {"prompt": "2+2=", "completion": "4", "label": True},
        {"prompt": ASKED, "completion": [FOUR], "label": False},
        {"messages": [USER, FOUR], "label": True},
    ],
)
def test_unpaired_rows_are_known_only_to_be_refused(values):
    with pytest.raises(
        UserError, match=r"^some.jsonl contains KTO-style unpaired rows .* trains on pairs; give it rows"
    ):
        recognise(rows_of(values))


def test_a_file_in_two_formats_is_refused_with_both():
    both = ONE_PAIR["safe_rlhf"][0] | ONE_PAIR["safe_rlhf_safety"][0]
    with pytest.raises(
        UserError, match=r"^some.jsonl may have the format safe_rlhf or safe_rlhf_safety, .*data.mapping"
    ):
        recognise(rows_of(both))
    _, (pair,), _ = read([both], "safe_rlhf_safety")
    assert pair.margin == 2.0


def test_a_strength_column_that_the_format_does_not_read_is_never_passed_over():
    values = ONE_PAIR["ultrafeedback_binarized"][0] | {"margin": 0.125}
    with pytest.raises(UserError, match="format ultrafeedback_binarized, which does not read its column `margin`; set"):
        recognise(rows_of(values))
    _, (own,), _ = read([values], "pairs")
    _, (scores,), _ = read([values], "ultrafeedback_binarized")
    assert (own.margin, scores.margin, own.prompt, own.chosen) == (0.125, 2.5, ASKED, " 4")


PAIR = {"prompt": "2+2=", "chosen": "5", "rejected": "4"}


@pytest.mark.parametrize(
    "columns",
    [
        {"chosen_score": 1, "rejected_score": 3.5},
        {"chosen-rating": 1, "rejected-rating": 3},
        {"rating_chosen": 2.0},
        {"rank": 2},
        {"preference": -1},
        {"chosenReward": 0.25},
        {"P_logits": 0.5},
    ],
)
@pytest.mark.parametrize("name, texts, chosen", [("pairs", PAIR, "5"), ("implicit", CHAT, " 4")])
def test_strength_under_a_name_of_its_own_is_never_passed_over(name, texts, chosen, columns):
    values = texts | columns
    first = dict.fromkeys(values, None) | texts  # a null says nothing: the next rows are looked at too
    named = " and ".join(f"`{name}`" for name in sorted(columns))
    with pytest.raises(UserError, match=f"^some.jsonl has the format {name}, which does not read {named}; if"):
        mapping_of(None, lambda: rows_of(first, values))
    with pytest.raises(UserError, match="which does not read"):
        mapping_of({"filters": {"drop_ties": True}}, lambda: rows_of(values))
    for given in (name, {"base": name, "filters": {"drop_ties": True}}):
        _, (pair,), _ = read([values], given)
        assert (pair.margin, pair.chosen) == (None, chosen)


def test_strength_under_a_name_of_its_own_is_read_where_a_mapping_says_so():
    values = PAIR | {"chosen_score": 1, "rejected_score": 3.5}
    _, (pair,), _ = read([values], {"score": {"chosen": "chosen_score", "rejected": "rejected_score"}})
    assert (pair.chosen, pair.margin) == ("4", 2.5)


@pytest.mark.parametrize(
    "values",
    [
        PAIR | {"reward_chosen": 1, "reward_rejected": 3, "margin": 1},
        PAIR | {"reward_chosen": 1, "reward_rejected": 3, "p_chosen": 0.75},
        PAIR | {"problem_id": 7, "tokens": 3, "score": "high", "difficulty": 0.5, "rating": None, "preferred": True},
        {"prompt": "2+2=", "chosen": "4", "score": 3},  # of one side: no order to be wrong
    ],
)
def test_columns_beside_known_strength_or_of_other_names_are_nobodys_fault(values):
    assert mapping_of(None, lambda: rows_of(values)).name == "pairs"


def test_a_file_in_no_known_format_is_refused_with_its_columns_and_what_the_nearest_lack():
    values = {"history": "a", "human_ref_A": "b", "human_ref_B": "c", "score_A": 1, "score_B": 2, "likes": 3}
    with pytest.raises(UserError) as caught:
        recognise(rows_of(values))
    sentence = str(caught.value)
    assert sentence.startswith(
        "some.jsonl has the columns history, human_ref_A, human_ref_B, score_A, score_B, likes, "
    )
    assert "nearest: shp lacks `labels`" in sentence


def test_the_majority_of_the_first_rows_decides_so_that_a_bad_row_is_refused_as_a_row():
    good = ONE_PAIR["shp"][0]
    rows = rows_of(good | {"score_A": "many"}, good, {"other": 1}, good)
    mapping = recognise(rows)
    assert mapping.name == "shp"
    canonical = list(Conversion(mapping).canonical_rows(rows))
    assert [type(row) for row in canonical] == [BadRow, Row, BadRow, Row]
    assert str(canonical[0]).startswith("some.jsonl, line 1: score_A is not a finite number ('many'); give it a number")


def test_a_zero_on_a_scale_from_one_to_ten_is_a_faulty_row():
    _, _, bad = read([ONE_PAIR["ultrafeedback_binarized"][0] | {"score_rejected": 0}], "ultrafeedback_binarized")
    assert "score_rejected is not between 1 and 10 (0)" in str(bad[0])


def test_the_signs_of_two_helpsteers_point_the_same_way_and_zero_is_a_tie():
    for name in ("helpsteer2_preference", "helpsteer3"):
        values = ONE_PAIR[name][0]
        (column,) = (key for key in values if "preference" in key)
        _, (second, tie), _ = read([values | {column: 1}, values | {column: 0}])
        assert (second.chosen, second.margin, second.chosen_first) == ("5", 1.0, False)
        assert tie.tie and tie.chosen_first


def test_labels_that_contradict_the_scores_are_counted_and_the_scores_win():
    _, (pair,), _ = read([ONE_PAIR["shp"][0] | {"labels": 1}])
    assert pair.disagrees and pair.chosen == " 4"


def test_the_formats_are_part_of_what_is_installed():
    root = Path(__file__).parents[3]
    data = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    packed = {
        path.stem
        for pattern in data["lit_pref.data.formats"]
        for path in (root / "lit_pref" / "data" / "formats").glob(pattern)
    }
    assert packed == shipped().keys()


def ranges(name):
    """The paths of a format's strength that have a range."""
    mapping = shipped()[name].mapping
    parts = [part for part in (mapping.score, mapping.signed, mapping.probability) if getattr(part, "range", None)]
    sides = ("path", "chosen", "a", "column")
    return [next(path for side in sides if (path := getattr(part, side, None))) for part in parts]


def changed(value, steps, to):
    if not steps:
        return to
    step, *rest = steps
    if isinstance(value, list):
        return [changed(part, rest, to) if step in (None, k) else part for k, part in enumerate(value)]
    return {key: changed(part, rest, to) if key == step else part for key, part in value.items()}


@pytest.mark.parametrize(
    "name, value",
    # The scores of SHP have no largest value.
    [(name, value) for name in ONE_PAIR if ranges(name) for value in (-100, 1e4) if (name, value) != ("shp", 1e4)],
)
def test_a_strength_outside_the_range_of_its_format_is_a_faulty_row(name, value):
    row = ONE_PAIR[name][0]
    for path in ranges(name):
        _, _, bad = read([changed(row, ValuePath(path).steps, value)], name)
        assert any(re.search(r"is (not between -?\d+ and \d+|below 1) \(.*range", str(one)) for one in bad)


def test_formats_with_a_stated_range_check_it():
    assert {name for name in shipped() if ranges(name)} >= {
        *("helpsteer2_preference", "helpsteer2", "helpsteer3", "ultrafeedback_binarized", "ultrafeedback", "webgpt"),
        *("argilla_ratings", "argilla_distilabel", "argilla_orca", "argilla_early", "alpaca_eval", "capybara"),
        *("nectar", "safe_rlhf_safety", "summarize", "armorm", "shp"),
    }


def test_a_range_must_be_two_numbers():
    with pytest.raises(UserError, match=r"`score.range` must be two numbers, the smaller first"):
        mapping_of({"base": "helpsteer2", "score": {"path": "helpfulness", "range": [4, 0]}}, list)
