"""The import graph of the package's files has no circle, and no file imports upwards, not even for a type.

`make check` checks the same order of packages; here imports inside functions and under TYPE_CHECKING count too.
"""

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

from conftest import ROOT

FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((ROOT / "lit_pref").rglob("*.py"))
}


def imports_of(name: str, path: Path) -> Iterator[str]:
    """Yield the files of the package that a file imports, wherever in it the import is."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            targets = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for target in targets:
            # `from package.module import name` imports the module, and a package's __init__ where that has the name.
            while target and target not in FILES:
                target = target.rpartition(".")[0]
            if target and target != name:
                yield target


GRAPH = {name: set(imports_of(name, path)) for name, path in FILES.items()}


def reachable(graph: dict[str, set[str]], start: str) -> set[str]:
    """Return the files that a file imports directly or through others."""
    seen: set[str] = set()
    stack = [start]
    while stack:
        new = graph[stack.pop()] - seen
        seen |= new
        stack += new
    return seen


def circles(graph: dict[str, set[str]]) -> list[frozenset[str]]:
    """Return the sets of files that import each other directly or through others."""
    reach = {name: reachable(graph, name) for name in graph}
    return sorted(
        {frozenset(other for other in reach[name] if name in reach[other]) for name in graph if name in reach[name]},
        key=sorted,
    )


def rank_of(name: str, layers: list[list[str]]) -> tuple[int, str] | None:
    """Return the layer of a file (0 is the top) and the package in it."""
    matches = [
        (len(member), level, member)
        for level, layer in enumerate(layers)
        for member in layer
        if name == member or name.startswith(f"{member}.")
    ]
    return None if not matches else max(matches)[1:]


def test_the_graph_sees_imports_in_functions_and_for_types(tmp_path: Path):
    path = tmp_path / "new.py"
    path.write_text(
        "from typing import TYPE_CHECKING\n"
        "from lit_pref import errors\n"
        "if TYPE_CHECKING:\n    from lit_pref.batch import PairData\n"
        "def late():\n    from .models.spec import ModelSpec\n    import lit_pref.cache\n"
    )
    assert set(imports_of("lit_pref.new", path)) == {
        "lit_pref.errors",
        "lit_pref.batch",
        "lit_pref.models.spec",
        "lit_pref.cache",
    }
    graph = {"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a", "e"}, "e": set()}
    assert circles(graph) == [frozenset("abc")]


def test_no_circle_of_files():
    assert len(GRAPH) > 100 and "lit_pref.run_context" in GRAPH["lit_pref.modules.base"]
    assert not circles(GRAPH), "\n".join(", ".join(sorted(circle)) for circle in circles(GRAPH))


def test_no_file_imports_upwards_not_even_for_a_type():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    (order,) = (c for c in settings["contracts"] if c["name"] == "one direction of imports")
    layers = [[member.strip() for member in layer.split("|")] for layer in order["layers"]]
    upward = set()
    for name, targets in GRAPH.items():
        own = rank_of(name, layers)
        for target in targets:
            other = rank_of(target, layers)
            if own and other and own[1] != other[1] and other[0] <= own[0]:
                upward.add((name, target))
    assert not upward, "\n".join(f"{a} imports {b}" for a, b in sorted(upward))


def test_the_base_of_modules_knows_no_references_and_references_know_no_module():
    of_base = reachable(GRAPH, "lit_pref.modules.base")
    assert "lit_pref.models.spec" in of_base and not [name for name in of_base if "references" in name]
    of_references = set().union(*(reachable(GRAPH, name) for name in GRAPH if name.startswith("lit_pref.references.")))
    assert not [name for name in of_references if name.startswith("lit_pref.modules")]
    assert "lit_pref.data.datamodule" not in of_references, "which imports lightning"
