"""Pairs of responses to one prompt, compared by a judge in both orders, and the rows of the results."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from lit_pref.data.sources.row import Row
from lit_pref.errors import UserError
from lit_pref.generating.prompts import Prompt
from lit_pref.judging.endpoint_judge import Verdict, request
from lit_pref.judging.judge_templates import REFERENCE, Template
from lit_pref.judging.pair_items import shown
from lit_pref.judging.texts import Answered
from lit_pref.judging.verdicts import BothOrders
from lit_pref.pairs import Text


@dataclass(frozen=True)
class ComparedPair:
    """A response, the response that it is compared with, and the rows that they come from.

    `number` is that of the prompt, which several pairs may have in common.
    """

    number: int
    prompt: Text
    response: Text
    other: Text
    row: Row
    other_row: Row


def compared_pairs(a: Sequence[Answered], b: Sequence[Answered]) -> list[ComparedPair]:
    """Return the pairs of responses of two models to the prompts that both answer: the k-th with the k-th.

    Args:
        a: responses, by prompt.
        b: the responses that they are compared with.

    Raises:
        UserError: no prompt is answered by both, or one has other numbers of responses.
    """
    of_b = {_key(answered): answered for answered in b}
    pairs = []
    for number, answered in enumerate(a):
        other = of_b.get(_key(answered))
        if other is None:
            continue
        if len(other.responses) != len(answered.responses):
            raise UserError(
                f"{answered.rows[0].place}: this prompt has {len(answered.responses)} responses, and "
                f"{len(other.responses)} to compare them with ({other.rows[0].place}); the k-th is compared with the "
                "k-th, so give as many of both"
            )
        every = zip(answered.responses, other.responses, answered.rows, other.rows, strict=True)
        pairs += [ComparedPair(number, answered.prompt, *pair) for pair in every]
    if not pairs:
        raise UserError("The two files answer no prompt in common; compare responses to the same prompts.")
    return pairs


def both_orders(pair: ComparedPair, template: Template, reference: str | None) -> tuple[Prompt, Prompt]:
    """Return what to ask about a pair: with its response shown first, and shown second.

    Args:
        pair: the two responses.
        template: with the fields of a pair.
        reference: the column of the reference answer, in the row of the first response.

    Raises:
        UserError: the row has no reference answer.
    """
    texts = {"prompt": shown(pair.prompt), **reference_text(pair.row, reference)}
    own, other = shown(pair.response), shown(pair.other)
    first, second = (template.fill(texts | {"response_a": a, "response_b": b}) for a, b in ((own, other), (other, own)))
    return tuple(request([{"role": "user", "content": text}], pair.row) for text in (first, second))  # type: ignore[return-value]


def grading_request(prompt: Text, response: Text, row: Row, template: Template, reference: str | None) -> Prompt:
    """Return what to ask for the grade of a response.

    Raises:
        UserError: the row has no reference answer.
    """
    texts = {"prompt": shown(prompt), "response": shown(response), **reference_text(row, reference)}
    return request([{"role": "user", "content": template.fill(texts)}], row)


def reference_text(row: Row, column: str | None) -> dict[str, str]:
    """Return the field of the reference answer, if a column is named.

    Raises:
        UserError: the row has no text there.
    """
    if column is None:
        return {}
    text = row.values.get(column)
    if not isinstance(text, str) or not text:
        raise UserError(
            f"{row.place}: there is no reference answer in `{column}` ({text!r}); name the column of a text by "
            "--reference_text, or leave the option out"
        )
    return {REFERENCE: text}


def orders_of(first: Verdict, second: Verdict) -> BothOrders:
    """Return the preference for a response from the verdicts on both orders, each of which is that for response A."""
    return BothOrders(first.number, None if second.number is None else 1 - second.number)


def compared_rows(pairs: Sequence[ComparedPair], orders: Sequence[BothOrders]) -> Iterator[dict[str, Any]]:
    """Return a row for each pair: its texts, where they come from, and the preference for the first one."""
    for pair, both in zip(pairs, orders, strict=True):
        yield {
            "prompt": pair.prompt,
            "response": pair.response,
            "other_response": pair.other,
            "preference": None if math.isnan(both.preference) else both.preference,
            "when_first": both.when_first,
            "when_second": both.when_second,
            "file": pair.row.file,
            "line": pair.row.line,
            "other_file": pair.other_row.file,
            "other_line": pair.other_row.line,
        }


def annotation_rows(
    pairs: Sequence[ComparedPair], orders: Sequence[BothOrders], names: tuple[str, str], judge: str
) -> Iterator[dict[str, Any]]:
    """Return the pairs in AlpacaEval's layout, which `evaluate` reads: preference + 1, in [1, 2].

    Args:
        pairs: a response and the one that it is compared with, which is AlpacaEval's baseline.
        orders: the verdicts.
        names: of the responses and of the baseline.
        judge: name of the judge.
    """
    for k, (pair, both) in enumerate(zip(pairs, orders, strict=True)):
        yield {
            "index": k,
            "prompt_number": pair.number,
            "instruction": shown(pair.prompt),
            "output_1": shown(pair.other),
            "generator_1": names[1],
            "output_2": shown(pair.response),
            "generator_2": names[0],
            "annotator": judge,
            "preference": None if math.isnan(both.preference) else 1 + both.preference,
            "when_first": both.when_first,
            "when_second": both.when_second,
        }


def training_rows(pairs: Sequence[ComparedPair], orders: Sequence[BothOrders]) -> Iterator[dict[str, Any]]:
    """Return the pairs with a preference as rows that training reads, without ties.

    The probability of the chosen response is the preference p for it, and the margin is p - (1 - p).
    """
    for pair, both in zip(pairs, orders, strict=True):
        p = both.preference
        if math.isnan(p) or p == 0.5:
            continue
        chosen, rejected = (pair.response, pair.other) if p > 0.5 else (pair.other, pair.response)
        probability = max(p, 1 - p)
        yield {
            "prompt": pair.prompt,
            "chosen": chosen,
            "rejected": rejected,
            "probability": probability,
            "margin": 2 * probability - 1,
        }


def _key(answered: Answered) -> str:
    return json.dumps(answered.prompt, sort_keys=True)
