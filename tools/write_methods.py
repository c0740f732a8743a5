"""Writes docs/methods.md: every objective, part and selection criterion, read from the classes themselves."""

import inspect
import sys
import typing
from pathlib import Path
from typing import Any

from lit_pref.data.selection import criteria
from lit_pref.data.selection.selection import Selection
from lit_pref.objectives.base import Objective
from lit_pref.objectives.pairwise import PARTS, Pairwise
from lit_pref.objectives.parts.terms import Term

PAGE = Path(__file__).parents[1] / "docs" / "methods.md"


def page() -> str:
    """The page's text."""
    lines = [
        "# Objectives, parts and criteria",
        "",
        "Written by `make docs` from the docstrings. [Write your own part](own_parts.md) describes their interface.",
        "",
        "## Objectives",
        "",
    ]
    lines += ["| class | description | references | faithfulness |", "|---|---|---|---|"]
    for cls in subclasses(Objective):
        asked = cls(**required_arguments(cls)).requirements
        low, high = asked.min_references, asked.max_references
        takes = f"{low}" if low == high else f"{low} or more" if high is None else f"{low} to {high}"
        lines.append(f"| `{cls.__name__}` | {_first_line(cls)} | {takes} | {cls.faithfulness} |")
    lines += ["", "## Parts of `Pairwise`", "", "The first of each kind is the default.", ""]
    lines += ["| part | class | description |", "|---|---|---|"]
    built = Pairwise()
    hints = typing.get_type_hints(Pairwise.__init__)
    for part in PARTS:
        default = type(getattr(built, part))
        base = typing.get_args(hints[part])[0]
        members = sorted(subclasses(base), key=lambda cls: (cls is not default, cls.__name__))
        lines += [f"| `{part}` | `{cls.__name__}` | {_first_line(cls)} |" for cls in members]
    lines += [f"| `terms` | `{cls.__name__}` | {_first_line(cls)} |" for cls in subclasses(Term)]
    lines += ["", "## Criteria of `data.selection`", "", "| class | description |", "|---|---|"]
    of_module = (cls for cls in subclasses(Selection) if cls.__module__ == criteria.__name__)
    lines += [f"| `{cls.__name__}` | {_first_line(cls)} |" for cls in of_module]
    return "\n".join(lines) + "\n"


def subclasses(base: type) -> list[type]:
    """The concrete subclasses of `base` in the package, by name."""
    found = {cls for child in base.__subclasses__() for cls in (child, *subclasses(child))}
    ours = [cls for cls in found if cls.__module__.startswith("lit_pref.") and not inspect.isabstract(cls)]
    return sorted(ours, key=lambda cls: cls.__name__)


def required_arguments(cls: type) -> dict[str, Any]:
    """A value of the right type for every constructor argument of `cls` that has no default.

    Raises:
        TypeError: an argument of another type than number, truth value, name, list of numbers or numbers by name.
    """
    values = {bool: True, int: 1, float: 0.5, str: "example", list[float]: [0.5], dict[str, float]: {"example": 0.5}}
    hints = typing.get_type_hints(cls.__init__)
    made = {}
    for name, parameter in list(inspect.signature(cls.__init__).parameters.items())[1:]:
        if parameter.default is inspect.Parameter.empty and parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD:
            if hints.get(name) not in values:
                raise TypeError(f"{cls.__name__}: give the argument {name} a default")
            made[name] = values[hints[name]]
    return made


def _first_line(cls: type) -> str:
    return (inspect.getdoc(cls) or "").split("\n\n")[0].replace("\n", " ").replace("|", "\\|")


if __name__ == "__main__":
    if "--check" in sys.argv:
        sys.exit(0 if PAGE.read_text(encoding="utf-8") == page() else "docs/methods.md is out of date: run `make docs`")
    PAGE.write_text(page(), encoding="utf-8")
