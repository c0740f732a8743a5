"""The content of a study file, and refusals that give its lines."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import yaml

from lit_pref.config_files import place_of
from lit_pref.errors import UsageError
from lit_pref.hints import did_you_mean


class StudyFile:
    """The content of a study file, and refusals that give its lines.

    Args:
        path: the file, which is valid YAML.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.content: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))

    def refuse(self, key: str, why: str, leaf: str | None = None) -> NoReturn:
        """Refuse the value of a key.

        Args:
            key: the key, at the top of the file.
            why: the reason and the remedy.
            leaf: a name below the key, whose line is given instead.

        Raises:
            UsageError: always.
        """
        place = place_of(key, leaf, [str(self.path)], []) or f"{self.path}: "
        raise UsageError(f"{place}{key + ': ' if key else ''}{why}")

    def keys(self, key: str, known: Iterable[str]) -> dict[str, Any]:
        """Return the mapping at a key (empty: the whole file), whose names must be known."""
        found = self.content.get(key) if key else self.content
        if not isinstance(found, Mapping):
            self.refuse(key, f"expected a mapping with {', '.join(known)}, got {found!r:.60}")
        for name in found:
            if name not in known:
                what = f"unknown key {name!r}; known: {', '.join(known)}{did_you_mean(str(name), known)}"
                self.refuse(key or str(name), what, str(name))
        return dict(found)

    def text(self, key: str) -> str:
        """Return the text of a key, which must be there."""
        text = self.content.get(key)
        if not isinstance(text, str) or not text.strip():
            self.refuse(key, "missing: one sentence, written before the trials")
        return text.strip()

    def number(self, key: str, value: Any, kind: type, low: float, high: float = float("inf")) -> Any:
        """Return a value as `kind`, int or float, which must be in a range."""
        good = isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high
        if not good or (kind is int and value != int(value)):
            words = "a whole number" if kind is int else "a number"
            end = f"from {low:g} to {high:g}" if high < float("inf") else f"of at least {low:g}"
            self.refuse(key, f"expected {words} {end}, got {value!r}")
        return kind(value)

    def choice(self, key: str, value: Any, known: Iterable[str]) -> Any:
        """Return a value that must be one of the known ones."""
        if value not in known:
            self.refuse(key, f"expected one of {', '.join(known)}, got {value!r}{did_you_mean(str(value), known)}")
        return value
