"""Validation's numbers come from one record a pair, and so do their splits."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

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


def test_predict_writes_one_row_a_pair(tmp_path: Path, policy_folder: Path, pairs_file: Path, monkeypatch):
    from conftest import ROOT

    from lit_pref.__main__ import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["lit_pref"])
    arguments = ["--config", str(ROOT / "configs" / "dpo.yaml"), "--trainer.accelerator", "cpu", "--run_dir", "run"]
    arguments += [
        "--model.policy.path",
        str(policy_folder),
        "--data.train",
        str(pairs_file),
        "--data.val",
        str(pairs_file),
    ]
    with pytest.raises(SystemExit) as ended:
        main(["predict", *arguments])
    assert ended.value.code == 0
    (file,) = (tmp_path / "run" / "records").iterdir()
    rows = pq.read_table(file).to_pydict()
    assert len(set(rows["id"])) == 46
    assert rows["z"] == pytest.approx([0.0] * 46, abs=1e-6), "the policy is its own reference"
