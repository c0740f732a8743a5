"""Reads a study file; every mistake is one sentence with file, line, key and the nearest known name."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lit_pref.config_files import refuse_mistakes
from lit_pref.errors import UsageError
from lit_pref.studies.study import Axis, Compare, Measure, Range, Rungs, Search, Study
from lit_pref.studies.study_file import StudyFile

KEYS = ["question", "hypothesis", "base", "axes", "search", "seeds", "skip", "measure", "compare", "rungs", "engine"]
RUNGS = {"full": ("at",), "one_rung": ("at", "keep"), "halving": ("from", "eta")}
OF_THE_OBJECTIVE = ("model.objective", "model.references")
"""Axes below these change what the loss means."""


def read_study(path: str | Path) -> Study:
    """Read a study file.

    Raises:
        UsageError: the file has a mistake.
    """
    refuse_mistakes([str(path)])
    file = StudyFile(Path(path))
    file.keys("", KEYS)
    axes = () if file.content.get("axes") is None else _axes(file)
    search = None if file.content.get("search") is None else _search(file)
    if bool(axes) == (search is not None):
        file.refuse("axes", "a study has either `axes`, whose cells are all trained, or a `search`")
    study = Study(
        file.path,
        file.text("question"),
        file.text("hypothesis"),
        _base(file),
        axes,
        search,
        _seeds(file),
        (),
        *_measures(file),
        Compare(),
        _rungs(file),
        *_engine(file),
    )
    if study.rungs.shares and not isinstance(study.primary.at, str):
        file.refuse("rungs", "cells are ranked by the primary measure at each rung: leave its `at` out of the measure")
    if search is not None and study.rungs.shares:
        file.refuse("rungs", "a search trains every trial to its end: leave the rungs out")
    skip = file.content.get("skip") or []
    if not isinstance(skip, list):
        file.refuse("skip", f"expected a list of conditions such as `target=hard and beta=0.1`, got {skip!r:.60}")
    study = replace(study, skip=tuple(study.labels(str(text), "skip") for text in skip))
    study = replace(study, compare=_compare(file, study))
    _refuse_loss(file, study)
    return study


def _base(file: StudyFile) -> tuple[str, ...]:
    base = file.content.get("base")
    files = [base] if isinstance(base, str) else base
    if not isinstance(files, list) or not files or not all(isinstance(name, str) for name in files):
        file.refuse("base", f"expected the configuration file of a run, or a list of them, got {base!r:.60}")
    for name in files:
        if not Path(name).exists() and (beside := file.path.parent / name).exists():
            file.refuse("base", f"{name} is not in this directory, from which files are named: write {beside}")
    try:
        refuse_mistakes(files)
    except UsageError as error:
        file.refuse("base", str(error))
    return tuple(files)


def _seeds(file: StudyFile) -> tuple[int, ...]:
    seeds = file.content.get("seeds")
    whole = isinstance(seeds, list) and all(isinstance(s, int) and not isinstance(s, bool) and s >= 0 for s in seeds)
    if not whole or not seeds:
        file.refuse("seeds", f"expected a list of whole numbers, such as [0, 1, 2, 3, 4], got {seeds!r:.60}")
    if len(set(seeds)) < len(seeds):
        file.refuse("seeds", f"{seeds} names a seed twice, and a trial with the same seed gives the same numbers")
    return tuple(seeds)


def _axes(file: StudyFile) -> tuple[Axis, ...]:
    axes = file.content["axes"]
    if not isinstance(axes, Mapping) or not axes:
        file.refuse(
            "axes", f"expected `setting: [values]`, such as `model.objective.beta: [0.1, 0.3]`, got {axes!r:.60}"
        )
    names = _short_names(list(axes))
    found = [Axis(names[path], path, _values(file, path, values)) for path, values in axes.items()]
    return tuple(axis._replace(several=_is_several(file, axis)) for axis in found)


def _is_several(file: StudyFile, axis: Axis) -> bool:
    """Whether an axis sets several settings: its name is none, and its values are mappings of settings with dots."""
    if "." in axis.path or not all(isinstance(value, Mapping) for value in axis.values.values()):
        return False
    settings = [str(name) for value in axis.values.values() for name in value]
    dotted = [name for name in settings if "." in name]
    if dotted and len(dotted) < len(settings):
        plain = next(name for name in settings if name not in dotted)
        file.refuse("axes", f"{axis.path}: {plain} is not a whole setting: write it with dots, from the top", plain)
    return bool(dotted)


def _values(file: StudyFile, path: str, values: Any) -> dict[str, Any]:
    """The values of an axis by their labels."""
    if isinstance(values, list) and not any(isinstance(value, Mapping | list) for value in values):
        found = {_label(value): value for value in values}
        count = len(values)
    elif isinstance(values, Mapping):
        found, count = {str(name): value for name, value in values.items()}, len(values)
    else:
        file.refuse(
            "axes",
            f"{path}: expected a list of scalars or a mapping `name: value`, whose names label the cells, got "
            f"{values!r:.60}",
            path,
        )
    if len(found) < count or count < 2:
        what = (
            f"{path}: an axis needs at least two different values, got {values!r:.60}; what is the same in every cell "
        )
        file.refuse("axes", f"{what}belongs into a configuration file that `base` names", path)
    for label in found:
        if any(sign in label for sign in "=/,: ") or not label:
            file.refuse("axes", f"{path}: {label!r} names a folder: choose a name without = / , : and blanks", path)
    return found


def _label(value: Any) -> str:
    return {None: "null", True: "true", False: "false"}.get(value, str(value)) if not _is_number(value) else str(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _short_names(paths: list[str]) -> dict[str, str]:
    """Return for each path the shortest end that no other path has.

    >>> _short_names(["model.objective.beta", "model.optimizer.lr"])
    {'model.objective.beta': 'beta', 'model.optimizer.lr': 'lr'}
    """

    def ends(path: str) -> list[str]:
        parts = path.split(".")
        return [".".join(parts[k:]) for k in range(len(parts) - 1, -1, -1)]

    return {p: next(end for end in ends(p) if sum(end in ends(other) for other in paths) == 1) for p in paths}


def _search(file: StudyFile) -> Search:
    given = file.keys("search", ("ranges", "trials", "best", "sampler", "seed"))
    ranges = given.get("ranges")
    if not isinstance(ranges, Mapping) or not ranges:
        file.refuse(
            "search", "ranges: expected `setting: {low: 0.05, high: 1, log: true}`, or a list or mapping of values"
        )
    names, found = _short_names(list(ranges)), []
    for path, value in ranges.items():
        if isinstance(value, Mapping) and {"low", "high"} <= set(value):
            if unknown := set(value) - {"low", "high", "log"}:
                file.refuse("search", f"{path}: unknown key {sorted(unknown)[0]!r}; known: low, high, log", path)
            low = file.number("search", value["low"], float, -float("inf"))
            high = file.number("search", value["high"], float, low)
            log = bool(value.get("log", False))
            if low == high or (log and low <= 0):
                file.refuse("search", f"{path}: low must be below high, and above 0 with `log: true`", path)
            found.append(Range(names[path], path, low, high, log))
        else:
            found.append(Range(names[path], path, choices=_values(file, path, value)))
    return Search(
        tuple(found),
        file.number("search", given.get("trials", 20), int, 2),
        file.number("search", given.get("best", 3), int, 1),
        file.choice("search", given.get("sampler", "tpe"), ("tpe", "random")),
        file.number("search", given.get("seed", 0), int, 0),
    )


def _measures(file: StudyFile) -> tuple[Measure, tuple[Measure, ...]]:
    given = file.keys("measure", ("primary", "also"))
    primary = given.get("primary")
    if not isinstance(primary, Mapping) or "metric" not in primary or "goal" not in primary:
        expected = "a metric and whether larger is better, such as {metric: val/accuracy, goal: max}"
        file.refuse("measure", f"primary: expected {expected}, got {primary!r:.80}")
    also = given.get("also") or []
    if not isinstance(also, list):
        file.refuse("measure", f"also: expected a list of measures, got {also!r:.60}")
    found = [_measure(file, value) for value in (primary, *also)]
    names = [measure.name for measure in found]
    if twice := next((name for name in names if names.count(name) > 1), None):
        file.refuse("measure", f"{twice} is named twice", twice)
    return found[0], tuple(found[1:])


def _measure(file: StudyFile, value: Any) -> Measure:
    if isinstance(value, str):
        return Measure(value)
    if not isinstance(value, Mapping) or not isinstance(value.get("metric"), str):
        file.refuse(
            "measure", f"expected the name of a metric, or {{metric: NAME, at: last, goal: max}}, got {value!r:.60}"
        )
    if unknown := set(value) - {"metric", "at", "goal"}:
        name = sorted(map(str, unknown))[0]
        file.refuse("measure", f"unknown key {name!r}; known: metric, at, goal", name)
    at = value.get("at", "last")
    if isinstance(at, int | float):
        at = file.number("measure", at, float, 0.001, 0.999)
    else:
        file.choice("measure", at, ("last", "best"))
    return Measure(value["metric"], at, file.choice("measure", value.get("goal", "max"), ("max", "min")))


def _compare(file: StudyFile, study: Study) -> Compare:
    if file.content.get("compare") is None:
        return Compare()
    given = file.keys("compare", ("against", "within", "correction"))
    correction = file.choice("compare", given.get("correction", "holm"), ("holm", "none"))
    if study.search is not None:
        if given.get("against") != "base" or given.get("within"):
            file.refuse("compare", "in a search, the best cells are compared with the base run: write `against: base`")
        return Compare(base=True, correction=correction)
    if not isinstance(given.get("against"), str):
        file.refuse("compare", "against: expected the baseline as `AXIS=VALUE`, such as `target=hard`")
    against = study.labels(given["against"], "compare: against")
    others = [axis.name for axis in study.axes if axis.name not in against]
    within = given.get("within", others)
    if not isinstance(within, list):
        file.refuse("compare", f"within: expected a list of axes, got {within!r:.60}")
    paths = {axis.path: axis.name for axis in study.axes}
    within = [paths.get(name, name) for name in within]
    for name in set(within) ^ set(others):
        known = ", ".join(others) or "none"
        file.refuse(
            "compare",
            f"within: {name!r} is missing, not an axis, or in `against`: cells are compared within all other axes "
            f"({known})",
        )
    return Compare(against, correction=correction)


def _rungs(file: StudyFile) -> Rungs:
    if file.content.get("rungs") is None:
        return Rungs()
    given = file.keys("rungs", ("strategy", "at", "keep", "from", "eta"))
    strategy = file.choice("rungs", given.pop("strategy", "full"), tuple(RUNGS))
    for name in given:
        if name not in RUNGS[strategy]:
            file.refuse(
                "rungs", f"{name!r} does not belong to {strategy}, which takes {', '.join(RUNGS[strategy])}", name
            )
    at = given.get("at")
    if strategy == "one_rung" and at is None:
        file.refuse("rungs", "at: one_rung needs the share of the run after which cells are ranked, such as 0.4")
    return Rungs(
        strategy,
        None if at is None else file.number("rungs", at, float, 0.001, 0.999),
        file.number("rungs", given.get("keep", 3), int, 1),
        file.number("rungs", given.get("from", 0.1), float, 0.001, 0.999),
        file.number("rungs", given.get("eta", 3), int, 2),
    )


def _engine(file: StudyFile) -> tuple[str, int]:
    given = {} if file.content.get("engine") is None else file.keys("engine", ("storage", "retries"))
    storage = given.get("storage", "auto")
    if not isinstance(storage, str) or (storage != "auto" and "://" not in storage):
        file.refuse("engine", f"storage: expected auto or a URL such as postgresql://..., got {storage!r:.60}")
    if storage.startswith("sqlite"):
        file.refuse("engine", "storage: SQLite files break when several machines share them: `auto` is a journal file")
    return storage, file.number("engine", given.get("retries", 2), int, 0)


def _refuse_loss(file: StudyFile, study: Study) -> None:
    """Refuse to rank by a loss whose meaning differs between the cells."""
    paths = [path for axis in study.axes for path in axis.paths] + (
        [] if study.search is None else [r.path for r in study.search.ranges]
    )
    changed = [path for path in paths if any(f"{path}.".startswith(f"{part}.") for part in OF_THE_OBJECTIVE)]
    changed += [path for path in paths if path == "model"]
    if study.primary.tag.rpartition("/")[2] == "loss" and changed:
        file.refuse(
            "measure",
            f"primary: {study.primary.metric} has another meaning at each value of {changed[0]}, so that cells cannot "
            "be ranked by it: take the reward of what is written (testbed/gold_sampled), an accuracy, "
            "val/calibration/ece or val/kl_to_target",
            study.primary.metric,
        )
