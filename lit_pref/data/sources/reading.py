"""Source files, row by row, with the place of every row."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lit_pref.data.sources.damage import Fault
from lit_pref.data.sources.jsonl import json_rows
from lit_pref.data.sources.row import CSV_ENDINGS, BadRow, Row
from lit_pref.data.sources.tables import csv_rows, parquet_rows
from lit_pref.errors import UserError
from lit_pref.hints import nearest_names

ENDINGS = (".jsonl", ".jsonl.gz", ".parquet", *CSV_ENDINGS)


def read_rows(path: str | Path) -> Iterator[Row | BadRow]:
    """The rows of a JSONL, Parquet or CSV file, in order, without holding the file in memory.

    A row that cannot be read, while those after it can, comes as a `BadRow` in its place: it is raised or counted by
    whoever knows what is asked for bad rows. Blank lines are passed over. Cells of a CSV file are texts, and None where
    they are empty.

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
        rows = csv_rows(path) if path.name.endswith(CSV_ENDINGS) else json_rows(path)
    file = str(path)
    for line, values in rows:
        if isinstance(values, Fault):
            yield BadRow(Row(file, line, {}), None, values.reason, values.remedy, values.detail)
        else:
            yield Row(file, line, values)


def source_file(path: str | Path) -> Path:
    """The path, if there is a readable source behind it.

    Raises:
        UserError: there is no such file (names the nearest one beside it), or its ending is unknown.
    """
    path = Path(os.path.expanduser(path))
    if not exists(path):
        raise UserError(f"There is no file {path}; {_what_there_is(path)}.")
    if not path.is_file():
        raise UserError(f"{path} is not a file; training data are read from a file that ends in {', '.join(ENDINGS)}.")
    if path.name.endswith(".json"):
        raise UserError(
            f"{path} ends in .json, which may hold anything; rename it to .jsonl if it has one object a line, else "
            f"convert it: jq -c '.[]' {path.name} > {path.stem}.jsonl makes lines of an array."
        )
    if not path.name.endswith(ENDINGS):
        raise UserError(
            f"{path} has an unknown ending; training data are read from a file that ends in {', '.join(ENDINGS)}."
        )
    return path


def exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name that is too long
        return False


def _what_there_is(path: Path) -> str:
    if not path.parent.is_dir():
        return f"the folder {path.parent} does not exist either"
    names = sorted(p.name for p in path.parent.iterdir() if p.name.endswith(ENDINGS))
    near = nearest_names(path.name, names)
    if near:
        return f"did you mean {path.with_name(near[0])}"
    return f"{path.parent} holds {', '.join(names[:8]) or 'no ' + ', '.join(ENDINGS) + ' file'}"
