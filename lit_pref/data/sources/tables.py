"""CSV and Parquet files row by row; cells of a CSV file are texts, those of a Parquet file have types."""

import csv
import itertools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lit_pref.data.sources.arrow_rows import rows_of
from lit_pref.data.sources.damage import Fault, refuse_unless_parquet
from lit_pref.data.sources.jsonl import MAX_LINE, lines_of
from lit_pref.errors import UserError

BATCH_ROWS, BATCH_BYTES = 256, 8 * 2**20
COPIED_ROWS, COPIED_BYTES = 8, 128 * 2**20
"""Rows that are read at once whatever they hold, and bytes up to which more are, if each held all of a row group."""
ARROW_ERRORS = (pa.ArrowException, OSError, ValueError, ArithmeticError, MemoryError, NotImplementedError)
"""Errors of pyarrow for content that it cannot read or convert to Python values."""


def csv_rows(path: Path) -> Iterator[tuple[int, dict[str, Any] | Fault]]:
    """Yield the rows of a CSV file, named by its header, each with the number of its first line.

    Every cell is a text, or None if it is empty; numbers are parsed later.
    """
    records = _Records(path)
    header: list[str] | None = None
    for line, cells in records:
        if not cells:  # a blank line
            continue
        if header is None:
            header = _checked_header(path, cells)
        elif len(cells) == len(header):
            yield line, {name: cell or None for name, cell in zip(header, cells, strict=True)}
        elif len(cells) < len(header) and not records.ended:
            raise UserError(f"{path}, line {line}: the file ends in the middle of this row; fetch it again.")
        else:
            numbers = f" ({len(cells)} cells, {len(header)} columns)"
            yield line, Fault("does not have one cell for each column", "fix its commas and quotes", numbers)


class _Records:
    """Iterates over the records of a CSV file, each with the number of its first line; memory is bounded.

    `ended` says whether the last line read so far ends with a newline.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.ended = path, True
        self._first = self._last = self._size = 0

    def __iter__(self) -> Iterator[tuple[int, list[str]]]:
        csv.field_size_limit(max(csv.field_size_limit(), MAX_LINE))  # global to the process; by default 128 KiB
        reader = csv.reader(self._texts(), strict=True)
        while True:
            self._first, self._size = self._last + 1, 0
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise UserError(
                    f"{self.path}: the quotes of the row that begins in line {self._first} are broken ({error}); write "
                    "quotes within a cell twice, put such a cell into quotes, and check that the file is complete."
                ) from error
            yield self._first, cells

    def _texts(self) -> Iterator[str]:
        for number, line in lines_of(self.path):
            self._last, self._size, self.ended = number, self._size + len(line), line.endswith(b"\n")
            if self._size > MAX_LINE:
                raise UserError(
                    f"{self.path}: the row that begins in line {self._first} is longer than {MAX_LINE // 2**20} MiB; "
                    "close the quotes that it opens, or shorten it."
                )
            try:
                yield line.decode()
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{self.path}, line {number}: byte {error.start + 1} is not UTF-8; save the file in UTF-8."
                ) from error


def _checked_header(path: Path, names: list[str]) -> list[str]:
    def refuse(what: str) -> UserError:
        return UserError(f"{path}: {what}; the first row must name the columns, separated by commas.")

    for name in names:
        if len(name) > 200 or "\n" in name:
            raise refuse(f"the first row contains {name!r:.40}..., which is not the name of a column")
        if name != name.strip():
            raise refuse(f"the column {name!r:.80} has a blank before or after its name")
    if duplicates := _duplicate_names(names):
        raise refuse(f"the column {duplicates[0]!r:.80} appears twice")
    if len(names) == 1 and (other := next((sign for sign in ";\t|" if sign in names[0]), None)):
        raise refuse(f"its columns are separated by {other!r}")
    return names


def parquet_rows(path: Path) -> Iterator[tuple[int, dict[str, Any] | Fault]]:
    """Yield the rows of a Parquet file, numbered from 1; a few rows are in memory at a time, not a row group."""
    number = 0
    try:
        refuse_unless_parquet(path)
        # Columns are read in pieces of one buffer; by default pyarrow reads the whole row group at once.
        options = {"pre_buffer": False, "buffer_size": 2**20, "page_checksum_verification": True}
        with pq.ParquetFile(path, **options) as file:
            refuse_duplicate_columns(str(path), file.schema_arrow.names)
            for k in range(file.num_row_groups):
                group = file.metadata.row_group(k)
                size = group.total_byte_size
                # A text that the file stores once, in a dictionary, is copied into each of its rows.
                most = max(COPIED_ROWS, COPIED_BYTES // max(size, 1))
                batches = file.iter_batches(min(most, rows_at_a_time(size, group.num_rows)), row_groups=[k])
                for values in itertools.chain.from_iterable(map(rows_of, batches)):
                    number += 1
                    yield number, values
            if number != file.metadata.num_rows:
                raise OSError(f"it should have {file.metadata.num_rows}")
    except ARROW_ERRORS as error:
        raise UserError(
            f"{path} cannot be read as Parquet after row {number} ({in_short(error)}); write or fetch it again."
        ) from error


def rows_at_a_time(size: int, rows: int) -> int:
    """Return how many rows fit in `BATCH_BYTES` if `rows` rows have `size` bytes, but at most `BATCH_ROWS`."""
    return max(1, min(BATCH_ROWS, BATCH_BYTES * rows // max(size, 1)))


def refuse_duplicate_columns(place: str, names: list[str]) -> None:
    """Refuse duplicate column names, because pyarrow would silently keep the last column only.

    Raises:
        UserError: two columns have the same name.
    """
    if duplicates := _duplicate_names(names):
        raise UserError(f"{place}: the column {duplicates[0]!r:.80} appears twice; rename or remove one.")


def _duplicate_names(names: list[str]) -> list[str]:
    return [name for name, count in Counter(names).most_common(1) if count > 1]


def in_short(error: BaseException) -> str:
    """Return the first line of an error's message, at most 120 characters."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
