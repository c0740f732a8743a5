"""`judge` with a server as the judge: grades, preferences in both orders, and every kind of answer it may give."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from scripted_server import Reply, Server, chat

from lit_pref.commands.evaluate import evaluate
from lit_pref.commands.judge import judge
from lit_pref.errors import UsageError, UserError
from lit_pref.judging.pair_items import PairFile
from lit_pref.judging.texts import read_answered, take_scores
from lit_pref.metrics.records import read_parquet


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def answering(say: Callable[[str], str | Reply]) -> Callable[[str, dict[str, Any]], Reply]:
    """Replies that are a function of the question."""

    def reply(path: str, body: dict[str, Any]) -> Reply:
        found = say(body["messages"][-1]["content"])
        return chat(found) if isinstance(found, str) else found

    return reply


def responses(tmp_path: Path, name: str, number: int, text: str = "good") -> str:
    return write(
        tmp_path / f"{name}.jsonl", [{"prompt": f"ask {k}", "response": f"{text} {k} of {name}"} for k in range(number)]
    )


def test_a_judge_that_always_prefers_the_first_answer_gives_one_half_and_a_position_bias_of_100_percent(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    a, b = responses(tmp_path, "a", 12), responses(tmp_path, "b", 13)
    server.reply = answering(lambda question: "The first one. [[A]]")
    judge(a, tmp_path / "out", endpoint=server.url, against=b)
    rows = read(tmp_path / "out" / "judged.jsonl")
    assert len(server.asked) == 24 and [row["preference"] for row in rows] == [0.5] * 12
    assert {(row["when_first"], row["when_second"]) for row in rows} == {(1.0, 0.0)}
    assert read(tmp_path / "out" / "pairs.jsonl") == [], "ties are no pairs to train on"
    assert (rows[3]["response"], rows[3]["other_response"], rows[3]["line"]) == ("good 3 of a", "good 3 of b", 4)
    said = capsys.readouterr().out
    assert "The two orders disagree on 12 of 12 pairs (100 %): 12 favour the answer that is shown first" in said
    assert "1 prompts are answered in one file only" in said and "win rate    0.5 (0.5 to 0.5)" in said
    annotations = str(tmp_path / "out" / "annotations.jsonl")
    evaluate(tmp_path / "evaluated", "win_rate", annotations)
    found = json.loads((tmp_path / "evaluated" / "report.json").read_text())
    assert found["title"] == f"{a} against {b}: {annotations}" and found["verdict"] == "Win rate: 0.5 (0.5 to 0.5)."
    assert found["benchmarks"]["Win rate"]["win rate"] == [0.5, 0.5, 0.5]
    assert any("disagree on 12 of 12 pairs (100 %)" in note for note in found["notes"])


def test_preferences_are_means_of_both_orders_with_intervals_over_prompts_and_losses_are_shown(
    server: Server, tmp_path: Path
):
    rows = [{"prompt": f"ask {k // 2}", "chosen": f"x{k}", "rejected": f"y{k}", "truth": f"is {k}"} for k in range(40)]
    file = write(tmp_path / "pairs.jsonl", rows)
    (tmp_path / "mine.txt").write_text("{prompt}|{response_a}|{response_b}|{reference}")

    def say(question: str) -> str:
        _, a, _, truth = question.split("|")
        k = int(truth.removeprefix("is "))
        better = "x" if k % 4 else "y"
        if k == 5:
            return "[[C]]" if a.startswith("x") else "[[A]]"
        return "[[A]]" if a.startswith(better) else "[[B]]"

    server.reply = answering(say)
    form: dict[str, Any] = {"template": tmp_path / "mine.txt", "reference_text": "truth"}
    judge(file, tmp_path / "out", endpoint=server.url, response="chosen", against_column="rejected", **form)
    found = [row["preference"] for row in read(tmp_path / "out" / "judged.jsonl")]
    assert found == [0.25 if k == 5 else float(k % 4 > 0) for k in range(40)]
    pairs = read(tmp_path / "out" / "pairs.jsonl")
    assert [pair["chosen"] for pair in pairs[3:6]] == ["x3", "y4", "y5"] and len(pairs) == 40
    assert [(pair["probability"], pair["margin"]) for pair in pairs[4:6]] == [(1.0, 1.0), (0.75, 0.5)]
    assert [item.pair.label for item in PairFile(str(tmp_path / "out" / "pairs.jsonl")).read()[4:6]] == [1.0, 0.75]
    evaluate(tmp_path / "evaluated", "win_rate", str(tmp_path / "out" / "annotations.jsonl"))
    value, low, high = json.loads((tmp_path / "evaluated" / "report.json").read_text())["benchmarks"]["Win rate"][
        "win rate"
    ]
    assert value == pytest.approx(sum(found) / 40) and low < value < high
    items = read_parquet(tmp_path / "evaluated" / "items.parquet")
    assert len(set(items["id"])) == 40 and len(set(items["prompt_id"])) == 20, (
        "pairs of a prompt are resampled together"
    )
    page = (tmp_path / "evaluated" / "report.html").read_text()
    assert "The 11 clearest losses" in page and ">y4<" in page.replace("</span>", ">").replace("</p>", "<")


def test_grades_are_scores_beside_the_texts_and_the_same_command_asks_for_nothing_again(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    rows = [{"prompt": f"ask {k}", "response": [f"grade {k % 3}.{n}" for n in range(3)]} for k in range(5)]
    file, out = write(tmp_path / "r.jsonl", rows), tmp_path / "out"
    server.reply = answering(lambda question: f"So [[{1 + float(re.findall('grade ([0-9.]+)', question)[-1])}]]")
    options: dict[str, Any] = {"endpoint": server.url, "pairs": "best_worst", "best": 2}
    judge(file, out, **options)
    assert [row["score"] for row in read(out / "judged.jsonl")] == [
        [1 + k % 3 + n / 10 for n in range(3)] for k in range(5)
    ]
    pair, best = read(out / "pairs.jsonl")[0], read(out / "best.jsonl")[0]
    assert pair["chosen"] == "grade 0.2" and pair["margin"] == pytest.approx(0.2) and best["response"] == "grade 0.1"
    body = server.asked[0][1]
    assert (body["temperature"], body["max_tokens"], body["model"]) == (0.0, 1024, "m")
    assert "grades      1 to 3.2" in capsys.readouterr().out
    server.asked.clear()
    before = (out / "judged.jsonl").read_bytes()
    judge(file, out, **options)
    assert server.asked == [] and (out / "judged.jsonl").read_bytes() == before
    (tmp_path / "mine.txt").write_text("{prompt} {response}")
    with pytest.raises(UsageError, match=r"other settings .*template is .* and was"):
        judge(file, out, **options, template=tmp_path / "mine.txt")
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    with pytest.raises(UsageError, match="judge has asked nothing there"):
        judge(file, tmp_path / "used", **options)


def test_too_many_unreadable_verdicts_end_the_command_early_and_a_share_that_is_accepted_has_no_score(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    rows = [{"prompt": f"ask {k}", "response": [f"w {2 * k}", f"w {2 * k + 1}"]} for k in range(40)]
    file, out = write(tmp_path / "r.jsonl", rows), tmp_path / "out"

    def say(question: str) -> str | Reply:
        k = int(re.findall(r"w (\d+)", question)[-1])
        if k % 8 == 1:
            return chat("", message={"refusal": "I will not grade this."})
        return f"[[{1 + k % 9}]]" if k % 2 == 0 or k > 70 else "It is rather good, I would say."

    server.reply = answering(say)
    options: dict[str, Any] = {"endpoint": server.url, "retries": 0, "concurrency": 4}
    with pytest.raises(UserError, match=r"16 of 32 verdicts are unreadable.*--max_unreadable 0.1 .*exactly one number"):
        judge(file, out, **options)
    assert len(server.asked) == 32 and not (out / "judged.jsonl").exists(), "80 would be asked in all"
    judge(file, out, **options, max_unreadable=0.5, pairs="all", best=2)
    said = capsys.readouterr().out
    assert "unreadable  36 of 80 verdicts (45 %), such as:" in said and "rather good, I would say" in said
    assert "the model refuses: I will not grade this." in said
    assert "36 responses have no score (null), and are in no pair and never the best" in said
    scores = [score for row in read(out / "judged.jsonl") for score in row["score"]]
    assert [score is None for score in scores] == [k % 2 == 1 and (k <= 70 or k % 8 == 1) for k in range(80)]
    assert len(read(out / "pairs.jsonl")) == 4 and len(read(out / "best.jsonl")) == 40
    every = read_answered(str(out / "judged.jsonl"))
    with pytest.raises(UserError, match="has no number"):
        take_scores(every, "score")
    evaluate(tmp_path / "won", "responses", str(out / "judged.jsonl"), against=str(out / "judged.jsonl"))
    assert "72 responses have no score" in json.loads((tmp_path / "won" / "report.json").read_text())["notes"][1]


def test_failed_requests_write_no_scores_and_are_asked_for_alone_by_the_same_command(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    file, out = responses(tmp_path, "a", 9), tmp_path / "out"
    broken = {"good 2 of a": (500, "x", {}), "good 5 of a": (200, "<html>", {}), "good 7 of a": (400, "{}", {})}

    def say(question: str) -> str | Reply:
        (text,) = re.findall(r"good \d of a", question)
        return broken.get(text, "[[5]]")

    server.reply = answering(say)
    options: dict[str, Any] = {"endpoint": server.url, "retries": 0, "concurrency": 3}
    with pytest.raises(UserError, match=r"3 of 9 requests to the judge failed .1 server error, 1 malformed"):
        judge(file, out, **options)
    assert "attempts    3 failed" in capsys.readouterr().out and not (out / "judged.jsonl").exists()
    broken.clear()
    server.asked.clear()
    judge(file, out, **options)
    assert len(server.asked) == 3 and {row["score"] for row in read(out / "judged.jsonl")} == {5.0}
    server.reply = lambda path, body: (500, "down", {})
    with pytest.raises(UserError, match=r"all 9 requests of block 0 failed .server error"):
        judge(file, tmp_path / "down", **options)


def test_what_cannot_be_compared_or_asked_is_refused_before_anything_is_asked(server: Server, tmp_path: Path):
    a, b = responses(tmp_path, "a", 3), responses(tmp_path, "b", 3)
    write(tmp_path / "two.jsonl", [{"prompt": "ask 1", "response": ["x", "y"]}])
    write(tmp_path / "other.jsonl", [{"prompt": "else", "response": "x"}])
    (tmp_path / "t.txt").write_text("{prompt} {respons}")
    refused: list[tuple[type[UserError], dict[str, Any], str]] = [
        (UsageError, {"model": "m"}, "exactly one of .*; the name of a model on a server is --model_name"),
        (UsageError, {"against": b, "pairs": "all", "best": 1}, "reads --pairs, --best here; .*leave out --against"),
        (UsageError, {"dtype": "bfloat16"}, "nothing reads --dtype here; leave it out, or add --model"),
        (UsageError, {"max_unreadable": 1.5}, "--max_unreadable is 1.5; it is a share"),
        (UsageError, {"template": tmp_path / "t.txt"}, "unknown field"),
        (UsageError, {"endpoint": "localhost:1"}, "--endpoint is 'localhost:1'"),
        (UserError, {"reference_text": "truth"}, r"a.jsonl, line 1: there is no reference answer in `truth`"),
        (UserError, {"column": "response"}, "a column `response` already"),
        (UserError, {"against": str(tmp_path / "other.jsonl")}, "answer no prompt in common"),
        (UserError, {"against": str(tmp_path / "two.jsonl")}, "has 1 responses, and 2 to compare them with"),
    ]
    for error, options, said in refused:
        with pytest.raises(error, match=said):
            judge(a, tmp_path / "out", **{"endpoint": server.url, **options})
    with pytest.raises(UsageError, match="nothing reads --against here; leave it out, or add --endpoint"):
        judge(a, tmp_path / "out", given="x", against=b)
    assert server.asked == [] and not (tmp_path / "out").exists()


def test_a_faulty_pair_is_refused_in_the_words_of_the_options_of_a_command(tmp_path: Path):
    (tmp_path / "pairs.jsonl").write_text(json.dumps({"prompt": "p", "chosen": "a", "rejected": ""}) + "\n")
    with pytest.raises(UserError, match=r"or leave such rows out with --bad_rows lenient\.$"):
        PairFile(str(tmp_path / "pairs.jsonl")).read()


def test_a_real_server_whose_model_writes_no_verdict_gives_no_scores(serving: str, tmp_path: Path):
    (tmp_path / "t.txt").write_text("{prompt} {response}")
    options: dict[str, Any] = {"endpoint": serving, "template": tmp_path / "t.txt", "max_new_tokens": 4}
    file = responses(tmp_path, "a", 3)
    with pytest.raises(UserError, match="3 of 3 verdicts are unreadable"):
        judge(file, tmp_path / "out", **options)
    judge(file, tmp_path / "out", **options, max_unreadable=1.0)
    assert [row["score"] for row in read(tmp_path / "out" / "judged.jsonl")] == [None] * 3
