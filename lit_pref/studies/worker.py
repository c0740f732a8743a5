"""A worker: claims a study's trials one after the other, trains them, and records what became of them."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from lit_pref.errors import Diverged, UserError
from lit_pref.hints import did_you_mean
from lit_pref.printing import say
from lit_pref.studies.cells import BASE, Cell
from lit_pref.studies.lease import BEAT, LEASE, Lease
from lit_pref.studies.plan_file import Plan, Planned
from lit_pref.studies.queue import Claim, Queue
from lit_pref.studies.rungs import next_jobs
from lit_pref.studies.search import Found, cell_of, founds, search_jobs
from lit_pref.studies.study import Study
from lit_pref.studies.trial import Busy, Job, Outcome, Trial, config_of, curves_of, outcomes_of, read_outcome

Train = Callable[[Trial, int | None, Planned], None]
"""Trains a trial up to an optimizer step (None: to its end), resuming from its newest checkpoint."""
HOPELESS = 3
"""Failures in a row, before any trial has ended, after which a worker stops."""
MOST_LOSSES = 10
"""Lost workers after which a trial counts as failed, because it may be what ends them."""


@dataclass
class Worker:
    """Claims jobs until the study is complete.

    Args:
        study: the study.
        plan: its checked cells.
        train: trains a trial.
        curves: reads the numbers of a run folder.
        lease: seconds without a touch after which another worker counts as lost.
        beat: seconds between two touches.
        pause: seconds between two looks at the queue while others work.
    """

    study: Study
    plan: Plan
    train: Train
    curves: Callable[[Path], Any] = curves_of
    lease: float = LEASE
    beat: float = BEAT
    pause: float = 2.0
    _failed: list[str] = field(default_factory=list, init=False)

    def work(self) -> None:
        """Run jobs until none is left, also those of workers that are lost meanwhile."""
        queue = Queue(self.study, self.lease)
        waiting = 0
        while jobs := self.jobs():
            if lost := queue.release_lost():
                names = ", ".join(sorted({f"{job.cell}/s{job.seed}" for job in lost}))
                say(f"a worker was lost: {names} resumes from its newest checkpoint")
            queue.offer(jobs)
            claim = queue.claim(set(jobs))
            if claim is None:
                if waiting != len(jobs):
                    say(
                        f"waiting for {len(jobs)} trial(s) of other workers; one whose worker is silent for "
                        f"{self.lease:.0f} s is resumed here"
                    )
                waiting = len(jobs)
                time.sleep(self.pause)
                continue
            waiting = 0
            with Lease(claim.lease, self.beat):
                self._run(queue, claim)

    def jobs(self) -> list[Job]:
        """The jobs that can be done now."""
        outcomes = outcomes_of(self.study)
        if self.study.search is None:
            return next_jobs(self.study, self.plan.cells, outcomes)
        return search_jobs(self.study, outcomes)

    def _run(self, queue: Queue, claim: Claim) -> None:
        cell, claim = self._cell(queue, claim)
        trial = Trial(self.study.folder, cell.name, claim.job.seed)
        before = read_outcome(trial.file) if trial.file.exists() else None
        if before is None or not before.reached(claim.job.stop):
            outcome = self._trained(queue, claim, cell, trial, before)
            if outcome is None:
                return  # it is tried again
            outcome.write(trial)
            say(self._line(trial, outcome))
        else:
            outcome = before  # its worker was lost between writing it and saying so
        value = outcome.value(self.study.primary, claim.job.stop)
        if claim.job.search is not None:
            Found(claim.job.search, cell.name, cell.labels, cell.values, value).write(self.study)
        queue.done(claim, value)

    def _cell(self, queue: Queue, claim: Claim) -> tuple[Planned, Claim]:
        """The cell of a job; that of a search is drawn now, or was found before."""
        if self.study.search is None:
            return self.plan.named(claim.job.cell), claim
        base = self.plan.cells[0]
        if claim.job.search is not None:
            cell = cell_of(self.study, queue.draw(claim, self.study.search.ranges))
        else:
            found = {one.cell: one for one in founds(self.study)}.get(claim.job.cell)
            cell = Cell({}, {}) if found is None else Cell(found.labels, found.values)
        self._write_config(cell)
        planned = replace(base, name=cell.name, labels=cell.labels, values=cell.values)
        return planned, replace(claim, job=claim.job._replace(cell=cell.name))

    def _write_config(self, cell: Cell) -> None:
        """Write the configuration of a cell of a search, unless a worker did."""
        file, base = (config_of(self.study.folder, name) for name in (cell.name, BASE))
        if not file.exists():
            config = cell.config(yaml.safe_load(base.read_text(encoding="utf-8")))
            file.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")

    def _trained(
        self, queue: Queue, claim: Claim, cell: Planned, trial: Trial, before: Outcome | None
    ) -> Outcome | None:
        """Train up to the job's step; None if that failed and is tried again."""
        stop, failures, started = claim.job.stop, claim.failures, time.monotonic()
        state, reason = "stopped" if stop is not None and stop < cell.steps else "finished", ""
        try:
            if claim.losses >= MOST_LOSSES:
                raise RuntimeError(f"its worker was lost {claim.losses} times, perhaps by this trial: see {trial.log}")
            self.train(trial, stop, cell)
        except Diverged as error:
            state, reason = "diverged", str(error)
        except Busy as error:
            say(f"busy        {trial.name}: {error}; it is looked at again later")
            queue.failed(claim, failures)
            time.sleep(self.pause)
            return None
        except Exception as error:
            # Whatever a trial does, the other trials of this worker go on.
            failures, reason = failures + 1, f"{type(error).__name__}: {str(error) or 'no message'}"
            if failures <= self.study.retries and claim.losses < MOST_LOSSES:
                say(f"failed      {trial.name}, attempt {failures} of {self.study.retries + 1}: {reason}")
                queue.failed(claim, failures)
                self._refuse_hopeless(trial, reason)
                return None
            state = "failed"
        except BaseException:
            queue.failed(claim, failures)  # this process ends; the trial is nobody's fault and is resumed
            raise
        curves = self.curves(trial.run_dir)
        if state == "finished" and self.study.primary.tag not in curves and self.study.primary.metric != "time":
            queue.failed(claim, failures)
            raise UserError(
                f"{self.study.file}: measure: {trial.name} has ended and wrote no {self.study.primary.tag}; it wrote "
                f"{', '.join(curves) or 'nothing'}{did_you_mean(self.study.primary.tag, curves)}"
            )
        logged = max((curve[-1][0] for curve in curves.values()), default=cell.steps if state == "finished" else 0)
        step = stop if state == "stopped" else logged
        seconds = time.monotonic() - started + (0.0 if before is None else before.seconds)
        known = (cell.labels, trial.seed, state, step, cell.steps, round(seconds, 3), cell.digest, reason)
        return Outcome(*known, failures, claim.losses, curves, trial.repeat(), cell.values)  # type: ignore[arg-type]

    def _refuse_hopeless(self, trial: Trial, reason: str) -> None:
        """Stop where the first trials all fail for the same reason, before each of them is tried again.

        Raises:
            UserError: they do.
        """
        self._failed = [*self._failed, reason][-HOPELESS:]
        if self._failed == [reason] * HOPELESS and not outcomes_of(self.study):
            raise UserError(
                f"the first {HOPELESS} trials failed for the same reason: {reason} (see {trial.log}); correct it and "
                "run the same command again"
            )

    def _line(self, trial: Trial, outcome: Outcome) -> str:
        """Return the line that is printed when a trial has ended or stopped."""
        stopped = outcome.state == "stopped"
        stop = outcome.step if stopped else None
        value = outcome.value(self.study.primary, stop)
        if stopped:
            measured = "" if value is None else f"{self.study.primary.metric} {value:.4g} "
            where = f"at step {stop} of {outcome.steps}"
            return f"{outcome.state:<11} {trial.name}: {measured}{where}; {outcome.seconds:.0f} s"
        outcomes = outcomes_of(self.study)
        ended = sum(one.state != "stopped" for one in outcomes.values())
        number = f"{self.study.primary.metric} {value:.4g}" if value is not None else outcome.reason
        all_end = self.study.search is None and self.study.rungs.strategy == "full"
        of = f" of {len(self.plan.cells) * len(self.study.seeds)}" if all_end else ""
        return f"{outcome.state:<11} {trial.name}: {number}; {outcome.seconds:.0f} s; {ended}{of} trial(s) ended"
