"""Checkpoints are whole or absent, whatever kills the process that writes them."""

import multiprocessing
import os
import random
import shutil
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint
from lightning.pytorch.strategies import ModelParallelStrategy

from lit_pref.callbacks.checkpointing import (
    AtomicCheckpointIO,
    Checkpoints,
    all_checkpoints,
    complete_checkpoints,
    is_complete,
    newest_step,
)
from lit_pref.callbacks.verification import damage
from lit_pref.errors import UsageError, UserError


def save_for_ever(folder: Path) -> None:
    torch.set_num_threads(1)
    step = 0
    while True:
        step += 1
        weights = torch.full((2_000_000,), float(step))
        AtomicCheckpointIO().save_checkpoint({"step": step, "weights": weights}, folder / f"step={step % 3:08d}.ckpt")


def test_a_kill_within_a_save_leaves_every_checkpoint_whole(tmp_path: Path):
    rng, cut = random.Random(0), 0
    for _ in range(12):
        process = multiprocessing.get_context("fork").Process(target=save_for_ever, args=(tmp_path,))
        process.start()
        assert process.pid is not None
        deadline = time.monotonic() + 60
        while len(complete_checkpoints(tmp_path)) < 3 and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.05))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        cut += len(list(tmp_path.glob(".*.unfinished")))
        found = list(tmp_path.glob("step=*.ckpt"))
        assert len(found) == 3 and sorted(found) == complete_checkpoints(tmp_path)
        for path in found:
            loaded = torch.load(path, weights_only=True)
            assert torch.equal(loaded["weights"], torch.full((2_000_000,), float(loaded["step"])))
    assert cut > 0, "no kill came within a save"


def test_a_save_is_written_beside_its_place_and_leaves_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    renamed = []
    replace = os.replace
    monkeypatch.setattr(
        os, "replace", lambda a, b: (renamed.append((Path(a).parent, is_complete(Path(a)))), replace(a, b))
    )
    path = tmp_path / "new" / "step=00000001.ckpt"
    AtomicCheckpointIO().save_checkpoint({"a": torch.ones(2)}, path)
    assert renamed == [(path.parent, True)]
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert torch.equal(torch.load(path)["a"], torch.ones(2))


def kill_this_process(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("moment", ["before the index", "before meta.pt", "before the rename"])
def test_a_kill_while_shards_are_saved_leaves_no_checkpoint_and_nothing_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
):
    path, strategy, weights = tmp_path / "step=00000003.ckpt", ModelParallelStrategy(1, 1), torch.arange(1000)
    callback, run = Checkpoints(folder=str(tmp_path)), trainer(tmp_path, strategy=strategy)
    callback.setup(run, None, "fit")
    with monkeypatch.context() as patch:
        if moment == "before the index":
            patch.setattr(torch.distributed.checkpoint.FileSystemWriter, "finish", kill_this_process)
        elif moment == "before meta.pt":
            patch.setattr(torch, "save", kill_this_process)
        else:
            patch.setattr(strategy, "barrier", kill_this_process)
        arguments = ({"state_dict": {"weights": weights}, "global_step": 3}, path)
        process = multiprocessing.get_context("fork").Process(target=strategy.save_checkpoint, args=arguments)
        process.start()
        process.join()
    assert process.exitcode == -signal.SIGKILL
    assert [left.name for left in tmp_path.iterdir()] == [f".{path.name}.unfinished"]
    assert all_checkpoints(tmp_path) == []
    callback.on_train_start(run, None)
    assert list(tmp_path.iterdir()) == []
    for _ in range(2):  # a checkpoint of the same step is replaced
        strategy.save_checkpoint({"state_dict": {"weights": weights}, "global_step": 3}, path)
        assert list(tmp_path.iterdir()) == [path] == complete_checkpoints(tmp_path)
        assert damage(path) is None


def saved(path: Path, size: int = 1000) -> Path:
    AtomicCheckpointIO().save_checkpoint({"weights": torch.arange(size)}, path)
    return path


