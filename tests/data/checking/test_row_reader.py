"""What is accepted as a pair, how it is oriented, and the sentence for everything that is not."""

import math

import pytest
import torch

from lit_pref.data.checking.row_reader import RowReader
from lit_pref.data.sources.row import BadRow, Row
from lit_pref.errors import UsageError, UserError

GOOD = {"prompt": "2+2=", "chosen": "4", "rejected": "5"}


def read(values, line=3, **options):
    return RowReader(**options).read(Row("pairs.jsonl", line, values))


def test_a_plain_row_is_taken_as_it_is():
    pair = read(GOOD)
    assert (pair.prompt, pair.chosen, pair.rejected) == ("2+2=", "4", "5")
    assert (pair.margin, pair.probability, pair.swapped, pair.tie, pair.disagrees) == (None, None, False, False, False)


@pytest.mark.parametrize(
    "strength, margin, probability, swapped",
    [
        ({"margin": 2}, 2.0, None, False),
        ({"margin": -2.5}, 2.5, None, True),
        ({"margin": -0.0}, 0.0, None, False),
        ({"score_chosen": 8, "score_rejected": 5.5}, 2.5, None, False),
        ({"score_chosen": 1, "score_rejected": 4}, 3.0, None, True),
        ({"probability": 0.75}, None, 0.75, False),
        ({"probability": 0.25}, None, 0.75, True),
        ({"p_chosen": 0.25}, None, 0.75, True),
        ({"margin": -1.0, "probability": 0.25}, 1.0, 0.75, True),
        ({"margin": 1.0, "probability": 0.25}, 1.0, 0.25, False),  # p < 1/2 beside a margin is legal: label noise
    ],
)
def test_orientation_makes_the_margin_not_negative(strength, margin, probability, swapped):
    pair = read({**GOOD, **strength})
    assert (pair.margin, pair.probability, pair.swapped) == (margin, probability, swapped)
    assert (pair.chosen, pair.rejected) == (("5", "4") if swapped else ("4", "5"))
    assert pair.margin is None or math.copysign(1, pair.margin) == 1


@pytest.mark.parametrize(
    "strength, tie",
    [
        ({"margin": 0}, True),
        ({"margin": 1e-9}, False),
        ({"probability": 0.5}, True),
        ({"margin": 1, "p_chosen": 0.5}, False),
    ],
)
def test_ties_are_pairs_of_equal_strength(strength, tie):
    assert read({**GOOD, **strength}).tie is tie


@pytest.mark.parametrize(
    "strength, disagrees",
    [
        ({"margin": 2.5, "score_chosen": 8, "score_rejected": 5.5}, False),
        ({"margin": 6, "score_chosen": 10, "score_rejected": 1}, True),
        ({"margin": 6, "score_chosen": None, "score_rejected": 1}, False),
        ({"margin": 1.0, "probability": 0.4}, True),
        ({"margin": -1.0, "probability": 0.4}, False),
        ({"margin": 0, "probability": 0.1}, True),  # a tie, and no tie
        ({"margin": 1.0, "probability": 0.5}, True),
        ({"margin": 0, "probability": 0.5}, False),
        ({"margin": 1.0, "probability": 0.75, "p_chosen": 0.75}, False),
        ({"margin": 1.0, "probability": 0.75, "p_chosen": 0.875}, True),
        ({"margin": 1.0, "probability": 0.75, "p_chosen": None}, False),
    ],
)
def test_a_margin_wins_over_scores_and_disagreement_is_noted(strength, disagrees):
    pair = read({**GOOD, **strength})
    assert pair.margin == abs(strength["margin"])
    assert pair.disagrees is disagrees


COLUMNS = {
    "reward_chosen": 3,
    "reward_rejected": 7,
    "p_true": 0.3,
    "p_length": 0.1,
    "difference": -2.5,
    "agreement": 0.2,
    "difficulty": 0.5,
    "easy": True,
}
ON_SWAP = {"p_length": "keep", "difference": "negate", "agreement": "complement", "difficulty": "keep", "easy": "keep"}


