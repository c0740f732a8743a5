"""The first rows of a source, by which its columns are recognised."""

from collections.abc import Iterable

from lit_pref.data.sources.row import BadRow, Row
from lit_pref.data.sources.unread import texts_of

FIRST, FIRST_TEXT = 64, 2**24


def first_rows(rows: Iterable[Row | BadRow]) -> list[Row | BadRow]:
    """Take the first rows: `FIRST` of them, or as many as reach `FIRST_TEXT` characters, because all are in memory."""
    taken: list[Row | BadRow] = []
    size = 0
    for row in rows:
        taken.append(row)
        size += sum(map(len, texts_of(row.values))) if isinstance(row, Row) else 0
        if len(taken) == FIRST or size >= FIRST_TEXT:
            break
    return taken
