"""Known layouts: the mappings that come with this package, and which of them a file is in."""

import re
from collections.abc import Callable, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from lit_pref.data.formats.conversations import HH_START
from lit_pref.data.formats.field_path import ValuePath
from lit_pref.data.formats.mapping_file import Layout, layout_of, read_yaml
from lit_pref.data.formats.spec import RowMapping
from lit_pref.data.sources.row import Row
from lit_pref.errors import UserError

NATIVE = ("margin", "probability", "p_chosen", "score_chosen", "score_rejected")
LIKE_STRENGTH = re.compile("score|rating|reward|margin|rank|preference|prob(?!lem)|logit", re.IGNORECASE)
CHOOSE = "say which by data.mapping, or by `mapping` of the source"


@cache
def shipped() -> dict[str, Layout]:
    """The layouts that come with this package, by name."""
    folder = Path(str(files("lit_pref.data.formats") / "mappings"))
    found = sorted(folder.glob("*.yaml"))
    return {path.stem: layout_of(read_yaml(path), path.stem, f"mapping {path.stem}") for path in found}


def recognise(first_rows: Sequence[Row]) -> RowMapping:
    """The mapping of the layout that the first rows of a file are in.

    A layout is recognised where most rows have all that its signature demands. Of several the most demanding one is
    meant: the one whose signature contains the others'.

    Raises:
        UserError: no layout fits, two fit that mean different things, or the layout holds no pairs.
    """
    if not first_rows:
        return shipped()["pairs"].mapping
    file = first_rows[0].file
    fitting: list[tuple[str, frozenset[str]]] = []
    for name, layout in shipped().items():
        fitting += [(name, _demands(signature)) for signature in layout.recognise if _fits(signature, first_rows)]
    most = [(name, demands) for name, demands in fitting if not any(demands < other for _, other in fitting)]
    names = sorted({name for name, _ in most})
    if not names:
        raise UserError(_nothing_fits(file, first_rows))
    if len(names) > 1:
        raise UserError(f"{file} may be in the layout {' or '.join(names)}, which read it differently; {CHOOSE}.")
    layout = shipped()[names[0]]
    if layout.refuse:
        raise UserError(f"{file} holds {layout.refuse}.")
    _refuse_unread_strength(file, first_rows, layout.mapping)
    return layout.mapping


def _refuse_unread_strength(file: str, rows: Sequence[Row], mapping: RowMapping) -> None:
    if mapping.kind == "pair" and not mapping.has_strength:
        return
    unread = [name for name in NATIVE if _somewhere(name, rows) and name not in mapping.paths.values()]
    if unread:
        raise UserError(
            f"{file} is in the layout {mapping.name}, which does not read its column `{unread[0]}`; set data.mapping "
            f"to {mapping.name} if its strength is meant, to pairs if `{unread[0]}` is, or remove the column."
        )


def refuse_nameless_strength(rows: Sequence[Row], mapping: RowMapping) -> None:
    """Refuses pairs without strength beside numbers that by their names are strength, and that nothing reads.

    Raises:
        UserError: names the columns, and the ways to have them read or passed over.
    """
    if mapping.kind != "pair" or mapping.has_strength or not _somewhere(str(mapping.rejected), rows):
        return
    if any(_somewhere(name, rows) for name in NATIVE):
        return
    read = {name for path in mapping.paths.values() for name in (path, ValuePath(path).column)}
    found = {str(name) for row in rows for name, value in row.values.items() if _is_number(value)} - read
    if unread := sorted(filter(LIKE_STRENGTH.search, found)):
        raise UserError(
            f"{rows[0].file} is in the layout {mapping.name}, in which nothing reads "
            f"{' and '.join(f'`{name}`' for name in unread[:4])}; if that is the strength of the preferences, rename "
            "it to score_chosen and score_rejected, margin or probability, or say by the mapping's score, signed or "
            "probability where it is, as data.mapping: {score: {chosen: ..., rejected: ...}} does, and if it is not, "
            f"set data.mapping to {mapping.name} (in a mapping of your own `base: {mapping.name}`)."
        )


def _somewhere(path: str, rows: Sequence[Row]) -> bool:
    return any(ValuePath(path).within(row.values) for row in rows)


def _demands(signature: dict[str, str]) -> frozenset[str]:
    """A signature as a set: `any` demands less than every other form."""
    return frozenset(signature) | {f"{path}: {form}" for path, form in signature.items() if form != "any"}


def _fits(signature: dict[str, str], rows: Sequence[Row]) -> bool:
    return all(_has(path, form, rows) for path, form in signature.items())


def _has(path: str, form: str, rows: Sequence[Row]) -> bool:
    where, fits = ValuePath(path), FORMS[form]
    within = [row for row in rows if where.within(row.values)]
    found = [value for row in within if (value := where.of(row.values)) is not None]
    if len(within) <= len(rows) / 2 or (not found and form != "any"):
        return False
    if where.many:
        return sum(all(fits(part) for part in value if part is not None) for value in found) > len(found) / 2
    return form == "any" or sum(map(fits, found)) > len(found) / 2


def _nothing_fits(file: str, rows: Sequence[Row]) -> str:
    columns = ", ".join(map(str, rows[0].values)) or "(none)"
    lacking: list[tuple[int, str, list[str]]] = []
    for name, layout in shipped().items():
        for signature in layout.recognise if not layout.refuse else []:
            lacks = [path for path, form in signature.items() if not _has(path, form, rows)]
            if len(lacks) < len(signature):
                lacking.append((len(lacks), name, lacks))
    near = {name: lacks for _, name, lacks in sorted(lacking, reverse=True)[-3:]}
    told = [f"{name} lacks {' and '.join(f'`{path}`' for path in lacks)}" for name, lacks in reversed(near.items())]
    nearest = f" (nearest: {'; '.join(told)})" if told else ""
    return (
        f"{file} has the columns {columns}, which is no known layout{nearest}; rename or add what is missing, or write "
        "a mapping that says where texts and strength are, and name it by data.mapping"
    ) + "."


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_number(value: Any) -> bool:
    if isinstance(value, str):  # in a table of texts
        return value.replace(".", "", 1).removeprefix("-").isdigit()
    return isinstance(value, int | float) and not isinstance(value, bool)


def _turns(value: Any, role: str, content: str) -> bool:
    return (
        bool(value)
        and isinstance(value, list)
        and all(isinstance(turn, dict) and role in turn and content in turn for turn in value)
    )


FORMS: dict[str, Callable[[Any], bool]] = {
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
"""What may be demanded of the value at a path."""
