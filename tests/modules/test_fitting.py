"""A gamma that is left open is fitted before the first step, and a checkpoint's stands over it."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import write_pairs
from lightning.pytorch import Trainer
from training_runs import Run, differences, fit, trained

from lit_pref.data.datamodule import PreferenceDataModule
from lit_pref.data.selection.criteria import Random
from lit_pref.errors import UserError
from lit_pref.models.spec import ModelSpec
from lit_pref.modules.preference import PreferenceModule
from lit_pref.objectives.mmpo import MMPO
from lit_pref.objectives.parts.gamma import Fitted

pytestmark = pytest.mark.filterwarnings("ignore")


def file_of(folder: Path, name: str, gamma: float | None, number: int = 12) -> str:
    """Pairs of which a gamma is the likeliest, to the last digit: two of them contradict it, each as much."""
    path = write_pairs(folder / name, number)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    if gamma is not None:
        rows = [{**row, "probability": 1 / (1 + math.exp(-gamma * row["margin"]))} for row in rows]
        rows[0]["probability"] += 0.001 / rows[0]["margin"]
        rows[1]["probability"] -= 0.001 / rows[1]["margin"]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def run(tmp_path: Path, policy_folder: Path) -> Run:
    data = {"train": file_of(tmp_path, "train.jsonl", 0.4), "val": file_of(tmp_path, "val.jsonl", None, 4)}
    data |= {"global_batch": 4}
    return Run(policy={"path": str(policy_folder)}, data=data, objective=lambda: MMPO(gamma=Fitted()))


def test_training_uses_the_fitted_gamma_and_the_checkpoint_keeps_it_with_its_line(run: Run, tmp_path: Path):
    ran = fit(run, tmp_path / "fitted")
    given = fit(replace(run, objective=lambda: MMPO(gamma=0.4)), tmp_path / "given")
    assert ran.logged.column("train/loss") == pytest.approx(given.logged.column("train/loss"), rel=1e-6)
    (line,) = ran.module.fitted
    assert line.startswith("gamma 0.4 (0.39")
    assert line.endswith(
        "95 % by Student's t over prompts), maximum likelihood of `probability` over 12 pairs of 12 prompts"
    )
    checkpoint = torch.load(ran.checkpoint(3), weights_only=True)
    gamma = checkpoint["state_dict"]["objective.target.gamma.value"]
    assert gamma.dtype == torch.float64 and gamma.item() == pytest.approx(0.4, rel=1e-9)
    assert checkpoint["lit_pref"]["fitted"] == ran.module.fitted
    assert given.module.fitted == []


def test_without_labels_the_mean_probability_of_the_training_pairs_is_the_stated_one(run: Run, tmp_path: Path):
    data = {**run.data, "train": file_of(tmp_path, "unlabelled.jsonl", None)}
    ran = fit(replace(run, data=data, objective=lambda: MMPO(gamma=Fitted(mean_probability=0.8))), tmp_path / "mean")
    margins = torch.tensor([pair.margin for pair in ran.trainer.datamodule.train_pairs])
    gamma = ran.module.objective.target.strength
    assert torch.sigmoid(gamma * margins.double()).mean().item() == pytest.approx(0.8, abs=1e-9)
    assert "for a mean probability of 0.8 over 12 pairs of 12 prompts" in ran.module.fitted[0]


def test_a_column_of_labels_is_carried_because_it_is_asked_for(run: Run, tmp_path: Path):
    path = Path(file_of(tmp_path, "votes.jsonl", 0.7))
    path.write_text(path.read_text().replace("probability", "votes"))
    data = {**run.data, "train": str(path), "val": None, "val_fraction": 0.2}
    ran = fit(replace(run, data=data, objective=lambda: MMPO(gamma=Fitted(labels="votes"))), tmp_path / "votes")
    assert ran.module.objective.target.strength == pytest.approx(0.7, rel=1e-9)
    assert "maximum likelihood of `votes`" in ran.module.fitted[0]


def test_a_resumed_run_ends_with_the_same_bits(run: Run, tmp_path: Path):
    whole = torch.load(fit(run, tmp_path / "whole").checkpoint(3), weights_only=True)
    part = fit(run, tmp_path / "part", stop_at_step=1)
    resumed = fit(run, tmp_path / "part", ckpt=part.checkpoint(1))
    assert differences(trained(torch.load(resumed.checkpoint(3), weights_only=True)), trained(whole)) == []


def test_other_data_of_a_later_command_leave_the_checkpoint_s_gamma(run: Run, tmp_path: Path):
    ran = fit(run, tmp_path / "fitted")
    module = PreferenceModule(ModelSpec(**run.policy), MMPO(gamma=Fitted()), reference_store=False)
    other = {**run.data, "train": file_of(tmp_path, "other.jsonl", 2.0)}
    options: Any = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "barebones": False}
    trainer = Trainer(**options, default_root_dir=str(tmp_path / "validated"), use_distributed_sampler=False)
    trainer.validate(module, datamodule=PreferenceDataModule(**other), ckpt_path=str(ran.checkpoint(3)), verbose=False)
    assert module.objective.target.strength == pytest.approx(0.4, rel=1e-9)
    assert module.fitted == ran.module.fitted


def test_a_run_does_not_resume_under_another_rule_for_gamma(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run.data = {**run.data, "val": None, "val_fraction": 0}
    part = fit(run, tmp_path / "part", stop_at_step=1)
    for other in (Fitted(mean_probability=0.9), Fitted(labels="probability")):
        sentence = r"target.gamma of the checkpoint was fitted by Fitted\(labels=None, mean_prob.* sets Fitted"
        with pytest.raises(UserError, match=sentence):
            fit(replace(run, objective=lambda gamma=other: MMPO(gamma=gamma)), tmp_path / "on", ckpt=part.checkpoint(1))
    fit(replace(run, objective=lambda: MMPO(beta=0.3, gamma=Fitted())), tmp_path / "on", ckpt=part.checkpoint(1))
    assert "resumed     from step 1 with model.objective MMPO(" in capsys.readouterr().out


@pytest.mark.parametrize("normalise", ["none", "zscore", "quantile"])
def test_a_probability_that_the_margin_was_made_of_is_no_label(run: Run, tmp_path: Path, normalise: str):
    path = Path(file_of(tmp_path, "judged.jsonl", 1.0))
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        del row["margin"]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    margin = {"transform": "probability", "clip": 3, "scale": 2, "normalise": normalise}
    data = {**run.data, "train": str(path), "val": None, "val_fraction": 0, "mapping": {"margin": margin}}
    ran = fit(replace(run, data=data), tmp_path / "mean")
    (line,) = ran.module.fitted
    assert line.startswith("the margin is computed from `probability`, which is not an independent label: gamma ")
    rule = "for a mean probability of 0.75 (the default of mean_probability) over 12 pairs of 12 prompts"
    reproduces = line.partition(rule)[2]
    if normalise == "none":
        assert reproduces == "; gamma 0.5 reproduces `probability`"
    else:
        assert rule in line and ("reproduces" in reproduces) == (normalise == "zscore")
    margins = torch.tensor([pair.margin for pair in ran.trainer.datamodule.train_pairs]).double()
    assert torch.sigmoid(ran.module.objective.target.strength * margins).mean().item() == pytest.approx(0.75, abs=1e-6)


def test_outside_of_fit_the_line_says_that_the_selection_was_not_applied(run: Run, tmp_path: Path):
    lines = []
    for selection in (None, Random(keep=0.5)):
        module = PreferenceModule(ModelSpec(**run.policy), MMPO(gamma=Fitted()), reference_store=False)
        options: Any = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "barebones": False}
        trainer = Trainer(**options, default_root_dir=str(tmp_path), use_distributed_sampler=False)
        trainer.validate(module, datamodule=PreferenceDataModule(**run.data, selection=selection), verbose=False)
        lines += module.fitted
    whole, line = lines
    assert line == f"{whole}: of all training pairs, because data.selection is applied in `fit` only"
    chosen = fit(replace(run, data={**run.data, "selection": Random(keep=0.5)}), tmp_path / "fit")
    assert chosen.module.fitted[0].endswith("over 6 pairs of 6 prompts")


def test_pairs_to_which_no_gamma_can_be_fitted_stop_the_run_before_it_begins(run: Run, tmp_path: Path):
    path = Path(file_of(tmp_path, "turned.jsonl", 0.4))
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps({**row, "probability": 0.4}) + "\n" for row in rows))
    with pytest.raises(UserError, match="larger margins do not make the chosen response likelier"):
        fit(replace(run, data={**run.data, "train": str(path)}), tmp_path / "turned")


def test_repeated_comparisons_are_labels_of_each_other(run: Run, tmp_path: Path):
    path = Path(file_of(tmp_path, "repeated.jsonl", None, 2))
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    # The first pair four times, once the other way round: at margin 3 two of three others agree, at margin 1 none does.
    turned = {**rows[0], "chosen": rows[0]["rejected"], "rejected": rows[0]["chosen"], "margin": 1.0}
    rows = [turned, rows[1], *({**rows[0], "margin": 3.0} for _ in range(3))]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {**run.data, "train": str(path), "val": None, "val_fraction": 0, "global_batch": 5}
    ran = fit(replace(run, data=data, objective=lambda: MMPO(gamma=Fitted(repeats=True))), tmp_path / "repeats")
    gamma = ran.module.objective.target.strength
    # 3 x 3 (sigmoid(3 gamma) - 2/3) + sigmoid(gamma) - 0 = 0
    assert 9 / (1 + math.exp(-3 * gamma)) - 6 + 1 / (1 + math.exp(-gamma)) == pytest.approx(0, abs=1e-9)
    assert "maximum likelihood of repeated comparisons over 4 pairs of 1 prompts" in ran.module.fitted[0]
