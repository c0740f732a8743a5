"""Rows with their places, and one sentence for every way in which a file can be wrong."""

import gzip
import json
import math
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lit_pref.data.sources.reading import read_rows
from lit_pref.data.sources.row import BadRow, Row
from lit_pref.errors import UserError


def rows(path):
    return [(row.line, row.values) for row in read_rows(path)]


def test_jsonl_and_its_gzip_give_the_same_rows_with_line_numbers(tmp_path):
    text = '{"prompt": "a"}\n\n{"prompt": "ü", "margin": 2}\n'
    (tmp_path / "a.jsonl").write_text(text, encoding="utf-8")
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    expected = [(1, {"prompt": "a"}), (3, {"prompt": "ü", "margin": 2})]
    assert rows(tmp_path / "a.jsonl") == rows(str(tmp_path / "a.jsonl.gz")) == expected


def test_a_byte_order_mark_is_no_part_of_the_first_row(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"prompt": "a"}\n')
    assert rows(tmp_path / "a.jsonl") == [(1, {"prompt": "a"})]


def test_parquet_rows_are_numbered_through_all_batches(tmp_path):
    table = pa.table({"prompt": [f"p{k}" for k in range(600)], "margin": [0.5 * k for k in range(600)]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=100)
    assert rows(tmp_path / "a.parquet")[599] == (600, {"prompt": "p599", "margin": 299.5})


def test_reading_holds_one_line_and_not_the_file(tmp_path):
    # The damage after the first line is only met when the second one is asked for.
    (tmp_path / "a.jsonl").write_bytes(b'{"prompt": "a"}\n\0\0')
    stream = read_rows(tmp_path / "a.jsonl")
    assert next(stream).values == {"prompt": "a"}
    with pytest.raises(UserError):
        next(stream)


@pytest.mark.parametrize(
    "line, sentence, kind",
    [
        (
            b'{"prompt" "a"}',
            r"a.jsonl, line 2: not valid JSON \(Expecting ':' delimiter at character 11\); every line must be one JSON "
            r"object, or leave such rows out with data.bad_rows: lenient\.$",
            "not valid JSON",
        ),
        (b'{"prompt": "a",}', r"line 2: not valid JSON \(a comma before the closing bracket at", "not valid JSON"),
        (b'{"prompt": "a"},', r"line 2: not valid JSON \(a comma after the object at character 16\)", "not valid JSON"),
        (b"[1, 2]", "line 2: a JSON list, not an object; every line must be", "a JSON list, not an object"),
        (b'"text"', "line 2: a JSON str, not an object", "a JSON str, not an object"),
        (b"null", "line 2: a JSON NoneType, not an object", "a JSON NoneType, not an object"),
        (b'{"prompt": "\xff"}', r"line 2: not UTF-8 \(byte 13\); save the file in UTF-8", "not UTF-8"),
        (b'{"m": 1, "p": 2, "m": 3}', r"line 2: has a key twice \('m'\); keep one", "has a key twice"),
        (b'{"p": [{"m": 1, "m": 1}]}', r"line 2: has a key twice \('m'\); keep one", "has a key twice"),
    ],
)
def test_a_line_that_is_no_object_is_named_and_the_next_one_is_read(tmp_path, line, sentence, kind):
    (tmp_path / "a.jsonl").write_bytes(b'{"prompt": "a"}\n' + line + b'\n{"prompt": "b"}\n')
    first, bad, last = read_rows(tmp_path / "a.jsonl")
    assert (first.line, first.values, last.line, last.values) == (1, {"prompt": "a"}, 3, {"prompt": "b"})
    assert isinstance(bad, BadRow) and bad.kind == kind and bad.row_place == f"{tmp_path / 'a.jsonl'}, line 2"
    assert re.search(sentence, str(bad))


def test_a_truncated_gzip_says_how_far_it_went(tmp_path):
    import random

    letters = random.Random(0)
    lines = "".join(f'{{"prompt": "{letters.getrandbits(400):x}"}}\n' for _ in range(2000))
    whole = gzip.compress(lines.encode())
    (tmp_path / "a.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"a.jsonl.gz is damaged after line \d{2,4} .* fetch it again"):
        rows(tmp_path / "a.jsonl.gz")


def test_a_missing_file_names_the_nearest_one_beside_it(tmp_path):
    (tmp_path / "pairs_train.jsonl").write_text("")
    with pytest.raises(UserError, match=r"no file .*pairs_trian.jsonl; did you mean .*/pairs_train.jsonl\?$"):
        rows(tmp_path / "pairs_trian.jsonl")
    with pytest.raises(UserError, match=r"contains pairs_train.jsonl\.$"):
        rows(tmp_path / "zzz")
    with pytest.raises(UserError, match=r"the folder .*/nowhere does not exist either"):
        rows(tmp_path / "nowhere" / "pairs.jsonl")


def test_folders_and_unknown_endings_are_refused(tmp_path):
    (tmp_path / "pairs.txt").write_text("{}")
    with pytest.raises(UserError, match=r"pairs.txt has an unknown ending; .* \.jsonl, \.jsonl\.gz, \.parquet"):
        rows(tmp_path / "pairs.txt")
    with pytest.raises(UserError, match="is not a file"):
        rows(tmp_path)
    with pytest.raises(UserError, match="There is no file x"):
        rows("x" * 300 + ".jsonl")


def test_a_place_names_the_row_where_there_are_no_lines():
    assert Row("a/b.jsonl", 3, {}).place == "a/b.jsonl, line 3"
    assert Row("b.csv.gz", 3, {}).place == "b.csv.gz, line 3"
    assert Row("a/b.parquet", 3, {}).place == "a/b.parquet, row 3"
    assert Row("owner/some-name:train", 3, {}).place == "owner/some-name:train, row 3"
    assert Row("owner/name:train[:5%]", 3, {}).place == "owner/name:train[:5%], row 3"


def test_types_and_columns_may_change_from_line_to_line_and_nothing_is_lost(tmp_path):
    # A reader that infers the types of a block of lines turns 2 into "2", or drops `late`, or gives up.
    lines = [{"margin": 1.5}] * 3000 + [
        {"margin": "2"},
        {"margin": None, "late": [1, "a", {"b": None}]},
        {"other": True},
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [values for _, values in rows(tmp_path / "a.jsonl")] == lines


def test_numbers_beyond_all_bounds_are_read_as_what_they_are(tmp_path):
    # Checks of numbers refuse what is not finite, by the name of the field; an unused column may hold what it likes.
    (tmp_path / "a.jsonl").write_text('{"a": NaN, "b": -Infinity, "c": 1e999, "d": 123456789012345678901234567890}\n')
    [(_, values)] = rows(tmp_path / "a.jsonl")
    assert math.isnan(values["a"]) and values["b"] == -math.inf and values["c"] == math.inf
    assert values["d"] == 123456789012345678901234567890
