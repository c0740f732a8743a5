"""Writes docs/methods.md: every objective and part, read from the classes themselves."""

import inspect
import sys
import typing
from pathlib import Path

from lit_pref.objectives.base import Objective
from lit_pref.objectives.pairwise import PARTS, Pairwise
from lit_pref.objectives.parts.terms import Term

PAGE = Path(__file__).parents[1] / "docs" / "methods.md"


def page() -> str:
    """The page's text."""
    lines = ["# Objectives and parts", "", "Written by `make docs` from the docstrings.", "", "## Objectives", ""]
    lines += ["| class | what it is | references | faithfulness |", "|---|---|---|---|"]
    for cls in _subclasses(Objective):
        built = cls()
        low, high = built.min_references, built.max_references
        takes = f"{low}" if low == high else f"{low} or more" if high is None else f"{low} to {high}"
        lines.append(f"| `{cls.__name__}` | {_first_line(cls)} | {takes} | {cls.faithfulness} |")
    lines += ["", "## Parts of `Pairwise`", "", "The first of each kind is the default.", ""]
    lines += ["| part | class | what it is |", "|---|---|---|"]
    built = Pairwise()
    hints = typing.get_type_hints(Pairwise.__init__)
    for part in PARTS:
        default = type(getattr(built, part))
        base = typing.get_args(hints[part])[0]
        members = sorted(_subclasses(base), key=lambda cls: (cls is not default, cls.__name__))
        lines += [f"| `{part}` | `{cls.__name__}` | {_first_line(cls)} |" for cls in members]
    lines += [f"| `terms` | `{cls.__name__}` | {_first_line(cls)} |" for cls in _subclasses(Term)]
    return "\n".join(lines) + "\n"


def _subclasses(base: type) -> list[type]:
    found = [cls for child in base.__subclasses__() for cls in (child, *_subclasses(child))]
    ours = [cls for cls in found if cls.__module__.startswith("lit_pref.") and not inspect.isabstract(cls)]
    return sorted(ours, key=lambda cls: cls.__name__)


def _first_line(cls: type) -> str:
    return (inspect.getdoc(cls) or "").split("\n\n")[0].replace("\n", " ").replace("|", "\\|")


if __name__ == "__main__":
    if "--check" in sys.argv:
        sys.exit(0 if PAGE.read_text(encoding="utf-8") == page() else "docs/methods.md is out of date: run `make docs`")
    PAGE.write_text(page(), encoding="utf-8")
