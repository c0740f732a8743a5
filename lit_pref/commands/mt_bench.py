"""The protocol `mt_bench` of `evaluate`: a model answers questions in two turns, and a server grades the answers."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lit_pref.commands.judge_model import device_named
from lit_pref.commands.server import ASKED, Server
from lit_pref.errors import UserError
from lit_pref.generating.engine import Engine
from lit_pref.generating.local_model import LocalModel
from lit_pref.generating.settings import write_lines
from lit_pref.judging.comparison import PromptBootstrap, compare, mean_of
from lit_pref.judging.endpoint_judge import Verdict
from lit_pref.judging.mt_bench import (
    HUB,
    PROMPTS,
    Question,
    check_grading_prompts,
    mt_bench,
    read_answers,
    read_grading_prompts,
    read_questions,
)
from lit_pref.judging.mt_bench_answers import Answers, answer_questions, rate_answers
from lit_pref.judging.outcome import Outcome
from lit_pref.judging.report import WORST, Example
from lit_pref.metrics.records import Records
from lit_pref.models.folder import folder_of_model
from lit_pref.models.sampling import Sampling
from lit_pref.models.spec import ModelSpec
from lit_pref.printing import say

SIDES = ("", "_against")
"""What the names of files and folders of the model, and of the one that it is compared with, end in."""
Ratings = list[tuple[Verdict, Verdict]]


def mt_bench_outcome(options: dict[str, Any]) -> Outcome:
    """Answer the questions, have the answers graded, and return the numbers.

    Args:
        options: all options of `evaluate`.

    Raises:
        UserError: questions, prompts or a model cannot be read, or requests failed.
        UsageError: the folder has other answers.
    """
    prompts = read_grading_prompts(options["template"] or PROMPTS)
    check_grading_prompts(prompts)
    source = options["data"] or HUB
    questions = read_questions(source, options["references"])[: options["limit"]]
    say(f"questions   {len(questions)} of {source}", error=True)
    names = [options["model"] or options["model_name"] or options["endpoint"]]
    names += [] if options["against"] is None else [options["against"]]
    server = _server(options, "judge", "judge_name", "judge_tokens")
    most = options["max_unreadable"]
    judges = [server.judge(options["out"] / ASKED / f"judge{side}", most) for side in SIDES[: len(names)]]
    notes: list[str] = []
    answers = [_answers(options, questions, *side) for side in zip(names, SIDES, strict=False)]
    found = []
    for own, judge in zip(answers, judges, strict=True):
        empty = sum(not text for both in own for text in both)
        notes += [f"{empty} answers are empty or refused, and are graded as such."] if empty else []
        found.append(rate_answers(judge, questions, own, prompts))
        if judge.unreadable:
            notes.append(f"{judge.unreadable} of {judge.asked} judgments have no readable rating and are left out.")
    numbers = mt_bench(questions, [[verdict.number for verdict in both] for both in found[0]])
    records = [_records(questions, *side) for side in zip(answers, found, strict=True)]
    table = {"score": numbers.score, "first turn": numbers.turns[0], "second turn": numbers.turns[1]}
    settings = {"model": names[0], "against": options["against"], "judge": judge.engine.name, "questions": source}
    return Outcome(
        f"{names[0]}: MT-bench",
        settings | {"judge_at": options["judge"], "unreadable": numbers.unreadable},
        records[0],
        {"MT-bench": table | numbers.categories},
        comparisons=[_compared(questions, found, (names[0], names[1]))] if len(names) == 2 else [],
        items_against=records[1] if len(names) == 2 else None,
        notes=notes,
        examples=_lowest(questions, answers[0], found[0]),
    )


def _answers(options: dict[str, Any], questions: Sequence[Question], name: str, side: str) -> list[Answers]:
    """Return the answers of a model, from a file, a folder or a server, and write them in FastChat's layout."""
    if Path(name).is_file():
        of = read_answers(name)
        if missing := [question.id for question in questions if question.id not in of]:
            raise UserError(f"{name} has no answers to {len(missing)} questions, such as {missing[0]}.")
        return [of[question.id] for question in questions]
    most, out = options["max_new_tokens"], options["out"]
    engine: Engine
    if side == "" and options["endpoint"] is not None:
        engine = _server(options, "endpoint", "model_name", "max_new_tokens").engine()
    else:
        trust, dtype = options["trust_remote_code"], options["dtype"]
        spec = ModelSpec(path=folder_of_model(name), dtype=dtype, trust_remote_code=trust)
        device = device_named(options["device"])
        engine = LocalModel(spec, Sampling(), 0, most, (), device, options["max_tokens"])
    answers = answer_questions(engine, questions, most, out / ASKED / f"answers{side}")
    rows = [
        {"question_id": question.id, "model_id": name, "choices": [{"index": 0, "turns": list(own)}]}
        for question, own in zip(questions, answers, strict=True)
    ]
    path = out / f"answers{side}.jsonl"
    write_lines(path, [json.dumps(row, ensure_ascii=False) + "\n" for row in rows])
    say(f"answers     {path}", error=True)
    return answers


def _server(options: dict[str, Any], url: str, name: str, most: str) -> Server:
    """Return a server by the names of its options."""
    of_all = (options["concurrency"], options["timeout"], options["retries"])
    return Server(options[url], options[name], options[most], *of_all, options=(f"--{url}", f"--{name}"))


def _compared(questions: Sequence[Question], found: Sequence[Ratings], names: tuple[str, str]) -> Any:
    """Return the paired difference of the scores of two models."""
    flat = [[_nan(verdict) for both in ratings for verdict in both] for ratings in found]
    bootstrap = PromptBootstrap([question.id for question in questions for _ in range(2)])
    return compare(mean_of(flat[0]), mean_of(flat[1]), bootstrap, "MT-bench score", names)


def _records(questions: Sequence[Question], answers: Sequence[Answers], ratings: Ratings) -> Records:
    """Return a record for each turn of each question."""
    rows = [
        {
            "id": f"{question.id}, turn {turn + 1}",
            "file": question.row.file,
            "line": question.row.line,
            "category": question.category,
            "turn": turn + 1,
            "question": question.turns[turn],
            "reference": question.references[turn] if question.references else None,
            "answer": own[turn],
            "rating": verdicts[turn].number,
            "judgment": verdicts[turn].text,
        }
        for question, own, verdicts in zip(questions, answers, ratings, strict=True)
        for turn in (0, 1)
    ]
    return {name: [row[name] for row in rows] for name in rows[0]}


def _lowest(questions: Sequence[Question], answers: Sequence[Answers], ratings: Ratings) -> tuple[str, list[Example]]:
    """Return the lowest-rated answers, the unreadable judgments first."""
    records = _records(questions, answers, ratings)
    order = sorted(range(len(records["id"])), key=lambda k: records["rating"][k] or 0.0)[:WORST]
    shown = []
    for k in order:
        rating = records["rating"][k]
        remark = f"{records['category'][k]}, " + ("no readable rating" if rating is None else f"rating {rating:g}")
        texts = {what: records[what][k] for what in ("question", "reference", "answer", "judgment")}
        shown.append(
            Example(f"Question {records['id'][k]}", remark, {name: text for name, text in texts.items() if text})
        )
    return f"The {len(shown)} lowest ratings", shown


def _nan(verdict: Verdict) -> float:
    return float("nan") if verdict.number is None else verdict.number
