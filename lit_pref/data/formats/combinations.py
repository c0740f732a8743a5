"""Rows with several chosen or rejected responses: every chosen with every rejected one is a pair."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from typing import Any

from lit_pref.data.formats.field_path import ValuePath
from lit_pref.data.formats.ranked_lists import LONGEST
from lit_pref.data.formats.several import Columns
from lit_pref.data.formats.spec import RowMapping
from lit_pref.data.sources.row import BadRow, Row

Place = tuple[int | None, int | None]
"""The indices of a chosen and of a rejected response; None where the row has only one."""


class Combinations:
    """Converts rows whose `chosen` or `rejected` leads to many texts, as `chosen[]` does.

    Scores, sources, columns and spans of a side that lead to many have one entry for each of its texts. The id of a
    pair ends in both indices, which a column `combination` holds too.

    Args:
        mapping: the mapping of the rows.
        converter: returns the conversion of a row to one pair that follows a mapping.
    """

    def __init__(self, mapping: RowMapping, converter: Callable[[RowMapping], Callable[[Row], Row]]) -> None:
        self._sides = [None if path is None else ValuePath(path) for path in (mapping.chosen, mapping.rejected)]
        self._convert = cache(lambda place: converter(_mapping_at(mapping, place)))

    def pairs(self, row: Row) -> Iterator[Row | BadRow]:
        """Yield the canonical row of each pair, or the reason why it is none.

        Raises:
            BadRow: the row has no lists of texts, or too many of them.
        """
        for i, j in self._places(row):
            place = "-".join(str(k) for k in (i, j) if k is not None)
            try:
                pair = self._convert((i, j))(row)
            except BadRow as bad:
                yield bad
                continue
            id = pair.values.get("id")
            own = {"id": f"{id}/{place}"} if isinstance(id, str | int) and not isinstance(id, bool) else {}
            yield replace(pair, values={**pair.values, **own, "combination": place})

    def _places(self, row: Row) -> list[Place]:
        indices: list[list[int | None]] = []
        for path in self._sides:
            if path is None or not path.many:
                indices.append([None])
                continue
            texts = path.of(row.values)
            if not isinstance(texts, list) or not texts:
                raise BadRow(row, path.text, "is not a list of responses", "give one entry for each response")
            indices.append(list(range(len(texts))))
        places = [(i, j) for i in indices[0] for j in indices[1]]
        if len(places) > LONGEST:
            raise BadRow(
                row,
                "chosen",
                "and rejected are more than can be paired",
                f"give lists of at most {LONGEST} pairs",
                f" ({len(places)} pairs)",
            )
        return places


def _mapping_at(mapping: RowMapping, place: Place) -> RowMapping:
    """Return the mapping of one chosen and one rejected response."""
    at = dict(zip(("chosen", "rejected"), place, strict=True))

    def sided(where: Any) -> Any:
        return {side: _entry(path, at[side]) for side, path in where.items()} if isinstance(where, dict) else where

    score = mapping.score
    if score is not None:
        score = replace(score, chosen=_entry(score.chosen, place[0]), rejected=_entry(score.rejected, place[1]))
    return replace(
        mapping,
        chosen=_entry(mapping.chosen, place[0]),
        rejected=_entry(mapping.rejected, place[1]),
        score=score,
        source=sided(mapping.source),
        columns={name: sided(where) for name, where in mapping.columns.items()},
        spans={name: sided(where) for name, where in mapping.spans.items()},
    )


def _entry(columns: Columns | None, k: int | None) -> Any:
    """Return a path, or several, with the index of one entry in place of all of them."""
    if isinstance(columns, list):
        return [_entry(path, k) for path in columns]
    return columns if columns is None or k is None else columns.replace("[]", f"[{k}]")
