"""The queue of a study's trials in Optuna's storage, from which workers claim; none does a trial twice."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import FileLock

from lit_pref.errors import UsageError, UserError
from lit_pref.studies.lease import LEASE, age
from lit_pref.studies.study import Range, Study
from lit_pref.studies.trial import Job

try:
    import optuna
    from optuna.exceptions import UpdateFinishedTrialError
    from optuna.samplers import BaseSampler, RandomSampler, TPESampler
    from optuna.storages import BaseStorage, JournalStorage, RDBStorage
    from optuna.storages.journal import JournalFileBackend
    from optuna.study import StudyDirection
    from optuna.trial import FrozenTrial, TrialState
except ImportError as error:
    raise UsageError(f"studies need the package optuna ({error}): pip install 'lit_pref[studies]'") from error

optuna.logging.set_verbosity(optuna.logging.WARNING)
OPEN = (TrialState.WAITING, TrialState.RUNNING)
COUNTS = ("failures", "losses")


@dataclass(frozen=True)
class Claim:
    """A job that this worker runs.

    Args:
        job: the job.
        id: of the trial in Optuna's storage.
        lease: the file to touch meanwhile.
        failures: earlier attempts that ended with an error.
        losses: earlier attempts whose worker was lost.
    """

    job: Job
    id: int
    lease: Path
    failures: int
    losses: int


class Queue:
    """The trials of a study in Optuna's storage.

    Args:
        study: the study.
        lease: seconds without a touch after which a worker counts as lost.
    """

    def __init__(self, study: Study, lease: float = LEASE) -> None:
        study.folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.lease = study.folder, lease
        self._storage = _storage(study)
        name = f"{study.name}-{study.key}"  # a study that trains something else is another one
        directions = {"max": StudyDirection.MAXIMIZE, "min": StudyDirection.MINIMIZE}
        with self._lock():
            self._study = optuna.create_study(
                study_name=name,
                storage=self._storage,
                sampler=_sampler(study),
                direction=directions[study.primary.goal],
                load_if_exists=True,
            )
        self._id = self._storage.get_study_id_from_name(name)

    def offer(self, jobs: Sequence[Job]) -> None:
        """Enqueue the jobs that are neither waiting nor running; those that are tried again keep counts and values."""
        with self._lock():
            last = {_job(trial): trial for trial in self._trials()}
            for job in jobs:
                trial = last.get(job)
                if trial is not None and trial.state in OPEN:
                    continue
                counts, params = {}, {}
                if trial is not None and trial.state == TrialState.FAIL:
                    counts, params = {name: trial.user_attrs.get(name, 0) for name in COUNTS}, trial.params
                self._study.enqueue_trial(params, user_attrs={"job": list(job), **counts})

    def claim(self, wanted: Collection[Job]) -> Claim | None:
        """Take the first waiting job that is wanted; None if there is none."""
        for trial in self._trials((TrialState.WAITING,)):
            if (job := _job(trial)) not in wanted or not self._take(trial):
                continue
            counts = {name: int(trial.user_attrs.get(name, 0)) for name in COUNTS}
            return Claim(job, trial._trial_id, self._lease_file(trial), **counts)
        return None

    def draw(self, claim: Claim, ranges: Sequence[Range]) -> dict[str, Any]:
        """Return the values of a trial of a search, path -> label or number; a trial that is repeated keeps its own."""
        trial = optuna.trial.Trial(self._study, claim.id)
        values: dict[str, Any] = {}
        for one in ranges:
            if one.choices is not None:
                values[one.path] = trial.suggest_categorical(one.path, list(one.choices))
            else:
                assert one.low is not None and one.high is not None
                values[one.path] = trial.suggest_float(one.path, one.low, one.high, log=one.log)
        return values

    def done(self, claim: Claim, value: float | None) -> None:
        """Say that a job is done.

        Args:
            claim: the job.
            value: its primary measure; None if it has none, as after a divergence.
        """
        if value is None:
            self._end(claim.id, TrialState.PRUNED)
        else:
            self._end(claim.id, TrialState.COMPLETE, [value])

    def failed(self, claim: Claim, failures: int) -> None:
        """Say that an attempt failed, or was given up without a fault of its own; `offer` enqueues the job again."""
        self._count(claim.id, "failures", failures)
        self._end(claim.id, TrialState.FAIL)

    def release_lost(self) -> list[Job]:
        """End the attempts whose workers are gone, and return their jobs, for `offer`."""
        lost = []
        for trial in self._trials((TrialState.RUNNING,)):
            if self._silent(trial) <= self.lease:
                continue
            self._count(trial._trial_id, "losses", int(trial.user_attrs.get("losses", 0)) + 1)
            if self._end(trial._trial_id, TrialState.FAIL):
                self._lease_file(trial).unlink(missing_ok=True)
                lost.append(_job(trial))
        return lost

    def running(self) -> list[tuple[Job, float, float]]:
        """Return the running jobs with the seconds since they began, and since their workers were heard of."""
        now = datetime.now()
        trials = self._trials((TrialState.RUNNING,))
        return [
            (_job(trial), (now - (trial.datetime_start or now)).total_seconds(), self._silent(trial))
            for trial in trials
        ]

    def _trials(self, states: tuple[TrialState, ...] | None = None) -> list[FrozenTrial]:
        trials = self._storage.get_all_trials(self._id, deepcopy=False, states=states)
        return sorted((trial for trial in trials if "job" in trial.user_attrs), key=lambda trial: trial.number)

    def _take(self, trial: FrozenTrial) -> bool:
        try:
            return self._storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING)
        except UpdateFinishedTrialError:
            return False

    def _end(self, id: int, state: TrialState, values: list[float] | None = None) -> bool:
        """End an attempt; False if another worker ended it, because it took this one for lost."""
        try:
            return self._storage.set_trial_state_values(id, state, values)
        except UpdateFinishedTrialError:
            return False

    def _count(self, id: int, name: str, count: int) -> None:
        try:
            self._storage.set_trial_user_attr(id, name, count)
        except UpdateFinishedTrialError:
            return

    def _silent(self, trial: FrozenTrial) -> float:
        """Seconds since the worker of a running trial was heard of."""
        seconds = age(self._lease_file(trial))
        if seconds is not None:
            return seconds
        started = trial.datetime_start or datetime.now()
        return (datetime.now() - started).total_seconds()

    def _lease_file(self, trial: FrozenTrial) -> Path:
        return self.folder / "leases" / f"{trial.number:06d}"

    def _lock(self) -> FileLock:
        return FileLock(self.folder / ".queue.lock")


def _job(trial: FrozenTrial) -> Job:
    return Job(*trial.user_attrs["job"])


def _storage(study: Study) -> BaseStorage:
    if study.storage == "auto":
        return JournalStorage(JournalFileBackend(str(study.folder / "queue.journal")))
    try:
        return RDBStorage(study.storage)
    except Exception as error:  # of the driver of the database, which may not be installed
        raise UserError(
            f"{study.file}: engine: the storage cannot be used ({' '.join(str(error).split())[:200]}): check the URL "
            "and that its driver is installed, or write `storage: auto`"
        ) from error


def _sampler(study: Study) -> BaseSampler:
    if study.search is None or study.search.sampler == "random":
        return RandomSampler(seed=None if study.search is None else study.search.seed)
    return TPESampler(seed=study.search.seed, constant_liar=True)