@pytest.mark.parametrize("strength", [{"margin": -1}, {"probability": 0.25}, {"score_chosen": 1, "score_rejected": 2}])
def test_columns_turn_with_the_texts_as_their_names_say_or_on_swap_does(strength):
    pair = read({**GOOD, **COLUMNS, **strength}, columns=tuple(COLUMNS), on_swap=ON_SWAP)
    assert pair.swapped
    assert pair.columns == {
        "reward_chosen": 7.0,
        "reward_rejected": 3.0,
        "p_true": 0.7,
        "p_length": 0.1,
        "difference": 2.5,
        "agreement": 0.8,
        "difficulty": 0.5,
        "easy": 1.0,
    }


def test_columns_of_a_row_that_keeps_its_order_stay_declared_or_not():
    pair = read({**GOOD, **COLUMNS, "margin": 1}, columns=tuple(COLUMNS))
    assert pair.columns == {name: float(value) for name, value in COLUMNS.items()}


def test_a_row_means_the_same_pair_in_either_order():
    names = ("margin", "probability", "p_chosen", "p_true", "gap", "r_chosen", "r_rejected")
    row = {**GOOD, "margin": -2.0, "probability": 0.25, "p_chosen": 0.25, "p_true": 0.125, "gap": 1.5}
    row |= {"r_chosen": 1.0, "r_rejected": 2.5}
    other = {"prompt": "2+2=", "chosen": "5", "rejected": "4", "margin": 2.0, "probability": 0.75, "p_chosen": 0.75}
    other |= {"p_true": 0.875, "gap": -1.5, "r_chosen": 2.5, "r_rejected": 1.0}
    one, two = (read(values, columns=names, on_swap={"gap": "negate"}) for values in (row, other))
    assert one.columns == two.columns
    assert (one.chosen, one.margin, one.probability) == (two.chosen, two.margin, two.probability)


@pytest.mark.parametrize(
    "column, sentence",
    [
        ({"difficulty": 0.5}, "for the column `difficulty` is known; set data.on_swap.difficulty to keep"),
        ({"chosen_minus_rejected": 0.5}, "for the column `chosen_minus_rejected` is known; set data.on_swap"),
        ({"reward_chosen": 3}, "for the column `reward_chosen` is known; add `reward_rejected`, or set data.on_swap"),
    ],
)
def test_a_swapped_row_with_a_column_that_nobody_explained_stops_even_a_lenient_preparation(column, sentence):
    with pytest.raises(UserError, match=f"^pairs.jsonl, line 3: the texts are swapped, .*{sentence}") as caught:
        read({**GOOD, **column, "margin": -1}, columns=tuple(column))
    assert not isinstance(caught.value, BadRow)
    (name,) = column
    assert read({**GOOD, **column, "margin": -1}, columns=(name,), on_swap={name: "negate"}).columns[name] < 0


def test_a_probability_out_of_its_range_cannot_turn():
    with pytest.raises(
        BadRow, match=r"line 3: p_value is not between 0 and 1 \(7\); .*or set data.on_swap.p_value to keep"
    ):
        read({**GOOD, "margin": -1, "p_value": 7}, columns=("p_value",))


def test_on_swap_for_a_column_that_is_not_carried_is_refused():
    with pytest.raises(
        UsageError, match=r"data.on_swap names `p_tru`, which is not one of the further columns \(p_true\)"
    ):
        RowReader(columns=("p_true",), on_swap={"p_tru": "keep"})


@pytest.mark.parametrize("side", [0, 1])
def test_a_group_of_one_side_turns_with_the_texts(side):
    names = ("chosen_model", "rejected_model")
    row = {**GOOD, "chosen_model": "m1", "rejected_model": "m2", "domain": "sums"}
    groups = [read({**row, "margin": margin}, group_column=names[side]).group for margin in (1, -1)]
    assert groups == [("m1", "m2")[side], ("m2", "m1")[side]]
    assert read({**row, "margin": -1}, group_column="domain").group == "sums"