@pytest.mark.parametrize("written", ["shards", "meta.pt"])
def test_a_full_disk_while_shards_are_saved_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: str
):
    """torch gathers the errors of all processes in an exception of its own, which is no `Exception`."""
    path, strategy = tmp_path / "step=00000003.ckpt", ModelParallelStrategy(1, 1)
    Checkpoints(folder=str(tmp_path)).setup(trainer(tmp_path, strategy=strategy), None, "fit")

    def full(*given: Any, **further: Any) -> None:
        raise OSError(28, "No space left on device")

    if written == "shards":
        monkeypatch.setattr(torch.distributed.checkpoint.FileSystemWriter, "write_data", full)
    else:
        monkeypatch.setattr(torch, "save", full)
    words = r"step=00000003\.ckpt cannot be written \(.*No space left on device\): make room on the disk and resume"
    with pytest.raises(UserError, match=words):
        strategy.save_checkpoint({"state_dict": {"weights": torch.arange(9)}, "global_step": 3}, path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore")
def sharded(path: Path) -> Path:
    """A folder of shards as FSDP2 writes it: shards, their index, and Lightning's meta.pt last."""
    torch.distributed.checkpoint.save({"weights": torch.arange(1000)}, checkpoint_id=path)
    torch.save({"loops": {}}, path / "meta.pt")
    return path


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.9, 0.999])
def test_a_file_that_was_cut_off_is_not_complete(tmp_path: Path, share: float):
    path = saved(tmp_path / "step=00000001.ckpt")
    assert is_complete(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    assert not is_complete(path)
    assert complete_checkpoints(tmp_path) == []


def test_a_folder_of_shards_without_its_index_or_with_half_its_metadata_is_not_complete(tmp_path: Path):
    whole, bare, half, without = (sharded(tmp_path / f"step={k:08d}.ckpt") for k in range(1, 5))
    (bare / ".metadata").unlink()
    (half / "meta.pt").write_bytes((half / "meta.pt").read_bytes()[:-30])
    (without / "meta.pt").unlink()
    assert [is_complete(path) for path in (whole, bare, half, without)] == [True, False, False, False]
    assert complete_checkpoints(tmp_path) == [whole]
    assert newest_step(tmp_path) == 1


def test_what_is_unfinished_or_is_no_checkpoint_is_not_seen(tmp_path: Path):
    assert complete_checkpoints(tmp_path / "none") == [] and newest_step(tmp_path) is None
    for name in (".step=00000009.ckpt.unfinished", "step=9.txt", "step=a.ckpt", "other.ckpt", "step=00000009-v1.ckpt"):
        saved(tmp_path / name)
    assert complete_checkpoints(tmp_path) == []
    paths = [saved(tmp_path / f"step={k:08d}.ckpt") for k in (20, 3, 100)]
    assert complete_checkpoints(tmp_path) == [paths[1], paths[0], paths[2]]
    assert newest_step(tmp_path) == 100


# When the callback saves, without a training


def trainer(folder: Path, **state: Any) -> Any:
    loop = SimpleNamespace(epoch_loop=SimpleNamespace(_should_check_val_fx=lambda fetcher: False), _data_fetcher=None)
    strategy = SimpleNamespace(remove_checkpoint=lambda path: path.unlink())
    found = {
        "global_step": 0,
        "is_last_batch": False,
        "num_val_batches": [],
        "fast_dev_run": False,
        "is_global_zero": True,
    }
    found |= {
        "default_root_dir": str(folder),
        "fit_loop": loop,
        "strategy": strategy,
        "save_checkpoint": saved,
        **state,
    }
    return SimpleNamespace(**found)


def steps(folder: Path) -> list[int]:
    return [int(path.stem.removeprefix("step=")) for path in complete_checkpoints(folder / "checkpoints")]


def test_it_saves_at_every_nth_step_once_and_keeps_the_newest(tmp_path: Path):
    asked = []
    callback, run = Checkpoints(every=2, keep=2), trainer(tmp_path, save_checkpoint=lambda p: asked.append(saved(p)))
    callback.on_train_start(run, None)
    for run.global_step in (0, 0, 1, 1, 2, 2, 3, 4, 5, 6, 7):
        callback.on_train_batch_end(run, None, None, None, 0)
    assert steps(tmp_path) == [4, 6]
    for _ in range(2):
        callback.on_train_end(run, None)
    assert steps(tmp_path) == [6, 7]
    assert [path.name for path in asked] == [f"step={k:08d}.ckpt" for k in (2, 4, 6, 7)]


def test_whether_to_save_at_the_end_is_not_read_from_the_folder_where_another_rank_may_have_written(tmp_path: Path):
    asked = []
    callback, run = Checkpoints(every=10), trainer(tmp_path, save_checkpoint=asked.append)
    callback.on_train_start(run, None)
    run.global_step = 3
    saved(tmp_path / "checkpoints" / "step=00000003.ckpt")  # by the first rank
    callback.on_train_end(run, None)  # on the second, which the first waits for
    assert len(asked) == 1


def test_it_refuses_to_go_on_behind_newer_checkpoints(tmp_path: Path):
    saved(tmp_path / "checkpoints" / "step=00000006.ckpt")
    with pytest.raises(
        UsageError, match="checkpoint of step 6 and this run resumes from step 4: resume from the newest"
    ):
        Checkpoints().on_train_start(trainer(tmp_path, global_step=4), None)
    Checkpoints().on_train_start(trainer(tmp_path, global_step=6), None)


@pytest.mark.parametrize("wrong", [{"every": 0}, {"keep": 0}])
def test_it_refuses_to_save_never_or_keep_nothing(wrong: dict[str, int]):
    with pytest.raises(UsageError, match="both must be at least 1"):
        Checkpoints(**wrong)


def test_old_checkpoints_that_a_kill_has_left_are_deleted_by_a_run_that_takes_no_further_step(tmp_path: Path):
    for step in (6, 8, 9):
        AtomicCheckpointIO().save_checkpoint({"global_step": step}, tmp_path / f"step={step:08d}.ckpt")
    remove = SimpleNamespace(remove_checkpoint=lambda path: path.unlink())
    trainer = SimpleNamespace(is_global_zero=True, fast_dev_run=0, strategy=remove)
    Checkpoints(keep=2, folder=str(tmp_path)).on_fit_end(trainer, None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step=00000008.ckpt", "step=00000009.ckpt"]


def test_what_a_kill_has_left_of_deleted_shards_is_deleted(tmp_path: Path):
    old, *kept = (sharded(tmp_path / f"step={step:08d}.ckpt") for step in (6, 8, 9))
    (old / ".metadata").unlink()
    newer = tmp_path / "step=00000010.ckpt"
    newer.mkdir()  # which a resumed run names as damaged
    remove = SimpleNamespace(remove_checkpoint=shutil.rmtree)
    Checkpoints(keep=2, folder=str(tmp_path)).on_fit_end(trainer(tmp_path, strategy=remove), None)
    assert all_checkpoints(tmp_path) == [*kept, newer]
