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


def test_the_state_of_a_foreign_repository_runs_none_of_its_filters_and_hooks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.md").write_text("one\n")
    (tmp_path / ".gitattributes").write_text("*.md filter=planted\n")
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "."], [*who, "commit", "-q", "-m", "x"]):
        subprocess.run(["git", *command], check=True)
    assert git_state() == {"commit": git_state()["commit"], "changed_files": 0}
    hook = tmp_path / ".git" / "hooks" / "post-index-change"
    hook.write_text(f"#!/bin/sh\ntouch {tmp_path}/hooked\n")
    hook.chmod(0o755)
    (tmp_path / "text.md").write_text("two\n")
    assert git_state()["changed_files"] == 1 and not (tmp_path / "hooked").exists()
    # Named in an included file, which `git config --local` does not read.
    (tmp_path / ".git" / "more").write_text(f'[filter "planted"]\nclean = touch {tmp_path}/ran; cat\n')
    subprocess.run(["git", "config", "include.path", "more"], check=True)
    state = git_state()
    assert state["changed_files"] is None and "filters" in state["note"]
    assert not (tmp_path / "ran").exists()
    subprocess.run(["git", "status", "-s"], check=True, capture_output=True)
    assert (tmp_path / "ran").exists()
