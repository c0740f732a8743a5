"""Workers of a study as jobs of a SLURM cluster, submitted through `submitit`; no other file knows that package."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import yaml

from lit_pref.errors import UsageError, UserError
from lit_pref.studies.plan_file import Plan, Planned
from lit_pref.studies.study import Study
from lit_pref.studies.trial import config_of

VARIABLES = "SLURM_"
"""The beginning of SLURM's environment variables."""


@dataclass(frozen=True)
class Slurm:
    """Worker jobs on a SLURM cluster.

    Args:
        workers: number of jobs, each of them a worker on one node; with 0, this process is the worker.
        timeout_min: minutes after which SLURM ends a job.
        requeues: how often a job that reached its time limit is queued again.
        gpus_per_node: GPUs of a job, all of them for one trial at a time.
        cpus_per_task: CPU cores of a job.
        mem_gb: memory of a job in GB.
        partition: the partition.
        account: the account that is charged.
        qos: the quality of service.
        constraint: features that a node must have.
        setup: shell commands to run before the worker, such as [module load cuda].
        also: other options of sbatch, such as {exclude: node7}.
        cluster: slurm, or local to start the jobs as processes of this machine, as a trial of the options.
    """

    workers: int = 0
    timeout_min: int = 240
    requeues: int = 20
    gpus_per_node: int | None = None
    cpus_per_task: int | None = None
    mem_gb: float | None = None
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    setup: list[str] = field(default_factory=list)
    also: dict[str, str | int | float | bool] = field(default_factory=dict)
    cluster: Literal["slurm", "local"] = "slurm"

    def __post_init__(self) -> None:
        lowest = {"workers": 0, "timeout_min": 1, "requeues": 0, "gpus_per_node": 0, "cpus_per_task": 1, "mem_gb": 0}
        for name, low in lowest.items():
            if (value := getattr(self, name)) is not None and value < low:
                raise UsageError(f"slurm.{name}: expected at least {low}, got {value}")
        changed = [one.name for one in fields(self) if getattr(self, one.name) not in (one.default, [], {})]
        if changed and not self.workers:
            raise UsageError("slurm.workers is missing: the number of jobs to submit, such as --slurm.workers 4")

    @property
    def elsewhere(self) -> bool:
        """Whether the workers run on other machines, whose devices this one does not have."""
        return self.workers > 0 and self.cluster == "slurm"

    def parameters(self) -> dict[str, Any]:
        """The parameters of submitit's executor."""
        either = {name: getattr(self, name) for name in ("gpus_per_node", "cpus_per_task", "mem_gb")}
        only = {name: getattr(self, name) for name in ("partition", "account", "qos", "constraint")}
        found = either | {f"slurm_{name}": value for name, value in only.items()}
        found |= {"slurm_setup": self.setup or None, "slurm_additional_parameters": self.also or None}
        known = {name: value for name, value in found.items() if value is not None}
        return {"timeout_min": self.timeout_min, "nodes": 1, "tasks_per_node": 1, **known}


@dataclass
class WorkerJob:
    """A job that is one more worker; queued again after its time limit, it asks for the next trial.

    Args:
        work: does the work of a worker until the study is complete.
        config: the study's file, which `work` is called with.
    """

    work: Callable[[str], None]
    config: str
    _variables: dict[str, str] = field(default_factory=dict, init=False)

    def __call__(self) -> None:
        self._variables = {name: value for name, value in os.environ.items() if name.startswith(VARIABLES)}
        forget_slurm_job()
        self.work(self.config)

    def checkpoint(self) -> Any:
        """Return the job to queue again, before which submitit must know this one's number."""
        from submitit.helpers import DelayedSubmission

        os.environ.update(self._variables)
        return DelayedSubmission(WorkerJob(self.work, self.config))


def forget_slurm_job() -> None:
    """Remove SLURM's variables, by which Lightning would take the tasks of a job for the ranks of one run.

    It would train on one of several devices, and queue the job again by itself, beside submitit.
    """
    for name in [name for name in os.environ if name.startswith(VARIABLES)]:
        del os.environ[name]


def planned_for(study: Study, plan: Plan, slurm: Slurm) -> Plan:
    """Return a plan whose runs use the GPUs of a job, and write it for the workers.

    Raises:
        UsageError: a run would use another number of GPUs than a job has.
    """
    plan = replace(plan, cells=[replace(cell, processes=_processes(study, cell, slurm)) for cell in plan.cells])
    plan.write(study)
    return plan


def _processes(study: Study, cell: Planned, slurm: Slurm) -> int:
    config = yaml.safe_load(config_of(study.folder, cell.name).read_text(encoding="utf-8"))["trainer"]
    devices, gpus = config["devices"], slurm.gpus_per_node
    if config["num_nodes"] != 1:
        raise UsageError(
            f"{study.file}: the cell {cell.name} has trainer.num_nodes {config['num_nodes']}, and a worker job one "
            "node: set trainer.num_nodes to 1"
        )
    if config["accelerator"] == "cpu":
        return devices if isinstance(devices, int) and devices > 0 else 1
    if str(devices) in ("auto", "-1"):
        return gpus or 1
    used = len(devices) if isinstance(devices, list) else int(devices)
    if gpus is not None and gpus != used:
        raise UsageError(
            f"slurm.gpus_per_node: a job would have {gpus} GPU(s), and a run of the cell {cell.name} uses {used} "
            f"(trainer.devices): write --slurm.gpus_per_node {used}, or set trainer.devices to auto"
        )
    return used


def submit(study: Study, slurm: Slurm, job: Callable[[], Any], most: int) -> list[str]:
    """Submit the worker jobs, as one job array, and return their ids.

    Args:
        study: the study, in whose folder submitit keeps its files.
        slurm: what a job asks for.
        job: called by each job.
        most: number of trials that are left, above which a worker would have nothing to do.

    Raises:
        UserError: submitit is not installed, or SLURM refuses the jobs.
    """
    try:
        import submitit
    except ImportError as error:
        raise UsageError(
            f"--slurm.workers needs the package submitit ({error}): pip install 'lit_pref[slurm]'"
        ) from error
    try:
        executor = submitit.AutoExecutor(logs_of(study), slurm.cluster, slurm_max_num_timeout=slurm.requeues)
        executor.update_parameters(name=study.name, **slurm.parameters())
        with executor.batch():
            jobs = [executor.submit(job) for _ in range(min(slurm.workers, most))]
    except (RuntimeError, ValueError, TypeError, OSError) as error:
        raise UserError(
            f"the worker jobs cannot be submitted ({' '.join(str(error).split())[:300]}): check the --slurm options, "
            "and that sbatch and srun are there"
        ) from error
    return [one.job_id for one in jobs]


def logs_of(study: Study) -> Path:
    """The folder in which submitit keeps the jobs' logs and files."""
    return study.folder / "logs" / "slurm"
