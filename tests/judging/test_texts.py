"""Tests for `lit_pref.judging.texts`: responses from files, and pairs of judged ones."""

import json

import pytest

from lit_pref.errors import UserError
from lit_pref.judging.texts import (
    Answered,
    best_of,
    check_new_column,
    chosen_among,
    judged_rows,
    pairs_of,
    read_answered,
)


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_rows_of_one_response_and_of_lists_are_grouped_by_prompt(tmp_path):
    file = write(
        tmp_path / "texts.jsonl",
        {"prompt": "a", "response": "x", "sample": 0},
        {"prompt": "b", "response": ["y", "z"]},
        {"prompt": "a", "response": "w", "sample": 1},
    )
    first, second = read_answered(file)
    assert (first.prompt, first.responses) == ("a", ["x", "w"]) and (second.prompt, second.responses) == (
        "b",
        ["y", "z"],
    )
    first.scores, second.scores = [1.0, 2.0], [3.0, 4.0]
    assert list(judged_rows([first, second], "score")) == [
        {"prompt": "a", "response": "x", "sample": 0, "score": 1.0},
        {"prompt": "b", "response": ["y", "z"], "score": [3.0, 4.0]},
        {"prompt": "a", "response": "w", "sample": 1, "score": 2.0},
    ]
    with pytest.raises(UserError, match="a column `sample` already"):
        check_new_column([first, second], "sample")


@pytest.mark.parametrize(
    "row, words",
    [
        ({"prompt": "a", "answer": "x"}, "no `response`"),
        ({"prompt": "a", "response": ""}, "none may be empty"),
        ({"prompt": "a", "response": ["x", ""]}, "none may be empty"),
        ({"prompt": "a", "response": 3}, "must be a text"),
    ],
)
def test_rows_without_text_are_refused(tmp_path, row, words):
    with pytest.raises(UserError, match=words):
        read_answered(write(tmp_path / "texts.jsonl", row))


def judged():
    return Answered("p", ["a", "b", "c", "d"], [None] * 4, [1.0, 3.0, 3.0, 0.5])


def margins(pairing, least=0.0):
    return [(row["chosen"], row["rejected"], row["margin"]) for row in pairs_of(judged(), pairing, least)]


def test_pairs_of_judged_responses():
    assert margins("best_worst") == [("b", "d", 2.5)]
    assert margins("adjacent") == [("c", "a", 2.0), ("a", "d", 0.5)]
    assert margins("all") == [("b", "a", 2.0), ("b", "d", 2.5), ("c", "a", 2.0), ("c", "d", 2.5), ("a", "d", 0.5)]
    assert margins("adjacent", least=1.0) == [("c", "a", 2.0)]
    (row,) = pairs_of(judged(), "best_worst")
    assert row["margin"] == row["score_chosen"] - row["score_rejected"]


def test_the_best_is_the_first_of_equal_ones():
    assert best_of(judged()) == 1 and best_of(judged(), 1) == 0


def test_prompts_with_fewer_or_more_responses_than_the_best_is_of_are_counted():
    assert chosen_among([judged()], 4) == []
    (fewer,), (more,) = chosen_among([judged()], 5), chosen_among([judged()], 3)
    assert fewer.endswith("1 of 1 prompts have fewer than 5 responses (at most 4): the best is of those")
    assert more.endswith("1 of 1 prompts have more than 3 responses (at most 4): the best is of the first 3")


def test_a_null_response_is_named(tmp_path):
    with pytest.raises(UserError, match=r"line 1: `response` is null"):
        read_answered(write(tmp_path / "texts.jsonl", {"prompt": "a", "response": None}))
