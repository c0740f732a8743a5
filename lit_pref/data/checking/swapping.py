"""Swaps a row's further columns together with its texts."""

from typing import Literal

from lit_pref.data.checking.fields import encodable
from lit_pref.data.sources.row import BadRow, Row
from lit_pref.data.sources.values import number_of
from lit_pref.errors import UserError

OnSwap = Literal["keep", "negate", "complement"]
ON_SWAP: dict[str, OnSwap] = {"margin": "negate", "probability": "complement", "p_chosen": "complement"}


def partner_of(name: str) -> str | None:
    """Return the column of the other side, or None if the name does not refer to one side.

    >>> partner_of("reward_chosen"), partner_of("difficulty"), partner_of("chosen_minus_rejected")
    ('reward_rejected', None, None)
    """
    if ("chosen" in name) == ("rejected" in name):
        return None
    return name.replace("chosen", "rejected") if "chosen" in name else name.replace("rejected", "chosen")


def swapped_value(row: Row, name: str, on_swap: OnSwap | None) -> float:
    """Return the value of a column after the row's texts were swapped.

    Args:
        row: the row before swapping.
        name: name of the column.
        on_swap: the configured rule, which takes precedence over the column's name; None follows the name.

    Raises:
        BadRow: the value is not a number, or the rule does not apply to it.
        UserError: no rule is configured and the name implies none.
    """
    rule = on_swap or ON_SWAP.get(name)
    remedy = ""
    if rule is None and (partner := partner_of(name)):
        if partner in row.values:
            return number_of(row, partner, truth=True)
        remedy = f"add `{partner}`, or "
    elif rule is None and name.startswith("p_"):
        rule = "complement"
    if rule is None:
        raise UserError(
            f"{row.place}: the texts are swapped, because the strength prefers the rejected one, and no rule for the "
            f"column `{name}` is known; {remedy}set data.on_swap.{name} to keep (valid in either order), negate "
            "(a difference, chosen minus rejected) or complement (a probability that chosen is better)."
        )
    value = number_of(row, name, truth=True)
    if rule == "complement" and not 0 <= value <= 1:
        raise BadRow(
            row,
            name,
            "is not between 0 and 1",
            f"give P(chosen is better), or set data.on_swap.{name} to keep or negate",
            f" ({value:g})",
        )
    return {"keep": value, "negate": -value, "complement": 1 - value}[rule]


def group_of(row: Row, name: str, swapped: bool) -> str:
    """Return the pair's group: the value of the column `name`, or of its partner if the texts were swapped.

    Raises:
        BadRow: the value in the column is not the name of a group.
        UserError: the texts were swapped, and the column of the other side is missing.
    """
    if swapped and (partner := partner_of(name)):
        if partner not in row.values:
            raise UserError(
                f"{row.place}: the texts are swapped, because the strength prefers the rejected one, and the column "
                f"`{name}`, which names the group, belongs to one side; add `{partner}`, or name "
                "another data.group_column."
            )
        name = partner
    value = row.values.get(name)
    if not isinstance(value, str | int | float) or value == "":
        raise BadRow(row, name, "names no group", "give it a string or a number", f" ({value!r:.40})")
    return encodable(row, name, str(value))
