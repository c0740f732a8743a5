"""Runs that resume where checkpoints are damaged."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, write_pairs

from lit_pref.errors import UsageError, UserError
from lit_pref.run import Run, build
from lit_pref.run.checkpoint_model import read_checkpoint
from lit_pref.run.export import export

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy_folder: Path) -> Any:
    """Builds a run of four steps with a checkpoint at each."""
    monkeypatch.chdir(tmp_path)
    write_pairs(tmp_path / "pairs.jsonl", 32)
    options: dict[str, Any] = {"model.policy.path": str(policy_folder), "data.train": "pairs.jsonl"}
    options |= {"data.global_batch": 8, "data.val_fraction": 0, "trainer.accelerator": "cpu", "print_summary": False}
    options |= {"trainer.callbacks": [{"class_path": "lit_pref.Checkpoints", "init_args": {"every": 1}}]}
    return lambda folder, **more: build(str(ROOT / "configs" / "dpo.yaml"), options | {"run_dir": folder} | more)


def weights(path: Path) -> dict[str, torch.Tensor]:
    return read_checkpoint(path)["state_dict"]


def flip_in_weights(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("harm", ["flip", "cut", "empty"])
def test_last_names_a_damaged_checkpoint_and_resumes_from_the_one_before_to_the_same_bits(
    make: Any, capsys: pytest.CaptureFixture[str], harm: str
):
    make("whole").fit()
    make("part", stop_at_step=3).fit()
    newest = Path("part/checkpoints/step=00000003.ckpt")
    if harm == "flip":
        flip_in_weights(newest)
    else:
        newest.write_bytes(newest.read_bytes()[: 500 if harm == "cut" else 0])
    capsys.readouterr()
    make("part").fit("last")
    said = capsys.readouterr().out
    assert f"checkpoint {newest} is damaged (" in said and "taking step=00000002.ckpt instead" in said
    assert newest.with_name(f"{newest.name}.damaged").exists()
    one, two = (weights(Path(run, "checkpoints", "step=00000004.ckpt")) for run in ("whole", "part"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_damaged_checkpoint_that_is_named_is_refused_and_a_folder_of_damaged_ones_does_not_begin_anew(
    make: Any, capsys: pytest.CaptureFixture[str]
):
    make("part", stop_at_step=2).fit()
    files = sorted(Path("part/checkpoints").iterdir())
    flip_in_weights(files[-1])
    for use in (lambda: make("part").fit(files[-1]), lambda: export(files[-1], "out")):
        with pytest.raises(UserError, match=r"step=00000002.ckpt is damaged: .*checksum; take another one"):
            use()
    flip_in_weights(files[0])
    for use in (lambda: make("part").fit("last"), lambda: make("part").export("out")):
        with pytest.raises(UserError, match=r"no checkpoint in part/checkpoints can be used: step=00000002.ckpt \("):
            use()
    assert "from the beginning" not in capsys.readouterr().out
    assert sorted(Path("part/checkpoints").iterdir()) == files


def test_a_run_that_was_killed_before_its_first_checkpoint_starts_from_the_beginning(make: Any):
    run: Run = make("part", stop_at_step=1)
    run.fit()
    for made in ("checkpoints", "hf"):
        shutil.rmtree(f"part/{made}")
    assert make("part", stop_at_step=1).fit("last") is not None


def test_shards_are_not_read_on_one_device(make: Any):
    folder = Path("run/checkpoints/step=00000001.ckpt")
    torch.distributed.checkpoint.save({"weights": torch.ones(2)}, checkpoint_id=folder)
    torch.save({"global_step": 1}, folder / "meta.pt")
    with pytest.raises(UsageError, match="is a folder of shards, which SingleDeviceStrategy cannot read"):
        make("run").fit("last")
