"""Worker jobs: what SLURM is asked for, jobs that share a study, and one that is interrupted and queued again."""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT
from studies.computed_trials import plan_by_hand, work_slowly

from lit_pref.errors import UsageError, UserError
from lit_pref.studies.plan_file import Planned, read_plan
from lit_pref.studies.queue import Queue
from lit_pref.studies.reading import read_study
from lit_pref.studies.slurm import Slurm, WorkerJob, logs_of, planned_for, submit
from lit_pref.studies.study import Study
from lit_pref.studies.trial import config_of, outcomes_of


@pytest.fixture
def sbatch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cluster that accepts every job and runs none; returns the file with what it was asked last."""
    programs, asked = tmp_path / "programs", tmp_path / "asked.sh"
    programs.mkdir()
    for name in ("srun", "sbatch"):
        (programs / name).write_text(f'#!/bin/sh\ncp "$1" {asked}\necho Submitted batch job 4711\n')
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    return asked


def wait_for(is_true: Callable[[], Any], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_workers_are_submitted_as_one_array_with_what_they_need(study: Study, sbatch: Path):
    wanted = Slurm(12, gpus_per_node=8, mem_gb=64, partition="a100", account="me", setup=["module load cuda"])
    ids = submit(study, wanted, WorkerJob(work_slowly, str(study.file)), most=16)
    assert ids == [f"4711_{k}" for k in range(12)]
    script = sbatch.read_text()
    for line in ("array=0-11%12", "time=240", "partition=a100", "gpus-per-node=8", "mem=64GB", "account=me", "nodes=1"):
        assert f"#SBATCH --{line}\n" in script
    assert "module load cuda" in script and f"{logs_of(study).resolve()}" in script
    assert len(submit(study, Slurm(12, also={"exclude": "n7"}), WorkerJob(work_slowly, ""), most=1)) == 1
    assert "#SBATCH --exclude=n7\n" in sbatch.read_text() and "array" not in sbatch.read_text()


def test_a_job_drops_slurms_variables_and_has_them_back_when_it_is_queued_again(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    seen: list[str | None] = []
    job = WorkerJob(lambda config: seen.append(os.environ.get("SLURM_JOB_ID")), "study.yaml")
    job()
    assert seen == [None] and "SLURM_JOB_ID" not in os.environ
    again = job.checkpoint()
    assert os.environ["SLURM_JOB_ID"] == "7", "submitit asks SLURM to queue the job with this number again"
    assert again.function == WorkerJob(job.work, "study.yaml")


@pytest.mark.slow  # on a loaded machine a worker's sign of life may come later than its short lease
def test_an_interrupted_job_gives_its_trial_back_and_is_queued_again(study: Study, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "tests"), *sys.path]))
    ids = submit(study, Slurm(2, cluster="local"), WorkerJob(work_slowly, str(study.file)), most=16)
    assert len(ids) == 2
    wait_for(lambda: outcomes_of(study))
    pid = (study.folder / "worker.pid").read_text()
    os.kill(int(pid), signal.SIGUSR2)  # as SLURM does shortly before the time limit
    wait_for(lambda: all((logs_of(study) / f"{id}_0_result.pkl").exists() for id in ids))
    logs = [(logs_of(study) / f"{id}_0_log.out").read_text() for id in ids]
    assert sum("Requeued job" in log for log in logs) == 1
    found = outcomes_of(study).values()
    assert len(found) == 16 and not Queue(study).running()
    assert {(outcome.failures, outcome.losses) for outcome in found} == {(0, 0)}, "nothing failed, nothing was lost"


def test_without_submitit_or_slurm_a_sentence_says_what_is_missing(study: Study, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match=r"cannot be submitted \(Could not detect \"srun\".*sbatch and srun are there"):
        submit(study, Slurm(1), print, most=1)
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(UsageError, match=r"submitit .*pip install 'lit_pref\[slurm\]'"):
        submit(study, Slurm(1), print, most=1)


def test_options_that_ask_for_nothing_possible_are_refused():
    with pytest.raises(UsageError, match=r"slurm\.workers is missing"):
        Slurm(partition="a100")
    with pytest.raises(UsageError, match=r"slurm\.timeout_min: expected at least 1, got 0"):
        Slurm(1, timeout_min=0)


DEVICES: list[tuple[dict[str, Any], int | None, int | str]] = [
    ({"devices": "auto"}, 8, 8),
    ({"devices": -1}, None, 1),
    ({"devices": [0, 1]}, 2, 2),
    ({"devices": 2, "accelerator": "cpu"}, None, 2),
    ({"accelerator": "cpu"}, 8, 1),
    ({"devices": 1}, 8, r"8 GPU\(s\), and a run of the cell a uses 1 .*write --slurm\.gpus_per_node 1"),
    ({"num_nodes": 2}, 8, r"cell a has trainer\.num_nodes 2, and a worker job one node"),
]


@pytest.mark.parametrize(("trainer", "gpus", "expected"), DEVICES)
def test_a_run_uses_the_gpus_of_its_job(study: Study, trainer: dict[str, Any], gpus: int | None, expected: int | str):
    plan = plan_by_hand(study).__class__(study.key, [Planned("a", {}, "", 10)])
    config_of(study.folder, "a").parent.mkdir()
    whole = {"devices": "auto", "num_nodes": 1, "accelerator": "gpu", **trainer}
    config_of(study.folder, "a").write_text(yaml.safe_dump({"trainer": whole}))
    slurm = Slurm(2, gpus_per_node=gpus)
    if isinstance(expected, str):
        with pytest.raises(UsageError, match=expected):
            planned_for(study, plan, slurm)
        assert read_plan(study) is None
    else:
        assert planned_for(study, plan, slurm).cells[0].processes == expected
        assert read_plan(read_study(study.file)) == planned_for(study, plan, slurm), "the workers read it"
