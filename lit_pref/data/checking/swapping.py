"""What becomes of a row's further columns where its texts swap."""

from typing import Literal

from lit_pref.data.checking.fields import BadRow, number_of
from lit_pref.data.sources.row import Row
from lit_pref.errors import UserError

OnSwap = Literal["keep", "negate", "complement"]
ON_SWAP: dict[str, OnSwap] = {"margin": "negate", "probability": "complement", "p_chosen": "complement"}


def partner_of(name: str) -> str | None:
    """The column of the other side, where a name speaks of one.

    >>> partner_of("reward_chosen"), partner_of("difficulty"), partner_of("chosen_minus_rejected")
    ('reward_rejected', None, None)
    """
    if ("chosen" in name) == ("rejected" in name):
        return None
    return name.replace("chosen", "rejected") if "chosen" in name else name.replace("rejected", "chosen")


def turned(row: Row, name: str, turn: OnSwap | None) -> float:
    """The value of a column after the row's texts have swapped.

    Args:
        row: as its source has it.
        name: of the column.
        turn: what was said to become of it, before what its name says.

    Raises:
        BadRow: it is no number, or none that can turn.
        UserError: nothing says what becomes of it.
    """
    turn = turn or ON_SWAP.get(name)
    remedy = ""
    if turn is None and (partner := partner_of(name)):
        if partner in row.values:
            return number_of(row, partner, truth=True)
        remedy = f"add `{partner}`, or "
    elif turn is None and name.startswith("p_"):
        turn = "complement"
    if turn is None:
        raise UserError(
            f"{row.place}: the texts swap, as the strength prefers the rejected one, and nothing says what becomes "
            f"of the column `{name}`; {remedy}set data.on_swap.{name} to keep (it holds for either order), negate "
            "(a difference, chosen minus rejected) or complement (a probability that chosen is better)."
        )
    value = number_of(row, name, truth=True)
    if turn == "complement" and not 0 <= value <= 1:
        raise BadRow(
            row,
            name,
            "is not between 0 and 1",
            f"give P(chosen is better), or say by data.on_swap.{name} what else it is",
            f" ({value:g})",
        )
    return {"keep": value, "negate": -value, "complement": 1 - value}[turn]


def group_of(row: Row, name: str, swapped: bool) -> str:
    """The pair's group: of the column `name`, or of its partner where the texts swap.

    Raises:
        BadRow: the column names no group.
        UserError: the texts swap, and the column of the other side is missing.
    """
    if swapped and (partner := partner_of(name)):
        if partner not in row.values:
            raise UserError(
                f"{row.place}: the texts swap, as the strength prefers the rejected one, and the column `{name}`, "
                f"which names the group, is of one side; add `{partner}`, or name another data.group_column."
            )
        name = partner
    value = row.values.get(name)
    if not isinstance(value, str | int | float) or value == "":
        raise BadRow(row, name, "names no group", "give it a word or a number", f" ({value!r:.40})")
    return str(value)
