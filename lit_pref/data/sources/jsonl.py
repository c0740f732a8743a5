"""Reads JSONL files and other text line by line, with a limit on the length of a line and an error for any damage."""

import gzip
import json
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lit_pref.data.sources.damage import BYTE_ORDER_MARK, HEAD, Fault, refuse_unless_gzip, refuse_unless_text
from lit_pref.errors import UserError

MAX_LINE = 16 * 2**20
"""Maximum size of a line (in CSV: of a row) in bytes; a longer one is not text for a language model."""
MAX_BLANK = 100_000
"""The most consecutive blank lines; a file with more of them may never end."""
MAX_DEPTH = 64
"""The deepest nesting of objects and lists in one row, because code that walks through them has a finite stack."""


def lines_of(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the lines of a file with their numbers, one in memory at a time; a .gz file is decompressed.

    Raises:
        UserError: the file is damaged or not text, or a line is longer than `MAX_LINE`.
    """
    number = blank = 0
    try:
        if path.name.endswith(".gz"):
            refuse_unless_gzip(path)
        with gzip.open(path, "rb") if path.name.endswith(".gz") else open(path, "rb") as file:
            refuse_unless_text(path, file.peek(HEAD)[:HEAD])
            while line := file.readline(MAX_LINE + 1):
                number += 1
                if number == 1:
                    line = line.removeprefix(BYTE_ORDER_MARK)
                blank = blank + 1 if line.isspace() else 0
                if len(line) > MAX_LINE or b"\0" in line or blank > MAX_BLANK:
                    raise _bad_line(path, number, line)
                if number == 1 and b"\r" in line and not line.endswith(b"\n"):
                    raise _bad_line(path, number, line)
                yield number, line
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(
            f"{path} is damaged after line {number} ({error}); the copy or download went wrong, fetch it again."
        ) from error
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror or error}); check its permissions and the disk."
        ) from error


def _bad_line(path: Path, number: int, line: bytes) -> UserError:
    if b"\0" in line:
        return UserError(
            f"{path}, line {number}: contains zero bytes, as a crash or an interrupted copy leaves them; fetch or "
            "write the file again."
        )
    if number == 1 and b"\r" in line:
        return UserError(f"{path} ends its lines with a carriage return alone; save it with Unix or Windows line ends.")
    if line.isspace() and len(line) <= MAX_LINE:
        return UserError(f"{path}, line {number}: {MAX_BLANK} blank lines before it; write the file again.")
    return UserError(
        f"{path}, line {number}: longer than {MAX_LINE // 2**20} MiB; write each row in its own line, and shorten or "
        "remove longer rows."
    )


def json_rows(path: Path) -> Iterator[tuple[int, dict[str, Any] | Fault]]:
    """Yield the objects of a JSONL file with their line numbers; blank lines are skipped."""
    first = True
    for number, line in lines_of(path):
        if line.isspace():
            continue
        if first:
            _refuse_other_json(path, line)
            first = False
        yield number, _object_of(path, number, line)


def _refuse_other_json(path: Path, line: bytes) -> None:
    start = line.strip()
    convert = f"convert it with `jq -c {{}} {path.name} > rows.jsonl` (a .gz file must be decompressed first)"
    if start.startswith(b"["):
        raise UserError(f"{path} contains a JSON array instead of one object per line; give it the ending .json.")
    if start == b"{":
        raise UserError(f"{path} contains objects that span several lines, not one per line; {convert.format('.')}.")


def _object_of(path: Path, number: int, line: bytes) -> dict[str, Any] | Fault:
    try:
        text = line.decode()
        return decoded(text)
    except UnicodeDecodeError as error:
        _refuse_cut(path, number, line, "unexpected end" in error.reason)
        return Fault("not UTF-8", "save the file in UTF-8", f" (byte {error.start + 1})")
    except json.JSONDecodeError as error:
        _refuse_cut(path, number, line, error.pos >= len(text.rstrip()))
        return Fault("not valid JSON", "every line must be one JSON object", f" ({_what_is_wrong(error)})")


def decoded(text: str) -> dict[str, Any] | Fault:
    """Return the object in a JSON text, or the `Fault` in it.

    Raises:
        json.JSONDecodeError: it is not JSON.
    """
    try:
        values = _DECODER.decode(text)
    except _Duplicate as error:
        return Fault("has a key twice", "keep one of the two values", f" ({error.args[0]!r:.40})")
    except RecursionError:
        return _TOO_DEEP
    except json.JSONDecodeError:
        raise
    except ValueError:  # int() raises it for a number with more digits than Python accepts
        return Fault("has an integer of thousands of digits", "write a smaller number")
    if not isinstance(values, dict):
        return Fault(
            f"a JSON {type(values).__name__}, not an object",
            'every line must be an object like {"prompt": ..., "chosen": ..., "rejected": ...}',
        )
    return _TOO_DEEP if _is_too_deep(values) else values


def _refuse_cut(path: Path, number: int, line: bytes, at_its_end: bool) -> None:
    """Refuse a file whose last line is incomplete: it is not a faulty row, because later rows are missing too."""
    begun = line.lstrip().startswith(b"{") and not line.endswith(b"\n")
    if begun and (at_its_end or not line.rstrip().endswith(b"}")):
        raise UserError(
            f"{path}, line {number}: the file ends in the middle of this row; the copy or download was cut short, "
            "fetch it again."
        )


def _what_is_wrong(error: json.JSONDecodeError) -> str:
    here = error.doc[error.pos : error.pos + 40].lstrip()
    before = error.doc[max(0, error.pos - 40) : error.pos].rstrip()
    at = f"at character {error.pos + 1}"
    if here.startswith(("}", "]")) and before.endswith(","):
        return f"a comma before the closing bracket {at}"
    if error.msg == "Extra data" and here.startswith(","):
        return f"a comma after the object {at}"
    return f"{error.msg.removesuffix(' at')} {at}"


class _Duplicate(Exception):
    pass


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse duplicate keys, of which the json module silently keeps the last."""
    values = dict(pairs)
    if len(values) != len(pairs):
        raise _Duplicate(Counter(key for key, _ in pairs).most_common(1)[0][0])
    return values


# NaN and Infinity are read as numbers, like 1e999: they are refused later, with the name of their field.
_DECODER = json.JSONDecoder(object_pairs_hook=_without_duplicates)
_TOO_DEEP = Fault(f"has lists or objects nested more than {MAX_DEPTH} levels deep", "flatten it")


def _is_too_deep(values: dict[str, Any]) -> bool:
    level: list[Any] = [child for child in values.values() if type(child) in (dict, list)]
    depth = 1
    while level and depth < MAX_DEPTH:
        children = (child for parent in level for child in (parent.values() if type(parent) is dict else parent))
        level = [child for child in children if type(child) in (dict, list)]
        depth += 1
    return bool(level)
