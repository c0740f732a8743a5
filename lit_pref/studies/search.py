"""A search: trials with one seed whose values an Optuna sampler draws; the best cells are trained on all seeds."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lit_pref.studies.cells import BASE, Cell
from lit_pref.studies.study import Study
from lit_pref.studies.trial import Job, Outcome


@dataclass(frozen=True)
class Found:
    """A trial of a search that has ended.

    Args:
        number: of the trial.
        cell: the name of its cell.
        labels: axis name -> label.
        values: path -> value.
        value: its primary measure; None if it diverged or failed.
    """

    number: int
    cell: str
    labels: dict[str, str]
    values: dict[str, Any]
    value: float | None

    def write(self, study: Study) -> None:
        """Write it; the file appears by one rename."""
        file = self.file(study)
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = file.with_name(f".{self.number}.{os.getpid()}")
        unfinished.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")
        os.replace(unfinished, file)

    def file(self, study: Study) -> Path:
        """The file it is written to."""
        return study.folder / "search" / f"{self.number:04d}.json"


def founds(study: Study) -> list[Found]:
    """Read the trials of a search that have ended, by number."""
    files = sorted((study.folder / "search").glob("*.json"))
    return [Found(**json.loads(file.read_text(encoding="utf-8"))) for file in files]


def search_jobs(study: Study, outcomes: Mapping[tuple[str, int], Outcome]) -> list[Job]:
    """Return the jobs that can be done now: trials of the search, then the chosen cells with the other seeds."""
    assert study.search is not None
    ended = {found.number for found in founds(study)}
    if left := [number for number in range(study.search.trials) if number not in ended]:
        return [Job("", study.seeds[0], None, number) for number in left]
    cells = [found.cell for found in chosen(study)] + [BASE] * study.compare.base
    jobs = [Job(cell, seed) for seed in study.seeds[1:] for cell in cells]
    return [job for job in jobs if (job.cell, job.seed) not in outcomes]


def chosen(study: Study) -> list[Found]:
    """Return the best distinct cells of a search, the best first."""
    assert study.search is not None
    sign = -1 if study.primary.goal == "max" else 1
    best = sorted((one for one in founds(study) if one.value is not None), key=lambda one: sign * (one.value or 0.0))
    return list({one.cell: one for one in reversed(best)}.values())[::-1][: study.search.best]


def cell_of(study: Study, drawn: Mapping[str, Any]) -> Cell:
    """Return the cell of drawn values, which are rounded to the four digits that name it."""
    assert study.search is not None
    labels, values = {}, {}
    for one in study.search.ranges:
        if one.choices is not None:
            labels[one.name], values[one.path] = drawn[one.path], one.choices[drawn[one.path]]
        else:
            labels[one.name] = f"{drawn[one.path]:.4g}"
            values[one.path] = float(labels[one.name])
    return Cell(labels, values)
