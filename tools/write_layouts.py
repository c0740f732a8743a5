"""Writes docs/layouts.md: every shipped mapping, read from the mappings themselves."""

import itertools
import sys
from importlib.resources import files
from pathlib import Path

from lit_pref.data.formats.known import shipped

PAGE = Path(__file__).parents[1] / "docs" / "layouts.md"
HEAD = """# Known layouts

Written by `make docs` from `lit_pref/data/formats/mappings/`. A layout is recognised where most of the first rows have
what stands under *recognised by*; the others go by name only (`data.mapping: NAME`).

| name | what it is | recognised by |
|---|---|---|
"""


def page() -> str:
    """The page's text."""
    lines = []
    for name, layout in shipped().items():
        signatures = [", ".join(f"`{path}`" for path in signature) for signature in layout.recognise]
        note = f" ({layout.mapping.note})" if layout.mapping.note else ""
        told = f"{comment(name)}{note}".replace("|", "\\|")
        lines.append(f"| `{name}` | {told} | {' or '.join(signatures) or 'name only'} |\n")
    return HEAD + "".join(lines)


def comment(name: str) -> str:
    """Return the comment in the first lines of a mapping."""
    text = (files("lit_pref.data.formats") / "mappings" / f"{name}.yaml").read_text(encoding="utf-8")
    first = itertools.takewhile(lambda line: line.startswith("#"), text.splitlines())
    return " ".join(line.removeprefix("#").strip() for line in first)


if __name__ == "__main__":
    if "--check" in sys.argv:
        sys.exit(0 if PAGE.read_text(encoding="utf-8") == page() else "docs/layouts.md is out of date: run `make docs`")
    PAGE.write_text(page(), encoding="utf-8")
