"""Text of dataclasses and mappings for the generated pages: a line per field, numbers with four digits."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor


def fields_text(value: Any, without: set[str] | None = None) -> str:
    """Return the fields of a dataclass, except those in `without`, each in a line."""
    assert is_dataclass(value)
    return mapping_text({f.name: getattr(value, f.name) for f in fields(value) if f.name not in (without or ())})


def mapping_text(values: Mapping[str, Any]) -> str:
    """Return the entries of a mapping that are not empty, each in a line."""
    shown = {name: _lines(value) for name, value in values.items() if not _empty(value)}
    width = max(map(len, shown))
    gap = "\n" + " " * (width + 2)
    return "\n".join(f"{name:{width}}  {gap.join(lines)}" for name, lines in shown.items())


def _lines(value: Any) -> list[str]:
    """A mapping and a matrix have a line for each entry."""
    if isinstance(value, Tensor) and value.ndim == 2:
        return [_shown(row) for row in value]
    if isinstance(value, Mapping) and value:
        return [f"{name}: {_shown(entry)}" for name, entry in value.items()]
    return [_shown(value)]


def _empty(value: Any) -> bool:
    if isinstance(value, float | int) and not isinstance(value, bool):
        return False
    if isinstance(value, tuple) and value and all(map(_empty, value)):
        return True
    return value is None or value is False or (isinstance(value, str | list | dict | tuple | frozenset) and not value)


def _shown(value: Any) -> str:
    match value:
        case Tensor():
            return _shown(value.tolist())
        case float():
            return digits(value)
        case bytes():
            return f"{value.hex()[:8]}…"
        case list() | tuple():
            inner = ", ".join(map(_shown, value))
            return f"[{inner}]" if isinstance(value, list) else f"({inner})"
        case _ if is_dataclass(value):
            entries = [(f.name, getattr(value, f.name)) for f in fields(value)]
            inner = ", ".join(f"{name}={_shown(entry)}" for name, entry in entries if not _empty(entry))
            return f"{type(value).__name__}({inner})"
        case _:
            return repr(value)


def digits(value: Any) -> str:
    """Four digits, so that machines that round differently write the same page."""
    return f"{float(value):.4g}"
