"""Texts about the state of a study: its plan, its running trials, and the remaining ones."""

from collections import Counter
from statistics import fmean

from lit_pref.studies.lease import BEAT, LEASE
from lit_pref.studies.plan_file import Plan
from lit_pref.studies.queue import Queue
from lit_pref.studies.results import MISSING, results_of
from lit_pref.studies.rungs import next_jobs
from lit_pref.studies.search import founds, search_jobs
from lit_pref.studies.study import Study
from lit_pref.studies.trial import Trial, outcomes_of


def overview(study: Study, plan: Plan) -> str:
    """Return the plan of a study as text: cells, seeds, estimated time and disk, and trials that have ended."""
    outcomes = outcomes_of(study)
    if study.search is None:
        trials = len(plan.cells) * len(study.seeds)
        whole = _whole_trials(study, len(plan.cells))
        names = [f"  {cell.name}  ({cell.steps} steps)" for cell in plan.cells]
        counted = f"{trials} trials = {len(plan.cells)} cells x {len(study.seeds)} seeds"
    else:
        rest = (len(study.seeds) - 1) * (study.search.best + study.compare.base)
        whole = trials = study.search.trials + rest
        names = [f"  {one.path}" for one in study.search.ranges]
        counted = f"{trials} trials = {study.search.trials} of the search with seed {study.seeds[0]}, {rest} after it"
    ended = sum(outcome.state != "stopped" for outcome in outcomes.values())
    seconds = _seconds(study, plan)
    done = sum(1 if one.state != "stopped" else one.step / one.steps for one in outcomes.values())
    time = "unknown until the first trial has ended" if seconds is None else f"{_duration(seconds * (whole - done))}"
    how = "" if outcomes or seconds is None else ", from a few steps of the first cell"
    disk = "" if plan.disk is None else f"; about {_size(plan.disk * trials)} of disk"
    rungs = _rungs(study, len(plan.cells)) if study.search is None else []
    lines = [
        f"question    {study.question}",
        f"hypothesis  {study.hypothesis}",
        f"trials      {counted}; {ended} ended",
    ]
    estimate = f"about {time} with one worker{how}" if seconds is not None else time
    return "\n".join([*lines, *names, *rungs, f"estimate    {estimate}{disk}"])


def status_text(study: Study, plan: Plan) -> str:
    """Return the numbers of ended, running, waiting and failed trials as text, with the time left for one worker."""
    outcomes = outcomes_of(study)
    states = Counter(result.state for result in results_of(study, plan.cells, outcomes))
    words = {"finished": "ended", MISSING: "to train"}
    lines = [f"{words.get(state, state):<11} {number}" for state, number in sorted(states.items())]
    if study.search is not None:
        lines.append(f"{'searched':<11} {len(founds(study))} of {study.search.trials}")
    for job, since, silent in Queue(study).running():
        lost = f"; its worker is silent for {_duration(silent)}, after {_duration(LEASE)} another one resumes it"
        name = f"{job.cell or f'search {job.search}'}/s{job.seed}"
        lines.append(f"running     {name} for {_duration(since)}{lost if silent > 2 * BEAT else ''}")
    for outcome in outcomes.values():
        if outcome.state in ("failed", "diverged"):
            log = Trial(study.folder, outcome.name, outcome.seed).log
            lines.append(f"{outcome.state:<11} {outcome.name}/s{outcome.seed}: {outcome.reason} (log {log})")
    left = next_jobs(study, plan.cells, outcomes) if study.search is None else search_jobs(study, outcomes)
    seconds = _seconds(study, plan)
    if left and seconds is not None:
        lines.append(f"left        about {_duration(seconds * len(left))} for one worker")
    return "\n".join(lines)


def _rungs(study: Study, cells: int) -> list[str]:
    """A line for each rung: how many cells are trained further."""
    lines = []
    for share in study.rungs.shares:
        kept = study.rungs.kept(cells)
        lines.append(f"rung        at {share:g} of the run; {kept} of {cells} cells are trained further")
        cells = kept
    return lines


def _whole_trials(study: Study, cells: int) -> float:
    """How many whole trials the stages of a study with rungs take together."""
    total, before = 0.0, 0.0
    for share in [*study.rungs.shares, 1.0]:
        total, before = total + cells * len(study.seeds) * (share - before), share
        cells = study.rungs.kept(cells) if share < 1 else cells
    return total


def forget_failures(study: Study) -> list[str]:
    """Remove the outcomes of failed trials, so that they count as missing, and return their names."""
    failed = [outcome for outcome in outcomes_of(study).values() if outcome.state == "failed"]
    trials = [Trial(study.folder, outcome.name, outcome.seed) for outcome in failed]
    cells = {trial.cell for trial in trials}
    for found in founds(study):
        if found.cell in cells and found.value is None:
            found.file(study).unlink(missing_ok=True)
    for trial in trials:
        trial.file.unlink(missing_ok=True)
    return [trial.name for trial in trials]


def _seconds(study: Study, plan: Plan) -> float | None:
    """Seconds of a trial: of those that have ended, else the plan's estimate."""
    ended = [outcome.seconds for outcome in outcomes_of(study).values() if outcome.state == "finished"]
    return fmean(ended) if ended else plan.seconds


def _duration(seconds: float) -> str:
    """Format a duration.

    >>> _duration(42), _duration(600), _duration(9000)
    ('42 s', '10 min', '2.5 h')
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _size(size: float) -> str:
    """Format a size.

    >>> _size(2_500_000), _size(3e9)
    ('2.5 MB', '3.0 GB')
    """
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
