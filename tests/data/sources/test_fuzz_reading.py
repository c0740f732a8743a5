"""Whatever a file holds, reading it ends with rows or with one sentence."""

import gzip
import io
import json
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_pref.data.sources.reading import read_rows
from lit_pref.data.sources.row import BadRow, Row
from lit_pref.data.sources.source import ENDINGS
from lit_pref.errors import UserError

ROWS = [{"prompt": 'ä, "b"\n', "chosen": [{"role": "user", "content": ""}], "margin": -1.5e3, "none": None}] * 3
BOUNDED = settings(max_examples=25, deadline=None)


def parquet():
    stream = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(ROWS), stream)
    return stream.getvalue()


JSONL = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
CSV = b'prompt,chosen,margin\r\n"a ""b"", c",d,1.5\r\n"e\nf",,2\r\n'
WHOLE = {
    ".jsonl": JSONL,
    ".jsonl.gz": gzip.compress(JSONL),
    ".parquet": parquet(),
    ".csv": CSV,
    ".csv.gz": gzip.compress(CSV),
}
KEYS = st.text(st.sampled_from('ab"\\,\n\u2028ä'), max_size=3)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)


def rows_or_sentence(content, ending):
    """Reads the content; any error that is no UserError fails the test."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a" + ending)
        path.write_bytes(content)
        try:
            rows = list(read_rows(path))
        except UserError as error:
            assert len(str(error)) - len(folder) < 500 and "\n" not in str(error)
            return None
    assert all(isinstance(row, Row | BadRow) for row in rows)
    assert [row.line for row in rows if isinstance(row, Row)] == sorted(
        {row.line for row in rows if isinstance(row, Row)}
    )
    return rows


@pytest.mark.parametrize("ending", ENDINGS)
@BOUNDED
@given(content=st.binary(max_size=200))
def test_any_bytes_under_any_ending(ending, content):
    rows_or_sentence(content, ending)
    if ending.endswith(".gz"):
        rows_or_sentence(gzip.compress(content), ending)
    elif ending == ".parquet":
        rows_or_sentence(b"PAR1" + content + b"PAR1", ending)


@pytest.mark.parametrize("ending", ENDINGS)
@BOUNDED
@given(data=st.data())
def test_whole_files_that_are_cut_changed_and_joined(ending, data):
    whole = WHOLE[ending]
    assert len(rows_or_sentence(whole, ending)) == (2 if "csv" in ending else 3)
    at = data.draw(st.integers(0, len(whole)))
    until = data.draw(st.integers(at, min(len(whole), at + 8)))
    new = data.draw(st.binary(max_size=4) | st.sampled_from([b'"', b"\n", b"\r", b",", b"{", b"\0", b"\xff", b""]))
    rows_or_sentence(whole[:at] + new + whole[until:], ending)
    rows_or_sentence(whole[:at], ending)
    rows_or_sentence(whole[:at] + whole, ending)


@BOUNDED
@given(text=st.lists(st.sampled_from('{}[]",:\\ \n\r0-.eEaNtrue\ufeff\u00e4\u2028'), max_size=60).map("".join))
def test_any_text_of_jsons_own_signs(text):
    rows_or_sentence(text.encode(), ".jsonl")
    rows_or_sentence(text.encode(), ".csv")


@BOUNDED
@given(objects=st.lists(st.dictionaries(KEYS, VALUES, max_size=4), min_size=1, max_size=4), ascii=st.booleans())
def test_objects_are_read_back_as_they_were_written(objects, ascii):
    text = "".join(json.dumps(value, ensure_ascii=ascii) + "\n" for value in objects)
    rows = rows_or_sentence(text.encode(), ".jsonl")
    assert [row.values for row in rows] == objects
