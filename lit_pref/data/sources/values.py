"""Values of a row read as numbers, and the check for message lists that were written as text."""

import ast
import json
import math
import re
from collections.abc import Callable
from typing import Any

from lit_pref.data.sources.row import BadRow, Row

LARGEST = 3.4028234663852886e38
"""The largest finite float32, because batches are float32."""
LIST_START = re.compile(r"\s*\[\s*\{")


def number_of(row: Row, field: str, truth: bool = False) -> float:
    """Return a field of the row as a number that is finite in float32; `truth` also accepts true (1) and false (0)."""
    return number(row, field, row.values.get(field), truth)


def number(row: Row, field: str, value: Any, truth: bool = False) -> float:
    """Return a value as a number that is finite in float32; in a CSV file it may be a text."""
    kinds = (int, float, str) if row.is_table else (int, float)
    if isinstance(value, kinds) and (truth or not isinstance(value, bool)) and "_" not in str(value):
        try:
            result = float(value)
        except (ValueError, OverflowError):
            result = math.nan
        if abs(result) <= LARGEST:
            return result
        if math.isfinite(result):
            raise BadRow(row, field, "is too large for single precision", "give it in another unit", f" ({result:g})")
    shown = "null" if value is None else f"{value!r:.40}"
    raise BadRow(row, field, "is not a finite number", "give it a number", f" ({shown})")


def refuse_written_messages(row: Row, field: str, text: str) -> None:
    """Refuse a message list that was written as text, as in CSV files and saved data frames."""
    if LIST_START.match(text) and _are_messages(text):
        raise BadRow(row, field, "is a message list written as text", "give it as a list, in a JSONL or Parquet file")


def _are_messages(text: str) -> bool:
    readers: list[Callable[[str], Any]] = [json.loads]
    readers += [ast.literal_eval] if "'role'" in text else []  # saved data frames contain lists as Python prints them
    for read in readers:
        try:
            entries = read(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
        return all(isinstance(entry, dict) and {"role", "content"} <= entry.keys() for entry in entries)
    return False
