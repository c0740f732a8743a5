"""Detects contradictions between the strengths of one row."""

from lit_pref.data.sources.row import BadRow, Row
from lit_pref.data.sources.values import number, number_of


def contradicts(row: Row, margin: float) -> bool:
    """Return whether the margin differs from the difference of the scores in the same row.

    Raises:
        BadRow: the difference prefers the other text.
    """
    try:
        first, second = (number(row, name, row.values.get(name)) for name in ("score_chosen", "score_rejected"))
    except BadRow:
        return False
    if (first - second) * margin < 0:
        raise BadRow(
            row,
            "margin",
            "and the difference of the scores prefer different texts",
            "remove the wrong one, or choose one of them by a mapping",
            f" ({margin:g} against {first:g} - {second:g})",
        )
    return abs(first - second - margin) > 1e-3 * max(1.0, abs(margin))


def differs(row: Row, name: str, value: float) -> bool:
    """Return whether a column's number differs from `value`."""
    try:
        return abs(number_of(row, name) - value) > 1e-6
    except BadRow:
        return False
