"""Writes the generated parts of README: claims, the table of commands, and the tree with a line for each folder."""

import ast
import sys
import tomllib
from pathlib import Path

from write_claims import headlines

from lit_pref.commands.table import lines as commands

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "lit_pref"
README = ROOT / "README.md"


def tree() -> str:
    """Return the tree as lines: a file or folder, and the first line of its docstring; lower layers first."""
    paths = [path for path in PACKAGE.iterdir() if path.suffix == ".py" and path.name != "__init__.py"]
    entries = [(PACKAGE, 0), *((path, 1) for path in _sorted([*paths, *_folders(PACKAGE)]))]
    lines = []
    while entries:
        path, depth = entries.pop(0)
        if path.is_dir() and depth:
            entries = [*((folder, depth + 1) for folder in _sorted(_folders(path))), *entries]
        name = "  " * depth + path.name + "/" * path.is_dir()
        lines.append(f"{name:20}{_first_line(path)}")
    return "\n".join(lines)


def page(readme: str) -> str:
    """Return README's text with the present claims, commands and tree between their markers."""
    code = "```\n{}\n```"
    for name, text in (
        ("claims", headlines()),
        ("commands", code.format(commands())),
        ("tree", code.format(tree())),
    ):
        start, end = f"<!-- {name}: written by `make docs` -->", f"<!-- end of {name} -->"
        head, marker, rest = readme.partition(start)
        _, closing, tail = rest.partition(end)
        if not marker or not closing:
            raise ValueError(f"README.md has no lines {start!r} and {end!r} to write the {name} between")
        readme = f"{head}{start}\n{text}\n{end}{tail}"
    return readme


def _folders(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if (path / "__init__.py").exists()]


def _sorted(paths: list[Path]) -> list[Path]:
    """Sort by the layers of the import contracts, the lowest first; what they do not name comes last."""
    names = _layers()
    return sorted(paths, key=lambda path: (names.get(_module(path), len(names)), path.name))


def _layers() -> dict[str, int]:
    """Return module -> height; the height of a package of which only modules are named is that of the highest one."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    heights: dict[str, int] = {}
    implied: dict[str, int] = {}
    for contract in contracts:
        if contract["type"] != "layers":
            continue
        for container in contract.get("containers", [""]):
            for height, layer in enumerate(reversed(contract["layers"])):
                for name in layer.replace(":", "|").split("|"):
                    module = f"{container}.{name.strip(' ()')}".lstrip(".")
                    heights[module] = height
                    parent = module.rpartition(".")[0]
                    implied[parent] = max(height, implied.get(parent, 0))
    return implied | heights


def _module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def _first_line(path: Path) -> str:
    file = path / "__init__.py" if path.is_dir() else path
    docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))
    if not docstring:
        raise ValueError(f"{file.relative_to(ROOT)} has no docstring; its first line is shown in README")
    return docstring.splitlines()[0]


if __name__ == "__main__":
    text = README.read_text(encoding="utf-8")
    if "--check" in sys.argv:
        sys.exit(0 if text == page(text) else "README is out of date: run `make docs`")
    README.write_text(page(text), encoding="utf-8")
