"""`evaluate --protocol mt_bench`: two turns are answered by a model, and graded by a server."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from scripted_server import Reply, Server, chat

from lit_pref.commands.evaluate import evaluate
from lit_pref.errors import UsageError, UserError
from lit_pref.metrics.records import read_parquet

CATEGORIES = ("writing", "math", "stem", "coding")
ASKED = [
    {"question_id": 81 + k, "category": c, "turns": [f"red {c} owl?", "iron oak?"]} for k, c in enumerate(CATEGORIES)
]
REFERENCES = [
    {"question_id": 81 + k, "choices": [{"index": 0, "turns": [f"true {c} 1", f"true {c} 2"]}]}
    for k, c in enumerate(CATEGORIES)
    if c in ("math", "coding")
]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def questions(tmp_path: Path) -> dict[str, Any]:
    return {
        "protocol": "mt_bench",
        "data": write(tmp_path / "question.jsonl", ASKED),
        "references": write(tmp_path / "gpt-4.jsonl", REFERENCES),
    }


def grade(path: str, body: dict[str, Any]) -> Reply:
    """A judge: 9 for a first turn in writing, 3 for other first turns, 5 for second turns, none for stem's second."""
    asked = body["messages"][-1]["content"]
    second = "iron oak?" in asked
    assert ("true" in asked) == ("math" in asked or "coding" in asked), "references are shown where they are needed"
    if second and "stem" in asked:
        return chat("I would rather not say.")
    return chat(f"Well. Rating: [[{5 if second else 9 if 'writing' in asked else 3}]]")


def report(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "report.json").read_text())
    return found