def test_a_group_of_one_side_without_the_other_stops_even_a_lenient_preparation_where_the_texts_swap():
    row = {**GOOD, "judge_chosen": "j1"}
    assert read({**row, "margin": 1}, group_column="judge_chosen").group == "j1"
    with pytest.raises(
        UserError, match=r"^pairs.jsonl, line 3: .* the column `judge_chosen`, which .* add `judge_rejected`, or name"
    ) as caught:
        read({**row, "margin": -1}, group_column="judge_chosen")
    assert not isinstance(caught.value, BadRow)


def test_what_is_finite_in_a_batch_is_taken_and_what_is_not_is_refused_wherever_it_stands():
    largest = torch.finfo(torch.float32).max
    spans = {"w_chosen": [[0, 1, -largest]], "w_rejected": []}
    pair = read({**GOOD, **spans, "margin": largest, "x": -largest}, columns=("x",), token_columns=("w",))
    numbers = torch.tensor([pair.margin, pair.columns["x"], pair.spans["w"][0][0][2]], dtype=torch.float32)
    assert numbers.isfinite().all()
    for change in ({"x": 1e300}, {"w_chosen": [[0, 1, 1e300]]}):
        with pytest.raises(BadRow, match=rf"line 3: {next(iter(change))} is too large for single precision"):
            read({**GOOD, **spans, "x": 1.0, **change}, columns=("x",), token_columns=("w",))


@pytest.mark.parametrize("text", ['[{"role": "user"}]', '[{"role": "user", "content": 1}, 2]', "[{x}](y)", "[{'role':"])
def test_a_text_that_only_begins_like_a_message_list_is_a_text(text):
    pair = read({**GOOD, "prompt": text, "chosen": f"{text}!"})
    assert (pair.prompt, pair.chosen) == (text, f"{text}!")
    asked = 'Mend this: [{"role": "user", "content": "hi"}]'
    assert read({**GOOD, "prompt": asked}).prompt == asked


def test_required_columns_are_carried_without_being_asked_for():
    pair = read({**GOOD, "margin": 1, "p_true": 0.6}, required=frozenset({"margin", "p_true"}))
    assert pair.columns == {"p_true": 0.6}


def test_message_lists_and_groups_and_ids():
    values = {
        "prompt": [{"role": "system", "content": ""}, {"role": "user", "content": "hi", "name": "x"}],
        "chosen": [{"role": "assistant", "content": "hello"}],
        "rejected": "go away",
        "source": 7,
        "id": 12,
    }
    pair = read(values, group_column="source")
    assert pair.prompt == [{"role": "system", "content": ""}, {"role": "user", "content": "hi", "name": "x"}]
    assert (pair.chosen, pair.rejected, pair.group, pair.id) == ("hello", "go away", "7", "12")


def test_one_sided_rows_need_no_rejected_text_and_take_the_better_one_where_there_are_two():
    assert read({"prompt": "a", "chosen": "b"}, one_sided=True).rejected is None
    pair = read({**GOOD, "margin": -1}, one_sided=True)
    assert (pair.chosen, pair.rejected) == ("5", None)
    assert read({**GOOD, "rejected": ""}, one_sided=True).chosen == "4"


