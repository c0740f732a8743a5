"""The quickstart with a small testbed: what a newcomer sees, and what a run leaves."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from conftest import ROOT, run_command
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from transformers import AutoConfig

from lit_pref import build

SMALL = {"demonstrations": 2000, "sft_steps": 120, "pairs": 60, "held_out_pairs": 40, "eval_prompts": 12}
OPTIONS = ["--trainer.log_every_n_steps", "2"]
OPTIONS += [word for name, value in SMALL.items() for word in (f"--testbed.{name}", str(value))]


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder in which the quickstart ran, and what it said."""
    folder = tmp_path_factory.mktemp("quickstart")
    (folder / "configs").symlink_to(ROOT / "configs")
    done = run_command("fit", "--config", "configs/quickstart.yaml", *OPTIONS, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_it_says_what_is_trained_against_what_and_with_which_values(quickstart: tuple[Path, str]):
    _, said = quickstart
    assert "objective   MMPO(beta=0.3, gamma=" in said and "target=MarginTarget(gamma=0.8)" in said
    assert "reference 0 the policy as it is before its first step" in said
    assert "devices     1 requested, 1 used (cpu, SingleDeviceStrategy, precision 32-true)" in said


def test_it_ends_with_gold_reward_held_out_numbers_samples_places_and_what_to_run_next(quickstart: tuple[Path, str]):
    folder, said = quickstart
    for row in ("sampled responses", "greedy responses", "win-rate", "preference accuracy", "against the true probab"):
        assert row in said
    assert said.count("\nprompt  ") == 3 and said.count("  before  ") == 3 and said.count("  after   ") == 3
    for place in ("checkpoints/step=00000006.ckpt", "hf", "config.yaml", "records"):
        assert f"runs/quickstart/{place}" in said
        assert (folder / "runs" / "quickstart" / place).exists()
    assert "tensorboard --logdir runs\n" in said
    last = said.rstrip().splitlines()[-1].strip()
    assert " -m lit_pref fit --config configs/quickstart.yaml" in last and "--model.objective DPO" in last


def test_the_command_it_ends_with_does_what_it_says(quickstart: tuple[Path, str]):
    folder, said = quickstart
    command = said.rstrip().splitlines()[-1].split()[3:]
    done = run_command(*command, "--stop_at_step", "1", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "objective   DPO(beta=0.1, reference=Single(), " in done.stdout and "target=Hard()" in done.stdout


def test_the_resolved_config_runs_again_alone_to_the_same_bits(quickstart: tuple[Path, str]):
    folder, _ = quickstart
    done = run_command("fit", "--config", "runs/quickstart/config.yaml", cwd=folder)
    assert done.returncode == 0, done.stderr
    first, again = (
        torch.load(folder / "runs" / name / "checkpoints" / "step=00000006.ckpt", weights_only=True)["state_dict"]
        for name in ("quickstart", "quickstart-again")
    )
    assert first.keys() == again.keys() and len(first) > 10
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_a_reward_model_of_the_testbed_trains_and_writes_no_responses(
    quickstart: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    options: dict[str, Any] = {"model.policy.head": "scalar", "model.objective": {"class_path": "BradleyTerry"}}
    options |= {f"testbed.{name}": value for name, value in SMALL.items()}
    options |= {"trainer.callbacks": [], "trainer.max_epochs": 1, "run_dir": str(tmp_path / "reward")}
    exported = build(str(ROOT / "configs" / "quickstart.yaml"), options).fit()
    assert exported is not None and AutoConfig.from_pretrained(exported.folder).num_labels == 1
    said = capsys.readouterr().out
    assert "scalar head" in said and "preference accuracy" in said and "gold reward" not in said.lower()


def test_tensorboard_holds_curves_figures_texts_and_the_hyperparameters_in_the_run_itself(quickstart: tuple[Path, str]):
    folder, _ = quickstart
    board = folder / "runs" / "quickstart"  # TensorBoard calls the run by this name
    assert [p.parent for p in (folder / "runs").rglob("events.out.tfevents*") if p.parent.name == "quickstart"] == [
        board
    ]
    events = EventAccumulator(str(board), size_guidance={"scalars": 0, "images": 0, "tensors": 0}).Reload()
    tags = events.Tags()
    wanted = {
        f"{p}/{n}" for p in ("train", "val") for n in ("loss", "rewards/margins", "rewards/accuracies", "logps/chosen")
    }
    wanted |= {"train/gradient_norm", "train/learning_rate", "train/pairs_per_second", "train/peak_memory_gib"}
    wanted |= {"train/response_tokens_per_second", "val/kl_to_target", "val/chosen_fell", "val/calibration@p_true/ece"}
    assert wanted <= set(tags["scalars"]), wanted - set(tags["scalars"])
    assert "hp_metric" not in tags["scalars"]
    assert {"val/reliability/label", "val/reliability/p_true"} <= set(tags["images"])
    assert any("val/samples" in tag for tag in tags["tensors"])
    assert "hparams" in events.summary_metadata["_hparams_/session_start_info"].plugin_data.plugin_name
    compared = hyperparameters(events)
    assert compared["objective"] == "MMPO" and compared["objective.gamma"] > 0 and compared["optimizer"] == "AdamW"
    assert {"optimizer.lr", "schedule", "global_batch", "seed_everything", "policy", "train"} <= compared.keys()
    assert len(compared) < 35 and not any("trainer" in name or "callbacks" in name for name in compared)
    curve = [(event.step, event.value) for event in events.Scalars("val/loss")]
    assert [step for step, _ in dict.fromkeys(curve)] == [0, 2, 4, 6], "the hyperparameters repeat the first point"


def hyperparameters(events: EventAccumulator) -> dict[str, Any]:
    """What the HParams tab shows of a run."""
    content = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    found = HParamsPluginData.FromString(content).session_start_info.hparams
    return {name: getattr(value, value.WhichOneof("kind")) for name, value in found.items()}


def test_records_and_manifest_say_what_the_numbers_were_made_of(quickstart: tuple[Path, str]):
    folder, _ = quickstart
    run = folder / "runs" / "quickstart"
    records = pq.read_table(run / "records" / "val-step=00000006.parquet").to_pydict()
    assert len(set(records["id"])) == len(records["id"]) == SMALL["held_out_pairs"]
    assert {"z", "target", "p_true", "chosen_logp", "margin"} <= set(records)
    manifest = json.loads((run / "manifest.json").read_text())
    assert {"versions", "git", "data", "tokenizer", "policy", "references", "hardware", "command"} <= set(manifest)
    assert manifest["references"][0]["fingerprint"] == manifest["policy"]["fingerprint"]
