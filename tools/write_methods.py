"""Writes docs/methods.md: every objective, part and selection criterion, read from the classes themselves."""

import inspect
import sys
from pathlib import Path

from lit_pref.data.selection import criteria
from lit_pref.data.selection.selection import Selection
from lit_pref.describing import arguments, docstring, part_kinds, subclasses

sys.path.append(str(Path(__file__).parent))
from part_combinations import Entries, choices, count, pairs, refusal, valid_pairs

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
    lines += ["| part | class | description | arguments |", "|---|---|---|---|"]
    for part, members in part_kinds().items():
        lines += [f"| `{part}` | `{cls.__name__}` | {_first_line(cls)} | {_arguments(cls)} |" for cls in members]
    lines += ["", *_combinations(), "", "## Criteria of `data.selection`", "", "| class | description |", "|---|---|"]
    of_module = (cls for cls in subclasses(Selection) if cls.__module__ == criteria.__name__)
    lines += [f"| `{cls.__name__}` | {_first_line(cls)} |" for cls in of_module]
    return "\n".join(lines) + "\n"


def _combinations() -> list[str]:
    """The lines about which classes combine: a table for each two parts of which some do not, and the reasons."""
    valid = {Entries(pair.items()) for pair, _ in valid_pairs()}
    every = list(pairs())
    refused_ones = [pair for pair in every if Entries(pair.items()) not in valid]
    reasons = list(dict.fromkeys(map(refusal, refused_ones)))
    kinds = dict.fromkeys(tuple(pair) for pair in refused_ones)
    lines = [
        "## Which classes combine",
        "",
        f"Of the {len(every):,} pairs of classes of two parts, {len(every) - len(refused_ones):,} can be combined: all "
        "that are not marked below, where a number is the reason. The others are refused when the objective is built,",
        f"with that sentence. `tests/objectives/test_grid.py` walks the full grid, of {count():,} cells.",
    ]
    for first, second in kinds:
        rows, columns = choices()[first], choices()[second]
        lines += ["", f"| {first} \\ {second} | {' | '.join(_name(cls) for cls in columns)} |"]
        lines.append("|---" * (len(columns) + 1) + "|")
        for one in rows:
            cells = [{first: one, second: other} for other in columns]
            marks = ["✓" if Entries(c.items()) in valid else str(reasons.index(refusal(c)) + 1) for c in cells]
            lines.append(f"| {_name(one)} | {' | '.join(marks)} |")
    return [*lines, "", *(f"{k}. {reason}" for k, reason in enumerate(reasons, 1))]


def _name(cls: type | None) -> str:
    return "none" if cls is None else f"`{cls.__name__}`"


def _arguments(cls: type) -> str:
    """The arguments of a class, with their defaults and meanings."""
    texts = []
    for argument in arguments(cls):
        default = "" if argument.default is inspect.Parameter.empty else f" ({argument.default!r})"
        meaning = argument.meaning.replace("|", "\\|")
        texts.append(f"`{argument.name}`{default}: {meaning}" if meaning else f"`{argument.name}`{default}")
    return "<br>".join(texts)


def _first_line(cls: type) -> str:
    return docstring(cls).summary.replace("|", "\\|")


if __name__ == "__main__":
    if "--check" in sys.argv:
        sys.exit(0 if PAGE.read_text(encoding="utf-8") == page() else "docs/methods.md is out of date: run `make docs`")
    PAGE.write_text(page(), encoding="utf-8")
