"""Rows are bounded by their bytes, however few bytes the file takes."""

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lit_pref.data.sources.arrow_rows import cell_sizes, rows_of
from lit_pref.data.sources.damage import Fault
from lit_pref.data.sources.first_rows import first_rows
from lit_pref.data.sources.jsonl import MAX_LINE
from lit_pref.data.sources.reading import read_rows
from lit_pref.data.sources.row import BadRow, Row

READ = """
import itertools, resource, sys
from lit_pref.data.sources.reading import read_rows
next(read_rows(sys.argv[1]))  # a small file: everything is imported
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
rows = sum(1 for _ in itertools.islice(read_rows(sys.argv[2]), 40))
print(rows, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 2**10)
"""


@pytest.mark.parametrize("nested", [False, True])
def test_a_text_that_parquet_stores_once_is_not_copied_into_every_row_at_once(tmp_path, nested):
    value = [{"role": "user", "content": "x" * 2**23}] if nested else "x" * 2**24
    once = pa.array([value], None if nested else pa.string())
    column = once.take(pa.array([0] * 60)) if nested else pa.DictionaryArray.from_arrays(pa.array([0] * 2000), once)
    pq.write_table(pa.table({"prompt": column}), tmp_path / "long.parquet", compression="zstd")
    pq.write_table(pa.table({"prompt": ["x"]}), tmp_path / "short.parquet")
    assert (tmp_path / "long.parquet").stat().st_size < 10_000
    command = [sys.executable, "-c", READ, str(tmp_path / "short.parquet"), str(tmp_path / "long.parquet")]
    rows, megabytes = map(int, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    assert rows == 40 and megabytes < 400  # 256 rows at once would be 2 GiB and more


def test_a_row_above_the_bound_of_a_line_is_a_faulty_row(tmp_path):
    long = "x" * (MAX_LINE + 1)
    table = pa.table({"prompt": ["a", long, "b"], "chosen": ["c", "ä", "d"]})
    pq.write_table(table, tmp_path / "a.parquet")
    first, bad, last = read_rows(tmp_path / "a.parquet")
    assert (first.values, last.values) == ({"prompt": "a", "chosen": "c"}, {"prompt": "b", "chosen": "d"})
    assert isinstance(bad, BadRow) and str(bad) == (
        f"{tmp_path / 'a.parquet'}, row 2: is longer than 16 MiB ({MAX_LINE + 3} bytes, {MAX_LINE + 1} of them in the "
        "column 'prompt'); shorten or remove its text, or leave such rows out with data.bad_rows: lenient."
    )


def test_rows_are_the_same_whatever_their_batches_hold():
    texts = ["x" * 3_000_000, None, "ä", "y" * 9_000_000, "", "z" * 5_000_000]
    columns = {
        "plain": pa.array(texts),
        "shared": pa.array(texts).dictionary_encode(),
        "turns": pa.array(
            [None if t is None else [{"role": "user", "content": t}, {"role": "b", "content": None}] for t in texts]
        ),
        "named": pa.array([[("k", t or "")] for t in texts], pa.map_(pa.string(), pa.string())),
        "number": pa.array([1.5, None, 2.0, 3.0, 4.0, 5.0]),
    }
    batch = pa.record_batch(columns)
    for part in (batch, batch.slice(1, 4)):
        wanted = pa.RecordBatch.from_arrays(
            [
                column.dictionary_decode() if name == "shared" else column
                for name, column in zip(columns, part.columns, strict=True)
            ],
            names=list(columns),
        ).to_pylist()
        found = list(rows_of(part))
        assert [type(row) for row in found] == [
            Fault if sum(len(str(v or "")) for v in row.values()) > MAX_LINE else dict for row in wanted
        ]
        assert [row for row in found if isinstance(row, dict)] == [
            row for row, other in zip(wanted, found, strict=True) if isinstance(other, dict)
        ]


@pytest.mark.parametrize(
    "array, sizes",
    [
        (pa.array(["a", None, "äb"]), [1, 0, 3]),
        (pa.array([b"abc", b""]), [3, 0]),
        (pa.array(["aa", "b", "aa", None]).dictionary_encode(), [2, 1, 2, 0]),
        (pa.array([{"a": "xy", "b": 1}, None]), [10, 0]),
        (pa.array([[["a", "bc"], []], None, [["d"]]]), [3, 0, 1]),
        (pa.array([[1.0, 2.0], []]), [16, 0]),
        (pa.array([[1.0, 2.0]], pa.list_(pa.float32(), 2)), [16]),
        (pa.nulls(2), [8, 8]),
    ],
)
def test_sizes_of_cells(array, sizes):
    assert cell_sizes(array).tolist() == sizes
    assert cell_sizes(array.slice(1)).tolist() == sizes[1:]
    assert cell_sizes(array).dtype == np.int64


def test_few_first_rows_are_kept_in_memory_if_they_are_long():
    def rows(text):
        return (Row("a.jsonl", k, {"prompt": text}) for k in range(1000))

    assert len(first_rows(rows("short"))) == 64
    assert len(first_rows(rows("x" * 2**23))) == 2
