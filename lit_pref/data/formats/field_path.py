"""Paths to a value in a row: `history`, `question.full_text`, `summaries[0].text`, `answers[].rank`."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lit_pref.errors import UsageError

ABSENT = object()
_STEP = re.compile(r"([^.\[\]]+)|\[(\d*)\]")
_PATH = re.compile(r"[^.\[\]]+(\.[^.\[\]]+|\[\d*\])*")


@dataclass(frozen=True)
class ValuePath:
    """A path into a row: names with dots between them, `[k]` for the k-th entry of a list, `[]` for all of them.

    A column whose name equals the whole path, including dots, takes precedence.

    >>> row = {"answers": [{"text": "4", "rank": 1}, {"text": "5"}], "a.b": 7}
    >>> ValuePath("answers[].rank").of(row), ValuePath("answers[1].text").of(row), ValuePath("a.b").of(row)
    ([1, None], '5', 7)
    """

    text: str
    steps: tuple[str | int | None, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not _PATH.fullmatch(self.text) or self.text.count("[]") > 1:
            raise UsageError(
                f"{self.text!r} is not a path into a row; write a column, `a.b` for b within a, `a[0]` for the first "
                "entry of a list, or `a[].b` for b of every entry (once)."
            )
        steps = tuple(name if name else None if not index else int(index) for name, index in _STEP.findall(self.text))
        object.__setattr__(self, "steps", steps)

    @property
    def many(self) -> bool:
        """Whether the path leads to a list of values, one per entry."""
        return "[]" in self.text

    @property
    def column(self) -> str:
        """The column of the row in which the path begins."""
        return str(self.steps[0])

    def of(self, values: Mapping[str, Any]) -> Any:
        """Return the value, or None if there is none."""
        value = values.get(self.text, ABSENT)
        if value is ABSENT and len(self.steps) > 1:
            value = _follow(values, self.steps)
        return None if value is ABSENT else value

    def within(self, values: Mapping[str, Any]) -> bool:
        """Return whether the row has the path, even if its value is null."""
        if self.text in values:
            return True
        value = _follow(values, self.steps)
        return any(entry is not None for entry in value) if self.many and value is not ABSENT else value is not ABSENT

    def entry(self, k: int) -> str:
        """Return the name of the k-th value of a path that leads to many."""
        return self.text.replace("[]", f"[{k}]")


def _follow(value: Any, steps: tuple[str | int | None, ...]) -> Any:
    for k, step in enumerate(steps):
        if step is None:
            if not isinstance(value, list):
                return ABSENT
            entries = (_follow(entry, steps[k + 1 :]) for entry in value)
            return [None if entry is ABSENT else entry for entry in entries]
        if isinstance(step, int):
            if not isinstance(value, list) or step >= len(value):
                return ABSENT
            value = value[step]
        elif not isinstance(value, Mapping) or step not in value:
            return ABSENT
        else:
            value = value[step]
    return value