USER = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"chosen": None}, "chosen is missing or null; give it a text"),
        ({"chosen": ""}, "chosen is empty; give it a text"),
        ({"rejected": " \n\t"}, "rejected is empty"),
        ({"prompt": ""}, "prompt is empty"),
        ({"prompt": 5}, "prompt is not a text but int; give it a string or a message list"),
        ({"chosen": "\ud800"}, "chosen contains half a surrogate pair; fix"),
        ({"rejected": "4"}, "chosen and rejected are the same text; a pair needs two different responses"),
        ({"margin": None}, r"margin is not a finite number \(null\); give it a number"),
        ({"margin": float("nan")}, r"margin is not a finite number \(nan\)"),
        ({"margin": float("inf")}, r"margin is not a finite number \(inf\)"),
        ({"margin": "3"}, r"margin is not a finite number \('3'\)"),
        ({"margin": True}, r"margin is not a finite number \(True\)"),
        ({"score_chosen": 1, "score_rejected": None}, r"score_rejected is not a finite number \(null\)"),
        ({"score_chosen": 3e38, "score_rejected": -3e38}, "score_chosen and score_rejected are too far apart"),
        ({"margin": 1e300}, r"margin is too large for single precision \(1e\+300\); give it in another unit"),
        ({"margin": -3.5e38}, r"margin is too large for single precision \(-3.5e\+38\)"),
        ({"prompt": '[{"role": "user", "content": "hi"}]'}, "prompt is a message list written as text; give it as"),
        ({"chosen": ' [\n{"content": "4", "role": "assistant"}]'}, "chosen is a message list written as text"),
        ({"rejected": "[{'role': 'user', 'content': \"I'm\"}]"}, "rejected is a message list written as text"),
        ({"probability": 1.5}, r"probability is not between 0 and 1 \(1.5\)"),
        ({"prompt": []}, "prompt is an empty message list"),
        ({"prompt": [{"content": "hi"}]}, "prompt contains a message without a role"),
        ({"prompt": ["hi"]}, "prompt is a list of strings; write one string, or messages like"),
        ({"prompt": [{"role": "user", "content": None}]}, "prompt content is missing or null"),
        ({"prompt": [*USER, {"role": "assistant", "content": "yes"}]}, "prompt ends with a message of the assistant"),
        (
            {"prompt": USER, "chosen": [*USER, {"role": "assistant", "content": "4"}]},
            "chosen is not one message of the",
        ),
        ({"prompt": USER, "chosen": USER}, "chosen is not one message of the assistant; put the preceding conv"),
        ({"chosen": [{"role": "assistant", "content": "4"}]}, "chosen is a message but prompt is a string; make both"),
        ({"id": None}, r"id is neither a string nor an integer \(None\)"),
    ],
)
def test_a_bad_row_is_refused_by_file_line_field_reason_and_remedy(change, sentence):
    with pytest.raises(BadRow, match=rf"^pairs.jsonl, line 3: {sentence}.*, or leave such rows out") as caught:
        read({**GOOD, **change})
    assert not any(character.isdigit() for character in caught.value.kind.replace("0 and 1", ""))


def test_group_and_column_values_are_checked_too():
    with pytest.raises(BadRow, match=r"source names no group \(None\)"):
        read({**GOOD, "source": None}, group_column="source")
    with pytest.raises(BadRow, match=r"difficulty is not a finite number \('high'\)"):
        read({**GOOD, "difficulty": "high"}, columns=("difficulty",))


@pytest.mark.parametrize(
    "values, options, sentence",
    [
        (
            {"prompt": "a", "text": "b"},
            {},
            "has the columns prompt, text, but not `chosen` and `rejected`; rename or add",
        ),
        ({"prompt": "a", "chosen": "b"}, {}, "but not `rejected`"),
        (GOOD, {"columns": ("p_true",)}, "but not `p_true`"),
        (GOOD, {"group_column": "source"}, "but not `source`"),
        (
            GOOD,
            {"required": frozenset({"margin"})},
            "the objective needs the strength of each preference; add `margin`",
        ),
        (GOOD, {"required": frozenset({"probability"})}, "the objective needs P.chosen is better. of each pair; add"),
        ({**GOOD, "score_chosen": 1}, {}, "one score without the other"),
    ],
)
def test_a_file_that_lacks_a_column_is_refused_with_the_columns_it_has(values, options, sentence):
    with pytest.raises(UserError, match=sentence) as caught:
        read(values, **options)
    assert not isinstance(caught.value, BadRow)
    assert str(caught.value).startswith("pairs.jsonl has the columns prompt")


@pytest.mark.parametrize("first, second", [({"margin": 1}, {}), ({}, {"margin": 1})])
def test_strength_in_some_rows_only_is_refused(first, second):
    reader = RowReader()
    reader.read(Row("pairs.jsonl", 1, {**GOOD, **first}))
    with pytest.raises(BadRow, match=r"pairs.jsonl, line 2: margin .* line 1.*; give it to every row"):
        reader.read(Row("pairs.jsonl", 2, {**GOOD, **second}))


