"""Responses to be judged, read from JSONL, Parquet or CSV, with their rows; and pairs made of the judged ones."""

import itertools
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from lit_pref.data.sources.reading import read_source
from lit_pref.data.sources.row import BadRow, Row
from lit_pref.data.sources.source import Source
from lit_pref.errors import UserError, printable
from lit_pref.hints import did_you_mean
from lit_pref.pairs import Text

Pairing = Literal["best_worst", "all", "adjacent"]


@dataclass
class Answered:
    """A prompt and its responses, each with the row that it comes from and, once it is judged, its score.

    The score is NaN for a response whose verdict cannot be read.
    """

    prompt: Text
    responses: list[Text] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)


def read_answered(path: str, prompt: str = "prompt", response: str = "response") -> list[Answered]:
    """Read the responses of a file, in the order in which their prompts appear first.

    A row has one response, as `generate` writes it, or a list of responses.

    Args:
        path: a source as training reads it.
        prompt: the column of the prompt: a text or a list of messages.
        response: the column of the response or responses; a response is a text or a list of messages.

    Raises:
        UserError: a row cannot be read, or lacks a column or a text.
    """
    found: dict[str, Answered] = {}
    for row in read_source(Source(path)):
        if isinstance(row, BadRow):
            raise row
        for name in (prompt, response):
            if name in row.values and row.values[name] is None:
                raise UserError(f"{row.place}: `{name}` is null; give a text, or leave the row out of the file")
            if name not in row.values:
                known = ", ".join(sorted(row.values))
                raise UserError(
                    f"{row.place}: there is no `{name}` (columns: {known}){did_you_mean(name, row.values)}; name the "
                    "columns with --prompt and --response"
                )
        asked, given = row.values[prompt], row.values[response]
        _refuse_half_surrogates(row, prompt, asked)
        one = not isinstance(given, list) or (bool(given) and isinstance(given[0], dict))
        for text in [given] if one else given:
            _check_text(row, response, text)
            key = json.dumps(asked, sort_keys=True)
            answered = found.setdefault(key, Answered(asked))
            answered.responses.append(text)
            answered.rows.append(row)
    if not found:
        raise UserError(f"{path} has no responses")
    return list(found.values())


def take_scores(every: Sequence[Answered], name: str, null: bool = False) -> None:
    """Take the scores of responses from a column: a number in each row, or a list of them for a list of responses.

    Args:
        every: prompts with responses.
        name: the column.
        null: accept null, as `judge` writes it for an unreadable verdict; the score is then NaN.

    Raises:
        UserError: a response has no number.
    """
    for answered in every:
        seen: dict[tuple[str, int], int] = {}
        for row in answered.rows:
            value = row.values.get(name)
            k = seen.get((row.file, row.line), 0)
            seen[row.file, row.line] = k + 1
            value = value[k] if isinstance(value, list) and k < len(value) else value
            if value is None and null and name in row.values:
                value = math.nan
            elif isinstance(value, bool) or not isinstance(value, int | float) or value != value:
                raise UserError(f"{row.place}: `{name}` has no number for a response ({value!r})")
            answered.scores.append(float(value))


def pairs_of(answered: Answered, pairing: Pairing, least: float = 0.0) -> Iterator[dict[str, Any]]:
    """Return pairs of the judged responses to a prompt, as rows that training reads: margin = difference of scores.

    Args:
        answered: a prompt with judged responses.
        pairing: `best_worst` is one pair, `adjacent` pairs neighbours in the order of scores, `all` every two.
        least: leave out pairs whose margin is not above it; ties and responses without a score are always left out.
    """
    known = [k for k, score in enumerate(answered.scores) if not math.isnan(score)]
    order = sorted(known, key=lambda k: -answered.scores[k])
    if pairing == "best_worst":
        chosen = [(order[0], order[-1])] if order else []
    elif pairing == "adjacent":
        chosen = list(itertools.pairwise(order))
    else:
        chosen = list(itertools.combinations(order, 2))
    for w, l in chosen:  # noqa: E741
        margin = answered.scores[w] - answered.scores[l]
        if margin > least and answered.responses[w] != answered.responses[l]:
            yield {
                "prompt": answered.prompt,
                "chosen": answered.responses[w],
                "rejected": answered.responses[l],
                "score_chosen": answered.scores[w],
                "score_rejected": answered.scores[l],
                "margin": margin,
            }


def best_of(answered: Answered, n: int | None = None) -> int | None:
    """Return the index of the response with the highest score, among the first `n`; the earliest of equal ones.

    None if none of them has a score.
    """
    known = [k for k, score in enumerate(answered.scores[:n]) if not math.isnan(score)]
    return max(known, key=lambda k: answered.scores[k], default=None)


def chosen_among(every: Sequence[Answered], n: int) -> list[str]:
    """Return lines that count the prompts with fewer than `n` responses, and those with more, for the best of `n`."""
    numbers = [len(answered.responses) for answered in every]
    fewer, more = [number for number in numbers if number < n], [number for number in numbers if number > n]
    lines = []
    if fewer:
        have = f"{len(fewer)} of {len(every)} prompts have fewer than {n} responses (at most {max(fewer)})"
        lines.append(f"warning     {have}: the best is of those")
    if more:
        have = f"{len(more)} of {len(every)} prompts have more than {n} responses (at most {max(more)})"
        lines.append(f"note        {have}: the best is of the first {n}")
    return lines


def check_new_column(every: Sequence[Answered], name: str) -> None:
    """Refuse a name for the scores that a column has already.

    Raises:
        UserError: a row has such a column.
    """
    for row in (row for answered in every for row in answered.rows):
        if name in row.values:
            raise UserError(f"{row.place}: there is a column `{name}` already; name another with --column")


def is_cut(row: Row) -> bool:
    """Whether the response of a row ended at the length limit of `generate`, without an end token."""
    return row.values.get("finish_reason") == "length"


def judged_rows(every: Sequence[Answered], name: str) -> Iterator[dict[str, Any]]:
    """Return the rows of the file with the score of each response in the column `name`, in the file's order.

    A row with a list of responses gets the list of their scores; a response without a score has null.
    """
    scores: dict[tuple[str, int], list[float | None]] = {}
    rows: dict[tuple[str, int], Row] = {}
    for answered in every:
        for row, score in zip(answered.rows, answered.scores, strict=True):
            scores.setdefault((row.file, row.line), []).append(None if math.isnan(score) else score)
            rows[row.file, row.line] = row
    for place in sorted(rows):
        found = scores[place]
        yield {**rows[place].values, name: found if len(found) > 1 else found[0]}


def _check_text(row: Row, column: str, text: Any) -> None:
    messages = isinstance(text, list) and text and all(isinstance(m, dict) and m.get("content") for m in text)
    if not messages and not (isinstance(text, str) and text):
        raise UserError(f"{row.place}: `{column}` must be a text or a list of messages, and none may be empty")
    _refuse_half_surrogates(row, column, text)


def _refuse_half_surrogates(row: Row, column: str, text: Any) -> None:
    written = json.dumps(text, ensure_ascii=False)
    if printable(written) != written:
        raise UserError(
            f"{row.place}: `{column}` contains half a surrogate pair, which is no character; fix the text's encoding, "
            "or leave the row out of the file"
        )
