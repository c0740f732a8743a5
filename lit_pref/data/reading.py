"""Source files, row by row, with the place of every row."""

import gzip
import hashlib
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lit_pref.errors import UserError

ENDINGS = (".jsonl", ".jsonl.gz", ".parquet")


@dataclass(frozen=True)
class Row:
    """One row of a source file; `line` counts from 1 (in Parquet: the row)."""

    file: str
    line: int
    values: dict[str, Any]

    @property
    def place(self) -> str:
        return f"{self.file}, line {self.line}"


def read_rows(path: str | Path) -> Iterator[Row]:
    """The rows of a JSONL, JSONL.gz or Parquet file, in order, without holding the file in memory.

    Blank lines of JSONL are passed over.

    Raises:
        UserError: the file is missing, of another kind, damaged, or a line is no JSON object.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     written = Path(folder, "pairs.jsonl").write_text('{"margin": 1.5}\\n')
    ...     [(row.line, row.values) for row in read_rows(Path(folder, "pairs.jsonl"))]
    [(1, {'margin': 1.5})]
    """
    path = source_file(path)
    if path.name.endswith(".parquet"):
        yield from _parquet_rows(path)
    else:
        yield from _json_rows(path)


def source_file(path: str | Path) -> Path:
    """The path, if there is a readable source behind it.

    Raises:
        UserError: there is no such file (names the nearest one beside it), or its ending is unknown.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"There is no file {path}; {_what_there_is(path)}.")
    if not path.is_file() or not path.name.endswith(ENDINGS):
        kind = "is not a file" if not path.is_file() else "has an unknown ending"
        raise UserError(f"{path} {kind}; training data are read from a file that ends in {', '.join(ENDINGS)}.")
    return path


def content_digest(path: str | Path) -> str:
    """sha256 of a file's bytes, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _what_there_is(path: Path) -> str:
    if not path.parent.is_dir():
        return f"the folder {path.parent} does not exist either"
    names = sorted(p.name for p in path.parent.iterdir() if p.name.endswith(ENDINGS))
    near = get_close_matches(path.name, names, n=1)
    if near:
        return f"did you mean {path.with_name(near[0])}"
    return f"{path.parent} holds {', '.join(names[:8]) or 'no ' + ', '.join(ENDINGS) + ' file'}"


def _json_rows(path: Path) -> Iterator[Row]:
    number = 0
    with gzip.open(path, "rb") if path.name.endswith(".gz") else open(path, "rb") as file:
        try:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield Row(str(path), number, _json_object(path, number, line))
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise UserError(
                f"{path} is damaged after line {number} ({error}); the copy or download was cut short, fetch it again."
            ) from error


def _json_object(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        values = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}, line {number}: not valid JSON ({error.msg} at character {error.pos + 1}); "
            "every line must be one JSON object."
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}, line {number}: byte {error.start + 1} is not UTF-8; save the file in UTF-8."
        ) from error
    if not isinstance(values, dict):
        raise UserError(
            f"{path}, line {number}: a JSON {type(values).__name__}, not an object; "
            'every line must be an object like {"prompt": ..., "chosen": ..., "rejected": ...}.'
        )
    return values


def _parquet_rows(path: Path) -> Iterator[Row]:
    try:
        number = 0
        for batch in pq.ParquetFile(path).iter_batches(batch_size=256):
            for values in batch.to_pylist():
                number += 1
                yield Row(str(path), number, values)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path} cannot be read as Parquet ({error}); write or fetch it again.") from error
