"""The record of a run."""

import subprocess
from pathlib import Path

import pytest

from lit_pref.callbacks.run_folder import git_state


def test_the_state_of_a_foreign_repository_is_read_without_running_its_programs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "watcher").write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    (tmp_path / "watcher").chmod(0o755)
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    commit = ["commit", "-q", "--allow-empty", "-m", "x"]
    for command in (["init", "-q"], [*who, *commit], ["config", "core.fsmonitor", str(tmp_path / "watcher")]):
        subprocess.run(["git", *command], check=True)
    state = git_state()
    assert state is not None and state["changed_files"] == 1
    assert not (tmp_path / "ran").exists()
    subprocess.run(["git", "status", "-s"], check=True, capture_output=True)
    assert (tmp_path / "ran").exists()
