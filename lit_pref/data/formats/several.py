"""Values that a mapping reads from one column or several: the mean of numbers, and the votes of annotators."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from lit_pref.data.formats.field_path import ValuePath
from lit_pref.data.sources.row import BadRow, Row
from lit_pref.data.sources.values import number

Columns = str | list[str]
"""One path or several; a path to many, such as `votes[]`, counts as several too."""
Verdict = Literal["chosen", "rejected", "tie"]


def listed(columns: Columns | None) -> list[str]:
    """Return the paths as a list.

    >>> listed("rating"), listed(["rating_1", "rating_2"]), listed(None)
    (['rating'], ['rating_1', 'rating_2'], [])
    """
    return [] if columns is None else [columns] if isinstance(columns, str) else columns


@dataclass(frozen=True)
class Label:
    """Names a column that says which text is better, and its values for a, for b and for a tie.

    Several columns are the votes of annotators. `votes: majority` takes the label that most of them chose, a tie if no
    label has the most; `votes: share` gives the probability that a is better, the share of its votes, where a tie is
    half a vote for each. `smoothing` adds so many votes to both texts, so that a unanimous vote is not certain.
    """

    column: Columns
    a: Any
    b: Any
    tie: Any = field(default_factory=list)
    votes: Literal["majority", "share"] = "majority"
    smoothing: float = 0.0


class Values:
    """Reads the values of one column or several, each with its name in the source."""

    def __init__(self, columns: Columns) -> None:
        self._paths = [ValuePath(path) for path in listed(columns)]
        self.text = " and ".join(path.text for path in self._paths)

    def of(self, row: Row) -> list[tuple[str, Any]]:
        """Return names and values.

        Raises:
            BadRow: a path to many does not lead to a list of at least one value.
        """
        values: list[tuple[str, Any]] = []
        for path in self._paths:
            value = path.of(row.values)
            if not path.many:
                values.append((path.text, value))
            elif isinstance(value, list) and value:
                values += [(path.entry(k), entry) for k, entry in enumerate(value)]
            else:
                raise BadRow(row, path.text, "is not a list with values", "give one for each annotator")
        return values

    def numbers(self, row: Row) -> list[tuple[str, float]]:
        """Return names and values, all of them finite numbers."""
        return [(name, number(row, name, value)) for name, value in self.of(row)]


def mean(numbers: list[tuple[str, float]]) -> float:
    """Return the mean of named numbers."""
    return math.fsum(value for _, value in numbers) / len(numbers)


class Verdicts:
    """Reads which text of a row is better from its label, or from the votes of several annotators."""

    def __init__(self, label: Label) -> None:
        self._label, self._values = label, Values(label.column)
        self.text = self._values.text
        self._meanings = _meanings(label)
        self._spelled = {(False, str(value)): side for (_, value), side in self._meanings.items()}

    def of(self, row: Row) -> tuple[Verdict, float | None]:
        """Return the better text, and the share of its votes if the label asks for it.

        Raises:
            BadRow: a value is not one of the labels, or no label has the most votes and none means a tie.
        """
        votes = Counter(self._meaning(row, name, value) for name, value in self._values.of(row))
        if self._label.votes == "share":
            a, b = (votes[side] + votes["tie"] / 2 + self._label.smoothing for side in ("chosen", "rejected"))
            return "tie" if a == b else "chosen" if a > b else "rejected", a / (a + b)
        (first, most), *others = votes.most_common()
        if not others or most > others[0][1]:
            return first, None
        if self._label.tie == []:
            raise BadRow(
                row,
                self._values.text,
                "has no majority",
                "give the mapping's label a value for `tie`, or set its `votes` to share",
                f" ({votes['chosen']} for a, {votes['rejected']} for b)",
            )
        return "tie", None

    def _meaning(self, row: Row, name: str, value: Any) -> Verdict:
        try:
            return self._meanings[type(value) is bool, value]
        except (KeyError, TypeError):
            # In a table all cells are texts.
            if row.is_table and isinstance(value, str) and (False, value) in self._spelled:
                return self._spelled[False, value]
            known = ", ".join(f"{key!r}" for _, key in self._meanings)
            raise BadRow(
                row,
                name,
                f"is not one of the labels {known}",
                "give its meaning in the mapping's label",
                f" ({value!r:.40})",
            ) from None


def _meanings(label: Label) -> Mapping[tuple[bool, Any], Verdict]:
    sides: dict[Verdict, Any] = {"chosen": label.a, "rejected": label.b, "tie": label.tie}
    return {
        (type(value) is bool, value): side
        for side, values in sides.items()
        for value in (values if isinstance(values, list) else [values])
    }
