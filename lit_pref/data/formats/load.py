"""The mapping of a source: a shipped one, the user's own, or the one of the recognised format."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lit_pref.data.formats.field_path import ValuePath
from lit_pref.data.formats.known import recognise, refuse_unread_numbers, shipped
from lit_pref.data.formats.mapping_file import mapping_from, read_yaml
from lit_pref.data.formats.spec import RowMapping
from lit_pref.data.formats.strength import Margin, Probability, Score, Signed
from lit_pref.data.sources.row import Row
from lit_pref.errors import UsageError, UserError
from lit_pref.hints import nearest_names

REQUIRED = ("prompt", "chosen", "a", "b", "responses", "score", "signed", "probability", "label", "tree", "group")


def load_mapping(mapping: str | Mapping[str, Any] | None) -> RowMapping | None:
    """Return the mapping that is named, or None if it depends on the rows.

    Args:
        mapping: the name of a shipped mapping, a YAML file, or the content of one. Without `kind` it overrides parts
            of the mapping that `base` names, or else of the recognised one. None recognises the format.

    Raises:
        UsageError: there is no such mapping, or it has an error.
    """
    if mapping is None:
        return None
    values, name, place = _parsed(mapping)
    base = None
    if values.get("base") is not None:
        base = _named(str(values["base"]), f"{place}: `base`")
    elif "kind" not in values:
        mapping_from(values, name, place, RowMapping(name, prompt="prompt", chosen="chosen", rejected="rejected"))
        return None
    named = mapping_from(values, base.name if base and name == "given" else name, place, base)
    return None if _depends_on_rows(named) else named


def mapping_of(given: str | Mapping[str, Any] | None, first_rows: Callable[[], Sequence[Row]]) -> RowMapping:
    """Return the mapping of a source: the given one, completed or recognised by the first rows.

    Args:
        given: see `load_mapping`.
        first_rows: the first rows of the source.

    Raises:
        UserError: the format is unknown or ambiguous, or no row has a path that the mapping names.
        UsageError: the mapping has an error.
    """
    mapping = load_mapping(given)
    rows = first_rows()
    if mapping is None:
        values, _, place = _parsed(given or {})
        base = values.get("base")
        mapping = recognise(rows) if base is None else _named(str(base), f"{place}: `base`")
        if values and rows:
            mapping = mapping_from(values, mapping.name, place, _with_strength(mapping, rows, values))
        if base is None:
            refuse_unread_numbers(rows, mapping)
    if rows:
        _check_paths(mapping, rows, given)
    return mapping


def _parsed(mapping: str | Mapping[str, Any]) -> tuple[Mapping[str, Any], str, str]:
    """Return the keys and values of a mapping, its name, and its name in messages."""
    if not isinstance(mapping, str):
        place = "The mapping in data.mapping"
        return _with_signed(mapping, place), "given", place
    if mapping.endswith((".yaml", ".yml")):
        place = f"The mapping {mapping}"
        return _with_signed(read_yaml(Path(mapping)), place), Path(mapping).stem, place
    _named(mapping, "data.mapping")
    return {"base": mapping}, mapping, f"The mapping {mapping}"


def _with_signed(values: Mapping[str, Any], place: str) -> Mapping[str, Any]:
    """Return the keys of a mapping, with `margin: {column: ...}`, its short form for pairs, as `signed`."""
    margin = values.get("margin")
    if not isinstance(margin, Mapping) or "column" not in margin:
        return values
    if "signed" in values:
        raise UsageError(f"{place}: `margin.column` and `signed` both name the margin; give one of them.")
    rest = {key: value for key, value in margin.items() if key not in ("column", "positive_means")}
    signed = {"column": margin["column"], "positive_means": margin.get("positive_means", "chosen")}
    return {**values, "margin": rest, "signed": signed}


def _named(name: str, place: str) -> RowMapping:
    known = shipped().get(name)
    if known is None:
        near = nearest_names(name, shipped())
        hint = f"did you mean {near[0]}" if near else f"there are {', '.join(shipped())}"
        raise UsageError(f"{place} is {name!r:.60}, which is not a mapping; {hint}, or give a file that ends in .yaml.")
    if known.refuse:
        raise UsageError(f"{place} is {name}, which cannot be trained on: {known.refuse}.")
    return known.mapping


def _depends_on_rows(mapping: RowMapping) -> bool:
    """Return whether the columns of strength have to be found in the rows."""
    margin = replace(mapping.margin, normalise="none")
    return mapping.kind == "pair" and not mapping.names_strength and margin != Margin()


def _with_strength(mapping: RowMapping, rows: Sequence[Row], values: Mapping[str, Any]) -> RowMapping:
    """Return the mapping, with the canonical columns of strength if its margin is computed from them."""
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
        f"{rows[0].file} has no column from which the mapping's margin ({', '.join(map(str, margin))}) could be "
        "computed; name the columns of strength in the mapping's score, signed or probability."
    )


def _check_paths(mapping: RowMapping, rows: Sequence[Row], given: Any) -> None:
    keys = set(_parsed(given)[0]) if given is not None and not isinstance(given, str) else set()
    if isinstance(given, str) and given not in shipped():
        keys = set(_parsed(given)[0])
    columns = list(dict.fromkeys(str(name) for row in rows for name in row.values))
    for key, path in mapping.paths.items():
        part = key.partition(".")[0]
        if part not in (*REQUIRED, *keys) or any(ValuePath(path).within(row.values) for row in rows):
            continue
        near = nearest_names(path, columns)
        hint = f"did you mean {near[0]}?" if near else f"the columns are {', '.join(columns[:30])}."
        raise UserError(
            f"The mapping {mapping.name}: `{key}` is {path}, which none of the first {len(rows)} rows of "
            f"{rows[0].file} has; {hint}"
        )
