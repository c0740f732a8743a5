"""A JSON array as a file: its entries are rows, read one by one, and damage is named."""

import gzip
import json
import tracemalloc

import pytest

from lit_pref.data.sources.reading import read_rows
from lit_pref.data.sources.row import BadRow
from lit_pref.data.sources.source import Source
from lit_pref.errors import UserError

ROWS = [{"prompt": f"é [{k}], {{", "n": k, "list": [{"a": "]"}]} for k in range(5)]


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("name", ["rows.json", "rows.json.gz"])
def test_the_entries_of_an_array_are_its_rows(tmp_path, indent, name):
    path = tmp_path / name
    data = ("\ufeff " + json.dumps(ROWS, indent=indent, ensure_ascii=False) + "\n").encode()
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    rows = list(read_rows(path))
    assert [row.values for row in rows] == ROWS
    assert rows[2].place == f"{path}, row 3" and Source(str(path)).label == "rows"


def test_a_json_file_of_lines_is_read_as_lines_and_an_empty_array_has_no_row(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    assert [row.values for row in read_rows(path)] == ROWS
    path.write_text("[ ]")
    assert list(read_rows(path)) == []


@pytest.mark.parametrize("size", [10, 2**16 - 3, 2**17])
def test_long_entries_are_read_across_pieces_in_bounded_memory(tmp_path, size):
    path = tmp_path / "rows.json"
    with path.open("w") as file:
        file.write("[" + ",".join(json.dumps({"x": "y" * size, "k": k}) for k in range(64)) + "]")
    tracemalloc.start()
    assert [row.values["k"] for row in read_rows(path)] == list(range(64))
    assert tracemalloc.get_traced_memory()[1] < 2**20 + 12 * size
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('[{"a": 1}, {"a": 2}', "the file ends"),
        ('[{"a": 1}, {"a": 2', "not valid JSON, cut short"),
        ('[{"a": 1} {"a": 2}]', "',' is expected"),
        ('[{"a": 1}, ]', "not valid JSON"),
        ('[{"a": 1}] 2', "something follows"),
    ],
)
def test_a_damaged_array_is_named(tmp_path, text, reason):
    path = tmp_path / "rows.json"
    path.write_text(text)
    with pytest.raises(UserError, match=f"entry [12] of the array: .*{reason}"):
        list(read_rows(path))


def test_an_entry_that_is_no_object_or_has_a_key_twice_is_a_faulty_row(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text('[1, {"a": 1, "a": 2}, {"a": 3}]')
    first, second, third = read_rows(path)
    assert isinstance(first, BadRow) and isinstance(second, BadRow) and third.values == {"a": 3}
