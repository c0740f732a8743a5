"""CSV, whose cells are texts, and Parquet, whose cells have types."""

import csv
import gzip

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lit_pref.data.sources.reading import read_rows
from lit_pref.data.sources.row import BadRow
from lit_pref.data.sources.tables import rows_at_a_time
from lit_pref.errors import UserError


def rows(path):
    return [(row.line, row.values) for row in read_rows(path)]


@pytest.fixture
def table(tmp_path):
    def write(content, name="a.csv"):
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return tmp_path / name

    return write


def test_cells_are_texts_and_empty_ones_are_missing(table):
    path = table('prompt,chosen,margin\nä,007,1.5\n"","x, ""y""",\n')
    assert rows(path) == [
        (2, {"prompt": "ä", "chosen": "007", "margin": "1.5"}),
        (3, {"prompt": None, "chosen": 'x, "y"', "margin": None}),
    ]
    assert rows(table(gzip.compress(path.read_bytes()), "a.csv.gz")) == rows(path)


def test_a_row_of_several_lines_has_the_number_of_its_first(table):
    path = table('prompt,chosen\n"a\n\nb",c\n\nd,"e\r\nf"\ng,h\n')
    assert rows(path) == [
        (2, {"prompt": "a\n\nb", "chosen": "c"}),
        (6, {"prompt": "d", "chosen": "e\r\nf"}),
        (8, {"prompt": "g", "chosen": "h"}),
    ]


def test_what_the_csv_module_writes_is_read_back_as_it_was(tmp_path):
    texts = ['"', '""', "a,b", "\n", " ", "a\r\nb", "\ufeffx", "'", "\\", '"a"', "x" * 200_000]
    with open(tmp_path / "a.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["prompt", "chosen"])
        writer.writerows([[text, text] for text in texts])
    assert [values for _, values in rows(tmp_path / "a.csv")] == [{"prompt": text, "chosen": text} for text in texts]


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_windows_line_ends_and_a_byte_order_mark_are_no_part_of_a_cell(table, newline, mark):
    assert rows(table(f"{mark}prompt,chosen{newline}a,b{newline}")) == [(2, {"prompt": "a", "chosen": "b"})]


def test_a_row_with_another_number_of_cells_is_bad_and_the_next_one_is_read(table):
    short, long, good = read_rows(table("prompt,chosen\na\na,b,c\nd,e\n"))
    assert good.values == {"prompt": "d", "chosen": "e"}
    assert isinstance(short, BadRow) and short.kind == long.kind == "does not have one cell for each column"
    assert "a.csv, line 2: does not have one cell for each column (1 cells, 2 columns); fix its commas" in str(short)
    assert "line 3: does not have one cell for each column (3 cells, 2 columns)" in str(long)


@pytest.mark.parametrize(
    "content, sentence",
    [
        ("a,b,a\n1,2,3\n", "the column 'a' appears twice; the first row must name the columns"),
        ("a, b\n1,2\n", "the column ' b' has a blank before or after its name"),
        ("a;b\n1;2\n", "its columns are separated by ';'"),
        ("a\tb\n1\t2\n", r"its columns are separated by '\\t'"),
        (f"{'word ' * 50},b\n", "the first row contains 'word word .*, which is not the name of a column"),
        ('a,b\n"x" y,z\n', "the quotes of the row that begins in line 2 are broken"),
        ('a,b\nc,d\n"x,z\n', "the quotes of the row that begins in line 3 are broken .unexpected end of data"),
        ("a,b\nc,d\nx", "line 3: the file ends in the middle of this row"),
        ("a,b\nc,\0\n", "line 2: contains zero bytes"),
        (b"a,b\nc,\xe9\n", "line 2: byte 3 is not UTF-8; save the file in UTF-8"),
        ("a,b\rc,d\r", "ends its lines with a carriage return alone"),
        ("a,b\nc\rd,e\n", "the row that begins in line 2 are broken .new-line character"),
    ],
)
def test_a_table_that_cannot_be_read_is_refused_with_a_sentence(table, content, sentence):
    with pytest.raises(UserError, match=sentence) as caught:
        rows(table(content))
    assert not isinstance(caught.value, BadRow) and len(str(caught.value)) < 500


def test_quotes_that_never_close_do_not_swallow_the_file(table):
    path = table('a,b\nc,"d\n' + ("x" * 99 + "\n") * 170_000)  # 17 MB
    with pytest.raises(UserError, match="the row that begins in line 2 is longer than 16 MiB; close the quotes"):
        rows(path)


def test_parquet_keeps_types_and_nesting(tmp_path):
    written = [{"chosen": [{"role": "user", "content": "ä"}], "margin": 1.5, "n": 2, "ok": True, "none": None}] * 2
    pq.write_table(pa.Table.from_pylist(written), tmp_path / "a.parquet")
    assert rows(tmp_path / "a.parquet") == [(1, written[0]), (2, written[1])]


def test_parquet_with_one_name_twice_is_refused(tmp_path):
    pq.write_table(pa.table([pa.array([1]), pa.array([2])], names=["a", "a"]), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a.parquet: the column 'a' appears twice; rename or remove one\.$"):
        rows(tmp_path / "a.parquet")


def test_parquet_of_long_texts_is_read_a_few_rows_at_a_time(tmp_path):
    # 64 texts of 1 MB that do not compress in one row group; a batch of 256 would hold them all.
    import random

    letters = random.Random(0)
    table = pa.table({"a": [letters.randbytes(500_000).hex() for _ in range(64)]})
    pq.write_table(table, tmp_path / "a.parquet", compression="none", use_dictionary=False, write_batch_size=1)
    del table
    before, most, number = pa.total_allocated_bytes(), 0, 0
    for number, row in enumerate(read_rows(tmp_path / "a.parquet"), start=1):  # noqa: B007
        assert len(row.values["a"]) == 1_000_000
        most = max(most, pa.total_allocated_bytes() - before)
    assert number == 64 and most < 32e6


def test_rows_at_a_time_follow_their_size():
    assert rows_at_a_time(size=256 * 100, rows=256) == 256
    assert rows_at_a_time(size=2**30, rows=1024) == 8  # 1 MiB each, 8 MiB together
    assert rows_at_a_time(size=2**34, rows=1024) == 1
    assert rows_at_a_time(size=0, rows=0) == 1
