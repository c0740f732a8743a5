"""A full disk and a folder that cannot be written end a run with one sentence that says from where it resumes."""

import errno
import os
import threading
from pathlib import Path

import pytest
from conftest import ROOT, write_pairs
from lightning.pytorch.loggers import TensorBoardLogger

from lit_pref.callbacks import run_folder
from lit_pref.errors import UserError
from lit_pref.metrics import records
from lit_pref.run.run import Run, build

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy_folder: Path) -> Run:
    monkeypatch.chdir(tmp_path)
    write_pairs(tmp_path / "pairs.jsonl", 32)
    options = {"model.policy.path": str(policy_folder), "data.train": "pairs.jsonl", "data.global_batch": 8}
    options |= {"trainer.accelerator": "cpu", "print_summary": False, "run_dir": "run", "data.val_fraction": 0.2}
    options |= {"trainer.callbacks": [{"class_path": "lit_pref.Checkpoints", "init_args": {"every": 1}}]}
    return build(str(ROOT / "configs" / "dpo.yaml"), {**options, "trainer.log_every_n_steps": 1})


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    "owner, method, kept",
    [
        (run_folder, "config_file", "nothing is saved yet"),
        (TensorBoardLogger, "log_metrics", "nothing is saved yet"),
        (records.os, "replace", "nothing is saved yet"),
    ],
    ids=["config", "log", "records"],
)
def test_a_full_disk_is_one_sentence(run: Run, monkeypatch: pytest.MonkeyPatch, owner: object, method: str, kept: str):
    monkeypatch.setattr(owner, method, full)
    hook = threading.excepthook
    with pytest.raises(UserError, match=rf"the disk of run is full .*: make room on it; {kept}"):
        run.fit()
    assert threading.excepthook is hook
    assert not list(Path("run").rglob("*unfinished*"))


@pytest.mark.skipif(os.geteuid() == 0, reason="the first user may write everywhere")
def test_a_folder_that_cannot_be_written_is_one_sentence(run: Run):
    Path("run").mkdir()
    Path("run/records").mkdir(mode=0o500)
    with pytest.raises(UserError, match=r"run/records/.* cannot be written .*make it writable, or name another folder"):
        run.fit()
