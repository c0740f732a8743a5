"""A checkpoint in which anything changed is told from a whole one, and none runs code."""

import errno
import os
import pickle
import random
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed.checkpoint
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

from lit_pref.callbacks.checkpointing import AtomicCheckpointIO, Checkpoints, check_complete, is_complete
from lit_pref.callbacks.verification import damage, verify
from lit_pref.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore")


def saved(path: Path) -> Path:
    content = {"weights": torch.randn(500), "global_step": 3, "names": ["a", "b"]}
    AtomicCheckpointIO().save_checkpoint(content, path)
    return path


def sharded(path: Path) -> Path:
    """A folder of shards with tensors, an optimizer's state and plain values, as FSDP2 writes it."""
    model = torch.nn.Linear(4, 4)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(4)).sum().backward()
    optimizer.step()
    state = get_optimizer_state_dict(model, optimizer)
    content = {"state_dict": model.state_dict(), "optimizer_0": state, "plain": {"a": 1, "b": [1, "x", None]}}
    torch.distributed.checkpoint.save(content, checkpoint_id=path)
    torch.save({"loops": {}, "global_step": 3}, path / "meta.pt")
    return path


def flip(file: Path, byte: int) -> None:
    content = bytearray(file.read_bytes())
    content[byte] ^= 1
    file.write_bytes(content)


def test_one_flipped_bit_of_a_weight_is_named_though_torch_would_read_it(tmp_path: Path):
    path = saved(tmp_path / "step=00000001.ckpt")
    assert damage(path) is None
    weights = torch.load(path)["weights"].numpy().tobytes()
    flip(path, path.read_bytes().index(weights) + 100)
    torch.load(path, weights_only=True)
    assert is_complete(path) and "data/0 does not match its checksum" in str(damage(path))
    for read in (verify, check_complete, AtomicCheckpointIO().load_checkpoint):
        with pytest.raises(UserError, match=r"step=00000001.ckpt is damaged: .*data/0 does not match.*take another"):
            read(path)


def test_a_flipped_bit_anywhere_is_noticed_or_changes_nothing_that_is_read(tmp_path: Path):
    rng, noticed = random.Random(0), 0
    whole = torch.load(saved(tmp_path / "whole.ckpt"))
    size = (tmp_path / "whole.ckpt").stat().st_size
    for byte in rng.sample(range(size), 150):
        path = tmp_path / "flipped.ckpt"
        path.write_bytes((tmp_path / "whole.ckpt").read_bytes())
        flip(path, byte)
        if damage(path) is None:
            found = torch.load(path, weights_only=True)
            assert torch.equal(found.pop("weights"), whole["weights"])
            assert found == {"global_step": 3, "names": ["a", "b"]}
        else:
            noticed += 1
    assert noticed > 50


def test_a_shard_that_is_cut_missing_or_changed_is_named(tmp_path: Path):
    path = sharded(tmp_path / "step=00000003.ckpt")
    assert damage(path) is None
    shard = next(path.glob("*.distcp"))
    content = shard.read_bytes()
    shard.write_bytes(content[: len(content) // 2])
    assert is_complete(path) and damage(path) == f"{shard.name} is cut off"
    shard.write_bytes(content)
    assert damage(path) is None
    flip(shard, content.index(b"\x80\x02") + 4)  # within a pickled value
    assert f"in {shard.name}: " in str(damage(path))
    shard.unlink()
    assert damage(path) == f"{shard.name} is missing"
    (path / "meta.pt").unlink()
    assert damage(path) == "meta.pt is missing"


class Runs:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (self.folder,)


def test_an_index_that_would_run_code_is_refused_unread(tmp_path: Path):
    path = sharded(tmp_path / "step=00000003.ckpt")
    (path / ".metadata").write_bytes(pickle.dumps(Runs(tmp_path / "made")))
    with pytest.raises(UserError, match=r"\.metadata would run posix\.mkdir, which no checkpoint contains"):
        check_complete(path)
    for content in (b"", b"no pickle", pickle.dumps({"a": 1}), pickle.dumps([torch.float32])):
        (path / ".metadata").write_bytes(content)
        assert ".metadata" in str(damage(path))
    assert not (tmp_path / "made").exists()


def test_a_file_that_would_run_code_is_refused_with_its_name(tmp_path: Path):
    path = tmp_path / "step=00000003.ckpt"
    torch.save({"state_dict": {}, "extra": Runs(tmp_path / "made")}, path)
    for read in (verify, check_complete, AtomicCheckpointIO().load_checkpoint):
        with pytest.raises(UserError, match=r"would run posix\.mkdir, which no checkpoint contains; take another"):
            read(path)
    folder = sharded(tmp_path / "step=00000004.ckpt")
    torch.save({"extra": Runs(tmp_path / "made")}, folder / "meta.pt")
    assert "meta.pt: it would run posix.mkdir" in str(damage(folder))
    assert not (tmp_path / "made").exists()


def test_a_plain_value_in_a_shard_that_would_run_code_is_refused_unread(tmp_path: Path):
    path = tmp_path / "step=00000003.ckpt"
    torch.distributed.checkpoint.save({"plain": Runs(tmp_path / "made")}, checkpoint_id=path)
    torch.save({}, path / "meta.pt")
    assert "plain in __0_0.distcp would run code" in str(damage(path))
    assert not (tmp_path / "made").exists()


def test_a_save_on_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    before = saved(tmp_path / "step=00000001.ckpt")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"step=00000002.ckpt cannot be written .*No space left.*make room"):
        AtomicCheckpointIO().save_checkpoint({}, tmp_path / "step=00000002.ckpt")
    assert list(tmp_path.iterdir()) == [before] and damage(before) is None


def test_shards_are_verified_before_a_trainer_of_ones_own_loads_them(tmp_path: Path):
    folder = sharded(tmp_path / "step=00000003.ckpt")
    shard = next(folder.glob("*.distcp"))
    shard.write_bytes(shard.read_bytes()[:-200])
    strategy = ModelParallelStrategy(1, 1)
    Checkpoints().setup(SimpleNamespace(strategy=strategy), None, "fit")
    with pytest.raises(UserError, match=r"step=00000003.ckpt is damaged: .* is cut off; take another one"):
        strategy.load_checkpoint(folder)
