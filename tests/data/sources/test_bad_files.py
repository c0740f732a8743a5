"""Files that are not what their ending says, or not whole: one sentence each, in bounded memory."""

import gzip
import json
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lit_pref.data.sources.jsonl import MAX_BLANK, MAX_DEPTH, MAX_LINE
from lit_pref.data.sources.reading import read_rows
from lit_pref.data.sources.row import BadRow
from lit_pref.errors import UserError

ROWS = [{"prompt": f"p{k}", "chosen": "ä", "rejected": "r", "margin": k / 8} for k in range(50)]
JSONL = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
PAGE = b"\n<!DOCTYPE html>\n<html><head><title>404</title></head></html>\n"
NAMES = ("a.jsonl", "a.csv", "a.parquet", "a.jsonl.gz", "a.csv.gz")


@pytest.fixture
def written(tmp_path):
    def write(content, name="a.jsonl"):
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return tmp_path / name

    return write


def refusal(path):
    """The sentence about a file as a whole; a fault of one row would not end the reading."""
    with pytest.raises(UserError) as caught:
        list(read_rows(path))
    assert type(caught.value) is UserError
    said = str(caught.value)
    assert said.startswith(str(path)) and said.endswith(".") and "\n" not in said
    assert len(said) - len(str(path)) < 300
    return said.removeprefix(str(path))


def values(path):
    return [row.values for row in read_rows(path)]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "content, sentence",
    [
        (b"", " is empty, as after a failed download or on a full disk; fetch it again."),
        (POINTER, " is a git-lfs pointer, not the data; fetch it with `git lfs pull`."),
        (PAGE, " is a web page (HTML), such as an error page saved in place of the data; download the file itself."),
        (b"\xef\xbb\xbf<?xml version='1.0'?><Error/>", " is a web page (HTML), such as"),
        (b"PK\x03\x04\x14\x00", " is a zip archive; unpack it."),
        (b"\x28\xb5\x2f\xfd\x04", " is compressed by zstd; decompress it, or compress it with gzip."),
    ],
)
def test_what_is_saved_in_place_of_data_is_named_under_every_ending(written, name, content, sentence):
    assert refusal(written(content, name)).startswith(sentence)


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.csv.gz"])
def test_what_is_compressed_in_place_of_data_is_named_too(written, name):
    assert refusal(written(gzip.compress(POINTER), name)).startswith(" is a git-lfs pointer")
    assert refusal(written(gzip.compress(gzip.compress(b"{}")), name)).startswith(
        " is compressed by gzip; decompress it"
    )
    assert refusal(written(gzip.compress(b""), name)).startswith(" is empty")


def test_a_wrong_ending_is_named_with_the_right_one(written, tmp_path):
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "b.parquet")
    parquet = (tmp_path / "b.parquet").read_bytes()
    for name in ("a.jsonl", "a.csv", "a.jsonl.gz"):
        assert refusal(written(parquet, name)) == " is a Parquet file; give it the ending .parquet."
    assert refusal(written(JSONL, "a.parquet")) == " contains JSON; give it the ending .jsonl."
    assert refusal(written("prompt,chosen\n", "a.parquet")) == " is not a Parquet file; write it again."
    assert refusal(written(JSONL, "a.jsonl.gz")) == " is not compressed by gzip; give it the ending .jsonl."
    for name in ("a.jsonl", "a.csv", "a.parquet"):
        assert refusal(written(gzip.compress(JSONL.encode()), name)).startswith(" is compressed by gzip; decompress it")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_utf_16_is_refused_in_words(written, encoding):
    for name in ("a.jsonl", "a.csv"):
        assert "UTF-16" in (said := refusal(written(JSONL.encode(encoding), name))) and "in UTF-8." in said


def test_a_byte_order_mark_and_windows_line_ends_are_accepted(written):
    assert values(written(b"\xef\xbb\xbf" + JSONL.replace("\n", "\r\n").encode())) == ROWS


