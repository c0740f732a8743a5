"""MT-bench's protocol: what a judge is asked, how its ratings are read, and their means."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lit_pref.errors import UserError
from lit_pref.judging.mt_bench import (
    PROMPTS,
    Question,
    grading_messages,
    mt_bench,
    rating,
    read_answers,
    read_grading_prompts,
    read_questions,
)


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def answers(*numbers: int) -> list[dict[str, Any]]:
    return [{"question_id": k, "choices": [{"index": 0, "turns": [f"one of {k}", f"two of {k}"]}]} for k in numbers]


QUESTIONS = [
    {"question_id": 81, "category": "writing", "turns": ["Write {it}.", "Shorten it."]},
    {"question_id": 111, "category": "math", "turns": ["1 + 1?", "2 + 2?"], "reference": ["2", "4"]},
]


def test_questions_in_both_layouts(tmp_path: Path):
    path = write(tmp_path / "question.jsonl", QUESTIONS)
    ours = read_questions(path, write(tmp_path / "gpt-4.jsonl", answers(111)))
    assert ours == [
        Question("81", "writing", ("Write {it}.", "Shorten it.")),
        Question("111", "math", ("1 + 1?", "2 + 2?"), ("one of 111", "two of 111")),
    ]
    hub = [{"prompt_id": q["question_id"], "prompt": q["turns"], "category": q["category"]} for q in QUESTIONS]
    hub = [row | {"reference": q.get("reference", [])} for row, q in zip(hub, QUESTIONS, strict=True)]
    assert read_questions(write(tmp_path / "hub.jsonl", hub))[1].references == ("2", "4")
    assert read_answers(write(tmp_path / "model.jsonl", answers(81)))["81"] == ("one of 81", "two of 81")


def test_a_judge_is_asked_about_each_turn_with_references_where_they_are_needed(tmp_path: Path):
    writing, maths = read_questions(write(tmp_path / "question.jsonl", QUESTIONS))
    prompts = read_grading_prompts()
    first, second = grading_messages(writing, ["Text with {braces}", "Short."], prompts)
    assert [message["role"] for message in first] == ["system", "user"]
    asked = first[1]["content"]
    assert "Write {it}." in asked and "Text with {braces}" in asked and "[[rating]]" in asked
    assert "Shorten it." not in asked and "reference" not in asked
    shown = second[1]["content"]
    parts = [shown.index(part) for part in ("Write {it}.", "Text with {braces}", "Shorten it.", "Short.\n")]
    assert parts == sorted(parts) and "[[rating]]" in second[0]["content"]
    first, second = grading_messages(maths, ["3", "5"], prompts)
    assert "\n2\n" in first[1]["content"] and "\n4\n" not in first[1]["content"]
    assert all(f"\n{text}\n" in second[1]["content"] for text in ("2", "4", "3", "5"))


def test_prompts_are_a_file_that_a_user_replaces(tmp_path: Path):
    rows = [json.loads(line) for line in PROMPTS.read_text().splitlines()]
    rows[0]["prompt_template"] = "Grade {answer} to {question}."
    writing = Question("81", "writing", ("a?", "b?"))
    prompts = read_grading_prompts(write(tmp_path / "own.jsonl", [*rows, {"name": "pair-v2", "type": "pairwise"}]))
    assert grading_messages(writing, ["A", "B"], prompts)[0][1]["content"] == "Grade A to a?."
    rows[0]["prompt_template"] = "Grade {anwser}."
    broken = read_grading_prompts(write(tmp_path / "broken.jsonl", rows))
    with pytest.raises(UserError, match=r"prompt single-v1 cannot be filled in.*anwser.*\{question\}, \{answer\}"):
        grading_messages(writing, ["A", "B"], broken)
    with pytest.raises(UserError, match="has no prompt single-v1 and no single-math-v1;"):
        read_grading_prompts(write(tmp_path / "few.jsonl", rows[2:]))


@pytest.mark.parametrize(
    ("judgment", "number"),
    [
        ("Explanation.\n\nRating: [[5]]", 5.0),
        ("[[10]] and later [[3]]", 10.0),
        ("First [2], then [[6.5]]", 6.5),
        ("Rating: [4]", 4.0),
        ("Rating: [[0]]", None),
        ("Rating: [[rating]]", None),
        ("10/10", None),
        ("", None),
    ],
)
def test_a_rating_is_the_first_in_double_brackets(judgment: str, number: float | None):
    assert rating(judgment) == number


def test_the_score_is_the_mean_of_all_ratings_of_both_turns():
    generator = np.random.default_rng(0)
    categories = ["writing", "math", "coding"]
    questions = [Question(str(k), categories[k % 3], ("a", "b")) for k in range(30)]
    ratings: list[list[float | None]] = [[float(r) for r in generator.integers(1, 11, size=2)] for _ in questions]
    ratings[4][1] = None
    found = mt_bench(questions, ratings)
    pooled = [r for own in ratings for r in own if r is not None]
    assert found.score.value == pytest.approx(sum(pooled) / 59) and found.unreadable == 1 and found.questions == 30
    assert found.turns[0].value == pytest.approx(np.mean([own[0] for own in ratings]))
    assert found.turns[1].value == pytest.approx(np.mean([own[1] for own in ratings if own[1] is not None]))
    maths = [r for q, own in zip(questions, ratings, strict=True) if q.category == "math" for r in own if r is not None]
    assert found.categories["math"].value == pytest.approx(np.mean(maths))
    assert found.score.low < found.score.value < found.score.high
    with pytest.raises(ValueError, match="expected two for each"):
        mt_bench(questions, ratings[:3])


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"question_id": 1, "category": "writing", "turns": ["only one"]}, "two texts in turns"),
        ({"category": "writing", "turns": ["a", "b"]}, "have question_id"),
        ({"question_id": 111, "category": "math", "turns": ["a", "b"]}, "needs two reference answers"),
    ],
)
def test_questions_of_another_layout_are_refused(tmp_path: Path, row: dict[str, Any], says: str):
    with pytest.raises(UserError, match=says) as caught:
        read_questions(write(tmp_path / "question.jsonl", [row]))
    assert "line 1" in str(caught.value)


def test_answers_of_another_layout_are_refused(tmp_path: Path):
    with pytest.raises(UserError, match=r"line 1: an answer needs question_id and choices\[0\].turns"):
        read_answers(write(tmp_path / "a.jsonl", [{"question_id": 1, "choices": [{"turns": ["one"]}]}]))
    with pytest.raises(UserError, match="question 81 occurs twice"):
        read_questions(write(tmp_path / "q.jsonl", [QUESTIONS[0]] * 2))
