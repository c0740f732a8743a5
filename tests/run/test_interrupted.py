"""Runs that are started twice in one folder, killed, or ended by SIGTERM."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, write_pairs

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path, policy_folder: Path) -> Iterator[Start]:
    """Starts `fit` in the folder `run`, and kills at the end whatever still runs."""
    write_pairs(tmp_path / "pairs.jsonl", 24)
    begun: list[subprocess.Popen[str]] = []

    def start_(*arguments: str, command: str = "fit") -> "subprocess.Popen[str]":
        common = ["--config", str(ROOT / "configs" / "dpo.yaml"), "--model.policy.path", str(policy_folder)]
        common += ["--data.train", "pairs.jsonl", "--data.global_batch", "8", "--data.val_fraction", "0.3"]
        common += ["--trainer.accelerator", "cpu", "--run_dir", "run", "--print_summary", "false"]
        common += ["--trainer.callbacks+", "lit_pref.Checkpoints", "--trainer.callbacks.every", "1"]
        begun.append(
            subprocess.Popen(
                [sys.executable, "-m", "lit_pref", command, *common, *arguments],
                cwd=tmp_path,
                env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{Path(__file__).parent}"},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        )
        return begun[-1]

    yield start_
    for process in begun:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def pausing(within: str = "training") -> list[str]:
    return ["--trainer.callbacks+", "pausing.Pausing", "--trainer.callbacks.within", within]


def wait_until_paused(process: "subprocess.Popen[str]", times: int = 1) -> str:
    assert process.stdout is not None
    seen = ""
    for line in process.stdout:
        seen += line
        times -= line.count("paused")  # two processes may print on one line
        if times <= 0:
            return seen
    raise AssertionError(seen + (process.stderr.read() if process.stderr else ""))


def test_a_second_run_in_a_folder_is_refused_while_the_first_trains_and_a_kill_leaves_no_lock(
    start: Start, tmp_path: Path
):
    first = start(*pausing())
    wait_until_paused(first)
    second = start("--ckpt_path", "last")
    said = second.communicate(timeout=120)[1]
    assert second.returncode == 2
    assert f"another run (process {first.pid} on " in said and "trains in run at this moment" in said
    first.kill()
    first.wait()
    again = start("--ckpt_path", "last")
    said = again.communicate(timeout=240)[1]
    assert again.returncode == 0, said
    assert (tmp_path / "run" / "hf" / "model.safetensors").exists()


def test_two_runs_that_start_at_once_in_one_folder_are_one_run(start: Start, tmp_path: Path):
    both = [start(), start()]
    said = [process.communicate(timeout=240)[1] for process in both]
    assert sorted(process.returncode for process in both) == [0, 2], said
    assert any("trains in run at this moment" in text or "already contains a run" in text for text in said)


@pytest.mark.parametrize("within", ["training", "validation"])
def test_sigterm_ends_a_run_at_once_says_from_where_it_resumes_and_is_no_success(
    start: Start, tmp_path: Path, within: str
):
    run = start(*pausing(within))
    wait_until_paused(run)
    run.terminate()
    out, error = run.communicate(timeout=60)
    assert run.returncode == 128 + signal.SIGTERM, out + error
    step = "1; --ckpt_path last resumes from step 1" if within == "training" else "3; --ckpt_path last resumes"
    assert f"ended by SIGTERM at step {step}" in out and "Traceback" not in error
    assert not (tmp_path / "run" / "hf").exists()
    assert not list((tmp_path / "run" / "checkpoints").glob(".*"))


def test_sigterm_during_the_export_of_a_run_leaves_nothing_half_made(start: Start, tmp_path: Path):
    run = start(*pausing("export"))
    wait_until_paused(run)
    assert (tmp_path / "run" / ".hf.unfinished" / "model.safetensors").exists()
    run.terminate()
    out, error = run.communicate(timeout=60)
    assert run.returncode == 128 + signal.SIGTERM, out + error
    assert "ended by SIGTERM before run/hf was complete: nothing of it is left; the weights are in run/checkp" in out
    assert "Traceback" not in error and not [path.name for path in (tmp_path / "run").glob("*hf*")]
    checkpoint = sorted((tmp_path / "run" / "checkpoints").iterdir())[-1]
    program = "import pausing; pausing.pause_exports(); from lit_pref.__main__ import main; main(['export', "
    program += f"'--ckpt_path', {str(checkpoint)!r}, '--out', 'out'])"
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{Path(__file__).parent}"}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", program], cwd=tmp_path, env=environment, **pipes) as command:
        wait_until_paused(command)
        command.terminate()
        out, error = command.communicate(timeout=60)
    assert command.returncode == 128 + signal.SIGTERM, out + error
    assert out == "ended by SIGTERM before out was complete: nothing of it is left; export again\n", error
    assert "Warning" not in error and not [path.name for path in tmp_path.glob("*out*")]


def test_a_validation_beside_a_training_run_says_so_and_one_that_is_ended_says_what_to_do(start: Start, tmp_path: Path):
    training = start(*pausing())
    wait_until_paused(training)
    validating = start(*pausing("validation"), "--ckpt_path", "last", command="validate")
    said = wait_until_paused(validating)
    assert f"note        another run (process {training.pid} on " in said
    assert "trains in run; the records are written beside its own" in said
    validating.terminate()
    out, error = validating.communicate(timeout=60)
    assert validating.returncode == 128 + signal.SIGTERM, out + error
    assert "ended by SIGTERM before validate was complete; run it again" in out and "Traceback" not in error


@pytest.mark.parametrize("to_all", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_sigterm_ends_all_processes_of_a_run(start: Start, to_all: bool):
    run = start(*pausing(), "--trainer.devices", "2", "--trainer.strategy", "ddp")
    wait_until_paused(run, times=2)
    if to_all:
        os.killpg(run.pid, signal.SIGTERM)
    else:
        run.terminate()
    out, error = run.communicate(timeout=60)  # returns when the last process has closed the pipes
    assert run.returncode == 128 + signal.SIGTERM, out + error
    assert "ended by SIGTERM at step 1" in out


def ranks_of(run: "subprocess.Popen[str]") -> list[int]:
    """The process ids of a run on two processes, by rank."""
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
    return [
        run.pid,
        *(int(child) for child in children if b"LOCAL_RANK=1" in Path(f"/proc/{child}/environ").read_bytes()),
    ]


@pytest.mark.parametrize("killed", [1, pytest.param(0, marks=pytest.mark.slow)])
@pytest.mark.parametrize("within", ["training", pytest.param("validation", marks=pytest.mark.slow)])
def test_the_loss_of_one_process_ends_the_others_with_one_sentence(start: Start, killed: int, within: str):
    run = start(*pausing(within), "--trainer.devices", "2", "--trainer.strategy", "ddp")
    wait_until_paused(run, times=2)
    ranks = ranks_of(run)
    os.kill(ranks[killed], signal.SIGKILL)
    out, error = run.communicate(timeout=120)  # returns when the last process has closed the pipes
    assert run.returncode == (1 if killed else -signal.SIGKILL), out + error
    said = [line for line in error.splitlines() if line.startswith("lit_pref:")]
    assert len(said) == 1 and "Traceback" not in error, error
    step, saved = (1, 1) if within == "training" else (3, 2)
    assert f"so the run was ended at step {step}; --ckpt_path last resumes from step {saved}" in said[0]
    assert ("process 1 of 0 to 1 was killed by SIGKILL" in said[0]) == (killed == 1)
