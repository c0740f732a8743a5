"""What a judge is asked, by templates that users replace, and how its verdicts are read."""

from pathlib import Path

import pytest

from lit_pref.errors import UsageError
from lit_pref.judging.judge_templates import GRADING, PAIRWISE, read_template
from lit_pref.judging.verdicts import BothOrders, choice_of, grade_of, position_bias


@pytest.mark.parametrize(
    ("verdict", "preference", "grade"),
    [
        ("B is wrong.\n[[A]]", 1.0, None),
        ("[[B]] because ... so [[B]]", 0.0, None),
        ("[[C]] [[10]]", 0.5, 10.0),
        ("<think>[[A]] or [[3]]?</think>\n[[B]] [[1]]", 0.0, 1.0),
        ("<think>[[A]] [[3]] and then it was cut", None, None),
        ("[[A]] or [[B]]", None, None),
        ("[[7]] out of [[10]]", None, None),
        ("[[0]]", None, None),
        ("[[10.5]]", None, None),
        ("[[-3]]", None, None),
        ("[[6.5]] and again [[6.50]]", None, 6.5),
        ("[A] [7] Answer A, 7/10", None, None),
        ("[[tie]] [[five]]", None, None),
        ("", None, None),
    ],
)
def test_verdicts_are_read_strictly(verdict: str, preference: float | None, grade: float | None):
    assert (choice_of(verdict), grade_of(verdict)) == (preference, grade)


def test_both_orders_are_averaged_and_their_disagreement_is_counted():
    every = [BothOrders(1, 1), BothOrders(1, 0), BothOrders(0, 0.5), BothOrders(0.5, 0.5), BothOrders(None, 1)]
    assert [both.preference for both in every[:4]] == [1.0, 0.5, 0.25, 0.5]
    assert every[4].preference != every[4].preference, "one order is not averaged"
    found = position_bias(every)
    assert (found.pairs, found.first, found.second, found.ties, found.share) == (4, 1, 1, 1, 0.5)
    assert "disagree on 2 of 4 pairs (50 %)" in found.sentence
    assert "No pair" in position_bias(every[4:]).sentence


@pytest.mark.parametrize(("needed", "reference"), [(PAIRWISE, False), (PAIRWISE, True), (GRADING, False)])
def test_shipped_templates_show_every_field_and_ask_for_what_is_read(needed: tuple[str, ...], reference: bool):
    template = read_template(None, needed, reference)
    filled = template.fill({name: f"<the {name}>" for name in template.fields})
    assert set(template.fields) == {*needed, *(["reference"] if reference else [])}
    assert all(f"\n<the {name}>\n" in filled for name in template.fields)
    assert ("[[A]]" if needed == PAIRWISE else "[[4]]") in filled


@pytest.mark.parametrize(
    ("text", "needed", "reference", "said"),
    [
        ("{prompt} {respons}", GRADING, False, r"unknown field \{respons\}; did you mean response\?"),
        (
            "{prompt} {response_a}",
            GRADING,
            False,
            r"unknown field \{response_a\}.*fields here are \{prompt\}, \{response",
        ),
        ("{prompt} {response_b}", PAIRWISE, False, r"lacks the field \{response_a\}, so the judge would not see it"),
        ("{prompt} {response} {reference}", GRADING, False, r"shows a \{reference\}; .*--reference_text COLUMN"),
        ("{prompt} {response}", GRADING, True, r"lacks the field \{reference\}"),
        (b"\xff{prompt}", GRADING, False, "cannot be read as a text file"),
    ],
)
def test_a_template_that_lacks_a_field_or_has_an_unknown_one_is_refused(
    tmp_path: Path, text: str | bytes, needed: tuple[str, ...], reference: bool, said: str
):
    path = tmp_path / "mine.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UsageError, match=said):
        read_template(path, needed, reference)
    with pytest.raises(UsageError, match=r"--template .*none.txt cannot be read"):
        read_template(tmp_path / "none.txt", needed, reference)


def test_texts_are_filled_in_as_they_are(tmp_path: Path):
    path = tmp_path / "mine.txt"
    path.write_text('{prompt} {response} {{response}} {"a": 1} { prompt }')
    template = read_template(path, GRADING, reference=False)
    assert template.fill({"prompt": "{response}", "response": "\\1 {{x}}"}) == (
        '{response} \\1 {{x}} {response} {"a": 1} { prompt }'
    )
