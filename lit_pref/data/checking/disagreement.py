"""Detects contradictions between the strengths of one row."""

from lit_pref.data.sources.row import BadRow, Row
from lit_pref.data.sources.values import number, number_of

Disagreement = tuple[str, str]
"""What contradicts what, by which pairs are counted, and the two numbers of one pair."""


def margin_against_scores(row: Row, margin: float) -> Disagreement | None:
    """Return how the margin differs from the difference of the scores in the same row; None if it does not.

    Raises:
        BadRow: the difference prefers the other text.
    """
    try:
        first, second = (number(row, name, row.values.get(name)) for name in ("score_chosen", "score_rejected"))
    except BadRow:
        return None
    if (first - second) * margin < 0:
        raise BadRow(
            row,
            "margin",
            "and the difference of the scores prefer different texts",
            "remove the wrong one, or choose one of them by a mapping",
            f" ({margin:g} against {first:g} - {second:g})",
        )
    difference = first - second
    if abs(difference - margin) <= 1e-3 * max(1.0, abs(margin)):
        return None
    clipped = "; clipped in the source?" if abs(margin) < abs(difference) else ""
    numbers = f"margin {margin:g} against {first:g} - {second:g} = {difference:g}{clipped}"
    return "the margin is not the difference of the scores", numbers


def probability_against(row: Row, name: str, probability: float, margin: float | None) -> Disagreement | None:
    """Return how the probability in the column `name` contradicts the margin or `p_chosen`; None if it does not."""
    if margin is not None and sign(margin) != sign(probability - 0.5):
        return "the probability and the margin prefer different responses", f"{name} {probability:g}, margin {margin:g}"
    if name == "probability" and "p_chosen" in row.values and differs(row, "p_chosen", probability):
        return "p_chosen is not the probability", f"p_chosen {row.values['p_chosen']}, probability {probability:g}"
    return None


def sign(value: float) -> int:
    """Return 1, 0 or -1, the sign of a number."""
    return (value > 0) - (value < 0)


def differs(row: Row, name: str, value: float) -> bool:
    """Return whether a column's number differs from `value`."""
    try:
        return abs(number_of(row, name) - value) > 1e-6
    except BadRow:
        return False
