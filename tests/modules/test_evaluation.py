"""Validation's numbers come from one record a pair, and so do their splits."""

import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from conftest import ROOT, write_pairs
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_pref.__main__ import main
from lit_pref.metrics.records import Records
from lit_pref.modules.evaluation import Evaluation

RECORDS: Records = {
    "id": ["a", "b", "c", "d"],
    "loss": [1.0, 2.0, 3.0, 6.0],
    "z": [1.0, -1.0, 2.0, -4.0],
    "margin": [0.5, 1.0, 4.0, 8.0],
    "group": ["x", "y", "x", "y"],
    "p_true": [0.5, 0.5, 0.5, 0.5],
}


def test_a_split_by_group_is_the_summary_of_its_pairs():
    numbers = Evaluation().measure(RECORDS, "val")
    assert numbers["val/loss"] == 3.0
    assert (numbers["val/group/x/loss"], numbers["val/group/y/loss"]) == (2.0, 4.0)
    assert (numbers["val/group/x/rewards/accuracies"], numbers["val/group/y/rewards/accuracies"]) == (1.0, 0.0)
    assert not any("/margin/" in name for name in numbers), "only where it is asked for"


def test_a_split_by_margin_cuts_the_pairs_into_bins_of_equal_count():
    numbers = Evaluation(margin_bins=2).measure(RECORDS, "val")
    bins = {name: value for name, value in numbers.items() if name.startswith("val/margin/") and name.endswith("/loss")}
    assert sorted(bins.values()) == [1.5, 4.5]  # (1 + 2) / 2 and (3 + 6) / 2


def test_calibration_is_measured_against_the_known_probability_too():
    numbers = Evaluation().measure(RECORDS | {"z": [0.0] * 4}, "val")
    # sigma(0) = 1/2 is the true probability of every pair, and half a unit from every label of both orders.
    assert numbers["val/calibration@p_true/ece"] == pytest.approx(0.0, abs=1e-12)
    assert numbers["val/calibration@p_true/brier"] == pytest.approx(0.0, abs=1e-12)
    assert numbers["val/calibration/brier"] == pytest.approx(0.25)


def test_data_without_groups_have_no_split():
    records = {name: values for name, values in RECORDS.items() if name != "group"}
    assert not any("/group/" in name for name in Evaluation().measure(records, "val"))


@pytest.fixture
def arguments(tmp_path: Path, policy_folder: Path, pairs_file: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Options of a small run in `run`, with as many held-out pairs as training pairs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["lit_pref"])
    arguments = ["--config", str(ROOT / "configs" / "dpo.yaml"), "--trainer.accelerator", "cpu", "--run_dir", "run"]
    arguments += [
        "--model.policy.path",
        str(policy_folder),
        "--data.train",
        str(pairs_file),
        "--data.val",
        str(write_pairs(tmp_path / "val.jsonl", 46, seed=9)),
    ]
    arguments += ["--model.optimizer.lr", "0.01", "--data.global_batch", "8"]
    return arguments


def run(*arguments: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    assert ended.value.code == 0


def column(name: str, file: str) -> list[float]:
    return pq.read_table(Path("run") / "records" / file).to_pydict()[name]


def test_predict_writes_one_row_a_pair(arguments: list[str]):
    run("predict", *arguments)
    assert len(set(column("id", "predict-step=00000000.parquet"))) == 46
    z = column("z", "predict-step=00000000.parquet")
    # Two roundings of scores of a hundred nats in fp32: the reference was read in other company.
    assert z == pytest.approx([0.0] * 46, abs=1e-5), "the policy is its own reference"


def test_a_resumed_run_keeps_the_metrics_before_training(arguments: list[str], capfd: pytest.CaptureFixture[str]):
    run("fit", *arguments, "--stop_at_step", "2")
    capfd.readouterr()
    run("fit", *arguments, "--ckpt_path", "last")
    said = capfd.readouterr().out
    assert "before training" not in said
    assert re.search(r"reward margin +│ +0\.000 │[^│]*│ +[1-9-]", said), "before is the pass before the first step"
    events = EventAccumulator("run", size_guidance={"scalars": 0}).Reload()
    curve = [(event.step, event.value) for event in events.Scalars("val/loss")]
    assert [step for step, _ in dict.fromkeys(curve)] == [0, 2, 6]


def test_validate_says_what_the_checkpoint_scores_and_leaves_the_records_of_fit(
    arguments: list[str], capfd: pytest.CaptureFixture[str]
):
    run("fit", *arguments)
    first, last = (column("z", f"val-step={step:08d}.parquet") for step in (0, 6))
    capfd.readouterr()
    run("validate", *arguments, "--ckpt_path", "last")
    assert "one record per pair: run/records" in capfd.readouterr().out
    assert column("z", "val-step=00000000.parquet") == first
    assert column("z", "validate-step=00000006.parquet") == pytest.approx(last, abs=1e-5)
    assert max(map(abs, last)) > 0.01, "the pairs were learnt, so the two differ"
