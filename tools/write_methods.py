"""Writes docs/methods.md: every objective, part and selection criterion, read from the classes themselves."""

import sys
from pathlib import Path

from lit_pref.data.selection import criteria
from lit_pref.data.selection.selection import Selection
from lit_pref.objectives.describing import docstring, part_kinds, subclasses

PAGE = Path(__file__).parents[1] / "docs" / "methods.md"


def page() -> str:
    """The page's text."""
    lines = [
        "# Objectives, parts and criteria",
        "",
        "Written by `make docs` from the docstrings. [Write your own part](own_parts.md) describes their interface.",
        "",
        "[objectives.md](objectives.md) describes the objectives.",
    ]
    lines += ["", "## Parts of `Pairwise`", "", "The first of each kind is the default.", ""]
    lines += ["| part | class | description |", "|---|---|---|"]
    for part, members in part_kinds().items():
        lines += [f"| `{part}` | `{cls.__name__}` | {_first_line(cls)} |" for cls in members]
    lines += ["", "## Criteria of `data.selection`", "", "| class | description |", "|---|---|"]
    of_module = (cls for cls in subclasses(Selection) if cls.__module__ == criteria.__name__)
    lines += [f"| `{cls.__name__}` | {_first_line(cls)} |" for cls in of_module]
    return "\n".join(lines) + "\n"


def _first_line(cls: type) -> str:
    return docstring(cls).summary.replace("|", "\\|")


if __name__ == "__main__":
    if "--check" in sys.argv:
        sys.exit(0 if PAGE.read_text(encoding="utf-8") == page() else "docs/methods.md is out of date: run `make docs`")
    PAGE.write_text(page(), encoding="utf-8")
