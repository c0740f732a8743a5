"""Rows of a source, one by one, each with its file and line."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lit_pref.data.sources.damage import Fault
from lit_pref.data.sources.json_array import array_or_lines
from lit_pref.data.sources.jsonl import json_rows
from lit_pref.data.sources.row import ARRAY_ENDINGS, CSV_ENDINGS, BadRow, Row
from lit_pref.data.sources.source import Source, check_source, files_of, source_file
from lit_pref.data.sources.tables import csv_rows, parquet_rows


def read_source(source: Source) -> Iterator[Row | BadRow]:
    """Yield the rows of a source, its files in the order of their names; see `read_rows`.

    Raises:
        UserError: the source cannot be read.
    """
    check_source(source)
    if source.hub is None:
        for file in files_of(source):
            yield from read_rows(file)
    else:
        from lit_pref.data.sources.hub import hub_rows

        yield from hub_rows(*source.hub, source.subset, source.revision)


def read_rows(path: str | Path) -> Iterator[Row | BadRow]:
    """Yield the rows of a JSONL, JSON, Parquet or CSV file in order, without holding the file in memory.

    If one row cannot be read but those after it can, a `BadRow` takes its place: the caller raises or counts it. Blank
    lines are skipped. Cells of a CSV file are texts, or None if they are empty.

    Raises:
        UserError: the file is missing, of another kind, or damaged.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     written = Path(folder, "pairs.jsonl").write_text('{"margin": 1.5}\\n')
    ...     [(row.line, row.values) for row in read_rows(Path(folder, "pairs.jsonl"))]
    [(1, {'margin': 1.5})]
    """
    path = source_file(path)
    rows: Iterator[tuple[int, dict[str, Any] | Fault]]
    if path.name.endswith(".parquet"):
        rows = parquet_rows(path)
    else:
        tables = path.name.endswith(CSV_ENDINGS)
        arrays = path.name.endswith(ARRAY_ENDINGS)
        rows = csv_rows(path) if tables else array_or_lines(path) if arrays else json_rows(path)
    file = str(path)
    for line, values in rows:
        if isinstance(values, Fault):
            yield BadRow(Row(file, line, {}), None, values.reason, values.remedy, values.detail)
        else:
            yield Row(file, line, values)
