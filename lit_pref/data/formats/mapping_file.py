"""Mappings as they are written: what a YAML file or a dictionary may say, and the sentence for what it may not."""

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

Written = TypeVar("Written")
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True)
class Layout:
    """A mapping and the signatures by which its layout is recognised: paths and what is found at each.

    `refuse` is said instead of using rows of this layout.
    """

    mapping: RowMapping
    recognise: list[dict[str, str]] = field(default_factory=list)
    refuse: str | None = None


def read_yaml(path: Path) -> dict[str, Any]:
    """The content of a mapping file.

    Raises:
        UsageError: it is no YAML mapping.
    """
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=LOADER)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"The mapping {path} cannot be read ({' '.join(str(error).split())}); mend it.") from error
    if not isinstance(values, dict):
        raise UsageError(f"The mapping {path} must say what is where, as in `kind: pair`; it is no YAML mapping.")
    return values


def layout_of(values: Mapping[str, Any], name: str, place: str) -> Layout:
    """A whole layout as its shipped file says it."""
    values = dict(values)
    recognise, refuse = values.pop("recognise", []), values.pop("refuse", None)
    mapping = mapping_from(values, name, place) if refuse is None else RowMapping(name)
    return Layout(mapping, recognise if isinstance(recognise, list) else [recognise], refuse)


def mapping_from(values: Mapping[str, Any], name: str, place: str, base: RowMapping | None = None) -> RowMapping:
    """The mapping that `values` say, where they say nothing as `base` has it.

    Args:
        values: keys as in a mapping file.
        name: of the mapping.
        place: what to call it in a refusal.
        base: a mapping that is overridden in parts.

    Raises:
        UsageError: an unknown key, a value of the wrong kind, or keys that do not go together.
    """
    values = {"as_" if key == "as" else key: value for key, value in values.items() if key != "base"}
    mapping = _built(RowMapping, values, place, "", base or RowMapping(name), name=name)
    if problem := problem_of(mapping):
        raise UsageError(f"{place}: {problem}.")
    return mapping


def _built(kind: type[Written], values: Any, place: str, key: str, base: Any = None, **given: Any) -> Written:
    if not isinstance(values, Mapping):
        raise UsageError(f"{place}: `{key}` must be several keys with values, not {values!r:.40}; {_keys(kind)}.")
    hints = typing.get_type_hints(kind)
    known = {f.name for f in fields(kind)} - {"name"}  # type: ignore[arg-type]
    said: dict[str, Any] = {}
    for name, value in values.items():
        whole = f"{key}.{name}" if key else str(name)
        if name not in known:
            near = nearest_names(str(name), known)
            hint = f"did you mean `{near[0]}`" if near else _keys(kind)
            raise UsageError(f"{place}: `{whole}` is no key of a mapping; {hint}.")
        said[name] = _value(hints[name], value, place, whole, getattr(base, name, None))
    if base is not None:
        return replace(base, **said, **given)
    missing = [f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING]  # type: ignore[arg-type]
    if lacking := [name for name in missing if name not in said and name not in given]:
        raise UsageError(f"{place}: `{key}` needs `{lacking[0]}` too; {_keys(kind)}.")
    return kind(**said, **given)


def _keys(kind: Any) -> str:
    return f"it takes {', '.join('as' if f.name == 'as_' else f.name for f in fields(kind) if f.name != 'name')}"


def _value(hint: Any, value: Any, place: str, key: str, base: Any) -> Any:
    """The value as the annotation wants it."""
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin is types.UnionType or origin is typing.Union:
        if value is None and type(None) in options:
            return None
        options = tuple(option for option in options if option is not type(None))
        if len(options) == 1:
            return _value(options[0], value, place, key, base)
        origin = dict if isinstance(value, Mapping) else str
        return _value(next(o for o in options if (typing.get_origin(o) or o) is origin), value, place, key, base)
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
    wanted = {str: "a word", int: "a whole number", bool: "true or false", float: "a number"}
    raise UsageError(
        f"{place}: `{key}` is {value!r:.40}; it must be {wanted.get(hint, 'a list' if origin is list else 'keys')}."
    )
