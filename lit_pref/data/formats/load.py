"""How the rows of a source are read: by a shipped mapping, a user's own, or as the layout is recognised."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lit_pref.data.formats.field_path import ValuePath
from lit_pref.data.formats.known import recognise, refuse_nameless_strength, shipped
from lit_pref.data.formats.mapping_file import mapping_from, read_yaml
from lit_pref.data.formats.spec import RowMapping as RowMapping
from lit_pref.data.formats.strength import Margin, Probability, Score, Signed
from lit_pref.data.sources.row import Row
from lit_pref.errors import UsageError, UserError
from lit_pref.hints import nearest_names

REQUIRED = ("prompt", "chosen", "a", "b", "responses", "score", "signed", "probability", "label", "tree", "group")


def load_mapping(mapping: str | Mapping[str, Any] | None) -> RowMapping | None:
    """The mapping that is named, or None where the rows have to be looked at.

    Args:
        mapping: the name of a shipped mapping, a YAML file, or what such a file says. Without `kind` it overrides parts
            of the mapping that `base` names, else of the one that is recognised. None recognises the layout.

    Raises:
        UsageError: there is no such mapping, or it is faulty.
    """
    if mapping is None:
        return None
    values, name, place = _written(mapping)
    base = None
    if values.get("base") is not None:
        base = _named(str(values["base"]), f"{place}: `base`")
    elif "kind" not in values:
        mapping_from(values, name, place, RowMapping(name, prompt="prompt", chosen="chosen", rejected="rejected"))
        return None
    found = mapping_from(values, base.name if base and name == "given" else name, place, base)
    return None if _is_open(found) else found


def mapping_of(given: str | Mapping[str, Any] | None, first_rows: Callable[[], Sequence[Row]]) -> RowMapping:
    """The mapping of a source: as `given`, recognised by the first rows where it leaves that open.

    Args:
        given: as `load_mapping` takes it.
        first_rows: the first rows of the source.

    Raises:
        UserError: the layout is not known or ambiguous, or no row has what the mapping names.
        UsageError: the mapping is faulty.
    """
    found = load_mapping(given)
    rows = first_rows()
    if found is None:
        values, _, place = _written(given or {})
        base = values.get("base")
        found = recognise(rows) if base is None else _named(str(base), f"{place}: `base`")
        if values and rows:
            found = mapping_from(values, found.name, place, _with_strength(found, rows, values))
        if base is None:
            refuse_nameless_strength(rows, found)
    if rows:
        _check_paths(found, rows, given)
    return found


def _written(mapping: str | Mapping[str, Any]) -> tuple[Mapping[str, Any], str, str]:
    """What a mapping says, its name, and what to call it in a refusal."""
    if not isinstance(mapping, str):
        return mapping, "given", "The mapping that data.mapping gives"
    if mapping.endswith((".yaml", ".yml")):
        return read_yaml(Path(mapping)), Path(mapping).stem, f"The mapping {mapping}"
    _named(mapping, "data.mapping")
    return {"base": mapping}, mapping, f"The mapping {mapping}"


def _named(name: str, place: str) -> RowMapping:
    layout = shipped().get(name)
    if layout is None:
        near = nearest_names(name, shipped())
        hint = f"did you mean {near[0]}" if near else f"there are {', '.join(shipped())}"
        raise UsageError(f"{place} is {name!r:.60}, which is no mapping; {hint}, or give a file that ends in .yaml.")
    if layout.refuse:
        raise UsageError(f"{place} is {name}, which cannot be trained on: {layout.refuse}.")
    return layout.mapping


def _is_open(mapping: RowMapping) -> bool:
    """Whether the rows have to say where the strength is."""
    margin = replace(mapping.margin, normalise="none")
    return mapping.kind == "pair" and not mapping.names_strength and margin != Margin()


def _with_strength(mapping: RowMapping, rows: Sequence[Row], values: Mapping[str, Any]) -> RowMapping:
    """The mapping, and where the strength is if a margin is to be made of columns with this project's own names."""
    margin = values.get("margin")
    if mapping.kind != "pair" or mapping.names_strength or not isinstance(margin, Mapping) or not rows:
        return mapping
    has = rows[0].values
    transform = margin.get("transform")
    if not set(margin) - {"normalise"} or {"score", "signed", "probability"} & set(values):
        return mapping
    p = next((name for name in ("probability", "p_chosen") if name in has), None)
    probability = Probability(p) if p else None
    if transform in (None, "signed", "const") and "margin" in has:
        return replace(mapping, signed=Signed("margin", "chosen"), probability=probability)
    if transform not in ("signed", "probability") and {"score_chosen", "score_rejected"} <= has.keys():
        return replace(mapping, score=Score("score_chosen", "score_rejected"), probability=probability)
    if transform in ("probability", "const") and p:
        return replace(mapping, probability=probability)
    if transform == "const":
        return mapping
    raise UserError(
        f"{rows[0].file} has no column that the mapping's margin ({', '.join(map(str, margin))}) could be made of; say "
        "where the strength is by the mapping's score, signed or probability."
    )


def _check_paths(mapping: RowMapping, rows: Sequence[Row], given: Any) -> None:
    said = set(_written(given)[0]) if given is not None and not isinstance(given, str) else set()
    if isinstance(given, str) and given not in shipped():
        said = set(_written(given)[0])
    columns = list(dict.fromkeys(str(name) for row in rows for name in row.values))
    for key, path in mapping.paths.items():
        part = key.partition(".")[0]
        if part not in (*REQUIRED, *said) or any(ValuePath(path).within(row.values) for row in rows):
            continue
        near = nearest_names(path, columns)
        hint = f"did you mean {near[0]}?" if near else f"the columns are {', '.join(columns[:30])}."
        raise UserError(
            f"The mapping {mapping.name}: `{key}` is {path}, which none of the first {len(rows)} rows of "
            f"{rows[0].file} has; {hint}"
        )
