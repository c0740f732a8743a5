"""Mapping files: parsing of a YAML file or dictionary, with a sentence for every wrong key or value."""

import os
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import yaml

from lit_pref.data.formats.spec import RowMapping
from lit_pref.data.formats.validate import problem_of
from lit_pref.errors import UsageError
from lit_pref.hints import nearest_names
from lit_pref.yaml_limits import LOADER, refuse_alias_bomb

Part = TypeVar("Part")


@dataclass(frozen=True)
class Format:
    """A file format: its mapping, and the signatures by which it is recognised (paths, and the type of each value).

    `refuse` is the reason why rows of this format cannot be used, or None.
    """

    mapping: RowMapping
    recognise: list[dict[str, str]] = field(default_factory=list)
    refuse: str | None = None


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the content of a mapping file.

    Raises:
        UsageError: it is not a YAML mapping.
    """
    try:
        text = Path(os.path.expanduser(path)).read_text(encoding="utf-8")
        refuse_alias_bomb(text, f"The mapping {path}")
        values = yaml.load(text, Loader=LOADER)
    except FileNotFoundError as error:
        here = sorted(str(file) for file in path.parent.glob("*.y*ml"))
        near = nearest_names(str(path), here)
        hint = f"did you mean {near[0]}" if near else "give the path of a file, or the name of a shipped mapping"
        raise UsageError(f"There is no mapping file {path}; {hint}.") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"The mapping {path} cannot be read ({' '.join(str(error).split())}); fix it.") from error
    if not isinstance(values, dict):
        raise UsageError(f"The mapping {path} is not a YAML mapping; write keys and values, such as `kind: pair`.")
    return values


def format_from(values: Mapping[str, Any], name: str, place: str) -> Format:
    """Return the format that a shipped file describes."""
    values = dict(values)
    recognise, refuse = values.pop("recognise", []), values.pop("refuse", None)
    mapping = mapping_from(values, name, place) if refuse is None else RowMapping(name)
    return Format(mapping, recognise if isinstance(recognise, list) else [recognise], refuse)


def mapping_from(values: Mapping[str, Any], name: str, place: str, base: RowMapping | None = None) -> RowMapping:
    """Return the mapping with these `values`; all others are taken from `base`.

    Args:
        values: keys as in a mapping file.
        name: name of the mapping.
        place: name of the mapping in messages.
        base: a mapping of which parts are overridden.

    Raises:
        UsageError: an unknown key, a value of the wrong kind, or keys that contradict each other.
    """
    values = {"as_" if key == "as" else key: value for key, value in values.items() if key != "base"}
    mapping = _built(RowMapping, values, place, "", base or RowMapping(name), name=name)
    if problem := problem_of(mapping):
        raise UsageError(f"{place}: {problem}.")
    return mapping


def _built(kind: type[Part], values: Any, place: str, key: str, base: Any = None, **given: Any) -> Part:
    if not isinstance(values, Mapping):
        has_column = any(f.name == "column" for f in fields(kind))  # type: ignore[arg-type]
        example = f" ({key}: {{column: {values}}})" if has_column and isinstance(values, str) else ""
        raise UsageError(f"{place}: `{key}` is {values!r:.40}; it must be a mapping{example}; {_keys(kind)}.")
    hints = typing.get_type_hints(kind)
    known = {f.name for f in fields(kind)} - {"name"}  # type: ignore[arg-type]
    parsed: dict[str, Any] = {}
    for name, value in values.items():
        whole = f"{key}.{name}" if key else str(name)
        if name not in known:
            near = nearest_names(str(name), known)
            hint = f"did you mean `{near[0]}`" if near else _keys(kind)
            if name == "third":
                hint = "it is now called `extra_response`"
            raise UsageError(f"{place}: `{whole}` is not a key of a mapping; {hint}.")
        parsed[name] = _value(hints[name], value, place, whole, getattr(base, name, None))
    if base is not None:
        return replace(base, **parsed, **given)
    missing = [f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING]  # type: ignore[arg-type]
    if lacking := [name for name in missing if name not in parsed and name not in given]:
        raise UsageError(f"{place}: `{key}` needs `{lacking[0]}` too; {_keys(kind)}.")
    return kind(**parsed, **given)


def _keys(kind: Any) -> str:
    return f"it takes {', '.join('as' if f.name == 'as_' else f.name for f in fields(kind) if f.name != 'name')}"


def _value(hint: Any, value: Any, place: str, key: str, base: Any) -> Any:
    """Return the value converted to the type of the annotation."""
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin is types.UnionType or origin is typing.Union:
        if value is None and type(None) in options:
            return None
        options = tuple(option for option in options if option is not type(None))
        if len(options) == 1:
            return _value(options[0], value, place, key, base)
        origin = dict if isinstance(value, Mapping) else list if isinstance(value, list) else str
        option = next((o for o in options if (typing.get_origin(o) or o) is origin), options[0])
        return _value(option, value, place, key, base)
    if is_dataclass(hint):
        return _built(typing.cast(type, hint), value, place, key, base)
    if origin is typing.Literal:
        if isinstance(value, str) and value in options:
            return value
        raise UsageError(f"{place}: `{key}` is {value!r:.40}; it must be one of {', '.join(options)}.")
    if origin is dict and isinstance(value, Mapping):
        return {str(name): _value(options[1], part, place, f"{key}.{name}", None) for name, part in value.items()}
    if origin is list and isinstance(value, list):
        return [_value(options[0], part, place, key, None) for part in value]
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if hint in (str, int, bool) and type(value) is hint:
        return value
    expected = {str: "a word", int: "a whole number", bool: "true or false", float: "a number"}
    raise UsageError(
        f"{place}: `{key}` is {value!r:.40}; it must be {expected.get(hint, 'a list' if origin is list else 'keys')}."
    )
