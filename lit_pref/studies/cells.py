"""Cells of a study: one value on every axis, set in a copy of the base configuration."""

import copy
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lit_pref.errors import UsageError
from lit_pref.hints import did_you_mean
from lit_pref.studies.study import Study

BASE = "base"
"""The cell of a search that changes nothing."""


@dataclass(frozen=True)
class Cell:
    """One value on every axis.

    Args:
        labels: axis name -> label.
        values: path -> value.
    """

    labels: dict[str, str]
    values: dict[str, Any]

    @property
    def name(self) -> str:
        """The name of the cell's folder.

        >>> Cell({"target": "hard", "beta": "0.1"}, {}).name
        'target=hard,beta=0.1'
        """
        return ",".join(f"{axis}={label}" for axis, label in self.labels.items()) or BASE

    def config(self, base: Mapping[str, Any]) -> dict[str, Any]:
        """The base configuration with this cell's values; each one replaces its whole node.

        Raises:
            UsageError: the configuration has no such setting.
        """
        config = copy.deepcopy(dict(base))
        # A class is set before the arguments that another axis sets below it.
        for path in sorted(self.values, key=lambda path: path.count(".")):
            if not any(path.startswith(f"{other}.") for other in self.values):
                refuse_unknown(base, path)
            _set(config, path, copy.deepcopy(self.values[path]))
        return config


def cells_of(study: Study) -> list[Cell]:
    """Return the cells of a study's axes in the order of the file, without those that `skip` names.

    Raises:
        UsageError: none is left.
    """
    cells = []
    for choice in itertools.product(*(axis.values for axis in study.axes)):
        labels = {axis.name: label for axis, label in zip(study.axes, choice, strict=True)}
        if not any(skipped.items() <= labels.items() for skipped in study.skip):
            settings = [axis.settings(label) for axis, label in zip(study.axes, choice, strict=True)]
            cells.append(Cell(labels, dict(itertools.chain.from_iterable(one.items() for one in settings))))
    if not cells:
        raise UsageError(f"{study.file}: skip: leaves no cell of the study")
    return cells


def baseline_of(study: Study, cell: Mapping[str, str]) -> dict[str, str] | None:
    """Return the labels of the cell that a cell is compared with; None for baselines and without a comparison.

    Args:
        study: the study.
        cell: the cell's labels.
    """
    if study.compare.base:
        return {} if cell else None
    if not study.compare.against or study.compare.against.items() <= cell.items():
        return None
    return {**cell, **study.compare.against}


def refuse_unknown(base: Mapping[str, Any], path: str) -> None:
    """Refuse a setting that the base configuration does not have.

    Raises:
        UsageError: there is no such setting.
    """
    node: Any = base
    seen = ""
    for part in path.split("."):
        node = _arguments(node) if isinstance(node, dict) else node
        if not isinstance(node, Mapping) or not node:
            return  # a class whose arguments the base does not list: the parser of the run knows them
        if part not in node:
            meant = _meant(base, path) or did_you_mean(part, node, prefix=seen)
            raise UsageError(f"axes: {path}: the base run has no setting {seen}{part}{meant}")
        node, seen = node[part], f"{seen}{part}."


def _meant(base: Mapping[str, Any], path: str) -> str:
    """The question whether a setting of the base is meant that has the same name at its end, without `init_args`."""
    plain = ".".join(part for part in path.split(".") if part != "init_args")
    found = [known for known in _paths(base) if f".{known}".endswith(f".{plain}")]
    return f"; did you mean {' or '.join(found[:2])}?" if found else ""


def _paths(node: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in node.items():
        below = prefix if name == "init_args" else f"{prefix}{name}."
        if name != "init_args":
            yield f"{prefix}{name}"
        if isinstance(value, Mapping):
            yield from _paths(value, below)


def _set(config: dict[str, Any], path: str, value: Any) -> None:
    """Replace the node at a path; arguments of a class are found below its `init_args`."""
    *parents, last = path.split(".")
    node, seen = config, ""
    for part in parents:
        node = _arguments(node)
        if isinstance(node.get(part), str):
            node[part] = {"class_path": node[part]}
        if node.get(part) is None:
            node[part] = {}
        if not isinstance(node[part], dict):
            raise UsageError(f"axes: {path}: {seen}{part} is no mapping with {last!r}; give an axis for {seen}{part}")
        node, seen = node[part], f"{seen}{part}."
    _arguments(node)[last] = value


def _arguments(node: dict[str, Any]) -> dict[str, Any]:
    if "class_path" not in node:
        return node
    if node.get("init_args") is None:
        node["init_args"] = {}
    return node["init_args"]
