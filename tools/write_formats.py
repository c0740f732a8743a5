"""Writes docs/formats.md: every shipped mapping, generated from the mapping files."""

import itertools
import sys
from importlib.resources import files
from pathlib import Path

from lit_pref.data.formats.known import shipped

PAGE = Path(__file__).parents[1] / "docs" / "formats.md"
HEAD = """# Known formats

Written by `make docs` from `lit_pref/data/formats/mappings/`. A format is recognised if most of the first rows have the
paths under *recognised by*; the others are selected by name only (`data.mapping: NAME`).

| name | description | recognised by |
|---|---|---|
"""


def page() -> str:
    """Return the page's text."""
    lines = []
    for name, known in shipped().items():
        signatures = [", ".join(f"`{path}`" for path in signature) for signature in known.recognise]
        note = f" ({known.mapping.note})" if known.mapping.note else ""
        description = f"{comment(name)}{note}".replace("|", "\\|")
        lines.append(f"| `{name}` | {description} | {' or '.join(signatures) or 'name only'} |\n")
    return HEAD + "".join(lines)


def comment(name: str) -> str:
    """Return the leading comment of a mapping file."""
    text = (files("lit_pref.data.formats") / "mappings" / f"{name}.yaml").read_text(encoding="utf-8")
    first = itertools.takewhile(lambda line: line.startswith("#"), text.splitlines())
    return " ".join(line.removeprefix("#").strip() for line in first)


if __name__ == "__main__":
    if "--check" in sys.argv:
        sys.exit(0 if PAGE.read_text(encoding="utf-8") == page() else "docs/formats.md is out of date: run `make docs`")
    PAGE.write_text(page(), encoding="utf-8")
