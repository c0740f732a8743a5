"""Rows with their places, and one sentence for every way in which a file can be wrong."""

import gzip
import hashlib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lit_pref.data.reading import content_digest, read_rows
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
    (tmp_path / "a.jsonl").write_text('{"prompt": "a"}\nnot json\n')
    stream = read_rows(tmp_path / "a.jsonl")
    assert next(stream).values == {"prompt": "a"}
    with pytest.raises(UserError):
        next(stream)


@pytest.mark.parametrize(
    "line, sentence",
    [
        (b'{"prompt": "a",}', r"a.jsonl, line 2: not valid JSON \(.+ at character \d+\); every line must be one"),
        (b"[1, 2]", "line 2: a JSON list, not an object; every line must be an object like"),
        (b'"text"', "line 2: a JSON str, not an object"),
        (b'{"prompt": "\xff"}', "line 2: byte 13 is not UTF-8; save the file in UTF-8"),
    ],
)
def test_a_line_that_is_no_object_is_named(tmp_path, line, sentence):
    (tmp_path / "a.jsonl").write_bytes(b'{"prompt": "a"}\n' + line + b"\n")
    with pytest.raises(UserError, match=sentence):
        rows(tmp_path / "a.jsonl")


def test_a_truncated_gzip_says_how_far_it_went(tmp_path):
    import random

    letters = random.Random(0)
    lines = "".join(f'{{"prompt": "{letters.getrandbits(400):x}"}}\n' for _ in range(2000))
    whole = gzip.compress(lines.encode())
    (tmp_path / "a.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"a.jsonl.gz is damaged after line \d{2,4} .* fetch it again"):
        rows(tmp_path / "a.jsonl.gz")


def test_something_else_behind_the_ending_is_named(tmp_path):
    (tmp_path / "a.jsonl.gz").write_text('{"prompt": "a"}\n')
    with pytest.raises(UserError, match="is damaged after line 0"):
        rows(tmp_path / "a.jsonl.gz")
    (tmp_path / "a.parquet").write_text('{"prompt": "a"}\n')
    with pytest.raises(UserError, match="cannot be read as Parquet"):
        rows(tmp_path / "a.parquet")


def test_a_missing_file_names_the_nearest_one_beside_it(tmp_path):
    (tmp_path / "pairs_train.jsonl").write_text("")
    with pytest.raises(UserError, match=r"no file .*pairs_trian.jsonl; did you mean .*/pairs_train.jsonl\.$"):
        rows(tmp_path / "pairs_trian.jsonl")
    with pytest.raises(UserError, match=r"holds pairs_train.jsonl\.$"):
        rows(tmp_path / "zzz")
    with pytest.raises(UserError, match=r"the folder .*/nowhere does not exist either"):
        rows(tmp_path / "nowhere" / "pairs.jsonl")


def test_folders_and_unknown_endings_are_refused(tmp_path):
    (tmp_path / "pairs.txt").write_text("{}")
    with pytest.raises(UserError, match=r"pairs.txt has an unknown ending; .* \.jsonl, \.jsonl\.gz, \.parquet"):
        rows(tmp_path / "pairs.txt")
    with pytest.raises(UserError, match="is not a file"):
        rows(tmp_path)


def test_the_digest_is_sha256_of_the_bytes(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b"abc")
    assert content_digest(tmp_path / "a.jsonl") == hashlib.sha256(b"abc").hexdigest()
