"""The plan of a study as a file: its cells with their steps, resolved and checked once for all workers."""

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lit_pref.studies.study import Study

IGNORED = """# Written by `ablate`: study.yaml, README.md, the CSV files and the figures belong into a repository.
.*
!.gitignore
*.html
*.journal*
plan.json
cells/
leases/
logs/
runs/
search/
tb/
"""


@dataclass(frozen=True)
class Planned:
    """A cell whose run was built and checked.

    Args:
        name: the name of the cell.
        labels: axis name -> label.
        digest: of its whole configuration.
        steps: optimizer steps of its whole run.
        processes: of one run; a run of several is started by its command line.
        values: path -> value.
    """

    name: str
    labels: dict[str, str]
    digest: str
    steps: int
    processes: int = 1
    values: dict[str, Any] = field(default_factory=dict)

    def step_at(self, share: float) -> int:
        """The optimizer step after a share of the run."""
        return max(1, round(share * self.steps))


@dataclass(frozen=True)
class Plan:
    """The cells of a study, with what a trial is estimated to take.

    Args:
        key: of the study it belongs to.
        cells: the cells.
        seconds: estimated, of a trial; None if it was not measured.
        disk: estimated, bytes of a trial.
        shared: whether the data and the reference scores of all cells have been made.
    """

    key: str
    cells: list[Planned]
    seconds: float | None = None
    disk: int | None = None
    shared: bool = False

    def named(self, name: str) -> Planned:
        """The cell of that name."""
        return next(cell for cell in self.cells if cell.name == name)

    def write(self, study: Study) -> None:
        """Write the plan; the file appears by one rename. Git ignores what does not belong into a repository."""
        study.folder.mkdir(parents=True, exist_ok=True)
        ignored = study.folder / ".gitignore"
        if not ignored.exists():
            ignored.write_text(IGNORED, encoding="utf-8")
        file = plan_file(study)
        unfinished = file.with_name(f".plan.{os.getpid()}.json")
        unfinished.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")
        os.replace(unfinished, file)


def plan_file(study: Study) -> Path:
    """The file of the plan."""
    return study.folder / "plan.json"


def read_plan(study: Study) -> Plan | None:
    """Read the plan of a study; None if there is none, or the study has changed since."""
    if not plan_file(study).exists():
        return None
    content = json.loads(plan_file(study).read_text(encoding="utf-8"))
    plan = Plan(**{**content, "cells": [Planned(**cell) for cell in content["cells"]]})
    return plan if plan.key == study.key else None
