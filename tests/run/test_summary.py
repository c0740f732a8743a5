"""The table that closes a run: numbers, intervals over prompts, and what a calibrated model would show."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.plugins.environments import LightningEnvironment, SLURMEnvironment, TorchElasticEnvironment

from lit_pref.modules.evaluation import Evaluation
from lit_pref.run.summary import held_out_table, launcher


def evaluated(stage: str, pairs: int = 40) -> Evaluation:
    """Records of pairs of ten prompts, measured."""
    z = torch.randn(pairs, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.5
    evaluation = Evaluation()
    evaluation.records = {
        "id": [f"pair-{k}" for k in range(pairs)],
        "prompt": [f"prompt-{k // 4}" for k in range(pairs)],
        "z": z.tolist(),
        "loss": torch.nn.functional.softplus(-z).tolist(),
    }
    evaluation.last = evaluation.measure(evaluation.records, stage)
    return evaluation


def rows_of(text: str) -> dict[str, list[str]]:
    cells = [[cell.strip() for cell in line.strip("│").split("│")] for line in text.splitlines() if "│" in line]
    return {name: numbers for name, *numbers in cells}


def test_numbers_have_intervals_over_prompts_and_the_text_says_what_they_cover():
    evaluation = evaluated("val")
    evaluation.records_before = {**evaluation.records, "z": [0.0, 0.1] * 20}
    text = held_out_table({"val/calibration/log_loss": 0.693}, evaluation)
    rows = rows_of(text)
    for name, key in {"preference accuracy": "rewards/accuracies", "reward margin": "rewards/margins"}.items():
        before, _, after, interval = rows[name]
        low, high = map(float, interval.split(" to "))
        assert before == "" and low < float(after) == round(evaluation.last[f"val/{key}"], 3) < high
    assert rows["log-loss against the labels (nats)"][0] == "0.693"
    for row in ("log-loss against the labels (nats)", "Brier score against the labels"):
        assert " to " in rows[row][3]
    low, high = map(float, rows["log-loss against the labels (nats)"][1].split(" to "))
    assert 0.6 < low <= high < 0.7, "the interval before training is of the records before training"
    assert rows["calibration error against the labels"][3].endswith(" if calibrated")
    assert "cover other prompts of the same kind (pairs of one prompt count together), not other training seeds" in text


def test_three_pairs_give_neither_certainty_nor_a_calibration_error_to_expect():
    evaluation = evaluated("val", pairs=3)
    evaluation.records |= {"prompt": ["a", "b", "c"], "z": [0.5, 0.6, 0.7]}
    evaluation.last = evaluation.measure(evaluation.records, "val")
    rows = rows_of(held_out_table({}, evaluation))
    assert rows["preference accuracy"] == ["1.000", "0.439 to 1.000"]
    assert rows["calibration error against the labels"][1] == "too few pairs"
    assert "val/calibration/ece_if_calibrated" not in evaluation.last
    assert "val/calibration/ece_if_calibrated" in evaluated("val", pairs=20).last


def test_the_table_of_one_sided_pairs_has_their_loss_and_speaks_of_nothing_else():
    evaluation = Evaluation()
    evaluation.records = {"id": ["a", "b"], "prompt": ["p", "q"], "loss": [1.0, 2.0], "chosen_logp": [-1.0, -2.0]}
    evaluation.last = evaluation.measure(evaluation.records, "val")
    text = held_out_table({"val/loss": 3.0}, evaluation)
    before, _, after, interval = rows_of(text)["loss (nats)"]
    assert (before, after) == ("3.000", "1.500") and " to " in interval
    assert not any(word in text for word in ("alibration", "reference", "rejected", "accuracy"))


def test_the_table_of_test_has_its_numbers():
    assert rows_of(held_out_table({}, evaluated("test"))).keys() == rows_of(held_out_table({}, evaluated("val"))).keys()
    assert len(rows_of(held_out_table({}, evaluated("test")))) >= 5


def test_records_without_finite_scores_have_no_intervals():
    evaluation = evaluated("val")
    evaluation.records["z"] = [float("nan"), *evaluation.records["z"][1:]]
    assert " to " not in held_out_table({}, evaluation).splitlines()[5]
    evaluation.records = {}
    assert "preference accuracy" in held_out_table({}, evaluation)


def test_an_evaluation_alone_has_one_column_of_values():
    evaluation = evaluated("val")
    alone, both = held_out_table({}, evaluation), held_out_table({"val/rewards/accuracies": 0.5}, evaluation)
    assert "before" not in alone and "after" not in alone and "value" in alone
    assert "before" in both and "after" in both and "0.500" in both


@pytest.mark.parametrize(
    ("environment", "nodes", "words", "where"),
    [
        (None, 1, "PYTHON", ""),
        (LightningEnvironment(), 1, "PYTHON", ""),  # the first process starts the others
        (LightningEnvironment(), 2, "PYTHON", ", on 2 node(s), launched as this run was"),
        (TorchElasticEnvironment(), 1, "torchrun --nproc_per_node 8", ""),
        (
            TorchElasticEnvironment(),
            2,
            "torchrun --nnodes 2 --node_rank K --nproc_per_node 8 --master_addr first --master_port 29510",
            ", on each node K of 0 to 1",
        ),
        (SLURMEnvironment(), 2, "srun PYTHON", ", in a job of 2 node(s) with 8 task(s) each"),
        (object(), 1, "PYTHON", ", on 1 node(s), launched as this run was"),
    ],
    ids=["none", "alone", "lightning", "torchrun", "torchrun-nodes", "slurm", "other"],
)
def test_the_next_command_is_launched_as_the_run_was(
    environment: Any, nodes: int, words: str, where: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MASTER_ADDR", "first")
    monkeypatch.setenv("MASTER_PORT", "29510")
    monkeypatch.setattr("lit_pref.run.summary._this_python", lambda: "PYTHON")
    strategy = SimpleNamespace(cluster_environment=environment)
    trainer: Any = SimpleNamespace(strategy=strategy, num_nodes=nodes, num_devices=8)
    found, place = launcher(trainer)
    assert (" ".join(found), place) == (words, where)
