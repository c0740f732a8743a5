"""Checkpoints are read without writing anything."""

import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
from training_runs import differences

from lit_pref.run.checkpoint_model import read_checkpoint, read_shards

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def shards(tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """A folder of shards as FSDP2 writes it, and its content."""
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2, dtype=torch.bfloat16))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model[0](torch.ones(4)).sum().backward()
    optimizer.step()
    state = get_optimizer_state_dict(model, optimizer)
    content = {"state_dict": model.state_dict(), "optimizer_0": state, "plain": {"a": 1, "b": [1, "x", None]}}
    path = tmp_path / "checkpoints" / "step=00000003.ckpt"
    torch.distributed.checkpoint.save(content, checkpoint_id=path)
    torch.save({"global_step": 3}, path / "meta.pt")
    return path, content


def kill_this_process(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_shards_are_read_whole_and_to_the_last_bit(shards: tuple[Path, dict[str, Any]]):
    path, content = shards
    assert differences(read_shards(path), content) == []


def test_a_process_that_is_killed_while_it_reads_shards_leaves_nothing(
    shards: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
):
    path, _ = shards
    monkeypatch.setattr(torch.distributed.checkpoint.FileSystemReader, "read_data", kill_this_process)
    process = multiprocessing.get_context("fork").Process(target=read_checkpoint, args=(path,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert list(path.parent.iterdir()) == [path]