def test_carriage_returns_alone_are_refused(written):
    expected = " ends its lines with a carriage return alone; save it with Unix or Windows line ends."
    assert refusal(written(JSONL.replace("\n", "\r"))) == expected
    assert refusal(written(JSONL.replace("\n", "\r") * (MAX_LINE // len(JSONL) + 1))) == expected


def test_other_json_than_one_object_a_line_is_refused_with_a_command(written):
    array = " contains a JSON array instead of one object per line; give it the ending .json"
    assert refusal(written(json.dumps(ROWS))).startswith(array)
    assert refusal(written(json.dumps(ROWS, indent=2))).startswith(array)
    pretty = "\n".join(json.dumps(row, indent=2) for row in ROWS)
    assert refusal(written(pretty)).startswith(
        " contains objects that span several lines, not one per line; convert it with `jq -c ."
    )


def test_binary_files_are_refused(written):
    assert refusal(written(b"{\x01\x02\x00\x00")).startswith(" is a binary file, or damaged")
    assert "UTF-16 text or a binary file" in refusal(written(b"\x00\x01\x02\x03"))


def test_a_tail_of_zeros_is_damage_and_no_bad_row(written):
    assert refusal(written(JSONL.encode() + b"\0" * 5000)).startswith(", line 51: contains zero bytes")
    cut = JSONL.encode()[:-20] + b"\0" * 20
    assert refusal(written(cut)).startswith(", line 50: contains zero bytes")


@pytest.mark.parametrize("left", range(1, len(JSONL.encode().splitlines()[-1])))
def test_a_last_row_that_is_cut_anywhere_is_damage_and_no_bad_row(written, left):
    lines = JSONL.encode().splitlines(keepends=True)
    path = written(b"".join(lines[:-1]) + lines[-1][:left])
    assert refusal(path).startswith(", line 50: the file ends in the middle of this row; the copy or download was cut")


def test_a_last_row_without_its_line_end_is_whole(written):
    assert values(written(JSONL.rstrip("\n"))) == ROWS
    assert values(written(JSONL + '{"a": 1}  ')) == [*ROWS, {"a": 1}]


def test_a_bad_last_row_that_is_whole_is_a_bad_row(written):
    assert [row.kind for row in read_rows(written("404: Not Found"))] == ["not valid JSON"]
    *good, bad = read_rows(written(JSONL + '{"a": 1,}'))
    assert len(good) == 50 and isinstance(bad, BadRow) and bad.kind == "not valid JSON"


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.csv.gz"])
def test_damaged_gzip_is_named_wherever_the_damage_is(written, name):
    content = JSONL if "jsonl" in name else "a,b\n" + "".join(f"{k},{k}\n" for k in range(200))
    whole = gzip.compress(content.encode())
    for cut in (*range(2, 40, 5), len(whole) - 9, len(whole) - 8, len(whole) - 1):
        assert "went wrong, fetch it again" in refusal(written(whole[:cut], name))
    wrong_sum = whole[:-8] + bytes([whole[-8] ^ 1]) + whole[-7:]
    assert "CRC check failed" in refusal(written(wrong_sum, name))
    assert "is damaged after line" in refusal(written(whole + b"trailing", name))


def test_damaged_parquet_is_named(written, tmp_path):
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "b.parquet")
    whole = (tmp_path / "b.parquet").read_bytes()
    for cut in (4, 11, len(whole) // 2, len(whole) - 1):
        assert refusal(written(whole[:cut], "a.parquet")) == (
            " is cut short: a Parquet file ends with the mark PAR1; fetch it again."
        )
    assert "cannot be read as Parquet" in refusal(written(whole[:100] + whole[-8:], "a.parquet"))
    assert "cannot be read as Parquet" in refusal(written(b"PAR1" + b"\xff" * 40 + b"PAR1", "a.parquet"))


def test_no_changed_byte_of_parquet_loses_rows_without_a_word(tmp_path, written):
    # Of its own, pyarrow gives 0, 1 or 2 rows and no error for some of these.
    options = {"compression": "none", "use_dictionary": False, "store_schema": False, "write_statistics": False}
    pq.write_table(pa.table({"prompt": ["aa", "bb", "cc"]}), tmp_path / "b.parquet", **options)
    whole = (tmp_path / "b.parquet").read_bytes()
    refused = 0
    for place in range(4, len(whole) - 8):
        for byte in (0, 1, 4):
            path = written(whole[:place] + bytes([byte]) + whole[place + 1 :], "a.parquet")
            try:
                assert len(list(read_rows(path))) == 3
            except UserError as error:
                refused += "it should have 3" in str(error)
    assert refused > 3


def test_parquet_texts_that_are_not_utf_8_are_refused(tmp_path):
    texts = pa.Array.from_buffers(
        pa.string(), 2, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0\3\0\0\0"), pa.py_buffer(b"a\xff\xfe")]
    )
    pq.write_table(pa.table({"prompt": texts}), tmp_path / "a.parquet")
    assert "cannot be read as Parquet after row 0 ('utf-8' codec" in refusal(tmp_path / "a.parquet")


def faults(path):
    return [row.kind if isinstance(row, BadRow) else row.values for row in read_rows(path)]


def test_nesting_without_end_is_a_bad_row_and_never_a_crash(written):
    deep = [opening * 100_000 for opening in ("[", '{"a":')]
    deep += ["[" * n + "]" * n for n in (900, MAX_DEPTH)]
    path = written("".join(f'{{"a": {value}}}\n' for value in deep) + '{"a": 1}\n')
    kinds = faults(path)
    assert set(kinds[:-1]) == {f"has lists or objects nested more than {MAX_DEPTH} levels deep"}
    assert kinds[-1] == {"a": 1}
    fits = json.loads("[" * (MAX_DEPTH - 1) + "]" * (MAX_DEPTH - 1))
    assert faults(written(json.dumps({"a": fits}) + "\n")) == [{"a": fits}]


def test_integers_of_thousands_of_digits_are_bad_rows(written):
    path = written('{"a": ' + "9" * 5000 + '}\n{"a": ' + "9" * 300 + "}\n")
    assert faults(path) == ["has an integer of thousands of digits", {"a": int("9" * 300)}]


def test_lone_surrogates_and_escaped_zeros_are_left_to_the_check_of_texts(written):
    # JSON can name them, so they are values; raw in the file they are no UTF-8.
    assert faults(written('{"a": "\\ud800", "b": "x\\u0000y"}\n')) == [{"a": "\ud800", "b": "x\0y"}]
    assert faults(written(b'{"a": "\xed\xa0\x80"}\n')) == ["not UTF-8"]


def test_an_error_never_prints_a_row_whole(written):
    secret = "s" * 300
    bad = [f'{{"{secret}": 1, "{secret}": 2}}', f'{{"a": "{secret}"', f'["{secret}"]', f'{{"a" "{secret}"}}', secret]
    rows = list(read_rows(written('{"a": 1}\n' + "\n".join(bad) + "\n")))
    assert all(isinstance(row, BadRow) for row in rows[1:])
    assert all("s" * 45 not in str(row) for row in rows[1:])


def peak_of(read):
    tracemalloc.start()
    try:
        result = read()
        return result, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("letter", [b"a", b"\0", b" ", b"["])
@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.csv.gz"])
def test_a_gzip_bomb_is_refused_in_bounded_memory(written, name, letter):
    path = written(gzip.compress(b'"prompt"\n' + letter * 2**26, compresslevel=1), name)
    assert path.stat().st_size < 2**20
    said, peak = peak_of(lambda: refusal(path))
    assert "line 2: " in said and ("longer than 16 MiB" in said or letter == b"\0")
    assert peak < 3 * MAX_LINE


def test_keys_and_columns_beyond_counting_take_no_time_beyond_their_number(written):
    # Counting each among all of them would take hours.
    keys = [f"k{k}" for k in range(100_000)]
    row = "{" + "".join(f'"{key}":0,' for key in keys) + '"k99999":1}\n'
    assert faults(written(row)) == ["has a key twice"]
    assert refusal(written(",".join([*keys, "k99999"]) + "\n", "a.csv")).startswith(
        ": the column 'k99999' appears twice"
    )
    assert values(written(",".join(keys) + "\n", "b.csv")) == []


def test_a_bomb_of_blank_lines_comes_to_an_end(written):
    path = written(gzip.compress(b"{}\n" + b"\n" * 2**24, compresslevel=1), "a.jsonl.gz")
    assert refusal(path) == f", line {MAX_BLANK + 2}: {MAX_BLANK} blank lines before it; write the file again."


def test_a_line_of_ten_megabytes_is_read_and_one_beyond_the_limit_refused(written):
    text = "x" * 10_000_000
    (row,), peak = peak_of(lambda: list(read_rows(written(json.dumps({"prompt": text}) + "\n"))))
    assert row.values == {"prompt": text} and peak < 8e7
    long = '{"a": 1}\n{"a": "' + "x" * MAX_LINE + '"}\n'
    assert refusal(written(long)).startswith(", line 2: longer than 16 MiB; write each row in its own line")
