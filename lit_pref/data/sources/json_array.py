"""JSON arrays of objects, read entry by entry without holding the file in memory."""

import codecs
import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lit_pref.data.sources.damage import BYTE_ORDER_MARK, HEAD, Fault, refuse_unless_gzip, refuse_unless_text
from lit_pref.data.sources.jsonl import MAX_LINE, decoded, json_rows
from lit_pref.errors import UserError

PIECE = 2**16
"""Bytes that are read at once."""
_PLAIN = json.JSONDecoder()
_BLANK = " \t\r\n"


def array_or_lines(path: Path) -> Iterator[tuple[int, dict[str, Any] | Fault]]:
    """Yield the objects of a .json file with their numbers: those of an array, or one of each line.

    Raises:
        UserError: the file is damaged, or holds neither.
    """
    try:
        if path.name.endswith(".gz"):
            refuse_unless_gzip(path)
        with gzip.open(path, "rb") if path.name.endswith(".gz") else open(path, "rb") as file:
            head = file.peek(HEAD)[:HEAD]
            refuse_unless_text(path, head)
            if head.removeprefix(BYTE_ORDER_MARK).lstrip().startswith(b"["):
                yield from _Entries(path, file.read).rows()
                return
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path} is damaged ({error}); the copy or download went wrong, fetch it again.") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}); check its permissions.") from error
    yield from json_rows(path)


class _Entries:
    """The entries of a JSON array; `read` returns the next bytes of the file."""

    def __init__(self, path: Path, read: Callable[[int], bytes]) -> None:
        self._path, self._read = path, read
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._text, self._start, self._ended, self._number = "", 0, False, 0

    def rows(self) -> Iterator[tuple[int, dict[str, Any] | Fault]]:
        self._expect("[")
        if self._next() == "]":
            return
        while True:
            self._number += 1
            written = self._entry()
            yield self._number, decoded(written)
            sign = self._next()
            if sign == "]":
                break
            self._expect(",")
        self._expect("]")
        if self._next():
            raise self._damaged("something follows the array")

    def _entry(self) -> str:
        """Return the text of the next entry."""
        self._next()
        while True:
            try:
                end = _PLAIN.raw_decode(self._text, self._start)[1]
                if end < len(self._text) or self._ended:
                    written, self._start = self._text[self._start : end], end
                    return written
            except (ValueError, RecursionError) as error:
                if self._ended or len(self._text) - self._start > MAX_LINE:
                    raise self._damaged(f"it is not valid JSON, cut short or above {MAX_LINE // 2**20} MiB") from error
            self._more(len(self._text) - self._start)

    def _next(self) -> str:
        """Return the next sign that is not blank, without passing it; the empty string at the end."""
        while True:
            while self._start < len(self._text) and self._text[self._start] in _BLANK:
                self._start += 1
            if self._start < len(self._text) or self._ended:
                return self._text[self._start : self._start + 1]
            self._more(PIECE)

    def _expect(self, sign: str) -> None:
        if (found := self._next()) != sign:
            raise self._damaged(f"{sign!r} is expected, and {found!r} follows" if found else "the file ends in it")
        self._start += 1

    def _more(self, number: int) -> None:
        """Read more text: as much as is waiting, so that a long entry is not decoded too often."""
        data = self._read(max(PIECE, number))
        self._ended = not data
        try:
            self._text = self._text[self._start :] + self._decoder.decode(data, self._ended)
        except UnicodeDecodeError as error:
            raise self._damaged("it is not UTF-8") from error
        self._start = 0

    def _damaged(self, reason: str) -> UserError:
        return UserError(f"{self._path}, entry {self._number} of the array: {reason}; fetch or write the file again.")