def test_a_local_model_answers_two_turns_and_a_rerun_asks_for_nothing_again(
    server: Server, questions: dict[str, Any], chat_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    server.reply = grade
    options = questions | {"model": str(chat_model), "judge": server.url, "max_new_tokens": 6, "max_unreadable": 0.2}
    evaluate(tmp_path / "out", **options)
    found, items = report(tmp_path / "out"), read_parquet(tmp_path / "out" / "items.parquet")
    numbers = found["benchmarks"]["MT-bench"]
    assert items["rating"] == [9.0, 5.0, 3.0, 5.0, 3.0, None, 3.0, 5.0]
    assert numbers["score"][0] == pytest.approx(33 / 7) and numbers["score"][1] < 33 / 7 < numbers["score"][2]
    assert numbers["first turn"][0] == 4.5 and numbers["second turn"][0] == 5 and numbers["writing"][0] == 7
    assert [numbers[name][0] for name in ("math", "stem", "coding")] == [4, 3, 4]
    assert "1 of 8 judgments have no readable rating" in found["notes"][-1] and found["settings"]["judge"] == "m"
    assert items["line"] == [1, 1, 2, 2, 3, 3, 4, 4] and items["judgment"][0] == "Well. Rating: [[9]]"
    assert items["reference"][2:4] == ["true math 1", "true math 2"] and items["reference"][0] is None
    page = (tmp_path / "out" / "report.html").read_text()
    assert "The 8 lowest ratings" in page and page.index("Question 83, turn 2") < page.index("Question 81, turn 1")
    assert "MT-bench: score 4.714" in capsys.readouterr().out
    answers = (tmp_path / "out" / "answers.jsonl").read_text()
    turns = [json.loads(line)["choices"][0]["turns"] for line in answers.splitlines()]
    assert [text for both in turns for text in both] == items["answer"]
    conversations = [json.loads(line)["prompt"] for line in _rows(tmp_path / "out" / "asked" / "answers", "turn_2_*")]
    assert all([m["role"] for m in prompt] == ["user", "assistant", "user"] for prompt in conversations)
    assert {prompt[1]["content"] for prompt in conversations} == {both[0] for both in turns}
    server.asked.clear()
    evaluate(tmp_path / "out", **options)
    assert server.asked == [] and report(tmp_path / "out") == found
    assert len(list((tmp_path / "out").glob("events.*"))) == 1
    assert (tmp_path / "out" / "answers.jsonl").read_text() == answers
    with pytest.raises(UsageError, match=r"other settings .max_new_tokens is 7 and was 6"):
        evaluate(tmp_path / "out", **options | {"max_new_tokens": 7})


def _rows(folder: Path, pattern: str) -> list[str]:
    return [line for path in folder.glob(f"{pattern}/responses.jsonl") for line in path.read_text().splitlines()]


def test_a_real_server_answers_at_the_temperatures_of_the_categories_and_is_compared_with_a_file_of_answers(
    server: Server, serving: str, questions: dict[str, Any], tmp_path: Path
):
    server.reply = lambda path, body: chat(f"[[{2 if 'poor' in body['messages'][-1]['content'] else 8}]]")
    poor = [{"question_id": q["question_id"], "choices": [{"turns": ["poor", "poor too"]}]} for q in ASKED]
    options = questions | {"endpoint": serving, "judge": server.url, "against": write(tmp_path / "poor.jsonl", poor)}
    evaluate(tmp_path / "out", **options, max_new_tokens=5)
    found, items = report(tmp_path / "out"), read_parquet(tmp_path / "out" / "items_against.parquet")
    (compared,) = found["comparisons"]
    assert compared["difference"] == [6.0, 6.0, 6.0] and "is better than" in compared["sentence"]
    assert items["answer"][:2] == ["poor", "poor too"] and set(items["rating"]) == {2.0}
    folders = {path.name for path in (tmp_path / "out" / "asked" / "answers").iterdir()}
    assert folders == {f"turn_{turn}_temperature_{t}" for turn in (1, 2) for t in ("0", "0.1", "0.7")}
    assert len(server.asked) == 16, "a judgment of each turn of each model"


def test_answers_that_fail_are_asked_for_alone_and_refusals_are_graded_as_empty(
    server: Server, questions: dict[str, Any], tmp_path: Path
):
    judge, answered = Server(), {"broken": True}

    def answer(path: str, body: dict[str, Any]) -> Reply:
        (asked, *more) = [message["content"] for message in body["messages"]]
        if "math" in asked and answered["broken"]:
            return 500, "x", {}
        return chat("", message={"refusal": "no"}) if "stem" in asked and not more else chat("tin")

    server.reply, judge.reply = answer, lambda path, body: chat("[[5]]")
    options = questions | {"endpoint": server.url, "judge": judge.url, "retries": 0, "limit": 3}
    try:
        # The math question is alone at its temperature.
        with pytest.raises(UserError, match=r"all 1 requests of block 0 failed .server error"):
            evaluate(tmp_path / "out", **options)
        assert judge.asked == [] and not (tmp_path / "out" / "report.json").exists()
        answered["broken"] = False
        evaluate(tmp_path / "out", **options)
        asked = [body["messages"][-1]["content"] for _, body in judge.asked]
        assert len(asked) == 6 and sum(bool(re.search(r"<answer>\n\n</answer>", text)) for text in asked) == 1
        assert report(tmp_path / "out")["notes"] == ["1 answers are empty or refused, and are graded as such."]
        temperatures = {body["messages"][0]["content"]: body["temperature"] for _, body in server.asked}
        assert list(temperatures.values()).count(0.7) == 1 and set(temperatures.values()) == {0.7, 0.0, 0.1}
    finally:
        judge.close()


def test_what_cannot_be_graded_is_refused_before_anything_is_asked(
    server: Server, questions: dict[str, Any], policy_folder: Path, tmp_path: Path
):
    lines = (Path(__file__).parents[2] / "lit_pref/judging/mt_bench_prompts.jsonl").read_text()
    (tmp_path / "blind.jsonl").write_text(lines.replace("{answer_2}", "the answer"))
    (tmp_path / "typo.jsonl").write_text(lines.replace("{answer}", "{anwser}"))
    few = write(tmp_path / "few.jsonl", [{"question_id": 81, "choices": [{"turns": ["a", "b"]}]}])
    long = write(tmp_path / "long.jsonl", [ASKED[0] | {"turns": ["red " * 300, "b"]}])
    given = {"judge": server.url, "model": few}
    refused: list[tuple[type[UserError], dict[str, Any], str]] = [
        (UsageError, {"judge": None}, "mt_bench needs --judge URL"),
        (UsageError, {"endpoint": server.url}, "or --endpoint URL; both are given"),
        (UsageError, {"model": None}, "neither is given"),
        (UsageError, {"model_name": "m"}, "the model's name at --endpoint, which is not given"),
        (
            UsageError,
            {"model": None, "endpoint": server.url, "dtype": "bfloat16"},
            "--dtype takes no effect",
        ),
        (UsageError, {"beta": 0.5}, "--beta belongs to pairs"),
        (UsageError, {"judge": "localhost"}, "--judge is 'localhost'"),
        (UserError, {"template": tmp_path / "blind.jsonl"}, "single-v1-multi-turn does not show the answer of turn 2"),
        (UserError, {"template": tmp_path / "typo.jsonl"}, "prompt single-v1 cannot be filled in"),
        (UserError, {}, r"few.jsonl has no answers to 3 questions, such as 82\."),
        (UserError, {"references": None}, "needs two reference answers"),
        (UserError, {"data": long, "model": str(policy_folder)}, "chat template"),
    ]
    for error, options, said in refused:
        with pytest.raises(error, match=said):
            evaluate(tmp_path / "out", **questions | given | options)
    assert server.asked == [] and not (tmp_path / "out").exists()


def test_a_question_that_does_not_fit_into_the_model_is_named(
    server: Server, questions: dict[str, Any], chat_model: Path, tmp_path: Path
):
    long = write(tmp_path / "long.jsonl", [ASKED[0] | {"turns": ["red " * 300, "b"]}])
    with pytest.raises(UserError, match=r"long.jsonl, line 1: .*leaves no room for a response.*longer context"):
        evaluate(tmp_path / "out", **questions | {"data": long, "model": str(chat_model), "judge": server.url})
