"""`python -m lit_pref ablate`: trains the cells of a study on its seeds, and reports on them."""

from typing import TYPE_CHECKING

from lit_pref.errors import UsageError
from lit_pref.printing import say
from lit_pref.studies.plan_file import read_plan
from lit_pref.studies.reading import read_study
from lit_pref.studies.slurm import Slurm, WorkerJob, forget_slurm_job, logs_of, planned_for, submit

if TYPE_CHECKING:
    from lit_pref.studies.plan_file import Plan
    from lit_pref.studies.study import Study


HERE = Slurm()
"""No worker jobs: this process is a worker."""


def ablate(config: str, dry_run: bool = False, slurm: Slurm = HERE) -> None:
    """Train the trials of a study that have not ended yet, and write the report.

    A study is a question, a base configuration, axes whose values are combined to cells, and seeds; a trial, one cell
    with one seed, is an ordinary run. Every cell is built and checked before anything is trained, and what trials share
    (data, reference scores) is made first. The same command again, also on other machines that share the folder, is one
    more worker; a trial whose worker is killed is resumed by another one after three minutes. With --slurm.workers, the
    workers are jobs of a SLURM cluster.

    Args:
        config: the study's file, such as experiments/NAME/study.yaml, in whose folder trials and results are written.
        dry_run: end after the plan: cells, seeds, estimated time and disk, and what is there already.
        slurm: the jobs of a SLURM cluster that are the workers.

    Raises:
        UserError: the study cannot be done as written.
    """
    study = read_study(config)
    forget_slurm_job()
    from lit_pref.callbacks.termination import ending_on_sigterm
    from lit_pref.studies.plan import plan_of
    from lit_pref.studies.training import train
    from lit_pref.studies.worker import Worker

    plan = plan_of(study, share=not dry_run and not slurm.workers, elsewhere=slurm.elsewhere)
    if slurm.workers:
        plan = planned_for(study, plan, slurm)
    say(_overview(study, plan))
    worker = Worker(study, plan, train)
    if dry_run:
        say(f"Next: train them\n  python -m lit_pref ablate --config {config}")
        return
    if slurm.workers and (left := len(worker.jobs())):
        ids = submit(study, slurm, WorkerJob(ablate, config), left)
        say(f"submitted   {len(ids)} worker job(s): {', '.join(ids)}; their logs are in {logs_of(study)}")
        say(f"Next: look at the trials\n  python -m lit_pref ablate status --config {config}")
        return
    with ending_on_sigterm(words="ended by SIGTERM; the same command resumes"):
        worker.work()
    _report(study, plan)


def report(config: str) -> None:
    """Write the report of a study from the trials that have ended so far, and print its table.

    Args:
        config: the study's file.

    Raises:
        UserError: nothing was trained yet.
    """
    study = read_study(config)
    _report(study, _planned(study))


def status(config: str) -> None:
    """Print which trials of a study have ended, run, wait or failed, and about how long the rest takes.

    Args:
        config: the study's file.

    Raises:
        UserError: nothing was trained yet.
    """
    study = read_study(config)
    from lit_pref.studies.status import status_text

    say(status_text(study, _planned(study)))


def retry(config: str) -> None:
    """Let trials that failed as often as they may be trained again, by the next `ablate`.

    Args:
        config: the study's file.

    Raises:
        UserError: nothing was trained yet.
    """
    study = read_study(config)
    _planned(study)
    from lit_pref.studies.status import forget_failures

    names = forget_failures(study)
    say(f"to be trained again: {', '.join(names)}" if names else "no trial has failed")
    if names:
        say(f"Next: train them\n  python -m lit_pref ablate --config {config}")


def _planned(study: "Study") -> "Plan":
    plan = read_plan(study)
    if plan is None:
        raise UsageError(
            f"{study.folder} has no trials of {study.file} as it is now: train them first "
            f"(python -m lit_pref ablate --config {study.file})"
        )
    return plan


def _overview(study: "Study", plan: "Plan") -> str:
    from lit_pref.studies.status import overview

    return overview(study, plan)


def _report(study: "Study", plan: "Plan") -> None:
    from lit_pref.studies.rendering import terminal
    from lit_pref.studies.report import write_report

    table = write_report(study, plan)
    folder = study.folder
    say(f"\n{terminal(table)}\n")
    say(
        f"report       {folder / 'report.html'}  (trials: {folder / 'results.csv'}, cells: {folder / 'table.csv'})\n"
        f"README       {folder / 'README.md'}\nTensorBoard  tensorboard --logdir {folder / 'tb'}  (single trials: "
        f"--logdir {folder / 'runs'})"
    )
