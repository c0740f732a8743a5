"""A server as the judge of `judge`: grades of single responses, or preferences between two in both orders."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lit_pref.judging.endpoint_judge import EndpointJudge, Verdict
from lit_pref.judging.judge_templates import GRADING, PAIRWISE, Template, read_template
from lit_pref.judging.pairwise import (
    annotation_rows,
    both_orders,
    compared_pairs,
    compared_rows,
    grading_request,
    orders_of,
    training_rows,
)
from lit_pref.judging.texts import Answered, read_answered
from lit_pref.judging.verdicts import choice_of, grade_of, position_bias
from lit_pref.judging.win_rate import win_rate
from lit_pref.printing import say


def grade(
    every: list[Answered], judge: EndpointJudge, template: Path | None, reference: str | None
) -> list[list[Verdict]]:
    """Ask for grades, set the scores of all responses, and print how the grades are distributed.

    Raises:
        UserError: requests failed, too many verdicts are unreadable, or a reference answer is missing.
        UsageError: the template is unusable.
    """
    form = read_template(template, GRADING, reference is not None)
    requests = [
        [grading_request(answered.prompt, text, row, form, reference) for text, row in _texts(answered)]
        for answered in every
    ]
    needed = "exactly one number from 1 to 10 in double square brackets, such as [[6]]"
    flat = [one for own in requests for one in own]
    verdicts = iter(judge.ask(flat, grade_of, needed, _about(form)))
    found = [[next(verdicts) for _ in own] for own in requests]
    for answered, own in zip(every, found, strict=True):
        answered.scores = [float("nan") if verdict.number is None else verdict.number for verdict in own]
    known = sorted(score for answered in every for score in answered.scores if score == score)
    if known:
        say(f"grades      {known[0]:g} to {known[-1]:g}, mean {sum(known) / len(known):.3g}")
    return found


def compare_in_both_orders(
    a: tuple[str, str], b: tuple[str, str], prompt: str, judge: EndpointJudge, form: tuple[Path | None, str | None]
) -> dict[str, Iterable[dict[str, Any]]]:
    """Ask which of two responses is better, in both orders, and return the rows of the files to write, by name.

    Args:
        a: the file of the responses, and their column.
        b: those that they are compared with.
        prompt: the column of the prompt.
        judge: the server.
        form: the template, and the column of reference answers.

    Raises:
        UserError: a text cannot be read, requests failed, or too many verdicts are unreadable.
        UsageError: the template is unusable.
    """
    template = read_template(form[0], PAIRWISE, form[1] is not None)
    own, other = read_answered(a[0], prompt, a[1]), read_answered(b[0], prompt, b[1])
    pairs = compared_pairs(own, other)
    names = (a[0], b[0]) if a[0] != b[0] else (a[1], b[1])
    say(f"pairs       {len(pairs)} of {' against '.join(names)}, each asked about in both orders")
    prompts = len({pair.number for pair in pairs})
    if alone := len(own) + len(other) - 2 * prompts:
        say(f"warning     {alone} prompts are answered in one file only, and are left out")
    requests = [one for pair in pairs for one in both_orders(pair, template, form[1])]
    verdicts = judge.ask(requests, choice_of, "exactly one of [[A]], [[B]] and [[C]]", _about(template))
    orders = [orders_of(*two) for two in zip(verdicts[::2], verdicts[1::2], strict=True)]
    preference = [both.preference for both in orders]
    if any(value == value for value in preference):
        found = win_rate(preference, [str(pair.number) for pair in pairs])
        left = f"; {found.left_out} pairs without two readable verdicts are left out" if found.left_out else ""
        say(f"win rate    {found.rate}: {found.wins} wins, {found.ties} ties, {found.losses} losses{left}")
    say(f"orders      {position_bias(orders).sentence}")
    rows = annotation_rows(pairs, orders, names, str(judge.engine.name))
    return {
        "judged.jsonl": compared_rows(pairs, orders),
        "annotations.jsonl": rows,
        "pairs.jsonl": training_rows(pairs, orders),
    }


def _texts(answered: Answered) -> Iterable[tuple[Any, Any]]:
    return zip(answered.responses, answered.rows, strict=True)


def _about(template: Template) -> dict[str, Any]:
    return {"template": template.digest}
