"""MT-bench: a judge grades answers to two-turn questions from 1 to 10. The caller asks the judge."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeGuard

import numpy as np

from lit_pref.data.sources.reading import read_source
from lit_pref.data.sources.row import BadRow, Row
from lit_pref.data.sources.source import Source
from lit_pref.errors import UserError
from lit_pref.judging.comparison import Interval, PromptBootstrap, mean_of
from lit_pref.pairs import Message

HUB = "HuggingFaceH4/mt_bench_prompts:train"
WITH_REFERENCE = ("math", "reasoning", "coding")
"""Categories whose answers are graded against a reference answer."""
TEMPERATURES = {"writing": 0.7, "roleplay": 0.7, "extraction": 0.0, "math": 0.0, "coding": 0.0, "reasoning": 0.0}
TEMPERATURES |= {"stem": 0.1, "humanities": 0.1}
"""The temperature with which models answer the questions of a category; the judge has temperature 0."""
PROMPTS = Path(__file__).with_name("mt_bench_prompts.jsonl")
_NAMES = ("single-v1", "single-math-v1", "single-v1-multi-turn", "single-math-v1-multi-turn")
_RATING, _LOOSE_RATING = re.compile(r"\[\[(\d+\.?\d*)\]\]"), re.compile(r"\[(\d+\.?\d*)\]")


@dataclass(frozen=True)
class Question:
    """A question in two turns; `references` has the reference answers to both turns, or is empty.

    `row` is where it comes from, without the row's values.
    """

    id: str
    category: str
    turns: tuple[str, str]
    references: tuple[str, ...] = ()
    row: Row = field(default=Row("", 0, {}), compare=False)


@dataclass(frozen=True)
class GradingPrompt:
    """The prompt of a judge: a system message, and a template for the user's message."""

    system: str
    template: str


@dataclass(frozen=True)
class MTBench:
    """Mean ratings with intervals over questions; `unreadable` is the number of judgments without a rating."""

    score: Interval
    turns: tuple[Interval, Interval]
    categories: dict[str, Interval]
    questions: int
    unreadable: int


def read_questions(source: str, references: str | None = None) -> list[Question]:
    """Read questions in FastChat's layout (`question.jsonl`), or in that of HuggingFaceH4/mt_bench_prompts:train.

    The former has `question_id`, `category`, `turns`, and its reference answers are a file of their own
    (`reference_answer/gpt-4.jsonl`); the latter has `prompt_id`, `category`, `prompt` and `reference`.

    Args:
        source: a file, or a dataset on the hub.
        references: a file of reference answers in FastChat's layout of answers, which replaces the column `reference`.

    Raises:
        UserError: a row lacks a column, a question does not have two turns, or one that needs reference answers has
            none.
    """
    given = read_answers(references) if references is not None else {}
    questions: dict[str, Question] = {}
    for row in _rows(source):
        number = str(row.values.get("question_id", row.values.get("prompt_id")))
        turns = row.values.get("turns", row.values.get("prompt"))
        category = row.values.get("category")
        if number == "None" or not isinstance(category, str) or not _are_texts(turns) or len(turns) != 2:
            raise UserError(
                f"{row.place}: MT-bench's questions have question_id, category, and two texts in turns (or prompt_id, "
                f"category and prompt); this row has {', '.join(sorted(row.values))}."
            )
        own = given.get(number) or row.values.get("reference") or ()
        if category in WITH_REFERENCE and not (_are_texts(own) and len(own) == 2):
            raise UserError(
                f"{row.place}: question {number} is about {category} and needs two reference answers; give the file "
                "of reference answers (FastChat's reference_answer/gpt-4.jsonl)."
            )
        if number in questions:
            raise UserError(f"{row.place}: question {number} occurs twice.")
        used = tuple(own) if category in WITH_REFERENCE else ()
        questions[number] = Question(number, category, (turns[0], turns[1]), used, replace(row, values={}))
    if not questions:
        raise UserError(f"{source} has no questions.")
    return list(questions.values())


def read_answers(source: str) -> dict[str, tuple[str, str]]:
    """Read answers to both turns in FastChat's layout: `question_id`, `choices: [{turns: [..., ...]}]`, by question.

    Raises:
        UserError: a row is of another layout.
    """
    answers = {}
    for row in _rows(source):
        try:
            number, (first, second) = str(row.values["question_id"]), row.values["choices"][0]["turns"]
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise UserError(f"{row.place}: an answer needs question_id and choices[0].turns with two texts.") from error
        answers[number] = (first, second)
    return answers


def read_grading_prompts(path: Path | str = PROMPTS) -> dict[str, GradingPrompt]:
    """Read the judge's prompts from a file in FastChat's layout (`judge_prompts.jsonl`).

    The shipped prompts are in our own words and ask for the same; for ratings that are compared with published ones,
    give FastChat's own file.

    Raises:
        UserError: one of the four prompts for single answers is missing.
    """
    found = {}
    for row in _rows(str(path)):
        name = row.values.get("name")
        if name in _NAMES:
            system, template = row.values.get("system_prompt"), row.values.get("prompt_template")
            if not isinstance(system, str) or not isinstance(template, str):
                raise UserError(f"{row.place}: a prompt needs the texts system_prompt and prompt_template.")
            found[name] = GradingPrompt(system, template)
    if missing := [name for name in _NAMES if name not in found]:
        raise UserError(f"{path} has no prompt {' and no '.join(missing)}; see lit_pref/judging/{PROMPTS.name}.")
    return found