@pytest.mark.parametrize("name", ["margin", "id", "probability"])
@pytest.mark.parametrize("odd", [0, 5, 80])
@pytest.mark.parametrize("lacks", [True, False])
def test_one_row_without_a_column_of_the_others_is_the_only_faulty_one(name, odd, lacks):
    rows = [Row("pairs.jsonl", k + 1, GOOD | ({name: 1} if (k == odd) != lacks else {})) for k in range(90)]
    bad = [k for k, (_, pair) in enumerate(RowReader().read_all(rows)) if isinstance(pair, BadRow)]
    assert bad == [odd]


@pytest.mark.parametrize("name", ["id", "group", "chosen_source", "rejected_model"])
def test_half_a_surrogate_outside_the_texts_is_a_faulty_row(name):
    with pytest.raises(BadRow, match=f"{name} contains half a surrogate pair") as caught:
        read(GOOD | {name: "a\ud800b"}, group_column="group" if name == "group" else None)
    str(caught.value).encode()


@pytest.mark.parametrize("message", [{"role": "us\ud800er"}, {"tool_calls": [{"f": "\ud800"}]}])
def test_half_a_surrogate_in_a_message_is_a_faulty_row(message):
    prompt = [{"role": "user", "content": "q", **message}]
    with pytest.raises(BadRow, match="contains half a surrogate pair"):
        read({"prompt": prompt, **{side: [{"role": "assistant", "content": side}] for side in ("chosen", "rejected")}})


def test_a_message_with_half_a_surrogate_can_be_printed():
    assert str(UserError("the column a\ud800b")).encode() == b"the column a\\ud800b"


def mapped(values, **about):
    return Row("pairs.jsonl", 3, GOOD | values, **about)


@pytest.mark.parametrize("margin, first, swapped", [(1, True, False), (-1, False, False)])
def test_where_the_source_calls_no_text_chosen_the_first_one_is_known_and_nothing_counts_as_swapped(
    margin, first, swapped
):
    pair = RowReader().read(mapped({"margin": margin}, chosen_first=True))
    assert (pair.chosen_first, pair.swapped) == (first, swapped)
    assert read({**GOOD, "margin": margin}).chosen_first is None


def test_a_label_turns_a_pair_only_without_other_strength_and_else_may_disagree():
    assert RowReader().read(mapped({}, prefers="rejected", chosen_first=True)).chosen == "5"
    beside = RowReader().read(mapped({"margin": 2}, prefers="rejected", chosen_first=True))
    assert (beside.chosen, beside.disagrees) == ("4", True)
    assert not RowReader().read(mapped({"margin": 2}, prefers="tie", chosen_first=True)).disagrees


def test_what_a_mapping_cut_is_marked():
    assert RowReader().read(mapped({"margin": 6}, clipped=True)).clipped and not read(GOOD).clipped


def test_refusals_speak_of_fields_as_the_source_calls_them():
    row = mapped({"chosen": None, "margin": 1}, names={"chosen": "answers[2].text", "prompt": "history"})
    with pytest.raises(BadRow, match=r"^pairs.jsonl, line 3: answers\[2\].text is missing or null") as caught:
        RowReader().read(row)
    assert caught.value.kind == "answers[].text is missing or null"
    with pytest.raises(BadRow, match="history content is empty"):
        RowReader().read(mapped({"prompt": [{"role": "user", "content": ""}]}, names={"prompt": "history"}))


@pytest.mark.parametrize("names", [("chosen_source", "rejected_source"), ("chosen_model", "rejected_model")])
def test_sources_turn_with_the_texts(names):
    row = {**GOOD, names[0]: "m1", names[1]: None}
    assert read({**row, "margin": 1}).sources == ("m1", None)
    assert read({**row, "margin": -1}).sources == (None, "m1")


def test_a_source_that_is_no_word_never_becomes_text():
    with pytest.raises(BadRow, match=r"rejected_source is not a name \(3\); give it a string, or null"):
        read({**GOOD, "rejected_source": 3})
    assert read({**GOOD, "rejected_model": 3, "chosen_model": "m1"}).sources == ("m1", None)


