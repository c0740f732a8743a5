"""The results of a study as rows: one row a trial, also for trials that are missing, as in results.csv."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lit_pref.studies.plan_file import Planned
from lit_pref.studies.rungs import stage
from lit_pref.studies.search import chosen, founds
from lit_pref.studies.study import Study
from lit_pref.studies.trial import Outcome

MISSING, WAITING = "missing", "waiting"
"""States of trials that are still to be trained, from the beginning or from a rung."""
FIXED = ("cell", "seed", "state", "step", "steps", "seconds", "reason")


@dataclass(frozen=True)
class Result:
    """A trial in results.csv.

    Args:
        cell: the name of the cell.
        labels: axis name -> label.
        seed: the seed.
        state: that of the outcome, `missing`, or `waiting` at a rung.
        step: the last optimizer step.
        steps: optimizer steps of a whole run.
        seconds: of the run.
        reason: why it diverged or failed.
        values: measure -> number; at a rung, measure@share.
    """

    cell: str
    labels: dict[str, str]
    seed: int
    state: str = MISSING
    step: int = 0
    steps: int = 0
    seconds: float = 0.0
    reason: str = ""
    values: dict[str, float] = field(default_factory=dict)


def results_of(study: Study, cells: Sequence[Planned], outcomes: Mapping[tuple[str, int], Outcome]) -> list[Result]:
    """Return a row for every trial of a study, in the order of cells and seeds."""
    alive, jobs = stage(study, cells, outcomes) if study.search is None else ([], [])
    further = {cell.name for cell in alive} if jobs else set()
    return [
        Result(cell.name, cell.labels, seed, steps=cell.steps)
        if (outcome := outcomes.get((cell.name, seed))) is None
        else _result(study, cell, outcome, cell.name in further)
        for cell in _all_cells(study, cells)
        for seed in study.seeds
    ]


def _all_cells(study: Study, cells: Sequence[Planned]) -> list[Planned]:
    """The cells of the plan; of a search the chosen ones, and the base run if they are compared with it."""
    if study.search is None:
        return list(cells)
    base = cells[0]
    best = chosen(study) if len(founds(study)) == study.search.trials else []
    found = [Planned(one.cell, one.labels, "", base.steps, base.processes, one.values) for one in best]
    return found + [base] * study.compare.base


def _result(study: Study, cell: Planned, outcome: Outcome, further: bool) -> Result:
    values = {measure.name: outcome.value(measure) for measure in study.measures}
    for share in study.rungs.shares:
        values[rung_name(study, share)] = outcome.value(study.primary, cell.step_at(share))
    known = {name: value for name, value in values.items() if value is not None}
    spent = (outcome.step, outcome.steps, outcome.seconds, outcome.reason)
    state = WAITING if further and outcome.state == "stopped" else outcome.state
    return Result(cell.name, outcome.cell, outcome.seed, state, *spent, known)


def rung_name(study: Study, share: float) -> str:
    """The column of the primary measure at a rung."""
    return f"{study.primary.metric}@{share:g}"


def columns_of(study: Study) -> list[str]:
    """The columns of results.csv."""
    metrics = [measure.name for measure in study.measures if measure.metric != "time"]
    return [*FIXED[:1], *_axes(study), *FIXED[1:], *metrics, *(rung_name(study, share) for share in study.rungs.shares)]


def to_csv(study: Study, results: Sequence[Result]) -> str:
    """Return the rows as CSV, with every digit of the numbers."""
    out = io.StringIO()
    writer = csv.DictWriter(out, columns_of(study), lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    for one in results:
        fixed = {name: getattr(one, name) for name in FIXED}
        labels = {f"axis {axis}" if axis in FIXED else axis: label for axis, label in one.labels.items()}
        writer.writerow({**{name: repr(value) for name, value in one.values.items()}, **labels, **fixed})
    return out.getvalue()


def read_csv(study: Study, file: Path) -> list[Result]:
    """Read the rows that `to_csv` wrote."""
    with file.open(encoding="utf-8", newline="") as lines:
        return [_read(study, row) for row in csv.DictReader(lines)]


def _read(study: Study, row: Mapping[str, str]) -> Result:
    labels = {axis.removeprefix("axis "): row[axis] for axis in _axes(study) if row[axis]}
    numbers = set(columns_of(study)) - {*FIXED, *_axes(study)}
    values = {name: float(row[name]) for name in numbers if row.get(name)}
    if any(measure.metric == "time" for measure in study.measures) and row["state"] == "finished":
        values["time"] = float(row["seconds"])
    step, steps, seconds = int(row["step"]), int(row["steps"]), float(row["seconds"])
    return Result(row["cell"], labels, int(row["seed"]), row["state"], step, steps, seconds, row["reason"], values)


def _axes(study: Study) -> Iterator[str]:
    parts = study.axes if study.search is None else study.search.ranges
    yield from (f"axis {part.name}" if part.name in FIXED else part.name for part in parts)
