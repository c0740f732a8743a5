"""A prompt of several columns, and a margin column of another name."""

import pytest

from lit_pref.data.checking.row_reader import RowReader
from lit_pref.data.formats.convert import Conversion
from lit_pref.data.formats.load import mapping_of
from lit_pref.data.sources.row import BadRow, Row
from lit_pref.errors import UserError

TEXTS = {"instruction": "Translate.", "input": "Bonjour", "chosen": "Hello", "rejected": "Bye"}


def pair(mapping, **more):
    row = Row("some.jsonl", 1, {name: value for name, value in (TEXTS | more).items() if value != ()})
    (canonical,) = Conversion(mapping_of(mapping, lambda: [row])).canonical_rows([row])
    if isinstance(canonical, BadRow):
        raise canonical
    return RowReader().read(canonical)


JOINED = {"kind": "pair", "prompt": "instruction", "prompt_then": ["input"], "chosen": "chosen", "rejected": "rejected"}


@pytest.mark.parametrize(
    ("more", "prompt"),
    [({}, "Translate.\n\nBonjour"), ({"input": ""}, "Translate."), ({"input": None}, "Translate.")],
)
def test_a_prompt_is_joined_from_columns(more, prompt):
    assert pair(JOINED, **more).prompt == prompt
    assert pair(JOINED | {"format": "messages"}, **more).prompt == [{"role": "user", "content": prompt}]
    ab = {"kind": "ab", "prompt": "instruction", "prompt_then": ["input"], "a": "chosen", "b": "rejected"}
    assert pair(ab | {"label": {"column": "l", "a": 0, "b": 1}}, l=1, **more).chosen == "Bye"


def test_a_joined_part_that_is_no_text_is_a_faulty_row():
    with pytest.raises(BadRow, match="input is not a text"):
        pair(JOINED, input=3)
    with pytest.raises(UserError, match="`prompt_then` follows a `prompt`"):
        pair({**JOINED, "prompt": None})


def test_a_margin_column_has_any_name():
    texts = {"prompt": "q", "margins": -2.0}
    for mapping in ({"margin": {"column": "margins"}}, {"kind": "pair", "prompt": "prompt", **SIDES}):
        given = mapping | {"margin": {"column": "margins", "positive_means": "chosen", "clip": 1.5}}
        read = pair(given, instruction=(), input=(), **texts)
        assert (read.chosen, read.margin) == ("Bye", 1.5)
    turned = pair({"margin": {"column": "margins", "positive_means": "rejected"}}, instruction=(), input=(), **texts)
    assert (turned.chosen, turned.margin) == ("Hello", 2.0)
    with pytest.raises(UserError, match=r"`margin.column` and `signed` both"):
        both = {"margin": {"column": "margins"}, "signed": {"column": "margins", "positive_means": "chosen"}}
        pair(both, instruction=(), input=(), **texts)


SIDES = {"chosen": "chosen", "rejected": "rejected"}