def test_a_third_response_is_read_where_it_is_required():
    asked = frozenset({"extra_response"})
    assert read({**GOOD, "extra_response": " 6"}, required=asked).extra_response == " 6"
    assert read({**GOOD, "extra_response": 7}).extra_response is None
    with pytest.raises(BadRow, match="extra_response is missing or null"):
        read({**GOOD, "extra_response": None}, required=asked)
    with pytest.raises(UserError, match=r"but not `extra_response`; rename or add .* lit_pref generate --model FOLDER"):
        read(GOOD, required=asked)


SPANS = {"w_chosen": [[0, 1, 2.5]], "w_rejected": [], "margin": 1}


def test_spans_turn_with_the_texts_and_are_read_for_the_wanted_sides():
    assert read({**GOOD, **SPANS}, token_columns=("w",)).spans == {"w": ([(0, 1, 2.5)], [])}
    assert read({**GOOD, **SPANS, "margin": -1}, token_columns=("w",)).spans == {"w": ([], [(0, 1, 2.5)])}
    one = {"prompt": "a", "chosen": "b", "w_chosen": [[0, 1, 2]]}
    assert read(one, token_columns=("w",), one_sided=True).spans == {"w": ([(0, 1, 2.0)], [])}


@pytest.mark.parametrize(
    "spans, sentence",
    [
        (None, r"w_chosen is not a list of spans; give it a list of \[start, end, value\], in characters of"),
        ([[0, 1]], r"w_chosen contains an invalid span \(\[0, 1\]\)"),
        ([["0", 1, 2]], "w_chosen contains an invalid span"),
        ([[False, 1, 2]], "w_chosen contains an invalid span"),
        ([[0, 2, 1]], r"w_chosen has a span outside its text \(\[0, 2, 1\]\)"),
        ([[-1, 1, 1]], "w_chosen has a span outside its text"),
        ([[1, 1, 1]], "w_chosen has a span outside its text"),
        ([[0, 1, None]], r"w_chosen is not a finite number \(null\)"),
        ([[0, 1, math.inf]], r"w_chosen is not a finite number \(inf\)"),
    ],
)
def test_spans_that_are_none_are_refused(spans, sentence):
    with pytest.raises(BadRow, match=f"line 3: {sentence}"):
        read({**GOOD, **SPANS, "w_chosen": spans}, token_columns=("w",))


def test_a_missing_column_of_spans_is_refused_with_the_columns_there_are():
    with pytest.raises(UserError, match="but not `w_rejected`; rename or add"):
        read({**GOOD, "w_chosen": []}, token_columns=("w",))


def test_numbers_are_written_out_only_in_a_table_of_texts():
    row = {**GOOD, "margin": "-2.5"}
    assert RowReader().read(Row("pairs.csv", 2, row)).margin == 2.5
    for file, margin in (("pairs.csv", "two"), ("pairs.csv", None), ("pairs.jsonl", "-2.5"), ("pairs.jsonl", 10**400)):
        with pytest.raises(BadRow, match="margin is not a finite number"):
            RowReader().read(Row(file, 2, {**GOOD, "margin": margin}))


def test_a_long_value_is_never_printed_whole():
    for field, options in (("id", {}), ("margin", {}), ("source", {"group_column": "source"})):
        with pytest.raises(BadRow) as caught:
            read({**GOOD, field: ["x" * 100_000]}, **options)
        assert len(str(caught.value)) < 300


def test_a_margin_that_says_the_opposite_of_the_scores_is_refused_and_another_size_is_counted():
    row = {"prompt": "p", "chosen": "a", "rejected": "b", "margin": 2.0, "score_chosen": 5, "score_rejected": 1}
    assert RowReader().read(Row("f.jsonl", 1, row)).disagrees
    with pytest.raises(BadRow, match=r"margin and the difference of the scores .* \(2 against 1 - 5\); remove"):
        RowReader().read(Row("f.jsonl", 1, {**row, "score_chosen": 1, "score_rejected": 5}))


def test_the_old_name_of_the_extra_response_gets_the_new_one():
    row = {**GOOD, "third": "6"}
    with pytest.raises(UserError, match="the column `third` is now called `extra_response`: rename it"):
        read(row, required=frozenset({"extra_response"}))
    assert read(row).extra_response is None
