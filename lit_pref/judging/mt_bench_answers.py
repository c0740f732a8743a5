"""Answers of a model to MT-bench's questions, and the ratings that a judge gives them; both are kept in folders."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from lit_pref.data.sources.row import BadRow
from lit_pref.errors import UserError
from lit_pref.generating.blocks import ERROR
from lit_pref.generating.endpoint import AT_ONCE
from lit_pref.generating.engine import Engine
from lit_pref.generating.generate import generate_into
from lit_pref.generating.prompts import Prompt, PromptFile
from lit_pref.judging.endpoint_judge import EndpointJudge, Verdict, request
from lit_pref.judging.mt_bench import TEMPERATURES, GradingPrompt, Question, grading_messages, rating
from lit_pref.models.sampling import Sampling
from lit_pref.pairs import Message
from lit_pref.printing import say

BLOCK = 16
"""Answers that are written together."""
OTHER_TEMPERATURE = 0.7
"""The temperature of categories that MT-bench does not have, as in FastChat."""
Answers = tuple[str, str]
"""The answers to both turns of a question."""


def answer_questions(engine: Engine, questions: Sequence[Question], most: int, out: Path) -> list[Answers]:
    """Return a model's answers to both turns of each question, at the temperature of its category.

    An answer that the model refuses or leaves empty is the empty text, which the judge grades.

    Args:
        engine: the model; its temperature is set here.
        questions: from `read_questions`.
        most: the most tokens of an answer, as the engine has it.
        out: the folder of answers, which are not asked for again.

    Raises:
        UserError: a question does not fit into the model, or requests failed.
        UsageError: the folder has answers to other questions, or with other settings.
    """
    asked: list[list[Message]] = [[_user(question.turns[0])] for question in questions]
    first = _answers(engine, questions, asked, most, out, 1)
    for messages, question, answer in zip(asked, questions, first, strict=True):
        messages += [{"role": "assistant", "content": answer}, _user(question.turns[1])]
    second = _answers(engine, questions, asked, most, out, 2)
    for line in engine.last_lines():
        say(line)
    return list(zip(first, second, strict=True))


def rate_answers(
    judge: EndpointJudge,
    questions: Sequence[Question],
    answers: Sequence[Answers],
    prompts: Mapping[str, GradingPrompt],
) -> list[tuple[Verdict, Verdict]]:
    """Ask a judge for the ratings of both turns of each question.

    Raises:
        UserError: requests failed, or too many ratings are unreadable.
        UsageError: the judge's folder has other answers.
    """
    requests = [
        request(messages, question.row)
        for question, own in zip(questions, answers, strict=True)
        for messages in grading_messages(question, own, prompts)
    ]
    found = judge.ask(requests, rating, "a rating from 1 to 10 such as [[6]]", {})
    return list(zip(found[::2], found[1::2], strict=True))


def _answers(
    engine: Engine, questions: Sequence[Question], asked: Sequence[list[Message]], most: int, out: Path, turn: int
) -> list[str]:
    """Return the answers to one turn: the questions of each temperature have a folder."""
    of = [TEMPERATURES.get(question.category, OTHER_TEMPERATURE) for question in questions]
    found: dict[int, str] = {}
    for temperature in sorted(set(of)):
        places = [k for k, own in enumerate(of) if own == temperature]
        # The same question twice is asked twice, so that every question has a row of its own.
        requests = [request(asked[k], questions[k].row) for k in places]
        requests = [replace(one, id=f"{questions[k].id}-{one.id}") for k, one in zip(places, requests, strict=True)]
        engine.sampling = Sampling(temperature)
        usable = _usable(engine, requests)
        for line in engine.describe(usable) if turn == 1 and not found else ():
            say(line)
        rows = _rows(engine, usable, most, out / f"turn_{turn}_temperature_{temperature:g}", temperature)
        found |= dict(zip(places, rows, strict=True))
    return [found[k] for k in range(len(questions))]


def _usable(engine: Engine, requests: Sequence[Prompt]) -> list[Prompt]:
    """Return the requests, of which the model must be able to answer each.

    Raises:
        UserError: it cannot.
    """
    try:
        return engine.usable(requests, PromptFile("the questions"))
    except UserError as error:
        bad = error.__cause__  # the error itself names options of other commands
        if not isinstance(bad, BadRow):
            raise
        raise UserError(
            f"{bad.row_place}: the model cannot answer a turn of this question ({bad.kind}): lower --max_new_tokens, "
            "so that the first answer leaves room for the second, or take a model with a longer context"
        ) from bad


def _rows(engine: Engine, requests: Sequence[Prompt], most: int, out: Path, temperature: float) -> list[str]:
    """Return the answers to requests of one temperature.

    Raises:
        UserError: some are missing.
    """
    settings = {"temperature": temperature, "samples": 1, "seed": 0, "max_new_tokens": most, "block": BLOCK}
    blocks = generate_into(out, engine, requests, settings, {})
    blocks.merge()
    rows = [row for block in blocks.all for row in blocks.rows(block) or ()]
    if cut := sum(row["finish_reason"] == "length" for row in rows):
        say(f"note        {cut} of {len(rows)} answers were cut at --max_new_tokens")
    errors = [str(row.get("error")) for row in rows if row["finish_reason"] == ERROR]
    if failed := [error for error in errors if error.partition(":")[0] not in AT_ONCE]:
        raise UserError(
            f"{len(failed)} of {len(rows)} answers are missing ({failed[0]}); the others are kept in {out}, and the "
            "same command asks for the missing ones alone"
        )
    return [row["response"] for row in rows]


def _user(text: str) -> Message:
    return {"role": "user", "content": text}