def check_grading_prompts(prompts: Mapping[str, GradingPrompt]) -> None:
    """Refuse prompts that cannot be filled in, or that do not show the judge what it is to grade.

    Raises:
        UserError: a prompt has an unknown placeholder, or lacks the answer or the reference.
    """
    # Marks that no prompt has of its own.
    texts = {what: (f"⟦{what} 1⟧", f"⟦{what} 2⟧") for what in ("question", "answer", "reference")}
    for references, name in (((), "single-v1"), (texts["reference"], "single-math-v1")):
        question = Question("", "", texts["question"], references)
        messages = grading_messages(question, texts["answer"], prompts)
        for turn, (kind, asked) in enumerate(zip((name, f"{name}-multi-turn"), messages, strict=True), start=1):
            for what in ("question", "answer", *(["reference"] if references else [])):
                if texts[what][turn - 1] not in str(asked[-1]["content"]):
                    raise UserError(f"The judge's prompt {kind} does not show the {what} of turn {turn}.")


def grading_messages(
    question: Question, answers: Sequence[str], prompts: Mapping[str, GradingPrompt]
) -> tuple[list[Message], list[Message]]:
    """Return what a judge is asked about the answers to the first and to the second turn, as chat messages.

    The second judgment shows both turns. Questions with reference answers use the prompts with `math` in their name.

    **Source** Zheng et al., NeurIPS 2023, arXiv 2306.05685; github.com/lm-sys/FastChat, fastchat/llm_judge/common.py
    (`run_judge_single`) and gen_judgment.py.

    Args:
        question: with reference answers if its category needs them.
        answers: of the model to both turns.
        prompts: from `read_grading_prompts`.

    Raises:
        UserError: a template has an unknown placeholder.
    """
    kind = "single-math-v1" if question.references else "single-v1"
    texts = {f"ref_answer_{k}": text for k, text in enumerate(question.references, start=1)}
    first = texts | {"question": question.turns[0], "answer": answers[0]}
    both = dict(zip(("question_1", "question_2", "answer_1", "answer_2"), (*question.turns, *answers), strict=True))
    return _messages(kind, prompts, first), _messages(f"{kind}-multi-turn", prompts, texts | both)


def _messages(name: str, prompts: Mapping[str, GradingPrompt], texts: Mapping[str, str]) -> list[Message]:
    try:
        filled = prompts[name].template.format(**texts)
    except (KeyError, IndexError, ValueError) as error:
        raise UserError(
            f"The judge's prompt {name} cannot be filled in ({error}); its placeholders are {{{'}, {'.join(texts)}}}, "
            "and a literal brace is written twice."
        ) from error
    return [{"role": "system", "content": prompts[name].system}, {"role": "user", "content": filled}]


def rating(judgment: str) -> float | None:
    """Return the rating in a judgment: the first `[[number]]`, or else the first `[number]`; None without one.

    Unlike FastChat, a number outside of 1 to 10 is not accepted.

    >>> rating("Good. Rating: [[7.5]]"), rating("Rating: [8]"), rating("I give it a 9."), rating("[[85]]")
    (7.5, 8.0, None, None)
    """
    match = _RATING.search(judgment) or _LOOSE_RATING.search(judgment)
    number = float(match[1]) if match else 0.0
    return number if 1 <= number <= 10 else None


def mt_bench(questions: Sequence[Question], ratings: Sequence[Sequence[float | None]]) -> MTBench:
    """Return the mean ratings of a model.

    The score is the mean over all ratings of both turns; judgments without a rating are left out and counted.

    **Source** github.com/lm-sys/FastChat, fastchat/llm_judge/show_result.py (`display_result_single`).

    Args:
        questions: from `read_questions`.
        ratings: for each question the ratings of both turns; None for a judgment without one.
    """
    table = np.array([[np.nan if number is None else number for number in own] for own in ratings], dtype=np.float64)
    if table.shape != (len(questions), 2):
        raise ValueError(f"{len(questions)} questions and ratings of shape {table.shape}: expected two for each")
    names = list(dict.fromkeys(question.category for question in questions))
    # Both turns of a question are items of one prompt; each column takes the mean over the items that it counts.
    flat, of_turn = table.ravel(), np.tile([0, 1], len(questions))
    category = np.repeat([names.index(question.category) for question in questions], 2)
    columns = [flat, *(np.where(of_turn == k, flat, np.nan) for k in (0, 1))]
    columns += [np.where(category == k, flat, np.nan) for k in range(len(names))]
    prompts = [question.id for question in questions for _ in range(2)]
    score, first, second, *rest = PromptBootstrap(prompts).intervals(mean_of(np.stack(columns, axis=1)))
    categories = dict(zip(names, rest, strict=True))
    return MTBench(score, (first, second), categories, len(questions), int(np.isnan(table).sum()))


def _rows(source: str) -> Iterator[Row]:
    for row in read_source(Source(source)):
        if isinstance(row, BadRow):
            raise row
        yield row


def _are_texts(value: object) -> TypeGuard[Sequence[str]]:
    return isinstance(value, list | tuple) and all(isinstance(text, str) for text in value)
