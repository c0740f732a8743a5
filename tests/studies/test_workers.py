"""Workers share a study's trials: killed ones lose nothing and double nothing; failures are retried and then named."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from studies.computed_trials import computed, curves, number, plan_by_hand

from lit_pref.errors import Diverged, UserError
from lit_pref.studies.lease import Lease, age
from lit_pref.studies.plan_file import Planned
from lit_pref.studies.queue import Queue
from lit_pref.studies.reading import read_study
from lit_pref.studies.results import results_of, to_csv
from lit_pref.studies.status import forget_failures, overview, status_text
from lit_pref.studies.study import Study
from lit_pref.studies.trial import Busy, Job, Trial, outcomes_of
from lit_pref.studies.worker import Train, Worker

ROOT = Path(__file__).parents[2]


def worker(study: Study, train: Train = computed) -> Worker:
    return Worker(study, plan_by_hand(study), train, curves, lease=0.2, beat=0.05, pause=0.01)


def table_without_times(study: Study) -> list[str]:
    results = results_of(study, plan_by_hand(study).cells, outcomes_of(study))
    return [
        line for line in to_csv(study, [one.__class__(**{**vars(one), "seconds": 0.0}) for one in results]).splitlines()
    ]


def test_a_killed_worker_loses_nothing_and_doubles_nothing(write_study: Callable[..., Path]):
    undisturbed = read_study(write_study("alone"))
    worker(undisturbed).work()
    study = read_study(write_study())
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    command = [sys.executable, str(Path(__file__).with_name("fake_worker.py")), str(study.file)]
    processes = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    killed, other = processes
    attempts = study.folder / "attempts"
    try:
        deadline = time.monotonic() + 60
        while not _runs(attempts, killed.pid) or not _runs(attempts, other.pid):
            assert time.monotonic() < deadline
            time.sleep(0.005)
        killed.kill()
        killed.communicate()
        said, _ = other.communicate(timeout=60)
    finally:
        for process in processes:
            process.kill()
    assert other.returncode == 0, said
    names = [f"{cell.name}.s{seed}" for cell in plan_by_hand(study).cells for seed in study.seeds]
    finished = sorted(
        path.name.rpartition(".s")[0] + ".s" + path.name.rpartition(".s")[2].partition(".")[0]
        for path in attempts.glob("*.ended")
    )
    assert finished == sorted(names), "every trial was trained to its end once"
    assert len(list(attempts.glob("*.began"))) == len(names) + 1, "that of the killed worker began twice"
    assert "a worker was lost" in said
    assert table_without_times(study) == table_without_times(undisturbed)


def _runs(attempts: Path, pid: int) -> bool:
    """Whether a process is within a trial at this moment."""
    began = {path.stem for path in attempts.glob(f"*.{pid}.began")}
    return bool(began - {path.stem for path in attempts.glob(f"*.{pid}.ended")})


def test_two_queues_never_claim_the_same_job(study: Study):
    first, second = Queue(study), Queue(study)
    jobs = [Job("a", seed) for seed in range(4)]
    first.offer(jobs)
    second.offer(jobs)
    claims = [queue.claim(jobs) for _ in range(3) for queue in (first, second)]
    assert [claim.job for claim in claims if claim is not None] == jobs
    assert Queue(study).claim([]) is None and len(first.running()) == 4


def test_a_lease_is_touched_and_a_silent_one_ends(study: Study, tmp_path: Path):
    queue = Queue(study, lease=0.3)
    queue.offer([Job("a", 0), Job("b", 0)])
    claim, silent = queue.claim({Job("a", 0)}), queue.claim({Job("b", 0)})
    assert claim is not None and silent is not None and age(claim.lease) is None
    with Lease(claim.lease, beat=0.05):
        time.sleep(0.6)
        assert (age(claim.lease) or 0) < 0.3
        assert queue.release_lost() == [Job("b", 0)]
    assert not claim.lease.exists()
    queue.offer([Job("b", 0)])
    again = queue.claim({Job("b", 0)})
    assert again is not None and (again.losses, again.failures) == (1, 0)
    queue.done(silent, 1.0)  # the worker that was taken for lost wakes up
    assert [job for job, *_ in queue.running()] == [Job("a", 0), Job("b", 0)]


def test_the_status_names_a_silent_worker(study: Study, monkeypatch: pytest.MonkeyPatch):
    queue = Queue(study)
    queue.offer([Job("a", 0)])
    claim = queue.claim({Job("a", 0)})
    assert claim is not None
    plan = plan_by_hand(study)
    with Lease(claim.lease):
        assert "running     a/s0 for 0 s\n" in f"{status_text(study, plan)}\n"
    claim.lease.parent.mkdir(exist_ok=True)
    claim.lease.touch()
    os.utime(claim.lease, (time.time() - 100, time.time() - 100))
    said = status_text(study, plan)
    assert (
        "for 0 s; its worker is silent for 100 s, after 3 min another one resumes it" in said
        and "to train    16" in said
    )


def test_the_plan_says_what_each_rung_stops(write_study: Callable[..., Path]):
    axes = {"model.objective.beta": [round(0.1 * k, 1) for k in range(1, 10)]}
    study = read_study(write_study(axes=axes, compare=None, seeds=[0], rungs={"strategy": "halving", "from": 0.2}))
    plan = plan_by_hand(study)
    said = overview(study, replace(plan, seconds=10.0))
    assert "rung        at 0.2 of the run; 3 of 9 cells are trained further\n" in said
    assert "rung        at 0.6 of the run; 1 of 3 cells are trained further\n" in said
    assert "estimate    about 34 s with one worker" in said, "9 x 0.2 + 3 x 0.4 + 1 x 0.4 = 3.4 whole trials"


def test_a_failed_trial_is_retried_and_then_named_and_may_be_retried_by_hand(study: Study):
    tried: list[str] = []

    def failing(trial: Trial, stop: int | None, cell: Planned) -> None:
        tried.append(trial.name)
        if trial.name == "target=hard,beta=0.1/s1" and len(tried) < 100:
            raise RuntimeError("no space left")
        computed(trial, stop, cell)

    worker(study, failing).work()
    found = outcomes_of(study)
    failed = found["target=hard,beta=0.1", 1]
    assert tried.count("target=hard,beta=0.1/s1") == study.retries + 1 == failed.failures
    assert (failed.state, failed.reason) == ("failed", "RuntimeError: no space left")
    assert sum(outcome.state == "finished" for outcome in found.values()) == 15

    said = status_text(study, plan_by_hand(study))
    assert "failed      target=hard,beta=0.1/s1: RuntimeError: no space left (log " in said
    assert forget_failures(study) == ["target=hard,beta=0.1/s1"]
    assert "left        about" in status_text(study, plan_by_hand(study))
    worker(study).work()
    assert outcomes_of(study)["target=hard,beta=0.1", 1].state == "finished"


def test_divergence_is_a_result_and_is_not_retried(study: Study):
    tried: list[str] = []

    def diverging(trial: Trial, stop: int | None, cell: Planned) -> None:
        tried.append(trial.name)
        if trial.cell == "target=hard,beta=0.1":
            raise Diverged("the loss of 1 pair(s) is not finite at step 3")
        computed(trial, stop, cell)

    worker(study, diverging).work()
    assert len(tried) == len(set(tried)) == 16
    assert outcomes_of(study)["target=hard,beta=0.1", 0].reason.startswith("the loss of 1 pair(s) is not finite")


def test_a_study_whose_first_trials_all_fail_alike_stops(study: Study):
    def failing(trial: Trial, stop: int | None, cell: Planned) -> None:
        raise RuntimeError("a bug")

    with pytest.raises(UserError, match="the first 3 trials failed for the same reason: RuntimeError: a bug"):
        worker(study, failing).work()
    worker(study).work()  # corrected
    assert {outcome.state for outcome in outcomes_of(study).values()} == {"finished"}


def test_a_worker_that_is_ended_gives_its_trial_back(study: Study):
    def interrupted(trial: Trial, stop: int | None, cell: Planned) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        worker(study, interrupted).work()
    assert not Queue(study).running() and not outcomes_of(study)
    worker(study).work()
    assert len(outcomes_of(study)) == 16
    assert {outcome.failures for outcome in outcomes_of(study).values()} == {0}


def test_one_rung_stops_all_trials_and_trains_the_best_cells_to_the_end(write_study: Callable[..., Path]):
    study = read_study(write_study(rungs={"strategy": "one_rung", "at": 0.4, "keep": 1}))
    stops: list[tuple[str, int | None]] = []

    def train(trial: Trial, stop: int | None, cell: Planned) -> None:
        stops.append((trial.cell, stop))
        computed(trial, stop, cell)

    worker(study, train).work()
    assert [stop for _, stop in stops] == [4] * 16 + [None] * 4
    assert {cell for cell, stop in stops if stop is None} == {"target=margin,beta=0.3"}
    found = outcomes_of(study)
    assert found["target=margin,beta=0.3", 2].value(study.primary) == number("target=margin,beta=0.3", 2, 10)
    assert found["target=hard,beta=0.3", 2].state == "stopped" and found["target=hard,beta=0.3", 2].step == 4


def test_halving_keeps_one_cell_in_eta_at_each_rung(write_study: Callable[..., Path]):
    axes = {"model.objective.beta": [round(0.1 * k, 1) for k in range(1, 10)]}
    study = read_study(
        write_study(axes=axes, compare=None, seeds=[0], rungs={"strategy": "halving", "from": 0.4, "eta": 2})
    )
    stops: list[int | None] = []

    def train(trial: Trial, stop: int | None, cell: Planned) -> None:
        stops.append(stop)
        computed(trial, stop, cell)

    worker(study, train).work()
    assert stops == [4] * 9 + [8] * 4 + [None] * 2


@pytest.fixture
def searching(write_study: Callable[..., Path]) -> Iterator[Study]:
    ranges = {
        "model.objective.beta": {"low": 0.1, "high": 1.0, "log": True},
        "model.objective.target": ["Hard", "Soft"],
    }
    changes = {"axes": None, "search": {"ranges": ranges, "trials": 6, "best": 2}, "seeds": [0, 1, 2]}
    yield read_study(write_study(**changes, compare={"against": "base"}))


def test_a_search_trains_the_best_cells_on_the_other_seeds(searching: Study):
    from lit_pref.studies.plan_file import Plan
    from lit_pref.studies.search import chosen, founds
    from lit_pref.studies.table import table_of

    (searching.folder / "cells").mkdir()
    (searching.folder / "cells" / "base.yaml").write_text("model: {objective: DPO}\n")
    plan = Plan(searching.key, [Planned("base", {}, "digest", 10)], shared=True)

    def train(trial: Trial, stop: int | None, cell: Planned) -> None:
        if trial.cell != "base":
            assert f"beta: {cell.values['model.objective.beta']}" in trial.config.read_text()
        computed(trial, stop, cell)

    Worker(searching, plan, train, curves, lease=0.5, beat=0.1, pause=0.01).work()
    assert [one.number for one in founds(searching)] == list(range(6))
    best = chosen(searching)
    assert [one.value for one in best] == sorted((one.value or 0.0 for one in founds(searching)), reverse=True)[:2]
    seeds = {
        cell: sorted(seed for name, seed in outcomes_of(searching) if name == cell) for cell in (best[0].cell, "base")
    }
    assert seeds == {best[0].cell: [0, 1, 2], "base": [1, 2]}
    table = table_of(searching, results_of(searching, plan.cells, outcomes_of(searching)))
    assert [row.cell for row in table.rows] == [best[0].cell, best[1].cell, "base"]
    assert set(table.rows[0].seeds) == {1, 2} and table.rows[0].baseline == "base"
    assert "cells were selected on seed 0 among 6; means are over the 2 other seeds" in table.notes


def test_a_trial_that_another_process_trains_is_left_alone_and_looked_at_again(study: Study):
    tried: list[str] = []

    def busy(trial: Trial, stop: int | None, cell: Planned) -> None:
        tried.append(trial.name)
        if tried.count("target=hard,beta=0.1/s0") <= 5 and trial.name == "target=hard,beta=0.1/s0":
            raise Busy("another run trains there")
        computed(trial, stop, cell)

    worker(study, busy).work()
    found = outcomes_of(study)["target=hard,beta=0.1", 0]
    assert (found.state, found.failures) == ("finished", 0), "it did not fail, however often it was looked at"


def test_a_primary_measure_that_the_first_trial_did_not_write_stops_the_worker(write_study: Callable[..., Path]):
    study = read_study(write_study(measure={"primary": {"metric": "scoer", "goal": "max"}}))
    with pytest.raises(UserError, match=r"ended and wrote no scoer; it wrote .*score.*; did you mean score"):
        worker(study).work()
    assert not outcomes_of(study) and not Queue(study).running()
