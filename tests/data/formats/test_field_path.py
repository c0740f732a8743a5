"""Where a value is in a row."""

import pytest

from lit_pref.data.formats.field_path import ValuePath
from lit_pref.errors import UsageError

ROW = {
    "plain": 1,
    "with-hyphen": 2,
    "a.b": 3,
    "deep": {"full_text": "t", "list": [{"x": [10, 11]}, {"y": 5}]},
    "null": None,
    "empty": [],
}


@pytest.mark.parametrize(
    "path, value, within",
    [
        ("plain", 1, True),
        ("with-hyphen", 2, True),
        ("a.b", 3, True),
        ("deep.full_text", "t", True),
        ("deep.list[0].x[1]", 11, True),
        ("deep.list[].x", [[10, 11], None], True),
        ("deep.list[]", [{"x": [10, 11]}, {"y": 5}], True),
        ("deep.list[].z", [None, None], False),
        ("deep.list[7].x", None, False),
        ("deep.gone", None, False),
        ("plain.gone", None, False),
        ("plain[0]", None, False),
        ("plain[]", None, False),
        ("null", None, True),
        ("null.more", None, False),
        ("empty[]", [], False),
    ],
)
def test_a_path_leads_to_its_value_or_to_nothing(path, value, within):
    assert (ValuePath(path).of(ROW), ValuePath(path).within(ROW)) == (value, within)


def test_a_path_to_many_names_each_of_them():
    assert ValuePath("a[].b").many and ValuePath("a[].b").entry(3) == "a[3].b"
    assert not ValuePath("a[1].b").many


@pytest.mark.parametrize("path", ["", ".", "a.", ".a", "a[x]", "a[", "[0]", "a[].b[]", "a..b", "a[-1]"])
def test_what_is_no_path_is_refused(path):
    with pytest.raises(UsageError, match=r"is not a path into a row; write a column"):
        ValuePath(path)
