"""The commands that use a Trainer: losses that are not finite, devices and strategies that are refused."""

from pathlib import Path

import pytest
from conftest import ROOT, run_command, write_pairs

from lit_pref.cli import main
from lit_pref.errors import UsageError, UserError
from lit_pref.run.folders import folder_of_run


def command(policy: Path, pairs: Path, *arguments: str | Path) -> list[str]:
    line = ["fit", "--config", ROOT / "configs" / "dpo.yaml", "--trainer.accelerator", "cpu", "--run_dir", "run"]
    line += ["--model.policy.path", policy, "--data.train", pairs, "--data.global_batch", "8", *arguments]
    return [str(argument) for argument in line]


@pytest.mark.parametrize("devices", [1, 2])
def test_a_loss_driven_out_of_the_numbers_ends_with_one_sentence(tmp_path: Path, policy_folder: Path, devices: int):
    pairs = write_pairs(tmp_path / "pairs.jsonl", 30)
    options = ["--model.optimizer", "SGD", "--model.optimizer.lr", "1e38", "--model.schedule", "Flat"]
    options += [
        "--model.schedule.warmup",
        "0",
        "--trainer.gradient_clip_val",
        "null",
        "--trainer.devices",
        str(devices),
    ]
    strategy = ["--trainer.strategy", "ddp"] if devices > 1 else []
    done = run_command(*command(policy_folder, pairs, *options, *strategy), cwd=tmp_path, timeout=200)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    said = [line for line in done.stderr.splitlines() if line.startswith("lit_pref:")]
    assert len(said) == 1 and "is not finite at step" in said[0] and "lower the learning rate" in said[0]
    assert not list((tmp_path / "run").glob("checkpoints/step=*"))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["lit_pref"])
    return write_pairs(tmp_path / "pairs.jsonl", 12)


def test_two_devices_where_lightning_uses_one_are_refused(
    here: Path, policy_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    # What a job step of one task leaves in the environment of its children: Lightning trains on one, without a word.
    slurm = {
        "JOB_ID": "1",
        "JOB_NAME": "job",
        "NTASKS": "1",
        "PROCID": "0",
        "LOCALID": "0",
        "NODEID": "0",
        "NNODES": "1",
    }
    for name, value in slurm.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    with pytest.raises(UsageError, match=r"2 devices requested, 1 used: .* --ntasks-per-node is the number of devices"):
        main(command(policy_folder, here, "--trainer.devices", "2", "--trainer.strategy", "ddp"))
    assert not Path("run").exists()


def test_a_strategy_that_lightning_does_not_know_is_refused(here: Path, policy_folder: Path):
    with pytest.raises(UsageError, match="invalid strategy name: `strategy='dpp'`"):
        main(command(policy_folder, here, "--trainer.strategy", "dpp"))


@pytest.mark.parametrize("strategy", ["fsdp", "FSDPStrategy", "fsdp_cpu_offload"])
def test_fsdp1_is_answered_with_the_fsdp2_recipe(here: Path, policy_folder: Path, strategy: str):
    with pytest.raises(UsageError, match=r"FSDP1.*FSDP2.*configs/fsdp.yaml"):
        main(command(policy_folder, here, "--trainer.strategy", strategy))


@pytest.mark.parametrize(
    ("content", "sentence"), [(None, "checkpoint file.ckpt does not exist"), (b"junk", "file.ckpt is not a checkpoint")]
)
def test_a_checkpoint_that_cannot_be_loaded_is_refused_before_anything_is_built(
    here: Path, policy_folder: Path, content: bytes | None, sentence: str
):
    if content is not None:
        Path("file.ckpt").write_bytes(content)
    for subcommand in ("fit", "validate"):
        options = [subcommand, *command(policy_folder, here)[1:], "--ckpt_path", "file.ckpt"]
        with pytest.raises(UserError, match=sentence):
            main(options)


def test_a_run_folder_is_no_checkpoint(here: Path, policy_folder: Path):
    Path("old/checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match="old is a run folder; give one of old/checkpoints"):
        main(command(policy_folder, here, "--ckpt_path", "old"))


def test_the_config_of_a_run_folder_resumes_in_it_and_runs_again_beside_it(tmp_path: Path):
    config = tmp_path / "first" / "config.yaml"
    assert folder_of_run(None, [config], resumes=True) == tmp_path / "first"
    assert folder_of_run(None, [config], resumes=False) == Path("runs/first-again")
    assert folder_of_run(None, ["configs/mmpo.yaml"], resumes=True) == Path("runs/mmpo")


def test_more_devices_than_cores_are_refused_where_no_gpu_was_found(here: Path, policy_folder: Path, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    options = ("--trainer.accelerator", "auto", "--trainer.devices", "2", "--trainer.strategy", "ddp")
    with pytest.raises(UsageError, match=r"trainer.devices is 2 and no GPU was found, .* share 1 CPU cores: set"):
        main(command(policy_folder, here, *options))
    assert not Path("run").exists()


def test_nodes_without_a_launcher_are_refused_because_they_would_never_meet(
    here: Path, policy_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    for name in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK"):
        monkeypatch.delenv(name, raising=False)
    words = r"num_nodes is 2, and nothing says where the nodes meet, .*torchrun.*MASTER_ADDR, MASTER_PORT, NODE_RANK"
    with pytest.raises(UsageError, match=words):
        main(command(policy_folder, here, "--trainer.num_nodes", "2"))
    assert not Path("run").exists()


def test_a_fit_without_checkpoints_is_refused_because_it_exports_one(here: Path, policy_folder: Path):
    with pytest.raises(UsageError, match=r"enable_checkpointing is false, and fit needs .*callbacks.keep 1"):
        main(command(policy_folder, here, "--trainer.enable_checkpointing", "false"))
