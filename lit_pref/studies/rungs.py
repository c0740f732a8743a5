"""Which jobs of a study are next: all trials up to a rung, then the best cells up to the next one."""

from collections.abc import Mapping, Sequence
from statistics import fmean

from lit_pref.studies.plan_file import Planned
from lit_pref.studies.study import Study
from lit_pref.studies.trial import Job, Outcome

Outcomes = Mapping[tuple[str, int], Outcome]


def next_jobs(study: Study, cells: Sequence[Planned], outcomes: Outcomes) -> list[Job]:
    """Return the jobs that can be done now; none if the study is complete."""
    return stage(study, cells, outcomes)[1]


def stage(study: Study, cells: Sequence[Planned], outcomes: Outcomes) -> tuple[list[Planned], list[Job]]:
    """Return the cells that are still trained, and the jobs that can be done now.

    All trials of a rung are done before its cells are ranked, so that every worker ranks them alike. Cells come in the
    order of seeds, so that a table half-way has every cell.
    """
    alive = list(cells)
    for share in [*study.rungs.shares, None]:
        stops = {cell.name: None if share is None else cell.step_at(share) for cell in alive}
        jobs = [Job(cell.name, seed, stops[cell.name]) for seed in study.seeds for cell in alive]
        left = [job for job in jobs if not _reached(outcomes.get((job.cell, job.seed)), job.stop)]
        if left or share is None:
            return alive, left
        alive = ranked(study, alive, outcomes, share)[: study.rungs.kept(len(alive))]
    raise AssertionError("the end is the last stage")


def ranked(study: Study, cells: Sequence[Planned], outcomes: Outcomes, share: float | None) -> list[Planned]:
    """Return the cells by their mean primary measure after a share of the run (None: its end), the best first.

    Cells with fewer trials that have it, because others diverged or failed, come later.
    """

    def rank(cell: Planned) -> tuple[int, float]:
        mean, missing = mean_at(study, cell, outcomes, share)
        return missing, -mean if study.primary.goal == "max" else mean

    return sorted(cells, key=rank)


def mean_at(study: Study, cell: Planned, outcomes: Outcomes, share: float | None) -> tuple[float, int]:
    """Return the mean primary measure of a cell after a share of the run, and how many of its trials lack it."""
    stop = None if share is None else cell.step_at(share)
    found = [
        outcomes[cell.name, seed].value(study.primary, stop) for seed in study.seeds if (cell.name, seed) in outcomes
    ]
    values = [value for value in found if value is not None]
    return (fmean(values) if values else 0.0), len(study.seeds) - len(values)


def _reached(outcome: Outcome | None, stop: int | None) -> bool:
    return outcome is not None and outcome.reached(stop)
