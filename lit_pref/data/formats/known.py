"""Known formats: the mappings shipped with this package, and recognition of the format of a file."""

import re
from collections.abc import Callable, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from lit_pref.data.formats.conversations import HH_START
from lit_pref.data.formats.field_path import ValuePath
from lit_pref.data.formats.mapping_file import Format, format_from, read_yaml
from lit_pref.data.formats.spec import STRENGTH, RowMapping
from lit_pref.data.sources.row import Row
from lit_pref.errors import UserError

LIKE_STRENGTH = re.compile("score|rating|reward|margin|rank|preference|prob(?!lem)|logit", re.IGNORECASE)
CHOOSE = "choose one by data.mapping, or by `mapping` of the source"


@cache
def shipped() -> dict[str, Format]:
    """Return the formats shipped with this package, by name."""
    folder = Path(str(files("lit_pref.data.formats") / "mappings"))
    paths = sorted(folder.glob("*.yaml"))
    return {path.stem: format_from(read_yaml(path), path.stem, f"mapping {path.stem}") for path in paths}


def recognise(first_rows: Sequence[Row]) -> RowMapping:
    """Return the mapping of the format that the first rows of a file have.

    A format is recognised if most rows fulfil its signature. If several formats fit, the most demanding one is taken,
    whose signature contains the others'.

    Raises:
        UserError: no format fits, two fit that read the file differently, or the format has no pairs.
    """
    if not first_rows:
        return shipped()["pairs"].mapping
    file = first_rows[0].file
    fitting: list[tuple[str, frozenset[str]]] = []
    for name, known in shipped().items():
        fitting += [(name, _demands(signature)) for signature in known.recognise if _fits(signature, first_rows)]
    most = [(name, demands) for name, demands in fitting if not any(demands < other for _, other in fitting)]
    names = sorted({name for name, _ in most})
    if not names:
        raise UserError(_nothing_fits(file, first_rows))
    if len(names) > 1:
        raise UserError(f"{file} may have the format {' or '.join(names)}, which read it differently; {CHOOSE}.")
    recognised = shipped()[names[0]]
    if recognised.refuse:
        raise UserError(f"{file} contains {recognised.refuse}.")
    _refuse_unread_strength(file, first_rows, recognised.mapping)
    return recognised.mapping


def _refuse_unread_strength(file: str, rows: Sequence[Row], mapping: RowMapping) -> None:
    if mapping.kind == "pair" and not mapping.has_strength:
        return
    unread = [name for name in STRENGTH if _somewhere(name, rows) and name not in mapping.paths.values()]
    if unread:
        raise UserError(
            f"{file} has the format {mapping.name}, which does not read its column `{unread[0]}`; set data.mapping "
            f"to {mapping.name} to use its strength, to pairs to use `{unread[0]}`, or remove the column."
        )


def refuse_unread_numbers(rows: Sequence[Row], mapping: RowMapping) -> None:
    """Refuse pairs without strength that have unread columns of numbers whose names suggest a strength.

    Raises:
        UserError: there are such columns; the message names them and says how to use or ignore them.
    """
    if mapping.kind != "pair" or mapping.has_strength or not _somewhere(str(mapping.rejected), rows):
        return
    if any(_somewhere(name, rows) for name in STRENGTH):
        return
    read = {name for path in mapping.paths.values() for name in (path, ValuePath(path).column)}
    numbers = {str(name) for row in rows for name, value in row.values.items() if _is_number(value)} - read
    if unread := sorted(filter(LIKE_STRENGTH.search, numbers)):
        names = " and ".join(f"`{name}`" for name in unread[:4])
        how = (
            "rename it to score_chosen and score_rejected, margin or probability, or name its columns in the mapping's "
            "score, signed or probability, as in data.mapping: {score: {chosen: ..., rejected: ...}}"
        )
        if len(unread) == 1:  # one column can only be a difference or a probability
            how = f"set data.mapping to {{margin: {{column: {unread[0]}, positive_means: chosen}}}} (a difference, "
            how += f"chosen minus rejected) or {{probability: {{column: {unread[0]}}}}} (that chosen is better)"
        raise UserError(
            f"{rows[0].file} has the format {mapping.name}, which does not read {names}; if that is the strength of "
            f"the preferences, {how}; if it is not, set data.mapping to {mapping.name} (in a mapping of your own, "
            f"`base: {mapping.name}`)."
        )


def _somewhere(path: str, rows: Sequence[Row]) -> bool:
    return any(ValuePath(path).within(row.values) for row in rows)


def _demands(signature: dict[str, str]) -> frozenset[str]:
    """Return a signature as a set; `any` demands less than every other type."""
    return frozenset(signature) | {f"{path}: {kind}" for path, kind in signature.items() if kind != "any"}


def _fits(signature: dict[str, str], rows: Sequence[Row]) -> bool:
    return all(_has(path, kind, rows) for path, kind in signature.items())


def _has(path: str, kind: str, rows: Sequence[Row]) -> bool:
    where, fits = ValuePath(path), TYPES[kind]
    within = [row for row in rows if where.within(row.values)]
    values = [value for row in within if (value := where.of(row.values)) is not None]
    if len(within) <= len(rows) / 2 or (not values and kind != "any"):
        return False
    if where.many:
        return sum(all(fits(part) for part in value if part is not None) for value in values) > len(values) / 2
    return kind == "any" or sum(map(fits, values)) > len(values) / 2


def _nothing_fits(file: str, rows: Sequence[Row]) -> str:
    columns = ", ".join(map(str, rows[0].values)) or "(none)"
    lacking: list[tuple[int, str, list[str]]] = []
    for name, known in shipped().items():
        for signature in known.recognise if not known.refuse else []:
            lacks = [path for path, kind in signature.items() if not _has(path, kind, rows)]
            if len(lacks) < len(signature):
                lacking.append((len(lacks), name, lacks))
    near = {name: lacks for _, name, lacks in sorted(lacking, reverse=True)[-3:]}
    shown = [f"{name} lacks {' and '.join(f'`{path}`' for path in lacks)}" for name, lacks in reversed(near.items())]
    nearest = f" (nearest: {'; '.join(shown)})" if shown else ""
    return (
        f"{file} has the columns {columns}, which are those of no known format{nearest}; rename or add columns, or "
        "write a mapping that names the columns of texts and strength, and set data.mapping to it"
    ) + "."


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_number(value: Any) -> bool:
    if isinstance(value, str):  # in a CSV file
        return value.replace(".", "", 1).removeprefix("-").isdigit()
    return isinstance(value, int | float) and not isinstance(value, bool)


def _turns(value: Any, role: str, content: str) -> bool:
    return (
        bool(value)
        and isinstance(value, list)
        and all(isinstance(turn, dict) and role in turn and content in turn for turn in value)
    )


TYPES: dict[str, Callable[[Any], bool]] = {
    "any": lambda value: True,
    "text": _is_text,
    "number": _is_number,
    "truth": lambda value: isinstance(value, bool) or value in (0, 1, "0", "1", "true", "false", "True", "False"),
    "texts": lambda value: isinstance(value, list) and all(map(_is_text, value)),
    "numbers": lambda value: isinstance(value, list) and all(map(_is_number, value)),
    "messages": lambda value: _turns(value, "role", "content"),
    "dialogue": lambda value: _turns(value, "role", "content") and len(value) > 1,
    "sharegpt": lambda value: _turns([value] if isinstance(value, dict) else value, "from", "value"),
    "hh": lambda value: isinstance(value, str) and bool(HH_START.match(value)),
}
"""Types that a signature can require for the value at a path."""
